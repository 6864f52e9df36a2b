//! The challenges of a response (RFC 9110 §11.6.1): which errors they name.
//!
//! Many servers break the grammar of challenges: they leave out commas and quotes, use single quotes,
//! or put a comma after the scheme. The parser accepts these forms. It reads each byte a bounded number
//! of times, and only the first [`MAX_FIELDS`] fields with [`MAX_FIELD_LEN`] bytes each.

use http::{HeaderMap, header::WWW_AUTHENTICATE};

/// How many `WWW-Authenticate` fields are read.
const MAX_FIELDS: usize = 16;

/// How many bytes of each field are read.
const MAX_FIELD_LEN: usize = 4 * 1024;

/// The schemes that are recognized without a comma before them: those that IANA lists, and NTLM.
const KNOWN_SCHEMES: [&str; 15] = [
    "Basic",
    "Bearer",
    "Concealed",
    "Digest",
    "DPoP",
    "GNAP",
    "HOBA",
    "Mutual",
    "Negotiate",
    "NTLM",
    "OAuth",
    "PrivateToken",
    "SCRAM-SHA-1",
    "SCRAM-SHA-256",
    "vapid",
];

/// Returns the errors that the challenges of a caller's own schemes name.
pub(crate) fn errors(headers: &HeaderMap, is_own: impl Fn(&[u8]) -> bool) -> Vec<ErrorCode> {
    let fields = headers.get_all(WWW_AUTHENTICATE).iter();
    let fields = fields.take(MAX_FIELDS).map(|field| {
        let field = field.as_bytes();
        &field[..field.len().min(MAX_FIELD_LEN)]
    });
    own_errors(fields, is_own)
}

/// The `error` of a challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorCode {
    InvalidToken,
    /// Another token would not fix it (RFC 6750 §3.1).
    OtherCause,
    Unknown,
}

impl ErrorCode {
    /// Reads the first word of a value, without quotes and escapes; `None` if there is no word.
    fn read(value: &[u8]) -> Option<Self> {
        let is_code = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let code = value.iter().copied();
        let code = code
            .skip_while(|&byte| !is_code(byte))
            .take_while(|&byte| is_code(byte) || byte == b'\\')
            .filter(|&byte| byte != b'\\')
            .map(|byte| byte.to_ascii_lowercase());
        let is = |expected: &str| code.clone().eq(expected.bytes());
        match code.clone().next() {
            None => None,
            Some(_) if is("invalid_token") => Some(Self::InvalidToken),
            Some(_) if is("insufficient_scope") || is("invalid_request") => Some(Self::OtherCause),
            Some(_) => Some(Self::Unknown),
        }
    }
}

/// Returns the errors that the challenges of the token's own schemes name.
fn own_errors<'a>(
    fields: impl Iterator<Item = &'a [u8]>,
    is_own: impl Fn(&[u8]) -> bool,
) -> Vec<ErrorCode> {
    let is_known = |word: &[u8]| {
        let mut known = KNOWN_SCHEMES.iter();
        is_own(word) || known.any(|scheme| word.eq_ignore_ascii_case(scheme.as_bytes()))
    };
    let mut errors = Vec::new();
    // A challenge may go on in the next field (RFC 9110 §5.3).
    let mut is_own_challenge = false;
    for part in fields.flat_map(|field| Parts::new(field, &is_known)) {
        match part {
            Part::Scheme(scheme) => is_own_challenge = is_own(scheme),
            Part::Parameter { name, value } => {
                if is_own_challenge && name.eq_ignore_ascii_case(b"error") {
                    errors.extend(ErrorCode::read(value));
                }
            }
        }
    }
    errors
}

/// A part of a challenge.
#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    Scheme(&'a [u8]),
    Parameter { name: &'a [u8], value: &'a [u8] },
}

/// The parts of the challenges in one field.
struct Parts<'a, F> {
    rest: &'a [u8],
    last: Last,
    is_known: F,
    /// Set once a quote was not closed, so that the rest is not searched for a closing quote again.
    has_open_quote: bool,
}

/// What was read last, apart from white space and commas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    Nothing,
    Scheme,
    /// A quoted value, or credentials such as those of `Negotiate YII=`.
    Closed,
    /// A value without quotes, which may be a sentence.
    Text,
}

impl<'a, F: Fn(&[u8]) -> bool> Parts<'a, F> {
    fn new(field: &'a [u8], is_known: F) -> Self {
        Self {
            rest: field,
            last: Last::Nothing,
            is_known,
            has_open_quote: false,
        }
    }

    /// Skips white space, commas and semicolons; returns whether there was a comma or semicolon.
    fn skip_gap(&mut self) -> bool {
        let is_gap = |&byte: &u8| is_space(byte) || is_separator(byte);
        let (gap, rest) = split_while(self.rest, is_gap);
        self.rest = rest;
        gap.iter().any(|&byte| is_separator(byte))
    }

    /// Returns whether a word that is not the name of a parameter begins a challenge.
    ///
    /// Any word does after a comma. Where a comma is missing, and in a sentence without quotes, it
    /// takes more to tell a scheme from the words around it.
    fn is_scheme(&self, word: &[u8], is_separated: bool) -> bool {
        if !ends_word(self.rest) {
            return false;
        }
        let is_known = (self.is_known)(word);
        let has_parameter = begins_with_parameter(self.rest);
        match (self.last, is_separated) {
            (Last::Nothing, _) | (Last::Scheme | Last::Closed, true) => true,
            (Last::Closed, false) | (Last::Text, true) => is_known || has_parameter,
            (Last::Scheme | Last::Text, false) => is_known && has_parameter,
        }
    }

    /// Reads the value of a parameter whose name was read; `None` if no `=` follows the name.
    fn value(&mut self) -> Option<&'a [u8]> {
        let after_equals = self.rest.trim_ascii_start().strip_prefix(b"=")?;
        let text = after_equals.trim_ascii_start();
        let value = match text.split_first() {
            Some((&quote @ (b'"' | b'\''), text)) => {
                self.last = Last::Closed;
                self.quoted(quote, text)
            }
            // The `=` ends credentials such as those of `Negotiate YII=`.
            _ if self.is_end_of_credentials(after_equals) => {
                self.last = Last::Closed;
                (&text[..0], after_equals)
            }
            _ => {
                self.last = Last::Text;
                split_while(text, |&byte| !is_space(byte) && !is_separator(byte))
            }
        };
        self.rest = value.1;
        Some(value.0)
    }

    fn is_end_of_credentials(&self, after_equals: &[u8]) -> bool {
        let (space, rest) = split_while(after_equals, |&byte| is_space(byte));
        let (word, rest) = split_while(rest, |&byte| is_in_word(byte));
        let is_challenge = (self.is_known)(word) && begins_with_parameter(rest);
        word.is_empty() || (!space.is_empty() && is_challenge)
    }

    /// Splits a value from what follows it, given the text behind the value's opening quote.
    fn quoted(&mut self, quote: u8, text: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        let mut at = 0;
        while at < text.len() && !self.has_open_quote {
            if text[at] == b'\\' && quote == b'"' {
                at += 1;
            } else if text[at] == quote {
                let rest = &text[at + 1..];
                if ends_word(rest) {
                    return (&text[..at], rest);
                }
                // The quote opens the value of the next parameter, so that of this one is not closed.
                if let Some(next) = start_of_last_parameter(&text[..at]) {
                    return text.split_at(next);
                }
                // Otherwise, it is a quote within the text that is not escaped.
            }
            at += 1;
        }
        self.has_open_quote = true;
        split_while(text, |&byte| byte != quote && !is_separator(byte))
    }
}

impl<'a, F: Fn(&[u8]) -> bool> Iterator for Parts<'a, F> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        let mut is_separated = false;
        loop {
            is_separated |= self.skip_gap();
            let (word, rest) = split_while(self.rest, |&byte| is_in_word(byte));
            if word.is_empty() {
                // A stray quote or `=`.
                self.rest = rest.get(1..)?;
                continue;
            }
            self.rest = rest;
            if let Some(value) = self.value() {
                return Some(Part::Parameter { name: word, value });
            }
            if self.is_scheme(word, is_separated) {
                self.last = Last::Scheme;
                return Some(Part::Scheme(word));
            }
            self.last = match self.last {
                // Credentials, such as those of `Negotiate YII`.
                Last::Scheme => Last::Closed,
                Last::Nothing | Last::Closed | Last::Text => Last::Text,
            };
            is_separated = false;
        }
    }
}

/// Returns whether white space and a parameter, or credentials with padding, come first.
fn begins_with_parameter(text: &[u8]) -> bool {
    let (space, text) = split_while(text, |&byte| is_space(byte));
    let (name, text) = split_while(text, |&byte| is_in_word(byte));
    !space.is_empty() && !name.is_empty() && text.trim_ascii_start().starts_with(b"=")
}

/// Returns where the last parameter starts, if the text ends with its name and `=`.
fn start_of_last_parameter(text: &[u8]) -> Option<usize> {
    let text = text.trim_ascii_end().strip_suffix(b"=")?.trim_ascii_end();
    let is_in_name = |&byte: &u8| is_in_word(byte) && byte != b'\'';
    let name = text
        .iter()
        .rev()
        .take_while(|byte| is_in_name(byte))
        .count();
    let (before, name) = text.split_at(text.len() - name);
    let starts_word = |&byte: &u8| is_space(byte) || is_separator(byte) || is_quote(byte);
    (!name.is_empty() && before.last().is_none_or(starts_word)).then_some(before.len())
}

fn ends_word(rest: &[u8]) -> bool {
    rest.first()
        .is_none_or(|&byte| is_space(byte) || is_separator(byte))
}

fn is_in_word(byte: u8) -> bool {
    !is_space(byte) && !is_separator(byte) && byte != b'"' && byte != b'='
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// A comma; some servers write semicolons.
fn is_separator(byte: u8) -> bool {
    matches!(byte, b',' | b';')
}

fn is_quote(byte: u8) -> bool {
    matches!(byte, b'"' | b'\'')
}

fn split_while(text: &[u8], belongs: impl Fn(&u8) -> bool) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !belongs(byte));
    text.split_at(end.unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Every text of one to three of these characters, and longer texts that open quotes.
    fn hostile_texts() -> Vec<String> {
        let characters = [' ', ',', '=', '"', '\'', '\\', 'a'];
        let mut texts = vec![String::new()];
        let mut start = 0;
        for _ in 0..3 {
            let end = texts.len();
            for index in start..end {
                let text = texts[index].clone();
                texts.extend(characters.map(|character| format!("{text}{character}")));
            }
            start = end;
        }
        let longer = [
            r#"a="b,"#,
            r#"a= "b,"#,
            r#"a = "b "#,
            "a='b,",
            r#"a='b,a="c,"#,
            r#"a "b"#,
        ];
        texts
            .into_iter()
            .skip(1)
            .chain(longer.map(str::to_owned))
            .collect()
    }

    #[allow(clippy::disallowed_methods, reason = "the test measures real time")]
    #[test]
    fn hostile_challenges_cost_linear_time() {
        for text in hostile_texts() {
            let field = format!("Bearer {}", text.repeat(64 * 1024 / text.len()));

            let started_at = Instant::now();
            own_errors([field.as_bytes()].into_iter(), |_| true);

            // A linear parser takes milliseconds, also in a debug build; a quadratic one takes
            // many seconds.
            let took = started_at.elapsed();
            assert!(took < Duration::from_secs(2), "{text:?} takes {took:?}");
        }
    }
}
