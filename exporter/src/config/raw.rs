//! Settings as written: the shape of config/flowend.toml.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSettings {
    pub(super) targets: Vec<String>,
    pub(super) exclude: Vec<String>,
    pub(super) cgroup_mount: String,
    pub(super) confine: String,
    pub(super) pin: bool,
    pub(super) pin_folder: String,
    pub(super) pin_state: String,
    pub(super) outputs: Vec<String>,
    pub(super) events: Vec<String>,
    pub(super) progress: RawProgress,
    pub(super) log: RawLog,
    pub(super) otlp: RawOtlp,
    #[serde(default)]
    pub(super) destinations: BTreeMap<String, RawOtlp>,
    pub(super) export: RawExport,
    pub(super) ring: RawRing,
    pub(super) flows: RawFlows,
    pub(super) process: RawProcess,
    pub(super) probe: RawProbe,
    pub(super) dns: RawDns,
    pub(super) ids: RawIds,
    pub(super) spans: RawSpans,
    pub(super) sampling: RawSampling,
    pub(super) attributes: RawAttributes,
    pub(super) resource: RawResource,
    pub(super) telemetry: RawTelemetry,
    pub(super) shutdown: RawShutdown,
    pub(super) spool: RawSpool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTelemetry {
    pub(super) listen: String,
    pub(super) max_services: i64,
    pub(super) ready_after: String,
    pub(super) otlp: bool,
    pub(super) otlp_interval: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProgress {
    pub(super) interval: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLog {
    pub(super) level: String,
}

/// `[otlp]`, and each of `[destinations]`, where every key may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawOtlp {
    pub(super) endpoint: String,
    pub(super) protocol: String,
    pub(super) compression: String,
    pub(super) timeout: String,
    pub(super) insecure: String,
    pub(super) ca_file: String,
    pub(super) client_certificate_file: String,
    pub(super) client_key_file: String,
    pub(super) headers_file: String,
    pub(super) headers: BTreeMap<String, String>,
    /// None: left out, which is not the same as none of them.
    pub(super) signals: Option<Vec<String>>,
    pub(super) logs: RawSignal,
    pub(super) traces: RawSignal,
    pub(super) metrics: RawSignal,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawSignal {
    pub(super) endpoint: String,
    pub(super) protocol: String,
    pub(super) compression: String,
    pub(super) timeout: String,
    pub(super) insecure: String,
    pub(super) ca_file: String,
    pub(super) client_certificate_file: String,
    pub(super) client_key_file: String,
    pub(super) headers_file: String,
    pub(super) headers: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawExport {
    pub(super) queue_records: i64,
    pub(super) queue_bytes: i64,
    pub(super) batch_records: i64,
    pub(super) batch_bytes: i64,
    pub(super) concurrency: i64,
    pub(super) interval: String,
    pub(super) retry_initial: String,
    pub(super) retry_max: String,
    pub(super) retry_for: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRing {
    pub(super) bytes: i64,
    pub(super) drain_interval: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFlows {
    pub(super) max: i64,
    pub(super) look_interval: String,
    pub(super) handshake_timeout: String,
    pub(super) handshakes_failed_per_second: i64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProcess {
    pub(super) enabled: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProbe {
    pub(super) without: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDns {
    pub(super) enabled: bool,
    pub(super) mdns: bool,
    pub(super) llmnr: bool,
    pub(super) scope: String,
    pub(super) resolver_cgroups: BTreeMap<String, String>,
    pub(super) hosts: bool,
    pub(super) snapshot: String,
    pub(super) cache_bytes: i64,
    pub(super) min_ttl: String,
    pub(super) max_ttl: String,
    pub(super) reverse: RawReverse,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawReverse {
    pub(super) enabled: bool,
    pub(super) timeout: String,
    pub(super) concurrency: i64,
    pub(super) max_addresses: i64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawIds {
    pub(super) key: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSpans {
    pub(super) peer_cidrs: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSampling {
    pub(super) ratio: f64,
    pub(super) keep_errors: bool,
    pub(super) rules: Vec<RawRule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRule {
    pub(super) reasons: Option<Vec<String>>,
    pub(super) direction: Option<String>,
    pub(super) cidrs: Option<Vec<String>>,
    pub(super) local_cidrs: Option<Vec<String>>,
    pub(super) ports: Option<Vec<String>>,
    pub(super) domains: Option<Vec<String>>,
    pub(super) cgroups: Option<Vec<String>>,
    pub(super) processes: Option<Vec<String>>,
    pub(super) min_duration: Option<String>,
    pub(super) min_bytes: Option<i64>,
    pub(super) action: Option<String>,
    pub(super) ratio: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAttributes {
    pub(super) profile: String,
    pub(super) community_id: bool,
    pub(super) community_id_seed: i64,
    pub(super) omit: Vec<String>,
    pub(super) rename: BTreeMap<String, String>,
    pub(super) add: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawResource {
    pub(super) service_name: String,
    pub(super) labels_file: String,
    pub(super) attributes: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawShutdown {
    pub(super) timeout: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSpool {
    pub(super) directory: String,
    pub(super) max_bytes: i64,
}
