use std::{
    fmt, io,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use crate::BoxError;

/// The body of every response in this crate.
///
/// A scripted fault can end it early or leave it unfinished, see
/// [`Reply::cut_off`](crate::Reply::cut_off) and [`Reply::stalled`](crate::Reply::stalled).
pub struct Body(Kind);

type Stream = Pin<Box<dyn http_body::Body<Data = Bytes, Error = io::Error> + Send>>;

enum Kind {
    Full(Option<Bytes>),
    Half {
        data: Option<Bytes>,
        /// What the size hint promises but the body never delivers.
        missing: u64,
        end: HalfEnd,
        /// Whether the body has been pending once since its data, so that a server writes the data
        /// before it sees the error.
        paused: bool,
    },
    /// Behind a mutex that is never locked, because that makes the body `Sync`.
    Stream(Mutex<Stream>),
}

/// What happens after half a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HalfEnd {
    Error,
    Silence,
}

impl Body {
    /// Creates a body from a text or from bytes.
    pub fn new(data: impl Into<Bytes>) -> Self {
        let data = data.into();
        Self(Kind::Full((!data.is_empty()).then_some(data)))
    }

    /// Wraps a body of another type, such as that of a server framework.
    pub fn wrap<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let body: Stream = Box::pin(body.map_err(|error| io::Error::other(error.into())));
        Self(Kind::Stream(Mutex::new(body)))
    }

    /// Returns the first half of `data` as a body that promises all of it.
    pub(crate) fn half(data: &Bytes, end: HalfEnd) -> Self {
        let half = data.slice(..data.len() / 2);
        // An empty body has no half, so its size hint promises a byte.
        let missing = (data.len() - half.len()).max(1);
        Self(Kind::Half {
            data: (!half.is_empty()).then_some(half),
            missing: missing as u64,
            end,
            paused: false,
        })
    }

    pub(crate) fn is_half(&self) -> bool {
        matches!(self.0, Kind::Half { .. })
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::new(Bytes::new())
    }
}

impl From<Bytes> for Body {
    fn from(data: Bytes) -> Self {
        Self::new(data)
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Self::new(text)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut self.0 {
            Kind::Full(data) => Poll::Ready(data.take().map(|data| Ok(Frame::data(data)))),
            Kind::Half {
                data, end, paused, ..
            } => {
                if let Some(data) = data.take() {
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                if *end == HalfEnd::Silence {
                    return Poll::Pending;
                }
                if !*paused {
                    *paused = true;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                let error = io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the test server ended the body early",
                );
                Poll::Ready(Some(Err(error)))
            }
            Kind::Stream(stream) => stream
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner)
                .as_mut()
                .poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Kind::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        let len = |data: &Option<Bytes>| data.as_ref().map_or(0, |data| data.len() as u64);
        match &self.0 {
            Kind::Full(data) => SizeHint::with_exact(len(data)),
            Kind::Half { data, missing, .. } => SizeHint::with_exact(len(data) + missing),
            Kind::Stream(stream) => stream
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .size_hint(),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A body can contain a token.
        f.debug_struct("Body").finish_non_exhaustive()
    }
}
