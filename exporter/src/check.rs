//! `flowend check`: the configuration, and what this kernel and these capabilities allow.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use caps::{Capability, CapsHashSet};

use crate::cgroup;
use crate::config::{Confine, Destination, Layered, Pinning, Settings};
use crate::confine::{self, Outcome, Step};
use crate::diag;
use crate::enrich::{FEW_HOSTS, NO_EXECUTABLES, is_in_initial_pid_namespace};
use crate::kernel::{self, FEATURES, OLDEST};
use crate::probe::{LoadOptions, Optional, PROGRAMS, PinError, Pins, Probe, Role};
use crate::targets::{Pattern, resolve};

/// How one point came out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Works with less.
    Less,
    Bad,
}

/// Prints one line for each point.
///
/// # Errors
/// When `run` would not work here, naming how many points are bad.
pub fn check(layered: &Layered) -> anyhow::Result<()> {
    let mut bad = 0;
    let mut say = |verdict: Verdict, point: &str, words: &str| {
        let mark = match verdict {
            Verdict::Good => "ok  ",
            Verdict::Less => "less",
            Verdict::Bad => {
                bad += 1;
                "BAD "
            }
        };
        // Not println!: a reader that went away is no reason to panic.
        let _ = writeln!(std::io::stdout(), "{mark}  {point}: {words}");
    };
    let settings = &layered.settings;
    say(Verdict::Good, "configuration", &outputs(layered));
    for warning in &layered.warnings {
        say(Verdict::Less, "configuration", warning);
    }
    version(&mut say);
    capabilities(&mut say);
    programs(LoadOptions::of(settings), &mut say);
    for optional in Optional::ALL.into_iter().filter(|o| settings.without.contains(*o)) {
        // Of the error reports their own point tells.
        if optional != Optional::Errors {
            let words = format!("switched off (probe.without): {}", optional.without());
            say(Verdict::Less, optional.as_str(), &words);
        }
    }
    match Probe::load(LoadOptions::of(settings)) {
        Ok(mut probe) => {
            say(Verdict::Good, "ring buffer", &format!("{} bytes", settings.ring_bytes));
            match probe.attach_errors() {
                Ok(()) => {
                    say(Verdict::Good, "error reports", "can be attached (unreachable, keepalive)")
                }
                Err(error) => say(Verdict::Less, "error reports", &error.to_string()),
            }
            targets(layered, Some(probe), &mut say);
        }
        Err(error) => {
            say(Verdict::Bad, "ring buffer and programs", &error.to_string());
            targets(layered, None, &mut say);
        }
    }
    older_connections(&mut say);
    process_names(settings.process, &mut say);
    if settings.names.hosts && !is_in_initial_pid_namespace() {
        say(Verdict::Less, "hosts files", FEW_HOSTS);
    }
    pins(settings, &mut say);
    confinement(settings, &mut say);
    anyhow::ensure!(bad == 0, "{bad} point(s) above are bad: `flowend run` would not work here");
    Ok(())
}

fn outputs(layered: &Layered) -> String {
    let mut words = String::from("valid; output");
    for output in &layered.settings.outputs {
        let _ = write!(words, " {}", output.as_str());
    }
    for Destination { name, logs, traces } in &layered.settings.destinations {
        for (signal, receiver) in [("logs", logs), ("traces", traces)] {
            if let Some(receiver) = receiver {
                let _ = write!(words, "; {name}: {signal} to {}", receiver.endpoint);
            }
        }
    }
    words
}

/// Whether programs and ring can outlive flowend, where they are to.
fn pins(settings: &Settings, say: &mut impl FnMut(Verdict, &str, &str)) {
    let Pinning { wanted: true, folder, state } = &settings.pinning else { return };
    let folder = folder.display();
    match Pins::open(&settings.pinning.folder) {
        Ok(pins) => {
            let what = if pins.is_empty() {
                "nothing is there yet"
            } else {
                "left by a flowend that does not run"
            };
            let words = format!("{folder}: {what}; state: {}", state.display());
            say(Verdict::Good, "pins", &words);
        }
        Err(PinError::InUse { .. }) => {
            say(Verdict::Good, "pins", &format!("{folder}: in use by a flowend that runs"));
        }
        Err(error) => say(Verdict::Bad, "pins", &error.to_string()),
    }
}

/// Its version, and what kernels of that age do not show.
fn version(say: &mut impl FnMut(Verdict, &str, &str)) {
    let release = kernel::release();
    let numbers = kernel::numbers(&release);
    if numbers < OLDEST {
        let words = format!("Linux {release}; flowend needs {}.{} or newer", OLDEST.0, OLDEST.1);
        return say(Verdict::Bad, "kernel", &words);
    }
    say(Verdict::Good, "kernel", &format!("Linux {release}"));
    for feature in FEATURES.iter().filter(|feature| !feature.is_in(numbers)) {
        let (major, minor) = feature.since;
        say(Verdict::Less, "kernel", &format!("before Linux {major}.{minor} {}", feature.without));
    }
}

fn capabilities(say: &mut impl FnMut(Verdict, &str, &str)) {
    let missing: Vec<_> =
        confine::missing(&effective()).iter().map(|required| required.capability).collect();
    for required in &confine::REQUIRED {
        let name = required.capability.to_string();
        if missing.contains(&required.capability) {
            let words = format!("missing (it is {}); {}", required.purpose, confine::REMEDY);
            say(Verdict::Bad, &name, &words);
        } else {
            say(Verdict::Good, &name, "held");
        }
    }
}

/// What this process may do; nothing, where the kernel does not tell.
fn effective() -> CapsHashSet {
    confine::effective().unwrap_or_default()
}

/// What `run` gives up once its programs are loaded.
fn confinement(settings: &Settings, say: &mut impl FnMut(Verdict, &str, &str)) {
    for Step { measure, outcome } in confine::preview(settings) {
        let point = format!("confinement, {measure}");
        match outcome {
            Outcome::Done(words) => say(Verdict::Good, &point, &words),
            Outcome::LeftOut(words) => say(Verdict::Good, &point, &format!("not used: {words}")),
            Outcome::Failed(words) if settings.confine == Confine::Required => {
                let remedy = "`confine` is \"required\"; allow it, or set \"auto\"";
                say(Verdict::Bad, &point, &format!("{words}; {remedy}"));
            }
            Outcome::Failed(words) => say(Verdict::Less, &point, &words),
        }
    }
}

fn programs(options: LoadOptions, say: &mut impl FnMut(Verdict, &str, &str)) {
    // The point of the ring buffer and the programs tells why.
    if Probe::may_load().is_err() {
        return;
    }
    for program in PROGRAMS.iter().filter(|p| p.is_wanted(&options)) {
        match Probe::try_program(program.name) {
            Ok(()) => say(Verdict::Good, program.name, &format!("loads ({})", program.purpose)),
            Err(error) => match program.optional().filter(|_| error.is_of_the_kernel()) {
                Some(optional) => {
                    let words = format!("{error}; flowend runs without it: {}", optional.without());
                    say(Verdict::Less, program.name, &words);
                }
                None => say(Verdict::Bad, program.name, &error.to_string()),
            },
        }
    }
}

fn targets(layered: &Layered, probe: Option<Probe>, say: &mut impl FnMut(Verdict, &str, &str)) {
    let mount = match cgroup::mount(layered.settings.cgroup_mount.as_deref()) {
        Ok(mount) => mount,
        Err(error) => return say(Verdict::Bad, "cgroup v2", &error.to_string()),
    };
    let verdict = if mount.is_whole { Verdict::Good } else { Verdict::Less };
    say(verdict, "cgroup v2", &mount.to_string());
    let mount = mount.point;
    let watched = &layered.settings.watched;
    let (resolution, excluded) = watched.resolve(&mount);
    exclude(&mount, &watched.exclude, say);
    for name in excluded {
        say(Verdict::Less, "target", &format!("{name}: `exclude` covers all of it"));
    }
    for pattern in &resolution.unmatched {
        say(
            Verdict::Less,
            "target",
            &format!("{pattern}: no such cgroup yet; it is attached when it appears"),
        );
    }
    let Some(mut probe) = probe else { return };
    for folder in resolution.attach.values() {
        let name = cgroup::relative(&mount, folder);
        match probe.attach(folder, &name, Role::Target) {
            Ok(attachment) => {
                say(Verdict::Good, "target", &format!("{name}: can be attached"));
                attachment.missing().for_each(|words| say(Verdict::Less, "target", &words));
            }
            Err(error) => say(Verdict::Bad, "target", &error.to_string()),
        }
    }
}

/// What is left out now.
fn exclude(mount: &Path, patterns: &[Pattern], say: &mut impl FnMut(Verdict, &str, &str)) {
    let resolution = resolve(mount, patterns);
    for folder in resolution.attach.values() {
        let name = cgroup::relative(mount, folder);
        say(Verdict::Good, "exclude", &format!("{name}: its connections are not reported"));
    }
    for pattern in resolution.unmatched {
        say(Verdict::Good, "exclude", &format!("{pattern}: no such cgroup now"));
    }
}

/// Connections that are older than flowend are found among the kernel's sockets.
fn older_connections(say: &mut impl FnMut(Verdict, &str, &str)) {
    const POINT: &str = "older connections";
    match diag::dump(1) {
        Ok(_) => say(Verdict::Good, POINT, "sock_diag answers"),
        Err(error) => say(Verdict::Less, POINT, &error.to_string()),
    }
    if diag::can_enter_namespaces().is_err() {
        say(
            Verdict::Less,
            POINT,
            "other network namespaces cannot be entered (CAP_SYS_ADMIN): connections from before the start are \
             known in flowend's own namespace only",
        );
    }
}

fn process_names(process: bool, say: &mut impl FnMut(Verdict, &str, &str)) {
    if !process {
        return say(Verdict::Less, "process names", "switched off (process.enabled)");
    }
    if !is_in_initial_pid_namespace() {
        return say(Verdict::Less, "process names", NO_EXECUTABLES);
    }
    let effective = effective();
    if !effective.contains(&Capability::CAP_SYS_PTRACE) {
        return say(
            Verdict::Less,
            "process names",
            "without CAP_SYS_PTRACE only for processes of the same user",
        );
    }
    let lists = [Capability::CAP_DAC_READ_SEARCH, Capability::CAP_DAC_OVERRIDE];
    if !lists.iter().any(|capability| effective.contains(capability)) {
        return say(
            Verdict::Less,
            "process names",
            "readable; without CAP_DAC_READ_SEARCH not for connections from before the start that another user's \
             process holds",
        );
    }
    say(Verdict::Good, "process names", "readable");
}
