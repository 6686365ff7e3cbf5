//! See `flowend::fuzzing::sock_diag`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flowend::fuzzing::sock_diag(input));
