//! Other kernels: a script, since what it does is files and other programs.

use crate::cargo::{command, succeed};

/// Beside this package.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/guests");

pub(crate) fn run(args: &[&str]) -> anyhow::Result<()> {
    succeed(command(SCRIPT)?.args(args))
}
