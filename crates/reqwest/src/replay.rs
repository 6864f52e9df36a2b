use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::Body as _;
use reqwest::Body;
use tower_client_credentials::{
    NotReplayed,
    replay::{Buffered, KeptFrames, NoReplay, ReplayPolicy},
};

/// The replay policy for the bodies of reqwest.
///
/// * A body that is complete in memory, such as text or JSON, is sent as it is and shared with the
///   replay. It isn't copied. reqwest can still follow redirects with the status 307 or 308 and
///   repeat the request after a connection error.
/// * A body that streams, such as a multipart form or a file, is kept while it is sent, up to a
///   limit. See [`Buffered`] for its memory and for how the replay is sent. reqwest neither follows
///   307 and 308 with such a body nor repeats it, with or without this policy.
///
/// # Examples
///
/// Keeps up to 1 MiB of each streaming body:
///
/// ```
/// use reqwest::Client;
/// use tower_client_credentials::{ClientCredentialsLayer, TokenEndpoint};
/// use tower_client_credentials_reqwest::{ApiClient, ClientExt, ReplayBodies};
///
/// fn api(tokens: TokenEndpoint) -> ApiClient {
///     let replay = ReplayBodies::default().stream_limit(1024 * 1024);
///     let layer = ClientCredentialsLayer::new(tokens).replay(replay);
///     Client::new().with_client_credentials(layer)
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplayBodies(Bodies);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Bodies {
    None,
    InMemory,
    /// Those in memory, and streams up to a number of bytes.
    All(usize),
}

/// Holds a form with a small file. 1,000 concurrent uploads keep 64 MiB.
const DEFAULT_STREAM_LIMIT: usize = 64 * 1024;

impl ReplayBodies {
    /// Sets how many bytes of each streaming body are kept. Default: 64 KiB.
    ///
    /// Every call keeps its bytes until its response arrives. So plan for the limit times the number
    /// of concurrent uploads.
    #[must_use]
    pub fn stream_limit(self, bytes: usize) -> Self {
        Self(Bodies::All(bytes))
    }

    /// Sends requests with a streaming body only once.
    #[must_use]
    pub fn no_streams(self) -> Self {
        Self(match self.0 {
            Bodies::None => Bodies::None,
            Bodies::InMemory | Bodies::All(_) => Bodies::InMemory,
        })
    }
}

impl Default for ReplayBodies {
    /// Replays bodies in memory, and streams of up to 64 KiB.
    fn default() -> Self {
        Self(Bodies::All(DEFAULT_STREAM_LIMIT))
    }
}

impl From<NoReplay> for ReplayBodies {
    /// Sends each request only once.
    fn from(_: NoReplay) -> Self {
        Self(Bodies::None)
    }
}

impl ReplayPolicy<Body> for ReplayBodies {
    type Body = Body;
    type Kept = KeptBody;

    fn split(&self, body: Body) -> (Body, Option<KeptBody>) {
        if self.0 == Bodies::None {
            return (body, None);
        }
        match (in_memory(body), self.0) {
            (Ok(bytes), _) => (Body::from(bytes.clone()), Some(KeptBody::in_memory(bytes))),
            (Err(stream), Bodies::All(limit)) => {
                let (body, kept) = Buffered::new(limit).map(Body::wrap).split(stream);
                (body, kept.map(KeptBody::stream))
            }
            (Err(stream), _) => (stream, None),
        }
    }

    fn restore(&self, kept: &mut KeptBody) -> Option<Body> {
        match &mut kept.0 {
            Kept::InMemory(bytes) => Some(Body::from(bytes.clone())),
            // The limit was set when the frames were kept.
            Kept::Stream(frames) => Buffered::new(0).restore(frames).map(Body::wrap),
        }
    }

    fn not_kept(&self) -> NotReplayed {
        match self.0 {
            // Of the bodies that stream, all but the long ones are kept.
            Bodies::All(_) => NotReplayed::BodyOverLimit,
            Bodies::InMemory | Bodies::None => NotReplayed::BodyNotKept,
        }
    }

    fn not_restored(&self, kept: &KeptBody) -> NotReplayed {
        match &kept.0 {
            Kept::InMemory(_) => NotReplayed::BodyNotRestored,
            Kept::Stream(frames) => Buffered::new(0).not_restored(frames),
        }
    }
}

/// Takes the bytes of a body that is complete in memory, without copying them.
fn in_memory(mut body: Body) -> Result<Bytes, Body> {
    if body.as_bytes().is_none() {
        return Err(body);
    }
    // `as_bytes` borrows the bytes. The body's only frame owns them.
    let mut cx = Context::from_waker(Waker::noop());
    let bytes = match Pin::new(&mut body).poll_frame(&mut cx) {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        _ => Bytes::new(),
    };
    Ok(match body.as_bytes() {
        Some(rest) if !rest.is_empty() => [&bytes, rest].concat().into(),
        _ => bytes,
    })
}

/// What [`ReplayBodies`] keeps of a body.
pub struct KeptBody(Kept);

enum Kept {
    InMemory(Bytes),
    Stream(KeptFrames<Body>),
}

impl KeptBody {
    fn in_memory(bytes: Bytes) -> Self {
        Self(Kept::InMemory(bytes))
    }

    fn stream(frames: KeptFrames<Body>) -> Self {
        Self(Kept::Stream(frames))
    }
}

impl fmt::Debug for KeptBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptBody").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_in_memory_is_shared_and_not_copied() {
        let bytes = Bytes::from(vec![7; 1024]);

        let (body, kept) = ReplayBodies::default().split(Body::from(bytes.clone()));
        let replay = ReplayBodies::default().restore(&mut kept.unwrap()).unwrap();

        for body in [body, replay] {
            assert_eq!(body.as_bytes().unwrap().as_ptr(), bytes.as_ptr());
            assert_eq!(body.as_bytes(), Some(&*bytes));
        }
    }

    #[test]
    fn no_streams_keeps_no_replay() {
        let policy = ReplayBodies::from(NoReplay).no_streams();

        assert!(policy.split(Body::from("name=Ada")).1.is_none());
        let policy = ReplayBodies::default().no_streams();
        assert!(policy.split(Body::from("name=Ada")).1.is_some());
    }

    #[test]
    fn empty_body_stays_an_empty_body_in_memory() {
        let (body, kept) = ReplayBodies::default().split(Body::default());
        let replay = ReplayBodies::default().restore(&mut kept.unwrap()).unwrap();

        assert_eq!(body.as_bytes(), Some(&[][..]));
        assert_eq!(replay.as_bytes(), Some(&[][..]));
    }
}
