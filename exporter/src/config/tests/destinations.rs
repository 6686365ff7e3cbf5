//! Destinations, and what the receivers of each signal take from where.

use std::path::Path;

use super::*;

fn load_file(text: &str) -> Layered {
    load_given(&Given { file: Some(text), ..Given::default() }).unwrap()
}

fn error_of(text: &str) -> String {
    load_given(&Given { file: Some(text), ..Given::default() }).unwrap_err()
}

#[test]
fn keys_left_out_are_those_of_otlp_but_not_its_secrets() {
    let settings = load_file(
        r#"
        [otlp]
        endpoint = "https://main:4317"
        compression = "gzip"
        timeout = "3s"
        ca_file = "/ca.pem"
        client_certificate_file = "/cert.pem"
        client_key_file = "/key.pem"
        headers_file = "/headers"
        headers = { authorization = "hush" }
        logs = { timeout = "4s" }
        [destinations.b_2]
        endpoint = "https://b:4317"
        [destinations.a-1]
        endpoint = "http://a:4318"
        signals = ["traces"]
        compression = "none"
        ca_file = "/other.pem"
        headers = { x = "1" }
        traces = { compression = "zstd", headers = { X = "2" } }
        "#,
    )
    .settings;
    let names: Vec<_> = settings.destinations.iter().map(|one| &*one.name).collect();
    assert_eq!(names, ["otlp", "a-1", "b_2"]);
    let (logs, traces) = otlp(&settings);
    assert_eq!((logs.timeout.as_secs(), traces.timeout.as_secs()), (4, 3));
    assert_eq!(logs.headers[0].0, "authorization");
    assert_eq!(logs.headers_file.as_ref().unwrap().path, Path::new("/headers"));
    let client = traces.tls.client.as_ref().unwrap();
    assert_eq!(client.key.key, "otlp.client_key_file");

    let a = &settings.destinations[1];
    assert!(a.logs.is_none());
    let a = a.traces.as_ref().unwrap();
    assert_eq!(a.endpoint, "http://a:4318/v1/traces");
    assert_eq!((a.protocol, a.compression), (Protocol::Http, Some(Compression::Zstd)));
    assert_eq!(a.tls.authorities.as_ref().unwrap().key, "destinations.a-1.ca_file");
    assert_eq!((a.headers.len(), &a.headers[0].1), (1, &"2".parse().unwrap()));

    let b = &settings.destinations[2];
    let (logs, traces) = (b.logs.as_ref().unwrap(), b.traces.as_ref().unwrap());
    assert_eq!(logs.endpoint, "https://b:4317/");
    assert_eq!((logs.compression, logs.timeout.as_secs()), (Some(Compression::Gzip), 4));
    assert_eq!(traces.timeout.as_secs(), 3);
    assert_eq!(logs.tls.authorities.as_ref().unwrap().key, "otlp.ca_file");
    assert_eq!((&logs.headers[..], &logs.headers_file, &logs.tls.client), (&[][..], &None, &None));
}

#[test]
fn an_endpoint_without_a_scheme_is_secure_unless_told_otherwise() {
    for (given, insecure, want) in [
        ("c:4317", None, "https://c:4317/"),
        ("c", Some("False"), "https://c/"),
        ("c:4317", Some("true"), "http://c:4317/"),
        ("c:4317", Some("TRUE"), "http://c:4317/"),
        ("[::1]:4317", Some("true"), "http://[::1]:4317/"),
        ("http://c:4317", Some("false"), "http://c:4317/"),
        ("https://c:4317", Some("true"), "https://c:4317/"),
    ] {
        let mut env = vec![("OTEL_EXPORTER_OTLP_ENDPOINT", given)];
        env.extend(insecure.map(|text| ("OTEL_EXPORTER_OTLP_INSECURE", text)));
        let settings = load_given(&Given { env: &env, ..Given::default() }).unwrap().settings;
        let (logs, _) = otlp(&settings);
        assert_eq!((logs.endpoint.to_string(), logs.protocol), (want.into(), Protocol::Grpc));
    }
    let settings = load_file("otlp.endpoint = \"c:1\"\notlp.logs.insecure = true").settings;
    let (logs, traces) = otlp(&settings);
    assert_eq!(
        (logs.endpoint.scheme_str(), traces.endpoint.scheme_str()),
        (Some("http"), Some("https"))
    );
}

#[test]
fn the_standard_variables_for_tls_and_metrics_are_understood() {
    let env = &[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c:4318"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/traces.pem"),
        ("OTEL_EXPORTER_OTLP_LOGS_CLIENT_CERTIFICATE", "/cert.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key.pem"),
        ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "/other.pem"),
        ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE", "/other.pem"),
        ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "7"),
        ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "a=b"),
    ];
    let layered = load_given(&Given { env, ..Given::default() }).unwrap();
    let (logs, traces) = otlp(&layered.settings);
    let authorities = |r: &Receiver| r.tls.authorities.clone().unwrap().path;
    assert_eq!(authorities(logs), Path::new("/ca.pem"));
    assert_eq!(authorities(traces), Path::new("/traces.pem"));
    let client = logs.tls.client.as_ref().unwrap();
    assert_eq!(client.certificate.origin, "variable OTEL_EXPORTER_OTLP_LOGS_CLIENT_CERTIFICATE");
    assert_eq!(
        (&client.certificate.path, &client.key.path),
        (&"/cert.pem".into(), &"/key.pem".into())
    );
    let metrics = &layered.settings.metrics_receiver;
    assert_eq!(metrics.endpoint, "https://c:4318/v1/metrics");
    assert_eq!((metrics.timeout.as_millis(), metrics.headers.len()), (7, 1));
    assert!(layered.warnings.is_empty());
}

#[test]
fn destinations_can_be_set_by_variables_and_are_shown_without_secrets() {
    let layered = load_given(&Given {
        file: Some(
            "[destinations.x]\ntimeout = \"1s\"\n[destinations.x.headers]\n\"A.Key\" = \"hush\"",
        ),
        env: &[
            ("FLOWEND_DESTINATIONS__X__ENDPOINT", "http://x:4317"),
            ("FLOWEND_DESTINATIONS__X__SIGNALS", "logs"),
        ],
        set: &["destinations.x.logs.headers.b.key=hush"],
    })
    .unwrap();
    let settings = &layered.settings;
    assert_eq!(settings.outputs, [Output::Otlp], "an endpoint makes OTLP the output");
    let x = settings.destinations[1].logs.as_ref().unwrap();
    assert_eq!((x.endpoint.to_string().as_str(), x.timeout.as_secs()), ("http://x:4317/", 1));
    assert_eq!(x.headers.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["a.key", "b.key"]);
    let text = print(&layered);
    let line = |key: &str| {
        text.lines().find(|l| l.starts_with(key)).unwrap_or_else(|| panic!("{key}: {text}"))
    };
    assert!(!text.contains("hush"), "{text}");
    assert!(line("destinations.x.timeout = \"1s\"").contains("# file "));
    assert!(
        line("destinations.x.endpoint = \"http://x:4317\"").contains("# variable FLOWEND_DEST")
    );
    assert!(line("destinations.x.headers.\"a.key\" = \"<redacted>\"").contains("# file "));
    assert!(line("destinations.x.logs.headers.\"b.key\" = \"<redacted>\"").contains("# --set"));
    assert!(text.parse::<toml::Table>().is_ok(), "{text}");
}

#[test]
fn outputs_decide_whether_there_are_destinations() {
    let file = "[destinations.x]\nendpoint = \"http://x:1\"\n";
    assert_eq!(load_file(file).settings.destinations.len(), 2);
    let text = load_file(&format!("outputs = [\"text\"]\n{file}"));
    assert!(text.settings.destinations.is_empty());
    assert_eq!(text.warnings.len(), 1);
    assert!(
        text.warnings[0]
            .contains("`destinations.x.endpoint` is not used: `outputs` is without \"otlp\""),
        "{:?}",
        text.warnings
    );
    // Only further ones.
    let settings = load_file(&format!("otlp.signals = []\n{file}signals = [\"logs\"]")).settings;
    assert_eq!((&settings.destinations[0].logs, &settings.destinations[0].traces), (&None, &None));
    assert!(settings.destinations[1].logs.is_some());
}

#[test]
fn files_for_tls_that_are_not_used_are_said_once() {
    let layered = load_file("otlp.endpoint = \"http://c:4317\"\notlp.ca_file = \"/ca.pem\"");
    assert_eq!(layered.warnings.len(), 1, "{:?}", layered.warnings);
    let words = "key `otlp.ca_file` is not used for http://c:4317/: it is not https://";
    assert!(layered.warnings[0].contains(words), "{:?}", layered.warnings);
}

#[test]
fn compression_none_overrules_the_standard_variable() {
    let env =
        &[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"), ("FLOWEND_OTLP__LOGS__COMPRESSION", "none")];
    let layered = load_given(&Given { env, set: &["outputs=otlp"], ..Given::default() }).unwrap();
    let (logs, traces) = otlp(&layered.settings);
    assert_eq!((logs.compression, traces.compression), (None, Some(Compression::Gzip)));
    assert!(layered.warnings.is_empty());
}

#[test]
fn each_mistake_in_a_destination_names_its_place_and_the_remedy() {
    for (text, words) in [
        ("[destinations.x]", "key `destinations.x.endpoint`: is missing: name the receiver"),
        (
            "[destinations.x]\nendpont = \"a\"",
            "unknown key `destinations.x.endpont`; did you mean `destinations.x.endpoint`?",
        ),
        (
            "[destinations.x.logs]\ntimeot = \"a\"",
            "unknown key `destinations.x.logs.timeot`; did you mean `destinations.x.logs.timeout`?",
        ),
        (
            "[destinations.x]\ntimeout = 1",
            "key `destinations.x.timeout` must be a string (default: \"10s\"), not a number",
        ),
        ("[destinations]\nx = 1", "key `destinations.x` must be a table, not a number (1)"),
        ("destinations = 1", "key `destinations` must be a table"),
        ("[destinations.x]\nlogs = 1", "key `destinations.x.logs` must be a table"),
        (
            "[destinations.x]\nendpoint = \"http://x\"\ntimeout = \"0s\"",
            "key `destinations.x.timeout`: \"0s\" must be more than nothing",
        ),
        (
            "[destinations.x]\nendpoint = \"ftp://x\"",
            "key `destinations.x.endpoint`: \"ftp://x\" must begin with http://",
        ),
        (
            "[destinations.x]\nendpoint = \"http://x\"\nsignals = []",
            "key `destinations.x.signals`: is empty: nothing would be sent",
        ),
        (
            "[destinations.x]\nendpoint = \"http://x\"\nsignals = [\"metrics\"]",
            "key `destinations.x.signals`: \"metrics\" is none of \"logs\", \"traces\"",
        ),
        ("otlp.signals = []", "key `otlp.signals`: is empty, and no other destination is given"),
        (
            "[destinations.X]\nendpoint = \"http://x\"",
            "key `destinations.X`: is no name of a destination",
        ),
        (
            "[destinations.text]\nendpoint = \"http://x\"",
            "key `destinations.text`: \"text\" is the name of an output",
        ),
        (
            "[destinations.x.headers]\nte = \"hush\"",
            "key `destinations.x.headers.te`: is a header that flowend sets itself",
        ),
        (
            "otlp.client_key_file = \"/k\"",
            "key `otlp.client_key_file`: is given without otlp.client_certificate_file",
        ),
        (
            "otlp.traces.client_certificate_file = \"/k\"",
            "key `otlp.traces.client_certificate_file`: is given without otlp.client_key_file",
        ),
        (
            "otlp.endpoint = \"c:1\"\notlp.insecure = \"maybe\"",
            "key `otlp.insecure`: \"maybe\" is none of",
        ),
        (
            "otlp.endpoint = \"c:1\"\notlp.protocol = \"http/protobuf\"",
            "key `otlp.endpoint`: \"c:1\" must begin with http://",
        ),
    ] {
        let text = text.replace(
            "[destinations.x.headers]",
            "destinations.x.endpoint = \"http://x\"\n[destinations.x.headers]",
        );
        let error = error_of(&text);
        assert!(error.starts_with("file FILE: ") || error.starts_with("default: "), "{error}");
        assert!(error.contains(words), "{error}\nlacks: {words}");
        assert!(!error.contains("hush"), "{error}");
    }
    let long = format!("[destinations.{}]\nendpoint = \"http://x\"", "x".repeat(33));
    assert!(error_of(&long).contains("up to 32"), "{}", error_of(&long));
}
