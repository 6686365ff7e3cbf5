//! What is known beside the connection itself: whose it was.

mod escape;
mod hosts;
mod process;
mod reverse;
mod workload;

pub use hosts::{Hosts, HostsStats};
pub use process::{Process, Processes, is_in_initial_pid_namespace};
pub use reverse::{Reverse, ReverseStats};
pub use workload::{Workload, WorkloadSettings, Workloads};
