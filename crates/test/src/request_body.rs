use std::pin::pin;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;

/// Why a request's body isn't complete, with the number of bytes read.
pub(crate) enum ReadError {
    Failed(usize),
    TooLarge(usize),
}

/// Reads a body up to a limit.
pub(crate) async fn read<B>(body: B, limit: usize) -> Result<Bytes, ReadError>
where
    B: http_body::Body,
{
    let mut body = pin!(body);
    let mut data = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Err(ReadError::Failed(data.len()));
        };
        // Trailers are not recorded.
        let Ok(mut frame) = frame.into_data() else {
            continue;
        };
        if data.len() + frame.remaining() > limit {
            return Err(ReadError::TooLarge(data.len()));
        }
        while frame.has_remaining() {
            let chunk = frame.chunk();
            data.extend_from_slice(chunk);
            frame.advance(chunk.len());
        }
    }
    Ok(data.freeze())
}
