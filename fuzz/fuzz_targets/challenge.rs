//! Each `WWW-Authenticate` gets a verdict, and a 401 is accepted only if a challenge says why.
//!
//! Input: one header field per line.
//!
//! `cargo +nightly fuzz run -s none challenge fuzz/corpus/challenge fuzz/seeds/challenge -- -dict=fuzz/challenge.dict`

#![no_main]

use http::{HeaderValue, Response, StatusCode, header::WWW_AUTHENTICATE};
use libfuzzer_sys::{Corpus, fuzz_target};
use tower_client_credentials::fuzzing::is_rejection;

/// The errors that another token would not fix.
const ACCEPTED: [&str; 2] = ["insufficient_scope", "invalid_request"];

fuzz_target!(|data: &[u8]| -> Corpus {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    for line in data.split(|&byte| byte == b'\n') {
        let Ok(field) = HeaderValue::from_bytes(line) else {
            return Corpus::Reject;
        };
        response.headers_mut().append(WWW_AUTHENTICATE, field);
    }

    let is_rejected = is_rejection(&response);
    // An escaped word is not found in the text; any other reason is.
    let text = String::from_utf8_lossy(data);
    let has_reason = ACCEPTED.iter().any(|error| text.contains(error));
    assert!(is_rejected || has_reason || text.contains('\\'));
    assert!(is_rejected || text.to_ascii_lowercase().contains("bearer"));

    // Another challenge that asks for a new token makes any 401 a rejection.
    let rejection = HeaderValue::from_static("Bearer error=\"invalid_token\"");
    response.headers_mut().append(WWW_AUTHENTICATE, rejection);
    assert!(is_rejection(&response));

    // Only a 401 is a rejection, whatever the challenges.
    *response.status_mut() = StatusCode::FORBIDDEN;
    assert!(!is_rejection(&response));
    Corpus::Keep
});
