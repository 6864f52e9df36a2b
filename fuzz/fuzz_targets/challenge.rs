//! Any `WWW-Authenticate` gets a verdict, and a 401 is only accepted for a reason that is in it.
//!
//! Each line is one header field.
//!
//! `cargo +nightly fuzz run -s none challenge fuzz/corpus/challenge fuzz/seeds/challenge -- -dict=fuzz/challenge.dict`

#![no_main]

use http::{HeaderValue, Response, StatusCode, header::WWW_AUTHENTICATE};
use libfuzzer_sys::{Corpus, fuzz_target};
use tower_client_credentials::fuzzing::is_rejection;

/// The errors that another token does not mend.
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
    // Escapes may hide a word; without them, what is not there cannot be the reason.
    let text = String::from_utf8_lossy(data);
    let has_reason = ACCEPTED.iter().any(|error| text.contains(error));
    assert!(is_rejected || has_reason || text.contains('\\'));
    assert!(is_rejected || text.to_ascii_lowercase().contains("bearer"));

    // One more challenge, which another token mends, makes any 401 a rejection.
    let mendable = HeaderValue::from_static("Bearer error=\"invalid_token\"");
    response.headers_mut().append(WWW_AUTHENTICATE, mendable);
    assert!(is_rejection(&response));

    // Whatever the challenges, only a 401 is a rejection.
    *response.status_mut() = StatusCode::FORBIDDEN;
    assert!(!is_rejection(&response));
    Corpus::Keep
});
