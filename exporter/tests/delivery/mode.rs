//! What goes wrong.

use std::time::Duration;

use tonic::Code;

/// How the receiver is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Grpc,
    /// HTTP/1.1 with protobuf.
    Http,
}

impl Protocol {
    pub(crate) const ALL: [Self; 2] = [Self::Grpc, Self::Http];
}

/// What the injector does to a request, or to connections.
#[derive(Clone, Debug)]
pub(crate) enum Mode {
    /// Every request is taken and acknowledged.
    Healthy,
    /// The port is closed.
    Refused,
    /// Connections are taken, and nothing is read from them.
    BlackHole,
    /// The request is taken, and acknowledged after this.
    Slow(Duration),
    /// Refused with this status and Retry-After. HTTP only.
    Status { status: u16, retry_after: Option<Duration> },
    /// Refused with this code and RetryInfo. gRPC only.
    Code { code: Code, retry_info: Option<Duration> },
    /// Messages of more than so many bytes, uncompressed, are refused as too large.
    LargerThan(usize),
    /// The last so many records of a request are rejected, the others taken; said as OTLP's partial success.
    Rejecting(usize),
    /// The connection is cut when the head of the request came.
    CutBefore,
    /// The request is taken, and the connection cut instead of an answer.
    CutAfter,
    /// 200 and a page of HTML, as from a captive portal: nothing is taken.
    Lie,
    /// The server's certificate expired. Only where the injector speaks TLS.
    ExpiredCertificate,
}

impl Mode {
    /// Whether connections that were made before or in it cannot go on.
    pub(crate) const fn is_of_connections(&self) -> bool {
        matches!(self, Self::Refused | Self::BlackHole | Self::ExpiredCertificate)
    }
}
