//! Pure: what may be shown of a text that a server sent.

use secrecy::zeroize::Zeroizing;

/// Takes secrets and control characters out of texts, and cuts them.
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
        // Where one secret starts with another, the longer one has to go.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self { secrets }
    }

    /// The same, and more secrets.
    pub(super) fn also(&self, secrets: impl IntoIterator<Item = Zeroizing<String>>) -> Self {
        Self::new(self.secrets.iter().cloned().chain(secrets))
    }

    /// The text in at most `longest` characters and a few more for the mark of the cut.
    pub(super) fn show(&self, text: &str, longest: usize) -> String {
        // Many unsafe characters become one: a secret is found across it, and else it is a space.
        let parts: Vec<_> = text
            .split(is_unsafe_to_print)
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .collect();
        let text = parts.join("\0");
        let mut rest = &*text;
        let mut shown = String::new();
        for _ in 0..longest {
            let Some(next) = rest.chars().next() else {
                return shown;
            };
            let mut behind_secrets = self
                .secrets
                .iter()
                .filter_map(|secret| behind(secret, rest));
            if let Some(behind) = behind_secrets.next() {
                shown.push_str("[redacted]");
                rest = behind;
            } else {
                shown.push(if next == '\0' { ' ' } else { next });
                rest = &rest[next.len_utf8()..];
            }
        }
        if !rest.is_empty() {
            shown.push('…');
        }
        shown
    }
}

/// Shorter ones are everybody's guess, and taken out would only make texts unreadable.
const SHORTEST_SECRET: usize = 4;

/// What follows the secret that the text starts with.
///
/// The case of letters does not count: `%2F` and `%2f` are the same.
fn behind<'a>(secret: &str, text: &'a str) -> Option<&'a str> {
    if text.starts_with('\0') {
        return None;
    }
    let mut rest = text.chars();
    for wanted in secret.chars() {
        let found = rest.find(|&found| found != '\0')?;
        if !found.eq_ignore_ascii_case(&wanted) {
            return None;
        }
    }
    Some(rest.as_str())
}

/// Control characters, and what is not seen or makes a terminal show a text in another order or on
/// another line.
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
}
