//! Makes texts that others wrote safe to show: without secrets, on one line, and short.

mod invisible;
mod needle;
mod reading;

use std::ops::Range;

use secrecy::zeroize::Zeroizing;

pub(super) use self::invisible::is_unsafe_to_print;
use self::{
    needle::Needle,
    reading::{LONGEST_ESCAPE, readings},
};

/// Removes secrets and unprintable characters from texts, and cuts the texts.
///
/// Finds a secret in plain text, in Base64, percent-encoded, form-encoded, and escaped as in JSON or
/// HTML, whatever the case of its letters, and also if unprintable characters are inside.
///
/// Looks at the first 4 KiB of a text only. The time for that is proportional to their length.
pub(super) struct Redaction {
    secrets: Vec<Zeroizing<String>>,
}

impl Redaction {
    pub(super) fn new(secrets: impl IntoIterator<Item = Zeroizing<String>>) -> Self {
        let secrets = secrets.into_iter().map(|secret| {
            let mut printable = Zeroizing::new(String::with_capacity(secret.len()));
            let text = secret.trim_matches(|c: char| c.is_whitespace() || is_unsafe_to_print(c));
            printable.extend(text.chars().filter(|&c| !is_unsafe_to_print(c)));
            printable
        });
        let mut secrets: Vec<_> = secrets
            .filter(|secret| secret.chars().count() >= SHORTEST_SECRET)
            .collect();
        // Most encodings of most secrets are the same.
        secrets.sort_unstable_by(|a, b| a.as_str().cmp(b));
        secrets.dedup();
        Self { secrets }
    }

    /// Adds secrets.
    pub(super) fn also(&self, secrets: impl IntoIterator<Item = Zeroizing<String>>) -> Self {
        let mut secrets = Self::new(secrets).secrets;
        secrets.extend_from_slice(&self.secrets);
        Self { secrets }
    }

    /// Returns the text with secrets replaced and unprintable characters removed.
    ///
    /// Shows at most `longest` characters or secrets; an ellipsis marks a cut.
    pub(super) fn show(&self, text: &str, longest: usize) -> String {
        let (text, is_cut) = cut(text);
        let mut marked = String::with_capacity(text.len());
        let mut rest = 0;
        for secret in self.secrets_in(text, is_cut) {
            marked.extend(text[rest..secret.start].chars().map(printable_or_gap));
            marked.push(SECRET);
            rest = secret.end;
        }
        marked.extend(text[rest..].chars().map(printable_or_gap));

        let parts: Vec<_> = marked.split(GAP).map(str::trim).collect();
        let line = parts.into_iter().filter(|part| !part.is_empty());
        let line = line.collect::<Vec<_>>().join(" ");
        let mut characters = line.chars();
        let mut shown = String::new();
        for character in characters.by_ref().take(longest) {
            match character {
                SECRET => shown.push_str("[redacted]"),
                character => shown.push(character),
            }
        }
        if is_cut || characters.next().is_some() {
            shown.push('…');
        }
        shown
    }

    /// Returns whether there is a secret in the part of the text that could be shown.
    pub(super) fn finds_secret(&self, text: &str) -> bool {
        let (text, is_cut) = cut(text);
        !self.secrets_in(text, is_cut).is_empty()
    }

    /// Returns the parts of the text that are secret, in their order. They don't overlap.
    fn secrets_in(&self, text: &str, is_cut: bool) -> Vec<Range<usize>> {
        let readings = readings(text);
        let mut found = Vec::new();
        for needle in self
            .secrets
            .iter()
            .flat_map(|secret| Needle::forms_of(secret))
        {
            for reading in &readings {
                needle.find(reading, is_cut, &mut found);
            }
        }
        found.sort_unstable_by_key(|part| part.start);

        let mut parts: Vec<Range<usize>> = Vec::new();
        for part in found {
            match parts.last_mut() {
                Some(last) if part.start < last.end => last.end = last.end.max(part.end),
                _ => parts.push(part),
            }
        }
        parts
    }
}

/// How much of a text is searched and shown at most, in bytes.
pub(super) const LONGEST_SEARCHED: usize = 4096;

/// Shorter secrets are easy to guess, and removing them would make texts unreadable.
const SHORTEST_SECRET: usize = 4;

/// Stands for a secret, in a text without control characters.
const SECRET: char = '\u{1}';

/// Stands for unprintable characters.
const GAP: char = '\0';

fn printable_or_gap(character: char) -> char {
    if is_unsafe_to_print(character) {
        GAP
    } else {
        character
    }
}

/// Returns the part of a text to look at, and whether that is not the whole text.
fn cut(text: &str) -> (&str, bool) {
    if text.len() <= LONGEST_SEARCHED {
        return (text, false);
    }
    let boundary = |mut end| {
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        end
    };
    let end = boundary(LONGEST_SEARCHED);
    // Half an escape would hide that a secret goes on behind the cut.
    let start = boundary(end - LONGEST_ESCAPE);
    let escape = text[start..end].find(['%', '\\', '&']);
    (&text[..escape.map_or(end, |escape| start + escape)], true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_one_line_without_secrets() {
        let redaction = Redaction::new(
            [
                "s3cret",
                "s3cret+long",
                "",
                "abc",
                " padded\n",
                "a%2Fb",
                "x\u{200b}yz1",
            ]
            .map(|secret| secret.to_owned().into()),
        );

        for (text, shown) in [
            ("plain", "plain"),
            (" line one\r\nline two\u{0}", "line one line two"),
            ("is s3cret!", "is [redacted]!"),
            ("is s3cret+long!", "is [redacted]!"),
            ("s3c\u{0}r\u{200b}\u{200b}et", "[redacted]"),
            ("one\ns3cret\ntwo", "one [redacted] two"),
            ("is S3Cret!", "is [redacted]!"),
            ("padded", "[redacted]"),
            ("a%2fb", "[redacted]"),
            ("xyz1", "[redacted]"),
            ("\u{202e}abc", "abc"),
            ("s3cre", "s3cre"),
            ("12345678901234567890x", "12345678901234567890…"),
            ("123456789012345678s3cret", "123456789012345678[redacted]"),
            ("s3crets3cret+longS3CRET", "[redacted][redacted][redacted]"),
        ] {
            assert_eq!(redaction.show(text, 20), shown);
        }
    }

    #[test]
    fn finds_a_secret_in_every_encoding() {
        let redaction = Redaction::new(["pä/ss \"w&rd\\+1".to_owned().into()]);

        for encoded in [
            "pä/ss \"w&rd\\+1",
            // Percent-encoded and form-encoded, with either case and with more or fewer characters.
            "p%C3%A4%2Fss%20%22w%26rd%5C%2B1",
            "p%c3%a4%2fss%20%22w%26rd%5c%2b1",
            "%70%C3%A4/ss%20%22w%26rd%5C+1",
            "p%C3%A4%2Fss+%22w%26rd%5C%2B1",
            // Escaped for JSON, for HTML, and for JSON after percent-encoding.
            r#"pä/ss \"w&rd\\+1"#,
            r"p\u00e4\/ss \u0022w\u0026rd\u005C+1",
            "p&#228;&#x2F;ss &quot;w&amp;rd\\+1",
            r"p%C3%A4\u00252Fss\u002520%22w%26rd%5C\u002b1",
            // Base64 of the secret, of id:secret, of i:secret and of abc:secret.
            "cMOkL3NzICJ3JnJkXCsx",
            "aWQ6cMOkL3NzICJ3JnJkXCsx",
            "aTpww6Qvc3MgIncmcmRcKzE=",
            "YWJjOnDDpC9zcyAidyZyZFwrMQ==",
            "aTpww6Qvc3MgIncmcmRcKzE",
            "aTpww6Qvc3MgIncmcmRcKzE%3D",
        ] {
            let shown = redaction.show(&format!("a {encoded} z"), 100);
            assert_eq!(shown, "a [redacted] z", "{encoded}");
        }
    }

    #[test]
    fn finds_base64_of_both_alphabets() {
        let redaction = Redaction::new(["~~~???>>>".to_owned().into()]);

        for encoded in [
            "fn5+Pz8/Pj4+",
            "fn5-Pz8_Pj4-",
            "fn5%2BPz8%2FPj4%2B",
            "fn5+\r\nPz8/\r\nPj4+",
        ] {
            assert_eq!(redaction.show(encoded, 20), "[redacted]", "{encoded}");
        }
    }

    #[test]
    fn finds_a_secret_with_any_invisible_character_inside() {
        let redaction = Redaction::new(["s3cret/1".to_owned().into()]);

        let invisible = ('\0'..=char::MAX).filter(|&c| is_unsafe_to_print(c));
        for character in invisible {
            let interleave = |text: &str| {
                text.chars()
                    .flat_map(|c| [character, c])
                    .collect::<String>()
            };
            for text in ["s3cret/1", "s3cret%2F1", "czNjcmV0LzE="] {
                let shown = redaction.show(&interleave(text), 20);
                assert_eq!(shown, "[redacted]", "{character:?} in {text}");
            }
        }
        let encoded = r"s3%C2%ADcret%2F\u200b1";
        assert_eq!(redaction.show(encoded, 20), "[redacted]");
        let escaped = r"s3\u00adcret\/1";
        assert_eq!(redaction.show(escaped, 20), "[redacted]");
    }

    #[test]
    fn long_texts_are_cut_without_showing_the_start_of_a_secret() {
        let secret = "x/".repeat(3000);
        let redaction = Redaction::new([secret.clone().into()]);
        let blanks = " ".repeat(LONGEST_SEARCHED - 100);

        for echo in [
            secret.clone(),
            secret.replace('/', "%2F"),
            secret.replace('/', "\\u002f"),
        ] {
            for offset in 0..LONGEST_ESCAPE {
                let text = format!("a{}{blanks}{echo}", ".".repeat(offset));
                let shown = redaction.show(&text, LONGEST_SEARCHED);
                assert!(shown.ends_with(" [redacted]…"), "{offset}: {shown}");
            }
        }
        assert_eq!(redaction.show(&secret, 20), "[redacted]…");
        let text = "é".repeat(LONGEST_SEARCHED);
        let shown = redaction.show(&text, LONGEST_SEARCHED);
        assert_eq!(shown, "é".repeat(LONGEST_SEARCHED / 2) + "…");
    }

    #[test]
    fn escapes_that_are_none_are_shown() {
        let redaction = Redaction::new(["s3cret".to_owned().into()]);

        let text = r"100% \u00 \ud800 \x & &; &#; &#x; &#x110000; &copy; %C3 %F0%9F%98 %zz \";
        assert_eq!(redaction.show(text, 100), text);
    }

    #[test]
    #[allow(
        clippy::disallowed_methods,
        reason = "measures how long the search takes"
    )]
    fn time_grows_no_faster_than_the_text_and_the_secret() {
        // Both take as long if the time is proportional, so that a busy machine slows down both.
        let timed = |length: usize, times: usize| {
            // Almost the secret at each place, in each reading.
            let text = "+%61\\/&amp;".to_owned() + &"a".repeat(length - 12);
            let secret = "a".repeat(length) + "b";
            let redaction = Redaction::new([secret.into()]);
            let start = std::time::Instant::now();
            for _ in 0..times {
                std::hint::black_box(redaction.show(&text, 500));
            }
            start.elapsed()
        };
        let shortest = |length, times| (0..9).map(|_| timed(length, times)).min().unwrap();

        let many_short = shortest(LONGEST_SEARCHED / 16, 16);
        let one_long = shortest(LONGEST_SEARCHED, 1);

        // Quadratic is 16 times.
        assert!(one_long < 6 * many_short, "{many_short:?} {one_long:?}");
    }
}
