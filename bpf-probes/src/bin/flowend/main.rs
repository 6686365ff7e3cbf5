//! The BPF programs of flowend: a stateless tap.
//!
//! Each program turns what it sees into one event in the ring buffer and lets everything pass; what
//! the events mean is decided in user space (`exporter/src/flow/`). Only stable structures are read
//! (`__sk_buff`, `bpf_sock`, `bpf_tcp_sock`, `bpf_sock_ops`, `bpf_sock_addr`), so no BTF is needed.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod asked;
mod dns;
mod error;
mod packet;
mod process;
mod ring;
mod segment;
mod socket;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program in which it could be.
    loop {}
}

/// The programs are dual Apache-2.0 and GPL-2.0; the kernel asks for the GPL and knows its name.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 4] = *b"GPL\0";
