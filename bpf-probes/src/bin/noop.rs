//! The baseline of the benches: programs at the same hooks that do nothing.

#![no_std]
#![no_main]

use aya_ebpf::{
    macros::{cgroup_skb, sock_ops},
    programs::{SkBuffContext, SockOpsContext},
};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program in which it could be.
    loop {}
}

#[cgroup_skb(ingress)]
fn noop_ingress(_: SkBuffContext) -> i32 {
    1
}

#[cgroup_skb(egress)]
fn noop_egress(_: SkBuffContext) -> i32 {
    1
}

#[sock_ops]
fn noop_sockops(_: SockOpsContext) -> u32 {
    1
}

/// The programs are dual Apache-2.0 and GPL-2.0; the kernel asks for the GPL and knows its name.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 4] = *b"GPL\0";
