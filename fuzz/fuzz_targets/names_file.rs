//! See `flowend::fuzzing::names_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flowend::fuzzing::names_file(input));
