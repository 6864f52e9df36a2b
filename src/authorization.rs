//! The `Authorization` of a request: ours, or the caller's own.

use std::iter;

use http::header::{AUTHORIZATION, HeaderMap};

use crate::token::{CachedToken, Generation};

/// Whose `Authorization` a request carries.
pub(crate) enum Authorization {
    /// The token of this generation.
    Ours(Generation),
    /// The caller's own.
    Callers,
    /// None yet: there is no token, or no room for it.
    Missing,
}

impl Authorization {
    /// Puts the token, if there is one, on a request that has no `Authorization` of its own.
    ///
    /// Always inlined: left to choose, the compiler inlines `try_append` into this function, and then not
    /// this one into the call.
    #[inline(always)]
    pub(crate) fn put(headers: &mut HeaderMap, token: Option<&CachedToken>) -> Self {
        // Not looked for first: that would hash the name a second time for each request.
        let appended = token.map(|held| {
            let value = held.token().header_value().clone();
            (headers.try_append(AUTHORIZATION, value), held.generation())
        });
        match appended {
            Some((Ok(false), generation)) => Self::Ours(generation),
            Some((Ok(true), _)) => {
                withdraw(headers);
                Self::Callers
            }
            // There is no token, or no room for it.
            Some((Err(_), _)) | None => Self::without_token(headers),
        }
    }

    #[cold]
    fn without_token(headers: &HeaderMap) -> Self {
        if headers.contains_key(AUTHORIZATION) {
            Self::Callers
        } else {
            Self::Missing
        }
    }
}

/// Takes back the value that was appended to the caller's own; these stay, in their order.
#[cold]
fn withdraw(headers: &mut HeaderMap) {
    let own = headers.get_all(AUTHORIZATION).iter().count() - 1;
    let mut is_own = iter::repeat_n(true, own).chain(iter::repeat(false));
    *headers = headers
        .iter()
        .filter(|(name, _)| **name != AUTHORIZATION || is_own.next() == Some(true))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
}
