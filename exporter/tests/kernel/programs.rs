//! The built programs through BPF_PROG_TEST_RUN: every packet passes, and what is no SYN, FIN or RST
//! leaves no event.

use aya::programs::{CgroupSkb, TestRun as _, TestRunOptions};
use flowend::probe::{LoadOptions, PROGRAMS, Probe};
use flowend_probe_types::{ACK, FIN, PSH, RST, SYN};

use super::support::can_run;

fn load() -> Probe {
    Probe::load(LoadOptions { ring_bytes: 4096, process: true, dns: true }).unwrap()
}

/// An Ethernet frame: test runs take the first 14 bytes off.
fn frame(ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame
}

fn tcp(flags: u8, payload: usize) -> Vec<u8> {
    let mut h = vec![0; 20 + payload];
    h[12] = 5 << 4;
    h[13] = flags;
    h
}

fn v4(protocol: u8, options: usize, rest: &[u8]) -> Vec<u8> {
    let mut h = vec![0; 20 + options];
    h[0] = 0x40 | u8::try_from((20 + options) / 4).unwrap();
    h[9] = protocol;
    h[12] = 127;
    h[16] = 127;
    h.extend(rest);
    frame(0x0800, &h)
}

fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
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
    let mut run = 0;
    for name in ["flowend_ingress", "flowend_egress"] {
        let program: &mut CgroupSkb =
            probe.ebpf_mut().program_mut(name).unwrap().try_into().unwrap();
        for packet in &packets {
            let options = TestRunOptions { data_in: Some(packet), ..TestRunOptions::default() };
            // The kernel itself refuses frames whose IP header is cut; nothing to let pass then.
            let Ok(result) = program.test_run(options) else { continue };
            assert_eq!(result.return_value, 1, "{name} {packet:02x?}");
            run += 1;
        }
    }
    assert!(run > 1500, "{run} packets were run");
    // A test run has no socket, so even a flagged segment tells nothing.
    assert!(probe.take_ring().unwrap().next().is_none());
    assert_eq!(probe.take_lost().unwrap().read(), [0; 6]);
}

/// The verifier looks at a million instructions at most (since Linux 5.2): far from it.
#[test]
fn the_programs_are_small() {
    if !can_run("the_programs_are_small", &[]) {
        return;
    }
    let probe = &mut load();
    for program in PROGRAMS {
        let info = probe.ebpf_mut().program(program.name).unwrap().info().unwrap();
        let instructions = info.verified_instruction_count().unwrap_or(0);
        assert!(instructions < 16_384, "{}: {instructions} instructions verified", program.name);
    }
}
