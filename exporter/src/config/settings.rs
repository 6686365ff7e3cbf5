//! Settings as resolved: types that cannot hold a bad value.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tracing::level_filters::LevelFilter;

use super::ConfigError;
use super::destinations::{any_endpoint, destinations, metrics};
use super::names::{self, NameSettings};
use super::pinning::{self, Pinning};
use super::raw::{RawAttributes, RawSettings, RawTelemetry};
use super::receiver::{Destination, Receiver};
use super::sampling;
use super::spool::{self, SpoolSettings};
use crate::community_id::CommunityId;
use crate::dns::DnsSettings;
use crate::encode::{Changes, Mapping};
use crate::enrich::Template;
use crate::probe::{Optional, Without};
use crate::record::{EventSet, RecordKind};
use crate::sample::SamplingSettings;
use crate::targets::{Pattern, Watched};

/// Names the layer that a key's value came from.
pub(super) type Origin<'a> = &'a dyn Fn(&str) -> String;

/// The usable configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// cgroups to watch.
    pub watched: Watched,
    /// The cgroup2 mount, where the user names one.
    pub cgroup_mount: Option<PathBuf>,
    /// Whether flowend gives up what it needs no more once it has started.
    pub confine: Confine,
    /// What stays in the kernel over a restart, and where.
    pub pinning: Pinning,
    /// Where records go.
    pub outputs: Vec<Output>,
    /// The kinds of records that are made.
    pub events: EventSet,
    /// How often a connection that lives on makes a progress record.
    pub progress_interval: Duration,
    /// The program's own messages.
    pub log_level: LevelFilter,
    /// Where OTLP goes, "otlp" first. Empty: the output "otlp" is off.
    pub destinations: Vec<Destination>,
    /// Where flowend's own metrics go, if they are sent.
    pub metrics_receiver: Receiver,
    /// Queue, batches, retry.
    pub export: Export,
    /// Size of the BPF ring buffer, bytes.
    pub ring_bytes: u32,
    /// How often the ring is read.
    pub drain_interval: Duration,
    /// Connections followed at most.
    pub max_flows: usize,
    /// How often the kernel's sockets are looked at.
    pub look_interval: Duration,
    /// After this a handshake that was not completed has failed.
    pub handshake_timeout: Duration,
    /// Failed handshakes reported in one second.
    pub handshakes_failed_per_second: u32,
    /// Whether connect() and bind() tell the process.
    pub process: bool,
    /// Programs that are not loaded.
    pub without: Without,
    /// What is learnt from DNS messages, and for whom.
    pub names: NameSettings,
    /// Of the cache of names.
    pub dns: DnsSettings,
    /// Key of trace and span ids.
    pub ids_key: String,
    /// Peers whose CLIENT spans somebody sends.
    pub peer_cidrs: Vec<IpNet>,
    /// Which records are kept.
    pub sampling: SamplingSettings,
    /// Names of the attributes.
    pub mapping: Arc<Mapping>,
    /// Makes Community IDs, if they are asked for.
    pub community_id: Option<CommunityId>,
    /// What service.name is made of, where the user says it.
    pub service_name: Option<Template>,
    /// The pod's labels, if there are any.
    pub labels_file: Option<PathBuf>,
    /// Added to every resource.
    pub resource_attributes: BTreeMap<String, String>,
    /// Where flowend tells its own counts, if anywhere.
    pub telemetry_listen: Option<SocketAddr>,
    /// Services whose connections are counted apart, at most.
    pub telemetry_max_services: usize,
    /// Not ready once a destination has been failing for longer.
    pub ready_after: Duration,
    /// How often flowend's own counts are exported over OTLP, if at all.
    pub telemetry_otlp: Option<Duration>,
    /// How long records may be sent after the signal to stop.
    pub shutdown_timeout: Duration,
    /// Where requests wait out an outage, if on a disk.
    pub spool: Option<SpoolSettings>,
}

/// Whether flowend gives up what it needs no more once it has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confine {
    /// As far as the kernel lets it.
    Auto,
    /// All of it, or flowend does not start.
    Required,
    /// It keeps everything.
    Off,
}

/// Where records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Output {
    /// One readable line each, on stdout.
    Text,
    /// One JSON object each, on stdout.
    Json,
    /// OTLP logs and traces.
    Otlp,
}

impl Output {
    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Otlp => "otlp",
        }
    }
}

/// Names of the attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// OpenTelemetry's semantic conventions and flowend's own keys.
    Semconv,
    /// The argument names of the NetFlowTCPEnd event, as Tracee spells them.
    Tracee,
}

impl Profile {
    /// Every profile.
    pub const ALL: [Self; 2] = [Self::Semconv, Self::Tracee];

    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Semconv => "semconv",
            Self::Tracee => "tracee",
        }
    }
}

/// Queue, batches, retry.
#[derive(Clone, Debug)]
pub struct Export {
    /// Records that may wait.
    pub queue_records: usize,
    /// Memory of the records that may wait, bytes.
    pub queue_bytes: usize,
    /// Records in one request at most.
    pub batch_records: usize,
    /// Bytes in one request at most, before compression; a single record may be larger.
    pub batch_bytes: usize,
    /// Requests of a signal to a destination on their way at the same time, at most.
    pub concurrency: usize,
    /// The longest a record waits for company.
    pub interval: Duration,
    /// First pause after a failure.
    pub retry_initial: Duration,
    /// Longest pause after a failure.
    pub retry_max: Duration,
    /// After this a batch is given up.
    pub retry_for: Duration,
}

impl Settings {
    pub(super) fn resolve(raw: RawSettings, origin: Origin<'_>) -> Result<Self, ConfigError> {
        let endpoint_given = any_endpoint(&raw.otlp, &raw.destinations);
        let outputs = outputs(&raw.outputs, endpoint_given, origin)?;
        // Also where they are not used: a mistake in them is one.
        let mut destinations = destinations(&raw.otlp, &raw.destinations, origin)?;
        if !outputs.contains(&Output::Otlp) {
            destinations.clear();
        }
        Ok(Self {
            watched: Watched {
                targets: targets(&raw.targets, origin)?,
                exclude: patterns("exclude", &raw.exclude, origin)?,
            },
            cgroup_mount: non_empty(raw.cgroup_mount).map(PathBuf::from),
            confine: one_of(
                "confine",
                &raw.confine,
                &[("auto", Confine::Auto), ("required", Confine::Required), ("off", Confine::Off)],
                origin,
            )?,
            pinning: pinning::resolve(raw.pin, &raw.pin_folder, &raw.pin_state, origin)?,
            outputs,
            events: events(&raw.events, origin)?,
            progress_interval: positive("progress.interval", &raw.progress.interval, origin)?,
            log_level: one_of(
                "log.level",
                &raw.log.level,
                &[
                    ("error", LevelFilter::ERROR),
                    ("warn", LevelFilter::WARN),
                    ("info", LevelFilter::INFO),
                    ("debug", LevelFilter::DEBUG),
                    ("trace", LevelFilter::TRACE),
                ],
                origin,
            )?,
            destinations,
            metrics_receiver: metrics(&raw.otlp, origin)?,
            export: Export {
                queue_records: count(
                    "export.queue_records",
                    raw.export.queue_records,
                    1,
                    100_000_000,
                    origin,
                )?,
                batch_records: count(
                    "export.batch_records",
                    raw.export.batch_records,
                    1,
                    100_000,
                    origin,
                )?,
                queue_bytes: count(
                    "export.queue_bytes",
                    raw.export.queue_bytes,
                    65_536,
                    1 << 40,
                    origin,
                )?,
                batch_bytes: count(
                    "export.batch_bytes",
                    raw.export.batch_bytes,
                    1024,
                    1 << 30,
                    origin,
                )?,
                concurrency: count("export.concurrency", raw.export.concurrency, 1, 256, origin)?,
                interval: duration("export.interval", &raw.export.interval, origin)?,
                retry_initial: positive("export.retry_initial", &raw.export.retry_initial, origin)?,
                retry_max: positive("export.retry_max", &raw.export.retry_max, origin)?,
                retry_for: duration("export.retry_for", &raw.export.retry_for, origin)?,
            },
            ring_bytes: ring_bytes(raw.ring.bytes, origin)?,
            drain_interval: positive("ring.drain_interval", &raw.ring.drain_interval, origin)?,
            max_flows: count("flows.max", raw.flows.max, 1, 1 << 30, origin)?,
            look_interval: positive("flows.look_interval", &raw.flows.look_interval, origin)?,
            handshake_timeout: positive(
                "flows.handshake_timeout",
                &raw.flows.handshake_timeout,
                origin,
            )?,
            handshakes_failed_per_second: count(
                "flows.handshakes_failed_per_second",
                raw.flows.handshakes_failed_per_second,
                0,
                1_000_000,
                origin,
            )? as u32,
            process: raw.process.enabled,
            without: without(&raw.probe.without, origin)?,
            dns: names::cache(&raw.dns, origin)?,
            names: NameSettings::resolve(raw.dns, origin)?,
            ids_key: raw.ids.key,
            peer_cidrs: cidrs("spans.peer_cidrs", &raw.spans.peer_cidrs, origin)?,
            sampling: sampling::resolve(raw.sampling, origin)?,
            mapping: Arc::new(mapping(&raw.attributes, origin)?),
            community_id: community_id(&raw.attributes, origin)?,
            service_name: service_name(&raw.resource.service_name, origin)?,
            labels_file: non_empty(raw.resource.labels_file).map(PathBuf::from),
            resource_attributes: raw.resource.attributes,
            telemetry_listen: listen("telemetry.listen", &raw.telemetry.listen, origin)?,
            ready_after: duration("telemetry.ready_after", &raw.telemetry.ready_after, origin)?,
            telemetry_otlp: telemetry_otlp(&raw.telemetry, origin)?,
            telemetry_max_services: count(
                "telemetry.max_services",
                raw.telemetry.max_services,
                1,
                10_000,
                origin,
            )?,
            shutdown_timeout: duration("shutdown.timeout", &raw.shutdown.timeout, origin)?,
            spool: spool::resolve(&raw.spool, origin)?,
        })
    }
}

pub(super) fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

pub(super) fn bad(key: &str, origin: Origin<'_>, problem: String) -> ConfigError {
    ConfigError::Value { origin: origin(key), key: key.into(), problem }
}

pub(super) fn one_of<T: Copy>(
    key: &str,
    text: &str,
    choices: &[(&str, T)],
    origin: Origin<'_>,
) -> Result<T, ConfigError> {
    choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        bad(key, origin, format!("\"{text}\" is none of {}", names.join(", ")))
    })
}

fn without(given: &[String], origin: Origin<'_>) -> Result<Without, ConfigError> {
    let choices = Optional::ALL.map(|optional| (optional.as_str(), optional));
    given.iter().try_fold(Without::NOTHING, |without, text| {
        Ok(without.and(one_of("probe.without", text, &choices, origin)?))
    })
}

fn targets(given: &[String], origin: Origin<'_>) -> Result<Vec<Pattern>, ConfigError> {
    if given.is_empty() {
        return Err(bad(
            "targets",
            origin,
            "empty: nothing would be watched; use [\"/\"] for the whole machine".into(),
        ));
    }
    patterns("targets", given, origin)
}

pub(super) fn patterns(
    key: &str,
    given: &[String],
    origin: Origin<'_>,
) -> Result<Vec<Pattern>, ConfigError> {
    given
        .iter()
        .map(|text| Pattern::parse(text).map_err(|problem| bad(key, origin, problem)))
        .collect()
}

fn outputs(
    given: &[String],
    endpoint_given: bool,
    origin: Origin<'_>,
) -> Result<Vec<Output>, ConfigError> {
    if given.is_empty() {
        return Ok(vec![if endpoint_given { Output::Otlp } else { Output::Text }]);
    }
    let mut outputs = Vec::new();
    for text in given {
        let output = one_of(
            "outputs",
            text,
            &[("text", Output::Text), ("json", Output::Json), ("otlp", Output::Otlp)],
            origin,
        )?;
        if !outputs.contains(&output) {
            outputs.push(output);
        }
    }
    Ok(outputs)
}

fn events(given: &[String], origin: Origin<'_>) -> Result<EventSet, ConfigError> {
    let choices: Vec<_> = RecordKind::ALL.iter().map(|kind| (kind.as_str(), *kind)).collect();
    let kinds = given
        .iter()
        .map(|text| one_of("events", text, &choices, origin))
        .collect::<Result<Vec<_>, _>>()?;
    if !kinds.contains(&RecordKind::End) {
        let problem = "lacks \"end\": the ends of connections are always reported, others beside \
                       them; write [\"end\", \"begin\"], for example";
        return Err(bad("events", origin, problem.into()));
    }
    Ok(EventSet {
        begin: kinds.contains(&RecordKind::Begin),
        progress: kinds.contains(&RecordKind::Progress),
    })
}

/// Longer is a mistake.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

pub(super) fn duration(key: &str, text: &str, origin: Origin<'_>) -> Result<Duration, ConfigError> {
    text.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok()).filter(|d| *d <= LONGEST).ok_or_else(
        || {
            bad(
                key,
                origin,
                format!("\"{text}\" is no duration up to a week; write one like \"20ms\", \"5s\" or \"2m\""),
            )
        },
    )
}

fn mapping(attributes: &RawAttributes, origin: Origin<'_>) -> Result<Mapping, ConfigError> {
    let RawAttributes { profile, omit, rename, add, .. } = attributes;
    let choices = Profile::ALL.map(|profile| (profile.as_str(), profile));
    let profile = one_of("attributes.profile", profile, &choices, origin)?;
    Mapping::with(profile, Changes { omit, rename, add })
        .map_err(|error| bad(&format!("attributes.{}", error.place), origin, error.problem))
}

fn service_name(text: &str, origin: Origin<'_>) -> Result<Option<Template>, ConfigError> {
    let template = Template::parse(text);
    let template = template.map_err(|problem| bad("resource.service_name", origin, problem))?;
    Ok((!text.is_empty()).then_some(template))
}

fn community_id(
    attributes: &RawAttributes,
    origin: Origin<'_>,
) -> Result<Option<CommunityId>, ConfigError> {
    let seed = u16::try_from(attributes.community_id_seed).map_err(|_| {
        let problem = format!("{} is not between 0 and 65535", attributes.community_id_seed);
        bad("attributes.community_id_seed", origin, problem)
    })?;
    Ok(attributes.community_id.then_some(CommunityId { seed }))
}

pub(super) fn positive(key: &str, text: &str, origin: Origin<'_>) -> Result<Duration, ConfigError> {
    let duration = duration(key, text, origin)?;
    if duration.is_zero() {
        return Err(bad(key, origin, format!("\"{text}\" must be more than nothing")));
    }
    Ok(duration)
}

pub(super) fn count(
    key: &str,
    n: i64,
    min: usize,
    max: usize,
    origin: Origin<'_>,
) -> Result<usize, ConfigError> {
    usize::try_from(n)
        .ok()
        .filter(|n| (min..=max).contains(n))
        .ok_or_else(|| bad(key, origin, format!("{n} is not between {min} and {max}")))
}

fn listen(key: &str, text: &str, origin: Origin<'_>) -> Result<Option<SocketAddr>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let problem =
            format!("\"{text}\" is no address with a port; write one like \"127.0.0.1:9464\"");
        bad(key, origin, problem)
    })
}

fn telemetry_otlp(
    telemetry: &RawTelemetry,
    origin: Origin<'_>,
) -> Result<Option<Duration>, ConfigError> {
    let interval = positive("telemetry.otlp_interval", &telemetry.otlp_interval, origin)?;
    Ok(telemetry.otlp.then_some(interval))
}

fn ring_bytes(n: i64, origin: Origin<'_>) -> Result<u32, ConfigError> {
    u32::try_from(n)
        .ok()
        .filter(|n| n.is_power_of_two() && (4096..=1 << 30).contains(n))
        .ok_or_else(|| {
            bad(
                "ring.bytes",
                origin,
                format!("{n} is no power of two between 4096 and 1073741824; try 8388608"),
            )
        })
}

pub(super) fn ratio(key: &str, n: f64, origin: Origin<'_>) -> Result<f64, ConfigError> {
    if (0.0..=1.0).contains(&n) {
        return Ok(n);
    }
    Err(bad(key, origin, format!("{n} is not between 0 and 1")))
}

pub(super) fn cidrs(
    key: &str,
    given: &[String],
    origin: Origin<'_>,
) -> Result<Vec<IpNet>, ConfigError> {
    given
        .iter()
        .map(|text| {
            text.parse().map_err(|_| {
                bad(
                    key,
                    origin,
                    format!(
                        "\"{text}\" is no range; write one like \"10.0.0.0/8\" or \"fd00::/8\""
                    ),
                )
            })
        })
        .collect()
}
