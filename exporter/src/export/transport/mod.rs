//! To the receivers: encoded requests over gRPC or HTTP, and what became of each.
//!
//! `client.rs` makes one exchange of a body for an [`Answer`]; `grpc.rs` and `http.rs` know what is sent
//! and what an answer means; `own.rs` opens the sockets, `tls.rs` secures them.

mod answer;
mod client;
mod compress;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod grpc;
mod headers;
mod http;
mod otel;
mod own;
mod tls;

pub use answer::Answer;
pub use client::Client;
pub use otel::{Headers, OwnHttpClient, channel};
pub use own::OwnSockets;

/// Why no client could be built.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A file for TLS cannot be used.
    #[error("{origin}: key `{key}`: {path} {problem}; {remedy}")]
    File {
        /// File, variable or option that set the key.
        origin: String,
        /// Dotted.
        key: String,
        /// As given.
        path: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// An https:// endpoint, and nobody to trust.
    #[error(
        "this machine has no certificates of authorities ({why}): install them (ca-certificates), or name a PEM \
         file in ca_file"
    )]
    NoRoots {
        /// The first thing that went wrong.
        why: String,
    },
    /// An endpoint that no request can be made of. Not expected: the configuration checks it.
    #[error("{0} is no endpoint that requests can be sent to")]
    Endpoint(::http::Uri),
    /// Of the TLS library itself. Not expected.
    #[error("TLS: {0}")]
    Tls(rustls::Error),
}

#[cfg(test)]
mod tests;
