//! Developer commands: `cargo xtask COMMAND`.

mod bench;
mod bench_connection;
mod bench_idle;
mod bench_load;
mod bench_probe;
mod bench_scale;
mod bench_start;
mod bpf;
mod cargo;
mod guests;
mod sink;
mod stress;
mod verifier;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask COMMAND

  bpf           rebuild the BPF objects that are committed beside bpf-probes/
  bpf --check   fail unless a rebuild gives the committed bytes
  bench-probe   ns per packet of the built programs, beside a program that does nothing (root)
  bench-connection
                CPU of a connection that is watched, and flowend's own for it (root, two cores)
  bench-idle    CPU and memory while nothing happens, with 1 and 1,000 targets (root; 5 minutes)
  bench-scale   memory and time by size: connections, ends, cgroups (root; 6 minutes)
  bench-start   how long flowend takes to attach, and to stop (root)
  stress        100,000 connections twice, as fast as they go: each end once and true (root);
                two minutes of ends faster than a receiver takes them: memory stays within its bound
  guests [--all] [6.1] [6.12] [-- FILTER...]
                tests of the kernel in guests with Debian's kernels (tools/guests); TEST_FLOWEND: with that program
  guests --lockdown [6.1] [6.12], guests --arch aarch64 [6.1] [6.12]
                check and demo there: on a kernel that is locked down, on another processor
  verifier      what the verifier makes of each program: instructions walked, size, stack; fails near a limit (root)
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["bpf"] => bpf::rebuild(),
        ["bpf", "--check"] => bpf::check(),
        ["bench-probe"] => bench_probe::run(),
        ["bench-connection"] => bench_connection::run(),
        ["bench-idle"] => bench_idle::run(),
        ["bench-scale"] => bench_scale::run(),
        ["bench-start"] => bench_start::run(),
        // For bench-connection alone.
        [bench_load::COMMAND] => bench_load::run(),
        ["stress"] => stress::run(),
        ["guests", rest @ ..] => guests::run(rest),
        ["verifier"] => verifier::run(),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
