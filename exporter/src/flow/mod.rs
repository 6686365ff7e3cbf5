//! The flow state machine: events of the probe in, ends of connections out.
//!
//! Pure: no I/O, no clock. Time comes with the events and with [`FlowTable::tick`]. Keyed by socket
//! cookie; a cookie is not a connection, since one socket may connect again.
//!
//! A connection is over when its socket goes to CLOSE. The verdict waits [`SETTLE_NS`] longer: an
//! application's RST leaves after CLOSE. Where CLOSE is never heard of (a connection older than the
//! probe, an event lost), a [`Census`] of the kernel's sockets ends it.

mod census;
mod concluded;
mod connection;
mod due;
mod embryo;
mod end;
mod errors;
mod kept;
mod lost;
mod measure;
mod reorder;
mod verdict;
mod zeek;

use crate::fair::{Losses, NAMED_LOSERS, Shares};
use flowend_probe_types::{Event, EventKind, SYN, TcpEvent, TcpState};
use hashlink::LinkedHashMap;

pub use census::{Census, OpenSocket, Running};
use concluded::Concluded;
use connection::Connection;
use due::DueTimes;
use embryo::Embryos;
pub use embryo::HANDSHAKE_NS;
pub use end::{ConnectionEnd, Counters, Direction, Endpoint, Isns, Opened, Reason, Rtt, Side};
use errors::Errors;
pub use kept::KeptFlows;
use lost::Lost;
pub use lost::LostOf;
pub use reorder::REORDER_NS;
use reorder::Reorder;
use verdict::Context;

/// How long a closed connection waits for what follows its CLOSE, ns.
pub const SETTLE_NS: u64 = 10_000_000;

/// How long a closed connection waits when nothing explains its end yet, ns: an application's RST is
/// sent after CLOSE, and its process may lose the CPU or wait for memory in between.
pub const UNEXPLAINED_NS: u64 = 1_000_000_000;

/// How long a connection whose own FIN was acknowledged waits for the application's RST, ns: it may have
/// been half-closed, and is reset where there is unread data.
pub const HALF_CLOSED_NS: u64 = 200_000_000;

/// Looks at the kernel's sockets that must miss a socket, one after the other: a single one may miss an
/// open socket where others leave its hash bucket at that moment (net/ipv4/inet_diag.c).
pub const LOOKS: u8 = 2;

/// How soon another look is wanted where only a look can tell, ns.
const LOOK_AGAIN_NS: u64 = 1_000_000_000;

/// How long before the first sight of a connection a loss still matters to it, ns.
const BLIND_NS: u64 = 60_000_000_000;

/// What the state machine says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlowEvent {
    /// A connection is heard of for the first time; once more where its cgroup is only known later. Before
    /// everything else that is said of it, and after the end of the one before on the same socket.
    Opened(Opened),
    /// A connection was established.
    Begin(ConnectionEnd),
    /// A connection is still open.
    Progress(ConnectionEnd),
    /// A connection ended.
    End(ConnectionEnd),
}

/// What the table does and how much it holds.
#[derive(Clone, Copy, Debug)]
pub struct FlowSettings {
    /// Connections followed at most, and embryonic ones with as many different ISNs.
    pub max: usize,
    /// Say when a connection is established.
    pub begins: bool,
    /// Say how a connection that has been open for this long stands, and again after as long, ns.
    pub progress_ns: Option<u64>,
    /// Failed handshakes reported in one second; the others are counted.
    pub handshakes_failed_per_second: u32,
    /// How long a handshake may take until it has failed, ns.
    pub handshake_ns: u64,
    /// Whether the kernel's error reports are read (tracepoint).
    pub errors_reported: bool,
}

impl Default for FlowSettings {
    fn default() -> Self {
        Self {
            max: 262_144,
            begins: false,
            progress_ns: None,
            handshakes_failed_per_second: 100,
            handshake_ns: HANDSHAKE_NS,
            errors_reported: false,
        }
    }
}

/// What the table counts beside the ends that it yields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowStats {
    /// Connections forgotten because the table was full; their ends come with an unknown start.
    pub evicted: u64,
    /// Connections older than the probe, or whose beginning was lost, found among the kernel's sockets.
    pub found: u64,
    /// Connections that ended because their socket was found to be gone.
    pub gone: u64,
    /// SYNs forgotten because the table of embryonic connections was full.
    pub embryos_evicted: u64,
    /// SYNs that no accepted socket followed, and that nothing else can be said of.
    pub embryos_unfinished: u64,
    /// Failed handshakes past the budget of their second.
    pub handshakes_unreported: u64,
}

/// All connections that are open or about to be reported.
#[derive(Debug)]
pub struct FlowTable {
    settings: FlowSettings,
    reorder: Reorder,
    connections: LinkedHashMap<u64, Connection>,
    /// The cookies of [`Self::connections`] by cgroup.
    shares: Shares<u64>,
    embryos: Embryos,
    errors: Errors,
    /// Over, and not reported yet.
    closing: DueTimes,
    /// Reported: only a SYN opens another connection of such a socket.
    concluded: Concluded,
    lost: Lost,
    /// Connections forgotten, by the cgroup that held too many.
    evicted: Losses,
    /// Until when it is known whether events were lost: nothing later is judged.
    checked_ns: u64,
    /// When a look at the kernel's sockets would tell something.
    look_at_ns: Option<u64>,
    generation: u64,
    stats: FlowStats,
}

impl FlowTable {
    /// An empty table.
    pub fn new(settings: FlowSettings) -> Self {
        let settings = FlowSettings { max: settings.max.max(1), ..settings };
        Self {
            settings,
            reorder: Reorder::default(),
            connections: LinkedHashMap::new(),
            shares: Shares::default(),
            embryos: Embryos::new(&settings),
            errors: Errors::new(),
            closing: DueTimes::default(),
            concluded: Concluded::new(),
            lost: Lost::new(),
            evicted: Losses::new(NAMED_LOSERS),
            checked_ns: u64::MAX,
            look_at_ns: None,
            generation: 0,
            stats: FlowStats::default(),
        }
    }

    /// Connections in the table.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there is no connection.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// What was counted so far.
    pub const fn stats(&self) -> FlowStats {
        self.stats
    }

    /// Which cgroups' connections were forgotten, because these held more than their share of a full table.
    pub const fn evicted(&self) -> &Losses {
        &self.evicted
    }

    /// Which cgroups' handshakes were forgotten or not reported, because there were too many of them.
    pub const fn handshakes_lost(&self) -> &Losses {
        self.embryos.lost()
    }

    /// Takes in one event. Events may come up to [`REORDER_NS`] late.
    pub fn apply(&mut self, event: &Event, out: &mut impl FnMut(FlowEvent)) {
        let time_ns = match event {
            Event::Tcp(_, tcp) => tcp.time_ns,
            Event::Error(error) => error.time_ns,
            Event::Process(..) => return,
        };
        self.reorder.push(time_ns, *event);
        while let Some(event) = self.reorder.pop(0) {
            self.step(&event, out);
        }
    }

    /// Goes on to `now_ns` (`CLOCK_BOOTTIME`): everything that happened by then must have been applied.
    pub fn tick(&mut self, now_ns: u64, out: &mut impl FnMut(FlowEvent)) {
        while let Some(event) = self.reorder.pop(now_ns) {
            self.step(&event, out);
        }
        self.settle(now_ns.saturating_sub(REORDER_NS), out);
    }

    /// Reports every connection that is over, without waiting; for the end of the program.
    pub fn finish(&mut self, out: &mut impl FnMut(FlowEvent)) {
        while let Some(event) = self.reorder.pop(u64::MAX) {
            self.step(&event, out);
        }
        while let Some(due) = self.closing.pop(u64::MAX) {
            self.conclude_if(due.cookie, due.generation, out);
        }
    }

    /// Reports every connection that is over, and every other one as [`Reason::Open`], ended by nobody;
    /// for the end of a capture.
    pub fn finish_open(&mut self, out: &mut impl FnMut(FlowEvent)) {
        self.finish(out);
        while let Some((cookie, connection)) = self.connections.pop_front() {
            self.shares.remove(connection.cgroup_id, &cookie);
            out(FlowEvent::End(verdict::snapshot(&connection, connection.last_ns(), None)));
        }
    }

    /// Hands over all that is known, for a table that goes on where this one was. It is empty then.
    pub fn hand_over(&mut self) -> KeptFlows {
        let (waiting, newest_ns) = self.reorder.hand_over();
        KeptFlows {
            waiting,
            newest_ns,
            connections: self.connections.drain().map(|(_, connection)| connection).collect(),
            embryos: self.embryos.hand_over(),
            errors: self.errors.hand_over(),
            closing: self.closing.hand_over(),
            concluded: self.concluded.hand_over(),
            lost: self.lost.hand_over(),
            look_at_ns: self.look_at_ns,
            generation: self.generation,
        }
    }

    /// Goes on where another table was. Where there is room for fewer now, those idle for longest are forgotten.
    pub fn take_in(&mut self, kept: KeptFlows) {
        let KeptFlows {
            waiting,
            newest_ns,
            connections,
            embryos,
            errors,
            closing,
            concluded,
            lost,
            look_at_ns,
            generation,
        } = kept;
        self.reorder.take_in(&waiting, newest_ns);
        let too_many = connections.len().saturating_sub(self.settings.max);
        self.stats.evicted += too_many as u64;
        let connections = connections.into_iter().skip(too_many);
        for connection in connections {
            self.shares.add(connection.cgroup_id, connection.cookie);
            if connection.settling().is_some() {
                self.shares.spare(connection.cgroup_id, connection.cookie);
            }
            self.connections.insert(connection.cookie, connection);
        }
        self.embryos.take_in(embryos, &mut self.stats);
        self.errors.take_in(errors);
        self.closing.take_in(closing);
        self.concluded.take_in(concluded);
        self.lost.take_in(lost);
        self.look_at_ns = look_at_ns;
        self.generation = generation;
    }

    /// Says that events were lost, at the latest at `at_ns`. What is not seen proves nothing for the connections that
    /// they may have been of.
    pub fn note_loss(&mut self, of: LostOf, at_ns: u64) {
        match of {
            LostOf::Anybody => self.lost.note(None, at_ns),
            LostOf::Holder(holder) => self.lost.note(Some(holder), at_ns),
            // Of a connection that ends by an error alone; its CLOSE is seen all the same.
            LostOf::Errors => return self.errors.note_loss(at_ns),
        }
        // What was lost may have been an end, or a beginning.
        self.want_look(at_ns);
    }

    /// Says until when losses are known: what happened later waits. Without it, all are known.
    pub const fn note_checked(&mut self, at_ns: u64) {
        self.checked_ns = at_ns;
    }

    /// Says until when establishments may go unheard: somewhere is no sockops program. A handshake that began by
    /// then proves nothing by its silence.
    pub const fn note_unheard(&mut self, until_ns: u64) {
        self.lost.unheard_ns = until_ns;
    }

    /// The cookies that a look has to watch for in TIME-WAIT.
    pub fn may_time_wait(&self) -> impl Iterator<Item = u64> {
        self.connections.iter().filter(|(_, c)| c.may_time_wait()).map(|(cookie, _)| *cookie)
    }

    /// Whether a look at the kernel's sockets is wanted at `now_ns`, before the periodic one.
    pub fn wants_look(&self, now_ns: u64) -> bool {
        self.look_at_ns.is_some_and(|at| at <= now_ns)
    }

    /// Takes in a look at the kernel's sockets. Every event up to [`REORDER_NS`] after its end must have
    /// been applied: a socket that is new to the table is then older than the probe.
    pub fn look(&mut self, census: &Census, out: &mut impl FnMut(FlowEvent)) {
        // One that was begun too early tells nothing of what it was wanted for.
        self.look_at_ns = self.look_at_ns.filter(|at| *at > census.begun_ns);
        while let Some(event) = self.reorder.pop(census.done_ns + REORDER_NS) {
            self.step(&event, out);
        }
        for socket in &census.sockets {
            if socket.state == TcpState::TimeWait {
                if let Some(connection) = self.connections.get_mut(&socket.cookie) {
                    connection.look_at_minisocket(socket);
                }
                continue;
            }
            self.look_at(socket, census, out);
        }
        self.miss(census);
    }

    /// A socket that is there.
    fn look_at(&mut self, socket: &OpenSocket, census: &Census, out: &mut impl FnMut(FlowEvent)) {
        let is_new = !self.connections.contains_key(&socket.cookie);
        if is_new {
            let is_wanted = socket.watched
                && socket.is_connection()
                && !self.concluded.contains(socket.cookie)
                // It may be one that was reported since, and forgotten.
                && census.begun_ns > self.concluded.forgotten_ns()
                // Nobody is forgotten for one who may have been forgotten before.
                && self.connections.len() < self.settings.max;
            if !is_wanted {
                return;
            }
            self.generation += 1;
            self.stats.found += 1;
            let found = Connection::found(socket, census.begun_ns, self.generation);
            self.shares.add(found.cgroup_id, socket.cookie);
            self.connections.insert(socket.cookie, found);
        }
        let Some(connection) = self.connections.get_mut(&socket.cookie) else { return };
        let cgroup_before = connection.cgroup_id;
        connection.look(socket, census.begun_ns);
        if connection.cgroup_id != cgroup_before {
            self.shares.remove(cgroup_before, &socket.cookie);
            self.shares.add(connection.cgroup_id, socket.cookie);
        }
        if is_new || (cgroup_before == 0 && connection.cgroup_id != 0) {
            out(FlowEvent::Opened(connection.opened()));
        }
        let Some(interval_ns) = self.settings.progress_ns else { return };
        // Whole intervals of its life: a late look does not put off the next one.
        let age_ns = census.done_ns.saturating_sub(connection.start_ns());
        let intervals = age_ns / interval_ns.max(1);
        if connection.closed.is_none() && intervals > connection.looked.intervals {
            connection.looked.intervals = intervals;
            let running = socket.running.as_ref();
            out(FlowEvent::Progress(verdict::snapshot(connection, census.done_ns, running)));
        }
    }

    /// The connections whose sockets are not there.
    fn miss(&mut self, census: &Census) {
        let mut again = false;
        for (cookie, connection) in &mut self.connections {
            let looked_everywhere = if connection.netns == 0 {
                census.complete
            } else {
                census.namespaces.contains(&connection.netns)
                    // Nobody can look there, and its CLOSE may have been lost.
                    || (census.deserted.contains(&connection.netns)
                        && may_have_lost_events(connection, self.lost.until_ns(connection.cgroup_id, connection.netns)))
            };
            if census.open.contains(cookie)
                || !looked_everywhere
                || connection.last_ns() >= census.begun_ns
                || connection.settling().is_some()
            {
                continue;
            }
            if connection.looked.missed == 0 {
                connection.looked.missed_ns = census.done_ns;
            }
            connection.looked.missed += 1;
            if connection.looked.missed < LOOKS {
                again = true;
                continue;
            }
            connection.looked.gone = true;
            self.shares.spare(connection.cgroup_id, *cookie);
            self.stats.gone += 1;
            self.closing.push(census.done_ns, 0, *cookie, connection.generation);
        }
        if again {
            self.want_look(census.done_ns + LOOK_AGAIN_NS);
        }
    }

    fn want_look(&mut self, at_ns: u64) {
        self.look_at_ns = Some(self.look_at_ns.map_or(at_ns, |before| before.min(at_ns)));
    }

    /// One event, in the order of time.
    fn step(&mut self, event: &Event, out: &mut impl FnMut(FlowEvent)) {
        match event {
            Event::Tcp(kind, tcp) => {
                self.settle(tcp.time_ns, out);
                if connection::is_of_listener(event) {
                    self.embryos.apply(*kind, tcp, &mut self.stats);
                } else {
                    self.step_connection(*kind, tcp, out);
                }
            }
            Event::Error(error) => self.errors.observe(error),
            Event::Process(..) => {}
        }
    }

    /// Reports what is due.
    fn settle(&mut self, now_ns: u64, out: &mut impl FnMut(FlowEvent)) {
        let now_ns = now_ns.min(self.checked_ns);
        while let Some(due) = self.closing.pop(now_ns) {
            self.conclude_if(due.cookie, due.generation, out);
        }
        self.embryos
            .expire(now_ns, &self.lost, &mut self.stats, &mut |end| out(FlowEvent::End(end)));
    }

    fn step_connection(
        &mut self,
        kind: EventKind,
        event: &TcpEvent,
        out: &mut impl FnMut(FlowEvent),
    ) {
        let mut embryo = None;
        if kind == EventKind::PassiveEstablished {
            embryo = self.embryos.take(event);
        }
        // To the back: the front is the one idle for longest. One look-up serves the common case.
        let mut is_new = false;
        let connection = match self.connections.to_back(&event.cookie) {
            Some(connection) if !connection.is_reopened_by(event) => connection,
            _ => {
                self.conclude(event.cookie, out);
                if !opens(kind, event)
                    || (!begins(kind, event) && self.concluded.contains(event.cookie))
                {
                    return;
                }
                self.concluded.remove(event.cookie);
                // Sockops cannot tell the cgroup; of an accepted socket the listener could.
                let cgroup_id = embryo.as_ref().map_or(event.cgroup_id, |e| e.cgroup_id);
                self.make_room(cgroup_id, out);
                self.generation += 1;
                is_new = true;
                let new = Connection::new(event, self.generation);
                self.shares.add(new.cgroup_id, event.cookie);
                self.connections.entry(event.cookie).or_insert(new)
            }
        };
        let cgroup_before = connection.cgroup_id;
        if let Some(embryo) = embryo {
            connection.adopt(embryo);
        } else if matches!(kind, EventKind::SegmentIn | EventKind::SegmentOut)
            && connection.may_be_unheard()
            && let Some(embryo) = self.embryos.take(event)
        {
            connection.adopt_unheard(embryo, event);
        }
        let before = connection.settling();
        let was_established = connection.established.is_some();
        // Of an adopted one, the listener's is known by now.
        let had_no_cgroup = connection.cgroup_id == 0;
        connection.apply(kind, event);
        let settling = connection.settling();
        let has_moved = connection.cgroup_id != cgroup_before;
        if has_moved {
            self.shares.remove(cgroup_before, &event.cookie);
            self.shares.add(connection.cgroup_id, event.cookie);
        }
        if settling.is_some() && (has_moved || before.is_none()) {
            self.shares.spare(connection.cgroup_id, event.cookie);
        }
        if is_new || (had_no_cgroup && connection.cgroup_id != 0) {
            out(FlowEvent::Opened(connection.opened()));
        }
        if self.settings.begins && !was_established && connection.established.is_some() {
            out(FlowEvent::Begin(verdict::snapshot(connection, event.time_ns, None)));
        }
        if let Some(wait) = settling
            && settling != before
        {
            self.closing.push(event.time_ns, wait, event.cookie, connection.generation);
        }
        if connection.needs_look() {
            self.want_look(event.time_ns + LOOK_AGAIN_NS);
        }
    }

    /// Makes room for a connection of this cgroup, at the cost of whoever holds more than its share: one that is
    /// over is reported without waiting longer, and only where there is none the oldest is forgotten.
    fn make_room(&mut self, cgroup_id: u64, out: &mut impl FnMut(FlowEvent)) {
        while self.connections.len() >= self.settings.max {
            let Some(holder) = self.shares.gives_way(cgroup_id) else { return };
            let Some(cookie) = self.shares.oldest(holder) else { return };
            if self.connections.get(&cookie).is_some_and(|oldest| oldest.settling().is_some()) {
                // What was still to come is as good as lost.
                self.conclude_with(cookie, u64::MAX, out);
            } else {
                self.shares.remove(holder, &cookie);
                self.connections.remove(&cookie);
                self.stats.evicted += 1;
                self.evicted.add(holder, 1);
            }
        }
    }

    fn conclude_if(&mut self, cookie: u64, generation: u64, out: &mut impl FnMut(FlowEvent)) {
        // Without its CLOSE, it may have turned out to go on.
        let is_over = |c: &Connection| {
            let is_closed = c.closed.is_some() || c.looked.gone;
            c.generation == generation && (is_closed || c.settling().is_some())
        };
        if self.connections.get(&cookie).is_some_and(is_over) {
            self.conclude(cookie, out);
        }
    }

    fn conclude(&mut self, cookie: u64, out: &mut impl FnMut(FlowEvent)) {
        self.conclude_with(cookie, 0, out);
    }

    /// Where events may be missing until `missing_ns`, beside those that the ring lost.
    fn conclude_with(&mut self, cookie: u64, missing_ns: u64, out: &mut impl FnMut(FlowEvent)) {
        let Some(connection) = self.connections.remove(&cookie) else { return };
        self.shares.remove(connection.cgroup_id, &cookie);
        self.concluded.insert(cookie, self.reorder.newest_ns());
        let rst_ns = connection.rst_out.map(|rst| rst.time_ns);
        let closed_ns = connection.closed.map(|closed| closed.time_ns).or(rst_ns);
        let ends = (connection.local, connection.remote);
        let error = match closed_ns {
            Some(at_ns) => self.errors.of(ends, connection.syn_ns.unwrap_or(0), at_ns),
            // Where CLOSE is not seen, the error is what tells of it.
            None => self.errors.since(ends, connection.last_ns()),
        };
        let lost_ns = self.lost.until_ns(connection.cgroup_id, connection.netns).max(missing_ns);
        let error_forgotten = error.is_none()
            && self.errors.may_have_forgotten(closed_ns.unwrap_or_else(|| connection.last_ns()));
        let context = Context {
            lossy: may_have_lost_events(&connection, lost_ns),
            lost_ns,
            error: error.map(|e| e.errno),
            error_ns: error.map(|e| e.time_ns),
            error_forgotten,
            errors_reported: self.settings.errors_reported,
        };
        out(FlowEvent::End(verdict::conclude(&connection, &context)));
    }
}

/// Whether an event of this connection may be among those that were lost until `lost_ns`. Of one whose
/// beginning was not seen, what came just before its first sight may be lost, too.
fn may_have_lost_events(connection: &Connection, lost_ns: u64) -> bool {
    let margin_ns = if connection.begins_seen() { 0 } else { BLIND_NS };
    lost_ns > 0 && connection.first_seen_ns <= lost_ns.saturating_add(margin_ns)
}

/// Whether an event of an unknown socket is a connection's: a SYN-ACK or SYN that comes in is not
/// yet one, and a listener that is closed never was one.
const fn opens(kind: EventKind, event: &TcpEvent) -> bool {
    match kind {
        EventKind::SegmentIn => event.flags & SYN == 0,
        EventKind::Closed => {
            event.state != TcpState::Listen as u8 && event.state != TcpState::Close as u8
        }
        EventKind::SegmentOut
        | EventKind::ActiveEstablished
        | EventKind::PassiveEstablished
        | EventKind::GaveUp => true,
        EventKind::Error
        | EventKind::Connect
        | EventKind::Bind
        | EventKind::DnsQuery
        | EventKind::DnsAnswer
        | EventKind::DnsStreamOut
        | EventKind::DnsStreamIn => false,
    }
}

/// Whether an event begins a connection on a socket that had one before: its SYN, or, with that lost,
/// its establishment.
const fn begins(kind: EventKind, event: &TcpEvent) -> bool {
    matches!(kind, EventKind::ActiveEstablished) || event.is_syn_sent()
}

#[cfg(test)]
mod tests;
