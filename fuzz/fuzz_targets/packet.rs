//! See `flowend::fuzzing::packet`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flowend::fuzzing::packet(input));
