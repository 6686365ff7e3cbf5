//! Environment variables: the standard `OTEL_*` ones, and `FLOWEND_*`.

use std::collections::BTreeMap;

use figment::value::Value;

use super::ConfigError;
use super::layers::{Layer, Schema, is_in_free_table, nest};

const PREFIX: &str = "FLOWEND_";

/// The settings of the specification's exporter variables, with their keys.
pub(super) const STANDARD: [(&str, &str); 9] = [
    ("ENDPOINT", "endpoint"),
    ("PROTOCOL", "protocol"),
    ("COMPRESSION", "compression"),
    ("TIMEOUT", "timeout"),
    ("HEADERS", "headers"),
    ("INSECURE", "insecure"),
    ("CERTIFICATE", "ca_file"),
    ("CLIENT_CERTIFICATE", "client_certificate_file"),
    ("CLIENT_KEY", "client_key_file"),
];

/// The tables that they set, by what stands in their names.
pub(super) const SIGNALS: [(&str, &str); 4] = [
    ("", "otlp"),
    ("LOGS_", "otlp.logs"),
    ("TRACES_", "otlp.traces"),
    ("METRICS_", "otlp.metrics"),
];

/// The layers of the standard variables, each its own, so that each value knows its variable.
/// An empty variable is as good as none (OpenTelemetry specification, environment variables).
pub(super) fn standard(env: &BTreeMap<String, String>) -> Result<Vec<Layer>, ConfigError> {
    let mut layers = Vec::new();
    for (signal, table) in SIGNALS {
        for (setting, key) in STANDARD {
            let name = format!("OTEL_EXPORTER_OTLP_{signal}{setting}");
            let Some(text) = env.get(&name).filter(|v| !v.is_empty()) else { continue };
            let key = format!("{table}.{key}");
            let origin = format!("variable {name}");
            match setting {
                "HEADERS" => {
                    for (header, value) in pairs(&name, &key, text)? {
                        let dict = nest(&format!("{key}.{header}"), Value::from(value));
                        layers.push(Layer { origin: origin.clone(), dict });
                    }
                }
                "TIMEOUT" => {
                    let ms: u64 = text.trim().parse().map_err(|_| ConfigError::Value {
                        origin: origin.clone(),
                        key: key.clone(),
                        problem: format!("`{text}` is no whole number of milliseconds"),
                    })?;
                    layers.push(Layer { origin, dict: nest(&key, Value::from(format!("{ms}ms"))) });
                }
                // The specification takes a boolean in any case.
                "INSECURE" => {
                    let text = text.trim().to_ascii_lowercase();
                    layers.push(Layer { origin, dict: nest(&key, Value::from(text)) });
                }
                _ => layers.push(Layer { origin, dict: nest(&key, Value::from(text.as_str())) }),
            }
        }
    }
    if let Some(name) = env.get("OTEL_SERVICE_NAME").filter(|v| !v.is_empty()) {
        layers.push(Layer {
            origin: "variable OTEL_SERVICE_NAME".into(),
            dict: nest("resource.service_name", Value::from(name.as_str())),
        });
    }
    if let Some(text) = env.get("OTEL_RESOURCE_ATTRIBUTES").filter(|v| !v.is_empty()) {
        for (attribute, value) in pairs("OTEL_RESOURCE_ATTRIBUTES", "resource.attributes", text)? {
            layers.push(Layer {
                origin: "variable OTEL_RESOURCE_ATTRIBUTES".into(),
                dict: nest(&format!("resource.attributes.{attribute}"), Value::from(value)),
            });
        }
    }
    Ok(layers)
}

/// `key=value,key=value` with percent-encoding (W3C Baggage, as the specification demands).
fn pairs(name: &str, key: &str, text: &str) -> Result<Vec<(String, String)>, ConfigError> {
    let bad = |pair: &str| ConfigError::Value {
        origin: format!("variable {name}"),
        key: key.into(),
        problem: format!(
            "`{pair}` is no key=value; expected key=value,key=value with percent-encoding"
        ),
    };
    text.split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (k, v) = pair.split_once('=').ok_or_else(|| bad(pair))?;
            let k = percent_encoding::percent_decode_str(k.trim())
                .decode_utf8()
                .map_err(|_| bad(pair))?;
            let v = percent_encoding::percent_decode_str(v.trim())
                .decode_utf8()
                .map_err(|_| bad(pair))?;
            if k.is_empty() {
                return Err(bad(pair));
            }
            Ok((k.into_owned(), v.into_owned()))
        })
        .collect()
}

/// The layers of `FLOWEND_*`. Unknown ones are errors, except those that Kubernetes injects for a
/// Service whose name begins with "flowend".
pub(super) fn own(
    env: &BTreeMap<String, String>,
    schema: &Schema,
) -> Result<Vec<Layer>, ConfigError> {
    let mut layers = Vec::new();
    for (name, text) in env {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        if name == "FLOWEND_CONFIG" {
            continue;
        }
        let key = rest.to_ascii_lowercase().replace("__", ".");
        let is_key = schema.get(&key).is_some() || is_in_free_table(&key);
        if !is_key && is_kubernetes_service_link(name, text) {
            continue;
        }
        let value = schema.parse_value(&key, text);
        layers.push(Layer { origin: format!("variable {name}"), dict: nest(&key, value) });
    }
    Ok(layers)
}

/// Whether a variable is one that Kubernetes sets for a Service (`enableServiceLinks`): by its name,
/// and by a value that only such a variable has.
///
/// For a Service `flowend-x`, FLOWEND_X_SERVICE_HOST, ..._SERVICE_PORT, ..._SERVICE_PORT_<NAME>,
/// ..._PORT, and ..._PORT_<N>_<TCP|UDP|SCTP> with _PROTO, _PORT and _ADDR
/// (kubernetes: pkg/kubelet/envvars/envvars.go).
fn is_kubernetes_service_link(name: &str, value: &str) -> bool {
    const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
    let is_address = value.parse::<std::net::IpAddr>().is_ok() || value == "None";
    let is_port = value.parse::<u16>().is_ok();
    let is_link = PROTOCOLS.iter().any(|p| {
        value.strip_prefix(&p.to_ascii_lowercase()).is_some_and(|rest| rest.starts_with("://"))
    });
    let ends_in_port_number =
        |stem: &str| stem.rsplit_once("_PORT_").is_some_and(|(_, n)| n.parse::<u16>().is_ok());
    let of_port = |suffix: &str| {
        name.strip_suffix(suffix).is_some_and(|stem| {
            PROTOCOLS.iter().any(|p| {
                stem.strip_suffix(p)
                    .and_then(|s| s.strip_suffix('_'))
                    .is_some_and(ends_in_port_number)
            })
        })
    };
    (name.ends_with("_SERVICE_HOST") && is_address)
        || (name.ends_with("_SERVICE_PORT") && is_port)
        || (name.contains("_SERVICE_PORT_") && is_port)
        || (name.ends_with("_PORT") && is_link)
        || (of_port("") && is_link)
        || (of_port("_PROTO") && PROTOCOLS.iter().any(|p| value.eq_ignore_ascii_case(p)))
        || (of_port("_PORT") && is_port)
        || (of_port("_ADDR") && is_address)
}
