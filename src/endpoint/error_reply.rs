//! What an error reply says, in the forms that servers and gateways use.

use std::borrow::Cow;

use http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::{is_nothing, scalar, string, trimmed};

/// The texts of an error reply, as the server wrote them.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ErrorReply<'a> {
    pub(super) code: Option<Cow<'a, str>>,
    pub(super) description: Option<Cow<'a, str>>,
    pub(super) uri: Option<Cow<'a, str>>,
}

impl<'a> ErrorReply<'a> {
    /// Reads a JSON object, or the first object of an array.
    ///
    /// There are no texts if the body is something else, or has a member twice.
    pub(super) fn parse(body: &'a str, status: StatusCode) -> Self {
        let Some(members) = Members::parse(trimmed(body)) else {
            return Self::default();
        };
        let is_status = |code: &Cow<'_, str>| **code == *status.as_str();
        Self {
            code: members.code().filter(|code| !is_status(code)),
            description: members.description(status),
            uri: members.uri(),
        }
    }

    /// Returns whether a body is about an error, whatever its status.
    pub(super) fn is_error(body: &str) -> bool {
        Members::parse(trimmed(body)).is_some_and(|members| members.is_error())
    }
}

/// Members of an error reply, or of an object inside.
#[derive(Default, Deserialize)]
struct Members<'a> {
    /// RFC 6749 §5.2. An object at Facebook, Google and Azure.
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    error_description: Option<&'a RawValue>,
    #[serde(borrow)]
    error_uri: Option<&'a RawValue>,
    /// Okta.
    #[serde(borrow, rename = "errorCode")]
    okta_code: Option<&'a RawValue>,
    #[serde(borrow, rename = "errorSummary")]
    okta_summary: Option<&'a RawValue>,
    /// X, and JSON:API.
    #[serde(borrow)]
    errors: Option<&'a RawValue>,
    #[serde(borrow)]
    label: Option<&'a RawValue>,
    /// Apigee.
    #[serde(borrow)]
    fault: Option<&'a RawValue>,
    #[serde(borrow)]
    faultstring: Option<&'a RawValue>,
    #[serde(borrow)]
    errorcode: Option<&'a RawValue>,
    /// Problem details (RFC 9457 §3.1).
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    title: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    detail: Option<&'a RawValue>,
    /// Gateways and many APIs.
    #[serde(borrow)]
    code: Option<&'a RawValue>,
    #[serde(borrow)]
    error_code: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    msg: Option<&'a RawValue>,
    #[serde(borrow, rename = "errorMessage")]
    error_message: Option<&'a RawValue>,
    /// Zoom.
    #[serde(borrow)]
    reason: Option<&'a RawValue>,
    #[serde(borrow)]
    description: Option<&'a RawValue>,
}

impl<'a> Members<'a> {
    /// Reads an object, or the first element of an array.
    fn parse(text: &'a str) -> Option<Self> {
        match text.as_bytes() {
            // serde would also read an array of the values as this struct.
            [b'{', ..] => serde_json::from_str(text).ok(),
            [b'[', ..] => {
                let first = first(text)?.get();
                Some(first).filter(|first| first.starts_with('{'))?;
                serde_json::from_str(first).ok()
            }
            _ => None,
        }
    }

    /// Returns the first of the objects inside that describe the error.
    fn inner(&self) -> Option<Self> {
        let candidates = [self.error, self.errors, self.fault, self.detail];
        let candidates = candidates.into_iter().flatten();
        candidates
            .filter_map(|value| Self::parse(value.get()))
            .next()
    }

    fn code(&self) -> Option<Cow<'a, str>> {
        if let Some(code) = self.error.and_then(filled_scalar) {
            return Some(code);
        }
        let inner = self.inner();
        let innermost = || inner.as_ref()?.inner()?.inner_code();
        let own = [self.okta_code, self.error_code, self.code];
        inner
            .as_ref()
            .and_then(Self::inner_code)
            .or_else(innermost)
            .or_else(|| own.into_iter().flatten().find_map(filled_scalar))
    }

    /// Returns the code of an object inside: the first text, otherwise the number.
    fn inner_code(&self) -> Option<Cow<'a, str>> {
        let texts = [
            self.code,
            self.okta_code,
            self.errorcode,
            self.error_code,
            self.kind,
            self.status,
            self.label,
        ];
        let numbers = [self.code, self.error_code];
        let text = texts.into_iter().flatten().find_map(filled_string);
        text.or_else(|| numbers.into_iter().flatten().find_map(filled_scalar))
    }

    fn description(&self, status: StatusCode) -> Option<Cow<'a, str>> {
        let inner = || self.inner()?.own_description(status);
        let innermost = || self.inner()?.inner()?.own_description(status);
        let own = self.own_description(status);
        own.or_else(inner).or_else(innermost)
    }

    fn own_description(&self, status: StatusCode) -> Option<Cow<'a, str>> {
        let texts = [
            self.error_description,
            self.okta_summary,
            self.faultstring,
            self.error_message,
            self.message,
            self.msg,
            self.reason,
        ];
        let text = texts.into_iter().flatten().find_map(filled_string);
        let first_error = || filled_string(first(self.errors?.get())?);
        text.or_else(|| self.problem(status))
            .or_else(|| self.description.and_then(filled_string))
            .or_else(first_error)
    }

    /// Returns the title and detail of a problem. The title is often the text of the status.
    fn problem(&self, status: StatusCode) -> Option<Cow<'a, str>> {
        let is_new = |title: &Cow<'_, str>| status.canonical_reason() != Some(&**title);
        let (title, detail) = (
            self.title.and_then(filled_string),
            self.detail.and_then(filled_string),
        );
        match (title, detail) {
            (Some(title), Some(detail)) if is_new(&title) => {
                Some(format!("{title}: {detail}").into())
            }
            (title, detail) => detail.or(title),
        }
    }

    fn uri(&self) -> Option<Cow<'a, str>> {
        let is_web_page = |uri: &Cow<'_, str>| uri.starts_with("http");
        let problem = || self.kind.and_then(filled_string).filter(is_web_page);
        self.error_uri.and_then(filled_string).or_else(problem)
    }

    /// Returns whether the reply is about an error, whatever its status.
    fn is_error(&self) -> bool {
        let members = [
            self.error,
            self.errors,
            self.okta_code,
            self.error_code,
            self.fault,
        ];
        members
            .into_iter()
            .flatten()
            .any(|value| !is_nothing(value))
    }
}

/// Returns the first element of an array.
fn first(array: &str) -> Option<&RawValue> {
    let elements: Vec<&RawValue> = serde_json::from_str(array).ok()?;
    elements.first().copied()
}

fn filled_string(value: &RawValue) -> Option<Cow<'_, str>> {
    string(value).filter(|text| !text.trim().is_empty())
}

fn filled_scalar(value: &RawValue) -> Option<Cow<'_, str>> {
    scalar(value).filter(|_| !is_nothing(value))
}
