//! The frames that were read from a body, and which of them are kept for a replay.

use std::{collections::VecDeque, mem};

use bytes::Bytes;

use super::frame::{SMALL, StoredFrame};

/// Frames in the order in which they were read, and how far the newest reader has got.
///
/// Small frames are copied together once they are read, because each costs more memory than its
/// data: a slice keeps all of the buffer that it was cut from. So a replay may read fewer frames than
/// the first send, with the same data.
pub(super) struct Frames {
    stored: VecDeque<StoredFrame>,
    /// Data of small frames that follow those in `stored`. The newest reader has read all of them.
    small: Vec<u8>,
    /// Index in `stored` of the frame that the newest reader reads next.
    position: usize,
    retention: Retention,
    /// Bytes of data that were stored, and that the newest reader has read.
    data: u64,
    read: u64,
    /// Bytes that count towards the limit.
    cost: usize,
    limit: usize,
}

/// Small frames are copied together up to this number of bytes.
const BLOCK: usize = 8 * SMALL;

/// Which frames are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Retention {
    /// All frames, because another reader may start.
    All,
    /// Frames that the newest reader has not read. Its position stays at 0.
    UnreadOnly,
}

impl Frames {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            stored: VecDeque::new(),
            small: Vec::new(),
            position: 0,
            retention: Retention::All,
            data: 0,
            read: 0,
            cost: 0,
            limit,
        }
    }

    /// Whether all frames are kept, so that another reader can start.
    pub(super) fn are_complete(&self) -> bool {
        self.retention == Retention::All
    }

    /// Whether the newest reader has read every frame.
    pub(super) fn are_read(&self) -> bool {
        self.position == self.stored.len()
    }

    /// Bytes of data that the newest reader has read.
    pub(super) fn read(&self) -> u64 {
        self.read
    }

    /// Bytes of data that the newest reader has not read.
    pub(super) fn unread(&self) -> u64 {
        self.data - self.read
    }

    /// Returns the next frame that the newest reader has not read.
    pub(super) fn next(&mut self) -> Option<StoredFrame> {
        let frame = match self.retention {
            Retention::UnreadOnly => self.stored.pop_front()?,
            Retention::All => {
                let frame = self.stored.get(self.position)?.clone();
                self.position += 1;
                frame
            }
        };
        self.read += frame.len() as u64;
        Some(frame)
    }

    /// Adds a frame that the newest reader will read. Returns the frames that are no longer needed.
    pub(super) fn push_unread(&mut self, frame: StoredFrame) -> Vec<StoredFrame> {
        let is_within_limit = self.count(&frame);
        self.stored.push_back(frame);
        if is_within_limit {
            Vec::new()
        } else {
            self.discard_read()
        }
    }

    /// Adds a frame that the newest reader has read, as all before it. Returns the frames that are
    /// no longer needed.
    pub(super) fn push_read(&mut self, frame: &StoredFrame) -> Vec<StoredFrame> {
        self.read += frame.len() as u64;
        if !self.count(frame) {
            return self.discard_read();
        }
        if self.retention == Retention::All {
            self.keep_read(frame);
        }
        Vec::new()
    }

    /// Returns to the first frame, for a new reader. All frames have to be kept.
    pub(super) fn rewind(&mut self) {
        self.store_small();
        self.position = 0;
        self.read = 0;
    }

    /// Stops keeping frames once they are read, and takes out those that were.
    pub(super) fn discard_read(&mut self) -> Vec<StoredFrame> {
        self.retention = Retention::UnreadOnly;
        self.small = Vec::new();
        let read = mem::take(&mut self.position);
        self.stored.drain(..read).collect()
    }

    /// Counts a frame, and returns whether the limit is kept.
    fn count(&mut self, frame: &StoredFrame) -> bool {
        self.data += frame.len() as u64;
        self.cost = self.cost.saturating_add(frame.cost());
        self.cost <= self.limit
    }

    fn keep_read(&mut self, frame: &StoredFrame) {
        match frame.small_data() {
            Some(data) => {
                if self.small.len() + data.len() > BLOCK {
                    self.store_small();
                }
                self.small.extend_from_slice(data);
            }
            None => {
                self.store_small();
                self.store_read(frame.clone());
            }
        }
    }

    fn store_small(&mut self) {
        if !self.small.is_empty() {
            let data = Bytes::from(mem::take(&mut self.small));
            self.store_read(StoredFrame::Data(data));
        }
    }

    fn store_read(&mut self, frame: StoredFrame) {
        self.stored.push_back(frame);
        self.position += 1;
    }
}
