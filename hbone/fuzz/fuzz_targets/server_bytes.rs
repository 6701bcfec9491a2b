//! What a server receives of a client, in plaintext.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hbone::fuzzing::server_bytes(data));
