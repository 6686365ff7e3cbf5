//! What crosses the kernel boundary: the layout of the events in the ring buffer, and the packet
//! parser that the BPF programs and the host share.
//!
//! Everything here is `no_std`, plain data and pure functions. An event is written once by a BPF
//! program (`bpf-probes/`) and read once by the host (`exporter/src/source.rs`); both are built from
//! this file, so the layout cannot differ.

#![no_std]

mod event;
mod packet;

pub use event::{
    Account, Addr, Claim, DNS_ROOM, DecodeError, DnsEvent, ERROR_FIELDS, ERROR_FORMAT,
    ERRORS_PER_SECOND, ErrorEvent, ErrorFields, Event, EventKind, LOST_SLOTS, ProcessEvent,
    RingItem, TcpEvent, TcpState,
};
pub use packet::{
    ACK, Datagram, FIN, IPPROTO_TCP, IPPROTO_UDP, Network, PSH, PacketBytes, RST, SKIPPED_SLOTS,
    SYN, Segment, Skip, TERMINATING, parse, parse_network, parse_tcp, parse_udp,
};
