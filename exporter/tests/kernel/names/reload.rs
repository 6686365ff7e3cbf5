//! A connection that is open while the configuration is reloaded.

use std::time::Duration;

use super::super::json::{lines, of, wait_for_each};
use super::super::support::{Cgroup, Flowend, can_run};
use super::{Site, TOOLS};

/// Everything that takes effect at once is changed while a connection is open: it ends with the start, the ids
/// and the name it was opened with, and is reported as the new configuration says.
#[test]
fn a_connection_keeps_its_start_ids_and_name_over_a_reload() {
    if !can_run("a_connection_keeps_its_start_ids_and_name_over_a_reload", TOOLS) {
        return;
    }
    let mut site = Site::new();
    let (cgroup, other) = (Cgroup::new(), Cgroup::new());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flowend.toml");
    let fixed = "outputs = [\"json\"]\nevents = [\"begin\", \"end\"]\n";
    let before = format!("targets = [\"{}\"]\n{fixed}[dns]\nmin_ttl = \"0s\"\n", cgroup.name);
    std::fs::write(&file, before).unwrap();
    let flowend = Flowend::run(&["--config", file.to_str().unwrap()]);

    let mut puppet = site.puppet(&cgroup);
    // It lapses after a second.
    let address = puppet.tell("run dig +short @127.0.0.1 brief.names.test A");
    let visit = site.open(&mut puppet, address.parse().unwrap());
    wait_for_each(&flowend, "begin", &[visit.addresses()]);
    std::thread::sleep(Duration::from_millis(1200));

    let after = format!(
        "targets = [\"{}\", \"{}\"]\n{fixed}[dns]\nmin_ttl = \"0s\"\n[sampling]\nratio = 0.999999\n\
         [attributes]\ncommunity_id = true\n[resource]\nservice_name = \"renamed\"\n\
         [resource.attributes]\nteam = \"a\"\n",
        other.name, cgroup.name
    );
    std::fs::write(&file, after).unwrap();
    flowend.wait_for_message(
        "configuration reloaded: attributes.community_id, resource.attributes.team, \
         resource.service_name, sampling.ratio, targets",
    );
    flowend.wait_for_message(&format!("cgroup {}: attached", other.name));

    site.end(&mut puppet, &visit);
    wait_for_each(&flowend, "end", &[visit.addresses()]);
    let lines = lines(&flowend);
    let (begin, end) =
        (of(&lines, "begin", visit.addresses())[0], of(&lines, "end", visit.addresses())[0]);
    for key in ["trace_id", "span_id"] {
        assert_eq!(begin.0[key], end.0[key], "{key}");
        assert!(begin.0[key].is_string(), "{key}");
    }
    assert!(end.start_known());
    assert!(end.int("flowend.duration_us").unwrap() > 1_000_000, "from the begin that was seen");
    assert_eq!(end.text("flowend.end.reason"), Some("fin"));
    assert_eq!(end.text("server.address"), Some("brief.names.test"), "though it has lapsed");
    let probability = end.0["attributes"]["flowend.sampling.probability"].as_f64();
    assert_eq!(probability, Some(0.999_999));
    assert!(
        end.text("flowend.community_id").is_some() && begin.text("flowend.community_id").is_none()
    );
    assert_eq!(end.resource("service.name"), Some("renamed"));
    assert_eq!((begin.resource("team"), end.resource("team")), (None, Some("a")));
    flowend.stop();
}
