//! The BPF programs: loading them, attaching them, and what they count.
//!
//! The object is built from `bpf-probes/` by `cargo xtask bpf` and committed, so that building
//! flowend needs no BPF toolchain.

mod attach;
mod error;
mod poll;
mod resolvers;
mod tracepoint;
mod watch;

use aya::maps::{Array, MapData, MapError, PerCpuArray, RingBuf};
use aya::{Ebpf, EbpfLoader};
use flowend_probe_types::{LOST_SLOTS, SKIPPED_SLOTS};

pub use attach::{Attachment, PROGRAMS, Program, ProgramKind, Role, detached_links};
pub use error::{AttachError, LoadError};
pub use poll::{Pollable, register};
pub use tracepoint::NoErrors;
pub use watch::{AttachState, TargetWatch};

use crate::config::Settings;

/// The committed object.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../bpf-probes/flowend.bpf.o");

/// The loaded programs and maps.
#[derive(Debug)]
pub struct Probe {
    ebpf: Ebpf,
    options: LoadOptions,
}

/// What to load.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Size of the ring buffer: a power of two, at least a page.
    pub ring_bytes: u32,
    /// Load the programs that tell the process, too. Without it a `Connect` event, which `dns` wants for
    /// its address, has the pid 0.
    pub process: bool,
    /// Copy DNS messages of port 53, UDP and TCP.
    pub dns: bool,
    /// And those of multicast DNS (UDP port 5353); not without `dns`.
    pub mdns: bool,
    /// And those of LLMNR (UDP port 5355); not without `dns`.
    pub llmnr: bool,
    /// Load the programs for cgroups that look names up for others; not without `dns`.
    pub resolvers: bool,
}

impl LoadOptions {
    /// What these settings ask for.
    pub const fn of(settings: &Settings) -> Self {
        let names = &settings.names;
        Self {
            ring_bytes: settings.ring_bytes,
            process: settings.process,
            dns: names.enabled,
            mdns: names.mdns,
            llmnr: names.llmnr,
            resolvers: !names.resolvers.is_empty(),
        }
    }
}

impl Probe {
    /// Loads the programs and creates the maps.
    ///
    /// # Errors
    /// [`LoadError`], with what the process lacks.
    pub fn load(options: LoadOptions) -> Result<Self, LoadError> {
        raise_limits();
        // Without it connections of other network namespaces are reconciled more cautiously.
        Self::load_with(options, true).or_else(|_| Self::load_with(options, false))
    }

    fn load_with(options: LoadOptions, netns_cookie: bool) -> Result<Self, LoadError> {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("EVENTS", options.ring_bytes)
            .override_global("DNS_ENABLED", &u8::from(options.dns), true)
            .override_global("DNS_MDNS", &u8::from(options.dns && options.mdns), true)
            .override_global("DNS_LLMNR", &u8::from(options.dns && options.llmnr), true)
            .override_global("TELL_PROCESS", &u8::from(options.process), true)
            .override_global("NETNS_COOKIE", &u8::from(netns_cookie), true)
            .load(OBJECT)
            .map_err(LoadError::from_object)?;
        for program in PROGRAMS {
            if program.is_wanted(&options) {
                attach::load(&mut ebpf, program)?;
            }
        }
        Ok(Self { ebpf, options })
    }

    /// Attaches the program that tells which error ended a connection, for as long as the probe lives.
    ///
    /// # Errors
    /// [`NoErrors`], what is missing; everything else works without it.
    pub fn attach_errors(&mut self) -> Result<(), NoErrors> {
        tracepoint::attach(&mut self.ebpf)
    }

    /// Loads one program alone, to learn whether this kernel takes it.
    ///
    /// # Errors
    /// As [`Probe::load`].
    pub fn try_program(name: &str) -> Result<(), LoadError> {
        raise_limits();
        let load = |netns_cookie: bool| {
            let mut ebpf = EbpfLoader::new()
                .map_max_entries("EVENTS", 4096)
                .override_global("NETNS_COOKIE", &u8::from(netns_cookie), true)
                .load(OBJECT)
                .map_err(LoadError::from_object)?;
            PROGRAMS
                .iter()
                .filter(|program| program.name == name)
                .try_for_each(|program| attach::load(&mut ebpf, program))
        };
        load(true).or_else(|_| load(false))
    }

    /// The ring buffer; once.
    pub fn take_ring(&mut self) -> Option<RingBuf<MapData>> {
        RingBuf::try_from(self.ebpf.take_map("EVENTS")?).ok()
    }

    /// The counters of events that found the ring full; once.
    pub fn take_lost(&mut self) -> Option<Lost> {
        PerCpuArray::try_from(self.ebpf.take_map("LOST")?).ok().map(Lost)
    }

    /// The counters of packets that could not be read; once.
    pub fn take_skipped(&mut self) -> Option<Skipped> {
        PerCpuArray::try_from(self.ebpf.take_map("SKIPPED")?).ok().map(Skipped)
    }

    /// The flag by which user space asks to be woken; once.
    pub fn take_asleep(&mut self) -> Option<Asleep> {
        Array::try_from(self.ebpf.take_map("ASLEEP")?).ok().map(Asleep)
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
        sums(&self.0)
    }
}

/// Whether user space sleeps until the ring holds something.
pub struct Asleep(Array<MapData, u32>);

impl Asleep {
    /// Has the programs wake whoever polls the ring, once, with the next event that is reserved from now on.
    ///
    /// # Errors
    /// When the kernel refuses to set it.
    pub fn set(&mut self) -> Result<(), MapError> {
        self.0.set(0, 1, 0)
    }
}

/// Packets with SYN, FIN or RST that could not be read.
pub struct Skipped(PerCpuArray<MapData, u64>);

impl Skipped {
    /// The count of each slot of [`SKIPPED_SLOTS`] since the programs were loaded.
    pub fn read(&self) -> [u64; SKIPPED_SLOTS.len()] {
        sums(&self.0)
    }
}

fn sums<const N: usize>(array: &PerCpuArray<MapData, u64>) -> [u64; N] {
    let mut counts = [0; N];
    for (slot, count) in (0..).zip(&mut counts) {
        *count = array.get(&slot, 0).map_or(0, |per_cpu| per_cpu.iter().sum());
    }
    counts
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
