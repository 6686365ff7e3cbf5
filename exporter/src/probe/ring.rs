//! The ring buffer that the programs write into, read here.
//!
//! The layout and the order of reads and writes are those of kernel/bpf/ringbuf.c: a page that the reader writes its
//! position into, a page with the writers' position, the data, and the data once more, so that a record may go on
//! past the end. Of the second copy no more is mapped than the longest record needs: all of it would count as
//! resident memory for a second time.

use std::ffi::c_void;
use std::io;
use std::mem::size_of;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use aya::maps::{MapData, MapError};
use flowend_probe_types::{DNS_ROOM, DnsEvent};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::{SysconfVar, sysconf};

/// Before each record: its length with the two bits below, and a number that only the kernel needs.
const HEADER: usize = 8;
/// Being written.
const BUSY: u32 = 1 << 31;
/// To be skipped.
const DISCARDED: u32 = 1 << 30;

/// The longest record with its header: a DNS message in the largest room.
const LONGEST: usize = HEADER + size_of::<DnsEvent>() + DNS_ROOM[DNS_ROOM.len() - 1];

/// Why the ring cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The kernel does not say how large it is.
    #[error("the size of the ring buffer")]
    Size(#[source] MapError),
    /// It cannot be mapped.
    #[error("mapping the ring buffer of {0} bytes")]
    Map(u32, #[source] io::Error),
}

/// A ring buffer with its only reader.
#[derive(Debug)]
pub struct Ring {
    map: MapData,
    /// What the reader writes: up to where it has read.
    reader: Mapping,
    /// What the writers write: up to where something is reserved, and a page further the data.
    writers: Mapping,
    page: usize,
    /// Of the data once, a power of two.
    size: usize,
    /// Up to where it was read, bytes since the ring was made.
    read: usize,
    /// Up to where something was reserved when that was last asked.
    reserved: usize,
}

impl Ring {
    /// Maps the ring. What others read of it before is gone; the rest is still there.
    ///
    /// # Errors
    /// [`RingError`]: ENOMEM, or EPERM where another process may not map it.
    pub fn new(map: MapData) -> Result<Self, RingError> {
        let size = map.info().map_err(RingError::Size)?.max_entries();
        let mapped = |error: nix::Error| RingError::Map(size, error.into());
        let page = sysconf(SysconfVar::PAGE_SIZE).map_err(mapped)?;
        let page = page.and_then(|page| usize::try_from(page).ok()).unwrap_or(4096);
        let bytes = size as usize;
        let fd = map.fd().as_fd();
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let reader = Mapping::new(fd, page, both, 0).map_err(mapped)?;
        let again = LONGEST.next_multiple_of(page).min(bytes);
        let all = page + bytes + again;
        let writers = Mapping::new(fd, all, ProtFlags::PROT_READ, page).map_err(mapped)?;
        let read = reader.position().load(Ordering::Acquire);
        let reserved = writers.position().load(Ordering::Acquire);
        Ok(Self { map, reader, writers, page, size: bytes, read, reserved })
    }

    /// The next record that is written to its end, if there is one. It is given back to the kernel when it is dropped.
    #[expect(clippy::should_implement_trait, reason = "a record borrows the ring")]
    pub fn next(&mut self) -> Option<Record<'_>> {
        loop {
            if self.read == self.reserved {
                self.reserved = self.writers.position().load(Ordering::Acquire);
                if self.read == self.reserved {
                    return None;
                }
            }
            let at = self.page + (self.read & (self.size - 1));
            // Its writer stores it last.
            let header = self.writers.word(at)?.load(Ordering::Acquire);
            if header & BUSY != 0 {
                return None;
            }
            let length = (header & !DISCARDED) as usize;
            let next = self.read.wrapping_add((HEADER + length).next_multiple_of(8));
            if header & DISCARDED == 0 {
                return Some(Record { start: at + HEADER, length, next, ring: self });
            }
            self.give_back(next);
        }
    }

    /// The kernel may write again into what lies before `next`.
    fn give_back(&mut self, next: usize) {
        self.read = next;
        self.reader.position().store(next, Ordering::Release);
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }
}

/// A record in the ring: its bytes.
#[derive(Debug)]
pub struct Record<'a> {
    ring: &'a mut Ring,
    start: usize,
    length: usize,
    next: usize,
}

impl Deref for Record<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.ring.writers.bytes(self.start, self.length)
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        self.ring.give_back(self.next);
    }
}

/// Memory that is shared with the kernel, until it is dropped.
#[derive(Debug)]
struct Mapping {
    start: NonNull<c_void>,
    length: usize,
}

// SAFETY: the memory belongs to no thread; what others write there meanwhile is read by atomics, or not before it was
// written to its end.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing is written but by atomics.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(
        fd: BorrowedFd<'_>,
        length: usize,
        access: ProtFlags,
        offset: usize,
    ) -> nix::Result<Self> {
        let bytes = NonZeroUsize::new(length).ok_or(nix::Error::EINVAL)?;
        let offset = offset.try_into().map_err(|_| nix::Error::EINVAL)?;
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let start = unsafe { mmap(None, bytes, access, MapFlags::MAP_SHARED, fd, offset) }?;
        Ok(Self { start, length })
    }

    /// The position in its first word: `unsigned long`.
    const fn position(&self) -> &AtomicUsize {
        // SAFETY: the mapping begins at a page, and has one at least; whoever writes this word does so atomically.
        unsafe { self.start.cast::<AtomicUsize>().as_ref() }
    }

    /// The word that begins so many bytes after the start; `None` where there is none.
    fn word(&self, at: usize) -> Option<&AtomicU32> {
        let ends = at.checked_add(size_of::<AtomicU32>())?;
        if ends > self.length || !at.is_multiple_of(size_of::<AtomicU32>()) {
            return None;
        }
        // SAFETY: within the mapping and aligned; writers store such a word atomically.
        Some(unsafe { self.start.byte_add(at).cast::<AtomicU32>().as_ref() })
    }

    /// Bytes that nobody writes any more, as far as they are mapped: a record that is longer than any is cut, and so no
    /// event.
    fn bytes(&self, start: usize, length: usize) -> &[u8] {
        let start = start.min(self.length);
        let length = length.min(self.length - start);
        // SAFETY: within the mapping. The kernel writes there again only once the record was given back, for which its
        // borrow has to end.
        unsafe {
            std::slice::from_raw_parts(self.start.byte_add(start).cast::<u8>().as_ptr(), length)
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing borrows from it any more. An error would mean that it is not there.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}
