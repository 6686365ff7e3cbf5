//! The same packets, once through the built programs (BPF_PROG_TEST_RUN) into the state machine, and once as
//! a capture through `flowend replay`: the same ends.

use std::net::SocketAddr;
use std::process::Stdio;

use aya::programs::{CgroupSkb, TestRun as _, TestRunOptions};
use flowend::flow::{ConnectionEnd, FlowEvent, FlowSettings, FlowTable};
use flowend::probe::Probe;
use flowend_probe_types::{ACK, Event, EventKind, FIN, RST, SYN, TcpEvent, TcpState};

use super::packet::Segment;
use super::support::{Flowend, can_run, load_options};

/// Who sends a segment, its flags and its payload.
type Step = (char, u8, u32);

const CLIENT_ISN: u32 = u32::MAX - 2;
const SERVER_ISN: u32 = 5000;

/// A conversation, and the state that the client's socket leaves for CLOSE.
type Conversation = (&'static str, &'static [Step], TcpState);

const CONVERSATIONS: &[Conversation] = &[
    (
        "closed by the client",
        &[
            ('c', SYN, 0),
            ('s', SYN | ACK, 0),
            ('c', ACK, 0),
            ('c', ACK, 100),
            ('s', ACK, 2000),
            ('c', FIN | ACK, 7),
            ('s', FIN | ACK, 0),
            ('c', ACK, 0),
        ],
        TcpState::FinWait2,
    ),
    (
        "closed by the server, with data in its FIN",
        &[
            ('c', SYN, 0),
            ('s', SYN | ACK, 0),
            ('c', ACK, 0),
            ('s', FIN | ACK, 30),
            ('c', ACK, 0),
            ('c', ACK, 5),
            ('c', FIN | ACK, 0),
            ('s', ACK, 0),
        ],
        TcpState::LastAck,
    ),
    (
        "reset by the server",
        &[('c', SYN, 0), ('s', SYN | ACK, 0), ('c', ACK, 0), ('c', ACK, 10), ('s', RST | ACK, 0)],
        TcpState::Established,
    ),
    (
        "reset by the client after the server's FIN",
        &[
            ('c', SYN, 0),
            ('s', SYN | ACK, 0),
            ('c', ACK, 0),
            ('s', FIN | ACK, 9),
            ('c', ACK, 0),
            ('c', RST | ACK, 0),
        ],
        TcpState::CloseWait,
    ),
    ("refused", &[('c', SYN, 0), ('s', RST | ACK, 0)], TcpState::SynSent),
];

/// The segments of a conversation, each where its sender's last one ended.
fn segments(steps: &[Step], client: SocketAddr, server: SocketAddr) -> Vec<Segment> {
    let (mut own, mut peer) = (CLIENT_ISN, SERVER_ISN);
    let mut heard = false;
    steps
        .iter()
        .map(|&(sender, flags, payload)| {
            let (src, dst, next, other) = match sender {
                'c' => (client, server, &mut own, &mut peer),
                _ => (server, client, &mut peer, &mut own),
            };
            let is_refusal = flags & RST != 0 && !heard && sender == 's';
            let seq = if is_refusal { 0 } else { *next };
            let ack = if flags & ACK == 0 { 0 } else { *other };
            *next = next.wrapping_add(payload + u32::from(flags & (SYN | FIN) != 0));
            heard |= sender == 's';
            Segment { src, dst, flags, seq, ack, payload }
        })
        .collect()
}

/// The client's socket, as far as the events of its kernel show it.
struct Socket {
    local: SocketAddr,
    remote: SocketAddr,
    state: TcpState,
    sent: u64,
    received: u64,
    snd_nxt: u32,
    rcv_nxt: u32,
}

impl Socket {
    /// What the hook would find in the socket, put into what it found in the packet.
    fn complete(&self, event: TcpEvent, index: u64) -> TcpEvent {
        TcpEvent {
            cookie: 9,
            time_ns: index * 1_000_000,
            state: self.state as u8,
            local: self.local.ip().into(),
            local_port: self.local.port(),
            remote: self.remote.ip().into(),
            remote_port: self.remote.port(),
            bytes_acked: self.sent,
            bytes_received: self.received,
            snd_nxt: self.snd_nxt,
            snd_una: self.snd_nxt,
            rcv_nxt: self.rcv_nxt,
            segs_out: 3,
            segs_in: 3,
            ..event
        }
    }

    /// What sockops would say of it.
    fn callback(&self, kind: EventKind, state: TcpState, index: u64) -> Event {
        let event = self.complete(TcpEvent::default(), index);
        Event::Tcp(kind, TcpEvent { kind: kind as u8, state: state as u8, ..event })
    }

    /// After a segment of one side.
    fn advance(&mut self, segment: &Segment, is_own: bool) {
        let numbers = segment.payload + u32::from(segment.flags & (SYN | FIN) != 0);
        let is_fin = segment.flags & FIN != 0;
        if is_own {
            self.sent += u64::from(numbers);
            self.snd_nxt = segment.seq.wrapping_add(numbers);
        } else if segment.flags & RST == 0 {
            self.received += u64::from(numbers - u32::from(segment.flags & SYN != 0));
            self.rcv_nxt = segment.seq.wrapping_add(numbers);
        }
        self.state = match (self.state, is_own, is_fin) {
            (TcpState::SynSent, false, _) if segment.flags & SYN != 0 => TcpState::Established,
            (TcpState::Established, true, true) => TcpState::FinWait2,
            (TcpState::Established, false, true) => TcpState::CloseWait,
            (TcpState::CloseWait, true, true) => TcpState::LastAck,
            (state, ..) => state,
        };
    }
}

/// What the program of this hook makes of a packet.
fn in_the_kernel(probe: &mut Probe, packet: &[u8], is_own: bool) {
    let name = if is_own { "flowend_egress" } else { "flowend_ingress" };
    let program: &mut CgroupSkb = probe.ebpf_mut().program_mut(name).unwrap().try_into().unwrap();
    let ethertype: u16 = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    let frame = [&[0; 12][..], &ethertype.to_be_bytes(), packet].concat();
    let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() };
    assert_eq!(program.test_run(options).unwrap().return_value, 1);
}

/// The end that the state machine makes of what the programs say.
fn end_from_programs(segments: &[Segment], closed_from: TcpState) -> ConnectionEnd {
    let mut probe = Probe::load(load_options(false)).unwrap();
    let mut ring = probe.take_ring().unwrap().unwrap();
    let mut table = FlowTable::new(FlowSettings::default());
    let mut ends = Vec::new();
    let mut out = |event| match event {
        FlowEvent::Opened(_) => {}
        FlowEvent::End(end) => ends.push(end),
        other => panic!("{other:?}"),
    };
    let mut socket = Socket {
        local: segments[0].src,
        remote: segments[0].dst,
        state: TcpState::SynSent,
        sent: 0,
        received: 0,
        snd_nxt: CLIENT_ISN.wrapping_add(1),
        rcv_nxt: 0,
    };
    for (segment, index) in segments.iter().zip(1..) {
        let is_own = segment.src == socket.local;
        in_the_kernel(&mut probe, &segment.to_packet(), is_own);
        let resets = is_own && segment.flags & RST != 0;
        let event = ring.next().map(|item| Event::decode(&item).unwrap());
        assert_eq!(event.is_some(), segment.flags & (SYN | FIN | RST) != 0, "{segment:?}");
        if let Some(Event::Tcp(kind, event)) = event {
            // The application's RST leaves in CLOSE.
            let state = if resets { TcpState::Close as u8 } else { socket.state as u8 };
            let event = TcpEvent { state, ..socket.complete(event, index) };
            table.apply(&Event::Tcp(kind, event), &mut out);
        }
        let before = socket.state;
        socket.advance(segment, is_own);
        if before == TcpState::SynSent && socket.state == TcpState::Established {
            let established = socket.callback(EventKind::ActiveEstablished, socket.state, index);
            table.apply(&established, &mut out);
        }
    }
    let last = segments.len() as u64 + 1;
    table.apply(&socket.callback(EventKind::Closed, closed_from, last), &mut out);
    table.finish(&mut out);
    assert_eq!(ends.len(), 1);
    ends.swap_remove(0)
}

/// A capture of raw IP packets, a millisecond apart.
fn capture(segments: &[Segment]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65535, 101] {
        file.extend(word.to_le_bytes());
    }
    for (segment, index) in segments.iter().zip(1_u32..) {
        let packet = segment.to_packet();
        let length = u32::try_from(packet.len()).unwrap();
        for word in [1_700_000_000, index * 1000, length, length] {
            file.extend(word.to_le_bytes());
        }
        file.extend(packet);
    }
    file
}

fn record_of_capture(segments: &[Segment]) -> serde_json::Value {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), capture(segments)).unwrap();
    let output = Flowend::command(&["replay", file.path().to_str().unwrap(), "--output", "json"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.lines().count() == 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn packets_end_alike_through_the_programs_and_as_a_capture() {
    if !can_run("packets_end_alike_through_the_programs_and_as_a_capture", &[]) {
        return;
    }
    for (client, server) in
        [("10.0.0.1:40000", "10.0.0.2:80"), ("[2001:db8::1]:40000", "[2001:db8::2]:80")]
    {
        let (client, server) = (client.parse().unwrap(), server.parse().unwrap());
        for (name, steps, closed_from) in CONVERSATIONS {
            let segments = segments(steps, client, server);
            let end = end_from_programs(&segments, *closed_from);
            let record = &record_of_capture(&segments)["attributes"];
            let text = |key: &str| record[key].as_str().map(str::to_owned);
            let side = |s: Option<flowend::flow::Side>| s.map(|s| s.as_str().to_owned());
            assert_eq!(text("flowend.end.reason"), Some(end.reason.as_str().into()), "{name}");
            assert_eq!(text("flowend.end.by"), side(end.by), "{name}");
            assert_eq!(text("flowend.end.reset_by"), side(end.reset_by), "{name}");
            assert_eq!(text("flowend.conn_state"), Some(end.conn_state.into()), "{name}");
            assert_eq!(text("source.address"), Some(end.source().ip().to_string()), "{name}");
            assert_eq!(record["source.port"], end.source().port, "{name}");
            let direction = end.direction.as_str().to_owned();
            assert_eq!(text("flowend.connection.direction"), Some(direction), "{name}");
            assert_eq!(record["flowend.bytes.sent"].as_u64(), end.counters.bytes_sent, "{name}");
            let received = end.counters.bytes_received;
            assert_eq!(record["flowend.bytes.received"].as_u64(), received, "{name}");
            let half_close_us = end.half_close_ns.map(|ns| ns / 1000);
            assert_eq!(record["flowend.half_close_us"].as_u64(), half_close_us, "{name}");
        }
    }
}
