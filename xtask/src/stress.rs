//! The stress tests. That of connections with the release build of flowend: a debug build is too slow to read
//! the ring at the rate at which two cores make connections. That of the delivery as it is tested: memory is the same.

use std::process::Command;

use anyhow::{Context as _, bail};

const CONNECTIONS: u32 = 100_000;
const TEST: &str = "stress::every_end_under_stress_is_reported_once_and_truly";
const OVERLOAD: &str = "overload::memory_stays_within_its_bound_under_a_minute_of_overload";

pub(crate) fn run() -> anyhow::Result<()> {
    // cargo put this program into TARGET/debug.
    let own = std::env::current_exe().context("own path")?;
    let target = own.ancestors().nth(2).context("no target folder above xtask")?;
    let cargo = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.args(args).args(["--locked", "--package", "flowend"]);
        command.env("CARGO_TARGET_DIR", target);
        // What cargo says of xtask's own package would make crates that look at it build anew.
        let of_package =
            |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_"].map(|p| name.starts_with(p));
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| of_package(name).contains(&true)) {
                command.env_remove(name);
            }
        }
        command
    };
    succeed(&mut cargo(&["build", "--release", "--bin", "flowend"]))?;
    // The processes that make connections, and the delivery: built by a plain `cargo test`, and not by one of a single test.
    succeed(&mut cargo(&["build", "--examples"]))?;
    succeed(
        cargo(&["test", "--test", "kernel"])
            .args(["--", "--exact", TEST, "--nocapture"])
            .env("TEST_FLOWEND", target.join("release/flowend"))
            .env("TEST_CONNECTIONS", CONNECTIONS.to_string())
            .env("TEST_REQUIRE", "all"),
    )?;
    succeed(cargo(&["test", "--test", "delivery"]).args([
        "--",
        "--exact",
        OVERLOAD,
        "--ignored",
        "--nocapture",
    ]))
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}
