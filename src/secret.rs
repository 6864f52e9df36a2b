//! Secrets that are sent.

use bytes::Bytes;
use secrecy::zeroize::Zeroizing;

/// A text that is wiped when the last handle of it is dropped, which the HTTP client may hold.
///
/// It has to be made in one piece: one that grew has left copies behind, which nobody wipes.
pub(crate) fn wiped_on_drop(text: String) -> Bytes {
    Bytes::from_owner(Zeroizing::new(text.into_bytes()))
}
