//! The BPF programs: loading them, attaching them, and what they count.
//!
//! The object is built from `bpf-probes/` by `cargo xtask bpf` and committed, so that building
//! flowend needs no BPF toolchain.

mod attach;
mod error;
mod poll;
mod watch;

use aya::maps::{MapData, PerCpuArray, RingBuf};
use aya::{Ebpf, EbpfLoader};
use flowend_probe_types::LOST_SLOTS;

pub use attach::{Attachment, PROGRAMS, Program, ProgramKind, detached_links};
pub use error::{AttachError, LoadError};
pub use poll::{Pollable, register};
pub use watch::TargetWatch;

/// The committed object.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../bpf-probes/flowend.bpf.o");

/// The loaded programs and maps.
#[derive(Debug)]
pub struct Probe {
    ebpf: Ebpf,
    process: bool,
}

/// What to load.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Size of the ring buffer: a power of two, at least a page.
    pub ring_bytes: u32,
    /// Load the programs that tell the process, too.
    pub process: bool,
    /// Copy DNS messages.
    pub dns: bool,
}

impl Probe {
    /// Loads the programs and creates the maps.
    ///
    /// # Errors
    /// [`LoadError`], with what the process lacks.
    pub fn load(options: LoadOptions) -> Result<Self, LoadError> {
        raise_limits();
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("EVENTS", options.ring_bytes)
            .override_global("DNS_ENABLED", &u8::from(options.dns), true)
            .load(OBJECT)
            .map_err(LoadError::from_object)?;
        for program in PROGRAMS {
            if program.is_wanted(options.process) {
                attach::load(&mut ebpf, program)?;
            }
        }
        Ok(Self { ebpf, process: options.process })
    }

    /// Loads one program alone, to learn whether this kernel takes it.
    ///
    /// # Errors
    /// As [`Probe::load`].
    pub fn try_program(name: &str) -> Result<(), LoadError> {
        raise_limits();
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("EVENTS", 4096)
            .load(OBJECT)
            .map_err(LoadError::from_object)?;
        PROGRAMS
            .iter()
            .filter(|program| program.name == name)
            .try_for_each(|program| attach::load(&mut ebpf, program))
    }

    /// The ring buffer; once.
    pub fn take_ring(&mut self) -> Option<RingBuf<MapData>> {
        RingBuf::try_from(self.ebpf.take_map("EVENTS")?).ok()
    }

    /// The counters of events that found the ring full; once.
    pub fn take_lost(&mut self) -> Option<Lost> {
        PerCpuArray::try_from(self.ebpf.take_map("LOST")?).ok().map(Lost)
    }

    /// The programs themselves, for `BPF_PROG_TEST_RUN`.
    pub const fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

/// Events that found the ring full.
pub struct Lost(PerCpuArray<MapData, u64>);

impl Lost {
    /// The count of each slot of [`LOST_SLOTS`] since the programs were loaded.
    pub fn read(&self) -> [u64; LOST_SLOTS.len()] {
        let mut counts = [0; LOST_SLOTS.len()];
        for (slot, count) in (0..).zip(&mut counts) {
            *count = self.0.get(&slot, 0).map_or(0, |per_cpu| per_cpu.iter().sum());
        }
        counts
    }
}

/// Kernels before 5.11 count maps against RLIMIT_MEMLOCK; and each attachment is a descriptor.
fn raise_limits() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
    // Best effort: where it is refused and needed, creating the map fails with its own message.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
