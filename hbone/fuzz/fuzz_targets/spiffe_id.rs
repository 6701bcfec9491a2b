//! Texts as SPIFFE IDs and trust domains.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hbone::fuzzing::spiffe_id(data));
