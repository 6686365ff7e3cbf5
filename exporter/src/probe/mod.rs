//! The BPF programs: loading them, attaching them, and what they count.
//!
//! The object is built from `bpf-probes/` by `cargo xtask bpf` and committed, so that building
//! flowend needs no BPF toolchain.

mod attach;
mod error;
mod optional;
mod pins;
mod poll;
mod recheck;
mod resolvers;
mod ring;
mod tracepoint;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd as _;

use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray};
use aya::{Ebpf, EbpfLoader};
use flowend_probe_types::{Account, LOST_SLOTS, SKIPPED_SLOTS};
use tracing::info;

use pins::name::{MAPS, Pin, RING};

pub use attach::{Attachment, PROGRAMS, Program, ProgramKind, Role, detached_links};
pub use error::{AttachError, LoadError};
pub use optional::{Optional, ProgramCount, Without};
pub use pins::{PinError, Pins, PinsLock, TakenDown};
pub use poll::{Pollable, register};
pub use ring::{Record, Ring, RingError};
pub use tracepoint::NoErrors;
pub use watch::{AttachState, TargetWatch};

use crate::config::Settings;
use crate::confine;

/// The committed object.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../bpf-probes/flowend.bpf.o");

/// The loaded programs and maps.
#[derive(Debug)]
pub struct Probe {
    ebpf: Ebpf,
    options: LoadOptions,
    refused: Vec<Refused>,
    errors_attached: bool,
    /// Where links and maps are held that outlive this process.
    pins: Option<Pins>,
}

/// An optional program that this kernel does not take.
#[derive(Debug)]
pub struct Refused {
    /// Name in the object.
    pub program: &'static str,
    /// Its kind.
    pub optional: Optional,
    /// Why.
    pub why: LoadError,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; flowend runs without it: {}", self.why, self.optional.without())
    }
}

/// A ring that outlives this process.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// Its id in the kernel, which no other map gets before the machine is started anew.
    pub ring: u32,
    /// Nobody has read it before.
    pub is_new: bool,
    /// Nobody else reads it until this is gone.
    pub lock: PinsLock,
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
    /// What is switched off.
    pub without: Without,
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
            without: settings.without,
        }
    }
}

impl Probe {
    /// Loads the programs and creates the maps. An optional program that the kernel does not take is left
    /// out, see [`Probe::refused`].
    ///
    /// # Errors
    /// [`LoadError`], with what the process lacks.
    pub fn load(options: LoadOptions) -> Result<Self, LoadError> {
        Self::load_beside(options, None)
    }

    /// The same, with the maps that are pinned, and with programs that take the place of those that the pinned links
    /// attach. What is not pinned yet will be.
    ///
    /// # Errors
    /// As [`Probe::load`]; and what cannot be pinned.
    pub fn load_pinned(mut options: LoadOptions, mut pins: Pins) -> Result<Self, LoadError> {
        Self::may_load()?;
        let ring = pins::prepare(&mut pins, options.ring_bytes)?;
        options.ring_bytes = ring.unwrap_or(options.ring_bytes);
        let mut probe = Self::load_beside(options, ring.map(|_| &pins))?;
        if ring.is_some() {
            let programs = &probe.ebpf;
            let loaded = |name: &str| {
                let program = PROGRAMS.iter().find(|program| program.name == name)?;
                let is_wanted = program.is_wanted(&options);
                let fd = is_wanted.then(|| programs.program(name)?.fd().ok()).flatten()?;
                Some(fd.as_fd())
            };
            let links = pins.take_over(loaded);
            info!(
                "pins: {}: ring and {links} attached programs taken over",
                pins.folder().display()
            );
        } else {
            for (name, _) in MAPS {
                let map = probe.ebpf.map(name);
                let map = map.ok_or_else(|| LoadError::Object(format!("no map {name}")))?;
                pins.pin_map(name, map)?;
            }
        }
        probe.pins = Some(pins);
        Ok(probe)
    }

    fn load_beside(options: LoadOptions, pins: Option<&Pins>) -> Result<Self, LoadError> {
        Self::may_load()?;
        raise_limits();
        let all = Self::load_with(options, pins, true);
        if all.as_ref().is_ok_and(|probe| probe.refused.is_empty()) {
            return all;
        }
        // Without the cookie connections of other network namespaces are reconciled more cautiously, and kernels
        // before 5.15 take sockops.
        match (Self::load_with(options, pins, false), all) {
            (Ok(less), Ok(all)) if less.refused.len() >= all.refused.len() => Ok(all),
            (Err(_), Ok(all)) => Ok(all),
            (less, _) => less,
        }
    }

    fn load_with(
        options: LoadOptions,
        pins: Option<&Pins>,
        netns_cookie: bool,
    ) -> Result<Self, LoadError> {
        let mut loader = EbpfLoader::new();
        if let Some(pins) = pins {
            for (name, _) in MAPS {
                loader.map_pin_path(name, pins.path(&Pin::Map(name.into())));
            }
        }
        let mut ebpf = loader
            .map_max_entries("EVENTS", options.ring_bytes)
            .override_global("RING_BYTES", &u64::from(options.ring_bytes), true)
            .override_global("DNS_ENABLED", &u8::from(options.dns), true)
            .override_global("DNS_MDNS", &u8::from(options.dns && options.mdns), true)
            .override_global("DNS_LLMNR", &u8::from(options.dns && options.llmnr), true)
            .override_global("TELL_PROCESS", &u8::from(options.process), true)
            .override_global("NETNS_COOKIE", &u8::from(netns_cookie), true)
            .load(OBJECT)
            .map_err(LoadError::from_object)?;
        let mut refused = Vec::new();
        for program in PROGRAMS.iter().filter(|program| program.is_wanted(&options)) {
            match (attach::load(&mut ebpf, program), program.optional()) {
                (Ok(()), _) => {}
                (Err(why), Some(optional)) if why.is_of_the_kernel() => {
                    refused.push(Refused { program: program.name, optional, why });
                }
                (Err(error), _) => return Err(error),
            }
        }
        Ok(Self { ebpf, options, refused, errors_attached: false, pins: None })
    }

    /// Attaches the program that tells which error ended a connection, for as long as the probe lives.
    ///
    /// # Errors
    /// [`NoErrors`], what is missing; everything else works without it.
    pub fn attach_errors(&mut self) -> Result<(), NoErrors> {
        if self.options.without.contains(Optional::Errors) {
            self.pins.iter().for_each(Pins::remove_errors);
            return Err(NoErrors::Off);
        }
        tracepoint::attach(&mut self.ebpf, self.pins.as_ref())?;
        self.errors_attached = true;
        Ok(())
    }

    /// The optional programs that this kernel does not take.
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Of each optional program, in how many of these cgroups it is at work.
    pub fn count<'a>(
        &self,
        targets: impl Iterator<Item = &'a Attachment> + Clone,
    ) -> Vec<ProgramCount> {
        let all = targets.clone().count();
        let count = |optional: Optional| {
            let is_wanted = match optional {
                Optional::Errors => !self.options.without.contains(optional),
                _ => PROGRAMS
                    .iter()
                    .any(|p| p.optional() == Some(optional) && p.is_wanted(&self.options)),
            };
            let is_refused = match optional {
                Optional::Errors => !self.errors_attached,
                _ => self.refused.iter().any(|refused| refused.optional == optional),
            };
            let (refused, off) = match (is_wanted, is_refused) {
                (false, _) => (0, all),
                (true, true) => (all, 0),
                (true, false) => (targets.clone().filter(|t| t.lacks(optional)).count(), 0),
            };
            ProgramCount { optional, attached: all - refused - off, refused, off }
        };
        Optional::ALL.into_iter().map(count).collect()
    }

    /// The ring, if it outlives this process. Before the ring is taken.
    ///
    /// # Errors
    /// Where the kernel does not tell its id.
    pub fn pinned(&self) -> Result<Option<Pinned>, MapError> {
        let Some(pins) = &self.pins else { return Ok(None) };
        let Some(Map::RingBuf(ring)) = self.ebpf.map(RING) else { return Ok(None) };
        let (ring, is_new, lock) = (ring.info()?.id(), pins.is_new(), pins.lock());
        Ok(Some(Pinned { ring, is_new, lock }))
    }

    /// The links that were taken over, and that nobody attached to since: by cgroup and what for.
    fn left_over(&mut self) -> BTreeMap<(u64, Role), Attachment> {
        let left = self.pins.iter_mut().flat_map(Pins::left_over);
        left.map(|(key, links)| (key, links.into())).collect()
    }

    /// From now on the pins are to outlive this process.
    const fn keep_pins(&mut self) {
        if let Some(pins) = &mut self.pins {
            pins.keep();
        }
    }

    /// Whether this process has the capabilities without which the kernel takes no program.
    ///
    /// # Errors
    /// [`LoadError::Capabilities`], those that are missing.
    pub fn may_load() -> Result<(), LoadError> {
        confine::missing_here().map_or(Ok(()), |missing| Err(LoadError::Capabilities(missing)))
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

    /// The ring buffer; once, `None` after that.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn take_ring(&mut self) -> Result<Option<Ring>, RingError> {
        match self.ebpf.take_map(RING) {
            Some(Map::RingBuf(map)) => Ring::new(map).map(Some),
            _ => Ok(None),
        }
    }

    /// The counters of events that found the ring full; once.
    pub fn take_lost(&mut self) -> Option<Lost> {
        PerCpuArray::try_from(self.ebpf.take_map("LOST")?).ok().map(Lost)
    }

    /// The accounts of the cgroups that wrote while the ring was in use; once.
    pub fn take_accounts(&mut self) -> Option<Accounts> {
        BpfHashMap::try_from(self.ebpf.take_map("ACCOUNTS")?).ok().map(Accounts)
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

/// What each cgroup that wrote while the ring was in use has lost.
pub struct Accounts(BpfHashMap<MapData, u64, [u64; Account::WORDS]>);

impl Accounts {
    /// The words of each account, by cgroup. One that was not needed for long may be gone, and begin anew.
    pub fn read(&self) -> HashMap<u64, [u64; Account::WORDS]> {
        // While accounts come and go, one may be found twice, and a walk may begin again: it has an end all the same.
        self.0.iter().take(MAX_WALK).flatten().collect()
    }
}

/// Accounts looked at in one go; twice as many as the map holds.
const MAX_WALK: usize = 8192;

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
