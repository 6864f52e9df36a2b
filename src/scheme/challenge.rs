//! What the challenges of a response say about a token (RFC 6750 §3).

use http::{StatusCode, response};

use super::Verdict;
use crate::challenges::{self, ErrorCode};

/// Whether a response of this status may reject a token.
#[inline]
pub(super) fn must_read(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
    )
}

/// Returns the verdict from the status and from the challenges of the token's own schemes.
///
/// A 401 rejects the token unless its challenges name only errors that another token would not fix;
/// many servers send no challenge at all. A 400 or a 403 has other causes unless a challenge says
/// that the token is invalid.
pub(super) fn verdict(response: &response::Parts, is_own: impl Fn(&[u8]) -> bool) -> Verdict {
    if !must_read(response.status) {
        return Verdict::Accepted;
    }
    let errors = challenges::errors(&response.headers, is_own);
    let is_rejected = if response.status == StatusCode::UNAUTHORIZED {
        errors.is_empty() || errors.iter().any(|error| *error != ErrorCode::OtherCause)
    } else {
        errors.contains(&ErrorCode::InvalidToken)
    };
    if is_rejected {
        Verdict::Rejected
    } else {
        Verdict::Accepted
    }
}
