//! What the challenges of a response say about a token (RFC 9110 §11.6.1, RFC 6750 §3).

use http::{HeaderValue, StatusCode, header::WWW_AUTHENTICATE, response};
use http_auth::parser::ChallengeParser;

use super::Verdict;

/// Reads the verdict from the status and from the challenges of the token's own schemes.
///
/// A 401 rejects the token unless its challenges name an error that another token would not fix.
/// Many servers send no challenge at all.
pub(super) fn verdict(response: &response::Parts, is_own: impl Fn(&str) -> bool) -> Verdict {
    if response.status != StatusCode::UNAUTHORIZED {
        return Verdict::Accepted;
    }
    let mut errors = response
        .headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .flat_map(|field| errors(field, &is_own))
        .peekable();
    if errors.peek().is_some() && errors.all(|error| UNRELATED_TO_THE_TOKEN.contains(&&*error)) {
        Verdict::Accepted
    } else {
        Verdict::Rejected
    }
}

/// The error codes that another token would not change (RFC 6750 §3.1).
const UNRELATED_TO_THE_TOKEN: [&str; 2] = ["insufficient_scope", "invalid_request"];

/// The `error` of each own challenge in one header field, which may hold several challenges.
fn errors(field: &HeaderValue, is_own: impl Fn(&str) -> bool) -> Vec<String> {
    let text = printable(field);
    ChallengeParser::new(&text)
        // A field that breaks off in the middle is believed up to there.
        .map_while(Result::ok)
        .filter(|challenge| is_own(challenge.scheme))
        .flat_map(|challenge| challenge.params)
        .filter(|(name, _)| name.eq_ignore_ascii_case("error"))
        .map(|(_, value)| value.to_unescaped())
        .collect()
}

/// The field in the characters that the parser takes. Only descriptions hold others, and these are
/// not read.
fn printable(field: &HeaderValue) -> String {
    let printable = |&byte: &u8| match byte {
        b'\t' | b' '..=b'~' => char::from(byte),
        _ => '?',
    };
    field.as_bytes().iter().map(printable).collect()
}
