//! What a text says in each encoding that it may be in.

use std::str::from_utf8;

use super::is_unsafe_to_print;

/// A visible character, and the part of the text that stands for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Glyph {
    pub(super) character: char,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Returns the text as it is and, if that differs, with the escapes of JSON or HTML,
/// percent-encoding and form-encoding undone.
///
/// Unprintable characters are left out.
pub(super) fn readings(text: &str) -> Vec<Vec<Glyph>> {
    let plain: Vec<_> = text
        .char_indices()
        .map(|(start, character)| Glyph {
            character,
            start,
            end: start + character.len_utf8(),
        })
        .filter(Glyph::is_visible)
        .collect();
    let json = decoded(&plain, '\\', json_escape);
    let html = decoded(&plain, '&', html_escape);

    let mut readings = vec![plain];
    readings.extend([json, html].into_iter().flatten());
    let once: Vec<_> = readings
        .iter()
        .flat_map(|reading| [percent_decoded(reading), form_decoded(reading)])
        .flatten()
        .collect();
    // Values that are encoded in a URL or form may have been encoded before.
    let twice: Vec<_> = once
        .iter()
        .filter_map(|reading| percent_decoded(reading))
        .collect();
    readings.extend(once);
    readings.extend(twice);
    readings
}

impl Glyph {
    fn is_visible(&self) -> bool {
        !is_unsafe_to_print(self.character)
    }
}

/// Returns the character that an escape at the start of a text stands for, and the escape's length.
type Escape = fn(&[Glyph]) -> Option<(char, usize)>;

/// The longest escape: a character of four percent-encoded bytes, or of two UTF-16 code units.
pub(super) const LONGEST_ESCAPE: usize = 12;

/// Undoes the escapes that begin with `mark`; `None` if there are none.
fn decoded(reading: &[Glyph], mark: char, undo: Escape) -> Option<Vec<Glyph>> {
    if !reading.iter().any(|glyph| glyph.character == mark) {
        return None;
    }
    let mut has_escapes = false;
    let mut decoded = Vec::with_capacity(reading.len());
    let mut rest = reading;
    while let Some(&first) = rest.first() {
        let escape = Some(rest).filter(|_| first.character == mark);
        let escape = escape.and_then(undo);
        has_escapes |= escape.is_some();
        let (character, length) = escape.unwrap_or((first.character, 1));
        decoded.push(Glyph {
            character,
            start: first.start,
            end: rest[length - 1].end,
        });
        rest = &rest[length..];
    }
    decoded.retain(Glyph::is_visible);
    Some(decoded).filter(|_| has_escapes)
}

fn percent_decoded(reading: &[Glyph]) -> Option<Vec<Glyph>> {
    decoded(reading, '%', percent_escape)
}

/// Undoes form-encoding; `None` if that is the same as undoing percent-encoding.
fn form_decoded(reading: &[Glyph]) -> Option<Vec<Glyph>> {
    let spaced = decoded(reading, '+', |_| Some((' ', 1)))?;
    Some(percent_decoded(&spaced).unwrap_or(spaced))
}

/// `%2F`, or several such bytes that are one UTF-8 character.
fn percent_escape(text: &[Glyph]) -> Option<(char, usize)> {
    let mut bytes = [0; 4];
    for (index, encoded) in text.chunks_exact(3).take(bytes.len()).enumerate() {
        if encoded[0].character != '%' {
            return None;
        }
        bytes[index] = hexadecimal(&encoded[1..])?.try_into().ok()?;
        if let Ok(decoded) = from_utf8(&bytes[..=index]) {
            return Some((decoded.chars().next()?, 3 * (index + 1)));
        }
    }
    None
}

/// `\/`, `\n` or `\u002f` (RFC 8259 §7).
fn json_escape(text: &[Glyph]) -> Option<(char, usize)> {
    let unit = |text: &[Glyph]| {
        let is_escape = text.first()?.character == '\\' && text.get(1)?.character == 'u';
        let digits = text.get(2..6).filter(|_| is_escape)?;
        u16::try_from(hexadecimal(digits)?).ok()
    };
    match text.get(1)?.character {
        character @ ('"' | '\\' | '/') => Some((character, 2)),
        'b' | 'f' | 'n' | 'r' | 't' => Some(('\n', 2)),
        'u' => {
            let units = [Some(unit(text)?), text.get(6..).and_then(unit)];
            let mut characters = char::decode_utf16(units.into_iter().flatten());
            let character = characters.next()?.ok()?;
            Some((character, 6 * character.len_utf16()))
        }
        _ => None,
    }
}

/// `&amp;`, `&#47;` or `&#x2f;`.
fn html_escape(text: &[Glyph]) -> Option<(char, usize)> {
    let text = &text[..text.len().min(LONGEST_ESCAPE)];
    let end = text.iter().position(|glyph| glyph.character == ';')?;
    let name: String = text[1..end].iter().map(|glyph| glyph.character).collect();
    let character = match &*name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => {
            let digits = name.strip_prefix('#')?;
            let code = match digits.strip_prefix(['x', 'X']) {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => digits.parse(),
            };
            char::from_u32(code.ok()?)?
        }
    };
    Some((character, end + 1))
}

/// Parses a few hexadecimal digits.
fn hexadecimal(digits: &[Glyph]) -> Option<u32> {
    let append = |number, digit: &Glyph| Some(16 * number + digit.character.to_digit(16)?);
    digits.iter().try_fold(0, append)
}
