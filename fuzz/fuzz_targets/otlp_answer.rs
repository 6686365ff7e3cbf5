//! See `flowend::fuzzing::otlp_answer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| flowend::fuzzing::otlp_answer(input));
