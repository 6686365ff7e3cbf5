//! See `flowend::fuzzing::event`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flowend::fuzzing::event(input));
