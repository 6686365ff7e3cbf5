//! The data path, top to bottom: source, flow, enrich, sample, and into the queue of each output.
//!
//! One task owns all of it. It never waits for an output.

use std::sync::Arc;

use flowend_probe_types::{Event, RingItem, TcpEvent};
use hashlink::LruCache;
use ipnet::IpNet;

use crate::community_id::CommunityId;
use crate::dns::{Dns, Scope};
use crate::enrich::{Process, Processes, Workloads};
use crate::export::{OwnSockets, Queue};
use crate::flow::{ConnectionEnd, FlowEvent, FlowSettings, FlowTable};
use crate::ids::Ids;
use crate::ledger::Ledger;
use crate::look::Look;
use crate::record::{Record, RecordKind};
use crate::sample::Sampler;

/// Everything between the events and the queues.
#[derive(Debug)]
pub struct Pipeline {
    flows: FlowTable,
    stages: Stages,
    read_ns: u64,
}

/// What makes a record of what the flow table yields.
#[derive(Debug)]
pub struct Stages {
    /// Connection to process.
    pub processes: Processes,
    /// cgroup to workload.
    pub workloads: Workloads,
    /// Address to names.
    pub dns: Dns,
    /// The names of the peer as they stood when a socket connected.
    pub opened: OpenedNames,
    /// flowend's own sockets.
    pub own: OwnSockets,
    /// Derives ids.
    pub ids: Ids,
    /// Makes Community IDs, where they are asked for.
    pub community_id: Option<CommunityId>,
    /// Peers whose CLIENT spans somebody sends.
    pub peer_cidrs: Vec<IpNet>,
    /// Which records are kept.
    pub sampler: Sampler,
    /// What became of each end, begin and progress.
    pub ledger: Arc<Ledger>,
    /// One for each output and signal.
    pub queues: Vec<Arc<Queue<Arc<Record>>>>,
}

impl Pipeline {
    /// With an empty flow table.
    pub fn new(flows: FlowSettings, stages: Stages) -> Self {
        Self { flows: FlowTable::new(flows), stages, read_ns: 0 }
    }

    /// Takes in one record of the ring. `boot_to_unix_ns` turns its clock into wall time.
    pub fn item(&mut self, item: &RingItem<'_>, boot_to_unix_ns: u64) {
        match item {
            RingItem::Event(event) => self.event(event, boot_to_unix_ns),
            RingItem::Dns(kind, facts, message) => {
                self.stages.dns.observe(*kind, facts, message, Scope(facts.cgroup_id))
            }
        }
    }

    /// Takes in one event. `boot_to_unix_ns` turns its clock into wall time.
    pub fn event(&mut self, event: &Event, boot_to_unix_ns: u64) {
        match event {
            Event::Process(kind, process) => self.stages.processes.observe(*kind, process),
            Event::Tcp(_, tcp) => {
                self.stages.workloads.observe(tcp.cgroup_id);
                self.stages.opened.observe(tcp, &self.stages.dns);
                let stages = &mut self.stages;
                self.flows.apply(event, &mut |flow| stages.take(flow, boot_to_unix_ns));
            }
            Event::Error(_) => {
                let stages = &mut self.stages;
                self.flows.apply(event, &mut |flow| stages.take(flow, boot_to_unix_ns));
            }
        }
    }

    /// Reports what is due at `now_ns`.
    pub fn tick(&mut self, now_ns: u64, boot_to_unix_ns: u64) {
        self.read_ns = now_ns;
        let stages = &mut self.stages;
        self.flows.tick(now_ns, &mut |flow| stages.take(flow, boot_to_unix_ns));
    }

    /// Takes in a look at the kernel's sockets. The ring must have been read to its end since.
    pub fn look(&mut self, look: &Look, boot_to_unix_ns: u64) {
        let census = &look.census;
        for (cookie, pid) in &look.owners {
            self.stages.processes.found(*cookie, *pid);
        }
        for socket in census.sockets.iter().filter(|socket| socket.watched) {
            self.stages.workloads.observe(socket.cgroup_id.unwrap_or(0));
        }
        let stages = &mut self.stages;
        self.flows.look(census, &mut |flow| stages.take(flow, boot_to_unix_ns));
    }

    /// Says until when it is known whether the ring lost events.
    pub const fn note_checked(&mut self, at_ns: u64) {
        self.flows.note_checked(at_ns);
    }

    /// Says that the ring lost events, at the latest at `at_ns`.
    pub fn note_loss(&mut self, at_ns: u64) {
        self.flows.note_loss(at_ns);
    }

    /// Reports every connection that is over, and closes the queues.
    pub fn finish(&mut self, boot_to_unix_ns: u64) {
        let stages = &mut self.stages;
        self.flows.finish(&mut |flow| stages.take(flow, boot_to_unix_ns));
        for queue in &self.stages.queues {
            queue.close();
        }
    }

    /// What became of the DNS messages.
    pub const fn dns(&self) -> &Dns {
        &self.stages.dns
    }

    /// Until when everything that happened has been read, ns.
    pub const fn read_ns(&self) -> u64 {
        self.read_ns
    }

    /// The connections being followed.
    pub const fn flows(&self) -> &FlowTable {
        &self.flows
    }
}

/// The names of the peer at the SYN: a long connection keeps the name it was opened by. By cookie and
/// time of the SYN, since a cookie is not a connection. Bounded; only connections whose peer has a name
/// take room, until they end.
#[derive(Debug)]
pub struct OpenedNames(LruCache<(u64, u64), Vec<Arc<str>>>);

impl OpenedNames {
    /// For at most `limit` connections.
    pub fn new(limit: usize) -> Self {
        Self(LruCache::new(limit.max(1)))
    }

    fn observe(&mut self, event: &TcpEvent, dns: &Dns) {
        let is_first_syn = event.is_syn_sent() && event.total_retrans == 0;
        if !is_first_syn {
            return;
        }
        let names = dns.names(&[Scope(event.cgroup_id)], event.remote, event.time_ns);
        if !names.is_empty() {
            self.0.insert((event.cookie, event.time_ns), names);
        }
    }

    /// What was taken at the SYN of just this connection; it stays for the connection's end.
    fn get(&self, end: &ConnectionEnd) -> Option<Vec<Arc<str>>> {
        self.0.peek(&(end.cookie, end.start_ns)).cloned()
    }

    /// What was taken at the SYN of just this connection, which is over.
    fn take(&mut self, end: &ConnectionEnd) -> Option<Vec<Arc<str>>> {
        self.0.remove(&(end.cookie, end.start_ns))
    }
}

impl Stages {
    fn take(&mut self, flow: FlowEvent, boot_to_unix_ns: u64) {
        let (kind, end) = match flow {
            FlowEvent::Begin(end) => (RecordKind::Begin, end),
            FlowEvent::Progress(end) => (RecordKind::Progress, end),
            FlowEvent::End(end) => (RecordKind::End, end),
        };
        self.record(kind, end, boot_to_unix_ns);
    }

    /// Makes a record and hands it to each output that gets its kind. What the end of a connection
    /// needs is left in place by its begin and progresses.
    fn record(&mut self, kind: RecordKind, end: ConnectionEnd, boot_to_unix_ns: u64) {
        self.ledger.of(kind).seen.add(1);
        let (is_own_socket, opened) = match kind {
            RecordKind::End => (self.own.take(end.cookie), self.opened.take(&end)),
            RecordKind::Begin | RecordKind::Progress => {
                (self.own.contains(end.cookie), self.opened.get(&end))
            }
        };
        let process = self.processes.of(&end);
        if is_own_socket || self.is_own_process(&end, process.as_ref()) {
            self.ledger.of(kind).filtered_self.add(1);
            return;
        }
        let ids = self.ids.of(&end);
        let Some(sampling_probability) = self.sampler.keep(ids.trace_id, end.reason) else {
            self.ledger.of(kind).sampled_out.add(1);
            return;
        };
        let (local_names, remote_names) = self.names(&end, opened);
        let workload = self.workloads.of(end.cgroup_id, process.as_ref());
        let parent_span_id = ids.client_span_id.filter(|_| self.sends_spans(&end));
        let community_id = self.community_id.map(|id| id.of(end.local, end.remote));
        let record = Arc::new(Record {
            kind,
            ids,
            parent_span_id,
            workload,
            process,
            local_names,
            remote_names,
            community_id,
            sampling_probability,
            start_unix_ns: end.start_ns + boot_to_unix_ns,
            end_unix_ns: end.end_ns + boot_to_unix_ns,
            end,
        });
        for queue in self.queues.iter().filter(|q| q.ledger().events.contains(kind)) {
            queue.push(Arc::clone(&record));
        }
    }

    /// The names of both sides as they stood at the start. What is learnt later, or has lapsed since
    /// without a snapshot, leaves them out.
    fn names(
        &self,
        end: &ConnectionEnd,
        opened: Option<Vec<Arc<str>>>,
    ) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
        let names = |addr| match end.cgroup_id {
            Some(cgroup) => self.dns.names(&[Scope(cgroup)], addr, end.start_ns),
            None => Vec::new(),
        };
        (names(end.local.addr), opened.unwrap_or_else(|| names(end.remote.addr)))
    }

    /// A connection that flowend's process opened by other means than its exporters: a lookup by TCP.
    fn is_own_process(&self, end: &ConnectionEnd, process: Option<&Process>) -> bool {
        end.listener.is_none() && process.is_some_and(|p| self.processes.is_own(p))
    }

    /// Whether the peer is where another flowend runs.
    fn sends_spans(&self, end: &ConnectionEnd) -> bool {
        let peer = end.remote.ip();
        self.peer_cidrs.iter().any(|range| range.contains(&peer))
    }
}

#[cfg(test)]
mod tests;
