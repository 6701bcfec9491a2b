//! What a client receives of a server, in plaintext.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hbone::fuzzing::client_bytes(data));
