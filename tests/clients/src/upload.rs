use std::{
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use sha2::{Digest, Sha256};
use tower_client_credentials::BoxError;

/// A streaming body whose bytes are determined by its number and its length.
///
/// Like a real stream, it is pending now and then. It has an unknown size unless it is made
/// [`sized`](Self::sized).
#[derive(Debug)]
pub struct Upload {
    number: usize,
    len: usize,
    sent: usize,
    polls: usize,
    is_sized: bool,
}

/// The size of a frame.
const CHUNK: usize = 16 * 1024;

/// Pseudorandom bytes from which all bodies are cut.
static NOISE: LazyLock<Bytes> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(64 * CHUNK / 8).flatten().collect()
});

impl Upload {
    pub fn new(number: usize, len: usize) -> Self {
        Self {
            number,
            len,
            sent: 0,
            polls: 0,
            is_sized: false,
        }
    }

    /// Makes the size known, so that HTTP/1.1 sends a `Content-Length`.
    pub fn sized(mut self) -> Self {
        self.is_sized = true;
        self
    }

    /// Returns the hash of the bytes that are not sent yet.
    pub fn hash(&self) -> String {
        let mut rest = Self::new(self.number, self.len);
        rest.sent = self.sent;
        let mut hasher = Sha256::new();
        while let Some(chunk) = rest.next() {
            hasher.update(chunk);
        }
        format!("{:x}", hasher.finalize())
    }

    fn next(&mut self) -> Option<Bytes> {
        let len = CHUNK.min(self.len - self.sent);
        // Each chunk starts elsewhere, so that a lost, duplicate or misplaced chunk changes the
        // hash.
        let start = (self.number * 7919 + self.sent / CHUNK * 104_729) % (NOISE.len() - CHUNK);
        self.sent += len;
        (len > 0).then(|| NOISE.slice(start..start + len))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.polls += 1;
        if self.polls.is_multiple_of(4) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.next().map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_sized && self.sent == self.len
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_sized {
            SizeHint::with_exact((self.len - self.sent) as u64)
        } else {
            SizeHint::default()
        }
    }
}

/// Returns the hash of bytes in memory, in the format of the API's response.
pub fn hash(bytes: impl AsRef<[u8]>) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
