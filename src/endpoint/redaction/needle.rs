//! Finding a secret in a text, in time proportional to the text.

use std::{iter, ops::Range};

use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD};
use secrecy::zeroize::Zeroizing;

use super::{LONGEST_SEARCHED, SHORTEST_SECRET, reading::Glyph};

/// One form of a secret, to be found in a text.
pub(super) struct Needle {
    text: Zeroizing<Vec<char>>,
    /// For each prefix of the text, the length of its longest border: of the longest shorter prefix
    /// that it also ends with (Knuth, Morris and Pratt).
    borders: Vec<usize>,
    alphabet: Alphabet,
}

#[derive(Clone, Copy, PartialEq)]
enum Alphabet {
    Any,
    Base64,
}

impl Needle {
    /// Returns the secret, and the Base64 of it.
    pub(super) fn forms_of(secret: &str) -> impl Iterator<Item = Self> {
        let secret = prefix(secret);
        iter::once(Self::new(secret, Alphabet::Any)).chain(base64_of(secret))
    }

    fn new(text: &str, alphabet: Alphabet) -> Self {
        let mut folded = Zeroizing::new(Vec::with_capacity(text.len()));
        folded.extend(text.chars().map(|character| alphabet.fold(character)));
        Self {
            borders: borders(&folded),
            text: folded,
            alphabet,
        }
    }

    /// Adds the parts of the text that are this needle to `found`.
    ///
    /// If the text was cut, also adds its end if the needle may go on behind it.
    pub(super) fn find(&self, text: &[Glyph], is_cut: bool, found: &mut Vec<Range<usize>>) {
        let mut matched = 0;
        // Everything before this has been found.
        let mut searched = 0;
        for (index, glyph) in text.iter().enumerate() {
            matched = self.next_match(matched, self.alphabet.fold(glyph.character));
            if matched == self.text.len() && index >= searched {
                let whole = self.alphabet.whole(text, index + 1 - matched..index + 1);
                searched = whole.end;
                found.push(text[whole.start].start..text[whole.end - 1].end);
            }
        }
        let may_go_on = is_cut && matched < self.text.len() && matched >= SHORTEST_SECRET;
        if may_go_on {
            let start = text[text.len() - matched].start;
            found.push(start..text[text.len() - 1].end);
        }
    }

    /// Returns how much of the needle the text ends with after one more character.
    fn next_match(&self, mut matched: usize, character: char) -> usize {
        while self.text.get(matched) != Some(&character) {
            match matched {
                0 => return 0,
                _ => matched = self.borders[matched - 1],
            }
        }
        matched + 1
    }
}

impl Alphabet {
    /// Makes characters equal that are the same to a reader, or to a reader of either Base64.
    fn fold(self, character: char) -> char {
        match (self, character) {
            (Self::Base64, '-') => '+',
            (Self::Base64, '_') => '/',
            _ => character.to_ascii_lowercase(),
        }
    }

    /// Returns the whole Base64 text that a match is part of: its other digits may be secret, too.
    fn whole(self, text: &[Glyph], found: Range<usize>) -> Range<usize> {
        if self != Self::Base64 {
            return found;
        }
        let is_digit = |glyph: &&Glyph| {
            glyph.character.is_ascii_alphanumeric() || "+/-_=".contains(glyph.character)
        };
        let before = text[..found.start]
            .iter()
            .rev()
            .take_while(is_digit)
            .count();
        let after = text[found.end..].iter().take_while(is_digit).count();
        found.start - before..found.end + after
    }
}

/// Returns as much of a secret as can be in a text.
fn prefix(secret: &str) -> &str {
    let end = secret
        .char_indices()
        .map(|(start, _)| start)
        .nth(LONGEST_SEARCHED);
    &secret[..end.unwrap_or(secret.len())]
}

fn borders(text: &[char]) -> Vec<usize> {
    let mut borders = Vec::with_capacity(text.len());
    let mut border = 0;
    for (length, character) in text.iter().enumerate() {
        while border > 0 && text[border] != *character {
            border = borders[border - 1];
        }
        // The first character has no shorter prefix.
        border += usize::from(length > 0 && text[border] == *character);
        borders.push(border);
    }
    borders
}

/// Returns the digits that stand for `text` alone in a Base64 text that contains it anywhere.
///
/// They depend on the number of bytes in front, modulo three. Digits for bits of other bytes as well
/// are left out.
fn base64_of(text: &str) -> impl Iterator<Item = Needle> {
    (0..3).map(move |bytes_in_front| {
        let bytes = Zeroizing::new([&[0; 2][..bytes_in_front], text.as_bytes()].concat());
        let digits = Zeroizing::new(BASE64_STANDARD_NO_PAD.encode(&*bytes));
        let first = (8 * bytes_in_front).div_ceil(6);
        let end = 8 * bytes.len() / 6;
        Needle::new(&digits[first..end], Alphabet::Base64)
    })
}

#[cfg(test)]
mod tests {
    use super::{super::reading::readings, *};

    /// Returns what a needle finds in a text, by comparing it at each place.
    fn found_slowly(needle: &str, text: &str) -> Vec<Range<usize>> {
        let starts = (0..text.len()).filter(|&start| text[start..].starts_with(needle));
        starts.map(|start| start..start + needle.len()).collect()
    }

    #[test]
    fn every_occurrence_is_found() {
        // All texts of two letters, up to nine letters long.
        let texts = |longest| {
            (1..=longest).flat_map(|length| {
                (0..1 << length).map(move |bits| {
                    let letter = |index| if (bits >> index) % 2 == 1 { 'b' } else { 'a' };
                    (0..length).map(letter).collect::<String>()
                })
            })
        };
        for needle in texts(5) {
            let searched = Needle::new(&needle, Alphabet::Any);
            for text in texts(9) {
                let mut found = Vec::new();
                searched.find(&readings(&text)[0], false, &mut found);

                assert_eq!(found, found_slowly(&needle, &text), "{needle} in {text}");
            }
        }
    }
}
