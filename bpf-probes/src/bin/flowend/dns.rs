//! DNS messages over UDP, and segments of DNS connections, copied whole: queries on their way out, answers
//! on their way in.

use core::ffi::c_void;
use core::mem::size_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, bpf_sock},
    helpers::{
        bpf_get_socket_cookie, bpf_ktime_get_boot_ns, bpf_skb_cgroup_id, bpf_skb_load_bytes,
    },
    programs::SkBuffContext,
};
use flowend_probe_types::{
    Addr, Claim, DNS_ROOM, Datagram, DnsEvent, EventKind, FIN, Network, RST, SYN, Segment,
    TERMINATING, TcpState,
};

use crate::asked;
use crate::ring::{Room, admits, count_lost, reserve};

/// Whether DNS messages are copied; the loader sets it (`dns.enabled`).
#[unsafe(no_mangle)]
static DNS_ENABLED: u8 = 1;
/// Multicast DNS, too; the loader sets it (`dns.mdns`).
#[unsafe(no_mangle)]
static DNS_MDNS: u8 = 0;
/// LLMNR, too; the loader sets it (`dns.llmnr`).
#[unsafe(no_mangle)]
static DNS_LLMNR: u8 = 0;

/// RFC 1035, section 4.2.
pub const DNS_PORT: u16 = 53;
/// RFC 6762, section 3.
const MDNS_PORT: u16 = 5353;
/// RFC 4795, section 2. Its TCP, for what UDP does not hold, is left out: no other port is compared for
/// each TCP packet.
const LLMNR_PORT: u16 = 5355;
const AF_INET6: u32 = 10;

/// Whether names are asked for at this UDP port, given in network order.
#[inline(always)]
pub fn is_service(port: u16) -> bool {
    // SAFETY: valid statics; volatile, since the loader writes them.
    port == DNS_PORT.to_be()
        || (port == MDNS_PORT.to_be() && unsafe { is_on(&raw const DNS_MDNS) })
        || (port == LLMNR_PORT.to_be() && unsafe { is_on(&raw const DNS_LLMNR) })
}

#[inline(always)]
unsafe fn is_on(switch: *const u8) -> bool {
    // SAFETY: the caller passes a valid static.
    unsafe { switch.read_volatile() != 0 }
}

/// A message and room for its bytes.
#[repr(C)]
struct Message<const ROOM: usize> {
    facts: DnsEvent,
    bytes: [u8; ROOM],
}

/// The bytes that one event holds at most.
const MAX_BYTES: u32 = DNS_ROOM[2] as u32 - 1;

/// Copies the DNS message of a datagram of this full socket, if it is one. A longer one than an event holds
/// is cut.
#[inline(always)]
pub fn report_message<const EGRESS: bool>(
    ctx: &SkBuffContext,
    sk: *const bpf_sock,
    network: &Network,
    datagram: &Datagram,
) {
    let skb = ctx.skb.skb;
    // SAFETY: a valid static.
    if datagram.payload < DNS_HEADER || !unsafe { is_on(&raw const DNS_ENABLED) } {
        return;
    }
    if !EGRESS && !is_service(datagram.src_port.to_be()) {
        return;
    }
    let mut facts = facts::<EGRESS>(ctx, EventKind::DnsQuery, EventKind::DnsAnswer);
    packet_ends::<EGRESS>(
        &mut facts,
        (network.src, datagram.src_port),
        (network.dst, datagram.dst_port),
    );
    if EGRESS {
        // SAFETY: a checked full socket.
        unsafe { asked_server(&mut facts, sk) };
    }
    if !is_service(facts.remote_port.to_be()) {
        return;
    }
    // SAFETY: the context is valid.
    let at = unsafe { (*skb).len } - datagram.payload;
    if facts.remote_port != DNS_PORT && !fits_direction::<EGRESS>(skb, at) {
        return;
    }
    if !has_room(&facts, datagram.payload) {
        return;
    }
    let len = if datagram.payload > MAX_BYTES {
        facts.cut = 1;
        MAX_BYTES
    } else {
        datagram.payload
    };
    send(skb, &facts, at, len);
}

/// Shorter is no message (RFC 1035, section 4.1.1).
const DNS_HEADER: u32 = 12;

/// Everybody sends queries and answers to the port of multicast DNS: the QR bit tells them apart (RFC 1035,
/// section 4.1.1). Own answers and others' queries name nothing that was asked here.
#[inline(always)]
fn fits_direction<const EGRESS: bool>(skb: *mut __sk_buff, at: u32) -> bool {
    const QR_AT: u32 = 2;
    let mut byte = 0_u8;
    // SAFETY: the helper checks the offset and writes one byte.
    let error =
        unsafe { bpf_skb_load_bytes(skb as *const c_void, at + QR_AT, (&raw mut byte).cast(), 1) };
    error == 0 && (byte & 0x80 == 0) == EGRESS
}

/// Pieces of a segment at most: as many as the longest packet of GSO or GRO has (64 KiB).
const MAX_PIECES: u32 = 65536 / MAX_BYTES + 1;

/// Copies a segment of a connection to a DNS server, in pieces where it is longer than an event holds. A
/// segment that carries nothing (ACK alone) is none.
#[inline(always)]
pub fn report_segment<const EGRESS: bool>(
    ctx: &SkBuffContext,
    sk: *const bpf_sock,
    segment: &Segment,
) {
    let skb = ctx.skb.skb;
    // SAFETY: a checked full socket and the context are valid.
    let (server_port, state, len) = unsafe {
        // A listener has no peer, and so it is no client of a DNS server.
        let port = if EGRESS { u16::from_be((*sk).dst_port) } else { segment.src_port };
        (port, (*sk).state, (*skb).len)
    };
    // SAFETY: a valid static.
    if server_port != DNS_PORT
        || state == TcpState::Listen as u32
        || (segment.payload == 0 && segment.flags & TERMINATING == 0)
        || !unsafe { is_on(&raw const DNS_ENABLED) }
    {
        return;
    }
    let mut facts = facts::<EGRESS>(ctx, EventKind::DnsStreamOut, EventKind::DnsStreamIn);
    packet_ends::<EGRESS>(
        &mut facts,
        (segment.src, segment.src_port),
        (segment.dst, segment.dst_port),
    );
    if EGRESS {
        // SAFETY: a checked full socket, which has a peer.
        unsafe { peer(&mut facts, sk) };
    }
    if !has_room(&facts, segment.payload) {
        return;
    }
    facts.seq = segment.seq;
    facts.flags = segment.flags;
    let mut at = len - segment.payload;
    let mut left = segment.payload;
    for _ in 0..MAX_PIECES {
        if left <= MAX_BYTES {
            send(skb, &facts, at, left);
            return;
        }
        // What ends the stream comes after its last byte.
        facts.flags = segment.flags & !(FIN | RST);
        if at != len - segment.payload {
            facts.flags &= !SYN;
        }
        let Some(room) = copied::<{ DNS_ROOM[2] }>(skb, &facts, at, MAX_BYTES) else { return };
        room.submit_before_another();
        // A SYN has a number of its own before its payload's.
        let numbers = MAX_BYTES + u32::from(facts.flags & SYN != 0);
        facts.seq = facts.seq.wrapping_add(numbers);
        facts.flags = segment.flags & !SYN;
        at += MAX_BYTES;
        left -= MAX_BYTES;
    }
    // Longer than GSO's 64 KiB (BIG TCP, IPv6 alone): the rest is not copied.
    count_lost(EventKind::DnsStreamOut);
}

/// Whether the cgroup may have room for a message of this length, in one event or more.
#[inline(always)]
fn has_room(facts: &DnsEvent, payload: u32) -> bool {
    // At least the smallest room.
    let bytes = (size_of::<DnsEvent>() + DNS_ROOM[0]) as u64 + u64::from(payload);
    admits(EventKind::DnsQuery, Claim::Name, facts.cgroup_id, bytes)
}

/// The facts that all events have.
#[inline(always)]
fn facts<const EGRESS: bool>(ctx: &SkBuffContext, out: EventKind, into: EventKind) -> DnsEvent {
    // SAFETY: helpers take the context.
    unsafe {
        DnsEvent {
            kind: if EGRESS { out } else { into } as u8,
            time_ns: bpf_ktime_get_boot_ns(),
            cookie: bpf_get_socket_cookie(ctx.as_ptr()),
            cgroup_id: bpf_skb_cgroup_id(ctx.skb.skb),
            ..DnsEvent::default()
        }
    }
}

/// Own socket and server as the packet shows them.
#[inline(always)]
fn packet_ends<const EGRESS: bool>(facts: &mut DnsEvent, src: (Addr, u16), dst: (Addr, u16)) {
    let (local, remote) = if EGRESS { (src, dst) } else { (dst, src) };
    facts.local = local.0;
    facts.local_port = local.1;
    facts.remote = remote.0;
    facts.remote_port = remote.1;
}

/// The server that the owner of the socket asked, where the packet shows another: what sendto() was given,
/// else the socket's peer.
#[inline(always)]
unsafe fn asked_server(facts: &mut DnsEvent, sk: *const bpf_sock) {
    // SAFETY: the caller passes a checked full socket.
    unsafe {
        let local_port = (*sk).src_port;
        if let Some((addr, port)) = asked::take(facts.cookie, local_port) {
            // The packet's own port may be translated, too.
            facts.local_port = local_port as u16;
            told(facts, addr, port);
        } else if is_service((*sk).dst_port) {
            peer(facts, sk);
        }
    }
}

/// Own socket and server as the connected socket knows them.
///
/// Volatile, and both families: the compiler would fold the two into one read at a computed offset,
/// which the verifier refuses for a socket.
#[inline(always)]
unsafe fn peer(facts: &mut DnsEvent, sk: *const bpf_sock) {
    // SAFETY: the caller passes a checked full socket.
    unsafe {
        let word = |at: *const u32| at.read_volatile();
        let remote4 = Addr::v4(word(&raw const (*sk).dst_ip4));
        let remote6 = Addr::v6([
            word(&raw const (*sk).dst_ip6[0]),
            word(&raw const (*sk).dst_ip6[1]),
            word(&raw const (*sk).dst_ip6[2]),
            word(&raw const (*sk).dst_ip6[3]),
        ]);
        let local4 = Addr::v4(word(&raw const (*sk).src_ip4));
        let local6 = Addr::v6([
            word(&raw const (*sk).src_ip6[0]),
            word(&raw const (*sk).src_ip6[1]),
            word(&raw const (*sk).src_ip6[2]),
            word(&raw const (*sk).src_ip6[3]),
        ]);
        let is_v6 = (*sk).family == AF_INET6 && !remote6.is_v4();
        facts.local = if is_v6 { local6 } else { local4 };
        facts.local_port = (*sk).src_port as u16;
        let port = u16::from_be((*sk).dst_port);
        told(facts, if is_v6 { remote6 } else { remote4 }, port);
    }
}

/// Puts the server asked in the place of the one that the packet shows.
#[inline(always)]
fn told(facts: &mut DnsEvent, addr: Addr, port: u16) {
    // Word by word: a comparison of arrays would be a call.
    let [a, b, c, d] = addr.0;
    let [e, f, g, h] = facts.remote.0;
    let same = (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0 && port == facts.remote_port;
    facts.translated = u8::from(!same);
    facts.remote = addr;
    facts.remote_port = port;
}

/// Puts an event with these facts and `len` bytes of the packet into the ring, in the smallest room, where there
/// is one.
#[inline(always)]
fn send(skb: *mut __sk_buff, facts: &DnsEvent, at: u32, len: u32) {
    if len < DNS_ROOM[0] as u32 {
        send_in::<{ DNS_ROOM[0] }>(skb, facts, at, len);
    } else if len < DNS_ROOM[1] as u32 {
        send_in::<{ DNS_ROOM[1] }>(skb, facts, at, len);
    } else {
        send_in::<{ DNS_ROOM[2] }>(skb, facts, at, len);
    }
}

#[inline(always)]
fn send_in<const ROOM: usize>(skb: *mut __sk_buff, facts: &DnsEvent, at: u32, len: u32) {
    if let Some(room) = copied::<ROOM>(skb, facts, at, len) {
        room.submit();
    }
}

/// An event with these facts and bytes, to be submitted; `None` where the ring has no room for it.
#[inline(always)]
fn copied<const ROOM: usize>(
    skb: *mut __sk_buff,
    facts: &DnsEvent,
    at: u32,
    len: u32,
) -> Option<Room<Message<ROOM>>> {
    // All kinds of DNS events share a slot.
    let mut room = reserve::<Message<ROOM>>(EventKind::DnsQuery)?;
    let message = room.as_mut_ptr();
    // SAFETY: the event is reserved, and the copy is bounded by its room.
    unsafe {
        let e = core::ptr::addr_of_mut!((*message).facts);
        e.write(*facts);
        let kept = core::ptr::addr_of_mut!((*e).len);
        kept.write_volatile(len as u16);
        if len != 0 {
            // Read back, so that the verifier forgets where the length came from: it would follow every way
            // through the headers apart from here on.
            let bounded = bound::<ROOM>(u32::from(kept.read_volatile()));
            let bytes = message.cast::<u8>().add(size_of::<DnsEvent>());
            let error = bpf_skb_load_bytes(skb as *const c_void, at, bytes.cast(), bounded);
            // Negative, or 0: without a branch, which the verifier would walk both ways of for each piece.
            let keeps = !(error >> (i64::BITS - 1));
            kept.write_volatile(kept.read_volatile() & keeps as u16);
        }
    }
    Some(room)
}

/// `len` as the verifier must see it: from 1 to `ROOM` - 1, `ROOM` being a power of two. Compared by
/// "greater": of "not equal" kernels before 6.8 learn nothing.
#[inline(always)]
fn bound<const ROOM: usize>(len: u32) -> u32 {
    let mut len = u64::from(len);
    // SAFETY: arithmetic on a register; in assembly, since the compiler would leave out what it can
    // prove and the verifier cannot.
    unsafe {
        core::arch::asm!(
            "{len} &= {mask}",
            "if {len} > 0 goto +1",
            "{len} = 1",
            len = inout(reg) len,
            mask = const ROOM as i32 - 1,
            options(pure, nomem, nostack),
        );
    }
    len as u32
}
