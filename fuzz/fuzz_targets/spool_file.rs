//! See `flowend::fuzzing::spool_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flowend::fuzzing::spool_file(input));
