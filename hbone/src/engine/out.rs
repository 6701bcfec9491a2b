//! Records under construction in the thread's scratch memory: frames are written, and applications'
//! bytes read, into the very place where they are then sealed.

use std::io::{self, IoSliceMut};

use crate::frame::{self, StreamId};
use crate::limits::QUANTUM;
use crate::record::{self, RecordError, Records};

/// Room for one turn's quantum in records with their gaps, and for the frames around it.
pub(crate) const SCRATCH: usize = 640 << 10;

/// A record and what surrounds it.
pub(crate) const STRIDE: usize = record::HEAD + record::MOST + record::TAIL;

/// Application bytes that fill a record by themselves.
pub(crate) const FULL: usize = record::MOST - frame::HEAD;

/// Less room than this in a record is left: a new record costs less than another small read.
const SCRAP: usize = 1024;

/// The most records one read of an application's socket fills.
pub(crate) const MOST_RECORDS: usize = 16;

/// Sealed records, followed by the one that is open.
pub(crate) struct Out<'a> {
    buf: &'a mut [u8],
    records: &'a mut Records,
    /// Where the open record begins.
    start: usize,
    /// Where its next byte goes; `start` while it has none.
    at: usize,
}

// === impl Out ===

impl<'a> Out<'a> {
    /// Nothing yet, in a buffer of at least [`SCRATCH`].
    pub(crate) fn new(buf: &'a mut [u8], records: &'a mut Records) -> Self {
        Self {
            buf,
            records,
            start: 0,
            at: 0,
        }
    }

    /// Whether it is less than one write should be: then a whole quantum still has a place.
    pub(crate) fn has_room(&self) -> bool {
        self.start < QUANTUM
    }

    /// What has been sealed: whole records.
    pub(crate) fn finish(mut self) -> Result<usize, RecordError> {
        self.seal()?;
        Ok(self.start)
    }

    /// Appends frames as they are, across records where need be.
    pub(crate) fn put(&mut self, mut frames: &[u8]) -> Result<(), RecordError> {
        while !frames.is_empty() {
            let n = self.left()?.min(frames.len());
            let at = self.begin();
            self.buf[at..at + n].copy_from_slice(&frames[..n]);
            self.at = at + n;
            frames = &frames[n..];
        }
        Ok(())
    }

    /// Appends up to `room` bytes as DATA that `read` puts into the gaps it is given; how many.
    pub(crate) fn fill(
        &mut self,
        stream: StreamId,
        room: usize,
        records: usize,
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
    ) -> Result<io::Result<usize>, RecordError> {
        if self.left()? < frame::HEAD + SCRAP {
            self.seal()?;
        }
        let first = self.begin() + frame::HEAD;
        let space = self.start + record::HEAD + record::MOST - first;
        let mut gaps = [const { Gap { at: 0, len: 0 } }; MOST_RECORDS];
        let count = plan(&mut gaps, first, space, room, records);
        let n = match read_into(self.buf, &gaps[..count], read) {
            Ok(n) => n,
            Err(error) => {
                self.forget_empty();
                return Ok(Err(error));
            }
        };
        let mut left = n;
        for (index, gap) in gaps[..count].iter().enumerate() {
            let m = left.min(gap.len);
            if m == 0 {
                break;
            }
            if index > 0 {
                self.seal()?;
                self.begin();
            }
            let head = frame::data_head(stream, m, false);
            self.buf[gap.at - frame::HEAD..gap.at].copy_from_slice(&head);
            self.at = gap.at + m;
            left -= m;
        }
        self.forget_empty();
        Ok(Ok(n))
    }

    /// Bytes that still go into the open record.
    fn left(&mut self) -> Result<usize, RecordError> {
        if self.at == self.start + record::HEAD + record::MOST {
            self.seal()?;
        }
        match self.at == self.start {
            true => Ok(record::MOST),
            false => Ok(self.start + record::HEAD + record::MOST - self.at),
        }
    }

    /// Where the next byte goes, in a record that is open now.
    fn begin(&mut self) -> usize {
        if self.at == self.start {
            self.at = self.start + record::HEAD;
        }
        self.at
    }

    /// A record that was opened for nothing is none.
    fn forget_empty(&mut self) {
        if self.at == self.start + record::HEAD {
            self.at = self.start;
        }
    }

    fn seal(&mut self) -> Result<(), RecordError> {
        self.forget_empty();
        if self.at > self.start {
            let end = self.at + record::TAIL;
            self.records.seal(&mut self.buf[self.start..end])?;
            (self.start, self.at) = (end, end);
        }
        Ok(())
    }
}

/// A place for application bytes, behind a gap for the heads of its record and frame.
#[derive(Clone, Copy)]
struct Gap {
    at: usize,
    len: usize,
}

/// Lays `room` bytes out over the rest of the open record and those after it; how many pieces.
fn plan(
    gaps: &mut [Gap; MOST_RECORDS],
    mut at: usize,
    mut space: usize,
    mut room: usize,
    records: usize,
) -> usize {
    let mut count = 0;
    for gap in &mut gaps[..records.clamp(1, MOST_RECORDS)] {
        let len = space.min(room);
        if len == 0 {
            break;
        }
        *gap = Gap { at, len };
        room -= len;
        // The next one counts only where this one fills its record.
        at += space + record::TAIL + record::HEAD + frame::HEAD;
        space = FULL;
        count += 1;
    }
    count
}

fn read_into(
    buf: &mut [u8],
    gaps: &[Gap],
    read: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
) -> io::Result<usize> {
    if let [gap] = gaps {
        return read(&mut [IoSliceMut::new(&mut buf[gap.at..gap.at + gap.len])]);
    }
    let mut slices = [const { None }; MOST_RECORDS];
    let (mut rest, mut passed) = (buf, 0);
    for (slot, gap) in slices.iter_mut().zip(gaps) {
        let (slice, after) = rest.split_at_mut(gap.at - passed).1.split_at_mut(gap.len);
        *slot = Some(IoSliceMut::new(slice));
        (rest, passed) = (after, gap.at + gap.len);
    }
    let mut slices = slices.map(|slice| slice.unwrap_or_else(|| IoSliceMut::new(&mut [])));
    read(&mut slices[..gaps.len()])
}
