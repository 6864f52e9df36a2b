//! Pure: the reply of a token endpoint (RFC 6749 §5) to a token or an error.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, Response, StatusCode,
    header::{DATE, HeaderName, LOCATION, RETRY_AFTER},
};
use secrecy::zeroize::Zeroizing;
use serde::Deserialize;
use serde_json::{Value, error::Category, value::RawValue};

use super::{redaction::Redaction, token_url::TokenUrl};
use crate::{
    AccessToken, Error,
    error::{Kind, Refusal},
};

/// What a reply is read with.
pub(super) struct Reader<'a> {
    pub(super) token_url: &'a TokenUrl,
    pub(super) redaction: Redaction,
    pub(super) hint: fn(&Refusal) -> Option<&'static str>,
    pub(super) now: SystemTime,
}

impl Reader<'_> {
    /// Reads any 2xx without an `error` as a token; all else is an error.
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
                .map_err(|fact| Error::new(Kind::InvalidReply(status, fact)))
        } else {
            Err(self.refusal(status, &fields.unwrap_or_default()))
        }
        .map_err(|error| error.with_retry_after(retry_after(reply.headers(), self.now)))
    }

    /// A reply that was not read to its end, and why.
    pub(super) fn unread(&self, reply: &Response<Bytes>, fact: String) -> Error {
        Error::new(Kind::InvalidReply(reply.status(), fact))
            .with_retry_after(retry_after(reply.headers(), self.now))
    }

    fn token(&self, fields: &Fields<'_>) -> Result<AccessToken, String> {
        let token = fields.access_token.ok_or("it holds no access_token")?;
        let token = string(token).ok_or("its access_token is not a string")?;
        let redaction = self.redaction.also(fields.secrets());
        if let Some(other) = fields.token_type.filter(|name| !is_bearer(name)) {
            let other = shown(other, &redaction);
            return Err(format!("its token_type is {other}, only Bearer is known"));
        }

        let mut access_token = AccessToken::new(&token).map_err(|_| {
            if token.is_empty() {
                "its access_token is empty"
            } else {
                "its access_token holds a character that a header cannot carry"
            }
        })?;
        if let Some(value) = fields.expires_in {
            // Taken as absent, it would be used for a time that nobody promised, and nobody would know.
            let lifetime = scalar(value)
                .and_then(|text| seconds(&text))
                .ok_or_else(|| {
                    let value = shown(value, &redaction);
                    format!("its expires_in is {value}, not a number of seconds")
                })?;
            access_token = access_token.with_lifetime(lifetime);
        }
        if let Some(scope) = fields.scope.and_then(scope) {
            access_token = access_token.with_scope(scope);
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
            // Programs compare it, so a short secret must not take a piece out of it.
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
        // Any other may be a login page or somebody else's host, where secrets must not go.
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
                    format!("it moved to {url}; make that the token URL")
                } else {
                    format!("it redirects to {url}; check the token URL")
                }
            }
            None => "it is a redirect that does not say where to; check the token URL".to_owned(),
        };
        Error::new(Kind::InvalidReply(status, fact))
    }
}

/// The parameters of both replies (RFC 6749 §5.1 and §5.2), absent when they are null.
///
/// A parameter that comes twice makes the reply unreadable (RFC 6749 §3.2): two readers would take
/// two different tokens out of it. Of others nothing is known.
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
    /// Never used; read so that it is not shown.
    #[serde(borrow)]
    refresh_token: Option<&'a RawValue>,
    /// The same.
    #[serde(borrow)]
    id_token: Option<&'a RawValue>,
    /// Absent also where it says that there is none.
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    error_description: Option<&'a RawValue>,
    #[serde(borrow)]
    error_uri: Option<&'a RawValue>,
    /// Of servers and gateways with errors of their own.
    #[serde(borrow)]
    message: Option<&'a RawValue>,
}

impl<'a> Fields<'a> {
    fn parse(body: &'a str) -> Result<Self, String> {
        let is_blank = |character: char| character.is_whitespace() || character == '\u{feff}';
        let body = body.trim_start_matches(is_blank).trim_end();
        if body.is_empty() {
            return Err("it is empty".to_owned());
        }
        // Where an object belongs, serde would take an array of its values as well.
        if !body.starts_with('{') {
            return Err("it is no JSON object".to_owned());
        }
        let mut fields: Self = serde_json::from_str(body).map_err(|error| {
            // The error itself may show values.
            let fact = match error.classify() {
                // A raw value takes any data, so only its name can be wrong.
                Category::Data => "it holds a parameter twice",
                _ => "it is broken JSON",
            };
            let (line, column) = (error.line(), error.column());
            format!("{fact}, see line {line} column {column}")
        })?;
        fields.error = fields.error.filter(|error| !is_nothing(error));
        Ok(fields)
    }

    /// What the reply itself brings and no text may show.
    fn secrets(&self) -> impl Iterator<Item = Zeroizing<String>> + use<'a> {
        let tokens = [self.access_token, self.refresh_token, self.id_token];
        let tokens = tokens.into_iter().flatten().filter_map(string);
        tokens.map(|token| Zeroizing::new(token.into_owned()))
    }
}

/// The `error` of servers that make it an object, such as Facebook's and Google's.
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
        // Of an array serde would take the values one by one.
        let object = Some(error.get()).filter(|error| error.starts_with('{'))?;
        serde_json::from_str(object).ok()
    }

    /// A name if there is one, else a number.
    fn code(&self) -> Option<Cow<'a, str>> {
        let candidates = [self.code, self.kind, self.status];
        let mut names = candidates.into_iter().flatten().filter_map(string);
        names.next().or_else(|| self.code.and_then(scalar))
    }
}

/// RFC 6749 §5.2, RFC 8707 §2, RFC 8628 §3.5, and what servers send from RFC 6749 §4.1.2.1.
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

/// A string without its quotes, a number or a word as it stands in the reply.
fn scalar(value: &RawValue) -> Option<Cow<'_, str>> {
    match value.get().as_bytes() {
        [b'{' | b'[', ..] => None,
        [b'"', ..] => string(value),
        _ => Some(Cow::Borrowed(value.get())),
    }
}

/// A value in a message; objects and arrays may hold anything, so they are only named.
fn shown(value: &RawValue, redaction: &Redaction) -> String {
    match scalar(value) {
        Some(text) => format!("{:?}", redaction.show(&text, 40)),
        None if value.get().starts_with('{') => "an object".to_owned(),
        None if value.get().starts_with('[') => "an array".to_owned(),
        None => "a string that is no text".to_owned(),
    }
}

/// Whether an `error` says that there is none.
fn is_nothing(error: &RawValue) -> bool {
    match serde_json::from_str(error.get()) {
        Ok(Value::Null) => true,
        Ok(Value::Bool(is_error)) => !is_error,
        Ok(Value::Number(number)) => number.as_f64() == Some(0.0),
        Ok(Value::String(text)) => text.trim().is_empty(),
        Ok(Value::Array(values)) => values.is_empty(),
        Ok(Value::Object(fields)) => fields.is_empty(),
        // Too deep or too large a value is not nothing.
        Err(_) => false,
    }
}

fn is_bearer(token_type: &RawValue) -> bool {
    // Apigee says BearerToken.
    string(token_type).is_some_and(|token_type| {
        ["bearer", "bearertoken"]
            .iter()
            .any(|name| token_type.trim().eq_ignore_ascii_case(name))
    })
}

/// The longest lifetime that is believed.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A count of seconds, as JSON and people write it: negative is zero, too many are [`LONGEST`].
fn seconds(text: &str) -> Option<Duration> {
    let text = text.trim();
    // Leaves out "inf" and "nan", which Rust would read.
    let is_number = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
    if !text.bytes().all(is_number) {
        return None;
    }
    // Beyond the range of an f64 this is infinity, which the limit takes care of.
    let seconds: f64 = text.parse().ok()?;
    Some(Duration::from_secs_f64(
        seconds.clamp(0.0, LONGEST.as_secs_f64()),
    ))
}

/// RFC 6749 §3.3 separates with spaces; some servers send an array.
fn scope(value: &RawValue) -> Option<String> {
    if let Some(scope) = string(value) {
        return Some(scope.into_owned());
    }
    let scopes: Vec<Cow<'_, str>> = serde_json::from_str(value.get()).ok()?;
    Some(scopes.join(" "))
}

/// RFC 9110 §10.2.3. A date counts from the server's own clock where it shows that.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let date = |text: &str| httpdate::parse_http_date(text).ok();
    let now = header(headers, DATE).and_then(date).unwrap_or(now);
    let wait = |text: &str| {
        seconds(text).or_else(|| Some(date(text)?.duration_since(now).unwrap_or_default()))
    };
    let values = headers.get_all(RETRY_AFTER).iter();
    let wait = values
        .filter_map(|value| value.to_str().ok())
        .find_map(wait);
    Some(wait?.min(LONGEST_RETRY_AFTER))
}

/// A longer pause is more likely a mistake than a wish; who asks again after an hour harms nobody.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);

fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}
