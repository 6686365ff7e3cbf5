//! flowend with tracefs and without: what it says at its start, and the fixture for whoever needs one or the
//! other, whatever the machine has mounted.

use std::process::Command;

use super::support::{Cgroup, Flowend, can_run};

/// What the fixture needs.
pub(crate) const TOOLS: [&str; 3] = ["unshare", "mount", "mountpoint"];

/// Whether flowend finds tracefs, which tells it of ICMP errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tracefs {
    Mounted,
    Absent,
}

/// `flowend run` in a mount namespace of its own, and waits until it is attached.
pub(crate) fn start(settings: &[String], tracefs: Tracefs) -> Flowend {
    let mount = match tracefs {
        // The same file system twice at one place is refused.
        Tracefs::Mounted => {
            "mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing"
        }
        Tracefs::Absent => "! mountpoint -q /sys/kernel/tracing || umount /sys/kernel/tracing",
    };
    let inner = Flowend::command(&["run"]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &format!("{{ {mount}; }} && exec \"$0\" \"$@\"")]);
    command.arg(inner.get_program()).args(inner.get_args());
    for setting in settings {
        command.args(["--set", setting]);
    }
    for (name, value) in inner.get_envs() {
        if value.is_none() {
            command.env_remove(name);
        }
    }
    Flowend::spawn(command)
}

#[test]
fn without_tracefs_the_start_says_what_is_lost_and_how_to_get_it() {
    if !can_run("without_tracefs_the_start_says_what_is_lost_and_how_to_get_it", &TOOLS) {
        return;
    }
    let cgroup = Cgroup::new();
    for (tracefs, says) in [(Tracefs::Mounted, 0), (Tracefs::Absent, 1)] {
        let flowend = start(&[format!("targets={}", cgroup.name)], tracefs);
        let (status, messages) = flowend.stop();
        assert_eq!(status, Some(0), "{tracefs:?}: {messages}");
        for words in [
            "tracefs is not mounted at /sys/kernel/tracing",
            "mount -t tracefs none /sys/kernel/tracing",
            "in a container, mount the host's folder",
            "is reported as aborted, not unreachable",
        ] {
            assert_eq!(messages.matches(words).count(), says, "{tracefs:?}, {words}: {messages}");
        }
        // It is optional, so nothing to worry about; and with it there is nothing to say.
        assert!(!messages.contains("WARN"), "{tracefs:?}: {messages}");
        let about = messages.matches("tracepoint").count() + messages.matches("tracefs").count();
        assert_eq!(about > 0, says > 0, "{tracefs:?}: {messages}");
    }
}
