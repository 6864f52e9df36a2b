//! Values of a JSON reply, whatever their type.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// Returns a body without white space and byte order marks around it.
pub(super) fn trimmed(body: &str) -> &str {
    let is_blank = |character: char| character.is_whitespace() || character == '\u{feff}';
    body.trim_matches(is_blank)
}

pub(super) fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

    serde_json::from_str(value.get())
        .ok()
        .map(|Text(text)| text)
}

/// Returns the text of a string, number or literal; `None` for objects and arrays.
pub(super) fn scalar(value: &RawValue) -> Option<Cow<'_, str>> {
    match value.get().as_bytes() {
        [b'{' | b'[', ..] => None,
        [b'"', ..] => string(value),
        _ => Some(Cow::Borrowed(value.get())),
    }
}

/// Returns whether a value says as much as a missing one: null, false, zero, or empty.
pub(super) fn is_nothing(value: &RawValue) -> bool {
    let text = value.get();
    match text.as_bytes() {
        [b'{' | b'[', inside @ .., _] => inside.trim_ascii().is_empty(),
        [b'"', ..] => string(value).is_some_and(|text| text.trim().is_empty()),
        _ => matches!(text, "null" | "false") || text.parse() == Ok(0.0),
    }
}
