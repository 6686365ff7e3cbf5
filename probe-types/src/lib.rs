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
    Addr, DecodeError, Event, EventKind, ProcessEvent, TcpEvent, TcpState, LOST_SLOTS,
};
pub use packet::{parse, PacketBytes, Segment, Skip, ACK, FIN, PSH, RST, SYN, TERMINATING};
