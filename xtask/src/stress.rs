//! The stress tests. That of connections with the release build of flowend, or with the program that TEST_FLOWEND names: a debug
//! build is too slow to read the ring at the rate at which two cores make connections. That of the delivery as it is tested: memory is the same.

use std::process::Command;

use crate::cargo::{command, succeed, target};

const CONNECTIONS: u32 = 100_000;
const TEST: &str = "stress::every_end_under_stress_is_reported_once_and_truly";
const OVERLOAD: &str = "overload::memory_stays_within_its_bound_under_a_minute_of_overload";

pub(crate) fn run() -> anyhow::Result<()> {
    let cargo = |args: &[&str]| -> anyhow::Result<Command> {
        let mut command = command(env!("CARGO"))?;
        command.args(args).args(["--locked", "--package", "flowend"]);
        Ok(command)
    };
    let program = if let Some(program) = std::env::var_os("TEST_FLOWEND") {
        std::path::PathBuf::from(program)
    } else {
        succeed(&mut cargo(&["build", "--release", "--bin", "flowend"])?)?;
        target()?.join("release/flowend")
    };
    // The processes that make connections, and the delivery: built by a plain `cargo test`, and not by one of a single test.
    succeed(&mut cargo(&["build", "--examples"])?)?;
    succeed(
        cargo(&["test", "--test", "kernel"])?
            .args(["--", "--exact", TEST, "--nocapture"])
            .env("TEST_FLOWEND", &program)
            .env("TEST_CONNECTIONS", CONNECTIONS.to_string())
            .env("TEST_REQUIRE", "all"),
    )?;
    succeed(cargo(&["test", "--test", "delivery"])?.args([
        "--",
        "--exact",
        OVERLOAD,
        "--ignored",
        "--nocapture",
    ]))
}
