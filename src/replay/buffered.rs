use std::{
    fmt,
    task::{Context, Waker},
};

use http_body::Body;
use tower::BoxError;

use super::{
    ReplayPolicy,
    buffer::{BufferedReader, KeptBuffer},
    framing::Framing,
    in_memory::InMemory,
    replay_body::ReplayBody,
    source::{Source, SourcePoll},
};
use crate::NotReplayed;

/// Keeps the frames of each body, including trailers, while they are sent.
///
/// Use it for streaming bodies.
///
/// For each request, up to `limit` bytes of data are kept until the response arrives. If the body
/// is longer, the kept frames are freed. The upload continues, but the request can't be sent again.
/// Trailers count only as far as they exceed 16 KiB, the most that hyper accepts by default.
///
/// # Memory
///
/// Every call keeps its frames until its response arrives, whether or not it is replayed later. So
/// plan for the limit times the number of concurrent calls: 1,000 concurrent uploads with a limit of
/// 64 KiB keep up to 64 MiB. Each call may need up to three times its limit while frames are being
/// copied together, however small they are.
///
/// Frames of less than 8 KiB are copied, because [`Bytes`](bytes::Bytes) that are a slice of a
/// buffer keep all of it in memory. Larger frames aren't copied: the kept frames and the sent frames
/// share their memory. A replay may send small frames together.
///
/// # How a replay is sent
///
/// A replay sends the same data and trailers as the first send, with the same framing: it has a
/// `Content-Length` only if the original body reports its exact size.
///
/// An API often answers 401 before it has read the whole body. The replay then sends the frames
/// that were kept and continues with the rest of the original body. The first body ends with an
/// error, so that the HTTP client stops the first upload.
///
/// The inner service receives a [`ReplayBody`]. If the HTTP client has its own body type, use
/// [`map`](Self::map) to convert it.
///
/// The original body is polled once before the inner service is called, to find out whether it is
/// complete in memory. If that poll panics, [`ClientCredentials`]'s `call` panics.
///
/// [`ClientCredentials`]: crate::ClientCredentials
///
/// # Examples
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::{BodyExt, combinators::BoxBody};
/// use tower_client_credentials::{BoxError, replay::{Buffered, ReplayBody}};
///
/// // For a client that accepts any body type, such as hyper-util's:
/// let policy = Buffered::new(64 * 1024);
///
/// // For a client with its own body type, here a boxed body:
/// type ClientBody = BoxBody<Bytes, BoxError>;
/// let policy = Buffered::new(64 * 1024).map(|body: ReplayBody<ClientBody>| body.boxed());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Buffered {
    limit: usize,
}

impl Buffered {
    /// Creates a policy that keeps up to `limit` bytes of each body.
    pub fn new(limit: usize) -> Self {
        Self { limit }
    }

    /// Converts each [`ReplayBody`] into the HTTP client's own body type, for example with
    /// `reqwest::Body::wrap` or `tonic::body::Body::new`.
    pub fn map<F>(self, into_body: F) -> Map<F> {
        Map {
            buffered: self,
            into_body,
        }
    }

    fn split_in_memory<B>(self, body: InMemory) -> (ReplayBody<B>, Option<KeptFrames<B>>) {
        let kept = (body.cost() <= self.limit).then(|| Kept::InMemory(body.to_kept()));
        (ReplayBody::in_memory(body), kept.map(KeptFrames))
    }

    fn split_streaming<B>(
        self,
        first_poll: SourcePoll<B>,
        framing: Framing,
    ) -> (ReplayBody<B>, Option<KeptFrames<B>>) {
        let reader = BufferedReader::new(first_poll, framing, self.limit);
        let kept = reader.keep().map(Kept::Buffer);
        (ReplayBody::buffered(reader), kept.map(KeptFrames))
    }
}

impl<B> ReplayPolicy<B> for Buffered
where
    B: Body<Error: Into<BoxError>>,
{
    type Body = ReplayBody<B>;
    type Kept = KeptFrames<B>;

    fn split(&self, body: B) -> (ReplayBody<B>, Option<KeptFrames<B>>) {
        let framing = Framing::of(&body);
        if body.is_end_stream() {
            return self.split_in_memory(InMemory::ended(framing));
        }
        if body.size_hint().lower() > self.limit as u64 {
            return (ReplayBody::unbuffered(body), None);
        }
        // A body in memory returns all of its data at once. A body that returns nothing yet is
        // polled again with the waker of the task that sends it.
        let mut cx = Context::from_waker(Waker::noop());
        let first_poll = SourcePoll::new(Box::pin(body), &mut cx);
        match first_poll.source {
            Source::Ended => self.split_in_memory(InMemory::new(first_poll.frame, framing)),
            Source::Open { .. } | Source::Failed(_) => self.split_streaming(first_poll, framing),
        }
    }

    fn restore(&self, kept: &mut KeptFrames<B>) -> Option<ReplayBody<B>> {
        match &mut kept.0 {
            Kept::InMemory(body) => Some(ReplayBody::in_memory(body.clone())),
            Kept::Buffer(buffer) => buffer.new_reader().map(ReplayBody::buffered),
        }
    }

    fn not_kept(&self) -> NotReplayed {
        NotReplayed::BodyOverLimit
    }

    fn not_restored(&self, kept: &KeptFrames<B>) -> NotReplayed {
        kept.not_restored()
    }
}

/// The frames that have been read from a body, and access to the rest of the body.
///
/// Kept by [`Buffered`] for a replay. Dropping it frees the kept frames; the upload continues.
pub struct KeptFrames<B>(Kept<B>);

enum Kept<B> {
    /// The body is complete in memory.
    InMemory(InMemory),
    /// The body streams; its frames are kept while they are read.
    Buffer(KeptBuffer<B>),
}

impl<B> KeptFrames<B> {
    fn not_restored(&self) -> NotReplayed {
        match &self.0 {
            Kept::Buffer(buffer) if buffer.has_failed() => NotReplayed::BodyFailed,
            Kept::Buffer(_) | Kept::InMemory(_) => NotReplayed::BodyOverLimit,
        }
    }
}

impl<B> fmt::Debug for KeptFrames<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptFrames").finish_non_exhaustive()
    }
}

/// [`Buffered`] with a function that converts each body into the HTTP client's own body type.
///
/// Created by [`Buffered::map`].
#[derive(Clone, Copy)]
pub struct Map<F> {
    buffered: Buffered,
    into_body: F,
}

impl<B, F, T> ReplayPolicy<B> for Map<F>
where
    B: Body<Error: Into<BoxError>>,
    F: Fn(ReplayBody<B>) -> T,
{
    type Body = T;
    type Kept = KeptFrames<B>;

    fn split(&self, body: B) -> (T, Option<KeptFrames<B>>) {
        let (body, kept) = self.buffered.split(body);
        ((self.into_body)(body), kept)
    }

    fn restore(&self, kept: &mut KeptFrames<B>) -> Option<T> {
        self.buffered.restore(kept).map(&self.into_body)
    }

    fn not_kept(&self) -> NotReplayed {
        NotReplayed::BodyOverLimit
    }

    fn not_restored(&self, kept: &KeptFrames<B>) -> NotReplayed {
        kept.not_restored()
    }
}

impl<F> fmt::Debug for Map<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("buffered", &self.buffered)
            .field("into_body", &std::any::type_name::<F>())
            .finish()
    }
}
