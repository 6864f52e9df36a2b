//! Memory for secrets that are sent.

use bytes::Bytes;
use secrecy::zeroize::Zeroizing;

/// Converts a text to bytes that are wiped when the last handle is dropped, even by an HTTP client.
///
/// The text must not have grown: each time a string grows, it leaves a copy behind that nobody wipes.
pub(crate) fn wiped_on_drop(text: String) -> Bytes {
    Bytes::from_owner(Zeroizing::new(text.into_bytes()))
}
