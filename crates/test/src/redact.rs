//! Texts that are shown to people, without secrets and tokens.

use std::cmp::Reverse;

use percent_encoding::percent_decode_str;

/// Longer texts aren't shown, so that looking for secrets in them takes a bounded time.
const MAX_SHOWN: usize = 1024;

const REDACTED: &str = "[redacted]";

/// Replaces every secret in a text, and the whole text if it contains one in an encoded form.
pub(crate) fn redacted<'a>(text: &str, secrets: impl Iterator<Item = &'a str>) -> String {
    if text.len() > MAX_SHOWN {
        return format!("[{} bytes]", text.len());
    }
    let decoded = [percent_decoded(text), form_decoded(text)];
    let is_inside = |secret: &&str| {
        !secret.is_empty()
            && (text.contains(secret) || decoded.iter().any(|text| text.contains(secret)))
            // A client that forgets to encode its secret sends another one.
            || secret.contains(['+', '%']) && decoded[1].contains(&*form_decoded(secret))
    };
    let mut secrets: Vec<_> = secrets.filter(is_inside).collect();
    // A secret may contain another one.
    secrets.sort_by_key(|secret| Reverse(secret.len()));
    if secrets.iter().any(|secret| !text.contains(secret)) {
        return REDACTED.to_owned();
    }
    let replace = |shown: String, secret: &&str| shown.replace(secret, REDACTED);
    secrets.iter().fold(text.to_owned(), replace)
}

fn form_decoded(text: &str) -> String {
    percent_decoded(&text.replace('+', " "))
}

fn percent_decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_replaced_as_they_are_and_encoded() {
        let cases = [
            ("/orders/7", "/orders/7"),
            ("/orders/s3cret/7", "/orders/[redacted]/7"),
            ("s3cret-longer", "[redacted]"),
            ("/a%2Fb+c", "[redacted]"),
            ("a/b c", "[redacted]"),
            ("c d", "[redacted]"),
            ("%733cret", "[redacted]"),
            ("%FF s3cret", "%FF [redacted]"),
        ];
        for (text, expected) in cases {
            let secrets = ["", "s3cret", "s3cret-longer", "a/b c", "c+d"];
            assert_eq!(redacted(text, secrets.into_iter()), expected);
        }
    }

    #[test]
    fn long_texts_are_not_shown() {
        let shown = redacted(&"a".repeat(MAX_SHOWN + 1), [].into_iter());
        assert_eq!(shown, "[1025 bytes]");
    }
}
