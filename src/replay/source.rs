//! The original body, and what one poll of it returns.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tower::BoxError;

use super::frame::{StoredFrame, into_bytes};

/// The original body, from which the frames are read.
pub(super) enum Source<B> {
    /// More frames may come.
    Open {
        /// `None` while a reader polls it.
        body: Option<Pin<Box<B>>>,
        /// What the body reported after its last poll.
        size: SizeHint,
    },
    /// All frames have been read.
    Ended,
    /// Reading failed. The next read takes the error.
    Failed(Option<BoxError>),
}

/// What one poll returned, and the source after it.
pub(super) struct SourcePoll<B> {
    pub(super) outcome: Outcome,
    /// The frame to store; only progress brings one.
    pub(super) frame: Option<StoredFrame>,
    pub(super) source: Source<B>,
}

/// What one poll of the source means for the reader that polled it.
#[derive(Clone, Copy)]
pub(super) enum Outcome {
    /// Nothing has come yet. The source wakes the reader.
    Pending,
    /// A data frame without data came. It is passed on, but not stored.
    EmptyFrame,
    /// A frame came, or the source has ended or failed.
    Progress,
}

impl<B> SourcePoll<B>
where
    B: Body<Error: Into<BoxError>>,
{
    /// Polls the body once, and drops it if it has ended or failed.
    pub(super) fn new(mut body: Pin<Box<B>>, cx: &mut Context<'_>) -> Self {
        match body.as_mut().poll_frame(cx) {
            Poll::Pending => Self {
                outcome: Outcome::Pending,
                frame: None,
                source: Source::open(body),
            },
            Poll::Ready(Some(Ok(frame))) => Self::with_frame(into_bytes(frame), body),
            Poll::Ready(Some(Err(error))) => Self::last(None, Source::Failed(Some(error.into()))),
            Poll::Ready(None) => Self::last(None, Source::Ended),
        }
    }

    fn with_frame(frame: Frame<Bytes>, body: Pin<Box<B>>) -> Self {
        match frame.into_data() {
            Ok(data) if data.is_empty() => Self {
                outcome: Outcome::EmptyFrame,
                frame: None,
                source: Source::open_or_ended(body),
            },
            Ok(data) => Self {
                outcome: Outcome::Progress,
                frame: Some(StoredFrame::Data(data)),
                source: Source::open_or_ended(body),
            },
            Err(frame) => {
                let trailers = frame.into_trailers().ok();
                Self::last(trailers.map(StoredFrame::Trailers), Source::Ended)
            }
        }
    }

    fn last(frame: Option<StoredFrame>, source: Source<B>) -> Self {
        Self {
            outcome: Outcome::Progress,
            frame,
            source,
        }
    }
}

impl<B: Body> Source<B> {
    fn open(body: Pin<Box<B>>) -> Self {
        Self::Open {
            size: body.size_hint(),
            body: Some(body),
        }
    }

    fn open_or_ended(body: Pin<Box<B>>) -> Self {
        if body.is_end_stream() {
            Self::Ended
        } else {
            Self::open(body)
        }
    }
}
