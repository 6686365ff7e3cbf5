//! The data path, top to bottom: source, flow, enrich, sample, and into the queue of each output.
//!
//! One task owns all of it. It never waits for an output.

mod opened;

use std::sync::Arc;

use flowend_probe_types::{Addr, Event, RingItem};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::community_id::CommunityId;
use crate::config::Settings;
use crate::dns::{Dns, Scopes};
use crate::enrich::{
    Hosts, KeptProcesses, Process, Processes, Reverse, WorkloadSettings, Workloads,
};
use crate::exclude::Excluded;
use crate::export::{OwnSockets, Sinks};
use crate::fair::{Losses, LossesByName};
use crate::flow::{ConnectionEnd, FlowEvent, FlowSettings, FlowTable, KeptFlows, LostOf, Opened};
use crate::ids::Ids;
use crate::ledger::Ledger;
use crate::look::Look;
use crate::record::{Record, RecordKind};
use crate::sample::{Decision, Facts, Sampler};
use crate::telemetry::ConnectionCounts;

pub use opened::{KeptNames, Names, OpenedNames};

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
    /// Whom the names serve that a cgroup looked up.
    pub scopes: Scopes,
    /// Names from the workloads' own hosts files, where they are asked for.
    pub hosts: Option<Hosts>,
    /// Names by PTR, where they are asked for.
    pub reverse: Option<Reverse>,
    /// The names of open connections, as they stood when each was opened.
    pub opened: OpenedNames,
    /// flowend's own sockets.
    pub own: OwnSockets,
    /// Cgroups of which nothing is reported.
    pub excluded: Excluded,
    /// Derives ids.
    pub ids: Ids,
    /// Makes Community IDs, where they are asked for.
    pub community_id: Option<CommunityId>,
    /// Peers whose CLIENT spans somebody sends.
    pub peer_cidrs: Vec<IpNet>,
    /// Connections that ended, before sampling.
    pub connections: ConnectionCounts,
    /// Which records are kept.
    pub sampler: Sampler,
    /// What became of each end, begin and progress.
    pub ledger: Arc<Ledger>,
    /// Where records go.
    pub sinks: Sinks,
}

/// What is known of connections and their sockets, in a form that outlives the process.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Kept {
    /// The connections.
    pub flows: KeptFlows,
    /// The names by which they were opened.
    pub names: KeptNames,
    /// Processes by socket.
    pub processes: KeptProcesses,
    /// Cookies of flowend's own sockets, whose ends are still to be seen.
    pub own: Vec<u64>,
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
                let Stages { scopes, workloads, dns, .. } = &mut self.stages;
                let id = facts.cgroup_id;
                dns.observe(*kind, facts, message, scopes.learn(id, || workloads.path_of(id)));
            }
        }
    }

    /// Takes in one event. `boot_to_unix_ns` turns its clock into wall time.
    pub fn event(&mut self, event: &Event, boot_to_unix_ns: u64) {
        match event {
            Event::Process(kind, process) => {
                self.stages.processes.observe(*kind, process);
                self.stages.opened.asked(*kind, process);
            }
            Event::Tcp(_, tcp) => {
                self.stages.workloads.observe(tcp.cgroup_id);
                if let Some(hosts) = &self.stages.hosts {
                    hosts.observe(tcp.cgroup_id, tcp.time_ns);
                }
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
        stages.workloads.forget_observed();
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
            if let Some(hosts) = &self.stages.hosts {
                hosts.observe(socket.cgroup_id.unwrap_or(0), census.done_ns);
            }
        }
        let stages = &mut self.stages;
        self.flows.look(census, &mut |flow| stages.take(flow, boot_to_unix_ns));
    }

    /// Says until when it is known whether the ring lost events.
    pub const fn note_checked(&mut self, at_ns: u64) {
        self.flows.note_checked(at_ns);
    }

    /// Says that events were lost, at the latest at `at_ns`.
    pub fn note_loss(&mut self, of: LostOf, at_ns: u64) {
        self.flows.note_loss(of, at_ns);
    }

    /// Says until when establishments may go unheard.
    pub const fn note_unheard(&mut self, until_ns: u64) {
        self.flows.note_unheard(until_ns);
    }

    /// Reports every connection that is over, and closes the queues.
    pub fn finish(&mut self, boot_to_unix_ns: u64) {
        let stages = &mut self.stages;
        self.flows.finish(&mut |flow| stages.take(flow, boot_to_unix_ns));
        self.stages.sinks.close();
    }

    /// Hands over what is known of connections and their sockets, for a flowend that goes on with the same ring. What is
    /// over and not judged yet is among it. Nothing is known here any more.
    pub fn hand_over(&mut self) -> Kept {
        Kept {
            flows: self.flows.hand_over(),
            names: self.stages.opened.hand_over(),
            processes: self.stages.processes.hand_over(),
            own: self.stages.own.all(),
        }
    }

    /// Goes on where another flowend was. `ids` are derived as it did.
    pub fn take_in(&mut self, kept: Kept, ids: Ids) {
        for opened in kept.flows.opened() {
            if let Some(reverse) = &self.stages.reverse {
                reverse.want(opened.local.addr, opened.start_ns);
                reverse.want(opened.remote.addr, opened.start_ns);
            }
            if let (Some(hosts), Some(cgroup)) = (&self.stages.hosts, opened.cgroup_id) {
                hosts.observe(cgroup, opened.start_ns);
            }
        }
        self.flows.take_in(kept.flows);
        self.stages.opened.take_in(kept.names);
        self.stages.processes.take_in(kept.processes);
        self.stages.own.take_in(&kept.own);
        self.stages.ids = ids;
    }

    /// Closes the queues, and reports nothing.
    pub fn close(&mut self) {
        self.stages.sinks.close();
    }

    /// Takes in other settings, between two events: whatever is reported from now on is reported by them. What
    /// is known of open connections stays, and so do their ids.
    pub fn apply(&mut self, settings: &Settings, workloads: WorkloadSettings, sinks: Sinks) {
        self.stages.sinks = sinks;
        self.stages.excluded = Excluded::new(settings.watched.exclude.clone());
        self.stages.sampler = Sampler::new(settings.sampling.clone());
        self.stages.community_id = settings.community_id;
        self.stages.peer_cidrs.clone_from(&settings.peer_cidrs);
        self.stages.workloads.reconfigure(workloads);
    }

    /// Says which folders are attached to: cgroup id and path below the mount.
    pub fn attached(&mut self, targets: Vec<(u64, Arc<str>)>) {
        self.stages.scopes.attached(targets);
    }

    /// Whom the names serve.
    pub const fn scopes(&self) -> &Scopes {
        &self.stages.scopes
    }

    /// What became of the DNS messages.
    pub const fn dns(&self) -> &Dns {
        &self.stages.dns
    }

    /// What the workloads' hosts files say.
    pub const fn hosts(&self) -> Option<&Hosts> {
        self.stages.hosts.as_ref()
    }

    /// What became of the reverse lookups.
    pub const fn reverse(&self) -> Option<&Reverse> {
        self.stages.reverse.as_ref()
    }

    /// The connections that ended, by service.
    pub const fn connections(&self) -> &ConnectionCounts {
        &self.stages.connections
    }

    /// Until when everything that happened has been read, ns.
    pub const fn read_ns(&self) -> u64 {
        self.read_ns
    }

    /// What cgroups lost because they had more than their share; `events` of the ring.
    pub fn losses(&self, events: &Losses) -> LossesByName {
        let name = |id| self.stages.workloads.known_path(id);
        let mut losses = LossesByName::default();
        losses.add("events", events, name);
        losses.add("connections", self.flows.evicted(), name);
        losses.add("handshakes", self.flows.handshakes_lost(), name);
        for sink in self.stages.sinks.all() {
            losses.add("records", &sink.dropped(), name);
        }
        losses
    }

    /// The connections being followed.
    pub const fn flows(&self) -> &FlowTable {
        &self.flows
    }
}

impl Stages {
    fn take(&mut self, flow: FlowEvent, boot_to_unix_ns: u64) {
        let (kind, end) = match flow {
            FlowEvent::Opened(opened) => return self.open(&opened),
            FlowEvent::Begin(end) => (RecordKind::Begin, end),
            FlowEvent::Progress(end) => (RecordKind::Progress, end),
            FlowEvent::End(end) => (RecordKind::End, end),
        };
        self.record(kind, end, boot_to_unix_ns);
    }

    /// A connection is heard of for the first time: the one place where whatever is to be known of its
    /// addresses is asked for. The names of both sides are taken as they stood when it began, before they
    /// lapse. Events are some ms late, and the SYN of an accepted connection may be older; the cache keeps
    /// lapsed answers for a moment, and what is gone by now is left out.
    fn open(&mut self, opened: &Opened) {
        if self.own.contains(opened.cookie) {
            return;
        }
        // Nobody will read the names of an excluded one's addresses. What its lookups say is in the cache anyway.
        if !self.is_excluded(opened.cgroup_id)
            && let Some(reverse) = &self.reverse
        {
            reverse.want(opened.local.addr, opened.start_ns);
            reverse.want(opened.remote.addr, opened.start_ns);
        }
        let asked = self.opened.rewritten(opened);
        let remote = [asked, Some(opened.remote.addr)];
        let names = self.names(opened.cgroup_id, opened.local.addr, &remote, opened.start_ns);
        self.opened.keep(opened, names);
    }

    /// Makes a record and hands it to each output that gets its kind. What the end of a connection
    /// needs is left in place by its begin and progresses.
    fn record(&mut self, kind: RecordKind, end: ConnectionEnd, boot_to_unix_ns: u64) {
        self.ledger.of(kind).seen.add(1);
        let (is_own_socket, mut names) = match kind {
            // Never opened.
            RecordKind::End if end.is_of_listener() => (false, self.names_of_failed(&end)),
            RecordKind::End => (self.own.take(end.cookie), self.opened.take(&end)),
            RecordKind::Begin | RecordKind::Progress => {
                (self.own.contains(end.cookie), self.opened.get(&end))
            }
        };
        let process = self.processes.of(&end);
        if kind == RecordKind::End {
            self.processes.ended(&end);
        }
        if is_own_socket || self.is_own_process(&end, process.as_ref()) {
            self.ledger.of(kind).filtered_self.add(1);
            return;
        }
        if self.is_excluded(end.cgroup_id) {
            return self.ledger.of(kind).filtered_excluded.add(1);
        }
        let workload = self.workloads.of(end.cgroup_id, process.as_ref());
        if kind == RecordKind::End {
            self.connections.add(&workload.service_name, &end);
        }
        let ids = self.ids.of(&end);
        let wants_names = self.sampler.looks_at_names();
        if wants_names {
            self.add_hosts(&mut names.remote, &end, end.remote.addr);
        }
        let sampling = match self.sampler.decide(&Facts {
            trace_id: ids.trace_id,
            kind,
            end: &end,
            remote_names: &names.remote,
            cgroup_path: workload.cgroup_path.as_deref(),
            executable: process.as_ref().and_then(|p| p.executable.as_deref()),
        }) {
            Decision::Keep(kept) => kept,
            Decision::SampledOut => return self.ledger.of(kind).sampled_out.add(1),
            Decision::Filtered => return self.ledger.of(kind).filtered_rule.add(1),
        };
        self.add_hosts(&mut names.local, &end, end.local.addr);
        if !wants_names {
            self.add_hosts(&mut names.remote, &end, end.remote.addr);
        }
        if kind == RecordKind::End {
            self.ledger.names.add(!names.remote.is_empty());
        }
        let parent_span_id = ids.parent(&end, &self.peer_cidrs);
        let ptr = |addr| self.reverse.as_ref().and_then(|r| r.get(addr, end.start_ns));
        let (local_ptr, remote_ptr) = (ptr(end.local.addr), ptr(end.remote.addr));
        let community_id = self.community_id.map(|id| id.of(end.local, end.remote));
        let record = Arc::new(Record {
            kind,
            ids,
            parent_span_id,
            workload,
            process,
            local_names: names.local,
            remote_names: names.remote,
            local_ptr,
            remote_ptr,
            community_id,
            sampling,
            start_unix_ns: end.start_ns + boot_to_unix_ns,
            end_unix_ns: end.end_ns + boot_to_unix_ns,
            end,
        });
        self.sinks.push(&record);
    }

    /// The names of a handshake that failed at a listener, as they stood at its SYN. What has lapsed for long
    /// is left out.
    fn names_of_failed(&mut self, end: &ConnectionEnd) -> Names {
        self.names(end.cgroup_id, end.local.addr, &[Some(end.remote.addr)], end.start_ns)
    }

    /// What the cgroup's scopes called the addresses at `at_ns`; of the peer's, the first one first.
    fn names(
        &mut self,
        cgroup_id: Option<u64>,
        local: Addr,
        remote: &[Option<Addr>],
        at_ns: u64,
    ) -> Names {
        let id = cgroup_id.unwrap_or(0);
        let scopes = self.scopes.serves(id, || self.workloads.path_of(id));
        let mut names = Names { local: self.dns.names(&scopes, local, at_ns), remote: Vec::new() };
        for addr in remote.iter().flatten() {
            for name in self.dns.names(&scopes, *addr, at_ns) {
                if !names.remote.contains(&name) {
                    names.remote.push(name);
                }
            }
        }
        names
    }

    /// Adds the names that the hosts file gave the address when the connection began. Now and not when it was
    /// opened: the file may have been read since.
    fn add_hosts(&self, names: &mut Vec<Arc<str>>, end: &ConnectionEnd, addr: Addr) {
        if let (Some(hosts), Some(cgroup)) = (&self.hosts, end.cgroup_id)
            && let Some(more) = hosts.names(cgroup, addr, end.start_ns)
        {
            for name in more.iter() {
                if !names.contains(name) {
                    names.push(Arc::clone(name));
                }
            }
        }
    }

    fn is_excluded(&mut self, cgroup_id: Option<u64>) -> bool {
        let Self { excluded, workloads, .. } = self;
        excluded.covers(cgroup_id, |id| workloads.path_of(id))
    }

    /// A connection that flowend's process opened by other means than its exporters: a lookup by TCP.
    fn is_own_process(&self, end: &ConnectionEnd, process: Option<&Process>) -> bool {
        end.listener.is_none() && process.is_some_and(|p| self.processes.is_own(p))
    }
}

#[cfg(test)]
mod tests;
