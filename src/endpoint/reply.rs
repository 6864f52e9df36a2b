//! Turns the reply of a token endpoint (RFC 6749 §5) into a token or an error.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, Response, StatusCode,
    header::{AGE, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, LOCATION, WWW_AUTHENTICATE},
};
use secrecy::zeroize::Zeroizing;
use serde::Deserialize;
use serde_json::{error::Category, value::RawValue};

use super::{
    error_reply::ErrorReply,
    hint::Asked,
    json::{is_nothing, scalar, string, trimmed},
    redaction::Redaction,
    retry_after::retry_after,
    token_url::TokenUrl,
};
use crate::{
    AccessToken, Error,
    error::{Kind, Refusal},
    telemetry,
};

/// What it takes to read a reply.
pub(super) struct Reader<'a> {
    pub(super) token_url: &'a TokenUrl,
    pub(super) asked: &'a Asked<'a>,
    pub(super) redaction: Redaction,
    pub(super) provider_hint: fn(&Refusal) -> Option<&'static str>,
    pub(super) now: SystemTime,
}

/// Why a reply is not a token reply.
struct Fault {
    fact: String,
    /// Whether the next reply may be one.
    transient: bool,
}

impl Reader<'_> {
    /// Reads any 2xx without an error as a token. All other replies are errors.
    pub(super) fn read(&self, reply: &Response<Bytes>) -> Result<AccessToken, Error> {
        let status = reply.status();
        let answer = if status.is_redirection() {
            Err(self.moved(reply))
        } else if status.is_success() {
            self.success(reply)
        } else {
            Err(self.refusal(reply))
        };
        answer.map_err(|error| error.with_retry_after(self.retry_after(reply)))
    }

    /// Returns the error for a reply that was not read to its end.
    pub(super) fn unread(&self, reply: &Response<Bytes>, fact: String) -> Error {
        invalid(reply, Fault::permanent(fact)).with_retry_after(self.retry_after(reply))
    }

    fn retry_after(&self, reply: &Response<Bytes>) -> Option<Duration> {
        retry_after(reply.status(), reply.headers(), self.now)
    }

    fn success(&self, reply: &Response<Bytes>) -> Result<AccessToken, Error> {
        let body = String::from_utf8_lossy(reply.body());
        let fields = self.fields(reply, &body);
        let fields = fields.map_err(|fault| invalid(reply, fault))?;
        let is_error = fields.error.is_some()
            || (fields.access_token.is_none() && ErrorReply::is_error(&body));
        if is_error {
            return Err(self.refusal(reply));
        }
        let token = self.token(&fields, reply.headers());
        token.map_err(|fact| invalid(reply, Fault::permanent(fact)))
    }

    fn token(&self, fields: &Fields<'_>, headers: &HeaderMap) -> Result<AccessToken, String> {
        let token = fields.access_token.ok_or("access_token is missing")?;
        let token = string(token).ok_or("access_token is not a string")?;
        let shown = |value| shown(value, &self.redaction.also(fields.secrets()));
        if let Some(other) = fields.token_type.filter(|name| !is_bearer(name)) {
            let other = shown(other);
            return Err(format!("token_type is {other}, only Bearer is supported"));
        }

        let mut access_token = AccessToken::new(&token).map_err(|_| {
            if token.is_empty() {
                "access_token is empty"
            } else {
                "access_token contains a character that a header cannot carry"
            }
        })?;
        if let Some(value) = fields.expires_in {
            // Ignoring an unreadable lifetime would silently replace it by the default.
            let lifetime = scalar(value)
                .and_then(|text| seconds(&text))
                .ok_or_else(|| {
                    let value = shown(value);
                    format!("expires_in is {value}, not a number of seconds")
                })?;
            access_token = access_token.with_lifetime(lifetime.saturating_sub(age(headers)));
        }
        if let Some(scope) = fields.scope.and_then(scope) {
            let missing = self.asked.parameters.scopes_missing_in(&scope);
            if !missing.is_empty() {
                telemetry::scopes_missing(&missing.join(" "));
            }
            access_token = access_token.with_scope(scope).with_missing_scopes(missing);
        }
        Ok(access_token)
    }

    fn refusal(&self, reply: &Response<Bytes>) -> Error {
        let status = reply.status();
        let body = String::from_utf8_lossy(reply.body());
        let texts = ErrorReply::parse(&body, status);
        let fields = self.fields(reply, &body);
        let secrets = fields.as_ref().map(Fields::secrets);
        let redaction = self.redaction.also(secrets.into_iter().flatten());
        let show = |text: Option<Cow<'_, str>>, longest| {
            text.map(|text| redaction.show(&text, longest))
                .filter(|text| !text.is_empty())
        };

        let code = match texts.code {
            // Programs compare codes: a secret that happens to be part of one must not change it.
            Some(known) if KNOWN_CODES.contains(&&*known) => Some(known.into_owned()),
            other => show(other, 100),
        };
        let description = show(texts.description, 500);
        let transient = is_transient(status, code.as_deref(), description.as_deref());
        let has_texts = code.is_some() || description.is_some();
        let fact = fields.err().filter(|_| !has_texts && !transient);
        let mut refusal = Refusal {
            status,
            transient,
            code,
            description,
            uri: show(texts.uri, 300),
            fact: fact.map(|fault| fault.fact),
            hint: None,
        };
        let provider_hint = (self.provider_hint)(&refusal).map(str::to_owned);
        refusal.hint = provider_hint.or_else(|| {
            let asks_for_basic = asks_for_basic(reply.headers());
            self.asked.hint(&refusal, asks_for_basic, &redaction)
        });
        Error::new(Kind::Refused(refusal))
    }

    fn moved(&self, reply: &Response<Bytes>) -> Error {
        let status = reply.status();
        let target = header(reply.headers(), LOCATION)
            .and_then(|location| self.token_url.redirected_to(location));
        // Any other target may be a login page or another party's host, which must not get secrets.
        let is_the_endpoint = |target: &TokenUrl| {
            matches!(
                status,
                StatusCode::MOVED_PERMANENTLY | StatusCode::PERMANENT_REDIRECT
            ) && target.is_https_on_the_host_of(self.token_url)
        };
        let fact = match target {
            Some(target) => {
                let url = self.redaction.show(&format!("{target:?}"), 300);
                if is_the_endpoint(&target) {
                    format!("endpoint moved to {url}; make that the token URL")
                } else {
                    format!("endpoint redirects to {url}; check the token URL")
                }
            }
            None => "endpoint redirects without a usable location; check the token URL".to_owned(),
        };
        invalid(reply, Fault::permanent(fact))
    }

    /// Reads a JSON object. Otherwise, the fault describes what the body contains instead.
    fn fields<'b>(&self, reply: &Response<Bytes>, body: &'b str) -> Result<Fields<'b>, Fault> {
        Fields::parse(body).map_err(|fault| {
            if let Some(coding) = self.coding(reply) {
                return Fault::transient(format!(
                    "body is compressed with {coding}, and neither the server nor the HTTP client \
                     has decompressed it"
                ));
            }
            match fault.fact == NOT_AN_OBJECT {
                true => Fault::transient(self.not_an_object(reply)),
                false => fault,
            }
        })
    }

    /// Returns the coding of a compressed body, which no request of this crate asks for.
    fn coding(&self, reply: &Response<Bytes>) -> Option<String> {
        let stated = header(reply.headers(), CONTENT_ENCODING)
            .map(|coding| self.redaction.show(coding, 40))
            .filter(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity"));
        stated.or_else(|| {
            let starts_body = |(start, _): &&(&[u8], &str)| reply.body().starts_with(start);
            let (_, coding) = COMPRESSED.iter().find(starts_body)?;
            Some((*coding).to_owned())
        })
    }

    fn not_an_object(&self, reply: &Response<Bytes>) -> String {
        let content_type = header(reply.headers(), CONTENT_TYPE).unwrap_or_default();
        let start = reply.body().trim_ascii_start();
        let start = start[..start.len().min(14)].to_ascii_lowercase();
        let is_page = [&b"<!doctype html"[..], b"<html"]
            .iter()
            .any(|tag| start.starts_with(tag))
            || (start.starts_with(b"<") && content_type.contains("html"));
        if is_page {
            return "body is an HTML page".to_owned();
        }
        let shown = self.redaction.show(content_type, 60);
        if shown.is_empty() || shown.contains("json") {
            return NOT_AN_OBJECT.to_owned();
        }
        format!("{NOT_AN_OBJECT}; its type is {shown:?}")
    }
}

impl Fault {
    fn permanent(fact: impl Into<String>) -> Self {
        Self {
            fact: fact.into(),
            transient: false,
        }
    }

    /// For replies that do not come from the token endpoint, or not whole.
    fn transient(fact: impl Into<String>) -> Self {
        Self {
            fact: fact.into(),
            transient: true,
        }
    }
}

fn invalid(reply: &Response<Bytes>, fault: Fault) -> Error {
    Error::new(Kind::InvalidReply {
        status: reply.status(),
        fact: fault.fact,
        transient: fault.transient,
    })
}

const NOT_AN_OBJECT: &str = "body is not a JSON object";

/// How compressed bodies start, whatever their headers say.
const COMPRESSED: [(&[u8], &str); 2] = [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd")];

/// The parameters of a token reply (RFC 6749 §5.1), and whether there is an error (§5.2). `None` if
/// absent or null.
///
/// A known parameter that occurs twice makes the reply invalid (RFC 6749 §3.2): two readers could
/// take different tokens from it.
#[derive(Default, Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    access_token: Option<&'a RawValue>,
    #[serde(borrow)]
    token_type: Option<&'a RawValue>,
    #[serde(borrow)]
    expires_in: Option<&'a RawValue>,
    #[serde(borrow)]
    scope: Option<&'a RawValue>,
    /// Unused; read so that messages don't show it.
    #[serde(borrow)]
    refresh_token: Option<&'a RawValue>,
    /// Unused; read so that messages don't show it.
    #[serde(borrow)]
    id_token: Option<&'a RawValue>,
    /// `None` as well if its value means that there is no error.
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

impl<'a> Fields<'a> {
    fn parse(body: &'a str) -> Result<Self, Fault> {
        let body = trimmed(body);
        if body.is_empty() {
            return Err(Fault::transient("body is empty"));
        }
        // serde would also accept an array of the values.
        if !body.starts_with('{') {
            return Err(Fault::transient(NOT_AN_OBJECT));
        }
        let mut fields: Self = serde_json::from_str(body).map_err(|error| {
            // The text of the error may contain values.
            let at = format!("at line {} column {}", error.line(), error.column());
            match error.classify() {
                // A raw value accepts any data, so the only wrong data is a name that occurs twice.
                Category::Data => {
                    Fault::permanent(format!("body contains a parameter twice, {at}"))
                }
                Category::Eof => Fault::transient(format!("body is cut off, {at}")),
                _ => Fault::transient(format!("body is not valid JSON, {at}")),
            }
        })?;
        fields.error = fields.error.filter(|error| !is_nothing(error));
        Ok(fields)
    }

    /// Returns the reply's own secrets.
    fn secrets(&self) -> impl Iterator<Item = Zeroizing<String>> + use<'a> {
        let tokens = [self.access_token, self.refresh_token, self.id_token];
        let tokens = tokens.into_iter().flatten().filter_map(string);
        tokens.map(|token| Zeroizing::new(token.into_owned()))
    }
}

/// RFC 6749 §5.2, RFC 8707 §2, RFC 8628 §3.5, codes of RFC 6749 §4.1.2.1 that servers send, LinkedIn's
/// and Google's.
const KNOWN_CODES: [&str; 13] = [
    "invalid_request",
    "invalid_client",
    "invalid_client_id",
    "invalid_grant",
    "invalid_scope",
    "invalid_target",
    "unauthorized_client",
    "unsupported_grant_type",
    "access_denied",
    "server_error",
    "temporarily_unavailable",
    "slow_down",
    "internal_failure",
];

/// Codes that say that a retry may help, whatever the status.
const TRANSIENT_CODES: [&str; 4] = [
    "server_error",
    "temporarily_unavailable",
    "slow_down",
    "internal_failure",
];

fn is_transient(status: StatusCode, code: Option<&str>, description: Option<&str>) -> bool {
    // The proxy refuses every request, and the rest is not the token endpoint's.
    if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
        return false;
    }
    let code = code.unwrap_or_default();
    let is_code = |transient: &&str| transient.eq_ignore_ascii_case(code);
    if is_transient_status(status) || TRANSIENT_CODES.iter().any(is_code) {
        return true;
    }
    // A client that is refused would be refused again, whatever a text for people says.
    let is_about_the_client = KNOWN_CODES.contains(&code)
        || matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    let description = description.unwrap_or_default().to_ascii_lowercase();
    let asks_to_retry = RETRY.iter().any(|text| description.contains(text));
    asks_to_retry && !is_about_the_client
}

fn is_transient_status(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        )
}

/// Salesforce sends `unknown_error` with the first of these texts.
const RETRY: [&str; 3] = ["retry your request", "retry the request", "try again later"];

/// Returns whether a server challenges the client to use HTTP Basic authentication.
fn asks_for_basic(headers: &HeaderMap) -> bool {
    let values = headers.get_all(WWW_AUTHENTICATE).iter();
    values.filter_map(|value| value.to_str().ok()).any(|value| {
        let mut words = value.split([' ', ',']);
        words.any(|word| word.eq_ignore_ascii_case("basic"))
    })
}

/// Formats a value for a message. Objects and arrays may contain anything, so they are only named.
fn shown(value: &RawValue, redaction: &Redaction) -> String {
    match scalar(value) {
        Some(text) => format!("{:?}", redaction.show(&text, 40)),
        None if value.get().starts_with('{') => "an object".to_owned(),
        None if value.get().starts_with('[') => "an array".to_owned(),
        None => "an invalid string".to_owned(),
    }
}

fn is_bearer(token_type: &RawValue) -> bool {
    // Apigee sends BearerToken.
    string(token_type).is_some_and(|token_type| {
        ["bearer", "bearertoken"]
            .iter()
            .any(|name| token_type.trim().eq_ignore_ascii_case(name))
    })
}

/// Longer lifetimes count as one year.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Parses a number of seconds: a negative one is zero, and [`LONGEST`] is the maximum.
fn seconds(text: &str) -> Option<Duration> {
    let text = text.trim();
    // Rust would also parse "inf" and "nan".
    let is_number = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
    if !text.bytes().all(is_number) {
        return None;
    }
    // A number beyond the range of an f64 becomes infinity, which is clamped below.
    let seconds: f64 = text.parse().ok()?;
    Some(Duration::from_secs_f64(
        seconds.clamp(0.0, LONGEST.as_secs_f64()),
    ))
}

/// Returns scopes separated by spaces (RFC 6749 §3.3); some servers send an array.
fn scope(value: &RawValue) -> Option<String> {
    if let Some(scope) = string(value) {
        return Some(scope.into_owned());
    }
    let scopes: Vec<Cow<'_, str>> = serde_json::from_str(value.get()).ok()?;
    Some(scopes.join(" "))
}

/// Returns how old a reply from a cache is (RFC 9111 §5.1). Zero if the server does not say.
fn age(headers: &HeaderMap) -> Duration {
    // The first member of a list counts, and an invalid value is ignored.
    let age = header(headers, AGE).and_then(|age| age.split(',').next());
    let age = age.unwrap_or_default().trim();
    let is_number = age.bytes().all(|byte| byte.is_ascii_digit()) && !age.is_empty();
    // Ages beyond the range of an integer are longer than any lifetime.
    let seconds = if is_number {
        age.parse().unwrap_or(u64::MAX)
    } else {
        0
    };
    Duration::from_secs(seconds)
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}
