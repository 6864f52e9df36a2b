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

/// Data of fewer bytes is copied to be kept.
///
/// [`Bytes`] that are a slice of a buffer keep all of that buffer in memory, and don't say how large
/// it is. hyper reads into buffers of 8 KiB and more, so a smaller frame is often a slice of one. To
/// copy so little takes less time than the system call that has read it.
pub(super) const SMALL: usize = 8 * 1024;

/// Bytes of trailers that don't count towards the limit: as many as hyper accepts by default.
const FREE_TRAILERS: usize = 16 * 1024;

impl StoredFrame {
    /// Bytes of data; trailers have none.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(_) => 0,
        }
    }

    /// Bytes that count towards the limit.
    pub(super) fn cost(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(trailers) => {
                let fields = trailers.iter();
                let lengths = fields.map(|(name, value)| name.as_str().len() + value.len());
                lengths.sum::<usize>().saturating_sub(FREE_TRAILERS)
            }
        }
    }

    /// Returns the data if the frame has so little that it is copied to be kept.
    pub(super) fn small_data(&self) -> Option<&Bytes> {
        match self {
            Self::Data(data) if data.len() < SMALL => Some(data),
            Self::Data(_) | Self::Trailers(_) => None,
        }
    }

    /// Returns the frame to keep for a replay while this one is sent.
    pub(super) fn to_kept(&self) -> Self {
        match self.small_data() {
            Some(data) => Self::Data(Bytes::copy_from_slice(data)),
            None => self.clone(),
        }
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
