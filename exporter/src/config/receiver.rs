//! What is known of one OTLP receiver: where it is, how it is spoken to, and what proves who is who.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};

/// Transport of OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP/gRPC.
    Grpc,
    /// OTLP/HTTP with protobuf.
    Http,
}

/// Compression of export requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// A file that a key names, and where that key was set: for errors that are found only when it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// File, variable or option that set the key.
    pub origin: String,
    /// Dotted.
    pub key: String,
    /// As given.
    pub path: PathBuf,
}

/// Files for TLS. They are read when a client is built; http:// endpoints take no notice of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM certificates of the authorities that may vouch for the receiver. None: the system's.
    pub authorities: Option<NamedFile>,
    /// What flowend shows of itself, where the receiver asks for it.
    pub client: Option<ClientFiles>,
}

/// flowend's own certificate (mTLS).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// PEM, the own certificate first, then those between it and the authority.
    pub certificate: NamedFile,
    /// PEM: PKCS #8, PKCS #1 or SEC 1, not encrypted.
    pub key: NamedFile,
}

/// One OTLP receiver of one signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receiver {
    /// http:// or https://; for HTTP with the path of the signal.
    pub endpoint: Uri,
    /// Transport.
    pub protocol: Protocol,
    /// None: as it is.
    pub compression: Option<Compression>,
    /// The longest a request may take, from connecting to the last byte of the answer.
    pub timeout: Duration,
    /// Sent with each request; the values are marked as sensitive.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Further headers that change while flowend runs; they win over `headers`.
    pub headers_file: Option<NamedFile>,
    /// For https:// endpoints.
    pub tls: TlsFiles,
}

impl Receiver {
    /// Whether the connection is to be secured.
    pub fn is_secure(&self) -> bool {
        self.endpoint.scheme() == Some(&http::uri::Scheme::HTTPS)
    }
}

/// Where records are sent: `[otlp]`, or one of `[destinations]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// "otlp", or NAME of `[destinations.NAME]`.
    pub name: Arc<str>,
    /// Of log records. None: it gets none.
    pub logs: Option<Receiver>,
    /// Of spans. None: it gets none.
    pub traces: Option<Receiver>,
}

/// A header that somebody chose, checked: its value is marked as sensitive, so that nothing prints it.
///
/// # Errors
/// What is wrong, in words that follow its name; never the value.
pub(crate) fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), &'static str> {
    let name: HeaderName =
        name.to_ascii_lowercase().parse().map_err(|_| "is no name of an HTTP header")?;
    if is_own(name.as_str()) {
        return Err("is a header that flowend sets itself; leave it out");
    }
    let mut value =
        HeaderValue::from_str(value).map_err(|_| "the value is no text of an HTTP header")?;
    value.set_sensitive(true);
    Ok((name, value))
}

/// Headers that frame the request: with another value the receiver could not read it.
fn is_own(name: &str) -> bool {
    const OWN: [&str; 7] = [
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    OWN.contains(&name) || name.starts_with("grpc-")
}
