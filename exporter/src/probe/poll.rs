//! Descriptors of the kernel that tokio waits for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// An owner of a descriptor, as tokio asks for it.
#[derive(Debug)]
pub struct Pollable<T>(pub T);

impl<T: AsFd> AsRawFd for Pollable<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Registers a descriptor with the runtime.
///
/// # Errors
/// When epoll does not take it, or outside a runtime.
pub fn register<T: AsFd + OwnsFd>(owner: T) -> io::Result<AsyncFd<Pollable<T>>> {
    // SAFETY: `OwnsFd` promises one open descriptor for as long as the owner lives, and AsyncFd owns
    // the owner.
    unsafe { AsyncFd::register_with_interest(Pollable(owner), Interest::READABLE) }
        .map_err(Into::into)
}

/// Owns one descriptor that stays open and the same until the owner is dropped.
pub trait OwnsFd {}

impl OwnsFd for super::Ring {}
impl OwnsFd for nix::sys::inotify::Inotify {}
