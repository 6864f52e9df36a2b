//! Request bodies: how they can be replayed, when their frames arrive, and how the API reads them.

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

/// The replay policy of a call, and its body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Policy {
    /// `CloneBody`, the default.
    #[default]
    Cloned,
    /// `Buffered`, with a streaming body.
    Buffered,
    /// `Buffered`, with a streaming body whose last frame exceeds the limit.
    Overflowing,
    /// `NoReplay`.
    NoReplay,
    /// `CloneBody`, with `NoReplay` as an extension of the request.
    OptedOut,
}

impl Policy {
    pub(crate) fn streams(self) -> bool {
        matches!(self, Self::Buffered | Self::Overflowing)
    }
}

/// The body of every request.
pub(crate) const TEXT: &str = "name=Ada";

/// A buffer limit that holds every frame but the last.
pub(crate) const SHORT_LIMIT: usize = 5;

/// The frames of a streaming body.
const FRAMES: [&str; 3] = ["name", "=", "Ada"];

/// A body whose frames become available when the history says so.
pub(crate) struct StreamingBody {
    source: FrameSource,
}

/// Controls when the frames of one body become available.
#[derive(Clone, Default)]
pub(crate) struct FrameSource(Arc<Mutex<Frames>>);

#[derive(Default)]
struct Frames {
    available: usize,
    read: usize,
    waiting: Option<Waker>,
}

impl FrameSource {
    pub(crate) fn body(&self) -> StreamingBody {
        StreamingBody {
            source: self.clone(),
        }
    }

    /// Makes the next frame available, if there is one.
    pub(crate) fn release_next(&self) {
        let waiting = {
            let mut frames = self.lock();
            frames.available = FRAMES.len().min(frames.available + 1);
            frames.waiting.take()
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Whether every available frame has been read. The end becomes available with the last frame.
    pub(crate) fn is_drained(&self) -> bool {
        let frames = self.lock();
        frames.read == frames.available
    }

    pub(crate) fn is_read_to_the_end(&self) -> bool {
        self.lock().read == FRAMES.len()
    }

    fn lock(&self) -> MutexGuard<'_, Frames> {
        self.0.lock().unwrap()
    }
}

impl Body for StreamingBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut frames = self.source.lock();
        if frames.read == FRAMES.len() {
            return Poll::Ready(None);
        }
        if frames.read == frames.available {
            frames.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let frame = Bytes::from_static(FRAMES[frames.read].as_bytes());
        frames.read += 1;
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }
}

/// Reads the body of one send, as the API does.
pub(crate) struct Upload<B> {
    body: Pin<Box<B>>,
    received: Vec<u8>,
    call: CallId,
    /// The number of the send within its call, from 1.
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

    /// Reads every frame that is available.
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
