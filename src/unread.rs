//! A rejection that nobody has read yet: it is held in case the caller gets it, and then read or
//! dropped, so that it takes up neither its connection nor the window of an HTTP/2 connection.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Buf;
use http::{Response, Version};
use http_body::Body;
use tokio::runtime::Handle;

use crate::clock::Timer;

/// How long a response is held. A renewal rarely takes longer, and a token request that waits for the
/// connection of the response still has most of its time left.
const HOLD: Duration = Duration::from_secs(1);

/// How long the rest of a response is read. Enough for 16 MiB at 27 Mbit/s.
const MAX_REST: Duration = Duration::from_secs(5);

/// A rejection that the caller gets if the renewal fails while the rejection is held.
pub(crate) struct Held<Res> {
    /// `None` when it is no longer held.
    response: Option<Res>,
    timer: Timer,
}

impl<Res> Held<Res> {
    /// `runtime` is where the time is measured.
    pub(crate) fn new(response: Res, runtime: Option<Handle>) -> Self {
        Self {
            response: Some(response),
            timer: Timer::new(HOLD, runtime),
        }
    }

    /// Waits until the response was held for long enough, and returns it once.
    pub(crate) fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<Res> {
        if self.response.is_some() {
            ready!(self.timer.poll(cx));
        }
        self.response.take().map_or(Poll::Pending, Poll::Ready)
    }

    /// Returns the response if it is still held.
    pub(crate) fn take(&mut self) -> Option<Res> {
        self.response.take()
    }
}

/// Reads a body that nobody wants, so that its HTTP/1.1 connection can be used again.
///
/// A client with several connections doesn't need this one, so [`poll_present`](Self::poll_present)
/// doesn't wait for more. A client with only one needs the body to be read to its end:
/// [`poll_rest`](Self::poll_rest) goes on while the call waits for something else.
pub(crate) struct Drain<Res> {
    response: Pin<Box<Res>>,
    /// Other requests of the connection don't wait for the end of this body.
    is_multiplexed: bool,
    bytes_left: usize,
    turns_left: u8,
    has_ended: bool,
    timer: Timer,
}

/// How many bytes are read in total: more than any API writes into a rejection on purpose.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// How many bytes are read before the call goes on, and then each time that it is polled.
const MAX_BYTES_AT_ONCE: usize = 64 * 1024;

/// How many bytes a frame counts for at least. Frames without data may never end.
const MIN_FRAME_LEN: usize = 16;

impl<B> Drain<Response<B>> {
    /// `runtime` is where the time is measured.
    pub(crate) fn new(response: Response<B>, runtime: Option<Handle>) -> Self {
        Self {
            is_multiplexed: response.version() >= Version::HTTP_2,
            response: Box::pin(response),
            bytes_left: MAX_BYTES,
            // hyper reads 8 KiB at a time, and need not have its turn each time.
            turns_left: 16,
            has_ended: false,
            timer: Timer::new(MAX_REST, runtime),
        }
    }

    /// Starts with a response that was held for long enough. Returns `None` if it can be dropped.
    ///
    /// Nothing more is expected of a body that has nothing to read by now.
    pub(crate) fn overdue(
        response: Response<B>,
        runtime: Option<Handle>,
        cx: &mut Context<'_>,
    ) -> Option<Self>
    where
        B: Body,
    {
        let mut drain = Self::new(response, runtime);
        if !drain.is_multiplexed {
            let _ = drain.poll_frames(MAX_BYTES_AT_ONCE, cx);
        }
        let has_begun = drain.bytes_left < MAX_BYTES;
        drain.rest().filter(|_| has_begun)
    }

    /// Returns what is left to read, and `None` if the response can be dropped.
    pub(crate) fn rest(self) -> Option<Self> {
        (!self.has_ended && !self.is_multiplexed).then_some(self)
    }
}

impl<Res: Body> Drain<Res> {
    /// Reads what has arrived.
    ///
    /// A client hands over one frame at a time and often reads the next, or takes the connection
    /// back, in a task of its own. So other tasks may run a few times in between.
    pub(crate) fn poll_present(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let already_read = MAX_BYTES - self.bytes_left;
        let left = MAX_BYTES_AT_ONCE.saturating_sub(already_read);
        if self.poll_frames(left, cx).is_ready() || self.turns_left == 0 {
            return Poll::Ready(());
        }
        self.turns_left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Waits until the body has ended, was read for long enough, or turned out to be too long.
    pub(crate) fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.poll_frames(MAX_BYTES_AT_ONCE, cx).is_ready() {
            if self.has_ended || self.bytes_left == 0 {
                return Poll::Ready(());
            }
            // There is more, but other tasks run first.
            cx.waker().wake_by_ref();
        }
        self.timer.poll(cx)
    }

    /// Reads until the body has ended or `max` bytes were read.
    fn poll_frames(&mut self, max: usize, cx: &mut Context<'_>) -> Poll<()> {
        let end = self.bytes_left.saturating_sub(max);
        while !self.has_ended && self.bytes_left > end {
            match ready!(self.response.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => {
                    let len = frame.data_ref().map_or(0, Buf::remaining);
                    self.bytes_left = self.bytes_left.saturating_sub(len.max(MIN_FRAME_LEN));
                    self.has_ended = self.response.is_end_stream();
                }
                Some(Err(_)) | None => self.has_ended = true,
            }
        }
        Poll::Ready(())
    }
}
