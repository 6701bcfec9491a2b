//! One direction of a connection: a key, and the number of the next record.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

use super::{HEAD, Kind, MAX_RECORDS, MOST, RecordError, TAIL};

/// TLS 1.3 still says 1.2 here.
const VERSION: [u8; 2] = [3, 3];

pub(super) struct Keys {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    /// Never repeats under one key: the nonce is made of it.
    sequence: u64,
}

impl Keys {
    pub(super) fn new(
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, RecordError> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            _ => return Err(RecordError::NoKeys),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| RecordError::NoKeys)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            iv: iv.as_ref().try_into().map_err(|_| RecordError::NoKeys)?,
            sequence,
        })
    }

    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Nothing more can be sealed or opened.
    pub(super) fn exhaust(&mut self) {
        self.sequence = u64::MAX;
    }

    /// Opens `body`, the ciphertext with its tag; what is left is plaintext, type and padding.
    pub(super) fn open<'b>(
        &mut self,
        head: [u8; HEAD],
        body: &'b mut [u8],
    ) -> Result<&'b [u8], RecordError> {
        let nonce = self.nonce(u64::MAX)?;
        let inner = self.key.open_in_place(nonce, Aad::from(head), body);
        let inner = inner.map_err(|_| RecordError::BadTag)?;
        self.sequence += 1;
        Ok(inner)
    }

    /// Seals what lies between `HEAD` and `TAIL` of `record`.
    pub(super) fn seal(&mut self, kind: Kind, record: &mut [u8]) -> Result<(), RecordError> {
        let sealed = record.len().saturating_sub(HEAD);
        let Ok(len) = u16::try_from(sealed) else {
            return Err(RecordError::Misused);
        };
        if !(TAIL + 1..=TAIL + MOST).contains(&sealed) {
            return Err(RecordError::Misused);
        }
        let [high, low] = len.to_be_bytes();
        let head = [Kind::Data as u8, VERSION[0], VERSION[1], high, low];
        let (text, tail) = record.split_at_mut(HEAD + sealed - TAIL + 1);
        let (gap, text) = text.split_at_mut(HEAD);
        gap.copy_from_slice(&head);
        if let Some(last) = text.last_mut() {
            *last = kind as u8;
        }
        let nonce = self.nonce(MAX_RECORDS)?;
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(head), text)
            .map_err(|_| RecordError::Misused)?;
        tail.copy_from_slice(tag.as_ref());
        self.sequence += 1;
        Ok(())
    }

    /// A record of any inner plaintext: for tests of what no record of ours holds.
    #[cfg(test)]
    pub(super) fn seal_inner(&mut self, mut inner: Vec<u8>) -> Vec<u8> {
        let [high, low] = u16::try_from(inner.len() + 16).unwrap().to_be_bytes();
        let head = [Kind::Data as u8, VERSION[0], VERSION[1], high, low];
        let nonce = self.nonce(MAX_RECORDS).unwrap();
        self.key
            .seal_in_place_append_tag(nonce, Aad::from(head), &mut inner)
            .unwrap();
        self.sequence += 1;
        [&head[..], &inner].concat()
    }

    /// As if so many records had been.
    #[cfg(test)]
    pub(super) fn skip_to(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    /// The nonce of the next record, unless it is number `end`.
    fn nonce(&self, end: u64) -> Result<Nonce, RecordError> {
        if self.sequence >= end {
            return Err(RecordError::Exhausted);
        }
        let mut nonce = self.iv;
        for (byte, of) in nonce[NONCE_LEN - 8..]
            .iter_mut()
            .zip(self.sequence.to_be_bytes())
        {
            *byte ^= of;
        }
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}
