//! Whom a name serves: `dns.scope` and `dns.resolver_cgroups`.

use super::super::support::{Cgroup, Flowend, can_run};
use super::{Site, TOOLS, names, server, watch};

const ASK: &str = "run dig +short @127.0.0.1 web.names.test A";
const WEB: &str = "127.0.2.1";
const NAME: &str = "web.names.test";

#[test]
fn a_name_serves_the_cgroup_the_target_or_the_host() {
    if !can_run("a_name_serves_the_cgroup_the_target_or_the_host", TOOLS) {
        return;
    }
    let mut site = Site::new();
    let (one, other) = (Cgroup::new(), Cgroup::new());
    let child = |of: &Cgroup, name| Cgroup::named(&format!("{}/{name}", &of.name[1..]));
    let (asking, sibling, stranger) =
        (child(&one, "asking"), child(&one, "sibling"), child(&other, "stranger"));
    let scopes = ["cgroup", "target", "host"];
    let running = scopes.map(|scope| watch(&[&one, &other], &[&format!("dns.scope={scope}")]));
    let mut asker = site.puppet(&asking);
    assert_eq!(asker.tell(ASK), WEB);
    for (cgroup, knows) in [
        (&asking, [true, true, true]),
        (&sibling, [false, true, true]),
        (&stranger, [false, false, true]),
    ] {
        let mut puppet = site.puppet(cgroup);
        let visit = site.visit(&mut puppet, WEB);
        for ((flowend, knows), scope) in running.iter().zip(knows).zip(scopes) {
            let expected: &[&str] = if knows { &[NAME] } else { &[] };
            assert_eq!(names(flowend, &visit), expected, "{} with scope {scope}", cgroup.name);
        }
    }
    for flowend in running {
        flowend.stop();
    }
}

/// Nobody here sends a DNS message but dnsmasq, in the resolvers' cgroup: the program that asks it is not
/// watched, as with a lookup over D-Bus or nscd's socket.
#[test]
fn a_resolvers_lookups_serve_the_cgroups_it_is_said_to_serve() {
    let test = "a_resolvers_lookups_serve_the_cgroups_it_is_said_to_serve";
    if !can_run(test, &[TOOLS, &["dnsmasq"]].concat()) {
        return;
    }
    let mut site = Site::new();
    let (resolver, served, unserved) = (Cgroup::new(), Cgroup::new(), Cgroup::new());
    let file = site.folder.path().join("flowend.toml");
    let config = format!(
        "targets = [\"{}\", \"{}\"]\n[dns.resolver_cgroups]\n\"{}\" = \"{}\"\n",
        served.name, unserved.name, resolver.name, served.name
    );
    std::fs::write(&file, config).unwrap();
    let flowend = Flowend::run(&["--output=json", &format!("--config={}", file.display())]);
    let _cache = server::dnsmasq(&site.netns, &resolver, "127.0.0.53");
    assert_eq!(site.far.tell("run dig +short @127.0.0.53 web.names.test A"), WEB);

    let mut in_resolver = site.puppet(&resolver);
    let unreported = site.visit(&mut in_resolver, WEB);
    for (cgroup, expected) in [(&served, &[NAME][..]), (&unserved, &[])] {
        let mut puppet = site.puppet(cgroup);
        let visit = site.visit(&mut puppet, WEB);
        assert_eq!(names(&flowend, &visit), expected, "{}", cgroup.name);
    }
    let (local, _) = unreported.addresses();
    let is_it = |r: &serde_json::Value| r["attributes"]["network.local.port"] == local.port();
    // The later ones are there, so this one would be.
    assert!(!flowend.json().iter().any(is_it), "a resolver's own connection");
    flowend.stop();
}
