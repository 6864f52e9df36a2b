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
use serde::Deserialize;
use serde_json::{error::Category, value::RawValue};

use super::{redaction::Redaction, token_url::TokenUrl};
use crate::{
    AccessToken, Error,
    error::{Kind, Refusal},
};

/// What a reply is read with.
pub(super) struct Reader<'a> {
    pub(super) token_url: &'a TokenUrl,
    pub(super) redaction: Redaction,
    pub(super) advice: fn(&Refusal) -> Option<&'static str>,
    pub(super) now: SystemTime,
}

impl Reader<'_> {
    /// Reads any 2xx without an `error` as a token; all else is an error.
    pub(super) fn read(&self, reply: &Response<Bytes>) -> Result<AccessToken, Error> {
        let body = String::from_utf8_lossy(reply.body());
        let fields = Fields::parse(&body);
        let refused = fields.as_ref().is_ok_and(Fields::has_error);

        let status = reply.status();
        if status.is_redirection() {
            Err(self.moved(reply))
        } else if status.is_success() && !refused {
            fields
                .and_then(|fields| self.token(&fields))
                .map_err(|fault| fault.into_error(status))
        } else {
            Err(self.refusal(status, &fields.unwrap_or_default()))
        }
        .map_err(|error| error.with_retry_after(retry_after(reply.headers(), self.now)))
    }

    /// A reply of which more came than is read.
    pub(super) fn too_long(&self, reply: &Response<()>, limit: usize) -> Error {
        Fault::Unreadable(format!("it is longer than {limit} bytes"))
            .into_error(reply.status())
            .with_retry_after(retry_after(reply.headers(), self.now))
    }

    fn token(&self, fields: &Fields<'_>) -> Result<AccessToken, Fault> {
        let Some(token) = fields.access_token else {
            return Err(Fault::unreadable("it holds no access_token"));
        };
        let Some(token) = string(token) else {
            return Err(Fault::unreadable("its access_token is not a string"));
        };
        if let Some(other) = fields
            .token_type
            .map(display)
            .filter(|name| !is_bearer(name))
        {
            let other = self.redaction.also(&token).show(&other, 40);
            return Err(Fault::Unreadable(format!(
                "its token_type is {other:?}, only Bearer is known"
            )));
        }

        let mut access_token = AccessToken::new(&token).map_err(Fault::Unsendable)?;
        if let Some(value) = fields.expires_in {
            let Some(lifetime) = seconds(&display(value)) else {
                let value = self.redaction.also(&token).show(&display(value), 40);
                return Err(Fault::Unreadable(format!(
                    "its expires_in is {value:?}, not a number of seconds"
                )));
            };
            access_token = access_token.expires_in(lifetime);
        }
        if let Some(scope) = fields.scope.and_then(scope) {
            // Debug of a token shows its scope.
            let scope = self.redaction.also(&token).show(&scope, usize::MAX);
            access_token = access_token.granted_scope(scope);
        }
        Ok(access_token)
    }

    fn refusal(&self, status: StatusCode, fields: &Fields<'_>) -> Error {
        let token = fields.access_token.and_then(string).unwrap_or_default();
        let redaction = self.redaction.also(&token);
        let show = |text: Option<Cow<'_, str>>, longest| {
            text.map(|text| redaction.show(&text, longest))
                .filter(|text| !text.is_empty())
        };

        let object: ErrorObject<'_> = fields
            .error
            .and_then(|error| serde_json::from_str(error.get()).ok())
            .unwrap_or_default();
        let code = match fields.error {
            Some(error) if object.is_empty() => code(error),
            _ => object.code(),
        };
        let code = match code {
            // Programs compare it, so a short secret must not take a piece out of it.
            Some(known) if KNOWN_CODES.contains(&&*known) => Some(known.into_owned()),
            other => show(other, 100),
        };
        let description = fields.error_description.or(object.message).and_then(string);
        let uri = fields.error_uri.and_then(string);

        let mut refusal = Refusal {
            status,
            code,
            description: show(description, 500),
            uri: show(uri, 300),
            advice: None,
        };
        refusal.advice = (self.advice)(&refusal);
        Error::new(Kind::Refused(refusal))
    }

    fn moved(&self, reply: &Response<Bytes>) -> Error {
        let target = header(reply.headers(), LOCATION)
            .and_then(|location| self.token_url.moved_to(location))
            .map(|target| self.redaction.show(&target, 300));
        let fact = match target {
            Some(target) => format!("it moved to {target}; make that the token URL"),
            None => "it is a redirect that does not say where to".to_owned(),
        };
        Fault::Unreadable(fact).into_error(reply.status())
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
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    error_description: Option<&'a RawValue>,
    #[serde(borrow)]
    error_uri: Option<&'a RawValue>,
}

impl<'a> Fields<'a> {
    fn parse(body: &'a str) -> Result<Self, Fault> {
        let body = body.trim_start_matches('\u{feff}').trim();
        if body.is_empty() {
            return Err(Fault::unreadable("it is empty"));
        }
        // Where an object belongs, serde would take an array of its values as well.
        if !body.starts_with('{') {
            return Err(Fault::unreadable("it is no JSON object"));
        }
        serde_json::from_str(body).map_err(|error| {
            // The error itself may show values.
            let fact = match error.classify() {
                // A raw value takes any data, so only its name can be wrong.
                Category::Data => "it holds a parameter twice",
                _ => "it is broken JSON",
            };
            let (line, column) = (error.line(), error.column());
            Fault::Unreadable(format!("{fact}, see line {line} column {column}"))
        })
    }

    fn has_error(&self) -> bool {
        let nothing = ["\"\"", "false", "0", "{}", "[]"];
        self.error
            .is_some_and(|error| !nothing.contains(&error.get()))
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
    fn is_empty(&self) -> bool {
        self.code
            .or(self.kind)
            .or(self.status)
            .or(self.message)
            .is_none()
    }

    /// A name if there is one, else a number.
    fn code(&self) -> Option<Cow<'a, str>> {
        let candidates = [self.code, self.kind, self.status];
        let mut names = candidates.into_iter().flatten().filter_map(string);
        names.next().or_else(|| self.code.and_then(code))
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

/// Why a 2xx brings no token.
enum Fault {
    Unreadable(String),
    Unsendable(Error),
}

impl Fault {
    fn unreadable(fact: &str) -> Self {
        Self::Unreadable(fact.to_owned())
    }

    fn into_error(self, status: StatusCode) -> Error {
        match self {
            Self::Unreadable(fact) => Error::new(Kind::InvalidReply(status, fact)),
            Self::Unsendable(error) => error,
        }
    }
}

fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

    serde_json::from_str(value.get())
        .ok()
        .map(|Text(text)| text)
}

/// A string without its quotes, anything else as it stands in the reply.
fn display(value: &RawValue) -> Cow<'_, str> {
    string(value).unwrap_or(Cow::Borrowed(value.get()))
}

/// A string, a number or a word; objects and arrays name no error.
fn code(value: &RawValue) -> Option<Cow<'_, str>> {
    Some(display(value)).filter(|_| !value.get().starts_with(['{', '[']))
}

fn is_bearer(token_type: &str) -> bool {
    // Apigee says BearerToken.
    ["bearer", "bearertoken"]
        .iter()
        .any(|name| token_type.eq_ignore_ascii_case(name))
}

/// The longest lifetime, or time to wait, that is believed.
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
    let value = header(headers, RETRY_AFTER)?;
    if let Some(wait) = seconds(value) {
        return Some(wait);
    }
    let date = |text: &str| httpdate::parse_http_date(text).ok();
    let then = date(value)?;
    let now = header(headers, DATE).and_then(date).unwrap_or(now);
    Some(then.duration_since(now).unwrap_or_default().min(LONGEST))
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}
