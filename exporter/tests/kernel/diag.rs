//! sock_diag of this kernel, at real sockets.

use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use flowend::diag::{
    Namespace, ProcessFilter, Snapshot, SnapshotOptions, Socket, SocketKind, can_enter_namespaces,
    direction, dump, owners, snapshot,
};
use flowend::flow::{Direction, Endpoint};
use flowend_probe_types::TcpState;
use socket2::SockRef;

use super::support::{Cgroup, Netns, Puppet, can_run, wait_until};

/// Far more sockets than a test machine has.
const ALL: usize = 1_000_000;

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint { addr: address.ip().into(), port: address.port() }
}

fn cookie(socket: &impl AsFd) -> u64 {
    SockRef::from(socket).cookie().expect("SO_COOKIE")
}

fn inode(socket: &impl AsFd) -> u32 {
    let path = format!("/proc/self/fd/{}", socket.as_fd().as_raw_fd());
    u32::try_from(std::fs::metadata(path).expect("an open file").ino()).expect("32 bits")
}

/// The socket with these addresses, if there is one.
fn find(namespace: &Namespace, local: SocketAddr, remote: SocketAddr) -> Option<Socket> {
    let (local, remote) = (endpoint(local), endpoint(remote));
    let is_it = |socket: &&Socket| socket.local == local && socket.remote == remote;
    let found: Vec<_> = namespace.sockets.iter().filter(is_it).collect();
    // One may stand twice when others come and go meanwhile.
    assert!(found.windows(2).all(|pair| pair[0].cookie == pair[1].cookie), "{found:?}");
    found.first().map(|socket| **socket)
}

/// One side of a connection at a moment.
struct Side(SocketAddr, SocketAddr);

impl Side {
    /// Waits until the kernel says so of the socket. A dump may miss one for once.
    fn wait(&self, words: &str, so: impl Fn(&Socket) -> bool) -> (Socket, Direction) {
        let mut last = None;
        wait_until(
            || {
                let namespace = dump(ALL).expect("a dump");
                last = find(&namespace, self.0, self.1)
                    .map(|socket| (socket, direction(&socket, &namespace.listeners)));
                last.is_some_and(|(socket, _)| so(&socket))
            },
            || format!("{} to {}: not {words}", self.0, self.1),
        );
        last.expect("found")
    }

    fn in_state(&self, kind: SocketKind, state: TcpState) -> (Socket, Direction) {
        self.wait(&format!("{kind:?} {state:?}"), |s| s.kind == kind && s.state == state)
    }

    fn acknowledged(&self) -> (Socket, Direction) {
        self.wait("all acknowledged", |s| s.info.is_some_and(|info| info.unacked == 0))
    }
}

#[test]
fn a_connection_is_as_it_is_from_its_beginning_to_time_wait() {
    if !can_run("a_connection_is_as_it_is_from_its_beginning_to_time_wait", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let (mut client, mut server) = (Puppet::in_cgroup(&cgroup), Puppet::outside());
    // An IPv6 socket and an IPv4 connection: the server's side is mapped.
    let listener = server.listen("[::]:0");
    let c = client.connect(SocketAddr::from(([127, 0, 0, 1], listener.local.port())));
    let s = server.accept(listener);
    let near = Side(c.local, c.peer.unwrap());
    let far = Side(c.peer.unwrap(), c.local);

    assert_eq!(near.acknowledged().1, Direction::Outgoing, "nothing was sent");
    assert_eq!(far.acknowledged().1, Direction::Incoming, "nothing was sent");
    client.send(c, 111);
    server.recv(s, 111);
    server.send(s, 3000);
    client.recv(c, 3000);
    let (n, opened) = near.acknowledged();
    let (f, accepted) = far.acknowledged();
    assert_eq!((opened, accepted), (Direction::Outgoing, Direction::Incoming));
    assert_eq!((n.kind, n.state), (SocketKind::Whole, TcpState::Established));
    let id = flowend::cgroup::id_of(&cgroup.folder).unwrap();
    assert_eq!(n.cgroup_id, Some(id));
    assert!(f.cgroup_id.is_some_and(|other| other != id));
    assert_ne!(n.cookie, f.cookie);
    let (ni, fi) = (n.info.unwrap(), f.info.unwrap());
    assert_eq!(
        (ni.bytes_sent, ni.bytes_acked, ni.bytes_received),
        (Some(111), Some(112), Some(3000))
    );
    assert_eq!(
        (fi.bytes_sent, fi.bytes_acked, fi.bytes_received),
        (Some(3000), Some(3000), Some(111))
    );
    assert_eq!((ni.bytes_retrans, ni.total_retrans, ni.notsent_bytes), (Some(0), 0, Some(0)));
    assert_eq!((ni.data_segs_out, fi.data_segs_in), (Some(1), Some(1)));
    // SYN, ACK, data and an ACK at least; what one sent the other received.
    assert!(ni.segs_out >= Some(3) && ni.segs_in >= Some(2), "{ni:?}");
    assert!(ni.rtt_us > 0 && ni.min_rtt_us > Some(0) && ni.min_rtt_us < Some(1_000_000), "{ni:?}");
    let inodes = HashSet::from([n.inode, f.inode]);
    let pids = owners(&inodes, &ProcessFilter::All).unwrap().pids;
    assert_eq!(pids, [(n.inode, client.pid()), (f.inode, server.pid())].into());
    let pids = owners(&inodes, &those_in(&cgroup)).unwrap().pids;
    assert_eq!(pids, [(n.inode, client.pid())].into());

    client.tell(&format!("shutdown {}", c.id));
    assert_eq!(near.in_state(SocketKind::Whole, TcpState::FinWait2).1, Direction::Outgoing);
    assert_eq!(far.in_state(SocketKind::Whole, TcpState::CloseWait).1, Direction::Incoming);
    client.close(c);
    let (waiting, _) = near.in_state(SocketKind::TimeWait, TcpState::FinWait2);
    assert_eq!((waiting.cookie, waiting.info), (n.cookie, None));
    server.close(s);
    let (waiting, _) = near.in_state(SocketKind::TimeWait, TcpState::TimeWait);
    assert_eq!((waiting.cookie, waiting.inode), (n.cookie, 0));
    assert_eq!(find(&dump(ALL).unwrap(), far.0, far.1), None, "its end is CLOSE");
}

#[test]
fn the_accepter_may_be_the_one_that_closes_first() {
    if !can_run("the_accepter_may_be_the_one_that_closes_first", &[]) {
        return;
    }
    let mut puppet = Puppet::outside();
    let listener = puppet.listen("[::1]:0");
    let c = puppet.connect(listener.local);
    let s = puppet.accept(listener);
    puppet.send(s, 5);
    puppet.tell(&format!("shutdown {}", s.id));
    let far = Side(s.local, s.peer.unwrap());
    let near = Side(c.local, c.peer.unwrap());
    // With the listener gone, only the counters tell.
    puppet.close(listener);
    assert_eq!(far.in_state(SocketKind::Whole, TcpState::FinWait2).1, Direction::Incoming);
    assert_eq!(near.in_state(SocketKind::Whole, TcpState::CloseWait).1, Direction::Outgoing);
}

#[test]
fn a_socket_has_the_cookie_and_inode_that_its_process_sees() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let client = TcpStream::connect(to).unwrap();
    let (server, from) = listener.accept().unwrap();
    for (socket, side) in [(&client, Side(from, to)), (&server, Side(to, from))] {
        let (found, _) = side.acknowledged();
        assert_eq!((found.cookie, found.inode), (cookie(socket), inode(socket)));
    }
    let namespace = dump(ALL).unwrap();
    let found = namespace.listeners.find(&endpoint(to)).expect("the listener");
    assert_eq!((found.socket.cookie, found.socket.inode), (cookie(&listener), inode(&listener)));
    assert!(found.socket.cgroup_id.is_some() && found.socket.info.is_none());
}

#[test]
fn listeners_are_found_by_what_they_take() {
    let listen = |address: &str, v6_only: Option<bool>| {
        let address: SocketAddr = address.parse().unwrap();
        let kind = socket2::Type::STREAM;
        let socket =
            socket2::Socket::new(socket2::Domain::for_address(address), kind, None).unwrap();
        if let Some(v6_only) = v6_only {
            socket.set_only_v6(v6_only).unwrap();
        }
        socket.bind(&address.into()).unwrap();
        socket.listen(1).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        (socket, port)
    };
    let cases = [
        (listen("127.0.0.1:0", None), [true, false, false]),
        (listen("0.0.0.0:0", None), [true, true, false]),
        (listen("[::]:0", Some(false)), [true, true, true]),
        (listen("[::]:0", Some(true)), [false, false, true]),
        (listen("[::1]:0", None), [false, false, true]),
    ];
    let namespace = dump(ALL).unwrap();
    for ((socket, port), want) in &cases {
        let found = ["127.0.0.1", "127.0.0.2", "::1"].map(|ip| {
            let local = SocketAddr::new(ip.parse().unwrap(), *port);
            let found = namespace.listeners.find(&endpoint(local));
            found.is_some_and(|listener| listener.socket.cookie == cookie(socket))
        });
        assert_eq!(found, *want, "{:?}", socket.local_addr());
    }
}

#[test]
fn a_dump_stops_at_its_limit_and_says_so() {
    let _listeners = [0, 1, 2].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let cut = dump(2).unwrap();
    assert_eq!(cut.sockets.len() + cut.listeners.iter().count(), 2);
    assert!(cut.truncated && !cut.is_whole());
    let whole = dump(ALL).unwrap();
    assert!(whole.is_whole());
    assert!(whole.sockets.len() + whole.listeners.iter().count() >= 3);
    assert!(whole.started_ns > cut.started_ns && whole.inode == cut.inode);
    assert_eq!(whole.cookie, cut.cookie);
}

/// Runs in a network namespace, in a thread of its own.
fn inside(netns: &Netns, work: impl FnOnce() + Send) {
    let file = std::fs::File::open(netns.file()).expect("the namespace");
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
            work();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Drops what matches at a hook of the namespace, until [`pass`].
fn block(netns: &Netns, hook: &str, rule: &str) {
    netns.exec(&["nft", "add table inet t"]);
    netns.exec(&["nft", &format!("add chain inet t c {{ type filter hook {hook} priority 0; }}")]);
    netns.exec(&["nft", &format!("add rule inet t c {rule} drop")]);
}

fn pass(netns: &Netns) {
    netns.exec(&["nft", "delete", "table", "inet", "t"]);
}

#[test]
fn a_request_has_the_cookie_of_the_socket_that_is_accepted() {
    let tools = &["ip", "nft"];
    if !can_run("a_request_has_the_cookie_of_the_socket_that_is_accepted", tools) {
        return;
    }
    let netns = Netns::new();
    inside(&netns, || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        block(&netns, "output", "tcp flags & (syn | ack) == syn | ack");
        let client =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        let under_way = client.connect(&to.into()).unwrap_err();
        assert_eq!(under_way.raw_os_error(), Some(nix::errno::Errno::EINPROGRESS as i32));
        let from = client.local_addr().unwrap().as_socket().unwrap();
        let (request, opened) = Side(to, from).in_state(SocketKind::Request, TcpState::SynRecv);
        assert_eq!((opened, request.cgroup_id, request.info), (Direction::Incoming, None, None));
        let (connecting, opened) = Side(from, to).in_state(SocketKind::Whole, TcpState::SynSent);
        assert_eq!((opened, connecting.cookie), (Direction::Outgoing, cookie(&client)));
        pass(&netns);
        let (accepted, _) = listener.accept().unwrap();
        assert_ne!(request.cookie, 0);
        assert_eq!(request.cookie, cookie(&accepted));
        let (socket, opened) = Side(from, to).acknowledged();
        assert_eq!(opened, Direction::Outgoing, "its SYN was sent again, and counts once");
        assert!(socket.info.unwrap().total_retrans > 0);
        assert_eq!(Side(to, from).acknowledged().1, Direction::Incoming);
    });
}

/// Opens a connection, sends data both ways while `hook` drops it, then lets it through. The client and
/// the server afterwards.
fn open_while_data_is_dropped(netns: &Netns, hook: &str) -> [(Socket, Direction); 2] {
    use std::io::{Read as _, Write as _};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let mut client = TcpStream::connect(to).unwrap();
    let (mut server, from) = listener.accept().unwrap();
    // Only the counters shall tell.
    drop(listener);
    let sides = [Side(from, to), Side(to, from)];
    block(netns, hook, "meta length > 1000");
    client.write_all(&[b'c'; 5000]).unwrap();
    server.write_all(&[b's'; 7000]).unwrap();
    for side in &sides {
        let sent_again = |s: &Socket| {
            s.info.is_some_and(|info| info.bytes_sent > Some(7000) && info.bytes_acked <= Some(1))
        };
        let (_, opened) = side.wait("sending again", sent_again);
        assert_eq!(opened, Direction::Unknown, "with data on its way nothing can be told");
    }
    pass(netns);
    server.read_exact(&mut [0; 5000]).unwrap();
    client.read_exact(&mut [0; 7000]).unwrap();
    sides.map(|side| side.acknowledged())
}

#[test]
fn retransmitted_data_does_not_hide_who_opened() {
    if !can_run("retransmitted_data_does_not_hide_who_opened", &["ip", "nft"]) {
        return;
    }
    let netns = Netns::new();
    inside(&netns, || {
        let [near, far] = open_while_data_is_dropped(&netns, "input");
        assert_eq!((near.1, far.1), (Direction::Outgoing, Direction::Incoming));
        for (socket, _) in [near, far] {
            assert!(socket.info.unwrap().bytes_retrans > Some(0), "{socket:?}");
        }
    });
}

/// What this host itself drops was counted as sent, and when it is sent again it is not counted as
/// retransmitted.
#[test]
fn what_the_own_host_dropped_makes_the_direction_unknown_and_never_wrong() {
    let name = "what_the_own_host_dropped_makes_the_direction_unknown_and_never_wrong";
    if !can_run(name, &["ip", "nft"]) {
        return;
    }
    let netns = Netns::new();
    inside(&netns, || {
        let [near, far] = open_while_data_is_dropped(&netns, "output");
        assert_eq!((near.1, far.1), (Direction::Unknown, Direction::Unknown));
    });
}

#[test]
fn fast_open_does_not_hide_who_opened() {
    if !can_run("fast_open_does_not_hide_who_opened", &["ip"]) {
        return;
    }
    use std::io::{Read as _, Write as _};
    let netns = Netns::new();
    // Both sides, without cookies, and for every listener (networking/ip-sysctl, tcp_fastopen).
    netns.exec(&["sh", "-c", "echo 0x607 > /proc/sys/net/ipv4/tcp_fastopen"]);
    inside(&netns, || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let client =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        client.send_to_with_flags(b"in the SYN", &to.into(), libc::MSG_FASTOPEN).unwrap();
        let (mut server, from) = listener.accept().unwrap();
        drop(listener);
        server.read_exact(&mut [0; 10]).unwrap();
        let (near, far) = (Side(from, to), Side(to, from));
        let (socket, opened) = near.acknowledged();
        assert_eq!(opened, Direction::Outgoing, "{socket:?}");
        assert_eq!(socket.info.unwrap().data_segs_out, Some(1), "the data went with the SYN");
        assert_eq!(far.acknowledged().1, Direction::Incoming);
        server.write_all(&[b's'; 500]).unwrap();
        client.send(&[b'c'; 300]).unwrap();
        assert_eq!(near.acknowledged().1, Direction::Outgoing);
        assert_eq!(far.acknowledged().1, Direction::Incoming);
    });
}

fn options(processes: ProcessFilter) -> SnapshotOptions {
    SnapshotOptions {
        max_sockets: ALL,
        time_waits: HashSet::new(),
        max_namespaces: 1000,
        processes,
    }
}

fn those_in(cgroup: &Cgroup) -> ProcessFilter {
    let mut pids = HashSet::new();
    flowend::cgroup::processes_in(&cgroup.folder, &mut pids);
    ProcessFilter::Among(pids)
}

fn namespace_inode(netns: &Netns) -> u64 {
    std::fs::metadata(netns.file()).expect("the namespace").ino()
}

fn of_inode(snapshot: &Snapshot, inode: u64) -> Option<&Namespace> {
    let mut found = snapshot.others.iter().filter(|n| n.inode == inode);
    let first = found.next();
    assert!(found.next().is_none(), "dumped twice");
    first
}

#[test]
fn other_namespaces_are_entered() {
    if !can_run("other_namespaces_are_entered", &["ip"]) {
        return;
    }
    can_enter_namespaces().expect("root may");
    let (cgroup, other) = (Cgroup::new(), Cgroup::new());
    let netns = Netns::new();
    let inode = namespace_inode(&netns);
    let own = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
    let nobody = snapshot(&HashMap::new(), &options(ProcessFilter::All)).unwrap();
    assert!(of_inode(&nobody, inode).is_none(), "no process is in it yet");

    let start =
        || Puppet::start(&["--cgroup".as_ref(), &cgroup.folder, "--netns".as_ref(), &netns.file()]);
    let (mut puppet, second) = (start(), start());
    let listener = puppet.listen("127.0.0.1:0");
    let c = puppet.connect(listener.local);
    let s = puppet.accept(listener);
    for filter in [ProcessFilter::All, those_in(&cgroup)] {
        let options = options(filter);
        let mut all = snapshot(&HashMap::new(), &options).unwrap();
        wait_until(
            || {
                // Namespaces of others may go while they are looked at.
                all.complete || {
                    all = snapshot(&HashMap::new(), &options).unwrap();
                    false
                }
            },
            || "no snapshot is complete".into(),
        );
        let namespace = of_inode(&all, inode).expect("entered");
        assert_eq!(all.own.inode, own);
        // Since Linux 5.14.
        assert!(all.own.cookie.is_some());
        assert_ne!(namespace.cookie, all.own.cookie);
        let (near, far) = (
            find(namespace, c.local, c.peer.unwrap()).expect("the client"),
            find(namespace, s.local, s.peer.unwrap()).expect("the server"),
        );
        assert_eq!(direction(&near, &namespace.listeners), Direction::Outgoing);
        assert_eq!(direction(&far, &namespace.listeners), Direction::Incoming);
        assert!(namespace.listeners.find(&endpoint(listener.local)).is_some());
        assert!(find(&all.own, c.local, c.peer.unwrap()).is_none(), "another namespace's");
        assert_eq!(all.left_out, None);
    }
    assert_eq!(
        std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino(),
        own,
        "this thread stays"
    );

    let elsewhere = options(those_in(&other));
    let without = snapshot(&HashMap::new(), &elsewhere).unwrap();
    assert!(of_inode(&without, inode).is_none(), "none of its processes is watched");
    let held = snapshot(&HashMap::new(), &options(those_in(&cgroup))).unwrap().handles;
    assert_eq!(held.keys().collect::<Vec<_>>(), [&inode]);
    let again = snapshot(&held, &elsewhere).unwrap();
    assert!(of_inode(&again, inode).is_some(), "known from before");
    let none = SnapshotOptions { max_namespaces: 0, ..options(those_in(&cgroup)) };
    let none = snapshot(&held, &none).unwrap();
    assert_eq!((none.others.len(), none.left_out.unwrap().count, none.complete), (0, 1, false));
    let tight =
        SnapshotOptions { max_sockets: again.own.sockets.len(), ..options(those_in(&cgroup)) };
    let tight = snapshot(&held, &tight).unwrap();
    assert!(!tight.complete, "more sockets than wanted");

    drop((puppet, second));
    let after = snapshot(&HashMap::new(), &elsewhere).unwrap();
    assert_eq!((after.inhabited.contains(&inode), after.others.len()), (false, 0));
    let after = snapshot(&held, &elsewhere).unwrap();
    let namespace = of_inode(&after, inode).expect("entered without a process in it");
    assert!(find(namespace, c.local, c.peer.unwrap()).is_none());
}

/// Run by [`other_namespaces_are_counted_without_the_capability`] as a process that has less.
#[test]
#[ignore = "the helper of another test"]
fn snapshot_for_another_test() {
    let snapshot = snapshot(&HashMap::new(), &options(ProcessFilter::All)).expect("the own one");
    println!("can enter: {:?}", can_enter_namespaces().map_err(|e| e.raw_os_error()));
    println!("others: {}, complete: {}", snapshot.others.len(), snapshot.complete);
    if let Some(left_out) = snapshot.left_out {
        println!("{left_out}");
    }
}

#[test]
fn other_namespaces_are_counted_without_the_capability() {
    let name = "other_namespaces_are_counted_without_the_capability";
    if !can_run(name, &["ip", "setpriv"]) {
        return;
    }
    let netns = Netns::new();
    let _puppet = Puppet::start(&["--netns".as_ref(), &netns.file()]);
    let output = Command::new("setpriv")
        .arg("--bounding-set=-sys_admin")
        .arg(std::env::current_exe().expect("own path"))
        .args(["--exact", "diag::snapshot_for_another_test", "--ignored", "--nocapture"])
        .output()
        .expect("setpriv");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for words in ["can enter: Err(Some(1))", "others: 0, complete: false", "(CAP_SYS_ADMIN)"] {
        assert!(said.contains(words), "no \"{words}\" in: {said}");
    }
}

/// `cargo test --release -p flowend --test kernel diag::what_it_costs -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn what_it_costs() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    cost("dump, few sockets", 1, || dump(ALL).unwrap());
    let open: Vec<_> =
        (0..4000).map(|_| (TcpStream::connect(to).unwrap(), listener.accept().unwrap())).collect();
    cost("dump, by socket", dump(ALL).unwrap().sockets.len(), || dump(ALL).unwrap());
    let inodes: HashSet<u32> = open.iter().map(|(client, _)| inode(client)).collect();
    cost("owners, by socket", inodes.len(), || owners(&inodes, &ProcessFilter::All).unwrap());
    drop(open);

    let sleep = || super::support::Killed(Command::new("sleep").arg("600").spawn().expect("sleep"));
    let _processes: Vec<_> = (0..2000).map(|_| sleep()).collect();
    let count = std::fs::read_dir("/proc").unwrap().count();
    let nowhere = ProcessFilter::Among(HashSet::new());
    for (words, filter) in [("all", ProcessFilter::All), ("filtered", nowhere)] {
        let options = options(filter);
        let namespaces = 1 + snapshot(&HashMap::new(), &options).unwrap().others.len();
        let words = format!("snapshot of {namespaces} namespace(s), {words}, by process");
        cost(&words, count, || snapshot(&HashMap::new(), &options).unwrap());
    }
    let unknown = HashSet::from([u32::MAX]);
    cost("owners, none found, by process", count, || {
        owners(&unknown, &ProcessFilter::All).unwrap()
    });
}

/// The best of 20 runs.
fn cost<T>(words: &str, by: usize, mut work: impl FnMut() -> T) {
    let run = |_| {
        let start = std::time::Instant::now();
        let _result = work();
        start.elapsed().as_nanos()
    };
    let best = (0..20).map(run).min().expect("20 runs");
    println!("{words}: {} us, {} ns each of {by}", best / 1000, best / by as u128);
}
