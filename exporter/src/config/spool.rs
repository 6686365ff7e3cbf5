//! Of the disk spool.

use std::path::PathBuf;

use super::ConfigError;
use super::raw::RawSpool;
use super::settings::{Origin, bad};

/// Less is not worth a disk: it holds some 25 requests of full size.
const MIN_BYTES: u64 = 16 << 20;

/// Where requests wait out an outage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolSettings {
    /// Each signal of a destination has its own spool in it, in `<destination>/<logs|traces>`. Absolute.
    pub directory: PathBuf,
    /// Of each of these spools, bytes.
    pub max_bytes: u64,
}

pub(super) fn resolve(
    raw: &RawSpool,
    origin: Origin<'_>,
) -> Result<Option<SpoolSettings>, ConfigError> {
    let max_bytes =
        u64::try_from(raw.max_bytes).ok().filter(|n| *n >= MIN_BYTES).ok_or_else(|| {
            let problem = format!("{} is less than {MIN_BYTES} (16 MiB)", raw.max_bytes);
            bad("spool.max_bytes", origin, problem)
        })?;
    if raw.directory.is_empty() {
        return Ok(None);
    }
    let directory = PathBuf::from(&raw.directory);
    if !directory.is_absolute() {
        let problem = format!(
            "\"{}\" does not start at the root; write one like \"/var/lib/flowend/spool\"",
            raw.directory
        );
        return Err(bad("spool.directory", origin, problem));
    }
    Ok(Some(SpoolSettings { directory, max_bytes }))
}
