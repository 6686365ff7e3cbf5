//! What flowend gives up once its programs are loaded: capabilities, new privileges, system calls, and writing
//! outside of its own folders.
//!
//! All of it holds for a thread and those that it starts. So it is done before the runtime has started any, and
//! nothing needs to be said to the others. docs/security.md says what is left, and why.

mod capabilities;
mod landlock;
mod seccomp;

use std::fmt;
use std::path::{Path, PathBuf};

use caps::{Capability, CapsHashSet};
use tracing::{info, warn};

pub use capabilities::{REMEDY, REQUIRED, Required, effective, missing, missing_here};

use crate::config::{Confine, Settings};
use crate::enrich::is_in_initial_pid_namespace;

/// What running takes, as the settings say.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Folders in which files are made.
    pub writes: Vec<PathBuf>,
    /// The port of telemetry.listen.
    pub listens: Option<u16>,
    /// Executables of processes are told.
    pub process: bool,
    /// Workloads' hosts files are read.
    pub hosts: bool,
    /// Links to cgroups that appear are pinned.
    pub pins: bool,
}

impl Needs {
    /// What these settings ask for.
    pub fn of(settings: &Settings) -> Self {
        let spool = settings.spool.as_ref().map(|spool| spool.directory.clone());
        // Written beside it and renamed.
        let snapshot = settings.names.snapshot.as_deref().map(folder_of);
        let pinning = &settings.pinning;
        let pins = [pinning.folder.clone(), folder_of(&pinning.state)];
        let pins = pins.into_iter().filter(|_| pinning.wanted);
        Self {
            writes: spool.into_iter().chain(snapshot).chain(pins).collect(),
            listens: settings.telemetry_listen.map(|address| address.port()),
            process: settings.process,
            hosts: settings.names.hosts,
            pins: pinning.wanted,
        }
    }

    /// Whether anything of other processes is read in /proc beyond what is everybody's. Landlock forbids it to whom it
    /// confines, whatever his capabilities (security/landlock/task.c, hook_ptrace_access_check).
    fn reads_processes(&self, held: &CapsHashSet, all_processes: bool) -> bool {
        self.hosts
            || held.contains(&Capability::CAP_SYS_ADMIN)
            || (all_processes && (self.process || held.contains(&Capability::CAP_SYS_PTRACE)))
    }
}

fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// One measure, and how it came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub measure: &'static str,
    /// How it came out.
    pub outcome: Outcome,
}

/// How a measure came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// In force; with what is left.
    Done(String),
    /// Left out, since what the settings ask for would not work with it.
    LeftOut(String),
    /// Not possible here.
    Failed(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { measure, outcome } = self;
        match outcome {
            Outcome::Done(words) if words.is_empty() => f.write_str(measure),
            Outcome::Done(words) => write!(f, "{measure} ({words})"),
            Outcome::LeftOut(words) => write!(f, "no {measure} ({words})"),
            Outcome::Failed(words) => write!(f, "{measure}: {words}"),
        }
    }
}

const CAPABILITIES: &str = "capabilities";
const NO_NEW_PRIVS: &str = "no_new_privs";
const SECCOMP: &str = "seccomp";
const LANDLOCK: &str = "Landlock";

const READS_PROCESSES: &str =
    "it would hide other processes, whose names and sockets flowend reads in /proc";

/// Confines this process as the settings say, and says so.
///
/// # Errors
/// With `confine = "required"` the first measure that is not possible.
pub fn confine(settings: &Settings) -> anyhow::Result<()> {
    if settings.confine == Confine::Off {
        info!("not confined: `confine` is \"off\"");
        return Ok(());
    }
    make_spool(settings);
    let steps = apply(&Needs::of(settings));
    let (failed, others): (Vec<_>, Vec<_>) =
        steps.iter().partition(|step| matches!(step.outcome, Outcome::Failed(_)));
    if !failed.is_empty() && settings.confine == Confine::Required {
        anyhow::bail!(
            "key `confine`: \"required\", and not all of it is possible here: {}; allow it, or set \"auto\"",
            list(&failed)
        );
    }
    info!("confined: {}", list(&others));
    if !failed.is_empty() {
        warn!("not confined by {}; flowend runs all the same", list(&failed));
    }
    Ok(())
}

/// Landlock can leave only folders that are there. What the spool cannot make it says itself.
fn make_spool(settings: &Settings) {
    use std::os::unix::fs::DirBuilderExt as _;
    if let Some(spool) = &settings.spool {
        let mut builder = std::fs::DirBuilder::new();
        let _ = builder.recursive(true).mode(0o700).create(&spool.directory);
    }
}

fn list(steps: &[&Step]) -> String {
    steps.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Confines this thread and those that it will start.
///
/// The order matters: each step takes what the next ones would forbid.
pub fn apply(needs: &Needs) -> Vec<Step> {
    let held = match capabilities::effective() {
        Ok(held) => held,
        Err(error) => return vec![failed(CAPABILITIES, &error)],
    };
    if let Some(cause) = other_threads() {
        return vec![failed(CAPABILITIES, &cause)];
    }
    let kept = capabilities::kept(needs, &held);
    let keep: CapsHashSet = kept.iter().map(|(capability, _)| *capability).collect();
    let all_processes = is_in_initial_pid_namespace();
    vec![
        step(
            CAPABILITIES,
            capabilities::keep_only(&keep).map(|dropped| {
                // Nothing can be gained from it, with no_new_privs.
                let rest = if dropped.bounding { "" } else { "; the bounding set stays as it was" };
                format!("{}{rest}", names(&kept))
            }),
        ),
        step(NO_NEW_PRIVS, nix::sys::prctl::set_no_new_privs().map(|()| String::new())),
        if needs.reads_processes(&held, all_processes) {
            Step { measure: LANDLOCK, outcome: Outcome::LeftOut(READS_PROCESSES.into()) }
        } else {
            landlock_step(needs)
        },
        step(
            SECCOMP,
            seccomp::apply(needs, keep.contains(&Capability::CAP_SYS_ADMIN))
                .map(|()| String::from("other system calls give EPERM")),
        ),
    ]
}

fn step<E: fmt::Display>(measure: &'static str, result: Result<String, E>) -> Step {
    match result {
        Ok(words) => Step { measure, outcome: Outcome::Done(words) },
        Err(error) => failed(measure, &error),
    }
}

fn failed(measure: &'static str, cause: &dyn fmt::Display) -> Step {
    Step { measure, outcome: Outcome::Failed(cause.to_string()) }
}

/// A thread that runs already would keep what this one gives up.
fn other_threads() -> Option<String> {
    match std::fs::read_dir("/proc/self/task").map(Iterator::count) {
        Ok(1) => None,
        Ok(threads) => Some(format!("{} other threads run already", threads.saturating_sub(1))),
        Err(error) => Some(format!("/proc/self/task: {error}")),
    }
}

fn landlock_step(needs: &Needs) -> Step {
    use ::landlock::RulesetStatus::{FullyEnforced, NotEnforced, PartiallyEnforced};
    let writes = match needs.writes.as_slice() {
        [] => String::from("no file is written"),
        folders => {
            let names: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
            format!("files are written below {} only", names.join(" and "))
        }
    };
    match landlock::apply(needs) {
        Ok(FullyEnforced) => Step { measure: LANDLOCK, outcome: Outcome::Done(writes) },
        Ok(PartiallyEnforced) => {
            let words = format!("{writes}; this kernel knows a part of the rules");
            Step { measure: LANDLOCK, outcome: Outcome::Done(words) }
        }
        Ok(NotEnforced) => failed(LANDLOCK, &NO_LANDLOCK),
        Err(problem) => failed(LANDLOCK, &problem),
    }
}

const NO_LANDLOCK: &str = "this kernel does not have it (Linux 5.13 and newer do, with CONFIG_SECURITY_LANDLOCK and \
     \"landlock\" among lsm=)";
const NO_SECCOMP: &str = "this kernel has no filters (CONFIG_SECCOMP_FILTER)";

fn names(kept: &[(Capability, &str)]) -> String {
    if kept.is_empty() {
        return "none".into();
    }
    kept.iter().map(|(capability, _)| capability.to_string()).collect::<Vec<_>>().join(", ")
}

/// What `run` would give up here, for `check`; changes nothing.
pub fn preview(settings: &Settings) -> Vec<Step> {
    if settings.confine == Confine::Off {
        let words =
            String::from("`confine` is \"off\": what flowend may do at the start it may do later");
        return vec![Step { measure: "all of it", outcome: Outcome::LeftOut(words) }];
    }
    let needs = Needs::of(settings);
    let held = capabilities::effective().unwrap_or_default();
    let kept = capabilities::kept(&needs, &held);
    let seccomp = if seccomp::is_there() { Ok(String::from("available")) } else { Err(NO_SECCOMP) };
    let landlock = if needs.reads_processes(&held, is_in_initial_pid_namespace()) {
        Step { measure: LANDLOCK, outcome: Outcome::LeftOut(READS_PROCESSES.into()) }
    } else {
        let there =
            if landlock::is_there() { Ok(String::from("available")) } else { Err(NO_LANDLOCK) };
        step(LANDLOCK, there)
    };
    let kept: Vec<_> =
        kept.iter().map(|(capability, purpose)| format!("{capability}: {purpose}")).collect();
    let kept = if kept.is_empty() { "none".into() } else { kept.join("; ") };
    vec![
        Step { measure: CAPABILITIES, outcome: Outcome::Done(format!("kept: {kept}")) },
        step(SECCOMP, seccomp),
        landlock,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn landlock_is_left_out_where_other_processes_are_read() {
        let held = |capabilities: &[Capability]| capabilities.iter().copied().collect();
        let (none, ptrace, admin): (CapsHashSet, CapsHashSet, CapsHashSet) =
            (held(&[]), held(&[Capability::CAP_SYS_PTRACE]), held(&[Capability::CAP_SYS_ADMIN]));
        let plain = Needs::default();
        let process = Needs { process: true, ..Needs::default() };
        let hosts = Needs { hosts: true, ..Needs::default() };
        for (needs, held, all_processes, want) in [
            (&plain, &none, true, false),
            (&plain, &ptrace, true, true),
            (&plain, &admin, false, true),
            (&process, &none, true, true),
            // In a container of its own there is nobody to be read.
            (&process, &ptrace, false, false),
            (&hosts, &none, false, true),
        ] {
            assert_eq!(needs.reads_processes(held, all_processes), want, "{needs:?} {held:?}");
        }
    }

    #[test]
    fn needs_follow_from_the_settings() {
        let needs = |set: &[&str]| {
            let set = set.iter().map(ToString::to_string).collect();
            let sources = crate::config::Sources { set, ..Default::default() };
            Needs::of(&crate::config::load(&sources).unwrap().settings)
        };
        let default = needs(&[]);
        assert_eq!((default.writes.len(), default.listens), (0, None));
        assert!(default.process && !default.hosts);
        let all = needs(&[
            "spool.directory=/var/lib/a/spool",
            "dns.snapshot=/var/lib/b/names",
            "telemetry.listen=127.0.0.1:80",
            "process.enabled=false",
            "dns.hosts=true",
            "pin=true",
            "pin_state=/var/lib/c/state",
        ]);
        let folders = ["/var/lib/a/spool", "/var/lib/b", "/sys/fs/bpf/flowend", "/var/lib/c"];
        assert_eq!(all.writes, folders.map(Path::new));
        assert!(all.pins && !default.pins);
        assert_eq!((all.listens, all.process, all.hosts), (Some(80), false, true));
        assert_eq!(folder_of(Path::new("names")), Path::new("."));
    }

    #[test]
    fn a_process_with_threads_is_not_confined_by_half() {
        // The harness has one beside this.
        let thread = std::thread::spawn(|| {
            let steps = apply(&Needs::default());
            let [Step { measure: CAPABILITIES, outcome: Outcome::Failed(words) }] = &*steps else {
                panic!("{steps:?}")
            };
            assert!(words.contains("other threads run already"), "{words}");
        });
        thread.join().unwrap();
    }
}
