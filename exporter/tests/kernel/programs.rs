//! The built programs through BPF_PROG_TEST_RUN: every packet passes, and each is read as the host reads
//! it.

use std::io::Write as _;

use aya::programs::{CgroupSkb, TestRun as _, TestRunOptions};
use flowend::probe::{LoadOptions, PROGRAMS, Probe};
use flowend_probe_types::{
    ACK, Account, Event, EventKind, FIN, LOST_SLOTS, PSH, RST, RingItem, SKIPPED_SLOTS, SYN, Skip,
    TERMINATING, parse,
};

use super::support::{can_run, load_options};

fn load() -> Probe {
    Probe::load(load_options(true)).unwrap()
}

/// An Ethernet frame: test runs take the first 14 bytes off.
fn frame(ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame
}

pub(crate) fn tcp(flags: u8, payload: usize) -> Vec<u8> {
    let mut h = vec![0; 20 + payload];
    h[12] = 5 << 4;
    h[13] = flags;
    h
}

pub(crate) fn v4(protocol: u8, options: usize, rest: &[u8]) -> Vec<u8> {
    let mut h = vec![0; 20 + options];
    h[0] = 0x40 | u8::try_from((20 + options) / 4).unwrap();
    h[9] = protocol;
    h[12] = 127;
    h[16] = 127;
    h.extend(rest);
    frame(0x0800, &h)
}

pub(crate) fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut h = vec![0; 40];
    h[0] = 0x60;
    h[6] = next;
    h[23] = 1;
    h[39] = 1;
    h.extend(rest);
    frame(0x86dd, &h)
}

#[test]
fn every_packet_passes() {
    if !can_run("every_packet_passes", &[]) {
        return;
    }
    let mut probe = load();
    let mut packets = vec![
        v4(17, 0, &[0; 30]),
        v6(17, &[0; 30]),
        v6(0, &[6, 0, 0, 0, 0, 0, 0, 0]),
        v4(6, 40, &tcp(SYN, 0)),
    ];
    for flags in 0..=u8::MAX {
        packets.push(v4(6, 0, &tcp(flags, 100)));
        packets.push(v6(6, &tcp(flags, 100)));
    }
    // Headers that end anywhere, and offsets that point anywhere.
    for len in 14..80 {
        for whole in [v4(6, 0, &tcp(SYN | ACK, 40)), v6(6, &tcp(RST, 40)), v6(44, &[0; 60])] {
            packets.push(whole[..len.min(whole.len())].to_vec());
        }
    }
    for offset in 0..16 {
        let mut segment = tcp(FIN | PSH, 10);
        segment[12] = offset << 4;
        packets.push(v4(6, 0, &segment));
        packets.push(v6(6, &segment));
    }
    for first in 0..=u8::MAX {
        let mut packet = v4(6, 0, &tcp(RST, 0));
        packet[14] = first;
        packets.push(packet);
    }
    let mut ran = 0;
    for name in ["flowend_ingress", "flowend_egress", "flowend_dns_ingress", "flowend_dns_egress"] {
        for packet in &packets {
            // The kernel itself refuses frames whose IP header is cut; nothing to let pass then.
            let Some(verdict) = run(&mut probe, name, packet) else { continue };
            assert_eq!(verdict, 1, "{name} {packet:02x?}");
            ran += 1;
        }
    }
    assert!(ran > 3000, "{ran} packets were run");
}

/// Runs one program on one frame. `None` where the kernel itself refuses it.
pub(crate) fn run(probe: &mut Probe, name: &str, frame: &[u8]) -> Option<u32> {
    let program: &mut CgroupSkb = probe.ebpf_mut().program_mut(name).unwrap().try_into().unwrap();
    let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
    program.test_run(options).ok().map(|result| result.return_value)
}

/// Packets of all kinds, without the link layer.
fn packets() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for flags in 0..=u8::MAX {
        for payload in [0, 1, 100] {
            let mut segment = tcp(flags, payload);
            segment[4..8].copy_from_slice(&(u32::from(flags) << 24 | 7).to_be_bytes());
            segment[8..12].copy_from_slice(&(u32::MAX - u32::from(flags)).to_be_bytes());
            let mut options = segment.clone();
            options[12] = 8 << 4;
            options.splice(20..20, [1; 12]);
            for transport in [&segment, &options] {
                packets.push(v4(6, 0, transport));
                packets.push(v4(6, 24, transport));
                packets.push(v6(6, transport));
                // Hop-by-hop options before it.
                packets.push(v6(0, &[&[6, 0, 0, 0, 0, 0, 0, 0], &transport[..]].concat()));
            }
        }
    }
    for offset in 0..16 {
        let mut segment = tcp(RST, 10);
        segment[12] = offset << 4;
        packets.push(v4(6, 0, &segment));
        packets.push(v6(6, &segment));
    }
    for fragment in [1, 0x1fff, 0x2000, 0x2001, 0x4000] {
        for options in [0, 8] {
            let mut packet = v4(6, options, &tcp(FIN, 30));
            packet[14 + 6..14 + 8].copy_from_slice(&u16::to_be_bytes(fragment));
            packets.push(packet);
        }
        let [high, low] = u16::to_be_bytes(fragment << 3);
        packets.push(v6(44, &[&[6, 0, high, low, 0, 0, 0, 9], &tcp(SYN, 0)[..]].concat()));
    }
    for len in 34..90 {
        for whole in [
            v4(6, 40, &tcp(SYN | ACK, 40)),
            v6(0, &[&[6, 1], &[0; 14][..], &tcp(RST, 40)].concat()),
        ] {
            packets.push(whole[..len.min(whole.len())].to_vec());
        }
    }
    packets
}

/// What the host's parser makes of a packet is what the program in the kernel makes of it.
#[test]
fn the_programs_read_packets_as_the_host_does() {
    if !can_run("the_programs_read_packets_as_the_host_does", &[]) {
        return;
    }
    let mut probe = load();
    let mut ring = probe.take_ring().unwrap().unwrap();
    let skipped = probe.take_skipped().unwrap();
    let (mut events, mut by_cause) = (0, [0; SKIPPED_SLOTS.len()]);
    for (name, kind) in
        [("flowend_ingress", EventKind::SegmentIn), ("flowend_egress", EventKind::SegmentOut)]
    {
        for frame in packets() {
            let before = skipped.read();
            if run(&mut probe, name, &frame).is_none() {
                continue;
            }
            let got = ring.next().map(|item| Event::decode(&item).unwrap());
            assert!(ring.next().is_none(), "one event at most: {frame:02x?}");
            let host = parse(&&frame[14..]);
            let want = host.ok().filter(|segment| segment.flags & TERMINATING != 0);
            let read = got.map(|event| {
                let Event::Tcp(got_kind, e) = event else { panic!("{event:?}") };
                assert_eq!(got_kind, kind, "{frame:02x?}");
                // The socket of a test run has the packet's addresses and no ports.
                (e.local, e.remote, e.flags, e.seq, e.ack, e.payload)
            });
            let said = want.map(|s| (s.src, s.dst, s.flags, s.seq, s.ack, s.payload));
            assert_eq!(read, said, "{name} {frame:02x?}");
            events += u32::from(got.is_some());
            for (slot, (now, before)) in skipped.read().iter().zip(before).enumerate() {
                // What has none of the flags where they would be is let go without a look.
                assert!(
                    *now == before || host.err().and_then(Skip::slot) == Some(slot as u32),
                    "{name} {frame:02x?}: {host:?}"
                );
                by_cause[slot] += now - before;
            }
        }
    }
    assert!(events > 5_000, "{events} events");
    assert!(by_cause.iter().all(|n| *n > 0), "each cause is counted: {by_cause:?}");
    assert_eq!(probe.take_lost().unwrap().read(), [0; LOST_SLOTS.len()]);
}

/// With nobody who reads, one cgroup gets a part of the ring, by what its events are; the rest is for others. Once it is
/// read, there is as much again.
#[test]
fn one_cgroup_alone_does_not_fill_the_ring() {
    const RING: usize = 1 << 16;
    if !can_run("one_cgroup_alone_does_not_fill_the_ring", &[]) {
        return;
    }
    // A query without a question, to port 53.
    let query = [&[0x9c, 0x40, 0, 53, 0, 20, 0, 0][..], &[0; 12]].concat();
    for (packet, kind, lost_word, share) in [
        (v4(6, 0, &tcp(RST, 0)), EventKind::SegmentOut, Account::LOST, 60..67),
        (v4(17, 0, &query), EventKind::DnsQuery, Account::LOST_NAMES, 37..44),
    ] {
        let options = LoadOptions { ring_bytes: RING as u32, ..load_options(true) };
        let mut probe = Probe::load(options).unwrap();
        let (mut ring, lost) = (probe.take_ring().unwrap().unwrap(), probe.take_lost().unwrap());
        let accounts = probe.take_accounts().unwrap();
        let slot = kind.lost_slot() as usize;
        for round in 1..=3 {
            let before = lost.read()[slot];
            let mut ran = 0_u64;
            while lost.read()[slot] < before + 10 {
                assert_eq!(run(&mut probe, "flowend_egress", &packet), Some(1));
                ran += 1;
                assert!(ran < 10_000, "{kind:?}: nothing is refused");
            }
            let (mut events, mut bytes) = (0, 0);
            while let Some(item) = ring.next() {
                events += 1;
                // With its header.
                bytes += item.len().next_multiple_of(8) + 8;
            }
            assert_eq!(events, ran - 10, "{kind:?}: each is there or counted");
            assert!(share.contains(&(100 * bytes / RING)), "{kind:?}, {round}: {bytes} bytes");
        }
        let told: Vec<u64> = accounts.read().values().map(|words| words[lost_word]).collect();
        assert_eq!(told, [lost.read()[slot]], "{kind:?}: of one cgroup");
        assert_eq!(lost.read().iter().sum::<u64>(), lost.read()[slot], "{kind:?}: nothing else");
    }
}

/// Of the second copy of the data only so much is mapped as a record needs that goes on past the end.
#[test]
fn records_that_go_on_past_the_end_of_the_ring_are_whole() {
    if !can_run("records_that_go_on_past_the_end_of_the_ring_are_whole", &[]) {
        return;
    }
    let ring_bytes = 4096;
    let mut probe = Probe::load(LoadOptions { ring_bytes, ..load_options(true) }).unwrap();
    let mut ring = probe.take_ring().unwrap().unwrap();
    assert!(probe.take_ring().unwrap().is_none(), "it has one reader");
    // Each record of 152 bytes begins at another place; all there are, several times.
    for n in 0..4096_u32 {
        let mut segment = tcp(RST, 0);
        segment[4..8].copy_from_slice(&n.to_be_bytes());
        assert_eq!(run(&mut probe, "flowend_egress", &v4(6, 0, &segment)), Some(1));
        let record = ring.next().expect("an event");
        let Ok(RingItem::Event(Event::Tcp(_, e))) = RingItem::decode(&record) else {
            panic!("{n}: {:?}", &*record)
        };
        assert_eq!((e.seq, e.flags & RST), (n, RST));
        drop(record);
        assert!(ring.next().is_none());
    }
    assert_eq!(probe.take_lost().unwrap().read(), [0; LOST_SLOTS.len()]);
}

/// The verifier looks at a million instructions at most (since Linux 5.2): far from it. How many it looks at, of the same
/// program, is the kernel's affair: 6.1 at 64,000 of flowend_ingress, where 6.18 looks at 12,000.
#[test]
fn the_programs_are_small() {
    if !can_run("the_programs_are_small", &[]) {
        return;
    }
    let probe = &mut load();
    for program in PROGRAMS {
        let info = probe.ebpf_mut().program(program.name).unwrap().info().unwrap();
        // Linux 5.16 and newer say it.
        let Some(instructions) = info.verified_instruction_count() else { continue };
        // Not eprintln: the harness would keep it to itself.
        let _ =
            writeln!(std::io::stderr(), "{}: {instructions} instructions verified", program.name);
        assert!(instructions < 125_000, "{}: {instructions} instructions verified", program.name);
    }
}
