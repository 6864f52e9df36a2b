//! Pure: what may be shown of a text that a server sent.

/// Takes secrets and control characters out of texts, and cuts them.
pub(super) struct Redaction {
    secrets: Vec<String>,
}

impl Redaction {
    pub(super) fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let mut secrets: Vec<_> = secrets
            .into_iter()
            .filter(|secret| !secret.is_empty())
            .collect();
        // Where one secret starts with another, the longer one has to go.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self { secrets }
    }

    /// The same, and one more secret.
    pub(super) fn also(&self, secret: &str) -> Self {
        Self::new(self.secrets.iter().cloned().chain([secret.to_owned()]))
    }

    /// The text in at most `longest` characters and a few more for the mark of the cut.
    pub(super) fn show(&self, text: &str, longest: usize) -> String {
        // Before the search: taken out later, they would put a secret together that they had split.
        let text: Vec<_> = text
            .split(is_unsafe_to_print)
            .filter(|part| !part.is_empty())
            .collect();
        let text = text.join(" ");
        let mut rest = text.trim();
        let mut shown = String::new();
        for _ in 0..longest {
            let Some(next) = rest.chars().next() else {
                return shown;
            };
            match self
                .secrets
                .iter()
                .find(|secret| rest.starts_with(secret.as_str()))
            {
                Some(secret) => {
                    shown.push_str("[redacted]");
                    rest = &rest[secret.len()..];
                }
                None => {
                    shown.push(next);
                    rest = &rest[next.len_utf8()..];
                }
            }
        }
        if !rest.is_empty() {
            shown.push('…');
        }
        shown
    }
}

/// Control characters, and what makes a terminal show a text in another order or on another line.
fn is_unsafe_to_print(character: char) -> bool {
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
        let redaction =
            Redaction::new(["s3cret".to_owned(), "s3cret+long".to_owned(), String::new()]);

        for (text, shown) in [
            ("plain", "plain"),
            (" line one\r\nline two\u{0}", "line one line two"),
            ("is s3cret!", "is [redacted]!"),
            ("is s3cret+long!", "is [redacted]!"),
            ("s3c\u{0}ret", "s3c ret"),
            ("\u{202e}abc", "abc"),
            ("12345678901234567890x", "12345678901234567890…"),
            ("123456789012345678s3cret", "123456789012345678[redacted]"),
        ] {
            assert_eq!(redaction.show(text, 20), shown);
        }
    }
}
