//! A token that is the value of one header, such as `Authorization: Bearer AQXd...`.

use std::iter;

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, MaxSizeReached},
    response,
};

use super::{Presented, Put, Verdict, challenge};
use crate::{Error, error::Kind};

/// The authentication scheme of RFC 6750.
const BEARER: &str = "Bearer";

/// A header whose value is ready to be sent and marked sensitive.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct TokenHeader {
    pub(crate) name: HeaderName,
    pub(crate) value: HeaderValue,
    /// The length of the word in front of the token, which one space follows.
    pub(crate) prefix_len: usize,
}

impl TokenHeader {
    /// The word in front of the token. Values are visible ASCII characters and spaces.
    pub(crate) fn prefix(&self) -> &str {
        let prefix = &self.value.as_bytes()[..self.prefix_len];
        std::str::from_utf8(prefix).unwrap_or_default()
    }

    pub(super) fn is_on(&self, headers: &HeaderMap) -> bool {
        headers.contains_key(&self.name)
    }

    #[inline]
    pub(super) fn put_on(&self, headers: &mut HeaderMap) -> Put {
        // One look-up: appending tells whether the caller has set the header.
        let value = self.value.clone();
        let appended = if self.name == AUTHORIZATION {
            headers.try_append(AUTHORIZATION, value)
        } else {
            append_other(headers, &self.name, value)
        };
        match appended {
            Ok(false) => Put::Done(Presented::Header),
            Ok(true) => {
                self.withdraw(headers);
                Put::CallersOwn
            }
            Err(_) if self.is_on(headers) => Put::CallersOwn,
            Err(_) => Put::Failed(Error::new(Kind::TooManyHeaders)),
        }
    }

    /// Removes the value that was appended to the caller's own, which keep their order.
    #[cold]
    fn withdraw(&self, headers: &mut HeaderMap) {
        let own = headers.get_all(&self.name).iter().count() - 1;
        let mut is_own = iter::repeat_n(true, own).chain(iter::repeat(false));
        *headers = headers
            .iter()
            .filter(|(name, _)| **name != self.name || is_own.next() == Some(true))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
    }

    /// Challenges count if they are the token's own or Bearer's, which describe OAuth errors
    /// whatever header the token is in.
    pub(super) fn verdict(&self, response: &response::Parts) -> Verdict {
        challenge::verdict(response, |scheme| {
            let own = [self.prefix(), BEARER];
            own.iter()
                .any(|own| scheme.eq_ignore_ascii_case(own.as_bytes()))
        })
    }
}

/// Appends to a header other than `Authorization`, which few tokens do.
#[cold]
fn append_other(
    headers: &mut HeaderMap,
    name: &HeaderName,
    value: HeaderValue,
) -> Result<bool, MaxSizeReached> {
    headers.try_append(name.clone(), value)
}
