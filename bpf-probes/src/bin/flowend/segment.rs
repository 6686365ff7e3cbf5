//! SYN, SYN-ACK, FIN and RST segments of both directions, as events.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_tcp_sock},
    helpers::{
        bpf_get_socket_cookie, bpf_ktime_get_boot_ns, bpf_skb_cgroup_id,
        bpf_tcp_sock as tcp_sock_of,
    },
    programs::SkBuffContext,
};
use flowend_probe_types::{Addr, Claim, EventKind, Segment, TcpEvent, TcpState};

use crate::ring::reserve_for;

const AF_INET6: u32 = 10;

/// Reports a segment of this full socket.
#[inline(always)]
pub fn report<const EGRESS: bool>(ctx: &SkBuffContext, sk: *mut bpf_sock, segment: &Segment) {
    let kind = if EGRESS { EventKind::SegmentOut } else { EventKind::SegmentIn };
    // SAFETY: pointers come from the context and from helpers, and are checked for null; the kernel
    // gives `bpf_sock` and `bpf_tcp_sock` as read-only structures of stable layout.
    unsafe {
        let state = (*sk).state as u8;
        let tp =
            if state == TcpState::Listen as u8 { core::ptr::null_mut() } else { tcp_sock_of(sk) };
        let cookie = bpf_get_socket_cookie(ctx.as_ptr());
        let cgroup_id = bpf_skb_cgroup_id(ctx.skb.skb);
        let time_ns = bpf_ktime_get_boot_ns();
        // Anybody may send to a listener, from any address.
        let is_strangers = state == TcpState::Listen as u8;
        let claim = if is_strangers { Claim::Stranger } else { Claim::Connection };
        let Some(mut room) = reserve_for::<TcpEvent>(kind, claim, cgroup_id) else { return };
        let e = room.as_mut_ptr();
        (*e).kind = kind as u8;
        (*e).flags = segment.flags;
        (*e).state = state;
        (*e).reserved = 0;
        (*e).time_ns = time_ns;
        (*e).cookie = cookie;
        (*e).cgroup_id = cgroup_id;
        (*e).netns = 0;
        (*e).seq = segment.seq;
        (*e).ack = segment.ack;
        (*e).payload = segment.payload;
        (*e).keepalive_ms = 0;
        if state == TcpState::Listen as u8 {
            packet_addresses::<EGRESS>(e, segment);
        } else {
            socket_addresses(e, sk);
            // A socket that was not bound has given its port back when its RST leaves.
            if EGRESS && (*e).local_port == 0 {
                (*e).local_port = segment.src_port;
            }
        }
        counters(e, tp);
        room.submit();
    }
}

/// A listener has no peer: the packet tells both ends.
#[inline(always)]
unsafe fn packet_addresses<const EGRESS: bool>(e: *mut TcpEvent, segment: &Segment) {
    // SAFETY: the caller passes a reserved event.
    unsafe {
        if EGRESS {
            (*e).local = segment.src;
            (*e).local_port = segment.src_port;
            (*e).remote = segment.dst;
            (*e).remote_port = segment.dst_port;
        } else {
            (*e).local = segment.dst;
            (*e).local_port = segment.dst_port;
            (*e).remote = segment.src;
            (*e).remote_port = segment.src_port;
        }
    }
}

/// The socket's own addresses: at egress the packet may show translated ones.
#[inline(always)]
unsafe fn socket_addresses(e: *mut TcpEvent, sk: *const bpf_sock) {
    // SAFETY: the caller passes a reserved event and a checked full socket.
    unsafe {
        let local6 = [(*sk).src_ip6[0], (*sk).src_ip6[1], (*sk).src_ip6[2], (*sk).src_ip6[3]];
        let remote6 = [(*sk).dst_ip6[0], (*sk).dst_ip6[1], (*sk).dst_ip6[2], (*sk).dst_ip6[3]];
        if (*sk).family == AF_INET6 && !Addr::v6(remote6).is_v4() {
            (*e).local = Addr::v6(local6);
            (*e).remote = Addr::v6(remote6);
        } else {
            (*e).local = Addr::v4((*sk).src_ip4);
            (*e).remote = Addr::v4((*sk).dst_ip4);
        }
        (*e).local_port = (*sk).src_port as u16;
        (*e).remote_port = u16::from_be((*sk).dst_port);
    }
}

#[inline(always)]
unsafe fn counters(e: *mut TcpEvent, tp: *const bpf_tcp_sock) {
    // SAFETY: the caller passes a reserved event; `tp` is null or from bpf_tcp_sock().
    unsafe {
        if tp.is_null() {
            // Volatile: else they are one call of memset, a loop over bytes, which costs the verifier much, too.
            (&raw mut (*e).bytes_acked).write_volatile(0);
            (&raw mut (*e).bytes_received).write_volatile(0);
            (&raw mut (*e).snd_nxt).write_volatile(0);
            (&raw mut (*e).snd_una).write_volatile(0);
            (&raw mut (*e).rcv_nxt).write_volatile(0);
            (&raw mut (*e).srtt_8us).write_volatile(0);
            (&raw mut (*e).rtt_min_us).write_volatile(0);
            (&raw mut (*e).segs_out).write_volatile(0);
            (&raw mut (*e).segs_in).write_volatile(0);
            (&raw mut (*e).data_segs_out).write_volatile(0);
            (&raw mut (*e).data_segs_in).write_volatile(0);
            (&raw mut (*e).total_retrans).write_volatile(0);
            return;
        }
        (*e).bytes_acked = (*tp).bytes_acked;
        (*e).bytes_received = (*tp).bytes_received;
        (*e).snd_nxt = (*tp).snd_nxt;
        (*e).snd_una = (*tp).snd_una;
        (*e).rcv_nxt = (*tp).rcv_nxt;
        (*e).srtt_8us = (*tp).srtt_us;
        (*e).rtt_min_us = (*tp).rtt_min;
        (*e).segs_out = (*tp).segs_out;
        (*e).segs_in = (*tp).segs_in;
        (*e).data_segs_out = (*tp).data_segs_out;
        (*e).data_segs_in = (*tp).data_segs_in;
        (*e).total_retrans = (*tp).total_retrans;
    }
}
