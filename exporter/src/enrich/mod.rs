//! What is known beside the connection itself: whose it was.

mod escape;
mod hosts;
mod labels;
mod process;
mod reverse;
mod template;
mod workload;

pub use hosts::{Hosts, HostsStats};
pub use labels::{Labels, LabelsError, LabelsReceiver, start as start_labels};
pub use process::{FEW_HOSTS, NO_EXECUTABLES, Process, Processes, is_in_initial_pid_namespace};
pub use reverse::{Reverse, ReverseStats};
pub use template::{Known, Template};
pub use workload::{Workload, WorkloadSettings, Workloads};
