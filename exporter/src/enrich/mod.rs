//! What is known beside the connection itself: whose it was.

mod escape;
mod hosts;
mod labels;
mod process;
mod reverse;
mod template;
mod workload;

#[cfg(any(test, fuzzing))]
pub(crate) use hosts::check_file as check_hosts_file;
pub use hosts::{Hosts, HostsStats};
pub use labels::{Labels, LabelsError, LabelsReceiver, start as start_labels};
pub use process::{
    FEW_HOSTS, KeptProcesses, NO_EXECUTABLES, Process, Processes, is_in_initial_pid_namespace,
};
pub use reverse::{Reverse, ReverseStats};
pub use template::{Known, Template};
pub use workload::{Workload, WorkloadSettings, Workloads};
