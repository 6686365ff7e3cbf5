//! From the bounded queue of each output to stdout or to an OTLP receiver.

mod otlp;
mod queue;
mod stream;
mod transport;

pub use otlp::{Signal, spawn as spawn_otlp};
pub use queue::{Counted, Queue};
pub use stream::{StreamFormat, spawn as spawn_stream};
pub use transport::{Answer, Client, ClientError, Headers, OwnHttpClient, OwnSockets, channel};
