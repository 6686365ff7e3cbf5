//! Embryonic connections: a SYN that a listener received, until the accepted socket is established or
//! the kernel has given it up.
//!
//! Their segments carry the listener's cookie, so the client's ISN is what tells them apart; address
//! translation does not rewrite it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use flowend_probe_types::{ACK, EventKind, FIN, RST, SYN, TcpEvent};
use hashlink::LinkedHashMap;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::connection::{Candidate, isn_of_peer};
use super::end::{ConnectionEnd, Counters, Direction, Endpoint, Isns, Reason, Rtt, Side};
use super::kept::KeptEmbryos;
use super::lost::Lost;
use super::{FlowSettings, FlowStats};
use crate::fair::{Losses, NAMED_LOSERS, Shares};

/// How long a handshake may take, ns: longer than the kernel answers a SYN (tcp_synack_retries = 5: 63 s).
///
/// Silence alone is no proof before that. With TCP_DEFER_ACCEPT a listener waits for data, and with SYN
/// cookies for the ACK, and neither sends the SYN-ACK again.
pub const HANDSHAKE_NS: u64 = 130_000_000_000;

/// After a client's RST in place of the ACK nothing follows within this time, ns, unless TCP refused it.
const RESET_NS: u64 = 2_000_000_000;

/// Embryonic connections remembered for one ISN. Clients choose it at random: more than two is an attack.
pub(super) const SAME_ISN: usize = 4;

/// A SYN that a listener received.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Embryo {
    pub(super) listener: u64,
    pub(super) cgroup_id: u64,
    pub(super) local: Endpoint,
    pub(super) remote: Endpoint,
    pub(super) syn_ns: u64,
    pub(super) syn_ack: Option<SynAck>,
    /// The ACK that completes the handshake may carry the client's FIN.
    pub(super) fin: Option<Candidate>,
    rst_ns: Option<u64>,
    /// Last segment of the handshake.
    last_ns: u64,
}

/// The SYN-ACK that answered.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct SynAck {
    /// The first one.
    pub(super) time_ns: u64,
    /// ISN of the own side.
    pub(super) isn: u32,
}

/// All embryonic connections, by the client's ISN.
#[derive(Debug)]
pub(super) struct Embryos {
    by_isn: LinkedHashMap<u32, SameIsn>,
    /// The ISNs of [`Self::by_isn`] by cgroup.
    shares: Shares<u32>,
    /// Forgotten or not reported, by cgroup.
    lost: Losses,
    limit: usize,
    handshake_ns: u64,
    /// Reset by the client: due time and ISN. Entries may be stale.
    due: BinaryHeap<Reverse<(u64, u32)>>,
    budget: Budget,
}

/// The embryonic connections with one ISN: one, unless somebody forges them.
#[derive(Debug)]
struct SameIsn {
    /// The cgroup that the place in the table counts for: that of the first one.
    holder: u64,
    embryos: SmallVec<[Embryo; 1]>,
}

/// How many failed handshakes of one cgroup are reported in one second.
#[derive(Debug)]
struct Budget {
    per_second: u32,
    second: u64,
    spent: HashMap<u64, u32>,
}

impl Budget {
    fn take(&mut self, cgroup_id: u64, now_ns: u64) -> bool {
        let second = now_ns / 1_000_000_000;
        if second != self.second {
            self.second = second;
            self.spent.clear();
        }
        let spent = self.spent.entry(cgroup_id).or_default();
        let has = *spent < self.per_second;
        *spent += u32::from(has);
        has
    }
}

impl Embryos {
    /// At most `settings.max` different ISNs.
    pub(super) fn new(settings: &FlowSettings) -> Self {
        let per_second = settings.handshakes_failed_per_second;
        Self {
            by_isn: LinkedHashMap::new(),
            shares: Shares::default(),
            lost: Losses::new(NAMED_LOSERS),
            limit: settings.max,
            handshake_ns: settings.handshake_ns,
            due: BinaryHeap::new(),
            budget: Budget { per_second, second: 0, spent: HashMap::new() },
        }
    }

    /// Hands over all that is known.
    pub(super) fn hand_over(&mut self) -> KeptEmbryos {
        KeptEmbryos {
            by_isn: self.by_isn.drain().map(|(isn, same)| (isn, same.embryos.into_vec())).collect(),
            due: self.due.drain().map(|Reverse(due)| due).collect(),
        }
    }

    /// Takes it in again; the oldest are forgotten where there is less room now.
    pub(super) fn take_in(&mut self, kept: KeptEmbryos, stats: &mut FlowStats) {
        let KeptEmbryos { by_isn, due } = kept;
        let too_many = by_isn.len().saturating_sub(self.limit);
        for (n, (isn, embryos)) in by_isn.into_iter().enumerate() {
            if n < too_many {
                stats.embryos_evicted += embryos.len() as u64;
            } else {
                let holder = embryos.first().map_or(0, |embryo| embryo.cgroup_id);
                self.shares.add(holder, isn);
                self.by_isn.insert(isn, SameIsn { holder, embryos: embryos.into() });
            }
        }
        self.due.extend(due.into_iter().take(self.limit).map(Reverse));
    }

    /// A segment at a listener.
    pub(super) fn apply(&mut self, kind: EventKind, event: &TcpEvent, stats: &mut FlowStats) {
        match (kind, event.flags & (SYN | ACK | FIN | RST)) {
            (EventKind::SegmentIn, SYN) => self.syn_received(event, stats),
            (EventKind::SegmentOut, flags) if flags == SYN | ACK => self.syn_ack_sent(event),
            (EventKind::SegmentIn, flags) if flags & SYN == 0 && flags & (FIN | RST) != 0 => {
                self.closing_received(event);
            }
            // The own RST answers a stranger, or data of one whose embryo is dead.
            _ => {}
        }
    }

    fn syn_received(&mut self, event: &TcpEvent, stats: &mut FlowStats) {
        let embryo = Embryo {
            listener: event.cookie,
            cgroup_id: event.cgroup_id,
            local: Endpoint::local_of(event),
            remote: Endpoint::remote_of(event),
            syn_ns: event.time_ns,
            syn_ack: None,
            fin: None,
            rst_ns: None,
            last_ns: event.time_ns,
        };
        if self.by_isn.len() >= self.limit && !self.by_isn.contains_key(&event.seq) {
            self.make_room(event.cgroup_id, stats);
        }
        let shares = &mut self.shares;
        let SameIsn { embryos: same_isn, .. } = self.by_isn.entry(event.seq).or_insert_with(|| {
            shares.add(event.cgroup_id, event.seq);
            SameIsn { holder: event.cgroup_id, embryos: SmallVec::new() }
        });
        // A retransmitted SYN changes nothing: the connection began with the first one.
        if !same_isn.iter().any(|e| e.is_of(event)) {
            if same_isn.len() == SAME_ISN {
                same_isn.remove(0);
                stats.embryos_evicted += 1;
            }
            same_isn.push(embryo);
            // The oldest ISN in front: expiry looks no further than the first that is young.
            self.by_isn.to_back(&event.seq);
        }
    }

    /// The oldest one goes of whoever holds more than its share.
    fn make_room(&mut self, cgroup_id: u64, stats: &mut FlowStats) {
        let Some(holder) = self.shares.gives_way(cgroup_id) else { return };
        let Some(isn) = self.shares.oldest(holder) else { return };
        let evicted = self.remove(isn).map_or(0, |all| all.embryos.len() as u64);
        stats.embryos_evicted += evicted;
        self.lost.add(holder, evicted);
    }

    /// All with one ISN.
    fn remove(&mut self, isn: u32) -> Option<SameIsn> {
        let all = self.by_isn.remove(&isn)?;
        self.shares.remove(all.holder, &isn);
        Some(all)
    }

    /// Which cgroups' were forgotten or not reported.
    pub(super) const fn lost(&self) -> &Losses {
        &self.lost
    }

    /// At egress a translated packet may show other addresses: ISN and listener are what matches.
    fn syn_ack_sent(&mut self, event: &TcpEvent) {
        let isn = event.ack.wrapping_sub(1);
        let Some(SameIsn { embryos: same_isn, .. }) = self.by_isn.get_mut(&isn) else { return };
        let of_listener = same_isn.iter().filter(|e| e.listener == event.cookie).count();
        // Of several with one ISN, none is guessed.
        let Some(embryo) = same_isn
            .iter_mut()
            .find(|e| e.listener == event.cookie && (e.is_of(event) || of_listener == 1))
        else {
            return;
        };
        embryo.last_ns = embryo.last_ns.max(event.time_ns);
        embryo.syn_ack.get_or_insert(SynAck { time_ns: event.time_ns, isn: event.seq });
        // It lives: TCP has refused the RST.
        embryo.rst_ns = None;
    }

    /// A FIN or RST in place of the ACK, or with it: its sequence number is the one after the SYN.
    fn closing_received(&mut self, event: &TcpEvent) {
        let Some(same_isn) = self.by_isn.get_mut(&event.seq.wrapping_sub(1)) else { return };
        let Some(embryo) = same_isn.embryos.iter_mut().find(|e| e.is_of(event)) else { return };
        embryo.last_ns = embryo.last_ns.max(event.time_ns);
        if event.flags & RST != 0 {
            embryo.rst_ns.get_or_insert(event.time_ns);
            let due_ns = event.time_ns.saturating_add(RESET_NS);
            // Bounded: one that finds no place is reported with those that nobody answers.
            if self.due.len() < self.limit {
                self.due.push(Reverse((due_ns, event.seq.wrapping_sub(1))));
            }
        } else {
            embryo.fin.get_or_insert_with(|| Candidate::first_fin(event));
        }
    }

    /// The SYN of an accepted socket: same addresses and ports, and the ISN just before what the
    /// socket expects first. With Fast Open too: data of the SYN is counted after the callback
    /// (net/ipv4/tcp_fastopen.c, tcp_fastopen_create_child).
    pub(super) fn take(&mut self, event: &TcpEvent) -> Option<Embryo> {
        let isn = isn_of_peer(event);
        let same_isn = &mut self.by_isn.get_mut(&isn)?.embryos;
        let at = same_isn.iter().position(|e| e.is_of(event))?;
        let embryo = same_isn.remove(at);
        if same_isn.is_empty() {
            self.remove(isn);
        }
        Some(embryo)
    }

    /// Forgets what is too old, and hands out the handshakes that failed. `lost`: until when events
    /// were lost; what began before it may have been established unseen.
    pub(super) fn expire(
        &mut self,
        now_ns: u64,
        lost: &Lost,
        stats: &mut FlowStats,
        out: &mut impl FnMut(ConnectionEnd),
    ) {
        while let Some(Reverse((due, isn))) = self.due.peek().copied() {
            if due > now_ns {
                break;
            }
            self.due.pop();
            let Some(same_isn) = self.remove(isn) else { continue };
            let is_reset =
                |e: &Embryo| e.rst_ns.is_some_and(|at_ns| at_ns.saturating_add(RESET_NS) <= now_ns);
            self.fail(isn, same_isn, is_reset, now_ns, lost, stats, out);
        }
        while let Some((&isn, same_isn)) = self.by_isn.front() {
            let handshake_ns = self.handshake_ns;
            let is_dead = |e: &Embryo| e.syn_ns.saturating_add(handshake_ns) <= now_ns;
            if !same_isn.embryos.iter().any(is_dead) {
                break;
            }
            let Some(same_isn) = self.remove(isn) else { break };
            self.fail(isn, same_isn, is_dead, now_ns, lost, stats, out);
        }
    }

    /// Reports those of one ISN that have failed, and keeps the others.
    #[allow(clippy::too_many_arguments)] // the state of one expiry
    fn fail(
        &mut self,
        isn: u32,
        SameIsn { holder, embryos }: SameIsn,
        has_failed: impl Fn(&Embryo) -> bool,
        now_ns: u64,
        lost: &Lost,
        stats: &mut FlowStats,
        out: &mut impl FnMut(ConnectionEnd),
    ) {
        let mut left = SmallVec::new();
        for embryo in embryos {
            if !has_failed(&embryo) {
                left.push(embryo);
            } else if embryo.syn_ack.is_none()
                || embryo.syn_ns <= lost.establishments_until_ns(embryo.cgroup_id)
            {
                stats.embryos_unfinished += 1;
            } else if self.budget.take(embryo.cgroup_id, now_ns) {
                out(embryo.failed(isn));
            } else {
                stats.handshakes_unreported += 1;
                self.lost.add(embryo.cgroup_id, 1);
            }
        }
        if !left.is_empty() {
            self.shares.add(holder, isn);
            self.by_isn.insert(isn, SameIsn { holder, embryos: left });
        }
    }
}

impl Embryo {
    /// Whether the event has its addresses and ports.
    fn is_of(&self, event: &TcpEvent) -> bool {
        self.local == Endpoint::local_of(event) && self.remote == Endpoint::remote_of(event)
    }

    /// The record of a handshake that was never completed. `isn`: the client's.
    fn failed(&self, isn: u32) -> ConnectionEnd {
        let reset = self.rst_ns.map(|_| Side::Remote);
        ConnectionEnd {
            cookie: self.listener,
            listener: Some(self.listener),
            cgroup_id: (self.cgroup_id != 0).then_some(self.cgroup_id),
            direction: Direction::Incoming,
            local: self.local,
            remote: self.remote,
            start_ns: self.syn_ns,
            start_known: true,
            end_ns: self.last_ns,
            end_known: true,
            by: reset,
            reason: Reason::HandshakeFailed,
            reset_by: reset,
            conn_state: if reset.is_some() { "RSTO" } else { "S1" },
            history: if reset.is_some() { "ShR" } else { "Sh" }.into(),
            half_close_ns: None,
            counters: Counters {
                bytes_sent: Some(0),
                bytes_received: Some(0),
                ..Counters::default()
            },
            rtt: Rtt::default(),
            isns: self.syn_ack.map(|syn_ack| Isns { client: isn, server: syn_ack.isn }),
        }
    }
}
