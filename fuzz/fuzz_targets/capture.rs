//! See `flowend::fuzzing::capture`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flowend::fuzzing::capture(input));
