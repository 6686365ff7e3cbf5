//! Which capabilities flowend needs, which of them it keeps after the start, and the dropping of all others.

use std::fmt;
use std::path::Path;

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

use super::Needs;

/// A capability without which nothing can be seen.
#[derive(Debug)]
pub struct Required {
    /// Which one.
    pub capability: Capability,
    /// What it is for.
    pub purpose: &'static str,
}

impl fmt::Display for Required {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is missing (it is {})", self.capability, self.purpose)
    }
}

/// What to do about one that is missing.
pub const REMEDY: &str = "run as root, or give it to the process (systemd: AmbientCapabilities, Kubernetes: \
     securityContext.capabilities.add)";

/// What the start takes.
pub const REQUIRED: [Required; 3] = [
    Required { capability: Capability::CAP_BPF, purpose: "to make maps and load programs" },
    Required {
        capability: Capability::CAP_NET_ADMIN,
        purpose: "to load programs of the network and attach them to cgroups",
    },
    Required {
        capability: Capability::CAP_PERFMON,
        purpose: "to load programs that read the kernel's socket structures",
    },
];

/// Ports below it take CAP_NET_BIND_SERVICE (net.ipv4.ip_unprivileged_port_start, unless somebody lowered it).
const FIRST_FREE_PORT: u16 = 1024;

/// What this thread may do.
///
/// # Errors
/// Where the kernel does not tell.
pub fn effective() -> Result<CapsHashSet, CapsError> {
    caps::read(None, CapSet::Effective)
}

/// Which of the required capabilities are not among these. CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, which
/// were a part of it (include/linux/capability.h, bpf_capable and perfmon_capable).
pub fn missing(effective: &CapsHashSet) -> Vec<&'static Required> {
    let stands_in = effective.contains(&Capability::CAP_SYS_ADMIN);
    let is_missing = |required: &&Required| {
        let part_of_it = required.capability != Capability::CAP_NET_ADMIN;
        let is_there = effective.contains(&required.capability) || (stands_in && part_of_it);
        !is_there
    };
    REQUIRED.iter().filter(is_missing).collect()
}

/// What is missing of the required capabilities, what each is for, and what to do; `None` where none is.
pub fn missing_here() -> Option<String> {
    let missing: Vec<_> = missing(&effective().ok()?).iter().map(ToString::to_string).collect();
    (!missing.is_empty()).then(|| format!("{}; {REMEDY}", missing.join(", ")))
}

/// The capabilities that are kept of those held, and why; in the order in which they are told.
pub(super) fn kept(needs: &Needs, held: &CapsHashSet) -> Vec<(Capability, &'static str)> {
    let foreign = || needs.writes.iter().any(|folder| !is_own(folder));
    let binds_low = needs.listens.is_some_and(|port| (1..FIRST_FREE_PORT).contains(&port));
    [
        // Before Linux 5.19 every call of bpf() takes it where unprivileged ones are switched off.
        (Capability::CAP_BPF, "attach to cgroups that appear later, read maps", true),
        (Capability::CAP_NET_ADMIN, "attach to cgroups that appear later", true),
        (Capability::CAP_SYS_PTRACE, "see other users' processes in /proc", true),
        (Capability::CAP_DAC_READ_SEARCH, "list their sockets, read certificates again", true),
        (Capability::CAP_SYS_ADMIN, "enter other network namespaces", true),
        (Capability::CAP_DAC_OVERRIDE, "write to a folder of another user", foreign()),
        (Capability::CAP_NET_BIND_SERVICE, "listen on telemetry.listen", binds_low),
    ]
    .into_iter()
    .filter(|(capability, _, wanted)| *wanted && held.contains(capability))
    .map(|(capability, purpose, _)| (capability, purpose))
    .collect()
}

/// Whether files can be made there without power over other users' folders. One that is not there yet will
/// be made in the nearest one that is.
fn is_own(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let nearest = folder.ancestors().find_map(|folder| std::fs::metadata(folder).ok());
    nearest.is_some_and(|metadata| metadata.uid() == nix::unistd::geteuid().as_raw())
}

/// What came of dropping.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dropped {
    /// False: CAP_SETPCAP is not held, so the bounding set stays as it was.
    pub(super) bounding: bool,
}

/// Leaves this thread, and those that it will start, these capabilities alone: permitted and effective.
/// None is inheritable or ambient.
pub(super) fn keep_only(keep: &CapsHashSet) -> Result<Dropped, CapsError> {
    caps::clear(None, CapSet::Ambient)?;
    // First, since dropping from it takes a capability that is not kept.
    let bounding = effective()?.contains(&Capability::CAP_SETPCAP);
    if bounding {
        for capability in caps::runtime::thread_all_supported().difference(keep) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    caps::clear(None, CapSet::Inheritable)?;
    // What is effective must be permitted, so it goes first.
    caps::set(None, CapSet::Effective, keep)?;
    caps::set(None, CapSet::Permitted, keep)?;
    Ok(Dropped { bounding })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(capabilities: &[Capability]) -> CapsHashSet {
        capabilities.iter().copied().collect()
    }

    fn kept_of(needs: &Needs, held: &CapsHashSet) -> Vec<Capability> {
        kept(needs, held).into_iter().map(|(capability, _)| capability).collect()
    }

    #[test]
    fn what_is_missing_is_what_nothing_held_stands_for() {
        use Capability::{CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN};
        let cases: [(&[Capability], &[Capability]); 6] = [
            (&[], &[CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON]),
            (&[CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON], &[]),
            (&[CAP_NET_ADMIN, CAP_PERFMON], &[CAP_BPF]),
            (&[CAP_BPF, CAP_PERFMON], &[CAP_NET_ADMIN]),
            (&[CAP_SYS_ADMIN], &[CAP_NET_ADMIN]),
            (&[CAP_SYS_ADMIN, CAP_NET_ADMIN], &[]),
        ];
        for (held, want) in cases {
            let missing: Vec<_> = missing(&set(held)).iter().map(|r| r.capability).collect();
            assert_eq!(missing, want, "{held:?}");
        }
    }

    #[test]
    fn what_is_kept_follows_from_the_settings() {
        use Capability::{
            CAP_BPF, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_NET_ADMIN, CAP_NET_BIND_SERVICE,
            CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE,
        };
        let all = caps::all();
        let always =
            [CAP_BPF, CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN].as_slice();
        let own = tempfile::tempdir().unwrap();
        let own_folder = vec![own.path().join("not/yet")];
        let cases = [
            (Needs::default(), always.to_vec()),
            (Needs { writes: own_folder, ..Needs::default() }, always.to_vec()),
            (Needs { listens: Some(9464), ..Needs::default() }, always.to_vec()),
            (
                Needs { listens: Some(80), ..Needs::default() },
                [always, &[CAP_NET_BIND_SERVICE]].concat(),
            ),
            // A folder that cannot be looked at is taken for another user's.
            (
                Needs { writes: vec!["relative".into()], ..Needs::default() },
                [always, &[CAP_DAC_OVERRIDE]].concat(),
            ),
        ];
        for (needs, want) in cases {
            assert_eq!(kept_of(&needs, &all), want, "{needs:?}");
        }
        let few = set(&[CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON]);
        assert_eq!(kept_of(&Needs::default(), &few), [CAP_BPF, CAP_NET_ADMIN], "none is added");
    }
}
