//! Turns the reply of a token endpoint (RFC 6749 §5) into a token or an error.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, Response, StatusCode,
    header::{HeaderName, LOCATION},
};
use secrecy::zeroize::Zeroizing;
use serde::Deserialize;
use serde_json::{Value, error::Category, value::RawValue};

use super::{
    parameters::RequestParameters, redaction::Redaction, retry_after::retry_after,
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
    pub(super) parameters: &'a RequestParameters<'a>,
    pub(super) redaction: Redaction,
    pub(super) hint: fn(&Refusal) -> Option<&'static str>,
    pub(super) now: SystemTime,
}

impl Reader<'_> {
    /// Reads any 2xx without an `error` as a token. All other replies are errors.
    pub(super) fn read(&self, reply: &Response<Bytes>) -> Result<AccessToken, Error> {
        let body = String::from_utf8_lossy(reply.body());
        let fields = Fields::parse(&body);
        let refused = fields.as_ref().is_ok_and(|fields| fields.error.is_some());

        let status = reply.status();
        if status.is_redirection() {
            Err(self.moved(reply))
        } else if status.is_success() && !refused {
            fields
                .and_then(|fields| self.token(&fields))
                .map_err(|fact| Error::new(Kind::InvalidReply { status, fact }))
        } else {
            Err(self.refusal(status, &fields.unwrap_or_default()))
        }
        .map_err(|error| error.with_retry_after(self.retry_after(reply)))
    }

    /// Returns the error for a reply that was not read to its end.
    pub(super) fn unread(&self, reply: &Response<Bytes>, fact: String) -> Error {
        let status = reply.status();
        Error::new(Kind::InvalidReply { status, fact }).with_retry_after(self.retry_after(reply))
    }

    fn retry_after(&self, reply: &Response<Bytes>) -> Option<Duration> {
        retry_after(reply.status(), reply.headers(), self.now)
    }

    fn token(&self, fields: &Fields<'_>) -> Result<AccessToken, String> {
        let token = fields.access_token.ok_or("access_token is missing")?;
        let token = string(token).ok_or("access_token is not a string")?;
        let redaction = self.redaction.also(fields.secrets());
        if let Some(other) = fields.token_type.filter(|name| !is_bearer(name)) {
            let other = shown(other, &redaction);
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
                    let value = shown(value, &redaction);
                    format!("expires_in is {value}, not a number of seconds")
                })?;
            access_token = access_token.with_lifetime(lifetime);
        }
        if let Some(scope) = fields.scope.and_then(scope) {
            let missing = self.parameters.scopes_missing_in(&scope);
            if !missing.is_empty() {
                telemetry::scopes_missing(&missing.join(" "));
            }
            access_token = access_token.with_scope(scope).with_missing_scopes(missing);
        }
        Ok(access_token)
    }

    fn refusal(&self, status: StatusCode, fields: &Fields<'_>) -> Error {
        let redaction = self.redaction.also(fields.secrets());
        let show = |text: Option<Cow<'_, str>>, longest| {
            text.map(|text| redaction.show(&text, longest))
                .filter(|text| !text.is_empty())
        };

        let object = fields.error.and_then(ErrorObject::parse);
        let object = object.unwrap_or_default();
        let code = object.code().or_else(|| fields.error.and_then(scalar));
        let code = match code {
            // Programs compare codes: a secret that happens to be part of one must not change it.
            Some(known) if KNOWN_CODES.contains(&&*known) => Some(known.into_owned()),
            other => show(other, 100),
        };
        let descriptions = [fields.error_description, object.message, fields.message];
        let description = descriptions.into_iter().flatten().find_map(string);
        let uri = fields.error_uri.and_then(string);

        let mut refusal = Refusal {
            status,
            code,
            description: show(description, 500),
            uri: show(uri, 300),
            hint: None,
        };
        refusal.hint = (self.hint)(&refusal);
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
        Error::new(Kind::InvalidReply { status, fact })
    }
}

/// The parameters of both kinds of reply (RFC 6749 §5.1 and §5.2); `None` if absent or null.
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
    #[serde(borrow)]
    error_description: Option<&'a RawValue>,
    #[serde(borrow)]
    error_uri: Option<&'a RawValue>,
    /// What some servers and gateways send instead of `error_description`.
    #[serde(borrow)]
    message: Option<&'a RawValue>,
}

impl<'a> Fields<'a> {
    fn parse(body: &'a str) -> Result<Self, String> {
        let is_blank = |character: char| character.is_whitespace() || character == '\u{feff}';
        let body = body.trim_start_matches(is_blank).trim_end();
        if body.is_empty() {
            return Err("body is empty".to_owned());
        }
        // serde would also accept an array of the values.
        if !body.starts_with('{') {
            return Err("body is not a JSON object".to_owned());
        }
        let mut fields: Self = serde_json::from_str(body).map_err(|error| {
            // The text of the error may contain values.
            let fact = match error.classify() {
                // A raw value accepts any data, so the only wrong data is a name that occurs twice.
                Category::Data => "body contains a parameter twice",
                _ => "body is not valid JSON",
            };
            let (line, column) = (error.line(), error.column());
            format!("{fact}, at line {line} column {column}")
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

/// An `error` that is an object, as Facebook and Google send it.
#[derive(Default, Deserialize)]
struct ErrorObject<'a> {
    #[serde(borrow)]
    code: Option<&'a RawValue>,
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
}

impl<'a> ErrorObject<'a> {
    fn parse(error: &'a RawValue) -> Option<Self> {
        // serde would also accept an array of the values.
        let object = Some(error.get()).filter(|error| error.starts_with('{'))?;
        serde_json::from_str(object).ok()
    }

    /// Returns the first name, otherwise the number.
    fn code(&self) -> Option<Cow<'a, str>> {
        let candidates = [self.code, self.kind, self.status];
        let mut names = candidates.into_iter().flatten().filter_map(string);
        names.next().or_else(|| self.code.and_then(scalar))
    }
}

/// RFC 6749 §5.2, RFC 8707 §2, RFC 8628 §3.5, and codes of RFC 6749 §4.1.2.1 that servers send.
const KNOWN_CODES: [&str; 12] = [
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
];

fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

    serde_json::from_str(value.get())
        .ok()
        .map(|Text(text)| text)
}

/// Returns the text of a string, number or literal; `None` for objects and arrays.
fn scalar(value: &RawValue) -> Option<Cow<'_, str>> {
    match value.get().as_bytes() {
        [b'{' | b'[', ..] => None,
        [b'"', ..] => string(value),
        _ => Some(Cow::Borrowed(value.get())),
    }
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

/// Returns whether the value of an `error` means that there is no error.
fn is_nothing(error: &RawValue) -> bool {
    match serde_json::from_str(error.get()) {
        Ok(Value::Null) => true,
        Ok(Value::Bool(is_error)) => !is_error,
        Ok(Value::Number(number)) => number.as_f64() == Some(0.0),
        Ok(Value::String(text)) => text.trim().is_empty(),
        Ok(Value::Array(values)) => values.is_empty(),
        Ok(Value::Object(fields)) => fields.is_empty(),
        // The value is nested too deeply or a number too large.
        Err(_) => false,
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

fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}
