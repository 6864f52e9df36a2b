//! A body that is complete in memory.

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::{frame::StoredFrame, framing::Framing};

/// A body that had ended before it was polled, or whose first poll returned everything there is: one
/// frame, or none.
#[derive(Clone)]
pub(super) struct InMemory {
    frame: Option<StoredFrame>,
    framing: Framing,
    /// Whether the original body reported its end before it was polled.
    had_ended: bool,
    is_polled: bool,
}

impl InMemory {
    pub(super) fn new(frame: Option<StoredFrame>, framing: Framing) -> Self {
        Self {
            frame,
            framing,
            had_ended: false,
            is_polled: false,
        }
    }

    pub(super) fn ended(framing: Framing) -> Self {
        Self {
            had_ended: true,
            ..Self::new(None, framing)
        }
    }

    /// Bytes that count towards the limit.
    pub(super) fn cost(&self) -> usize {
        self.frame.as_ref().map_or(0, StoredFrame::cost)
    }

    /// Returns the body to keep for a replay while this one is sent.
    pub(super) fn to_kept(&self) -> Self {
        Self {
            frame: self.frame.as_ref().map(StoredFrame::to_kept),
            ..*self
        }
    }

    pub(super) fn next_frame(&mut self) -> Option<Frame<Bytes>> {
        self.is_polled = true;
        self.frame.take().map(Frame::from)
    }

    /// Before the first poll, reports the end only if the original body did: HTTP clients frame
    /// a body that has ended in another way than one that ends when it is read.
    pub(super) fn is_end_stream(&self) -> bool {
        self.frame.is_none() && (self.is_polled || self.had_ended)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        if self.is_polled {
            return SizeHint::with_exact(0);
        }
        let data = self.frame.as_ref().map_or(0, StoredFrame::len);
        self.framing.size_of_remaining(0, data as u64, None)
    }
}
