//! The OTLP receiver of each signal, from the settings common to both and its own.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};

use super::ConfigError;
use super::print::without_password;
use super::raw::{RawOtlp, RawSignal};
use super::settings::{Origin, bad, one_of, positive};

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

/// One OTLP receiver.
#[derive(Clone, Debug)]
pub struct Receiver {
    /// For HTTP with the path of the signal.
    pub endpoint: Uri,
    /// Transport.
    pub protocol: Protocol,
    /// None: as it is.
    pub compression: Option<Compression>,
    /// The longest a request may take.
    pub timeout: Duration,
    /// Sent with each request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// The receiver of each signal.
#[derive(Clone, Debug)]
pub struct SignalReceivers {
    /// Of log records.
    pub logs: Receiver,
    /// Of spans.
    pub traces: Receiver,
}

/// One signal's receiver: its own settings, else those of `[otlp]`, else the specification's.
pub(super) fn receiver(
    all: &RawOtlp,
    own: &RawSignal,
    table: &str,
    path: &str,
    origin: Origin<'_>,
) -> Result<Receiver, ConfigError> {
    let pick = |field: &str, own: &str, all: &str| -> (String, String) {
        if own.is_empty() {
            (format!("otlp.{field}"), all.to_owned())
        } else {
            (format!("{table}.{field}"), own.to_owned())
        }
    };
    let (endpoint_key, endpoint_text) = pick("endpoint", &own.endpoint, &all.endpoint);
    let (protocol_key, protocol_text) = pick("protocol", &own.protocol, &all.protocol);
    let (compression_key, compression_text) =
        pick("compression", &own.compression, &all.compression);
    let (timeout_key, timeout_text) = pick("timeout", &own.timeout, &all.timeout);

    let given = if endpoint_text.is_empty() {
        None
    } else {
        Some(endpoint(&endpoint_key, &endpoint_text, origin)?)
    };
    let protocol = if protocol_text.is_empty() {
        match &given {
            Some(uri) if uri.port_u16() == Some(4318) || uri.path() != "/" => Protocol::Http,
            _ => Protocol::Grpc,
        }
    } else {
        one_of(
            &protocol_key,
            &protocol_text,
            &[("grpc", Protocol::Grpc), ("http/protobuf", Protocol::Http)],
            origin,
        )?
    };
    let base = given.unwrap_or_else(|| match protocol {
        Protocol::Grpc => Uri::from_static("http://localhost:4317"),
        Protocol::Http => Uri::from_static("http://localhost:4318"),
    });
    let endpoint = if protocol == Protocol::Http && own.endpoint.is_empty() {
        let joined = format!("{}{path}", base.to_string().trim_end_matches('/'));
        joined.parse().map_err(|_| bad(&endpoint_key, origin, format!("\"{joined}\" is no URL")))?
    } else {
        base
    };
    Ok(Receiver {
        endpoint,
        protocol,
        compression: one_of(
            &compression_key,
            &compression_text,
            &[("none", None), ("gzip", Some(Compression::Gzip)), ("zstd", Some(Compression::Zstd))],
            origin,
        )?,
        timeout: positive(&timeout_key, &timeout_text, origin)?,
        headers: headers(&all.headers, &own.headers, table, origin)?,
    })
}

fn endpoint(key: &str, text: &str, origin: Origin<'_>) -> Result<Uri, ConfigError> {
    let shown = without_password(text);
    let problem = |why: &str| {
        bad(
            key,
            origin,
            format!(
                "\"{shown}\" {why}; write one like \"http://collector:4317\" or \"https://collector:4318\""
            ),
        )
    };
    let uri: Uri = text.parse().map_err(|_| problem("is no URL"))?;
    if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        return Err(problem(
            "holds a user or password, which would not be sent: use otlp.headers.authorization",
        ));
    }
    match uri.scheme_str() {
        Some("http" | "https") if uri.host().is_some_and(|h| !h.is_empty()) => Ok(uri),
        Some("http" | "https") => Err(problem("has no host")),
        _ => Err(problem("must begin with http:// or https://")),
    }
}

fn headers(
    all: &BTreeMap<String, String>,
    own: &BTreeMap<String, String>,
    table: &str,
    origin: Origin<'_>,
) -> Result<Vec<(HeaderName, HeaderValue)>, ConfigError> {
    let mut merged: BTreeMap<&str, (&str, &str)> =
        all.iter().map(|(k, v)| (k.as_str(), ("otlp", v.as_str()))).collect();
    merged.extend(own.iter().map(|(k, v)| (k.as_str(), (table, v.as_str()))));
    merged
        .into_iter()
        .map(|(name, (table, value))| {
            let key = format!("{table}.headers.{name}");
            let parsed = name.to_ascii_lowercase().parse::<HeaderName>();
            let name =
                parsed.map_err(|_| bad(&key, origin, "is no name of an HTTP header".into()))?;
            let mut value = HeaderValue::from_str(value)
                .map_err(|_| bad(&key, origin, "the value is no text of an HTTP header".into()))?;
            value.set_sensitive(true);
            Ok((name, value))
        })
        .collect()
}
