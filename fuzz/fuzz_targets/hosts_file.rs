//! See `flowend::fuzzing::hosts_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flowend::fuzzing::hosts_file(input));
