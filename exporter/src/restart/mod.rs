//! What outlives flowend: pins in the kernel (`crate::probe::Pins`), and beside them a file with what is known of open
//! connections.

mod going_on;
mod state;

use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use tracing::{info, warn};

pub use going_on::{GoingOn, Stopped};
pub use state::{STATE_VERSION, State, StateError};

use crate::config::Settings;
use crate::probe::{PinError, Pins, TakenDown};
use crate::whole_file;

/// The pins that `flowend run` goes on with, if it is to have any. Where it is not, and a flowend before left some, they
/// are taken down: nobody would ever read that ring.
///
/// # Errors
/// Where pins are asked for and cannot be had.
pub fn pins(settings: &Settings) -> anyhow::Result<Option<Pins>> {
    let pinning = &settings.pinning;
    if pinning.wanted {
        // It must be there before writing elsewhere is given up.
        let folder = pinning.state.parent().unwrap_or(&pinning.state);
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(folder).with_context(|| {
            format!(
                "key `pin_state`: {}: its folder cannot be made; make it for the user that flowend runs as, or name a \
                 file elsewhere",
                pinning.state.display()
            )
        })?;
        if let Some(kind) = whole_file::other_kind(&pinning.state).unwrap_or_default() {
            anyhow::bail!(
                "key `pin_state`: {} is {kind}; name a file that flowend may make and replace, in a folder that is there \
                 over a restart",
                pinning.state.display()
            );
        }
        return Ok(Some(Pins::open(&pinning.folder)?));
    }
    match Pins::existing(&pinning.folder) {
        Ok(Some(mut pins)) if !pins.is_empty() => {
            let down = pins.take_down();
            state::discard(&pinning.state);
            warn!(
                "{}; `pin` is false now. Ends between the last stop and now are not reported",
                words(&pins, down)
            );
        }
        Ok(_) => {}
        // Of a flowend that runs, with other settings.
        Err(PinError::InUse { .. }) => {}
        Err(error) => info!("{error}; what may be pinned there is left as it is"),
    }
    Ok(None)
}

/// `flowend unpin`: takes down what a flowend left that is not coming back.
///
/// # Errors
/// Where one runs, or the folder is not to be believed.
pub fn unpin(settings: &Settings) -> anyhow::Result<()> {
    let pinning = &settings.pinning;
    let words = match Pins::to_take_down(&pinning.folder)? {
        Some(mut pins) => {
            let down = pins.take_down();
            state::discard(&pinning.state);
            words(&pins, down)
        }
        None => format!("{}: nothing is pinned there", pinning.folder.display()),
    };
    // Not println!: a reader that went away is no reason to panic.
    let _ = writeln!(std::io::stdout(), "{words}");
    Ok(())
}

fn words(pins: &Pins, down: TakenDown) -> String {
    let folder = pins.folder().display();
    let left = match down.left {
        0 => String::new(),
        n => format!("; {n} other files there are not flowend's, and left"),
    };
    format!("pins: {folder}: {} taken down{left}", down.pins)
}

/// Where the names of addresses are kept over a restart: beside the state, unless the settings say where.
pub fn names_file(settings: &Settings) -> Option<PathBuf> {
    let beside = || {
        let state = &settings.pinning.state;
        let mut name = state.file_name()?.to_owned();
        name.push("-names");
        Some(state.with_file_name(name))
    };
    settings.names.snapshot.clone().or_else(beside)
}
