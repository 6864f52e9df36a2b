//! A body that is complete in memory.

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::{frame::StoredFrame, framing::Framing};

/// A body whose first poll returned everything there is: one frame, or none.
#[derive(Clone)]
pub(super) struct InMemory {
    frame: Option<StoredFrame>,
    framing: Framing,
}

impl InMemory {
    pub(super) fn new(frame: Option<StoredFrame>, framing: Framing) -> Self {
        Self { frame, framing }
    }

    pub(super) fn empty() -> Self {
        Self::new(None, Framing::ContentLength)
    }

    /// Bytes of data that have not been read.
    pub(super) fn len(&self) -> usize {
        self.frame.as_ref().map_or(0, StoredFrame::len)
    }

    pub(super) fn next_frame(&mut self) -> Option<Frame<Bytes>> {
        self.frame.take().map(Frame::from)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.frame.is_none()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let has_trailers = self.frame.as_ref().is_some_and(StoredFrame::is_trailers);
        self.framing
            .size_of_remaining(self.len() as u64, has_trailers)
    }
}
