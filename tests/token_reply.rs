//! How replies of token endpoints are read: those of real servers, and hostile ones.

use std::{
    convert::Infallible,
    error::Error as StdError,
    iter,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use tokio::time::Instant;
use tower::{BoxError, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, ClientAuth, Error, TokenCache, TokenEndpoint, TokenParameters, TokenRemoved,
    TokenRequest, provider,
};

/// Longer ones count as this many seconds.
const LONGEST_RETRY_AFTER: f64 = u32::MAX as f64;
const HOUR: f64 = 60.0 * 60.0;
const YEAR: f64 = 365.0 * 24.0 * HOUR;

// --- Tokens ---

#[tokio::test]
async fn every_reply_with_a_token_is_read() {
    // Name, reply, lifetime in seconds, scope. The token is always "t".
    type Row = (&'static str, Reply, Option<f64>, Option<&'static str>);
    let ok = |body: &'static str| Reply::new(200, body);
    let expiring = |value: &str| {
        Reply::new(
            200,
            format!(r#"{{"access_token":"t","expires_in":{value}}}"#),
        )
    };
    let typed = |value: &str| {
        Reply::new(
            200,
            format!(r#"{{"access_token":"t","token_type":{value}}}"#),
        )
    };
    let scoped =
        |value: &str| Reply::new(200, format!(r#"{{"access_token":"t","scope":{value}}}"#));
    let rows: Vec<Row> = vec![
        (
            "LinkedIn",
            ok(r#"{"access_token":"t","expires_in":"1800"}"#),
            Some(1800.0),
            None,
        ),
        (
            "LinkedIn's client library",
            expiring("1800"),
            Some(1800.0),
            None,
        ),
        (
            "the RFC's example",
            ok(
                r#"{"access_token":"t","token_type":"Bearer","expires_in":3600,"example_parameter":"example_value"}"#,
            ),
            Some(3600.0),
            None,
        ),
        (
            "Microsoft v1, NetSuite",
            expiring("\"3599\""),
            Some(3599.0),
            None,
        ),
        ("Reddit", expiring("3600.0"), Some(3600.0), None),
        ("null", expiring("null"), None, None),
        (
            "Salesforce: missing",
            ok(r#"{"access_token":"t"}"#),
            None,
            None,
        ),
        (
            "WSO2, Marketo: expires at once",
            expiring("0"),
            Some(0.0),
            None,
        ),
        ("ANPAL", expiring("9223372036854775"), Some(YEAR), None),
        (
            "largest integer",
            expiring("18446744073709551616"),
            Some(YEAR),
            None,
        ),
        (
            "out of a double's range",
            expiring("1e400"),
            Some(YEAR),
            None,
        ),
        ("as a string", expiring("\"1e400\""), Some(YEAR), None),
        ("far below zero", expiring("-1e400"), Some(0.0), None),
        (
            "too small for a double",
            expiring("1e-400"),
            Some(0.0),
            None,
        ),
        ("negative zero", expiring("-0"), Some(0.0), None),
        (
            "negative zero as a string",
            expiring("\"-0\""),
            Some(0.0),
            None,
        ),
        ("negative", expiring("-5"), Some(0.0), None),
        ("spaces around", expiring("\" 3600 \""), Some(3600.0), None),
        ("part of a second", expiring("0.5"), Some(0.5), None),
        ("exponent", expiring("3.6e3"), Some(3600.0), None),
        ("400 digits", expiring(&"9".repeat(400)), Some(YEAR), None),
        ("a year", expiring("31536000"), Some(YEAR), None),
        ("GitHub", typed("\"bearer\""), None, None),
        (
            "Slack: no token_type",
            ok(r#"{"ok":true,"access_token":"t","scope":"a"}"#),
            None,
            Some("a"),
        ),
        ("space after the type", typed("\"bearer \""), None, None),
        ("Apigee", typed("\"BearerToken\""), None, None),
        ("upper case", typed("\"BEARER\""), None, None),
        ("token_type null", typed("null"), None, None),
        ("scope", scoped("\"a b\""), None, Some("a b")),
        ("Twitch", scoped(r#"["a","b"]"#), None, Some("a b")),
        ("Strava", scoped("\"a,b\""), None, Some("a,b")),
        (
            "LinkedIn: scope with commas",
            ok(r#"{"access_token":"t","expires_in":"1800","scope":"r_ads,r_basicprofile"}"#),
            Some(1800.0),
            Some("r_ads,r_basicprofile"),
        ),
        (
            "oidc-provider: scope missing",
            ok(r#"{"access_token":"t","expires_in":600,"token_type":"Bearer"}"#),
            Some(600.0),
            None,
        ),
        (
            "scope that contains the token, the secret and odd characters",
            scoped(r#""tt MARK-SECRET\u200ba\u0000""#),
            None,
            Some("tt MARK-SECRET\u{200b}a\0"),
        ),
        (
            "oidc-provider: nothing granted",
            scoped("\"\""),
            None,
            Some(""),
        ),
        ("scope null", scoped("null"), None, None),
        ("scope a number", scoped("5"), None, None),
        (
            "Deezer",
            expiring("60").with(header::CONTENT_TYPE, "text/html"),
            Some(60.0),
            None,
        ),
        (
            "Dropbox",
            expiring("60").with(header::CONTENT_TYPE, "text/javascript"),
            Some(60.0),
            None,
        ),
        (
            "kanidm",
            expiring("60").with(header::CONTENT_TYPE, "text/plain"),
            Some(60.0),
            None,
        ),
        ("Spring: no content type", expiring("60"), Some(60.0), None),
        (
            "CrowdStrike, Harvest",
            expiring("60").status(201),
            Some(60.0),
            None,
        ),
        ("odd 2xx", expiring("60").status(299), Some(60.0), None),
        (
            "byte order mark",
            ok("\u{feff}{\"access_token\":\"t\"}"),
            None,
            None,
        ),
        (
            "whitespace and a byte order mark",
            ok("\r\n\u{feff}\n{\"access_token\":\"t\"}"),
            None,
            None,
        ),
        (
            "whitespace",
            ok("\r\n {\"access_token\" : \"t\"}\n"),
            None,
            None,
        ),
        ("escapes", ok(r#"{"access_token":"\u0074"}"#), None, None),
        (
            "error null",
            ok(r#"{"access_token":"t","error":null}"#),
            None,
            None,
        ),
        (
            "error empty",
            ok(r#"{"access_token":"t","error":""}"#),
            None,
            None,
        ),
        (
            "error zero",
            ok(r#"{"access_token":"t","error":0}"#),
            None,
            None,
        ),
        (
            "error zero as a float",
            ok(r#"{"access_token":"t","error":0.0}"#),
            None,
            None,
        ),
        (
            "error blank",
            ok(r#"{"access_token":"t","error":" "}"#),
            None,
            None,
        ),
        (
            "error an empty object",
            ok(r#"{"access_token":"t","error":{ }}"#),
            None,
            None,
        ),
        (
            "error an empty array",
            ok(r#"{"access_token":"t","error":[ ]}"#),
            None,
            None,
        ),
        (
            "error false",
            ok(r#"{"access_token":"t","error":false}"#),
            None,
            None,
        ),
        (
            "an unknown parameter twice",
            ok(r#"{"x":1,"access_token":"t","x":2}"#),
            None,
            None,
        ),
        (
            "an unknown parameter out of range",
            ok(r#"{"x":1e999,"access_token":"t"}"#),
            None,
            None,
        ),
        (
            "an unknown parameter of 400,000 levels",
            Reply::new(
                200,
                format!(
                    r#"{{"x":{}{},"access_token":"t"}}"#,
                    "[".repeat(400_000),
                    "]".repeat(400_000)
                ),
            ),
            None,
            None,
        ),
        (
            "an unknown parameter that is not UTF-8",
            Reply::new(
                200,
                b"{\"x\":\"\xff\xc3\",\"access_token\":\"t\"}".as_slice(),
            ),
            None,
            None,
        ),
        (
            "Content-Length that claims too much",
            expiring("60").with(header::CONTENT_LENGTH, "99999999999"),
            Some(60.0),
            None,
        ),
    ];

    for (name, reply, lifetime, scope) in rows {
        let token = reply
            .read()
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));

        assert_eq!(token.expose(), "t", "{name}");
        assert_eq!(token.header_value(), "Bearer t", "{name}");
        assert_eq!(
            token.lifetime(),
            lifetime.map(Duration::from_secs_f64),
            "{name}"
        );
        assert_eq!(token.scope(), scope, "{name}");
    }
}

#[tokio::test]
async fn age_of_a_cached_reply_is_subtracted_from_the_lifetime() {
    let expiring = r#"{"access_token":"t","expires_in":3600}"#;
    for (name, body, ages, lifetime) in [
        ("a shared cache", expiring, &["3000"][..], Some(600.0)),
        ("fresh", expiring, &["0"], Some(3600.0)),
        ("spaces", expiring, &[" 3000 "], Some(600.0)),
        ("as old as the lifetime", expiring, &["3600"], Some(0.0)),
        ("older", expiring, &["3601"], Some(0.0)),
        (
            "out of range",
            expiring,
            &["99999999999999999999999"],
            Some(0.0),
        ),
        (
            "list: the first member counts",
            expiring,
            &["3000, 10"],
            Some(600.0),
        ),
        (
            "list: the first member is invalid",
            expiring,
            &["x, 3000"],
            Some(3600.0),
        ),
        (
            "two fields: the first counts",
            expiring,
            &["3000", "10"],
            Some(600.0),
        ),
        ("negative", expiring, &["-5"], Some(3600.0)),
        ("signed", expiring, &["+5"], Some(3600.0)),
        ("fraction", expiring, &["0.5"], Some(3600.0)),
        ("words", expiring, &["old"], Some(3600.0)),
        ("empty", expiring, &[""], Some(3600.0)),
        ("no lifetime", r#"{"access_token":"t"}"#, &["3000"], None),
        (
            "longer than a year",
            r#"{"access_token":"t","expires_in":1e9}"#,
            &["60"],
            Some(YEAR - 60.0),
        ),
    ] {
        let mut reply = Reply::new(200, body);
        for age in ages {
            let age = HeaderValue::from_static(age);
            reply.0.headers_mut().append(header::AGE, age);
        }

        let token = reply.read().await.unwrap();

        assert_eq!(
            token.lifetime(),
            lifetime.map(Duration::from_secs_f64),
            "{name}"
        );
    }
}

#[tokio::test]
async fn scopes_that_were_not_granted_are_visible_on_the_token() {
    for (name, asked, granted, missing) in [
        ("all", "a b", r#""a b""#, &[][..]),
        ("in another order", "a b", r#""b a""#, &[]),
        ("more", "a", r#""a b""#, &[]),
        ("one less", "a b c", r#""c a""#, &["b"]),
        ("nothing granted", "a b", r#""""#, &["a", "b"]),
        ("others", "a b", r#""c""#, &["a", "b"]),
        ("not stated", "a b", "null", &[]),
        ("not a scope", "a b", "5", &[]),
        ("array", "a b", r#"["a"]"#, &["b"]),
        ("commas", "a b c", r#""a,b""#, &["c"]),
        ("commas, asked for", "a,b", r#""a,b""#, &[]),
        ("another case", "Read", r#""read""#, &["Read"]),
        ("part of another", "read", r#""read.all""#, &["read"]),
        ("nothing asked for", "", r#""a""#, &[]),
    ] {
        let body = format!(r#"{{"access_token":"t","scope":{granted}}}"#);
        let tokens = Reply::new(200, body).endpoint().scope(asked);

        let token = tokens.oneshot(TokenRequest::default()).await.unwrap();

        assert_eq!(token.missing_scopes(), missing, "{name}");
    }
    let tokens = Reply::new(200, r#"{"access_token":"t","scope":"a"}"#).endpoint();
    let requested = TokenParameters::default().with_scope("b a");
    let token = tokens
        .scope("a c")
        .oneshot(TokenRequest::new(requested))
        .await
        .unwrap();
    assert_eq!(
        token.missing_scopes(),
        ["c", "b"],
        "of the endpoint and of the request"
    );
    assert!(
        AccessToken::new("t")
            .unwrap()
            .with_scope("a")
            .missing_scopes()
            .is_empty()
    );
}

#[tokio::test]
async fn long_tokens_are_read() {
    for length in [500, 1000, 64 * 1024] {
        let token = "x".repeat(length);
        let reply = Reply::new(200, format!(r#"{{"access_token":"{token}"}}"#));

        assert_eq!(reply.read().await.unwrap().expose(), token);
    }
}

#[tokio::test(start_paused = true)]
async fn token_that_expires_at_once_serves_every_call() {
    let reply = Reply::new(200, r#"{"access_token":"t","expires_in":0}"#);
    let cache = TokenCache::new(reply.endpoint());

    for _ in 0..3 {
        let token = cache.token().await.unwrap();

        assert_eq!(token.expose(), "t");
        tokio::time::advance(Duration::from_secs(1)).await;
    }
}

// --- Replies without a token ---

#[tokio::test]
async fn unreadable_success_is_transient_and_the_error_says_what_came() {
    let ok = |body: &'static [u8]| Reply::new(200, body);
    let html = "body is an HTML page";
    let other = "body is not a JSON object";
    let compressed = |coding: &str| {
        format!(
            "body is compressed with {coding}, and neither the server nor the HTTP client has \
             decompressed it"
        )
    };
    let typed =
        |body: &'static [u8], content_type: &str| ok(body).with(header::CONTENT_TYPE, content_type);
    let coded = |body: &'static [u8], coding: &str| ok(body).with(header::CONTENT_ENCODING, coding);
    for (name, reply, fact) in [
        ("nothing", ok(b""), "body is empty"),
        ("no content", ok(b"").status(204), "body is empty"),
        ("whitespace", ok(b" \r\n"), "body is empty"),
        ("byte order mark", ok(b"\xef\xbb\xbf"), "body is empty"),
        ("page of a content network", ok(b"<html>MARK</html>"), html),
        (
            "page with a document type",
            ok(b"\n<!DOCTYPE HTML><p>MARK"),
            html,
        ),
        (
            "page by its type",
            typed(b"<p>MARK", "text/html; charset=utf-8"),
            html,
        ),
        (
            "XML",
            typed(b"<error>MARK</error>", "application/xml"),
            "body is not a JSON object; its type is \"application/xml\"",
        ),
        (
            "text",
            typed(b"MARK", "text/plain"),
            "body is not a JSON object; its type is \"text/plain\"",
        ),
        (
            "text that claims to be JSON",
            typed(b"MARK", "application/json"),
            other,
        ),
        (
            "a type with a secret",
            typed(b"MARK", "MARK-SECRET/x"),
            "body is not a JSON object; its type is \"[redacted]/x\"",
        ),
        ("not UTF-8", ok(b"\xff\xfe\xfd"), other),
        ("array", ok(b"[\"MARK\"]"), other),
        (
            "array of an object",
            ok(b"[{\"access_token\":\"MARK\"}]"),
            other,
        ),
        ("string", ok(b"\"MARK\""), other),
        ("null", ok(b"null"), other),
        ("form", ok(b"access_token=MARK&expires_in=5"), other),
        (
            "half a text",
            ok(b"{\"access_token\":\"MARK"),
            "body is cut off, at line 1 column 21",
        ),
        (
            "half an object",
            ok(b"{\"access_token\":\"MARK\",\n"),
            "body is cut off, at line 1 column 23",
        ),
        ("a brace", ok(b"{"), "body is cut off, at line 1 column 1"),
        (
            "more than an object",
            ok(b"{\"access_token\":\"MARK\"}{"),
            "body is not valid JSON, at line 1 column 24",
        ),
        (
            "a bare word",
            ok(b"{\"access_token\":\"MARK\",\"expires_in\":NaN}"),
            "body is not valid JSON, at line 1 column 37",
        ),
        (
            "gzip",
            coded(b"\x1f\x8b\x08\0MARK", "gzip"),
            &compressed("gzip"),
        ),
        (
            "gzip without a header",
            ok(b"\x1f\x8b\x08\0MARK"),
            &compressed("gzip"),
        ),
        (
            "gzip that claims to be none",
            coded(b"\x1f\x8b\x08\0MARK", "Identity"),
            &compressed("gzip"),
        ),
        ("Brotli", coded(b"\x8bMARK", "br"), &compressed("br")),
        (
            "two codings",
            coded(b"\x28\xb5\x2f\xfdMARK", "gzip, zstd"),
            &compressed("gzip, zstd"),
        ),
        (
            "zstd without a header",
            ok(b"\x28\xb5\x2f\xfdMARK"),
            &compressed("zstd"),
        ),
        (
            "compressed nothing",
            coded(b"", "gzip"),
            &compressed("gzip"),
        ),
    ] {
        let status = reply.0.status().as_u16();

        let error = reply.read().await.expect_err(name);

        assert!(error.is_invalid_reply() && error.is_transient(), "{name}");
        assert_eq!(error.status().unwrap(), status, "{name}");
        let message =
            format!("token endpoint auth.example answered {status} without a token: {fact}");
        assert_eq!(error.to_string(), message, "{name}");
        assert_shows_nothing(name, &error);
    }
}

#[tokio::test]
async fn reply_that_was_decompressed_is_read_although_its_header_still_says_so() {
    let reply = Reply::new(200, r#"{"access_token":"t"}"#).with(header::CONTENT_ENCODING, "gzip");

    assert_eq!(reply.read().await.unwrap().expose(), "t");
}

#[tokio::test]
async fn success_without_a_token_is_an_error_that_names_the_fact() {
    for (name, body, fact) in [
        ("no token", &b"{\"x\":\"MARK\"}"[..], "access_token is missing"),
        ("token null", b"{\"access_token\":null}", "access_token is missing"),
        ("token a number", b"{\"access_token\":123}", "access_token is not a string"),
        ("half a character", br#"{"access_token":"\ud800"}"#, "access_token is not a string"),
        (
            "token twice",
            b"{\"access_token\":\"MARK\",\"access_token\":\"MARK\"}",
            "body contains a parameter twice, at line 1 column 37",
        ),
        (
            "token twice, escaped once",
            br#"{"access_token":"MARK","access_toke\u006e":"MARK"}"#,
            "body contains a parameter twice, at line 1 column 42",
        ),
        (
            "null twice",
            b"{\"access_token\":\"MARK\",\"scope\":null,\n\"scope\":null}",
            "body contains a parameter twice, at line 2 column 7",
        ),
        (
            "oauth 1",
            b"{\"access_token\":\"MARK\",\"token_type\":\"mac\"}",
            "token_type is \"mac\", only Bearer is supported",
        ),
        (
            "DPoP",
            b"{\"access_token\":\"MARK\",\"token_type\":\"DPoP\"}",
            "token_type is \"DPoP\", only Bearer is supported",
        ),
        (
            "empty type",
            b"{\"access_token\":\"MARK\",\"token_type\":\"\"}",
            "token_type is \"\", only Bearer is supported",
        ),
        (
            "number as type",
            b"{\"access_token\":\"MARK\",\"token_type\":7}",
            "token_type is \"7\", only Bearer is supported",
        ),
        (
            "long type with unprintable characters",
            b"{\"access_token\":\"MARK\",\"token_type\":\"a\\r\\n\\u0000\\u202e0123456789012345678901234567890123456789\"}",
            "token_type is \"a 01234567890123456789012345678901234567…\", only Bearer is supported",
        ),
        (
            "type is the token",
            b"{\"access_token\":\"MARK\",\"token_type\":\"MARK\"}",
            "token_type is \"[redacted]\", only Bearer is supported",
        ),
        (
            "soon",
            b"{\"access_token\":\"MARK\",\"expires_in\":\"soon\"}",
            "expires_in is \"soon\", not a number of seconds",
        ),
        (
            "NaN",
            b"{\"access_token\":\"MARK\",\"expires_in\":\"NaN\"}",
            "expires_in is \"NaN\", not a number of seconds",
        ),
        (
            "infinity",
            b"{\"access_token\":\"MARK\",\"expires_in\":\"inf\"}",
            "expires_in is \"inf\", not a number of seconds",
        ),
        (
            "true",
            b"{\"access_token\":\"MARK\",\"expires_in\":true}",
            "expires_in is \"true\", not a number of seconds",
        ),
        (
            "array as lifetime",
            b"{\"access_token\":\"MARK\",\"expires_in\":[60]}",
            "expires_in is an array, not a number of seconds",
        ),
        (
            "object as lifetime",
            b"{\"access_token\":\"t\",\"expires_in\":{\"refresh_token\":\"MARK\"}}",
            "expires_in is an object, not a number of seconds",
        ),
        (
            "object as type",
            b"{\"access_token\":\"t\",\"token_type\":{\"id_token\":\"MARK\"}}",
            "token_type is an object, only Bearer is supported",
        ),
        (
            "array as type",
            b"{\"access_token\":\"t\",\"token_type\":[\"MARK\"]}",
            "token_type is an array, only Bearer is supported",
        ),
        (
            "half a character as type",
            br#"{"access_token":"t","token_type":"MARK\ud800"}"#,
            "token_type is an invalid string, only Bearer is supported",
        ),
        (
            "type is the refresh token",
            b"{\"access_token\":\"t\",\"refresh_token\":\"MARK\",\"token_type\":\"MARK\"}",
            "token_type is \"[redacted]\", only Bearer is supported",
        ),
        (
            "lifetime is the id token",
            b"{\"access_token\":\"t\",\"id_token\":\"MARK\",\"expires_in\":\"MARK\"}",
            "expires_in is \"[redacted]\", not a number of seconds",
        ),
        (
            "seconds with a unit",
            b"{\"access_token\":\"MARK\",\"expires_in\":\"3600s\"}",
            "expires_in is \"3600s\", not a number of seconds",
        ),
        (
            "empty lifetime",
            b"{\"access_token\":\"MARK\",\"expires_in\":\"\"}",
            "expires_in is \"\", not a number of seconds",
        ),
        (
            "hexadecimal",
            b"{\"access_token\":\"MARK\",\"expires_in\":\"0x10\"}",
            "expires_in is \"0x10\", not a number of seconds",
        ),
    ] {
        let error = Reply::new(200, body).read().await.expect_err(name);

        assert!(error.is_invalid_reply() && !error.is_transient(), "{name}");
        assert_eq!(error.status().unwrap(), 200, "{name}");
        let message = format!("token endpoint auth.example answered 200 without a token: {fact}");
        assert_eq!(error.to_string(), message, "{name}");
        assert_shows_nothing(name, &error);
    }
}

#[tokio::test]
async fn token_that_a_header_cannot_carry_is_an_invalid_reply() {
    let odd = "access_token contains a character that a header cannot carry";
    for (name, token, fact) in [
        ("empty", "", "access_token is empty"),
        ("NUL", r"MARK\u0000", odd),
        ("CR LF", r"MARK\r\nX: 1", odd),
        ("space", "MARK MARK", odd),
        ("letter", "MARKé", odd),
        ("line break", r"MARK\n", odd),
    ] {
        let reply = Reply::new(200, format!(r#"{{"access_token":"{token}"}}"#));

        let error = reply.read().await.expect_err(name);

        assert!(error.is_invalid_reply() && !error.is_transient(), "{name}");
        assert_eq!(error.status().unwrap(), 200, "{name}");
        let message = format!("token endpoint auth.example answered 200 without a token: {fact}");
        assert_eq!(error.to_string(), message, "{name}");
        assert_shows_nothing(name, &error);
    }
}

#[tokio::test]
async fn refusals_show_what_the_server_answered() {
    let refused = "token endpoint auth.example refused client \"my-client\":";
    let unserved = "token endpoint auth.example could not serve client \"my-client\":";
    let no_oauth = |status: u16, fact: &str| {
        let verdict = match status {
            401 | 403 => "refused client \"my-client\":",
            _ => "answered",
        };
        format!("token endpoint auth.example {verdict} {status} without an OAuth error{fact}")
    };
    let (html, empty) = (" (body is an HTML page)", " (body is empty)");
    let other = " (body is not a JSON object)";
    for (name, status, body, message) in [
        (
            "GitHub",
            200,
            r#"{"error":"bad_verification_code","error_description":"The code is incorrect.","error_uri":"https://docs.example"}"#,
            format!("{refused} 200 bad_verification_code (The code is incorrect.)"),
        ),
        (
            "both",
            200,
            r#"{"access_token":"MARK","error":"invalid_scope","error_description":"not for MARK"}"#,
            format!("{refused} 200 invalid_scope (not for [redacted])"),
        ),
        (
            "Facebook",
            400,
            r#"{"error":{"message":"Error validating application","type":"OAuthException","code":101,"fbtrace_id":"x"}}"#,
            format!("{refused} 400 OAuthException (Error validating application)"),
        ),
        (
            "Google",
            403,
            r#"{"error":{"code":403,"message":"Permission denied","status":"PERMISSION_DENIED"}}"#,
            format!("{refused} 403 PERMISSION_DENIED (Permission denied)"),
        ),
        (
            "object with a number",
            400,
            r#"{"error":{"code":101}}"#,
            format!("{refused} 400 101"),
        ),
        (
            "object with other members",
            400,
            r#"{"error":{"other":"MARK"}}"#,
            no_oauth(400, ""),
        ),
        (
            "object in a success",
            200,
            r#"{"error":{"code":"no"}}"#,
            format!("{refused} 200 no"),
        ),
        (
            "array of four",
            400,
            r#"{"error":["MARK","MARK","MARK","MARK"]}"#,
            no_oauth(400, ""),
        ),
        (
            "array in a success",
            200,
            r#"{"error":["MARK"]}"#,
            format!("{refused} 200"),
        ),
        ("false", 400, r#"{"error":false}"#, no_oauth(400, "")),
        ("login page", 401, "<html>MARK</html>", no_oauth(401, html)),
        ("wrong path", 404, "<html>MARK</html>", no_oauth(404, html)),
        ("wrong method", 405, "", no_oauth(405, empty)),
        (
            "gateway's own error",
            400,
            r#"{"message":"no such tenant","code":"credentials_invalid"}"#,
            format!("{refused} 400 credentials_invalid (no such tenant)"),
        ),
        (
            "message that is not a string",
            400,
            r#"{"message":{"text":"MARK"}}"#,
            no_oauth(400, ""),
        ),
        (
            "Okta",
            401,
            r#"{"errorCode":"invalid_client","errorSummary":"A client_id must be provided in the request.","errorLink":"invalid_client","errorId":"oae1","errorCauses":[]}"#,
            format!("{refused} 401 invalid_client (A client_id must be provided in the request.)"),
        ),
        (
            "X",
            403,
            r#"{"errors":[{"code":99,"message":"Unable to verify your credentials","label":"authenticity_token_error"}]}"#,
            format!("{refused} 403 authenticity_token_error (Unable to verify your credentials)"),
        ),
        (
            "X, other errors",
            403,
            r#"{"errors":[{"code":99,"message":"Unable to verify your credentials"},{"code":1,"message":"MARK"}]}"#,
            format!("{refused} 403 99 (Unable to verify your credentials)"),
        ),
        (
            "Zoom",
            400,
            r#"{"reason":"Invalid client_id or client_secret","error":"invalid_client"}"#,
            format!("{refused} 400 invalid_client (Invalid client_id or client_secret)"),
        ),
        (
            "problem details",
            401,
            r#"{"type":"about:blank","title":"Unauthorized","status":401,"detail":"client secret has expired"}"#,
            format!("{refused} 401 (client secret has expired)"),
        ),
        (
            "problem details with a title of their own",
            403,
            r#"{"type":"https://docs.example/disabled","title":"Client is disabled","status":403,"detail":"since May"}"#,
            format!("{refused} 403 (Client is disabled: since May)"),
        ),
        (
            "problem details without a detail",
            403,
            r#"{"title":"Client is disabled","status":403}"#,
            format!("{refused} 403 (Client is disabled)"),
        ),
        (
            "JSON:API",
            401,
            r#"{"errors":[{"status":"401","code":"bad_secret","title":"Unauthorized","detail":"wrong secret"}]}"#,
            format!("{refused} 401 bad_secret (wrong secret)"),
        ),
        (
            "Google, with inner errors",
            401,
            r#"{"error":{"code":401,"message":"Invalid Credentials","errors":[{"message":"MARK","reason":"authError"}],"status":"UNAUTHENTICATED"}}"#,
            format!("{refused} 401 UNAUTHENTICATED (Invalid Credentials)"),
        ),
        (
            "Azure",
            403,
            r#"{"error":{"code":"AuthorizationFailed","message":"no access"}}"#,
            format!("{refused} 403 AuthorizationFailed (no access)"),
        ),
        (
            "Apigee",
            401,
            r#"{"fault":{"faultstring":"Invalid ApiKey","detail":{"errorcode":"oauth.v2.InvalidApiKey"}}}"#,
            format!("{refused} 401 oauth.v2.InvalidApiKey (Invalid ApiKey)"),
        ),
        (
            "FastAPI",
            422,
            r#"{"detail":[{"loc":["body","scope"],"msg":"field required","type":"value_error.missing"}]}"#,
            format!("{refused} 422 value_error.missing (field required)"),
        ),
        (
            "Spring",
            404,
            r#"{"timestamp":"MARK","status":404,"error":"Not Found"}"#,
            format!("{refused} 404 Not Found"),
        ),
        (
            "Salesforce's other API: an array",
            401,
            r#"[{"message":"Session expired or invalid","errorCode":"INVALID_SESSION_ID"}]"#,
            format!("{refused} 401 INVALID_SESSION_ID (Session expired or invalid)"),
        ),
        (
            "errors as texts",
            400,
            r#"{"errors":["no such client"]}"#,
            format!("{refused} 400 (no such client)"),
        ),
        (
            "code that is the status",
            400,
            r#"{"code":400,"message":"Bad Request"}"#,
            format!("{refused} 400 (Bad Request)"),
        ),
        (
            "Okta in a success",
            200,
            r#"{"errorCode":"invalid_client","errorSummary":"no"}"#,
            format!("{refused} 200 invalid_client (no)"),
        ),
        (
            "errors in a success",
            200,
            r#"{"errors":[{"code":"bad","message":"no"}]}"#,
            format!("{refused} 200 bad (no)"),
        ),
        (
            "nested without end",
            400,
            r#"{"error":{"error":{"error":{"error":{"code":"MARK"}}}}}"#,
            no_oauth(400, ""),
        ),
        (
            "Google's internal failure",
            400,
            r#"{"error":"internal_failure"}"#,
            format!("{unserved} 400 internal_failure"),
        ),
        (
            "Salesforce, busy",
            400,
            r#"{"error":"unknown_error","error_description":"retry your request"}"#,
            format!("{unserved} 400 unknown_error (retry your request)"),
        ),
        (
            "busy, in other words",
            400,
            r#"{"code":"E17","message":"Something went wrong. Please try again later."}"#,
            format!("{unserved} 400 E17 (Something went wrong. Please try again later.)"),
        ),
        (
            "locked out, without a code",
            403,
            r#"{"message":"locked, try again later"}"#,
            format!("{refused} 403 (locked, try again later)"),
        ),
        (
            "locked out",
            401,
            r#"{"error":"invalid_client","error_description":"locked, try again later"}"#,
            format!("{refused} 401 invalid_client (locked, try again later)"),
        ),
        (
            "Authlib, node-oauth: 400 for a wrong secret",
            400,
            r#"{"error":"invalid_client","error_description":"no such client"}"#,
            format!("{refused} 400 invalid_client (no such client)"),
        ),
        (
            "Authlib: grant not allowed",
            400,
            r#"{"error":"unauthorized_client"}"#,
            format!("{refused} 400 unauthorized_client"),
        ),
        (
            "oidc-provider: grant not allowed",
            400,
            r#"{"error":"invalid_request","error_description":"requested grant type is not allowed for this client"}"#,
            format!(
                "{refused} 400 invalid_request (requested grant type is not allowed for this client)"
            ),
        ),
        (
            "refresh token in the text",
            400,
            r#"{"error":"x","error_description":"had MARK","refresh_token":"MARK"}"#,
            format!("{refused} 400 x (had [redacted])"),
        ),
        (
            "number",
            400,
            r#"{"error":17}"#,
            format!("{refused} 400 17"),
        ),
        ("array", 400, r#"{"error":["MARK"]}"#, no_oauth(400, "")),
        (
            "true",
            200,
            r#"{"error":true}"#,
            format!("{refused} 200 true"),
        ),
        ("null", 400, r#"{"error":null}"#, no_oauth(400, "")),
        (
            "Mattermost",
            500,
            "<html>MARK</html>",
            format!("{unserved} 500"),
        ),
        (
            "content networks",
            503,
            "<!doctype html>MARK",
            format!("{unserved} 503"),
        ),
        ("empty", 401, "", no_oauth(401, empty)),
        (
            "oidc-provider",
            401,
            r#"{"error":"invalid_client"}"#,
            format!("{refused} 401 invalid_client"),
        ),
        (
            "an error status with a token",
            400,
            r#"{"access_token":"MARK"}"#,
            no_oauth(400, ""),
        ),
        ("Camunda", 429, "slow down", format!("{unserved} 429")),
        ("timeout", 408, "", format!("{unserved} 408")),
        ("too early", 425, "", format!("{unserved} 425")),
        (
            "busy",
            400,
            r#"{"error":"temporarily_unavailable"}"#,
            format!("{unserved} 400 temporarily_unavailable"),
        ),
        (
            "broken",
            400,
            r#"{"error":"server_error"}"#,
            format!("{unserved} 400 server_error"),
        ),
        (
            "fast",
            400,
            r#"{"error":"slow_down"}"#,
            format!("{unserved} 400 slow_down"),
        ),
        (
            "line breaks",
            400,
            r#"{"error":"a\r\nb","error_description":"one\r\ntwo\u0000\u001b[31m\u202ethree\n"}"#,
            format!("{refused} 400 a b (one two [31m three)"),
        ),
        (
            "wrong types",
            400,
            r#"{"error":"x","error_description":{"a":"MARK"},"error_uri":5}"#,
            format!("{refused} 400 x"),
        ),
        (
            "twice",
            400,
            r#"{"error":"MARK","error":"MARK"}"#,
            no_oauth(
                400,
                " (body contains a parameter twice, at line 1 column 23)",
            ),
        ),
        ("informational", 101, "", no_oauth(101, empty)),
        ("teapot with a text", 418, "MARK", no_oauth(418, other)),
        (
            "half an error",
            400,
            r#"{"error":"MARK"#,
            no_oauth(400, " (body is cut off, at line 1 column 14)"),
        ),
    ] {
        let error = Reply::new(status, body).read().await.expect_err(name);

        assert!(error.is_refused(), "{name}");
        assert_eq!(
            error.is_transient(),
            message.starts_with(unserved),
            "{name}"
        );
        assert!(error.hint().is_none() || !error.is_transient(), "{name}");
        assert_eq!(error.status().unwrap(), status, "{name}");
        let hint = error.hint().map(|hint| format!("; {hint}"));
        assert_eq!(
            error.to_string(),
            message + &hint.unwrap_or_default(),
            "{name}"
        );
        assert_shows_nothing(name, &error);
    }
}

#[tokio::test]
async fn long_texts_of_the_server_are_cut() {
    let long = "é".repeat(100_000);
    let body = format!(r#"{{"error":"{long}","error_description":"{long}","error_uri":"{long}"}}"#);

    let error = Reply::new(400, body).read().await.unwrap_err();

    let cut = |length| "é".repeat(length) + "…";
    assert_eq!(error.code(), Some(&*cut(100)));
    assert_eq!(error.description(), Some(&*cut(500)));
    assert_eq!(error.error_uri(), Some(&*cut(300)));
}

#[tokio::test]
async fn time_to_read_an_error_is_proportional_to_its_length() {
    // Wherever a text is compared with a token, they differ in the last letter only.
    async fn timed(length: usize, times: usize) -> Duration {
        let (token, text) = ("a".repeat(length / 6) + "b", "a".repeat(length / 6));
        let reply = Reply::new(
            400,
            json(&[
                ("access_token", &token),
                ("refresh_token", &token),
                ("id_token", &token),
                ("error", &text),
                ("error_description", &text),
                ("error_uri", &text),
            ]),
        );
        let tokens = reply.endpoint().reply_limit(2 * length);
        let start = std::time::Instant::now();
        for _ in 0..times {
            let request = tokens.clone().oneshot(TokenRequest::default());
            // Cut, so that the rest of a token may follow.
            assert_eq!(request.await.unwrap_err().code(), Some("[redacted]…"));
        }
        start.elapsed()
    }
    let (mut many_short, mut one_long) = (Duration::MAX, Duration::MAX);
    for _ in 0..5 {
        // Both take as long if the time is proportional, so that a busy machine slows down both.
        many_short = many_short.min(timed(64 * 1024, 16).await);
        one_long = one_long.min(timed(1024 * 1024, 1).await);
    }

    // Quadratic is 16 times.
    assert!(one_long < 6 * many_short, "{many_short:?} {one_long:?}");
}

#[tokio::test]
async fn linkedin_errors_have_hints() {
    let portal = "application's Auth tab in LinkedIn's developer portal";
    let compare = format!("compare the client id and secret with the {portal}");
    for (status, code, description, hint) in [
        (
            401,
            "invalid_client_id",
            "Client authentication failed",
            compare.as_str(),
        ),
        (
            401,
            "invalid_client",
            "Client authentication failed",
            compare.as_str(),
        ),
        (
            401,
            "access_denied",
            "This application is not allowed to create application tokens",
            "ask your LinkedIn relationship manager or business development for access: the \
             application may not create 2-legged tokens",
        ),
        (
            400,
            "invalid_request",
            r#"A required parameter "grant_type" is missing"#,
            "send grant_type=client_credentials; a proxy may have dropped the form",
        ),
        (
            400,
            "invalid_request",
            r#"A required parameter "client_id" is missing"#,
            "send the client id; it must not be empty",
        ),
        (
            400,
            "invalid_request",
            r#"A required parameter "client_secret" is missing"#,
            "send the client secret; it must not be empty",
        ),
        (
            400,
            "invalid_client_id",
            r#"The passed in client_id is invalid "abcdefghijk""#,
            "send the client id shown on the application's Auth tab in LinkedIn's developer portal",
        ),
    ] {
        let escaped = description.replace('"', "\\\"");
        let body = format!(r#"{{"error":"{code}","error_description":"{escaped}"}}"#);
        let reply = Reply::new(status, body);
        let tokens = provider::linkedin(reply.http(), "abcdefghijk", "s3cret").unwrap();

        let error = tokens.oneshot(TokenRequest::default()).await.unwrap_err();

        assert_eq!(error.hint(), Some(hint));
        let message = format!(
            "token endpoint www.linkedin.com refused client \"abcdefghijk\": {status} {code} ({description}); {hint}"
        );
        assert_eq!(error.to_string(), message);
    }
}

#[tokio::test]
async fn every_common_error_has_a_hint() {
    let basic = || ClientAuth::client_secret_basic("id", "s3cret");
    let unencoded = || ClientAuth::client_secret_basic_unencoded("id", "s3cret");
    let post = || ClientAuth::client_secret_post("id", "s3cret");
    let none = || ClientAuth::none("id");
    let assertion = || ClientAuth::jwt_assertion("id", |_, _| async { Ok::<_, Infallible>("jwt") });
    let error = |code: &str| json(&[("error", code)]);
    let (client, scope, target) = (
        error("invalid_client"),
        error("invalid_scope"),
        error("invalid_target"),
    );

    let check_basic = "check the client id and secret; the request used client_secret_basic, but the \
        server may expect client_secret_post, private_key_jwt or, if it does not decode the header, \
        client_secret_basic_unencoded";
    let check_unencoded = "check the client id and secret; the request used \
        client_secret_basic_unencoded, but the server may expect client_secret_basic, \
        client_secret_post or private_key_jwt";
    let check_post = "check the client id and secret; the request used client_secret_post, but the \
        server may expect client_secret_basic or private_key_jwt";
    let check_none = "check the client id and the client's certificate; the request used none, but the \
        server may expect client_secret_basic, client_secret_post or private_key_jwt";
    let check_assertion = "check the client id and the assertion's key, audience and expiry; the \
        request used jwt_assertion, but the server may expect client_secret_basic or client_secret_post";
    let challenged = "check the client id and secret; the request used client_secret_post, but the \
        server asks for client_secret_basic";
    let proxy = "set the proxy's credentials in the HTTP client";
    let no_page = "check the token URL: the server has nothing at its path";
    let no_post = "check the token URL: the server accepts no POST at its path";

    let plain = |status, body: &str| Reply::new(status, body.to_owned());
    let challenge = |value| plain(401, "").with(header::WWW_AUTHENTICATE, value);
    let asking = |tokens: TokenEndpoint| {
        tokens
            .scope("a b")
            .resource("https://r.example")
            .audience("api")
    };
    let as_it_is = |tokens: TokenEndpoint| tokens;
    type Ask = fn(TokenEndpoint) -> TokenEndpoint;
    let rows: Vec<(Reply, ClientAuth, Ask, String)> = vec![
        (plain(401, &client), basic(), as_it_is, check_basic.into()),
        (plain(400, &client), unencoded(), as_it_is, check_unencoded.into()),
        (plain(400, &client), post(), as_it_is, check_post.into()),
        (plain(401, &client), none(), as_it_is, check_none.into()),
        (plain(401, &client), assertion(), as_it_is, check_assertion.into()),
        (plain(400, &error("invalid_client_id")), post(), as_it_is, check_post.into()),
        (plain(200, &client), post(), as_it_is, check_post.into()),
        // Without a code.
        (plain(401, ""), basic(), as_it_is, check_basic.into()),
        (plain(401, "<html>"), post(), as_it_is, check_post.into()),
        (plain(401, &error("BadThings")), post(), as_it_is, check_post.into()),
        (challenge("Basic realm=\"x\""), post(), as_it_is, challenged.into()),
        (challenge("Bearer a=b, basic realm=x"), post(), as_it_is, challenged.into()),
        (challenge("Basic"), basic(), as_it_is, check_basic.into()),
        (challenge("Bearer"), post(), as_it_is, check_post.into()),
        (
            plain(403, "<html>"),
            post(),
            as_it_is,
            format!("{check_post}; a firewall in front of the server may refuse requests, too"),
        ),
        (plain(407, ""), post(), as_it_is, proxy.into()),
        (plain(407, &client), post(), as_it_is, proxy.into()),
        (plain(404, "<html>"), post(), as_it_is, no_page.into()),
        (plain(404, &error("Not Found")), post(), as_it_is, no_page.into()),
        (plain(404, &client), post(), as_it_is, check_post.into()),
        (plain(410, ""), post(), as_it_is, no_page.into()),
        (plain(405, ""), post(), as_it_is, no_post.into()),
        // Other codes.
        (
            plain(400, &error("unauthorized_client")),
            post(),
            as_it_is,
            format!(
                "allow the client_credentials grant for this client at the server; if it is \
                 allowed, {check_post}"
            ),
        ),
        (
            plain(401, &error("access_denied")),
            post(),
            as_it_is,
            format!(
                "check at the server whether this client may have a token for what the request \
                 asks for; if it may, {check_post}"
            ),
        ),
        (
            plain(400, &error("unsupported_grant_type")),
            post(),
            as_it_is,
            "the request sent grant_type=client_credentials as a form; allow this grant at the \
             server, or check that nothing in between changes the form"
                .into(),
        ),
        (
            plain(400, &error("invalid_grant")),
            assertion(),
            as_it_is,
            "check the credentials; if an assertion is sent, check its expiry, its audience and \
             this machine's clock"
                .into(),
        ),
        (
            plain(400, &scope),
            post(),
            asking,
            "the request asked for scope \"a b\"; check which scopes the server grants to this \
             client"
                .into(),
        ),
        (
            plain(400, &scope),
            post(),
            as_it_is,
            "the request asked for no scope; the server may require one".into(),
        ),
        (
            plain(400, &scope),
            post(),
            |tokens| tokens.scope("s3cret"),
            "the request asked for scope \"[redacted]\"; check which scopes the server grants to \
             this client"
                .into(),
        ),
        (
            plain(400, &target),
            post(),
            asking,
            "the request asked for resource \"https://r.example\" and audience \"api\"; check which \
             of them the server allows for this client"
                .into(),
        ),
        (
            plain(400, &target),
            post(),
            as_it_is,
            "the request named no resource and no audience; the server may require one".into(),
        ),
        (
            plain(400, &error("invalid_request")),
            post(),
            asking,
            "the form had the fields grant_type, client_id, client_secret, scope, resource, audience \
             with client_secret_post; the server may require another field, such as a scope or \
             audience, or another method"
                .into(),
        ),
    ];
    for (reply, auth, ask, hint) in rows {
        let tokens = TokenEndpoint::new(reply.http(), "https://auth.example/token", auth).unwrap();

        let error = ask(tokens)
            .oneshot(TokenRequest::default())
            .await
            .unwrap_err();

        assert_eq!(error.hint(), Some(&*hint), "{reply:?}");
        assert!(error.to_string().ends_with(&format!("; {hint}")), "{error}");
    }
}

#[tokio::test]
async fn nothing_blames_the_token_url_without_cause() {
    for status in 100..600 {
        if (300..400).contains(&status) || [404, 405, 410].contains(&status) {
            continue;
        }
        for body in [
            "",
            "<html>",
            "{}",
            r#"{"error":"x"}"#,
            r#"{"error":"invalid_request"}"#,
        ] {
            let error = Reply::new(status, body).read().await.unwrap_err();

            assert!(!error.to_string().contains("URL"), "{error}");
        }
    }
}

#[tokio::test]
async fn refusal_of_a_proxy_names_the_proxy() {
    let with_body = r#"{"error":"proxy_auth","error_description":"log in"}"#;
    let busy = r#"{"error":"slow_down"}"#;
    for (body, texts) in [
        ("", " without an OAuth error (body is empty)"),
        (busy, " slow_down"),
        (with_body, " proxy_auth (log in)"),
    ] {
        let error = Reply::new(407, body).read().await.unwrap_err();

        let message = format!(
            "proxy in front of token endpoint auth.example refused the request: 407{texts}; set \
             the proxy's credentials in the HTTP client"
        );
        assert_eq!(error.to_string(), message);
        assert!(error.is_refused() && !error.is_transient());
    }
}

#[tokio::test]
async fn errors_name_the_host_and_the_client() {
    let quoted = "a\"b\\c".to_owned();
    let long = "x".repeat(300);
    for (id, shown) in [
        ("my-client", "my-client".to_owned()),
        (&quoted, quoted.clone()),
        (&long, "x".repeat(200) + "…"),
        ("id-s3cret", "id-[redacted]".to_owned()),
    ] {
        for reply in [
            Reply::new(401, ""),
            Reply::new(200, ""),
            Reply::new(503, ""),
        ] {
            let auth = ClientAuth::client_secret_post(id, "s3cret");
            let tokens =
                TokenEndpoint::new(reply.http(), "https://auth.example:8443/t", auth).unwrap();

            let error = tokens.oneshot(TokenRequest::default()).await.unwrap_err();

            assert_eq!(error.client_id(), Some(&*shown));
            assert_eq!(error.endpoint_host(), Some("auth.example"));
            if error.is_refused() {
                assert!(
                    error.to_string().contains(&format!("client {shown:?}: ")),
                    "{error}"
                );
            }
        }
    }
    let of_no_endpoint = Error::permanent("the tenant is disabled");
    assert_eq!(of_no_endpoint.client_id(), None);
    assert_eq!(of_no_endpoint.endpoint_host(), None);
}

#[tokio::test]
async fn errors_that_a_provider_does_not_document_have_the_common_hint() {
    let scope = Reply::new(400, r#"{"error":"invalid_scope"}"#);
    let linkedin = provider::linkedin(scope.http(), "id", "s3cret").unwrap();

    let error = linkedin.oneshot(TokenRequest::default()).await.unwrap_err();

    let hint = "the request asked for no scope; the server may require one";
    assert_eq!(error.hint(), Some(hint));
}

#[tokio::test]
async fn errors_that_nobody_documents_have_no_hint() {
    for (status, body) in [
        (400, r#"{"error":"odd"}"#),
        (400, "<html>"),
        (200, r#"{"error":"odd"}"#),
        (418, ""),
        (503, r#"{"error":"invalid_client"}"#),
        (200, ""),
    ] {
        assert_eq!(
            Reply::new(status, body).read().await.unwrap_err().hint(),
            None
        );
    }
}

#[tokio::test]
async fn hints_stay_with_another_url() {
    let denied = Reply::new(401, r#"{"error":"access_denied"}"#);
    let tokens = provider::linkedin(denied.http(), "id", "s3cret").unwrap();

    let tokens = tokens.url("http://127.0.0.1:8080/token").unwrap();

    let error = tokens.oneshot(TokenRequest::default()).await.unwrap_err();
    assert!(error.hint().is_some());
}

#[tokio::test]
async fn redirect_names_its_target_and_whether_to_use_that() {
    let nowhere = "endpoint redirects without a usable location; check the token URL";
    // Status, location, and what the message says.
    for (status, location, message) in [
        (
            301,
            Some("/v2/token"),
            "endpoint moved to https://auth.example/v2/token; make that the token URL",
        ),
        (
            308,
            Some("https://u:MARK@AUTH.example:8443/token?q=MARK#MARK"),
            "endpoint moved to https://AUTH.example:8443/token; make that the token URL",
        ),
        (
            301,
            Some("/MARK-SECRET/"),
            "endpoint moved to https://auth.example/[redacted]/; make that the token URL",
        ),
        (
            302,
            Some("/v2/token"),
            "endpoint redirects to https://auth.example/v2/token; check the token URL",
        ),
        (
            303,
            Some("/login;jsessionid=MARK"),
            "endpoint redirects to https://auth.example/login; check the token URL",
        ),
        (
            307,
            Some("/v2/token"),
            "endpoint redirects to https://auth.example/v2/token; check the token URL",
        ),
        (
            308,
            Some("https://u:MARK@new.example/token?q=MARK"),
            "endpoint redirects to https://new.example/token; check the token URL",
        ),
        (
            301,
            Some("http://auth.example/token"),
            "endpoint redirects to http://auth.example/token; check the token URL",
        ),
        (
            301,
            Some("//new.example/token"),
            "endpoint redirects to https://new.example/token; check the token URL",
        ),
        (301, Some("../MARK"), nowhere),
        (301, Some("http://[MARK"), nowhere),
        (308, None, nowhere),
        (304, None, nowhere),
    ] {
        // The token in the body is not used.
        let mut reply = Reply::new(status, r#"{"access_token":"MARK"}"#);
        if let Some(location) = location {
            reply = reply.with(header::LOCATION, location);
        }

        let error = reply.read().await.unwrap_err();

        assert!(error.is_invalid_reply() && !error.is_transient());
        let prefix = format!("token endpoint auth.example answered {status} without a token: ");
        assert_eq!(error.to_string(), prefix + message);
        assert_shows_nothing("redirect", &error);
    }
}

#[tokio::test]
async fn reply_of_another_origin_is_refused() {
    for status in [200, 400, 500] {
        let mut reply = Reply::new(status, r#"{"access_token":"MARK"}"#);
        assert_eq!(reply.read().await.is_ok(), status == 200);
        reply.0.extensions_mut().insert(TokenRemoved);

        let error = reply.read().await.unwrap_err();

        assert!(error.is_invalid_reply() && !error.is_transient());
        let message = error.to_string();
        assert!(
            message.contains("reply is from another origin"),
            "{message}"
        );
        assert_shows_nothing("another origin", &error);
    }
}

// --- Retry-After ---

#[tokio::test]
async fn retry_after_may_be_seconds_or_a_date() {
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    for (name, retry_after, now, wait) in [
        ("Camunda", "30", None, Some(30.0)),
        ("zero", "0", None, Some(0.0)),
        ("spaces", " 5 ", None, Some(5.0)),
        ("fraction", "0.5", None, Some(0.5)),
        ("negative", "-1", None, None),
        ("negative zero", "-0", None, None),
        ("signed", "+5", None, None),
        ("exponent", "1e3", None, None),
        ("with a unit", "30s", None, None),
        ("not a number", "NaN", None, None),
        ("infinity", "inf", None, None),
        ("a point", ".", None, None),
        ("a Unix time", "1764324000", None, Some(1_764_324_000.0)),
        ("milliseconds", "30000", None, Some(30_000.0)),
        (
            "too many",
            "99999999999999999999999",
            None,
            Some(LONGEST_RETRY_AFTER),
        ),
        (
            "date by the server's clock",
            date,
            Some("Sun, 06 Nov 1994 08:48:37 GMT"),
            Some(60.0),
        ),
        (
            "date in an obsolete format",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            Some("Sun, 06 Nov 1994 08:48:37 GMT"),
            Some(60.0),
        ),
        (
            "date in the past",
            date,
            Some("Sun, 06 Nov 1994 09:00:00 GMT"),
            Some(0.0),
        ),
        ("date in the past by our clock", date, None, Some(0.0)),
        ("invalid Date", date, Some("now"), Some(0.0)),
        (
            "far future",
            "Fri, 31 Dec 9999 23:59:59 GMT",
            Some(date),
            Some(LONGEST_RETRY_AFTER),
        ),
        (
            "a minute after year 9000",
            "Wed, 01 Jan 9000 00:01:00 GMT",
            Some("Wed, 01 Jan 9000 00:00:00 GMT"),
            Some(60.0),
        ),
        ("an hour", "3600", None, Some(HOUR)),
        ("more than an hour", "3601", None, Some(3601.0)),
        ("words", "soon", None, None),
        ("empty", "", None, None),
    ] {
        let mut reply = Reply::new(429, "").with(header::RETRY_AFTER, retry_after);
        if let Some(now) = now {
            reply = reply.with(header::DATE, now);
        }

        let error = reply.read().await.unwrap_err();

        assert_eq!(
            error.retry_after(),
            wait.map(Duration::from_secs_f64),
            "{name}"
        );
    }
}

#[tokio::test]
async fn other_headers_say_how_long_to_wait_if_there_is_no_retry_after() {
    let date = "Fri, 28 Nov 2025 10:00:00 GMT"; // 1764324000
    type Row = (
        &'static str,
        u16,
        &'static [(&'static str, &'static str)],
        Option<f64>,
    );
    let rows: [Row; 29] = [
        (
            "Microsoft",
            429,
            &[("x-ms-retry-after-ms", "1500")],
            Some(1.5),
        ),
        (
            "Microsoft, busy",
            503,
            &[("x-ms-retry-after-ms", "1500")],
            Some(1.5),
        ),
        ("Azure OpenAI", 429, &[("retry-after-ms", "20")], Some(0.02)),
        (
            "negative milliseconds",
            429,
            &[("x-ms-retry-after-ms", "-1")],
            None,
        ),
        ("no milliseconds", 429, &[("x-ms-retry-after-ms", "")], None),
        (
            "words for milliseconds",
            429,
            &[("x-ms-retry-after-ms", "soon")],
            None,
        ),
        ("draft", 429, &[("ratelimit-reset", "50")], Some(50.0)),
        ("reset at once", 429, &[("ratelimit-reset", "0")], Some(0.0)),
        ("negative reset", 429, &[("ratelimit-reset", "-5")], None),
        (
            "words for a reset",
            429,
            &[("ratelimit-reset", "tomorrow")],
            None,
        ),
        (
            "later draft",
            429,
            &[("ratelimit", "\"default\";r=0;t=30")],
            Some(30.0),
        ),
        (
            "draft of one header",
            429,
            &[("ratelimit", "limit=10, remaining=0, reset=40")],
            Some(40.0),
        ),
        (
            "quota without a reset",
            429,
            &[("ratelimit", "\"default\";r=0")],
            None,
        ),
        (
            "Auth0, a Unix time",
            429,
            &[("x-ratelimit-reset", "1764324060")],
            Some(60.0),
        ),
        (
            "Okta, a Unix time",
            429,
            &[("x-rate-limit-reset", "1764324007")],
            Some(7.0),
        ),
        (
            "Unix time in the draft's header",
            429,
            &[("ratelimit-reset", "1764324060")],
            Some(60.0),
        ),
        (
            "Unix time with a fraction",
            429,
            &[("x-ratelimit-reset", "1764324000.5")],
            Some(0.5),
        ),
        (
            "Unix time in the past",
            429,
            &[("x-ratelimit-reset", "1764323999")],
            None,
        ),
        (
            "Unix time of now",
            429,
            &[("x-ratelimit-reset", "1764324000")],
            None,
        ),
        (
            "a Unix time in milliseconds",
            429,
            &[("x-ratelimit-reset", "1764324060000")],
            Some(LONGEST_RETRY_AFTER - 1_764_324_000.0),
        ),
        (
            "reset of a quota that is not used up",
            503,
            &[("ratelimit-reset", "50")],
            None,
        ),
        (
            "reset beside a wrong secret",
            401,
            &[("x-ratelimit-reset", "1764324060")],
            None,
        ),
        (
            "Retry-After is preferred",
            429,
            &[
                ("ratelimit-reset", "50"),
                ("x-ms-retry-after-ms", "1"),
                ("retry-after", "7"),
            ],
            Some(7.0),
        ),
        (
            "invalid Retry-After is not",
            429,
            &[("ratelimit-reset", "50"), ("retry-after", "soon")],
            Some(50.0),
        ),
        (
            "milliseconds are preferred to a reset",
            429,
            &[("ratelimit-reset", "50"), ("x-ms-retry-after-ms", "1000")],
            Some(1.0),
        ),
        (
            "invalid milliseconds are not",
            429,
            &[("ratelimit-reset", "50"), ("x-ms-retry-after-ms", "1s")],
            Some(50.0),
        ),
        (
            "draft is preferred to what preceded it",
            429,
            &[("x-ratelimit-reset", "9"), ("ratelimit-reset", "5")],
            Some(5.0),
        ),
        (
            "other headers",
            429,
            &[("x-ratelimit-remaining", "9")],
            None,
        ),
        ("nothing", 429, &[], None),
    ];
    for (name, status, headers, wait) in rows {
        let mut reply = Reply::new(status, "").with(header::DATE, date);
        for (name, value) in headers {
            reply = reply.with(HeaderName::from_static(name), value);
        }

        let error = reply.read().await.unwrap_err();

        assert_eq!(
            error.retry_after(),
            wait.map(Duration::from_secs_f64),
            "{name}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn refusal_of_too_many_requests_is_not_retried_at_once() {
    let throttled = |name, value| Reply::new(429, "").with(HeaderName::from_static(name), value);
    for (name, reply, requests) in [
        ("no header", Reply::new(429, ""), 1),
        (
            "with a code",
            Reply::new(429, r#"{"error":"slow_down"}"#),
            1,
        ),
        ("invalid header", throttled("retry-after", "-1"), 1),
        ("empty header", throttled("retry-after", ""), 1),
        ("Retry-After", throttled("retry-after", "1"), 3),
        ("RateLimit-Reset", throttled("ratelimit-reset", "1"), 3),
        ("Microsoft", throttled("x-ms-retry-after-ms", "100"), 3),
        ("busy", Reply::new(503, ""), 3),
    ] {
        let sent = Arc::new(AtomicUsize::new(0));
        let count = sent.clone();
        let http = service_fn(move |_: Request<Full<Bytes>>| {
            count.fetch_add(1, Ordering::Relaxed);
            let reply = reply.0.clone();
            async { Ok::<_, Infallible>(reply) }
        });
        let tokens = TokenEndpoint::new(http, "https://auth.example/token", auth()).unwrap();

        TokenCache::new(tokens).token().await.unwrap_err();

        assert_eq!(sent.load(Ordering::Relaxed), requests, "{name}");
    }
}

#[tokio::test]
async fn permanent_errors_keep_the_retry_after_of_the_server() {
    let reply = Reply::new(401, r#"{"error":"invalid_client"}"#).with(header::RETRY_AFTER, "30");

    let error = reply.read().await.unwrap_err();

    assert!(!error.is_transient());
    assert_eq!(error.retry_after(), Some(Duration::from_secs(30)));
}

#[tokio::test]
async fn first_valid_retry_after_counts() {
    let mut reply = Reply::new(429, "");
    for value in ["soon", "30", "60"] {
        let value = HeaderValue::from_static(value);
        reply.0.headers_mut().append(header::RETRY_AFTER, value);
    }

    let error = reply.read().await.unwrap_err();

    assert_eq!(error.retry_after(), Some(Duration::from_secs(30)));
}

#[tokio::test(start_paused = true)]
async fn cache_obeys_the_retry_after_of_an_endpoint() {
    let date = "Sun, 06 Nov 1994 08:48:37 GMT";
    for (name, retry_after, seconds) in [
        ("seconds", "7", 7),
        ("date", "Sun, 06 Nov 1994 08:48:44 GMT", 7),
        ("beyond the deadline", "240", 240),
    ] {
        let busy = Reply::new(503, "")
            .with(header::RETRY_AFTER, retry_after)
            .with(header::DATE, date);
        let sent_at: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let noted = sent_at.clone();
        let http = service_fn(move |_: Request<Full<Bytes>>| {
            let mut noted = noted.lock().unwrap();
            noted.push(Instant::now());
            let reply = match noted.len() {
                1 => busy.0.clone(),
                _ => Reply::new(200, r#"{"access_token":"t"}"#).0,
            };
            async { Ok::<_, Infallible>(reply) }
        });
        let tokens = TokenEndpoint::new(http, "https://auth.example/token", auth()).unwrap();
        let cache = TokenCache::new(tokens);

        let token = match cache.token().await {
            Ok(token) => token,
            Err(error) => {
                let wait = error.retry_after().unwrap();
                assert!(obeys(wait, seconds), "{name}: {wait:?}");
                tokio::time::advance(wait).await;
                cache.token().await.unwrap()
            }
        };

        assert_eq!(token.expose(), "t");
        let sent_at = sent_at.lock().unwrap();
        assert_eq!(sent_at.len(), 2, "{name}");
        assert!(obeys(sent_at[1] - sent_at[0], seconds), "{name}");
    }
}

/// Returns whether a wait is as long as asked for, or up to half as long again, at random.
fn obeys(wait: Duration, seconds: u64) -> bool {
    let wanted = Duration::from_secs(seconds);
    wait >= wanted && wait <= wanted * 3 / 2 + Duration::from_millis(2)
}

#[tokio::test]
async fn retry_after_counts_for_every_kind_of_failure() {
    for (status, body) in [
        (503, "<html>"),
        (200, "<html>"),
        (302, ""),
        (400, r#"{"error":"slow_down"}"#),
        (
            503,
            "longer than the limit: ..................................",
        ),
    ] {
        let reply = Reply::new(status, body).with(header::RETRY_AFTER, "7");
        let tokens = reply.endpoint().reply_limit(40);

        let error = tokens.oneshot(TokenRequest::default()).await.unwrap_err();

        assert_eq!(
            error.retry_after(),
            Some(Duration::from_secs(7)),
            "{status} {body}"
        );
    }
}

// --- Bodies ---

#[tokio::test]
async fn endless_body_is_read_up_to_the_limit_and_dropped() {
    let too_long = "body is longer than 1048576 bytes";
    for (name, frame, frames, fact) in [
        ("large frames", 64 * 1024, 17, too_long),
        ("small frames", 16, 64 * 1024 + 1, too_long),
        ("a frame over the limit", 2 * 1024 * 1024, 1, too_long),
        (
            "empty frames",
            0,
            1001,
            "body has more than 1000 empty frames",
        ),
    ] {
        let watch = Watch::default();
        let body = Endless {
            frame: vec![b' '; frame].into(),
            watch: watch.clone(),
        };
        // `Content-Length` is not trusted.
        let reply = Response::builder()
            .header(header::CONTENT_LENGTH, 20)
            .body(body)
            .unwrap();

        let error = request_token(reply).await.unwrap_err();

        assert!(error.is_invalid_reply() && !error.is_transient(), "{name}");
        assert_eq!(
            error.to_string(),
            format!("token endpoint auth.example answered 200 without a token: {fact}")
        );
        assert_eq!(watch.frames.load(Ordering::Relaxed), frames, "{name}");
        assert!(watch.dropped.load(Ordering::Relaxed), "{name}");
    }
}

#[tokio::test]
async fn reply_of_exactly_the_limit_is_read() {
    let body = r#"{"access_token":"t"}"#;
    let tokens = Reply::new(200, body).endpoint();
    let request = TokenRequest::default;

    let fits = tokens
        .clone()
        .reply_limit(body.len())
        .oneshot(request())
        .await;
    let exceeds = tokens.reply_limit(body.len() - 1).oneshot(request()).await;

    assert_eq!(fits.unwrap().expose(), "t");
    assert!(exceeds.unwrap_err().is_invalid_reply());
}

#[tokio::test]
async fn long_error_page_of_a_busy_server_is_still_transient() {
    let tokens = Reply::new(503, "x".repeat(100)).endpoint().reply_limit(10);

    let error = tokens.oneshot(TokenRequest::default()).await.unwrap_err();

    assert_eq!(error.status().unwrap(), 503);
    assert!(error.is_transient());
}

#[tokio::test(start_paused = true)]
async fn stalling_body_waits_for_its_caller_and_is_dropped_with_it() {
    let watch = Watch::default();
    let body = Stalling {
        first: Some("{\"access_token\":"),
        watch: watch.clone(),
    };

    let outcome =
        tokio::time::timeout(Duration::from_secs(30), request_token(Response::new(body))).await;

    assert!(outcome.is_err(), "the deadline is the caller's");
    assert_eq!(watch.frames.load(Ordering::Relaxed), 1);
    assert!(watch.dropped.load(Ordering::Relaxed));
}

#[tokio::test]
async fn success_whose_body_breaks_off_is_a_transport_error() {
    let body = Breaking {
        first: Some("{\"access_token\":\"MARK"),
    };

    let error = request_token(Response::new(body)).await.unwrap_err();

    assert!(error.is_transport() && error.is_transient());
    assert_eq!(
        chain(&error),
        ["request to token endpoint auth.example failed: connection reset"]
    );
    assert_shows_nothing("breaking body", &error);
}

#[tokio::test(start_paused = true)]
async fn error_whose_body_breaks_off_or_stalls_is_read_as_far_as_it_arrived() {
    for (status, first, code, is_transient) in [
        (429, "slow", None, true),
        (503, "", None, true),
        (
            401,
            r#"{"error":"invalid_client"}"#,
            Some("invalid_client"),
            false,
        ),
        (401, r#"{"error":"invalid_client","x":"MARK"#, None, false),
    ] {
        for stalls in [false, true] {
            let first = Some(first);
            let watch = Watch::default();
            let body = if stalls {
                let watch = watch.clone();
                Stalling { first, watch }
                    .map_err(BoxError::from)
                    .boxed_unsync()
            } else {
                Breaking { first }.boxed_unsync()
            };
            let reply = Response::builder()
                .status(status)
                .header(header::RETRY_AFTER, "600")
                .body(body)
                .unwrap();
            let start = Instant::now();

            let error = request_token(reply).await.unwrap_err();

            assert!(error.is_refused(), "{error}");
            assert_eq!(error.status().unwrap(), status);
            assert_eq!(error.code(), code);
            assert_eq!(error.is_transient(), is_transient);
            assert_eq!(error.retry_after(), Some(Duration::from_secs(600)));
            let waited = if stalls { 2 } else { 0 };
            assert_eq!(start.elapsed().as_secs(), waited, "{status}");
            assert_eq!(watch.dropped.load(Ordering::Relaxed), stalls);
            assert_shows_nothing("part of an error", &error);
        }
    }
}

#[test]
fn error_whose_body_stalls_needs_no_runtime() {
    let body = Stalling {
        first: Some("slow"),
        watch: Watch::default(),
    };
    let reply = Response::builder().status(429).body(body).unwrap();

    let mut requesting = tokio_test::task::spawn(request_token(reply));

    assert!(requesting.poll().is_pending());
}

#[tokio::test(start_paused = true)]
async fn cache_obeys_the_retry_after_of_an_error_that_breaks_off() {
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let http = service_fn(move |_: Request<Full<Bytes>>| {
        count.fetch_add(1, Ordering::Relaxed);
        async {
            let body = Breaking {
                first: Some("slow"),
            };
            let reply = Response::builder().status(429);
            Ok::<_, BoxError>(reply.header(header::RETRY_AFTER, "240").body(body)?)
        }
    });
    let tokens = TokenEndpoint::new(http, "https://auth.example/token", auth()).unwrap();
    let cache = TokenCache::new(tokens);

    for _ in 0..3 {
        let error = cache.token().await.unwrap_err();

        assert_eq!(error.status().unwrap(), 429);
        assert!(obeys(error.retry_after().unwrap(), 240));
    }

    assert_eq!(requests.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn body_in_pieces_is_read_as_a_whole() {
    let pieces = r#"{"access_token":"t","expires_in":"60"}"#.bytes();
    let frames = pieces.map(|byte| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![byte]))));
    let trailers = iter::once(Ok(Frame::trailers(http::HeaderMap::new())));
    let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames.chain(trailers)));

    assert_eq!(
        request_token(Response::new(body)).await.unwrap().expose(),
        "t"
    );
}

#[tokio::test]
async fn failure_of_the_http_client_is_a_transport_error() {
    let http = service_fn(|_: Request<Full<Bytes>>| async {
        Err::<Response<Full<Bytes>>, _>(BoxError::from("connection refused"))
    });
    let tokens = TokenEndpoint::new(http, "https://auth.example/token", auth()).unwrap();

    let error = tokens.oneshot(TokenRequest::default()).await.unwrap_err();

    assert!(error.is_transport() && error.is_transient());
    assert_eq!(
        chain(&error),
        ["request to token endpoint auth.example failed: connection refused"]
    );
    let of_the_client = error.transport_error().unwrap();
    assert_eq!(of_the_client.to_string(), "connection refused");
    assert_eq!(error.status(), None);
}

// --- Secrets ---

#[tokio::test]
async fn every_text_of_a_reply_is_shown_without_the_secret() {
    let echo = "MARK/secret +1";
    let bodies = [
        (
            400,
            format!(
                r#"{{"error":"{echo}","error_description":"no {echo}!","error_uri":"{echo}"}}"#
            ),
        ),
        (
            400,
            format!(r#"{{"error":{{"message":"{echo}","type":"{echo}"}}}}"#),
        ),
        (
            200,
            format!(r#"{{"access_token":"t","token_type":"{echo}"}}"#),
        ),
        (
            200,
            format!(r#"{{"access_token":"t","expires_in":"{echo}"}}"#),
        ),
    ];
    for (status, body) in bodies {
        let reply = Reply::new(status, body);
        let auth = ClientAuth::client_secret_basic("my-client", echo);
        let tokens = TokenEndpoint::new(reply.http(), "https://auth.example/", auth).unwrap();

        let error = tokens.oneshot(TokenRequest::default()).await.unwrap_err();

        let shown = format!("{error:?} {error:#?} {}", chain(&error).concat());
        assert!(
            !shown.contains("MARK") && !shown.contains("secret"),
            "{shown}"
        );
        assert!(shown.contains("[redacted]"), "{shown}");
    }
}

#[tokio::test]
async fn every_secret_is_found_in_every_encoding_whatever_the_method() {
    const SECRET: &str = "p\u{e4}/ss \"w&rd\\+1";
    let url = format!(
        "https://auth.example/?key={}",
        percent_encoded(SECRET, false)
    );
    let secret = || ClientAuth::none("my-client");
    let assertion =
        || ClientAuth::jwt_assertion("my-client", |_, _| async { Ok::<_, Infallible>(SECRET) });
    let rotated = || {
        ClientAuth::from_fn(|_| async {
            Ok::<_, Infallible>(ClientAuth::client_secret_post("my-client", SECRET))
        })
    };
    let api_key = HeaderName::from_static("x-api-key");
    let basic = format!("Basic {}", base64(&format!("user:{SECRET}")));
    let (bearer, cookie) = (format!("Bearer {SECRET}"), format!("a=1; session={SECRET}"));

    // Where the secret is sent, the method, and a header of the user's own.
    type Row<'a> = (&'a str, ClientAuth, Option<(HeaderName, &'a str)>);
    let rows: Vec<Row<'_>> = vec![
        (
            "basic",
            ClientAuth::client_secret_basic("my-client", SECRET),
            None,
        ),
        (
            "basic unencoded",
            ClientAuth::client_secret_basic_unencoded("my-client", SECRET),
            None,
        ),
        (
            "form",
            ClientAuth::client_secret_post("my-client", SECRET),
            None,
        ),
        ("assertion", assertion(), None),
        ("function", rotated(), None),
        ("header", secret(), Some((api_key, SECRET))),
        (
            "bearer token",
            secret(),
            Some((header::AUTHORIZATION, &bearer)),
        ),
        (
            "user's own Basic",
            secret(),
            Some((header::AUTHORIZATION, &basic)),
        ),
        (
            "proxy",
            secret(),
            Some((header::PROXY_AUTHORIZATION, &basic)),
        ),
        ("cookie", secret(), Some((header::COOKIE, &cookie))),
        ("query", secret(), None),
    ];
    for (name, auth, own_header) in rows {
        for (encoding, echo) in echoes(SECRET) {
            let body = json(&[
                ("error", &echo),
                ("error_description", &format!("no {echo} !")),
            ]);
            let url = if name == "query" {
                &url
            } else {
                "https://auth.example/"
            };
            let mut tokens =
                TokenEndpoint::new(Reply::new(400, body).http(), url, auth.clone()).unwrap();
            if let Some((name, value)) = &own_header {
                let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
                tokens = tokens.header(name.clone(), value);
            }

            let error = tokens.oneshot(TokenRequest::default()).await.unwrap_err();

            assert_eq!(
                error.code(),
                Some("[redacted]"),
                "{name}, {encoding}: {echo}"
            );
            assert_eq!(
                error.description(),
                Some("no [redacted] !"),
                "{name}, {encoding}: {echo}"
            );
        }
    }
}

/// Returns what a server may send back that contains the secret.
fn echoes(secret: &str) -> Vec<(String, String)> {
    let base64_url = |text: &str| base64(text).replace('+', "-").replace('/', "_");
    let form_encoded = percent_encoded(secret, false).replace("%20", "+");
    let json_escaped = json(&[("", secret)])[5..]
        .trim_end_matches("\"}")
        .to_owned();
    let mut echoes: Vec<_> = [
        ("as it is", secret.to_owned()),
        ("upper case", secret.to_ascii_uppercase()),
        ("percent-encoded", percent_encoded(secret, false)),
        (
            "percent-encoded in lower case",
            percent_encoded(secret, true),
        ),
        (
            "percent-encoded twice",
            percent_encoded(&percent_encoded(secret, false), false),
        ),
        ("form-encoded", form_encoded.clone()),
        ("form-encoded in lower case", form_encoded.to_lowercase()),
        ("JSON", json_escaped),
        (
            "JSON with other escapes",
            secret
                .replace('\\', r"\u005c")
                .replace('/', r"\/")
                .replace('"', r"\u0022"),
        ),
        (
            "HTML",
            secret
                .replace('&', "&amp;")
                .replace('"', "&#34;")
                .replace('/', "&#x2F;"),
        ),
        ("Base64", base64(secret)),
        ("Base64 for URLs", base64_url(secret)),
        (
            "Base64 without padding",
            base64(secret).trim_end_matches('=').to_owned(),
        ),
        (
            "Base64 of id:secret",
            base64(&format!("my-client:{secret}")),
        ),
        (
            "Base64 for URLs of id:secret",
            base64_url(&format!("my-client:{secret}")),
        ),
        (
            "Base64 of another id:secret",
            base64(&format!("my-client2:{secret}")),
        ),
        (
            "Base64 percent-encoded",
            percent_encoded(&base64(&format!("client:{secret}")), true),
        ),
    ]
    .map(|(encoding, echo)| (encoding.to_owned(), echo))
    .into();
    for invisible in [
        '\u{0}',
        '\u{ad}',
        '\u{34f}',
        '\u{61c}',
        '\u{115f}',
        '\u{17b4}',
        '\u{180e}',
        '\u{200b}',
        '\u{2028}',
        '\u{206a}',
        '\u{3164}',
        '\u{fe0f}',
        '\u{ffa0}',
        '\u{fff9}',
        '\u{1d173}',
        '\u{e0001}',
        '\u{e0041}',
        '\u{e01ef}',
    ] {
        for echo in [
            secret.to_owned(),
            percent_encoded(secret, false),
            base64(secret),
        ] {
            let interleaved = echo.chars().flat_map(|c| [c, invisible]).collect();
            echoes.push((format!("interleaved with {invisible:?}"), interleaved));
        }
    }
    echoes
}

#[tokio::test]
async fn texts_of_three_characters_do_not_count_as_secrets() {
    let reply = Reply::new(
        400,
        r#"{"error":"x","error_description":"tenant 7 of abc"}"#,
    );
    let auth = ClientAuth::client_secret_basic("id", "abc");
    let tokens = TokenEndpoint::new(reply.http(), "https://auth.example/?tenant=7", auth).unwrap();

    let error = tokens.oneshot(TokenRequest::default()).await.unwrap_err();

    assert_eq!(error.description(), Some("tenant 7 of abc"));
}

#[tokio::test]
async fn known_code_is_shown_whole_even_if_it_contains_a_secret() {
    let reply = Reply::new(
        401,
        r#"{"error":"invalid_client","error_description":"no client"}"#,
    );
    let auth = ClientAuth::client_secret_basic("id", "client");
    let tokens = TokenEndpoint::new(reply.http(), "https://auth.example/", auth).unwrap();

    let error = tokens.oneshot(TokenRequest::default()).await.unwrap_err();

    assert_eq!(error.code(), Some("invalid_client"));
    assert_eq!(error.description(), Some("no [redacted]"));
}

#[tokio::test]
async fn no_debug_output_shows_the_token() {
    let body = r#"{"access_token":"MARK","refresh_token":"MARK","scope":"MARK a"}"#;

    let token = Reply::new(200, body).read().await.unwrap();

    assert_eq!(token.expose(), "MARK");
    let shown = format!("{token:?} {token:#?} {:?}", token.header_value());
    assert!(!shown.contains("MARK"), "{shown}");
}

// --- Helpers ---

/// The reply that a token endpoint sends each time.
#[derive(Clone, Debug)]
struct Reply(Response<Full<Bytes>>);

impl Reply {
    fn new(status: u16, body: impl Into<Bytes>) -> Self {
        let body = Full::new(body.into());
        Self(Response::builder().status(status).body(body).unwrap())
    }

    fn with(mut self, name: HeaderName, value: &str) -> Self {
        self.0
            .headers_mut()
            .insert(name, HeaderValue::from_str(value).unwrap());
        self
    }

    fn status(mut self, status: u16) -> Self {
        *self.0.status_mut() = status.try_into().unwrap();
        self
    }

    fn http(
        &self,
    ) -> impl tower::Service<
        Request<Full<Bytes>>,
        Response = Response<Full<Bytes>>,
        Error = Infallible,
        Future: Send + 'static,
    > + Clone
    + Send
    + 'static {
        let reply = self.0.clone();
        service_fn(move |_| {
            let reply = reply.clone();
            async { Ok(reply) }
        })
    }

    fn endpoint(&self) -> TokenEndpoint {
        TokenEndpoint::new(self.http(), "https://auth.example/token", auth()).unwrap()
    }

    async fn read(&self) -> Result<AccessToken, Error> {
        self.endpoint().oneshot(TokenRequest::default()).await
    }
}

fn auth() -> ClientAuth {
    ClientAuth::client_secret_post("my-client", "MARK-SECRET")
}

/// Requests a token from an endpoint that answers once, with a body of any kind.
async fn request_token<B>(reply: Response<B>) -> Result<AccessToken, Error>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let reply = reply.map(|body| BodyExt::boxed_unsync(body.map_err(Into::into)));
    let reply = Arc::new(Mutex::new(Some(reply)));
    let http = service_fn(move |_: Request<Full<Bytes>>| {
        let reply: Response<UnsyncBoxBody<Bytes, BoxError>> =
            reply.lock().unwrap().take().expect("there is one request");
        async { Ok::<_, Infallible>(reply) }
    });
    TokenEndpoint::new(http, "https://auth.example/token", auth())?
        .oneshot(TokenRequest::default())
        .await
}

/// Percent-encodes everything but ASCII letters and digits, as another server may do it.
fn percent_encoded(text: &str, in_lower_case: bool) -> String {
    let byte = |byte: u8| match byte {
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte if in_lower_case => format!("%{byte:02x}"),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// Encodes as RFC 4648 §4 says, independently of the crate that the library uses.
fn base64(text: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |bytes: &[u8]| {
        let bits = (0..3).fold(0, |bits, index| {
            bits << 8 | usize::from(*bytes.get(index).unwrap_or(&0))
        });
        let digit = |index: usize| match index <= bytes.len() {
            true => char::from(ALPHABET[bits >> (18 - 6 * index) & 63]),
            false => '=',
        };
        [digit(0), digit(1), digit(2), digit(3)]
    };
    text.as_bytes().chunks(3).flat_map(group).collect()
}

/// Formats a JSON object of texts.
fn json(fields: &[(&str, &str)]) -> String {
    let fields: serde_json::Map<_, _> = fields
        .iter()
        .map(|(name, value)| (name.to_string(), (*value).into()))
        .collect();
    serde_json::Value::from(fields).to_string()
}

fn chain(error: &dyn StdError) -> Vec<String> {
    iter::successors(Some(error), |&error| error.source())
        .map(ToString::to_string)
        .collect()
}

/// Every secret, token and body of these tests contains the mark.
#[track_caller]
fn assert_shows_nothing(name: &str, error: &Error) {
    let mut shown = format!("{error:?} {error:#?}");
    for level in iter::successors(Some(error as &dyn StdError), |&error| error.source()) {
        shown += &format!(" {level} {level:?}");
    }
    assert!(!shown.contains("MARK"), "{name}: {shown}");
    assert!(
        !error.to_string().contains(char::is_control),
        "{name}: {shown}"
    );
}

/// Records what happened to a body.
#[derive(Clone, Default)]
struct Watch {
    frames: Arc<AtomicUsize>,
    dropped: Arc<AtomicBool>,
}

/// Returns the same frame again and again, always ready.
struct Endless {
    frame: Bytes,
    watch: Watch,
}

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.watch.frames.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(self.frame.clone()))))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.watch.dropped.store(true, Ordering::Relaxed);
    }
}

/// Returns one frame and is pending forever after.
struct Stalling {
    first: Option<&'static str>,
    watch: Watch,
}

impl Body for Stalling {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(first) = self.first.take() else {
            return Poll::Pending;
        };
        self.watch.frames.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(first.into()))))
    }
}

impl Drop for Stalling {
    fn drop(&mut self) {
        self.watch.dropped.store(true, Ordering::Relaxed);
    }
}

/// Returns one frame, then an error.
struct Breaking {
    first: Option<&'static str>,
}

impl Body for Breaking {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(Some(match self.first.take() {
            Some(first) => Ok(Frame::data(first.into())),
            None => Err("connection reset".into()),
        }))
    }
}
