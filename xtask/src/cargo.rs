//! Commands that call cargo, from a program that cargo called.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail};

/// The target folder: cargo put this program into TARGET/debug.
pub(crate) fn target() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("own path")?;
    Ok(own.ancestors().nth(2).context("no target folder above xtask")?.to_owned())
}

/// A command with the environment that this program's own caller had.
pub(crate) fn command(program: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(program);
    command.env("CARGO_TARGET_DIR", target()?);
    // What cargo says of xtask's own package would make crates that look at it build anew.
    let of_package = |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_"].map(|p| name.starts_with(p));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| of_package(name).contains(&true)) {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// Runs it.
pub(crate) fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}
