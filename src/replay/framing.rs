//! How a body is framed: with or without `Content-Length`, the same in every send.

use http_body::{Body, SizeHint};

/// What a body reported about its length before it was polled.
#[derive(Clone, Copy)]
pub(super) enum Framing {
    /// The exact length, which HTTP clients send as `Content-Length`.
    ContentLength(u64),
    /// No exact length: HTTP/1.1 sends chunks, which can be followed by trailers.
    Chunked,
}

impl Framing {
    pub(super) fn of(body: &impl Body) -> Self {
        match body.size_hint().exact() {
            Some(length) => Self::ContentLength(length),
            None => Self::Chunked,
        }
    }

    /// The size hint of what is left of the body after `read` bytes: frames with `stored` bytes of
    /// data, and the rest of a source that reports a size of its own.
    ///
    /// A body that had no exact length gets none when all of its frames are in memory: HTTP/1.1
    /// drops the trailers of a body that reports one. A body that had one keeps it even if the
    /// source ends early, so that the HTTP client notices.
    pub(super) fn size_of_remaining(
        self,
        read: u64,
        stored: u64,
        source: Option<&SizeHint>,
    ) -> SizeHint {
        match self {
            Self::ContentLength(length) => SizeHint::with_exact(length.saturating_sub(read)),
            Self::Chunked => inexact(stored, source),
        }
    }
}

/// Adds the sizes, and leaves out an upper bound that would make the sum exact.
fn inexact(stored: u64, source: Option<&SizeHint>) -> SizeHint {
    let lower = source.map_or(0, SizeHint::lower).saturating_add(stored);
    let mut sum = SizeHint::new();
    sum.set_lower(lower);
    let upper = source.and_then(SizeHint::upper);
    let upper = upper.and_then(|upper| upper.checked_add(stored));
    if let Some(upper) = upper.filter(|upper| *upper > lower) {
        sum.set_upper(upper);
    }
    sum
}
