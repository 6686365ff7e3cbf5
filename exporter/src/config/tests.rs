//! Layers, errors and what is printed of them.

mod reference;
mod sampling;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::encode::Key;
use crate::record::EventSet;

mod destinations;

#[derive(Default)]
struct Given<'a> {
    file: Option<&'a str>,
    env: &'a [(&'a str, &'a str)],
    set: &'a [&'a str],
}

/// The error's text with the file's name as FILE, or the settings.
fn load_given(given: &Given<'_>) -> Result<Layered, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my.toml");
    if let Some(text) = given.file {
        std::fs::write(&path, text).unwrap();
    }
    let sources = Sources {
        file: given.file.map(|_| path.clone()),
        set: given.set.iter().map(ToString::to_string).collect(),
        env: given.env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    };
    load(&sources).map_err(|e| e.to_string().replace(&path.display().to_string(), "FILE"))
}

/// The receivers of logs and traces of `[otlp]`, which all tests leave on.
fn otlp(settings: &Settings) -> (&Receiver, &Receiver) {
    let first = &settings.destinations[0];
    assert_eq!(&*first.name, "otlp");
    (first.logs.as_ref().unwrap(), first.traces.as_ref().unwrap())
}

#[test]
fn the_default_file_is_a_valid_configuration() {
    let layered = load_given(&Given::default()).unwrap();
    assert_eq!(layered.settings.outputs, [Output::Text]);
    assert_eq!(
        layered.settings.watched.targets.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["/"]
    );
    assert_eq!(layered.settings.export.interval, Duration::from_secs(1));
    assert_eq!(layered.settings.events, EventSet::ENDS);
    assert_eq!(layered.settings.progress_interval, Duration::from_secs(60));
    assert!(layered.warnings.is_empty());
}

#[test]
fn each_layer_wins_over_the_one_before() {
    let file = "[sampling]\nratio = 0.1\n[otlp]\nendpoint = \"http://file:4317\"\n";
    let otel = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:4317");
    let own = ("FLOWEND_OTLP__ENDPOINT", "http://own:4317");
    let set = "otlp.endpoint=http://set:4317";
    for (given, want) in [
        (Given { file: Some(file), ..Given::default() }, "http://file:4317/"),
        (Given { file: Some(file), env: &[otel], ..Given::default() }, "http://otel:4317/"),
        (Given { file: Some(file), env: &[otel, own], ..Given::default() }, "http://own:4317/"),
        (Given { file: Some(file), env: &[otel, own], set: &[set] }, "http://set:4317/"),
        (Given { set: &["otlp.endpoint=http://a:1", set], ..Given::default() }, "http://set:4317/"),
    ] {
        let settings = load_given(&given).unwrap().settings;
        assert_eq!(otlp(&settings).0.endpoint.to_string(), want);
        assert_eq!(settings.outputs, [Output::Otlp], "an endpoint makes OTLP the output");
        let ratio = if given.file.is_some() { 0.1 } else { 1.0 };
        assert!((settings.sampling.ratio - ratio).abs() < f64::EPSILON);
    }
}

#[test]
fn the_standard_variables_are_understood() {
    let settings = load_given(&Given {
        env: &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces:9/custom/path"),
            ("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s%20ecret, X-Tenant=a"),
            ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "x-Tenant=b"),
            ("OTEL_SERVICE_NAME", "named"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,team=a%2Cb"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", ""),
        ],
        ..Given::default()
    })
    .unwrap()
    .settings;
    let (logs, traces) = otlp(&settings);
    assert_eq!(logs.endpoint, "http://all:4318/v1/logs");
    assert_eq!(traces.endpoint, "https://traces:9/custom/path");
    assert_eq!((logs.protocol, traces.protocol), (Protocol::Http, Protocol::Http));
    assert_eq!((logs.compression, traces.compression), (Some(Compression::Gzip), None));
    assert_eq!(logs.timeout, Duration::from_millis(2500));
    let header = |r: &Receiver, name: &str| {
        r.headers
            .iter()
            .rev()
            .find(|(n, _)| n.as_str() == name)
            .map(|(_, v)| v.to_str().unwrap().to_owned())
    };
    assert_eq!(header(logs, "api-key").as_deref(), Some("s ecret"));
    assert_eq!(header(logs, "x-tenant").as_deref(), Some("b"));
    assert_eq!(header(traces, "x-tenant").as_deref(), Some("a"));
    assert_eq!(settings.service_name.map(|t| t.to_string()).as_deref(), Some("named"));
    let attributes = BTreeMap::from([
        ("deployment.environment.name".to_owned(), "prod".to_owned()),
        ("team".to_owned(), "a,b".to_owned()),
    ]);
    assert_eq!(settings.resource_attributes, attributes);
}

#[test]
fn the_protocol_follows_from_the_endpoint_unless_given() {
    for (set, protocol, endpoint) in [
        (&[][..], Protocol::Grpc, "http://localhost:4317/"),
        (&["otlp.protocol=http/protobuf"][..], Protocol::Http, "http://localhost:4318/v1/logs"),
        (&["otlp.endpoint=http://c:4317"][..], Protocol::Grpc, "http://c:4317/"),
        (&["otlp.endpoint=http://c:4318"][..], Protocol::Http, "http://c:4318/v1/logs"),
        (&["otlp.endpoint=http://c/otlp/"][..], Protocol::Http, "http://c/otlp/v1/logs"),
        (
            &["otlp.endpoint=http://c:4318", "otlp.protocol=grpc"][..],
            Protocol::Grpc,
            "http://c:4318/",
        ),
    ] {
        let set = &[&["outputs=otlp"], set].concat();
        let settings = load_given(&Given { set, ..Given::default() }).unwrap().settings;
        let logs = otlp(&settings).0;
        assert_eq!(
            (logs.protocol, logs.endpoint.to_string().as_str()),
            (protocol, endpoint),
            "{set:?}"
        );
    }
}

#[test]
fn values_are_toml_or_else_strings() {
    let settings = load_given(&Given {
        env: &[
            ("FLOWEND_TARGETS", "a.slice, b.slice"),
            ("FLOWEND_IDS__KEY", "1234"),
            ("FLOWEND_PROCESS__ENABLED", "false"),
        ],
        set: &[
            "outputs=[\"json\", \"text\"]",
            "ring.bytes=65536",
            "resource.service_name=\"quoted\"",
            "otlp.headers.a.b=1",
        ],
        ..Given::default()
    })
    .unwrap()
    .settings;
    assert_eq!(
        settings.watched.targets.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["a.slice", "b.slice"]
    );
    assert_eq!(
        (settings.ids_key.as_str(), settings.process, settings.ring_bytes),
        ("1234", false, 65536)
    );
    assert_eq!(settings.outputs, [Output::Json, Output::Text]);
    assert_eq!(settings.service_name.map(|t| t.to_string()).as_deref(), Some("quoted"));
    assert_eq!(settings.metrics_receiver.headers[0].0, "a.b");
}

#[test]
fn events_say_which_records_are_made() {
    for (given, begin, progress) in [
        ("events=end", false, false),
        ("events=end,begin", true, false),
        ("events=[\"progress\", \"end\"]", false, true),
        ("events=begin,progress,end,end", true, true),
    ] {
        let set = &[given, "progress.interval=5s"];
        let settings = load_given(&Given { set, ..Given::default() }).unwrap().settings;
        assert_eq!(settings.events, EventSet { begin, progress }, "{given}");
        assert_eq!(settings.progress_interval, Duration::from_secs(5));
    }
}

#[test]
fn community_ids_are_made_where_they_are_asked_for() {
    let seed = "attributes.community_id_seed=7";
    for (set, want) in [
        (&[][..], None),
        (&[seed][..], None),
        (&["attributes.community_id=true"][..], Some(0)),
        (&["attributes.community_id=true", seed][..], Some(7)),
    ] {
        let settings = load_given(&Given { set, ..Given::default() }).unwrap().settings;
        assert_eq!(settings.community_id.map(|id| id.seed), want, "{set:?}");
    }
}

#[test]
fn attributes_are_renamed_left_out_and_added() {
    let file = "[attributes]\nprofile = \"tracee\"\nomit = [\"flowend.history\"]\n\
                [attributes.rename]\n\"srcIP\" = \"from\"\nclient.port = \"unquoted\"\n[attributes.add]\n\"a.b\" = \"c\"\n";
    let set = &["attributes.rename.server.port=port", "attributes.add.team=1"];
    let given = Given { file: Some(file), set, ..Given::default() };
    let mapping = load_given(&given).unwrap().settings.mapping;
    let name = |key| mapping.name(key).map(|name| name.as_str().to_owned());
    for (key, want) in [
        (Key::History, None),
        (Key::SourceIp, Some("from")),
        (Key::DestinationIp, Some("dstIP")),
        (Key::ClientPort, Some("unquoted")),
        (Key::ServerPort, Some("port")),
    ] {
        assert_eq!(name(key).as_deref(), want);
    }
    let added: Vec<_> = mapping.added().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(added, [("a.b", "c"), ("team", "1")]);
}

#[test]
fn what_kubernetes_injects_breaks_nothing() {
    let env = &[
        ("FLOWEND_SERVICE_HOST", "10.96.0.7"),
        ("FLOWEND_SERVICE_PORT", "4317"),
        ("FLOWEND_SERVICE_PORT_OTLP_GRPC", "4317"),
        ("FLOWEND_PORT", "tcp://10.96.0.7:4317"),
        ("FLOWEND_PORT_4317_TCP", "tcp://10.96.0.7:4317"),
        ("FLOWEND_PORT_4317_TCP_PROTO", "tcp"),
        ("FLOWEND_PORT_4317_TCP_PORT", "4317"),
        ("FLOWEND_PORT_4317_TCP_ADDR", "10.96.0.7"),
        ("FLOWEND_PORT_53_UDP", "udp://[fd00::1]:53"),
        ("FLOWEND_PORT_53_UDP_ADDR", "fd00::1"),
        ("FLOWEND_PORT_9_SCTP", "sctp://10.96.0.7:9"),
        ("FLOWEND_PORT_9_SCTP_PROTO", "sctp"),
        ("FLOWEND_ANYNAME_SERVICE_HOST", "10.96.0.8"),
        ("FLOWEND_ANYNAME_SERVICE_PORT", "80"),
        ("FLOWEND_ANYNAME_SERVICE_PORT_HTTP", "80"),
        ("FLOWEND_ANYNAME_PORT_80_TCP_ADDR", "10.96.0.8"),
        ("FLOWEND_OTLP__PORT", "tcp://10.96.0.9:1"),
        ("FLOWEND_CONFIG", "/nowhere"),
    ];
    let settings = load_given(&Given { env, ..Given::default() }).unwrap().settings;
    assert_eq!(settings.outputs, [Output::Text]);
}

#[test]
fn each_mistake_names_its_place_and_the_remedy() {
    let file = |text| Given { file: Some(text), ..Given::default() };
    let set = |set| Given { set, ..Given::default() };
    let env = |env| Given { env, ..Given::default() };
    let cases: &[(Given<'_>, &[&str])] = &[
        (file("targts = [\"/\"]"), &["file FILE: unknown key `targts`", "did you mean `targets`?"]),
        (file("[otlp]\nport = 1"), &["file FILE: unknown key `otlp.port`"]),
        (file("[nonsense.deep]\na = 1"), &["unknown key `nonsense.deep.a`", "print-config"]),
        (
            file("targets = \"/\""),
            &[
                "file FILE: key `targets` must be a list",
                "default: [\"/\"]",
                "not a string (\"/\")",
            ],
        ),
        (file("targets = [1]"), &["key `targets` must be a list of strings, not a number (1)"]),
        (file("otlp = 1"), &["key `otlp` must be a table, not a number (1)"]),
        (
            file("sampling.ratio = \"all\""),
            &["key `sampling.ratio` must be a number (default: 1.0)"],
        ),
        (file("ring.bytes = 1.5"), &["key `ring.bytes` must be", "1.5"]),
        (file("targets = [\n"), &["file FILE: not valid TOML", "line 1"]),
        (
            file("ring.bytes = 5000"),
            &["file FILE: key `ring.bytes`: 5000 is no power of two", "try 8388608"],
        ),
        (
            env(&[("FLOWEND_SAMPLNG__RATIO", "1")]),
            &[
                "variable FLOWEND_SAMPLNG__RATIO: unknown key `samplng.ratio`",
                "did you mean `sampling.ratio`?",
            ],
        ),
        (
            env(&[("FLOWEND_SAMPLING__RATIO", "2")]),
            &["variable FLOWEND_SAMPLING__RATIO: key `sampling.ratio`: 2 is not between 0 and 1"],
        ),
        (
            env(&[("FLOWEND_OTLP__PORT", "4317")]),
            &["variable FLOWEND_OTLP__PORT: unknown key `otlp.port`"],
        ),
        (
            env(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")]),
            &[
                "variable OTEL_EXPORTER_OTLP_ENDPOINT: key `otlp.endpoint`",
                "must begin with http://",
            ],
        ),
        (
            env(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]),
            &[
                "variable OTEL_EXPORTER_OTLP_PROTOCOL",
                "\"http/json\" is none of \"grpc\", \"http/protobuf\"",
            ],
        ),
        (
            env(&[("OTEL_EXPORTER_OTLP_TIMEOUT", "10s")]),
            &["variable OTEL_EXPORTER_OTLP_TIMEOUT", "milliseconds"],
        ),
        (
            env(&[("OTEL_EXPORTER_OTLP_HEADERS", "novalue")]),
            &["variable OTEL_EXPORTER_OTLP_HEADERS", "`novalue` is no key=value"],
        ),
        (set(&["sampling.ratio"]), &["--set sampling.ratio: expected KEY=VALUE"]),
        (set(&["a.b=1"]), &["--set a.b: unknown key `a.b`"]),
        (
            set(&["export.interval=soon"]),
            &["--set export.interval: key `export.interval`: \"soon\" is no duration"],
        ),
        (set(&["ring.drain_interval=0s"]), &["must be more than nothing"]),
        (
            set(&["dns.max_ttl=1s"]),
            &["--set dns.max_ttl", "\"1s\" is less than dns.min_ttl, \"5s\""],
        ),
        (
            set(&["dns.scope=pod"]),
            &["key `dns.scope`: \"pod\" is none of \"cgroup\", \"target\", \"host\""],
        ),
        (
            set(&["dns.resolver_cgroups.systemd-resolved.service= ,"]),
            &["key `dns.resolver_cgroups.systemd-resolved.service`: serves nobody"],
        ),
        (
            set(&["dns.resolver_cgroups.a/..=/"]),
            &["key `dns.resolver_cgroups.a/..`: ", "must not hold"],
        ),
        (
            set(&["telemetry.listen=9464"]),
            &["key `telemetry.listen`: \"9464\" is no address with a port", "127.0.0.1:9464"],
        ),
        (set(&["dns.cache_bytes=1"]), &["1 is not between 65536"]),
        (set(&["targets=[]"]), &["key `targets`: empty"]),
        (set(&["targets=a/../b"]), &["must not hold \"..\""]),
        (
            set(&["targets=pod:"]),
            &["--set targets: key `targets`: \"pod:\" lacks the UID", "fieldRef metadata.uid"],
        ),
        (
            set(&["exclude=a,pod:$(POD_UID)"]),
            &["--set exclude: key `exclude`: \"pod:$(POD_UID)\": nobody has put the value"],
        ),
        (set(&["exclude=[\"\"]"]), &["key `exclude`: \"\" is no cgroup"]),
        (set(&["outputs=stdout"]), &["\"stdout\" is none of \"text\", \"json\", \"otlp\""]),
        (
            set(&["events=end,began"]),
            &["--set events: key `events`: \"began\" is none of \"begin\", \"progress\", \"end\""],
        ),
        (set(&["events=begin"]), &["key `events`: lacks \"end\"", "[\"end\", \"begin\"]"]),
        (set(&["events=[]"]), &["key `events`: lacks \"end\""]),
        (
            set(&["flows.look_interval=0s"]),
            &["key `flows.look_interval`: \"0s\" must be more than nothing"],
        ),
        (
            set(&["flows.handshakes_failed_per_second=-1"]),
            &["key `flows.handshakes_failed_per_second`: -1 is not between 0 and 1000000"],
        ),
        (set(&["progress.interval=0s"]), &["`progress.interval`", "must be more than nothing"]),
        (
            set(&["attributes.community_id_seed=65536"]),
            &["key `attributes.community_id_seed`: 65536 is not between 0 and 65535"],
        ),
        (
            set(&["attributes.omit=flowend.histroy"]),
            &["--set attributes.omit: key `attributes.omit`", "did you mean \"flowend.history\"?"],
        ),
        (
            file("attributes.rename.\"source.port\" = \"server.port\""),
            &[
                "file FILE: key `attributes.rename.source.port`: \"server.port\" would be there twice",
            ],
        ),
        (
            set(&["attributes.add.error.type=x"]),
            &["--set attributes.add.error.type: key `attributes.add.error.type`", "another name"],
        ),
        (set(&["spans.peer_cidrs=10.0.0.0/99"]), &["\"10.0.0.0/99\" is no range"]),
        (set(&["otlp.headers.a b=c"]), &["key `otlp.headers.a b`", "no name of an HTTP header"]),
        (set(&["spool.max_bytes=16777215"]), &["key `spool.max_bytes`", "16777215", "16 MiB"]),
        (set(&["spool.directory=spool"]), &["key `spool.directory`", "\"spool\"", "/var/lib"]),
        (set(&["pin_folder=flowend"]), &["key `pin_folder`", "\"flowend\"", "/sys/fs/bpf/flowend"]),
        (set(&["pin_state=/"]), &["key `pin_state`", "\"/\"", "/var/lib/flowend/state"]),
        (set(&["shutdown.timeout=9999999999h"]), &["key `shutdown.timeout`", "up to a week"]),
        (
            set(&["otlp.endpoint=http://user:hush@c:1"]),
            &["\"http://<redacted>@c:1\" holds a user or password"],
        ),
        (set(&["otlp.endpoint=http://"]), &["--set otlp.endpoint", "\"http://\""]),
    ];
    for (given, words) in cases {
        let error = match load_given(given) {
            Ok(_) => panic!("accepted: {:?} {:?} {:?}", given.file, given.env, given.set),
            Err(error) => error,
        };
        for word in *words {
            assert!(error.contains(word), "{error}\nlacks: {word}");
        }
        assert!(!error.contains("hush"), "{error}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let sources = Sources { file: Some("/no/such.toml".into()), ..Sources::default() };
    let error = load(&sources).unwrap_err().to_string();
    assert!(
        error.contains("configuration file /no/such.toml") && error.contains("--config"),
        "{error}"
    );
}

#[test]
fn print_config_says_where_and_hides_secrets() {
    let layered = load_given(&Given {
        file: Some("[flows]\nmax = 5\n[otlp.headers]\n\"x.key\" = \"hush\"\n"),
        env: &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317"), ("FLOWEND_IDS__KEY", "hush")],
        set: &["sampling.ratio=0.5"],
    })
    .unwrap();
    let text = print(&layered);
    let line = |key: &str| {
        text.lines().find(|l| l.starts_with(key)).unwrap_or_else(|| panic!("{key}: {text}"))
    };
    assert!(!text.contains("hush"), "{text}");
    assert!(line("flows.max = 5 ").contains("# file "));
    assert!(line("otlp.headers.\"x.key\" = \"<redacted>\"").contains("# file "));
    assert!(
        line("otlp.endpoint = \"http://c:4317\"")
            .contains("# variable OTEL_EXPORTER_OTLP_ENDPOINT")
    );
    assert!(line("ids.key = \"<redacted>\"").contains("# variable FLOWEND_IDS__KEY"));
    assert!(line("sampling.ratio = 0.5 ").contains("# --set sampling.ratio"));
    assert!(line("targets = [\"/\"] ").ends_with("# default"));
    // Nothing set: the public default is no secret.
    let text = print(&load_given(&Given::default()).unwrap());
    assert!(text.contains("ids.key = \"flowend\""), "{text}");
    // What is printed is TOML.
    assert!(text.parse::<toml::Table>().is_ok(), "{text}");
}

#[test]
fn there_is_a_spool_where_a_folder_is_given() {
    let folder = "spool.directory=/var/lib/flowend/spool";
    let directory = "/var/lib/flowend/spool".into();
    for (set, want) in [
        (&[][..], None),
        (&["spool.max_bytes=16777216"], None),
        (&[folder], Some(1 << 30)),
        (&[folder, "spool.max_bytes=16777216"], Some(16 << 20)),
    ] {
        let settings = load_given(&Given { set, ..Given::default() }).unwrap().settings;
        let want = want
            .map(|max_bytes| SpoolSettings { directory: PathBuf::clone(&directory), max_bytes });
        assert_eq!(settings.spool, want, "{set:?}");
    }
}
