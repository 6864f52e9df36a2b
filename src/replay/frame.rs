//! A frame in memory, which can be sent more than once.

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::Frame;

/// A frame that was read from a body.
#[derive(Clone)]
pub(super) enum StoredFrame {
    Data(Bytes),
    /// Always the last frame of a body (RFC 9110 §6.5).
    Trailers(HeaderMap),
}

impl StoredFrame {
    /// Bytes of data; trailers have none.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(_) => 0,
        }
    }

    pub(super) fn is_trailers(&self) -> bool {
        matches!(self, Self::Trailers(_))
    }
}

impl From<StoredFrame> for Frame<Bytes> {
    fn from(frame: StoredFrame) -> Self {
        match frame {
            StoredFrame::Data(data) => Self::data(data),
            StoredFrame::Trailers(trailers) => Self::trailers(trailers),
        }
    }
}

/// Converts the data to `Bytes`, without copying data that is `Bytes` already.
pub(super) fn into_bytes<D: Buf>(frame: Frame<D>) -> Frame<Bytes> {
    frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))
}
