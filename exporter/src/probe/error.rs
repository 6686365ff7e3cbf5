//! Errors of loading and attaching, in words that say what to do.

use std::io;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use nix::errno::Errno;

use super::PinError;
use crate::errors::error_chain;

const HELD: &str = "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are held";

const CAPABILITIES: &str =
    "run as root, or with the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON";

/// Why the programs cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel would say no, which without CAP_PERFMON may take its verifier a minute.
    #[error("BPF programs cannot be loaded: {0}")]
    Capabilities(String),
    /// EPERM, though every capability is there.
    #[error(
        "{what}: the kernel refused (EPERM), and {HELD}, so a security policy does (seccomp, SELinux, AppArmor, \
         kernel lockdown): allow bpf() there; or they are held in a user namespace of its own only, where they do not \
         count: run flowend in the host's"
    )]
    Permission {
        /// Map or program.
        what: String,
    },
    /// The kernel does not know the map or program type, or the verifier said no.
    #[error(
        "{what}: this kernel does not take it: {cause}; flowend needs Linux 5.10 or newer{log}"
    )]
    Unsupported {
        /// Map or program.
        what: String,
        /// Of the system.
        cause: String,
        /// The verifier's last words, if any.
        log: String,
    },
    /// The object lacks what the code expects.
    #[error("the compiled-in BPF object is damaged: {0}; rebuild it with `cargo xtask bpf`")]
    Object(String),
    /// What is to outlive this process cannot.
    #[error(transparent)]
    Pin(#[from] PinError),
}

impl LoadError {
    /// Whether the kernel, or its policy, does not take the program, so that there is nothing that the user forgot.
    pub const fn is_of_the_kernel(&self) -> bool {
        matches!(self, Self::Permission { .. } | Self::Unsupported { .. })
    }

    pub(super) fn from_object(error: EbpfError) -> Self {
        match &error {
            EbpfError::MapError(MapError::CreateError { name, io_error, .. }) => {
                Self::from_io(format!("BPF map {name}"), io_error, "")
            }
            EbpfError::MapError(_) => find_io(&error).map_or_else(
                || Self::Object(error_chain(&error)),
                |io| Self::from_io("BPF map".into(), io, ""),
            ),
            _ => Self::Object(error_chain(&error)),
        }
    }

    pub(super) fn from_program(name: &str, error: &ProgramError) -> Self {
        let what = format!("BPF program {name}");
        match error {
            ProgramError::LoadError { io_error, verifier_log } => {
                let log = verifier_log.to_string();
                let last: Vec<_> = log.lines().rev().take(5).collect();
                let last: Vec<_> = last.into_iter().rev().collect();
                Self::from_io(what, io_error, &last.join("\n"))
            }
            other => match find_io(other) {
                Some(io) => Self::from_io(what, io, ""),
                None => Self::Object(error_chain(other)),
            },
        }
    }

    fn from_io(what: String, error: &io::Error, log: &str) -> Self {
        // No capability is missing: that was asked before.
        if error.raw_os_error() == Some(Errno::EPERM as i32) {
            return Self::Permission { what };
        }
        let log = if log.is_empty() { String::new() } else { format!("\n{log}") };
        Self::Unsupported { what, cause: error.to_string(), log }
    }
}

/// Why the programs cannot be attached to a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The folder is gone, or never was.
    #[error("cgroup {cgroup}: no such cgroup; flowend attaches when it appears")]
    Gone {
        /// As a target is written.
        cgroup: String,
    },
    /// The folder cannot be opened.
    #[error(
        "cgroup {cgroup}: no permission to open it; run as root, or give read access to the folder"
    )]
    Open {
        /// As a target is written.
        cgroup: String,
    },
    /// EPERM from the kernel.
    #[error(
        "cgroup {cgroup}: the kernel refused to attach {program} (EPERM): either a program that allows no \
         other is attached there or above (see `bpftool cgroup tree`; detach it, or choose another \
         target), or capabilities are missing: {CAPABILITIES}"
    )]
    Exclusive {
        /// As a target is written.
        cgroup: String,
        /// Name of the program.
        program: String,
    },
    /// E2BIG from the kernel.
    #[error(
        "cgroup {cgroup}: 64 programs of one kind are attached there already, the kernel's limit, so {program} \
         found no place (E2BIG); detach one (`bpftool cgroup tree` lists them), or choose another target"
    )]
    Full {
        /// As a target is written.
        cgroup: String,
        /// Name of the program.
        program: String,
    },
    /// Anything else.
    #[error("cgroup {cgroup}: attaching {program}: {cause}")]
    Other {
        /// As a target is written.
        cgroup: String,
        /// Name of the program.
        program: String,
        /// Of the system.
        cause: String,
    },
}

impl AttachError {
    pub(super) fn from_open(cgroup: &str, error: &io::Error) -> Self {
        let cgroup = cgroup.to_owned();
        match error.kind() {
            io::ErrorKind::NotFound => Self::Gone { cgroup },
            io::ErrorKind::PermissionDenied => Self::Open { cgroup },
            _ => Self::Other { cgroup, program: "programs".into(), cause: error.to_string() },
        }
    }

    pub(super) fn from_program(cgroup: &str, program: &str, error: &ProgramError) -> Self {
        let (cgroup, program) = (cgroup.to_owned(), program.to_owned());
        match find_io(error).and_then(io::Error::raw_os_error) {
            Some(code) if code == Errno::EPERM as i32 => Self::Exclusive { cgroup, program },
            Some(code) if code == Errno::E2BIG as i32 => Self::Full { cgroup, program },
            Some(code) if code == Errno::ENOENT as i32 || code == Errno::ENODEV as i32 => {
                Self::Gone { cgroup }
            }
            _ => Self::Other { cgroup, program, cause: error_chain(error) },
        }
    }
}

/// The system error at the bottom of an error, if there is one.
fn find_io<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        next = error.source();
    }
    None
}
