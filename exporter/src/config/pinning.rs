//! What stays in the kernel over a restart.

use std::path::{Path, PathBuf};

use super::ConfigError;
use super::settings::{Origin, bad};

/// Whether programs and ring outlive flowend, and where they are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinning {
    /// They do.
    pub wanted: bool,
    /// A folder on a BPF filesystem. Absolute.
    pub folder: PathBuf,
    /// What is known of open connections, in between. Absolute.
    pub state: PathBuf,
}

pub(super) fn resolve(
    wanted: bool,
    folder: &str,
    state: &str,
    origin: Origin<'_>,
) -> Result<Pinning, ConfigError> {
    let absolute = |key: &str, text: &str, example: &str| {
        let is_one = Path::new(text).is_absolute() && Path::new(text).file_name().is_some();
        is_one.then(|| PathBuf::from(text)).ok_or_else(|| {
            let problem =
                format!("\"{text}\" is no path from the root; write one like \"{example}\"");
            bad(key, origin, problem)
        })
    };
    Ok(Pinning {
        wanted,
        folder: absolute("pin_folder", folder, "/sys/fs/bpf/flowend")?,
        state: absolute("pin_state", state, "/var/lib/flowend/state")?,
    })
}
