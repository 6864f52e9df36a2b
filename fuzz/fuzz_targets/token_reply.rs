//! Each reply of a token endpoint becomes a token that can be sent, or an error that is safe to print.
//!
//! Input: a byte for the status, a byte for the set of headers, the value of these headers up to a
//! line feed, and the body. The client asks for a scope.
//!
//! `cargo +nightly fuzz run -s none token_reply fuzz/corpus/token_reply fuzz/seeds/token_reply -- -dict=fuzz/token_reply.dict`

#![no_main]

use std::{cell::RefCell, convert::Infallible, error::Error as _, future::ready, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use libfuzzer_sys::{Corpus, fuzz_target};
use serde_json::Value;
use tower::{Service, service_fn};
use tower_client_credentials::{AccessToken, ClientAuth, Error, TokenEndpoint, TokenRequest};

const SECRET: &str = "MARK/secret";
const BASIC: &str = "aWQ6TUFSSyUyRnNlY3JldA==";
/// How a server may repeat the secret. The digits are those of Base64 texts that contain it.
const ECHOES: [&str; 8] = [
    SECRET,
    BASIC,
    "MARK%2Fsecret",
    "MARK%2fsecret",
    r"MARK\/secret",
    "MARK&#x2F;secret",
    "TUFSSy9zZWNyZX",
    "1BUksvc2VjcmV0",
];
/// Longer waits count as this long.
const LONGEST_WAIT: Duration = Duration::from_secs(u32::MAX as u64);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const STATUSES: [u16; 16] = [
    200, 200, 200, 200, 201, 204, 299, 301, 400, 401, 403, 404, 407, 408, 429, 503,
];

const HEADERS: [HeaderName; 8] = [
    header::RETRY_AFTER,
    header::DATE,
    header::LOCATION,
    header::AGE,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::WWW_AUTHENTICATE,
    HeaderName::from_static("ratelimit-reset"),
];

thread_local! {
    static NEXT: RefCell<Response<Full<Bytes>>> = RefCell::default();
    static ENDPOINT: RefCell<TokenEndpoint> = RefCell::new(endpoint());
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((reply, body)) = reply(data) else {
        return Corpus::Reject;
    };
    let status = reply.status();
    NEXT.set(reply);

    let answer = ENDPOINT.with_borrow_mut(|endpoint| endpoint.call(TokenRequest::default()));
    let answer = answer
        .now_or_never()
        .expect("the HTTP client is always ready");

    let value = serde_json::from_slice(body).unwrap_or(Value::Null);
    match answer {
        Ok(token) => check_token(&token, status, &value),
        Err(error) => check_error(&error, status, &value),
    }
    Corpus::Keep
});

fn check_token(token: &AccessToken, status: StatusCode, value: &Value) {
    assert!(status.is_success());
    assert!(token.expose().bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(!token.expose().is_empty());
    assert_eq!(token.header_value(), &format!("Bearer {}", token.expose()));
    assert!(token.header_value().is_sensitive());
    assert!(token.lifetime().is_none_or(|lifetime| lifetime <= YEAR));
    if value.is_object() {
        assert_eq!(value["access_token"], token.expose());
    }
    assert!(token.missing_scopes().is_empty() || token.missing_scopes() == ["orders.read"]);
    let shown = format!("{token:?}");
    assert!(!shown.contains(SECRET) && !shown.contains(BASIC));
}

fn check_error(error: &Error, status: StatusCode, value: &Value) {
    let (display, debug) = (error.to_string(), format!("{error:?}"));
    assert!(!display.contains(char::is_control), "{display:?}");
    assert!(display.chars().count() < 2500, "{display}");
    for secret in ECHOES {
        assert!(!display.contains(secret), "{display}");
        assert!(!debug.contains(secret), "{debug}");
    }
    assert!(error.source().is_none());
    let names_the_endpoint = match status.as_u16() {
        407 => display.starts_with("proxy in front of token endpoint auth.example "),
        _ => display.starts_with("token endpoint auth.example "),
    };
    assert!(names_the_endpoint, "{display}");
    assert_eq!(error.client_id(), Some("id"));
    assert!(error.retry_after().is_none_or(|wait| wait <= LONGEST_WAIT));
    assert!(error.is_refused() || error.is_invalid_reply());
    assert!(error.hint().is_none() || !error.is_transient());
    assert_eq!(error.status(), Some(status));

    // A reply with a valid token and no other parameter is an error only if the token occurs twice.
    let Some(fields) = value.as_object().filter(|_| status.is_success()) else {
        return;
    };
    let sendable =
        |token: &str| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    if fields.len() == 1
        && fields
            .get("access_token")
            .and_then(Value::as_str)
            .is_some_and(sendable)
    {
        assert!(display.contains("twice"), "{display}");
    }
}

fn reply(data: &[u8]) -> Option<(Response<Full<Bytes>>, &[u8])> {
    let [status, headers, rest @ ..] = data else {
        return None;
    };
    let line = rest.iter().position(|&byte| byte == b'\n')?;
    let value = HeaderValue::from_bytes(&rest[..line]).ok()?;

    let body = &rest[line + 1..];
    let mut reply = Response::new(Full::from(body.to_vec()));
    *reply.status_mut() = StatusCode::from_u16(STATUSES[usize::from(status % 16)]).unwrap();
    for (bit, name) in HEADERS.into_iter().enumerate() {
        if headers >> bit & 1 == 1 {
            reply.headers_mut().insert(name, value.clone());
        }
    }
    Some((reply, body))
}

fn endpoint() -> TokenEndpoint {
    let http = service_fn(|_: Request<Full<Bytes>>| ready(Ok::<_, Infallible>(NEXT.take())));
    let auth = ClientAuth::client_secret_basic("id", SECRET);
    let tokens = TokenEndpoint::new(http, "https://auth.example/a/token", auth).unwrap();
    tokens.scope("orders.read")
}
