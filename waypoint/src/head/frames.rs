//! Where header blocks begin and end among the frames of HTTP/2 (RFC 9113 §4.1, §6.2, §6.10); what is in them is the engine's.

/// Of a frame, before its payload.
const HEADER: usize = 9;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// What has come of a client's frames.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Frames {
    header: [u8; HEADER],
    have: usize,
    /// Of the payload.
    missing: usize,
    in_block: bool,
    /// The block ends with this frame.
    ends: bool,
}

impl Frames {
    /// More bytes. Says for each block what happened to it: begun, or whole.
    pub(super) fn read(&mut self, mut bytes: &[u8], mut block: impl FnMut(bool)) {
        while !bytes.is_empty() {
            if self.missing == 0 {
                let n = bytes.len().min(HEADER - self.have);
                self.header[self.have..][..n].copy_from_slice(&bytes[..n]);
                self.have += n;
                bytes = &bytes[n..];
                if self.have < HEADER {
                    return;
                }
                self.begin(&mut block);
            }
            let n = bytes.len().min(self.missing);
            self.missing -= n;
            bytes = &bytes[n..];
            if self.missing == 0 && self.ends {
                (self.in_block, self.ends) = (false, false);
                block(false);
            }
        }
    }

    fn begin(&mut self, block: &mut impl FnMut(bool)) {
        let [a, b, c, kind, flags, ..] = self.header;
        self.have = 0;
        self.missing = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        // What follows a CONTINUATION without its HEADERS is the engine's to refuse.
        let of_block = kind == HEADERS || kind == CONTINUATION;
        self.ends = of_block && flags & END_HEADERS != 0;
        if of_block && !self.in_block {
            self.in_block = true;
            block(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).expect("short").to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.resize(HEADER + payload, b'x');
        frame
    }

    /// What is said of blocks, whichever way the bytes come.
    fn said(bytes: &[u8]) -> Vec<bool> {
        let read = |size: usize| {
            let (mut frames, mut said) = (Frames::default(), Vec::new());
            for part in bytes.chunks(size) {
                frames.read(part, |begun| said.push(begun));
            }
            said
        };
        let whole = read(bytes.len());
        for size in 1..20 {
            assert_eq!(read(size), whole, "{size} bytes at a time");
        }
        whole
    }

    #[test]
    fn a_block_is_whole_with_the_last_byte_of_its_last_frame() {
        let (settings, data) = (frame(4, 0, 6), frame(0, 1, 40));
        let whole = frame(HEADERS, END_HEADERS, 30);
        let [first, next] = [frame(HEADERS, 0, 30), frame(CONTINUATION, 0, 0)];
        let last = frame(CONTINUATION, END_HEADERS, 0);
        assert!(said(&settings).is_empty());
        assert_eq!(
            said(&[&settings[..], &whole, &data].concat()),
            [true, false]
        );
        assert_eq!(said(&whole[..whole.len() - 1]), [true]);
        assert_eq!(said(&[&first[..], &next].concat()), [true]);
        let all = [&first[..], &next, &last, &data, &whole].concat();
        assert_eq!(said(&all), [true, false, true, false]);
    }
}
