//! The tracepoint `sock:inet_sk_error_report`: which error ended a connection. Optional.

use std::path::Path;

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{ProgramError, TracePoint};
use flowend_probe_types::ERROR_FORMAT;

use super::pins::Pins;
use super::pins::name::Pin;
use crate::errors::error_chain;

const PROGRAM: &str = "flowend_error";

/// Where tracefs is mounted (Documentation/trace/ftrace.rst).
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Where the kernel says how far it is locked down.
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

/// What the error report of a kernel that has it, or of a process that may use it, would add.
pub(super) const WITHOUT: &str = "without it an attempt that an ICMP error ended is reported as aborted, not unreachable, and an \
     expired keepalive is told by the connection's options";

/// Why the kernel's error reports cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NoErrors {
    /// `probe.without` names it.
    #[error("the kernel's error reports are switched off (probe.without); {WITHOUT}")]
    Off,
    /// A kernel that lets nobody read its memory, and so none of its tracepoints.
    #[error(
        "this kernel is locked down (lockdown=confidentiality), and so nobody may use its tracepoints; {WITHOUT}"
    )]
    Lockdown,
    /// No tracefs, or not readable.
    #[error(
        "tracefs is not mounted at /sys/kernel/tracing, or may not be read; mount it \
         (mount -t tracefs none /sys/kernel/tracing; in a container, mount the host's folder); {WITHOUT}"
    )]
    NoTracefs,
    /// A kernel without the tracepoint.
    #[error(
        "this kernel has no tracepoint sock:inet_sk_error_report (Linux 5.15 and newer have it); {WITHOUT}"
    )]
    NoTracepoint,
    /// A kernel that changed it.
    #[error(
        "this kernel's tracepoint sock:inet_sk_error_report has another format ({field}); {WITHOUT}"
    )]
    Format {
        /// The field that is not where it was.
        field: String,
    },
    /// Loading or attaching failed.
    #[error("the tracepoint sock:inet_sk_error_report cannot be attached: {cause}; {WITHOUT}")]
    Attach {
        /// Of the system.
        cause: String,
    },
}

/// Attaches the program, for as long as `ebpf` lives, or its pin.
pub(super) fn attach(ebpf: &mut Ebpf, pins: Option<&Pins>) -> Result<(), NoErrors> {
    // Without lockdown there is no such file; where it cannot be read, another error says what is missing.
    let lockdown = std::fs::read_to_string(LOCKDOWN).unwrap_or_default();
    let attached = try_attach(ebpf, pins);
    // One of a flowend before would go on by itself.
    if attached.is_err() {
        pins.into_iter().for_each(Pins::remove_errors);
    }
    attached.map_err(|error| if is_locked_down(&lockdown) { NoErrors::Lockdown } else { error })
}

/// What the file says between brackets is in force (security/lockdown/lockdown.c).
fn is_locked_down(modes: &str) -> bool {
    modes.contains("[confidentiality]")
}

fn try_attach(ebpf: &mut Ebpf, pins: Option<&Pins>) -> Result<(), NoErrors> {
    let text = read_format()?;
    check_format(&text)?;
    let program: &mut TracePoint = ebpf
        .program_mut(PROGRAM)
        .ok_or_else(|| NoErrors::Attach { cause: format!("no program {PROGRAM}") })?
        .try_into()
        .map_err(failed)?;
    program.load().map_err(failed)?;
    let id = program.attach("sock", "inet_sk_error_report").map_err(failed)?;
    let Some(pins) = pins else { return Ok(()) };
    // A tracepoint's link takes no other program, so there are two of them for a moment; an error that is told twice is
    // still one error.
    let other =
        |error: &(dyn std::error::Error + 'static)| NoErrors::Attach { cause: error_chain(error) };
    let link: FdLink = program
        .take_link(id)
        .map_err(failed)?
        .try_into()
        .map_err(|error: LinkError| other(&error))?;
    let about = link.info().map_err(|error| other(&error))?;
    pins.pin_link(&Pin::Errors, about.id(), link).map_err(|error| other(&error))?;
    Ok(())
}

fn failed(error: ProgramError) -> NoErrors {
    NoErrors::Attach { cause: error_chain(&error) }
}

fn read_format() -> Result<String, NoErrors> {
    let events = TRACEFS
        .iter()
        .map(|mount| Path::new(mount).join("events/sock"))
        .find(|folder| folder.is_dir())
        .ok_or(NoErrors::NoTracefs)?;
    std::fs::read_to_string(events.join("inet_sk_error_report/format")).map_err(|error| match error
        .kind()
    {
        std::io::ErrorKind::NotFound => NoErrors::NoTracepoint,
        _ => NoErrors::NoTracefs,
    })
}

/// Whether each field that the program reads lies where it reads it.
fn check_format(text: &str) -> Result<(), NoErrors> {
    for (name, offset, size) in ERROR_FORMAT {
        let found = text.lines().any(|line| {
            let mut parts = line.trim().split(';').map(str::trim);
            let declared = parts.next().and_then(|d| d.rsplit(' ').next()).unwrap_or_default();
            declared.split('[').next() == Some(name)
                && parts.next() == Some(&format!("offset:{offset}"))
                && parts.next() == Some(&format!("size:{size}"))
        });
        if !found {
            return Err(NoErrors::Format { field: name.into() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields as a kernel lists them, the one that is read late first.
    fn format(offset_of_error: usize) -> String {
        let mut text = String::from(
            "name: x\nformat:\n\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n",
        );
        for (name, offset, size) in ERROR_FORMAT {
            let offset = if name == "error" { offset_of_error } else { offset };
            let array = if size == 16 { "[16]" } else { "" };
            text += &format!(
                "\tfield:__u8 {name}{array};\toffset:{offset};\tsize:{size};\tsigned:0;\n"
            );
        }
        text
    }

    #[test]
    fn a_kernel_is_locked_down_where_the_strictest_mode_is_in_force() {
        for (modes, is_locked) in [
            ("none integrity [confidentiality]\n", true),
            ("none [integrity] confidentiality\n", false),
            ("[none] integrity confidentiality\n", false),
            ("", false),
        ] {
            assert_eq!(is_locked_down(modes), is_locked, "{modes}");
        }
    }

    #[test]
    fn a_format_is_known_or_refused_with_the_field() {
        assert!(check_format(&format(8)).is_ok());
        let error = check_format(&format(12)).unwrap_err().to_string();
        assert!(error.contains("another format (error)"), "{error}");
        assert!(check_format("").is_err());
    }
}
