//! From `[otlp]` and `[destinations]` as written to a receiver for each signal.
//!
//! A key is looked for in the table of the signal, then in that of the destination; a further destination
//! then takes it from `[otlp]` in the same way, unless it says who is addressed or is a secret.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};

use super::ConfigError;
use super::print::without_password;
use super::raw::{RawOtlp, RawSignal};
use super::receiver::{
    ClientFiles, Compression, Destination, NamedFile, Protocol, Receiver, TlsFiles, header,
};
use super::settings::{Origin, bad, one_of, positive};

/// Names that mean something else: outputs, and the destination that is always there.
const TAKEN_NAMES: [&str; 3] = ["otlp", "text", "json"];

/// What one signal has of its own.
struct Signal {
    /// Its table below that of the destination.
    table: &'static str,
    /// Added to an HTTP endpoint that is common to all signals (OTLP specification, "OTLP/HTTP Request").
    path: &'static str,
    raw: fn(&RawOtlp) -> &RawSignal,
}

const LOGS: Signal = Signal { table: "logs", path: "/v1/logs", raw: |otlp| &otlp.logs };
const TRACES: Signal = Signal { table: "traces", path: "/v1/traces", raw: |otlp| &otlp.traces };
const METRICS: Signal = Signal { table: "metrics", path: "/v1/metrics", raw: |otlp| &otlp.metrics };

/// Whether any endpoint is given: then OTLP is wanted.
pub(super) fn any_endpoint(otlp: &RawOtlp, further: &BTreeMap<String, RawOtlp>) -> bool {
    std::iter::once(otlp)
        .chain(further.values())
        .flat_map(|raw| [&raw.endpoint, &raw.logs.endpoint, &raw.traces.endpoint])
        .any(|endpoint| !endpoint.is_empty())
}

/// `[otlp]`, then `[destinations]` by name.
pub(super) fn destinations(
    otlp: &RawOtlp,
    further: &BTreeMap<String, RawOtlp>,
    origin: Origin<'_>,
) -> Result<Vec<Destination>, ConfigError> {
    let main = Table { key: "otlp".into(), raw: otlp, parent: None };
    let mut all = vec![main.destination("otlp", origin)?];
    for (name, raw) in further {
        let table = Table { key: format!("destinations.{name}"), raw, parent: Some(&main) };
        check_name(name, &table.key, origin)?;
        all.push(table.destination(name, origin)?);
    }
    if all.iter().all(|one| one.logs.is_none() && one.traces.is_none()) {
        return Err(bad(
            "otlp.signals",
            origin,
            format!("is empty, and no other destination is given; {SIGNALS}"),
        ));
    }
    Ok(all)
}

/// The receiver of flowend's own metrics: that of `[otlp.metrics]`, else of `[otlp]`.
pub(super) fn metrics(otlp: &RawOtlp, origin: Origin<'_>) -> Result<Receiver, ConfigError> {
    Table { key: "otlp".into(), raw: otlp, parent: None }.receiver(&METRICS, origin)
}

const SIGNALS: &str = "write [\"logs\", \"traces\"], or one of them";

fn check_name(name: &str, key: &str, origin: Origin<'_>) -> Result<(), ConfigError> {
    let is_plain = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    if name.is_empty() || name.len() > 32 || !name.bytes().all(is_plain) {
        let problem = "is no name of a destination; use up to 32 of a-z, 0-9, \"_\" and \"-\"";
        return Err(bad(key, origin, problem.into()));
    }
    if TAKEN_NAMES.contains(&name) {
        return Err(bad(
            key,
            origin,
            format!("\"{name}\" is the name of an output; choose another"),
        ));
    }
    Ok(())
}

/// The table of one destination.
struct Table<'a> {
    /// Dotted.
    key: String,
    raw: &'a RawOtlp,
    /// Where keys come from that are left out. Endpoint, headers and the client's certificate never do:
    /// they are another receiver's.
    parent: Option<&'a Table<'a>>,
}

/// A key with its value, as found.
struct Found<'a> {
    key: String,
    text: &'a str,
}

impl Found<'_> {
    fn file(&self, origin: Origin<'_>) -> Option<NamedFile> {
        (!self.text.is_empty()).then(|| NamedFile {
            origin: origin(&self.key),
            key: self.key.clone(),
            path: PathBuf::from(self.text),
        })
    }
}

type Field<T> = for<'a> fn(&'a T) -> &'a str;

impl<'a> Table<'a> {
    fn destination(&self, name: &str, origin: Origin<'_>) -> Result<Destination, ConfigError> {
        let (key, signals) = match (&self.raw.signals, self.parent) {
            (None, Some(parent)) => (format!("{}.signals", parent.key), &parent.raw.signals),
            (given, _) => (format!("{}.signals", self.key), given),
        };
        let signals = signals.as_deref().unwrap_or_default();
        for text in signals {
            one_of(&key, text, &[("logs", ()), ("traces", ())], origin)?;
        }
        if signals.is_empty() && self.parent.is_some() {
            let key = format!("{}.signals", self.key);
            return Err(bad(&key, origin, format!("is empty: nothing would be sent; {SIGNALS}")));
        }
        let receiver = |signal: &Signal| {
            let is_wanted = signals.iter().any(|text| text == signal.table);
            is_wanted.then(|| self.receiver(signal, origin)).transpose()
        };
        Ok(Destination {
            name: Arc::from(name),
            logs: receiver(&LOGS)?,
            traces: receiver(&TRACES)?,
        })
    }

    /// A key of the signal's table, else of the destination's.
    fn own(
        &self,
        signal: &Signal,
        field: &str,
        of_signal: Field<RawSignal>,
        of_all: Field<RawOtlp>,
    ) -> Found<'a> {
        match of_signal((signal.raw)(self.raw)) {
            "" => Found { key: format!("{}.{field}", self.key), text: of_all(self.raw) },
            text => Found { key: format!("{}.{}.{field}", self.key, signal.table), text },
        }
    }

    /// As [`Self::own`], else from `[otlp]`.
    fn pick(
        &self,
        signal: &Signal,
        field: &str,
        of_signal: Field<RawSignal>,
        of_all: Field<RawOtlp>,
    ) -> Found<'a> {
        match (self.own(signal, field, of_signal, of_all), self.parent) {
            (Found { text: "", .. }, Some(parent)) => parent.pick(signal, field, of_signal, of_all),
            (found, _) => found,
        }
    }

    fn receiver(&self, signal: &Signal, origin: Origin<'_>) -> Result<Receiver, ConfigError> {
        let (protocol, endpoint) = self.endpoint(signal, origin)?;
        let compression = self.pick(signal, "compression", |r| &r.compression, |r| &r.compression);
        let timeout = self.pick(signal, "timeout", |r| &r.timeout, |r| &r.timeout);
        let headers_file =
            self.own(signal, "headers_file", |r| &r.headers_file, |r| &r.headers_file);
        Ok(Receiver {
            endpoint,
            protocol,
            compression: compression_of(&compression, origin)?,
            timeout: timeout_of(&timeout, origin)?,
            headers: self.headers(signal, origin)?,
            headers_file: headers_file.file(origin),
            tls: self.tls(signal, origin)?,
        })
    }

    fn endpoint(
        &self,
        signal: &Signal,
        origin: Origin<'_>,
    ) -> Result<(Protocol, Uri), ConfigError> {
        let found = self.own(signal, "endpoint", |r| &r.endpoint, |r| &r.endpoint);
        if found.text.is_empty() && self.parent.is_some() {
            let problem = "is missing: name the receiver, like \"https://collector:4317\"";
            return Err(bad(&found.key, origin, problem.into()));
        }
        let given =
            (!found.text.is_empty()).then(|| Endpoint::parse(&found, origin)).transpose()?;
        let protocol = self.pick(signal, "protocol", |r| &r.protocol, |r| &r.protocol);
        let protocol = match (protocol.text, &given) {
            ("", Some(given)) => given.protocol(),
            ("", None) => Protocol::Grpc,
            (text, _) => one_of(
                &protocol.key,
                text,
                &[("grpc", Protocol::Grpc), ("http/protobuf", Protocol::Http)],
                origin,
            )?,
        };
        let base = match (given, protocol) {
            (Some(given), _) => {
                let insecure = self.pick(signal, "insecure", |r| &r.insecure, |r| &r.insecure);
                let choices = [("", false), ("false", false), ("true", true)];
                let insecure = one_of(&insecure.key, insecure.text, &choices, origin)?;
                given.with_scheme(protocol, insecure, &found, origin)?
            }
            (None, Protocol::Grpc) => Uri::from_static("http://localhost:4317"),
            (None, Protocol::Http) => Uri::from_static("http://localhost:4318"),
        };
        // A signal's own endpoint is used as it stands.
        if protocol == Protocol::Grpc || !(signal.raw)(self.raw).endpoint.is_empty() {
            return Ok((protocol, base));
        }
        let joined = format!("{}{}", base.to_string().trim_end_matches('/'), signal.path);
        let uri = joined.parse();
        let uri = uri.map_err(|_| bad(&found.key, origin, format!("\"{joined}\" is no URL")))?;
        Ok((protocol, uri))
    }

    fn tls(&self, signal: &Signal, origin: Origin<'_>) -> Result<TlsFiles, ConfigError> {
        let authorities = self.pick(signal, "ca_file", |r| &r.ca_file, |r| &r.ca_file);
        let certificate = self.own(
            signal,
            "client_certificate_file",
            |r| &r.client_certificate_file,
            |r| &r.client_certificate_file,
        );
        let key =
            self.own(signal, "client_key_file", |r| &r.client_key_file, |r| &r.client_key_file);
        let client = match (certificate.file(origin), key.file(origin)) {
            (Some(certificate), Some(key)) => Some(ClientFiles { certificate, key }),
            (None, None) => None,
            (Some(given), None) => return Err(alone(&given, &key.key, origin)),
            (None, Some(given)) => return Err(alone(&given, &certificate.key, origin)),
        };
        Ok(TlsFiles { authorities: authorities.file(origin), client })
    }

    fn headers(
        &self,
        signal: &Signal,
        origin: Origin<'_>,
    ) -> Result<Vec<(HeaderName, HeaderValue)>, ConfigError> {
        let all = self.raw.headers.iter().map(|(name, value)| {
            (name.as_str(), (format!("{}.headers.{name}", self.key), value.as_str()))
        });
        let own = (signal.raw)(self.raw).headers.iter().map(|(name, value)| {
            let key = format!("{}.{}.headers.{name}", self.key, signal.table);
            (name.as_str(), (key, value.as_str()))
        });
        let merged: BTreeMap<_, _> = all.chain(own).collect();
        merged
            .into_iter()
            .map(|(name, (key, value))| {
                header(name, value).map_err(|problem| bad(&key, origin, problem.into()))
            })
            .collect()
    }
}

fn alone(given: &NamedFile, missing: &str, origin: Origin<'_>) -> ConfigError {
    bad(
        &given.key,
        origin,
        format!("is given without {missing}: a certificate and its key go together"),
    )
}

fn compression_of(
    found: &Found<'_>,
    origin: Origin<'_>,
) -> Result<Option<Compression>, ConfigError> {
    const CHOICES: [(&str, Option<Compression>); 3] =
        [("none", None), ("gzip", Some(Compression::Gzip)), ("zstd", Some(Compression::Zstd))];
    one_of(&found.key, found.text, &CHOICES, origin)
}

fn timeout_of(found: &Found<'_>, origin: Origin<'_>) -> Result<Duration, ConfigError> {
    positive(&found.key, found.text, origin)
}

/// An endpoint as given. For gRPC a host and port do, and `insecure` decides on the scheme
/// (OpenTelemetry specification, "OTLP Exporter Configuration").
struct Endpoint(Uri);

impl Endpoint {
    fn parse(found: &Found<'_>, origin: Origin<'_>) -> Result<Self, ConfigError> {
        let uri: Uri = found.text.parse().map_err(|_| problem(found, origin, "is no URL"))?;
        if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            let words =
                "holds a user or password, which would not be sent: use headers.authorization";
            return Err(problem(found, origin, words));
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(problem(found, origin, "has no host"));
        }
        Ok(Self(uri))
    }

    /// What is most likely spoken there.
    fn protocol(&self) -> Protocol {
        let has_path = !matches!(self.0.path(), "" | "/");
        if self.0.port_u16() == Some(4318) || has_path { Protocol::Http } else { Protocol::Grpc }
    }

    fn with_scheme(
        self,
        protocol: Protocol,
        insecure: bool,
        found: &Found<'_>,
        origin: Origin<'_>,
    ) -> Result<Uri, ConfigError> {
        match (self.0.scheme_str(), protocol) {
            (Some("http" | "https"), _) => Ok(self.0),
            (None, Protocol::Grpc) => {
                let scheme = if insecure { "http" } else { "https" };
                let text = format!("{scheme}://{}", self.0.authority().map_or("", |a| a.as_str()));
                text.parse().map_err(|_| problem(found, origin, "is no URL"))
            }
            _ => Err(problem(found, origin, "must begin with http:// or https://")),
        }
    }
}

fn problem(found: &Found<'_>, origin: Origin<'_>, why: &str) -> ConfigError {
    let shown = without_password(found.text);
    let remedy = "write one like \"http://collector:4317\" or \"https://collector:4318\"";
    bad(&found.key, origin, format!("\"{shown}\" {why}; {remedy}"))
}
