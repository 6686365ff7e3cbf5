//! What is known beside the connection itself: whose it was.

mod process;
mod workload;

pub use process::{Process, Processes, is_in_initial_pid_namespace};
pub use workload::{Workload, WorkloadSettings, Workloads};
