//! What the kernel knows of TCP sockets, by sock_diag (sock_diag(7)): connections older than the probe,
//! which connections are still there, their counters, and who has them open.
//!
//! [`dump`] is one network namespace, [`snapshot`] all that can be reached, [`direction`] who opened a
//! connection, [`owners`] whose it is. Everything here blocks: call it off the runtime's threads.

mod direction;
mod dump;
mod listeners;
mod message;
mod procfs;
mod snapshot;
mod socket;

pub use direction::{direction, exact_direction};
pub use dump::{DiagError, Namespace, dump};
pub use listeners::{Listener, Listeners};
#[cfg(any(test, fuzzing))]
pub(crate) use message::fuzz::check as check_answer;
pub use procfs::{Owners, ProcessFilter, owners};
pub use snapshot::{
    LeftOut, LeftOutReason, Snapshot, SnapshotOptions, can_enter_namespaces, snapshot,
};
pub use socket::{Socket, SocketKind, TcpInfo};
