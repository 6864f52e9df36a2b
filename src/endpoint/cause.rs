//! Finds the cause of a transport error and makes it safe to show.

use std::{
    error::Error as StdError,
    fmt::{self, Write},
    io, iter,
};

use super::redaction::{LONGEST_SEARCHED, Redaction};

/// Returns the cause at the end of an error's source chain, as one short line.
///
/// Prefers the kind of an I/O error, which is the same on every platform and contains no data. Other
/// texts are shown without URLs. A text with a secret isn't shown; that of the error above it is
/// used instead.
pub(super) fn of(error: &(dyn StdError + 'static), redaction: &Redaction) -> Option<String> {
    let chain = iter::successors(Some(error), |&error| error.source());
    let chain: Vec<_> = chain.take(LONGEST_CHAIN).collect();
    let causes = || chain.iter().rev();
    causes()
        .find_map(|cause| io_error_kind(*cause))
        .or_else(|| causes().find_map(|cause| text(*cause, redaction)))
}

/// Real chains have about five errors; a chain that leads back to itself has no end.
const LONGEST_CHAIN: usize = 32;

/// Long enough for the texts of TLS and HTTP libraries, short enough for a log line.
const LONGEST_SHOWN: usize = 200;

/// Returns the kind of an I/O error, if it is clearer than the error's text.
fn io_error_kind(error: &(dyn StdError + 'static)) -> Option<String> {
    use io::ErrorKind::{
        AddrNotAvailable, BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset,
        HostUnreachable, NetworkDown, NetworkUnreachable, NotConnected, PermissionDenied, TimedOut,
        UnexpectedEof,
    };

    let mut error = error.downcast_ref::<io::Error>()?;
    // TLS libraries wrap I/O errors in I/O errors, and `source` skips the inner one.
    while let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
        error = inner;
    }
    let kind = error.kind();
    let is_clear = matches!(
        kind,
        AddrNotAvailable
            | BrokenPipe
            | ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | NetworkDown
            | NetworkUnreachable
            | NotConnected
            | PermissionDenied
            | TimedOut
            | UnexpectedEof
    );
    is_clear.then(|| kind.to_string())
}

/// Returns the text of an error without URLs; `None` if it has a secret or says nothing else.
fn text(error: &(dyn StdError + 'static), redaction: &Redaction) -> Option<String> {
    let mut text = Start::default();
    // A `Display` of somebody else's may fail. `to_string` would panic then.
    let _ = write!(text, "{error}");
    let Start(text) = text;
    if redaction.finds_secret(&text) {
        return None;
    }
    let text = redaction.show(&text, LONGEST_SEARCHED);
    let words: Vec<_> = text.split_whitespace().map(without_url).collect();
    if words.iter().all(|word| *word == REMOVED) {
        return None;
    }
    let shown = redaction.show(&words.join(" "), LONGEST_SHOWN);
    Some(shown.trim_end_matches('.').to_owned())
}

/// The start of a text, with more of it than can be shown.
#[derive(Default)]
struct Start(String);

impl Write for Start {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.push_str(text);
        // An error ends the `Display` that writes.
        if self.0.len() > LONGEST_SEARCHED {
            return Err(fmt::Error);
        }
        Ok(())
    }
}

const REMOVED: &str = "[URL]";

fn without_url(word: &str) -> &str {
    if is_like_url(word) { REMOVED } else { word }
}

/// Returns whether a word may contain a URL, a path, a query or user information.
fn is_like_url(word: &str) -> bool {
    let is_http_version = word
        .strip_prefix("HTTP/")
        .is_some_and(|version| !version.contains(|c: char| c.is_alphabetic() || c == '/'));
    let has_path = word.contains('/') && !is_http_version;
    let has_query = word.contains('=') && word.contains(['?', '&']);
    has_path || has_query || word.contains('@')
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use tower::BoxError;

    use super::*;

    /// An error with a source, as HTTP clients wrap theirs.
    #[derive(Debug)]
    struct Wrapped(&'static str, BoxError);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Wrapped {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&*self.1)
        }
    }

    /// An error that cannot be displayed.
    #[derive(Debug)]
    struct Broken;

    impl fmt::Display for Broken {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            Err(fmt::Error)
        }
    }

    impl Error for Broken {}

    fn shown(error: impl Into<BoxError>) -> Option<String> {
        let secrets = ["s3cret", "key-1234"].map(|secret| secret.to_owned().into());
        of(&*error.into(), &Redaction::new(secrets))
    }

    fn wrapped(text: &'static str, source: impl Into<BoxError>) -> BoxError {
        Wrapped(text, source.into()).into()
    }

    #[test]
    fn shows_the_last_cause_and_prefers_the_kind_of_an_io_error() {
        let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, "10.0.0.1 s3cret");
        let tls = io::Error::new(
            io::ErrorKind::InvalidData,
            "invalid peer certificate: Expired",
        );
        let tls_refused = io::Error::other(refused());

        for (error, cause) in [
            ("operation timed out".into(), "operation timed out"),
            (tls_refused.into(), "connection refused"),
            (
                wrapped(
                    "client error (Connect)",
                    wrapped("tcp connect error", refused()),
                ),
                "connection refused",
            ),
            (
                wrapped("client error (Connect)", tls),
                "invalid peer certificate: Expired",
            ),
            (
                wrapped(
                    "a",
                    Wrapped("b", wrapped("c", io::Error::from(io::ErrorKind::TimedOut))),
                ),
                "timed out",
            ),
            (
                wrapped(
                    "error sending request",
                    "connection closed before message completed.",
                ),
                "connection closed before message completed",
            ),
        ] {
            assert_eq!(shown(error).as_deref(), Some(cause));
        }
    }

    #[test]
    fn shows_no_urls_and_no_unprintable_characters() {
        for (text, cause) in [
            (
                "no route to https://auth.example/t?a=1",
                "no route to [URL]",
            ),
            (
                "error for url (https://a.example/):\r\n closed",
                "error for url [URL] closed",
            ),
            (
                "got \"/oauth/token\" from me:pw@auth.example",
                "got [URL] from [URL]",
            ),
            (
                "auth.example/token token/x path=/x a?b=1 b=1&c=2 bad",
                "[URL] [URL] [URL] [URL] [URL] bad",
            ),
            (
                "hidden https:\u{200b}//auth.example/t",
                "hidden https: [URL]",
            ),
            (
                "HTTP/1.1 or HTTP/2, but HTTP/x?",
                "HTTP/1.1 or HTTP/2, but [URL]",
            ),
            ("no auth.example:443, why?", "no auth.example:443, why?"),
            ("one\ntwo\u{1b}[31m\u{202e}three", "one two [31m three"),
        ] {
            assert_eq!(shown(text).as_deref(), Some(cause), "{text}");
        }
    }

    #[test]
    fn shows_no_text_with_a_secret() {
        assert_eq!(shown("bad header s3cret"), None);
        assert_eq!(shown("bad header S3\u{200b}CRET"), None);
        assert_eq!(
            shown(wrapped("invalid header", "value is key-1234")).as_deref(),
            Some("invalid header")
        );
        assert_eq!(shown(wrapped("s3cret", "key-1234")), None);
    }

    #[test]
    fn shows_nothing_of_an_error_that_says_nothing() {
        assert_eq!(shown(Broken), None);
        assert_eq!(shown(" \n"), None);
        assert_eq!(shown("https://auth.example/token"), None);
        assert_eq!(shown(wrapped("closed", Broken)).as_deref(), Some("closed"));
    }

    #[test]
    fn shows_at_most_200_characters() {
        let long = "é".repeat(200);

        assert_eq!(shown(long.clone()), Some(long.clone()));
        assert_eq!(shown(long.clone() + "é"), Some(long + "…"));
    }
}
