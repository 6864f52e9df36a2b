//! Whether a response rejects the token that the request carried. Pure.

use http::{
    Response, StatusCode,
    header::{HeaderValue, WWW_AUTHENTICATE},
};
use http_auth::parser::ChallengeParser;

/// What a response says of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing that another token would mend.
    Accepted,
    /// The token is not accepted; another may be.
    Rejected,
}

impl Verdict {
    /// Reads the verdict off the status and the challenges.
    ///
    /// A 401 is a rejection, unless it comes with a Bearer challenge (RFC 6750 §3.1) whose error
    /// another token would not mend. Many servers send no challenge at all.
    pub(crate) fn of<B>(response: &Response<B>) -> Self {
        if response.status() != StatusCode::UNAUTHORIZED {
            return Self::Accepted;
        }
        let mut errors = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .flat_map(bearer_errors)
            .peekable();
        if errors.peek().is_some() && errors.all(|error| is_not_about_the_token(&error)) {
            Self::Accepted
        } else {
            Self::Rejected
        }
    }
}

/// The error codes that a renewed token would not change (RFC 6750 §3.1).
fn is_not_about_the_token(error: &str) -> bool {
    matches!(error, "insufficient_scope" | "invalid_request")
}

/// The `error` of each Bearer challenge in one header field, which may hold several challenges.
fn bearer_errors(field: &HeaderValue) -> Vec<String> {
    let text = printable(field);
    ChallengeParser::new(&text)
        // A field that breaks off in the middle is believed up to there.
        .map_while(Result::ok)
        .filter(|challenge| challenge.scheme.eq_ignore_ascii_case("Bearer"))
        .flat_map(|challenge| challenge.params)
        .filter(|(name, _)| name.eq_ignore_ascii_case("error"))
        .map(|(_, value)| value.to_unescaped())
        .collect()
}

/// The field as the parser takes it: descriptions may hold other bytes, and are not looked at.
fn printable(field: &HeaderValue) -> String {
    let printable = |&byte: &u8| match byte {
        b'\t' | b' '..=b'~' => char::from(byte),
        _ => '?',
    };
    field.as_bytes().iter().map(printable).collect()
}
