//! Pins: files on a BPF filesystem that keep ring, counters and links in the kernel while no flowend runs.
//!
//! One flowend uses a folder of them at a time: it holds a lock on the folder itself, which the kernel takes back from
//! whoever dies. A pin's name says what it is and in which layout ([`name`]).

mod error;
mod folder;
mod link;
pub(super) mod name;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{Map, MapData, MapError};
use aya::pin::PinError as AyaPinError;
use aya::programs::links::FdLink;
use nix::errno::Errno;
use nix::fcntl::Flock;
use tracing::{info, warn};

pub use error::PinError;
use folder::Use;
use name::{Known, LinkKey, MAPS, Pin, UNFINISHED};

use super::Role;
use crate::errors::error_chain;

/// The folder of pins, locked, and what of it nobody has taken over yet.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
    lock: PinsLock,
    maps: BTreeSet<String>,
    links: BTreeSet<LinkKey>,
    errors: bool,
    /// Of another layout, or not finished.
    others: BTreeSet<String>,
    /// Files that are not flowend's.
    strange: usize,
    /// Links that attach a program of this flowend, for whoever attaches to their cgroups.
    taken: BTreeMap<LinkKey, Link>,
    /// Nothing was there before, and the start is not over: what is pinned is worth nothing yet.
    is_new: bool,
}

/// Keeps every other flowend from the folder, for as long as one of its clones lives.
#[derive(Clone, Debug)]
#[allow(dead_code)] // it only has to live
pub struct PinsLock(Arc<Flock<File>>);

/// What is pinned, for a flowend that starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    /// A ring of so many bytes, and all that belongs to it.
    Ring(u32),
    /// Of another layout, or not complete.
    Unusable,
}

/// What was taken down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TakenDown {
    /// Pins that are gone, and with them programs, ring and counters.
    pub pins: usize,
    /// Files in the folder that are not flowend's; they are left.
    pub left: usize,
}

/// A link that keeps a program attached: for as long as this process lives, or as it is pinned.
#[derive(Debug)]
pub(super) struct Link {
    /// In the kernel.
    pub(super) id: u32,
    fd: Descriptor,
    pin: Option<PathBuf>,
}

/// What keeps it open.
#[derive(Debug)]
#[allow(dead_code)] // they only have to live
enum Descriptor {
    Made(FdLink),
    Opened(OwnedFd),
}

impl Link {
    /// One that ends with this process.
    pub(super) const fn unpinned(id: u32, link: FdLink) -> Self {
        Self { id, fd: Descriptor::Made(link), pin: None }
    }

    /// Detaches its program for good.
    pub(super) fn detach(self) {
        let Self { id: _, fd, pin } = self;
        if let Some(pin) = pin
            && let Err(error) = std::fs::remove_file(&pin)
        {
            warn!("{}: cannot be removed ({error}), so its program stays attached", pin.display());
        }
        drop(fd);
    }
}

impl Pins {
    /// Makes the folder if it is not there, locks it, and looks what is in it.
    ///
    /// # Errors
    /// [`PinError`]: where the folder cannot be one of pins, or another flowend uses it.
    pub fn open(folder: &Path) -> Result<Self, PinError> {
        folder::make(folder)?;
        Self::of(folder, Use::GoOn)
    }

    /// The same where the folder is there already; `None` where it is not, or no folder of pins.
    ///
    /// # Errors
    /// As [`Pins::open`].
    pub fn existing(folder: &Path) -> Result<Option<Self>, PinError> {
        Self::existing_for(folder, Use::GoOn)
    }

    /// The same for a folder whose pins are to be taken down, whoever they belong to.
    ///
    /// # Errors
    /// As [`Pins::open`].
    pub fn to_take_down(folder: &Path) -> Result<Option<Self>, PinError> {
        Self::existing_for(folder, Use::TakeDown)
    }

    fn existing_for(folder: &Path, to: Use) -> Result<Option<Self>, PinError> {
        if !folder.is_dir() || !folder::is_on_bpffs(folder)? {
            return Ok(None);
        }
        Self::of(folder, to).map(Some)
    }

    fn of(folder: &Path, to: Use) -> Result<Self, PinError> {
        let lock = folder::lock(folder, to)?;
        folder::check(folder, &lock)?;
        let mut pins = Self {
            folder: folder.to_owned(),
            lock: PinsLock(Arc::new(lock)),
            maps: BTreeSet::new(),
            links: BTreeSet::new(),
            errors: false,
            others: BTreeSet::new(),
            strange: 0,
            taken: BTreeMap::new(),
            is_new: false,
        };
        for name in folder::names(folder)? {
            match Known::parse(&name) {
                Some(Known::Here(Pin::Map(map))) => drop(pins.maps.insert(map)),
                Some(Known::Here(Pin::Link(key))) => drop(pins.links.insert(key)),
                Some(Known::Here(Pin::Errors)) => pins.errors = true,
                Some(Known::Other) => drop(pins.others.insert(name)),
                None => pins.strange += 1,
            }
        }
        pins.is_new = pins.is_empty();
        Ok(pins)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether nothing was pinned.
    pub fn is_empty(&self) -> bool {
        let Self { maps, links, errors, others, .. } = self;
        maps.is_empty() && links.is_empty() && !errors && others.is_empty()
    }

    /// The lock on the folder.
    pub(super) fn lock(&self) -> PinsLock {
        self.lock.clone()
    }

    /// Whether nothing was taken over, and the start is not over.
    pub(super) const fn is_new(&self) -> bool {
        self.is_new
    }

    /// What can be taken over.
    ///
    /// # Errors
    /// Where it cannot be opened, as without CAP_BPF: then nothing is known of it.
    pub(super) fn found(&self) -> Result<Found, PinError> {
        if self.is_empty() {
            return Ok(Found::Nothing);
        }
        let mut ring = None;
        for (map, wanted) in MAPS {
            if !self.maps.contains(map) {
                return Ok(Found::Unusable);
            }
            let path = self.path(&Pin::Map(map.into()));
            let failed = |error: MapError| match error {
                MapError::SyscallError(error) => PinError::io(&path)(error.io_error),
                error => PinError::io(&path)(std::io::Error::other(error_chain(&error))),
            };
            let info = MapData::from_pin(&path).and_then(|data| data.info()).map_err(failed)?;
            match wanted {
                None => ring = Some(info.max_entries()),
                Some(wanted) if wanted == info.max_entries() as usize => {}
                Some(_) => return Ok(Found::Unusable),
            }
        }
        Ok(ring.map_or(Found::Unusable, Found::Ring))
    }

    /// Where a pin is.
    pub(super) fn path(&self, pin: &Pin) -> PathBuf {
        self.folder.join(pin.name())
    }

    /// Takes everything down that is pinned: programs are detached, what is in the ring is lost. The folder goes with
    /// this, unless something else is in it.
    pub fn take_down(&mut self) -> TakenDown {
        // Attached programs first, which write into the maps.
        let links = std::mem::take(&mut self.links).into_iter().map(Pin::Link);
        let errors = std::mem::take(&mut self.errors).then_some(Pin::Errors);
        let maps = std::mem::take(&mut self.maps).into_iter().map(Pin::Map);
        let names: Vec<_> = links.chain(errors).chain(maps).map(|pin| pin.name()).collect();
        let taken = std::mem::take(&mut self.taken).into_values().filter_map(|link| link.pin);
        let paths = names.into_iter().chain(std::mem::take(&mut self.others));
        let paths = taken.chain(paths.map(|name| self.folder.join(name)));
        let mut down = TakenDown { pins: 0, left: self.strange };
        for path in paths {
            match std::fs::remove_file(&path) {
                Ok(()) => down.pins += 1,
                Err(error) => warn!("{}: cannot be removed ({error})", path.display()),
            }
        }
        self.is_new = true;
        down
    }

    /// Gives the pinned links the programs of this flowend, which `program` finds by name. One whose program is not
    /// wanted any more, or that attaches nothing, is taken down. Returns how many there are.
    pub(super) fn take_over<'a>(
        &mut self,
        program: impl Fn(&str) -> Option<BorrowedFd<'a>>,
    ) -> usize {
        for name in std::mem::take(&mut self.others) {
            let _ = std::fs::remove_file(self.folder.join(name));
        }
        for key in std::mem::take(&mut self.links) {
            let path = self.path(&Pin::Link(key.clone()));
            match exchanged(&path, program(&key.program)) {
                Ok(Some((id, fd))) => {
                    let link = Link { id, fd: Descriptor::Opened(fd), pin: Some(path) };
                    self.taken.insert(key, link);
                    continue;
                }
                Ok(None) => {}
                Err(error) => warn!(
                    "{}: the program cannot be exchanged ({error}); it is attached anew, and what happens in between \
                     is not seen",
                    path.display()
                ),
            }
            let _ = std::fs::remove_file(&path);
        }
        self.taken.len()
    }

    /// A link that was taken over; once.
    pub(super) fn take(&mut self, key: &LinkKey) -> Option<Link> {
        self.taken.remove(key)
    }

    /// The links that nobody took, by cgroup and what for.
    pub(super) fn left_over(&mut self) -> BTreeMap<(u64, Role), Vec<Link>> {
        let mut left = BTreeMap::<_, Vec<_>>::new();
        for (key, link) in std::mem::take(&mut self.taken) {
            left.entry((key.cgroup, key.role)).or_default().push(link);
        }
        left
    }

    /// Pins the maps of programs that were loaded just now.
    ///
    /// # Errors
    /// [`PinError::Io`].
    pub(super) fn pin_map(&mut self, name: &str, map: &Map) -> Result<(), PinError> {
        let path = self.path(&Pin::Map(name.into()));
        map.pin(&path).map_err(|error| failed(&path, error))?;
        self.maps.insert(name.into());
        Ok(())
    }

    /// Pins a link. It takes the place of one that is pinned under this name already, at once.
    ///
    /// # Errors
    /// [`PinError::Io`].
    pub(super) fn pin_link(&self, pin: &Pin, id: u32, link: FdLink) -> Result<Link, PinError> {
        let path = self.path(pin);
        let unfinished = self.folder.join(pin.name() + UNFINISHED);
        // Of one that was killed in between.
        let _ = std::fs::remove_file(&unfinished);
        let link = link.pin(&unfinished).map_err(|error| failed(&unfinished, error))?;
        std::fs::rename(&unfinished, &path).map_err(PinError::io(&path))?;
        Ok(Link { id, fd: Descriptor::Made(link.into()), pin: Some(path) })
    }

    /// Takes down the pin of the error reports, if there is one.
    pub(super) fn remove_errors(&self) {
        let _ = std::fs::remove_file(self.path(&Pin::Errors));
    }

    /// The start is over: from now on the pins are to outlive this process.
    pub(super) const fn keep(&mut self) {
        self.is_new = false;
    }
}

/// A start that failed leaves nothing behind that was not there before.
impl Drop for Pins {
    fn drop(&mut self) {
        if !self.is_new {
            return;
        }
        for name in folder::names(&self.folder).unwrap_or_default() {
            if Known::parse(&name).is_some() {
                let _ = std::fs::remove_file(self.folder.join(name));
            }
        }
        let _ = std::fs::remove_dir(&self.folder);
    }
}

/// Opens the link and gives it this program. `None` where it attaches nothing any more: its cgroup is gone with its
/// last socket, or somebody detached it; or where there is no program for it.
fn exchanged(
    path: &Path,
    program: Option<BorrowedFd<'_>>,
) -> std::io::Result<Option<(u32, OwnedFd)>> {
    use std::os::fd::AsFd as _;
    let Some(program) = program else { return Ok(None) };
    let fd = link::open(path)?;
    let about = link::about(fd.as_fd())?;
    if about.cgroup.is_none_or(|cgroup| cgroup == 0) {
        return Ok(None);
    }
    match link::exchange(fd.as_fd(), program) {
        Ok(()) => Ok(Some((about.id, fd))),
        // Detached since.
        Err(error) if error.raw_os_error() == Some(Errno::ENOLINK as i32) => Ok(None),
        Err(error) => Err(error),
    }
}

fn failed(path: &Path, error: AyaPinError) -> PinError {
    let cause = match error {
        AyaPinError::SyscallError(error) => error.io_error,
        other => std::io::Error::other(error_chain(&other)),
    };
    PinError::io(path)(cause)
}

/// Says what a start finds, before anything is loaded. `None`: everything is made anew.
///
/// # Errors
/// Where what is pinned cannot be opened.
pub(super) fn prepare(pins: &mut Pins, ring_bytes: u32) -> Result<Option<u32>, PinError> {
    let folder = pins.folder().display().to_string();
    Ok(match pins.found()? {
        Found::Nothing => {
            info!(
                "pins: {folder}: nothing there yet; from now on programs and ring outlive flowend"
            );
            None
        }
        Found::Ring(bytes) => {
            if bytes != ring_bytes {
                warn!(
                    "key `ring.bytes`: the ring pinned in {folder} has {bytes} bytes and is kept, since another one would \
                     lose what is in it; for one of {ring_bytes}, stop flowend and run `flowend unpin` before the next start"
                );
            }
            Some(bytes)
        }
        Found::Unusable => {
            let down = pins.take_down();
            warn!(
                "pins: {folder}: what was pinned there is not complete, or of another version's layout, so it is taken \
                 down ({} pins) and made anew; ends between the last stop and now are not reported",
                down.pins
            );
            None
        }
    })
}
