use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Buf;
use http_body::Body;

/// Reads what is already there of a body, so that its HTTP/1.1 connection can be used again.
///
/// Waits for nothing: a body that has more to come costs its connection. But a client hands over one
/// frame at a time and often reads the next, or takes the connection back, in a task of its own; so
/// other tasks are let run a few times in between.
pub(crate) struct Drain {
    bytes_left: usize,
    turns_left: u8,
    has_ended: bool,
}

impl Drain {
    pub(crate) fn new() -> Self {
        Self {
            bytes_left: 64 * 1024,
            // hyper reads 8 KiB at a time, and need not have its turn each time.
            turns_left: 16,
            has_ended: false,
        }
    }

    pub(crate) fn poll<B: Body>(
        &mut self,
        mut body: Pin<&mut B>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        while !self.has_ended && self.bytes_left > 0 {
            let Poll::Ready(frame) = body.as_mut().poll_frame(cx) else {
                return self.give_way(cx);
            };
            match frame {
                Some(Ok(frame)) => {
                    // An empty frame counts, too: they may never end.
                    let read = frame.data_ref().map_or(0, Buf::remaining).max(1);
                    self.bytes_left = self.bytes_left.saturating_sub(read);
                    self.has_ended = body.is_end_stream();
                }
                Some(Err(_)) | None => self.has_ended = true,
            }
        }
        Poll::Ready(())
    }

    /// Lets other tasks run, unless they have had their turns.
    fn give_way(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.turns_left == 0 {
            return Poll::Ready(());
        }
        self.turns_left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
