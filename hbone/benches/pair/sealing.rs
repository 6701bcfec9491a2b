//! What no tunnel can leave out: sealing every byte once and opening it once, and nothing else.

use std::hint::black_box;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::app::MESSAGE;
use crate::child::Cast;
use crate::pairs::numbers_of;
use crate::{Result, child, stage};

/// A full record of TLS, and what follows it.
const RECORD: usize = 16 << 10;
const TAG: usize = 16;

/// What bulk costs is measured over so many records, in memory as one read of a socket fills it.
const RECORDS: usize = 40_000;
const AT_ONCE: usize = 16;

/// What a message costs is measured over so many.
const MESSAGES: usize = 200_000;

/// CPU seconds of sealing and opening.
pub(crate) struct Sealing {
    pub(crate) per_gb: f64,
    /// Of one request and its answer, in records of their own.
    pub(crate) per_request: f64,
}

/// Measures it in a fresh process on the measured CPU.
pub(crate) fn measure(cast: &Cast) -> Result<Sealing> {
    match numbers_of(&cast.start(&["sealing"])?.line()?)?[..] {
        [per_gb, per_request] => Ok(Sealing {
            per_gb,
            per_request,
        }),
        _ => Err("sealing tells two numbers".into()),
    }
}

/// The process.
pub(crate) fn run() -> Result<()> {
    let record = seal_and_open(RECORD, RECORDS)?;
    let message = seal_and_open(MESSAGE, MESSAGES)?;
    child::tell(&format!(
        "{} {}",
        record * 1e9 / RECORD as f64,
        2.0 * message
    ))
}

/// CPU seconds that `size` bytes take, in records of the cipher that our ends agree on.
fn seal_and_open(size: usize, count: usize) -> Result<f64> {
    let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(|_| "no key")?;
    let key = LessSafeKey::new(key);
    let mut memory = vec![b'x'; AT_ONCE * (size + TAG)];
    let mut number = 0_u64;
    let mut pass = |count: usize| -> Result<f64> {
        let before = stage::cpu(std::process::id())?;
        for _ in 0..count / AT_ONCE {
            for record in memory.chunks_mut(size + TAG) {
                let (text, tag) = record.split_at_mut(size);
                let sealed = key.seal_in_place_separate_tag(nonce(number), Aad::empty(), text);
                tag.copy_from_slice(sealed.map_err(|_| "not sealed")?.as_ref());
                number += 1;
            }
            let first = number - AT_ONCE as u64;
            for (at, record) in memory.chunks_mut(size + TAG).enumerate() {
                let opened = key.open_in_place(nonce(first + at as u64), Aad::empty(), record);
                black_box(opened.map_err(|_| "not opened")?);
            }
        }
        Ok((stage::cpu(std::process::id())? - before) / count as f64)
    };
    pass(count / 10)?;
    pass(count)
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}
