//! Two network namespaces and the wire between them, which is a thread of the test: it sees every
//! packet and can delay, lose, repeat, hold back and forge them, to the packet.
//!
//! A TUN device at each end. No offload is asked for, so the kernel cuts what it sends: here one packet is one
//! segment.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::connections::Role;
use super::packet::Segment;
use super::support::{Netns, wait_until};

const DEVICE: &str = "tun0";
/// Longer than a delayed ACK (40 ms, net/ipv4/tcp_output.c, TCP_DELACK_MIN).
const QUIET: Duration = Duration::from_millis(60);

/// How long an answer takes. At once, it would find the socket locked by the very call that sent: the kernel drops
/// an ICMP error then (`LINUX_MIB_LOCKDROPPEDICMPS`).
const ANSWER_TIME: Duration = Duration::from_millis(20);

/// What becomes of a packet.
pub(crate) enum Fate {
    Pass,
    Drop,
    /// Until [`Link::release`].
    Hold,
    Twice,
    /// It passes, and right behind it goes what is held.
    PassAndRelease,
    /// It is lost, and its sender gets this packet.
    Answer(Vec<u8>),
}

/// A TCP segment on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crossing {
    /// The end it comes from.
    pub(crate) from: Role,
    pub(crate) segment: Segment,
    /// How often it was handed to the other end.
    pub(crate) delivered: u32,
    /// Whether no end sent it.
    pub(crate) forged: bool,
}

type Rule = Box<dyn FnMut(Role, &Segment, &[u8]) -> Fate + Send>;

struct State {
    rule: Rule,
    delay: Duration,
    /// Delayed: when it is due, and the end it goes to.
    on_the_way: VecDeque<(Instant, Role, Vec<u8>)>,
    held: Vec<(usize, Role, Vec<u8>)>,
    crossings: Vec<Crossing>,
    /// Since when nothing was there to read, as of `looked_at`.
    idle_since: Option<Instant>,
    looked_at: Instant,
}

struct Wire {
    client: File,
    server: File,
    state: Mutex<State>,
    stop: AtomicBool,
}

/// The two namespaces and the wire; all gone when dropped.
pub(crate) struct Link {
    pub(crate) client: Netns,
    pub(crate) server: Netns,
    net: u8,
    wire: Arc<Wire>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// Both ends with an address each of both families: `10.77.NET.1` and `.2`, `fd77:NET::1` and `::2`.
    pub(crate) fn new(net: u8) -> Self {
        let (client, server) = (Netns::new(), Netns::new());
        let ends = [(&client, 1), (&server, 2)].map(|(netns, host)| {
            let tun = netns.inside(open_tun);
            let (v4, v6) = (format!("10.77.{net}.{host}/24"), format!("fd77:{net:x}::{host}/64"));
            netns.ip(&["addr", "add", &v4, "dev", DEVICE]);
            netns.ip(&["addr", "add", &v6, "dev", DEVICE, "nodad"]);
            netns.ip(&["link", "set", DEVICE, "mtu", "1500", "up"]);
            tun
        });
        let [client_tun, server_tun] = ends;
        let wire = Arc::new(Wire {
            client: client_tun,
            server: server_tun,
            state: Mutex::new(State {
                rule: Box::new(|_, _, _| Fate::Pass),
                delay: Duration::ZERO,
                on_the_way: VecDeque::new(),
                held: Vec::new(),
                crossings: Vec::new(),
                idle_since: None,
                looked_at: Instant::now(),
            }),
            stop: AtomicBool::new(false),
        });
        let thread = std::thread::spawn({
            let wire = Arc::clone(&wire);
            move || wire.run()
        });
        Self { client, server, net, wire, thread: Some(thread) }
    }

    pub(crate) fn netns(&self, role: Role) -> &Netns {
        match role {
            Role::Client => &self.client,
            Role::Server => &self.server,
        }
    }

    /// An address of the net between the ends, which is neither end's.
    pub(crate) fn address_between(like: IpAddr) -> IpAddr {
        match like.to_canonical() {
            IpAddr::V4(v4) => {
                let [a, b, c, _] = v4.octets();
                IpAddr::from([a, b, c, 99])
            }
            IpAddr::V6(v6) => {
                let mut segments = v6.segments();
                segments[7] = 99;
                IpAddr::from(segments)
            }
        }
    }

    /// From now on every TCP segment is asked about. It gets the whole packet, too.
    pub(crate) fn on(&self, rule: impl FnMut(Role, &Segment, &[u8]) -> Fate + Send + 'static) {
        self.wire.lock().rule = Box::new(rule);
    }

    /// Nothing gets through in either direction.
    pub(crate) fn go_dark(&self) {
        self.on(|_, _, _| Fate::Drop);
    }

    /// Everything gets through again.
    pub(crate) fn pass(&self) {
        self.on(|_, _, _| Fate::Pass);
    }

    /// Hands on what is held, in the order of its coming, and lets everything through from now on.
    pub(crate) fn release(&self) {
        let mut state = self.wire.lock();
        state.rule = Box::new(|_, _, _| Fate::Pass);
        state.idle_since = None;
        self.wire.release(&mut state);
    }

    /// Takes an end's device down, or up again with its addresses.
    pub(crate) fn set_up(&self, role: Role, up: bool) {
        let netns = self.netns(role);
        netns.ip(&["link", "set", DEVICE, if up { "up" } else { "down" }]);
        if up {
            // IPv6 addresses go with the device.
            let host = if role == Role::Client { 1 } else { 2 };
            let v6 = format!("fd77:{:x}::{host}/64", self.net);
            netns.ip(&["addr", "replace", &v6, "dev", DEVICE, "nodad"]);
        }
    }

    /// Each packet takes this long from now on, in each direction.
    pub(crate) fn set_delay(&self, delay: Duration) {
        self.wire.lock().delay = delay;
    }

    /// Hands a packet to an end, as if the other had sent it.
    pub(crate) fn inject(&self, to: Role, forged: Segment) {
        let mut state = self.wire.lock();
        state.idle_since = None;
        let from = to.other();
        state.crossings.push(Crossing { from, segment: forged, delivered: 1, forged: true });
        self.wire.write(to, &forged.to_packet());
    }

    /// Until nothing has been on the wire for longer than a delayed ACK: what an application did has had
    /// its effect at both ends. Fails where the wire does not come to rest.
    pub(crate) fn settle(&self) {
        let start = Instant::now();
        wait_until(
            || {
                let state = self.wire.lock();
                let quiet_since = state.idle_since.map(|at| at.max(start));
                quiet_since.is_some_and(|at| state.looked_at.saturating_duration_since(at) >= QUIET)
            },
            || format!("the wire does not come to rest: {:#?}", self.wire.lock().crossings.last()),
        );
    }

    /// All TCP segments between two sockets so far.
    pub(crate) fn crossings(&self, one: SocketAddr, other: SocketAddr) -> Vec<Crossing> {
        let is_it =
            |c: &&Crossing| [(one, other), (other, one)].contains(&(c.segment.src, c.segment.dst));
        self.wire.lock().crossings.iter().filter(is_it).copied().collect()
    }

    /// Until such a segment between two sockets came by.
    pub(crate) fn wait_for(
        &self,
        (one, other): (SocketAddr, SocketAddr),
        is_it: impl Fn(&Crossing) -> bool,
    ) -> Crossing {
        let mut found = None;
        wait_until(
            || {
                found = self.crossings(one, other).into_iter().find(|c| is_it(c));
                found.is_some()
            },
            || format!("no such segment: {:#?}", self.crossings(one, other)),
        );
        found.expect("found")
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.wire.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported by the test that waited for its packets.
            let _ = thread.join();
        }
    }
}

impl Wire {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, to: Role, packet: &[u8]) {
        let mut end = match to {
            Role::Client => &self.client,
            Role::Server => &self.server,
        };
        // A device that is down takes nothing: the packet is lost, as on a wire.
        let _ = end.write(packet);
    }

    /// Hands on what is held, in the order of its coming.
    fn release(&self, state: &mut State) {
        for (at, to, packet) in std::mem::take(&mut state.held) {
            state.crossings[at].delivered += 1;
            self.write(to, &packet);
        }
    }

    fn run(&self) {
        let mut packet = vec![0; 65536];
        while !self.stop.load(Ordering::Relaxed) {
            let mut fds = [
                PollFd::new(self.client.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.server.as_fd(), PollFlags::POLLIN),
            ];
            let polled = poll(&mut fds, self.timeout()).expect("poll of the TUN devices") > 0;
            let mut busy = false;
            for (from, mut end) in [(Role::Client, &self.client), (Role::Server, &self.server)] {
                // Down devices and empty queues end the loop alike.
                while let Ok(n) = end.read(&mut packet) {
                    busy = true;
                    self.take(from, &packet[..n]);
                }
            }
            if polled && !busy {
                // A device that is down is always ready, and has nothing.
                std::thread::sleep(Duration::from_millis(1));
            }
            self.deliver_what_is_due(busy);
        }
    }

    /// Until the next delayed packet; short enough that `looked_at` is a fresh look.
    fn timeout(&self) -> PollTimeout {
        let longest = Duration::from_millis(5);
        let next = self.lock().on_the_way.front().map(|(due, _, _)| *due);
        let wait = next.map_or(longest, |due| due.saturating_duration_since(Instant::now()));
        // Up, so that it does not spin in the last millisecond.
        PollTimeout::try_from(wait.min(longest) + Duration::from_micros(999)).expect("short")
    }

    fn take(&self, from: Role, packet: &[u8]) {
        // Neighbour discovery and the like have nobody to talk to here.
        let Some(segment) = Segment::parse(packet) else { return };
        let mut state = self.lock();
        state.idle_since = None;
        let fate = (state.rule)(from, &segment, packet);
        let to = from.other();
        let copies = match fate {
            Fate::Pass | Fate::PassAndRelease => 1,
            Fate::Twice => 2,
            Fate::Drop | Fate::Hold | Fate::Answer(_) => 0,
        };
        state.crossings.push(Crossing { from, segment, delivered: copies, forged: false });
        match fate {
            Fate::Hold => {
                let at = state.crossings.len() - 1;
                state.held.push((at, to, packet.to_vec()));
            }
            Fate::Answer(answer) => {
                let due = Instant::now() + ANSWER_TIME;
                state.on_the_way.push_back((due, from, answer));
            }
            Fate::PassAndRelease => {
                self.write(to, packet);
                self.release(&mut state);
            }
            Fate::Pass | Fate::Twice | Fate::Drop => {
                for _ in 0..copies {
                    if state.delay.is_zero() {
                        self.write(to, packet);
                    } else {
                        let due = Instant::now() + state.delay;
                        state.on_the_way.push_back((due, to, packet.to_vec()));
                    }
                }
            }
        }
    }

    fn deliver_what_is_due(&self, busy: bool) {
        let mut state = self.lock();
        let now = Instant::now();
        let mut delivered = busy;
        while state.on_the_way.front().is_some_and(|(due, _, _)| *due <= now) {
            if let Some((_, to, packet)) = state.on_the_way.pop_front() {
                self.write(to, &packet);
                delivered = true;
            }
        }
        state.looked_at = now;
        if delivered || !state.on_the_way.is_empty() {
            state.idle_since = None;
        } else {
            state.idle_since.get_or_insert(now);
        }
    }
}

/// A TUN device in the namespace of this thread.
fn open_tun() -> File {
    let tun = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .expect("/dev/net/tun");
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).expect("16 bits");
    // SAFETY: the descriptor is a TUN device's, and the request a whole ifreq.
    let error = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(error, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    tun
}
