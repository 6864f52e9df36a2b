//! The bodies of requests: how they can be sent again, how they come, and how an API reads them.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame};
use tower::BoxError;

use crate::{observer::CallId, world::SharedObserver};

/// How the request of a call can be sent a second time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Policy {
    /// `CloneBody`, the default.
    #[default]
    Cloned,
    /// `Buffered`, around a body that streams.
    Buffered,
    /// The same, but the last frame of the body exceeds the limit.
    Overflowing,
    /// `Never`.
    Never,
    /// `CloneBody`, but the request carries `NoReplay`.
    OptedOut,
}

impl Policy {
    pub(crate) fn streams(self) -> bool {
        matches!(self, Self::Buffered | Self::Overflowing)
    }
}

/// What every request says.
pub(crate) const TEXT: &str = "name=Ada";

/// As much as an `Overflowing` body is remembered of; all but its last frame.
pub(crate) const SHORT_LIMIT: usize = 5;

/// The frames of a body that streams.
const FRAMES: [&str; 3] = ["name", "=", "Ada"];

/// A body whose frames come when the history says so.
pub(crate) struct Streamed {
    belt: Belt,
}

/// Brings the frames of one body.
#[derive(Clone, Default)]
pub(crate) struct Belt(Arc<Mutex<Frames>>);

#[derive(Default)]
struct Frames {
    brought: usize,
    read: usize,
    waiting: Option<Waker>,
}

impl Belt {
    pub(crate) fn body(&self) -> Streamed {
        Streamed { belt: self.clone() }
    }

    /// Brings the next frame, if one is left.
    pub(crate) fn bring(&self) {
        let waiting = {
            let mut frames = self.lock();
            frames.brought = FRAMES.len().min(frames.brought + 1);
            frames.waiting.take()
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Whether all that was brought has been read; the end counts as brought with the last frame.
    pub(crate) fn is_empty(&self) -> bool {
        let frames = self.lock();
        frames.read == frames.brought
    }

    pub(crate) fn is_read(&self) -> bool {
        self.lock().read == FRAMES.len()
    }

    fn lock(&self) -> MutexGuard<'_, Frames> {
        self.0.lock().unwrap()
    }
}

impl Body for Streamed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut frames = self.belt.lock();
        if frames.read == FRAMES.len() {
            return Poll::Ready(None);
        }
        if frames.read == frames.brought {
            frames.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let frame = Bytes::from_static(FRAMES[frames.read].as_bytes());
        frames.read += 1;
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }
}

/// An API that reads the body of one send.
pub(crate) struct Upload<B> {
    body: Pin<Box<B>>,
    received: Vec<u8>,
    call: CallId,
    /// Which of the call's sends it is.
    send: usize,
    observer: SharedObserver,
    has_ended: bool,
}

impl<B> Upload<B>
where
    B: Body<Error: Into<BoxError>>,
{
    pub(crate) fn new(body: B, call: CallId, send: usize, observer: SharedObserver) -> Self {
        Self {
            body: Box::pin(body),
            received: Vec::new(),
            call,
            send,
            observer,
            has_ended: false,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Reads what is there.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.has_ended {
            match self.body.as_mut().poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => {
                    let mut data = frame.into_data().ok().expect("there are no trailers");
                    self.received.extend(data.copy_to_bytes(data.remaining()));
                }
                Poll::Ready(end) => {
                    self.has_ended = true;
                    let is_failed = end.is_some();
                    let mut observer = self.observer.lock();
                    observer.upload_ended(self.call, self.send, is_failed, &self.received);
                }
            }
        }
        Poll::Ready(())
    }
}
