//! See `flowend::fuzzing::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flowend::fuzzing::config(input));
