//! A token that is the value of one header, such as `Authorization: Bearer AQXd...`.

use std::{iter, ops::Range};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, MaxSizeReached, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE,
    },
    response,
};

use super::{Put, Verdict, challenge};
use crate::{Error, secret::wiped_on_drop};

/// The authentication scheme of RFC 6750.
const BEARER: &str = "Bearer";

/// Headers that say where a message goes and how long it is.
const FRAMING: [HeaderName; 7] = [
    CONNECTION,
    CONTENT_LENGTH,
    HOST,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// A header whose value is ready to be sent and marked sensitive.
///
/// Cloning copies no text. The text is wiped when its last clone is dropped.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct TokenHeader {
    field: Field,
    // The prefix and one space, unless the prefix is empty; then the token.
    value: HeaderValue,
    prefix_len: usize,
}

/// The header that carries a token.
#[derive(Clone, PartialEq, Eq)]
enum Field {
    /// `Authorization`, which needs no copy of a name per request.
    Authorization,
    Other(HeaderName),
}

impl TokenHeader {
    /// `Authorization: Bearer {token}` (RFC 6750 §2.1).
    pub(crate) fn bearer(token: &str) -> Result<Self, Error> {
        check_sendable("access token", token)?;
        Ok(Self::from_texts(Field::Authorization, BEARER, token))
    }

    /// The same token in another header or after another prefix.
    pub(crate) fn renamed(&self, name: HeaderName, prefix: &str) -> Result<Self, Error> {
        if FRAMING.contains(&name) {
            let message = format!("token header must not be {name}, which frames the message");
            return Err(Error::configuration(message));
        }
        if !prefix.is_empty() {
            check_sendable("prefix of the token header", prefix)?;
        }
        let field = if name == AUTHORIZATION {
            Field::Authorization
        } else {
            Field::Other(name)
        };
        Ok(Self::from_texts(field, prefix, self.token()))
    }

    pub(crate) fn name(&self) -> &HeaderName {
        match &self.field {
            Field::Authorization => &AUTHORIZATION,
            Field::Other(name) => name,
        }
    }

    pub(crate) fn value(&self) -> &HeaderValue {
        &self.value
    }

    pub(crate) fn prefix(&self) -> &str {
        self.text(0..self.prefix_len)
    }

    /// The token without its prefix.
    pub(crate) fn token(&self) -> &str {
        let start = match self.prefix_len {
            0 => 0,
            len => len + 1,
        };
        self.text(start..self.value.len())
    }

    #[inline]
    pub(super) fn is_on(&self, headers: &HeaderMap) -> bool {
        headers.contains_key(self.name())
    }

    #[inline]
    pub(super) fn put_on(&self, headers: &mut HeaderMap) -> Put {
        // One look-up: a header of the caller's own is found by appending to it.
        let value = self.value.clone();
        let appended = match &self.field {
            Field::Authorization => headers.try_append(AUTHORIZATION, value),
            Field::Other(name) => append_other(headers, name, value),
        };
        match appended {
            Ok(false) => Put::Done,
            Ok(true) => {
                self.withdraw(headers);
                Put::CallersOwn
            }
            Err(_) if self.is_on(headers) => Put::CallersOwn,
            Err(_) => Put::NoRoom,
        }
    }

    /// Removes the value that was appended to the caller's own, which keep their order.
    #[cold]
    fn withdraw(&self, headers: &mut HeaderMap) {
        let own = headers.get_all(self.name()).iter().count() - 1;
        let mut is_own = iter::repeat_n(true, own).chain(iter::repeat(false));
        *headers = headers
            .iter()
            .filter(|(name, _)| *name != self.name() || is_own.next() == Some(true))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
    }

    /// Challenges count if they are the token's own or Bearer's, which describe OAuth errors
    /// whatever header the token is in.
    pub(super) fn verdict(&self, response: &response::Parts) -> Verdict {
        challenge::verdict(response, |scheme| {
            scheme.eq_ignore_ascii_case(self.prefix()) || scheme.eq_ignore_ascii_case(BEARER)
        })
    }

    /// Both texts can be sent.
    fn from_texts(field: Field, prefix: &str, token: &str) -> Self {
        let space = if prefix.is_empty() { "" } else { " " };
        let text = wiped_on_drop([prefix, space, token].concat());
        let mut value = HeaderValue::from_maybe_shared(text)
            .expect("visible ASCII characters and a space are a valid header value");
        value.set_sensitive(true);
        Self {
            field,
            value,
            prefix_len: prefix.len(),
        }
    }

    fn text(&self, range: Range<usize>) -> &str {
        std::str::from_utf8(&self.value.as_bytes()[range])
            .expect("a token header holds ASCII characters only")
    }
}

// Few tokens go anywhere but into `Authorization`.
#[cold]
fn append_other(
    headers: &mut HeaderMap,
    name: &HeaderName,
    value: HeaderValue,
) -> Result<bool, MaxSizeReached> {
    headers.try_append(name.clone(), value)
}

/// Refuses text that a header can't carry as one word.
fn check_sendable(what: &'static str, text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::unsendable(what, "is empty"));
    }
    match text.bytes().position(|byte| !byte.is_ascii_graphic()) {
        None => Ok(()),
        Some(at) if text[at..].trim().is_empty() => Err(Error::unsendable(
            what,
            "ends with white space or a line break; trim text that is read from a file",
        )),
        Some(_) => Err(Error::unsendable(
            what,
            "contains a character that a header cannot carry",
        )),
    }
}
