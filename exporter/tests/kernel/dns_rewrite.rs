//! Another program rewrites the address at connect(): what the probe tells of it.

use std::fs::File;
use std::net::SocketAddr;

use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use aya::{Ebpf, EbpfLoader};
use flowend::probe::{Attachment, Probe, Role};
use flowend_probe_types::{Event, EventKind};

use super::support::{Cgroup, Puppet, can_run, drain, load_options};

/// What the application asks for; nobody is there.
const ASKED: &str = "10.98.0.1:80";

/// Attaches `rewrite_connect4` to a cgroup, from [`ASKED`] to this listener; detached when dropped.
fn rewrite(cgroup: &Cgroup, to: SocketAddr) -> Ebpf {
    let words = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => (u32::from_ne_bytes(v4.ip().octets()), u32::from(v4.port().to_be())),
        SocketAddr::V6(v6) => panic!("{v6}: the program knows IPv4"),
    };
    let (from, to) = (words(ASKED.parse().unwrap()), words(to));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../bpf-probes/rewrite.bpf.o");
    let mut ebpf = EbpfLoader::new()
        .override_global("FROM_ADDRESS", &from.0, true)
        .override_global("FROM_PORT", &from.1, true)
        .override_global("TO_ADDRESS", &to.0, true)
        .override_global("TO_PORT", &to.1, true)
        .load(&std::fs::read(path).unwrap())
        .unwrap();
    let program: &mut CgroupSockAddr =
        ebpf.program_mut("rewrite_connect4").unwrap().try_into().unwrap();
    program.load().unwrap();
    program.attach(File::open(&cgroup.folder).unwrap(), CgroupAttachMode::Single).unwrap();
    ebpf
}

/// Which address the Connect event of a connection to [`ASKED`] names, and to which it went.
fn told(
    probe_first: bool,
    probed: impl Fn(&mut Probe) -> Attachment,
    rewritten: &Cgroup,
    client_in: &Cgroup,
) -> (SocketAddr, SocketAddr, SocketAddr) {
    let mut server = Puppet::outside();
    let listener = server.listen("127.0.0.1:0");
    let mut probe = Probe::load(load_options(true)).unwrap();
    let mut ring = probe.take_ring().unwrap().unwrap();
    let (_attached, _rewriter);
    if probe_first {
        _attached = probed(&mut probe);
        _rewriter = rewrite(rewritten, listener.local);
    } else {
        _rewriter = rewrite(rewritten, listener.local);
        _attached = probed(&mut probe);
    }
    let mut client = Puppet::in_cgroup(client_in);
    let connected = client.connect(ASKED.parse().unwrap());
    let mut asked = drain(&mut ring).1.into_iter().filter_map(|event| match event {
        Event::Process(EventKind::Connect, e) => {
            assert_eq!(e.pid, client.pid());
            Some(SocketAddr::new(e.remote.into(), e.remote_port))
        }
        _ => None,
    });
    let address = asked.next().expect("a Connect event");
    assert_eq!(asked.next(), None);
    (address, connected.peer.unwrap(), listener.local)
}

#[test]
fn the_address_before_the_rewrite_is_told_where_the_probe_runs_first() {
    if !can_run("the_address_before_the_rewrite_is_told_where_the_probe_runs_first", &[]) {
        return;
    }
    let parent = Cgroup::new();
    let child = Cgroup::named(&format!("{}/child", &parent.name[1..]));
    let on = |cgroup: &Cgroup| {
        let (folder, name) = (cgroup.folder.clone(), cgroup.name.clone());
        move |probe: &mut Probe| probe.attach(&folder, &name, Role::Target).unwrap()
    };
    let asked: SocketAddr = ASKED.parse().unwrap();
    // Programs of a child run before its parent's, whichever came first; of one cgroup in the order in
    // which they were attached.
    for (case, probe_first, probed, rewritten, sees_asked) in [
        ("same cgroup, probe first", true, &child, &child, true),
        ("same cgroup, probe last", false, &child, &child, false),
        ("rewritten above, probe first", true, &child, &parent, true),
        ("rewritten above, probe last", false, &child, &parent, true),
        ("rewritten below", true, &parent, &child, false),
    ] {
        let (address, went_to, listener) = told(probe_first, on(probed), rewritten, &child);
        assert_eq!(went_to, listener, "{case}: it is rewritten");
        assert_eq!(address, if sees_asked { asked } else { listener }, "{case}");
    }
}
