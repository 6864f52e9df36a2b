//! Each `WWW-Authenticate` gets a verdict, and the verdict has a reason in the text.
//!
//! Input: one header field per line.
//!
//! `cargo +nightly fuzz run -s none challenge fuzz/corpus/challenge fuzz/seeds/challenge -- -dict=fuzz/challenge.dict`

#![no_main]

use http::{HeaderValue, Response, StatusCode, header::WWW_AUTHENTICATE, response};
use libfuzzer_sys::{Corpus, fuzz_target};
use tower_client_credentials::fuzzing::is_rejection;

/// The errors that another token would not fix.
const ACCEPTED: [&str; 2] = ["insufficient_scope", "invalid_request"];

/// The library reads this many fields with this many bytes each. One field is appended here.
const MAX_FIELDS: usize = 16;
const MAX_FIELD_LEN: usize = 4096;

fuzz_target!(|data: &[u8]| -> Corpus {
    let mut fields = Vec::new();
    for line in data.split(|&byte| byte == b'\n') {
        match HeaderValue::from_bytes(line) {
            Ok(field) if line.len() <= MAX_FIELD_LEN => fields.push(field),
            _ => return Corpus::Reject,
        }
    }
    if fields.len() >= MAX_FIELDS {
        return Corpus::Reject;
    }

    check_reasons(&fields, &String::from_utf8_lossy(data).to_ascii_lowercase());
    // A challenge of its own that asks for a new token is found, whatever comes before it.
    let rejection = HeaderValue::from_static("Bearer error=\"invalid_token\"");
    fields.push(rejection);
    for status in [400, 401, 403] {
        assert!(is_rejection(&response(status, &fields)));
    }
    // Other statuses are no rejections, whatever the challenges say.
    for status in [200, 404, 407, 429, 500] {
        assert!(!is_rejection(&response(status, &fields)));
    }
    check_quoted(data);
    Corpus::Keep
});

/// A 401 is accepted, and a 400 or 403 rejected, only because of a word of the text.
fn check_reasons(fields: &[HeaderValue], text: &str) {
    let is_bearer = text.contains("bearer");
    // An escaped word is not found in the text.
    let contains = |word: &&str| text.contains(word) || text.contains('\\');
    if !is_rejection(&response(401, fields)) {
        assert!(is_bearer && ACCEPTED.iter().any(contains));
    }
    let is_rejected = is_rejection(&response(403, fields));
    if is_rejected {
        assert!(is_bearer && contains(&"invalid_token"));
        assert!(is_rejection(&response(401, fields)));
    }
    assert_eq!(is_rejected, is_rejection(&response(400, fields)));
}

/// Text in quotes that are escaped as the grammar demands is never taken for anything else.
fn check_quoted(data: &[u8]) {
    let mut quoted = Vec::new();
    for &byte in data.iter().filter(|&&byte| byte != b'\n') {
        if matches!(byte, b'"' | b'\\') {
            quoted.push(b'\\');
        }
        quoted.push(byte);
    }
    for (before, after, statuses) in [
        (
            r#"Bearer error_description=""#,
            r#"", error="insufficient_scope""#,
            [false; 3],
        ),
        (
            r#"Bearer error_description=""#,
            r#"", error="invalid_token""#,
            [true; 3],
        ),
        (
            r#"DPoP error_description=""#,
            r#"", error="invalid_token""#,
            [false, true, false],
        ),
        (
            r#"Basic realm=""#,
            r#"", Bearer error="invalid_token""#,
            [true; 3],
        ),
        (
            r#"Bearer error="insufficient_scope", error_description=""#,
            "\"",
            [false; 3],
        ),
    ] {
        let field = [before.as_bytes(), &quoted, after.as_bytes()].concat();
        if field.len() <= MAX_FIELD_LEN {
            let field = HeaderValue::from_bytes(&field).expect("escaped text is valid");
            for (status, is_rejected) in [400, 401, 403].into_iter().zip(statuses) {
                let response = response(status, std::slice::from_ref(&field));
                assert_eq!(is_rejection(&response), is_rejected, "{status} {field:?}");
            }
        }
    }
}

fn response(status: u16, fields: &[HeaderValue]) -> response::Parts {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).expect("the status is valid");
    for field in fields {
        response
            .headers_mut()
            .append(WWW_AUTHENTICATE, field.clone());
    }
    response.into_parts().0
}
