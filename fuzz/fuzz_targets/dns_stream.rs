//! See `flowend::fuzzing::dns_stream`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flowend::fuzzing::dns_stream(input));
