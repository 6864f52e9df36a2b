use std::fmt;

use http_body::Body;
use tower::BoxError;

use super::{
    ReplayPolicy,
    replay_body::{Memory, ReplayBody, Start, Whole},
};
use crate::NotReplayed;

/// Remembers the frames of a body while they are sent, trailers too, up to a limit of bytes: for
/// every streaming body.
///
/// A body with more than `limit` bytes is sent all the same; only its replay is given up, and what
/// was remembered is freed. Nothing is copied where the body's data are [`Bytes`](bytes::Bytes): what
/// is remembered shares its memory with what is sent. Each frame costs some tens of bytes beside its
/// data.
///
/// A 401 often comes before the whole body was sent. The replay then sends what was remembered and
/// goes on with the rest, and the first body ends with an error, so that the HTTP client gives the
/// first upload up.
///
/// The inner service gets a [`ReplayBody`]; [`map`](Self::map) puts it back into the client's own
/// body type. The first frame of a body may be asked for as soon as the service is called.
///
/// # Examples
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::{BodyExt, combinators::BoxBody};
/// use tower_client_credentials::{BoxError, replay::{Buffered, ReplayBody}};
///
/// // For a client that takes any body, such as hyper-util's:
/// let policy = Buffered::new(64 * 1024);
///
/// // For a client with a body type of its own, here a boxed one:
/// type ClientBody = BoxBody<Bytes, BoxError>;
/// let policy = Buffered::new(64 * 1024).map(|body: ReplayBody<ClientBody>| body.boxed());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Buffered {
    limit: usize,
}

impl Buffered {
    /// Remembers up to `limit` bytes of each body.
    pub fn new(limit: usize) -> Self {
        Self { limit }
    }

    /// Makes the client's own body type out of each [`ReplayBody`], such as with
    /// `reqwest::Body::wrap` or `tonic::body::Body::new`.
    pub fn map<F>(self, into_body: F) -> Map<F> {
        Map {
            buffered: self,
            into_body,
        }
    }
}

impl<B> ReplayPolicy<B> for Buffered
where
    B: Body<Error: Into<BoxError>>,
{
    type Body = ReplayBody<B>;
    type Kept = KeptFrames<B>;

    fn split(&self, body: B) -> (ReplayBody<B>, Option<KeptFrames<B>>) {
        match Start::of(body, self.limit) {
            Start::TooLong(body) => (ReplayBody::plain(body), None),
            Start::Whole(whole) => {
                let kept = (whole.len() <= self.limit).then(|| Kept::Whole(whole.clone()));
                (ReplayBody::whole(whole), kept.map(KeptFrames))
            }
            Start::Streaming(recording) => {
                let memory = recording.memory();
                let kept = memory.map(|memory| KeptFrames(Kept::Frames(memory)));
                (ReplayBody::recorded(recording), kept)
            }
        }
    }

    fn restore(&self, kept: &mut KeptFrames<B>) -> Option<ReplayBody<B>> {
        match &kept.0 {
            Kept::Whole(whole) => Some(ReplayBody::whole(whole.clone())),
            Kept::Frames(memory) => memory.replay().map(ReplayBody::recorded),
        }
    }

    fn not_kept(&self) -> NotReplayed {
        NotReplayed::BodyOverLimit
    }

    fn not_restored(&self) -> NotReplayed {
        NotReplayed::BodyOverLimit
    }
}

/// What [`Buffered`] keeps of a body: its frames so far, and the rest of it.
pub struct KeptFrames<B: Body>(Kept<B>);

enum Kept<B: Body> {
    Whole(Whole),
    Frames(Memory<B>),
}

impl<B: Body> fmt::Debug for KeptFrames<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptFrames").finish_non_exhaustive()
    }
}

/// [`Buffered`], with a function that puts each body into the client's own body type.
///
/// Made by [`Buffered::map`].
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

    fn not_restored(&self) -> NotReplayed {
        NotReplayed::BodyOverLimit
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
