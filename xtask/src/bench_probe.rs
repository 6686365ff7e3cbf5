//! What a packet pays: the built programs and a program that does nothing, in turn, on the same
//! packets, through BPF_PROG_TEST_RUN.

use anyhow::Context as _;
use aya::Ebpf;
use aya::programs::{CgroupSkb, TestRun as _, TestRunOptions};

use crate::bench::median;

/// Runs of one program in a round; the kernel reports the mean of them.
const REPEAT: u32 = 1_000_000;
const ROUNDS: usize = 11;
/// The payload of a full-size segment with timestamps at an MTU of 1,500 (IPv4).
const PAYLOAD: usize = 1448;
/// Protocol numbers of the IP header.
const TCP: u8 = 6;
const UDP: u8 = 17;

pub(crate) fn run() -> anyhow::Result<()> {
    let mut flowend = load("flowend.bpf.o", &["flowend_ingress", "flowend_egress"])?;
    let mut noop = load("noop.bpf.o", &["noop_ingress", "noop_egress"])?;
    println!("ns per packet, median of {ROUNDS} rounds of {REPEAT} runs; BPF_PROG_TEST_RUN");
    println!(
        "{:10} {:8} {:>8} {:>8} {:>8}   {:>18}",
        "packet", "hook", "no-op", "flowend", "ratio", "flowend - no-op"
    );
    let mut worst = f64::MIN;
    // The socket of a test run has no ports: at egress the UDP line is that of an unconnected socket, the
    // dearer one, whose mark is looked at as well.
    let packets = [
        ("IPv4 data", ipv4(TCP, &tcp())),
        ("IPv6 data", ipv6(TCP, &tcp())),
        ("IPv4 UDP", ipv4(UDP, &udp())),
        ("IPv6 UDP", ipv6(UDP, &udp())),
        // Shorter than what the test of most packets looks at.
        ("IPv4 short", ipv4(UDP, &udp()[..12])),
        ("IPv6 short", ipv6(UDP, &udp()[..12])),
    ];
    for (name, packet) in packets {
        for hook in ["ingress", "egress"] {
            let mut base = Vec::new();
            let mut ours = Vec::new();
            for _ in 0..ROUNDS {
                base.push(measure(&mut noop, &format!("noop_{hook}"), &packet)?);
                ours.push(measure(&mut flowend, &format!("flowend_{hook}"), &packet)?);
            }
            let (base, ours) = (median(base), median(ours));
            worst = worst.max(ours - base);
            println!(
                "{name:10} {hook:8} {base:8.1} {ours:8.1} {:8.2}   {:+18.1}",
                ours / base,
                ours - base
            );
        }
    }
    println!("worst difference: {worst:+.1} ns (target: at most +2)");
    Ok(())
}

fn load(file: &str, programs: &[&str]) -> anyhow::Result<Ebpf> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../bpf-probes/").to_owned() + file;
    let object = std::fs::read(&path).with_context(|| format!("bpf-probes/{file}"))?;
    let mut ebpf = Ebpf::load(&object).with_context(|| format!("{file}: root is needed"))?;
    for name in programs {
        let program: &mut CgroupSkb =
            ebpf.program_mut(name).context("no such program")?.try_into()?;
        program.load()?;
    }
    Ok(ebpf)
}

fn measure(ebpf: &mut Ebpf, name: &str, packet: &[u8]) -> anyhow::Result<f64> {
    let program: &mut CgroupSkb = ebpf.program_mut(name).context("no such program")?.try_into()?;
    let options =
        TestRunOptions { data_in: Some(packet), repeat: REPEAT, ..TestRunOptions::default() };
    let result = program.test_run(options)?;
    anyhow::ensure!(result.return_value == 1, "{name} does not let the packet pass");
    Ok(result.duration.as_nanos() as f64)
}

/// Ethernet header (test runs take one off), then the IP header on.
fn frame(ethertype: u16, ip: &[u8], transport: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(ip);
    frame.extend(transport);
    frame
}

fn ipv4(protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut h = vec![0; 20];
    h[0] = 0x45;
    h[2..4].copy_from_slice(&u16::try_from(20 + transport.len()).unwrap_or(0).to_be_bytes());
    h[8] = 64;
    h[9] = protocol;
    h[12..16].copy_from_slice(&[10, 0, 0, 1]);
    h[16..20].copy_from_slice(&[10, 0, 0, 2]);
    frame(0x0800, &h, transport)
}

fn ipv6(protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut h = vec![0; 40];
    h[0] = 0x60;
    h[4..6].copy_from_slice(&u16::try_from(transport.len()).unwrap_or(0).to_be_bytes());
    h[6] = protocol;
    h[7] = 64;
    h[8] = 0xfd;
    h[24] = 0xfd;
    frame(0x86dd, &h, transport)
}

/// ACK with timestamps, and a full payload.
fn tcp() -> Vec<u8> {
    let mut h = vec![0; 32 + PAYLOAD];
    h[0..2].copy_from_slice(&443_u16.to_be_bytes());
    h[2..4].copy_from_slice(&50000_u16.to_be_bytes());
    h[12] = 8 << 4;
    h[13] = 0x10;
    h
}

/// A datagram of as many bytes, between ports where nobody asks for names.
fn udp() -> Vec<u8> {
    let mut h = vec![0; 8 + PAYLOAD];
    h[0..2].copy_from_slice(&443_u16.to_be_bytes());
    h[2..4].copy_from_slice(&50000_u16.to_be_bytes());
    let length = u16::try_from(h.len()).unwrap_or(0).to_be_bytes();
    h[4..6].copy_from_slice(&length);
    h
}
