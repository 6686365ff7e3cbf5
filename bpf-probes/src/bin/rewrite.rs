//! For a test: a program that gives connect() another address, as load balancers at the socket do.

#![no_std]
#![no_main]

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

/// The address to replace, in network order; the loader sets it.
#[unsafe(no_mangle)]
static FROM_ADDRESS: u32 = 0;
/// Its port, in network order.
#[unsafe(no_mangle)]
static FROM_PORT: u32 = 0;
/// The address to put there, in network order.
#[unsafe(no_mangle)]
static TO_ADDRESS: u32 = 0;
/// Its port, in network order.
#[unsafe(no_mangle)]
static TO_PORT: u32 = 0;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program in which it could be.
    loop {}
}

#[cgroup_sock_addr(connect4)]
fn rewrite_connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid, and the verifier checks offset and size; the statics are valid, and
    // volatile, since the loader writes them.
    unsafe {
        let global = |word: *const u32| word.read_volatile();
        let asked = ctx.sock_addr;
        if (*asked).user_ip4 == global(&raw const FROM_ADDRESS)
            && (*asked).user_port == global(&raw const FROM_PORT)
        {
            (*asked).user_ip4 = global(&raw const TO_ADDRESS);
            (*asked).user_port = global(&raw const TO_PORT);
        }
    }
    1
}

/// The programs are dual Apache-2.0 and GPL-2.0; the kernel asks for the GPL and knows its name.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 4] = *b"GPL\0";
