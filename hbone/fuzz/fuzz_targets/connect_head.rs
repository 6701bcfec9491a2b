//! Header blocks as requests, responses and trailers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hbone::fuzzing::connect_head(data));
