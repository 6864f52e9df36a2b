use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::BoxError;

use super::{buffer::BufferedReader, frame::into_bytes, in_memory::InMemory};

pin_project! {
    /// The request body that the inner service receives with [`Buffered`](super::Buffered).
    ///
    /// Yields the frames of the original body, and reports its exact size if the original does.
    ///
    /// # Errors
    ///
    /// Returns the error of the original body. Also fails if the request is sent again while this
    /// body is still being read, because the replay takes over the rest of the original body.
    ///
    /// # Cancel safety
    ///
    /// This body can be dropped at any time. A replay still gets all frames.
    ///
    /// # Examples
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http_body::Body;
    /// use http_body_util::Full;
    /// use tower_client_credentials::replay::{Buffered, ReplayPolicy};
    ///
    /// let (body, _kept) = Buffered::new(1024).split(Full::new(Bytes::from("name=Ada")));
    /// assert_eq!(body.size_hint().exact(), Some(8));
    /// ```
    pub struct ReplayBody<B> {
        #[pin]
        frames: Frames<B>,
    }
}

pin_project! {
    #[project = FramesProj]
    enum Frames<B> {
        // The body is complete in memory.
        InMemory { body: InMemory },
        // The body is longer than the limit, so nothing is kept of it.
        Unbuffered { #[pin] body: B },
        // Frames are kept while they are read.
        Buffered { reader: BufferedReader<B> },
    }
}

impl<B> ReplayBody<B> {
    pub(super) fn in_memory(body: InMemory) -> Self {
        Self {
            frames: Frames::InMemory { body },
        }
    }

    pub(super) fn unbuffered(body: B) -> Self {
        Self {
            frames: Frames::Unbuffered { body },
        }
    }

    pub(super) fn buffered(reader: BufferedReader<B>) -> Self {
        Self {
            frames: Frames::Buffered { reader },
        }
    }
}

impl<B> Body for ReplayBody<B>
where
    B: Body<Error: Into<BoxError>>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().frames.project() {
            FramesProj::InMemory { body } => Poll::Ready(body.next_frame().map(Ok)),
            FramesProj::Unbuffered { body } => {
                let frame = ready!(body.poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map(into_bytes).map_err(Into::into)))
            }
            FramesProj::Buffered { reader } => reader.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.frames {
            Frames::InMemory { body } => body.is_end_stream(),
            Frames::Unbuffered { body } => body.is_end_stream(),
            Frames::Buffered { reader } => reader.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.frames {
            Frames::InMemory { body } => body.size_hint(),
            Frames::Unbuffered { body } => body.size_hint(),
            Frames::Buffered { reader } => reader.size_hint(),
        }
    }
}

impl<B> fmt::Debug for ReplayBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frames = match &self.frames {
            Frames::InMemory { .. } => "InMemory",
            Frames::Unbuffered { .. } => "Unbuffered",
            Frames::Buffered { .. } => "Buffered",
        };
        f.debug_struct("ReplayBody")
            .field("frames", &format_args!("{frames}"))
            .finish_non_exhaustive()
    }
}
