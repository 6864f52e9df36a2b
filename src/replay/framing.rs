//! How HTTP/1.1 frames a body, and the size hint that preserves the framing.

use http_body::{Body, SizeHint};

/// What a body reported about its length before it was polled.
#[derive(Clone, Copy)]
pub(super) enum Framing {
    /// The exact length, which HTTP/1.1 sends as `Content-Length`.
    ContentLength,
    /// No exact length: HTTP/1.1 sends chunks, which can be followed by trailers.
    Chunked,
}

impl Framing {
    pub(super) fn of(body: &impl Body) -> Self {
        match body.size_hint().exact() {
            Some(_) => Self::ContentLength,
            None => Self::Chunked,
        }
    }

    /// The size hint of a body whose remaining frames are all in memory.
    ///
    /// HTTP/1.1 drops the trailers of a body that reports an exact length, so a body with trailers
    /// reports one only if it did so originally.
    pub(super) fn size_of_remaining(self, data: u64, has_trailers: bool) -> SizeHint {
        match self {
            Self::Chunked if has_trailers => at_least(data),
            Self::Chunked | Self::ContentLength => SizeHint::with_exact(data),
        }
    }
}

fn at_least(lower: u64) -> SizeHint {
    let mut hint = SizeHint::new();
    hint.set_lower(lower);
    hint
}
