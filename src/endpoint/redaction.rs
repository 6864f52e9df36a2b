//! Makes texts that others wrote safe to show: without secrets, on one line, and short.

use secrecy::zeroize::Zeroizing;

/// Removes secrets and unprintable characters from texts, and cuts the texts.
pub(super) struct Redaction {
    secrets: Vec<Zeroizing<String>>,
}

impl Redaction {
    pub(super) fn new(secrets: impl IntoIterator<Item = Zeroizing<String>>) -> Self {
        let mut secrets: Vec<_> = secrets
            .into_iter()
            .map(|secret| Zeroizing::new(secret.replace(is_unsafe_to_print, "")))
            .map(|secret| Zeroizing::new(secret.trim().to_owned()))
            .filter(|secret| secret.chars().count() >= SHORTEST_SECRET)
            .collect();
        // If one secret starts with another, the longer one must be found.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self { secrets }
    }

    /// Adds secrets.
    pub(super) fn also(&self, secrets: impl IntoIterator<Item = Zeroizing<String>>) -> Self {
        Self::new(self.secrets.iter().cloned().chain(secrets))
    }

    /// Returns the text with secrets replaced and unprintable characters removed.
    ///
    /// Reads at most `longest` characters or secrets; an ellipsis marks a cut.
    pub(super) fn show(&self, text: &str, longest: usize) -> String {
        let text = with_gaps(text);
        let mut rest = &*text;
        let mut shown = String::new();
        for _ in 0..longest {
            let Some(next) = rest.chars().next() else {
                return shown;
            };
            if let Some(following) = self.skip_secret(rest) {
                shown.push_str("[redacted]");
                rest = following;
            } else {
                shown.push(if next == GAP { ' ' } else { next });
                rest = &rest[next.len_utf8()..];
            }
        }
        if !rest.is_empty() {
            shown.push('…');
        }
        shown
    }

    /// Returns whether a secret starts within the first `within` characters of the text.
    pub(super) fn finds_secret(&self, text: &str, within: usize) -> bool {
        let text = with_gaps(text);
        let mut starts = text.char_indices().take(within);
        starts.any(|(start, _)| self.skip_secret(&text[start..]).is_some())
    }

    /// Returns what follows the secret that the text starts with.
    fn skip_secret<'a>(&self, text: &'a str) -> Option<&'a str> {
        let mut secrets = self.secrets.iter();
        secrets.find_map(|secret| strip_secret(secret, text))
    }
}

/// Shorter secrets are easy to guess, and removing them would make texts unreadable.
const SHORTEST_SECRET: usize = 4;

/// Stands for unprintable characters: a space to a reader, nothing in the middle of a secret.
const GAP: char = '\0';

/// Replaces each run of unprintable characters by one gap.
fn with_gaps(text: &str) -> String {
    let parts: Vec<_> = text
        .split(is_unsafe_to_print)
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect();
    parts.join("\0")
}

/// Returns what follows the secret if the text starts with it.
///
/// Ignores the case of letters: `%2F` and `%2f` are the same.
fn strip_secret<'a>(secret: &str, text: &'a str) -> Option<&'a str> {
    if text.starts_with(GAP) {
        return None;
    }
    let mut rest = text.chars();
    for wanted in secret.chars() {
        let found = rest.find(|&found| found != GAP)?;
        if !found.eq_ignore_ascii_case(&wanted) {
            return None;
        }
    }
    Some(rest.as_str())
}

/// Returns whether a character is a control character, is invisible, or makes a terminal change the
/// order or the line of a text.
pub(super) fn is_unsafe_to_print(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
        )
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
        ] {
            assert_eq!(redaction.show(text, 20), shown);
        }
    }

    #[test]
    fn finds_secrets_that_start_before_the_limit() {
        let redaction = Redaction::new(["s3cret".to_owned().into()]);

        for (text, is_found) in [
            ("is s3cret", true),
            ("is S3C\u{200b}RET", true),
            // Starts at the last character before the limit, and at the limit.
            ("123 s3cret", true),
            ("1234 s3cret", false),
            ("is s3cre", false),
            ("", false),
        ] {
            assert_eq!(redaction.finds_secret(text, 5), is_found, "{text}");
        }
    }
}
