//! Where reqwest takes a token when it follows a redirect.

use http::{
    HeaderMap, HeaderName,
    header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION, WWW_AUTHENTICATE},
};
use reqwest::redirect::Policy;

/// What is known of the redirects that a client follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Redirects {
    /// They may lead to other origins. reqwest doesn't reveal the policy of a client.
    Anywhere,
    /// They never lead to another origin.
    WithinOrigin,
}

/// Follows redirects within an origin as reqwest does by default. Others are returned to the caller.
pub(crate) fn within_origin() -> Policy {
    Policy::custom(|attempt| {
        let next = attempt.url().origin();
        if attempt.previous().iter().all(|url| url.origin() == next) {
            Policy::default().redirect(attempt)
        } else {
            attempt.stop()
        }
    })
}

/// The sensitive headers that the caller of a request has set. A request extension.
///
/// reqwest sends them along with redirects, as it does without this crate.
#[derive(Clone, Debug)]
pub(crate) struct CallersHeaders(Vec<HeaderName>);

impl CallersHeaders {
    /// Returns the headers of a request that doesn't carry a token yet; `None` if there are none.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let names: Vec<_> = headers_that_follow(headers).cloned().collect();
        (!names.is_empty()).then_some(Self(names))
    }
}

/// Returns a header of a token or of a proof that a redirect could take to another origin.
pub(crate) fn exposed<'a>(
    headers: &'a HeaderMap,
    callers: Option<&CallersHeaders>,
) -> Option<&'a HeaderName> {
    headers_that_follow(headers)
        .find(|name| !callers.is_some_and(|CallersHeaders(own)| own.contains(name)))
}

/// The headers with a secret that reqwest keeps when it follows a redirect to another origin.
fn headers_that_follow(headers: &HeaderMap) -> impl Iterator<Item = &HeaderName> {
    let with_secret = headers
        .iter()
        .filter(|(name, value)| value.is_sensitive() || *name == "dpop");
    with_secret
        .map(|(name, _)| name)
        .filter(|name| !is_removed(name))
}

/// Whether reqwest removes a header when it follows a redirect to another origin.
fn is_removed(name: &HeaderName) -> bool {
    [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION, WWW_AUTHENTICATE].contains(name)
        || *name == "cookie2"
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(sensitive: &[&'static str], others: &[&'static str]) -> HeaderMap {
        let mut value = HeaderValue::from_static("secret");
        let mut headers = HeaderMap::new();
        for name in others {
            headers.append(*name, value.clone());
        }
        value.set_sensitive(true);
        for name in sensitive {
            headers.append(*name, value.clone());
        }
        headers
    }

    #[test]
    fn headers_that_reqwest_removes_are_not_exposed() {
        let removed = ["authorization", "cookie", "cookie2", "proxy-authorization"];
        assert_eq!(exposed(&headers(&removed, &["accept"]), None), None);
    }

    #[test]
    fn token_in_another_header_and_dpop_proof_are_exposed() {
        for (name, headers) in [
            ("x-token", headers(&["authorization", "x-token"], &[])),
            ("dpop", headers(&["authorization"], &["dpop"])),
        ] {
            assert_eq!(exposed(&headers, None).unwrap(), name);
        }
    }

    #[test]
    fn secret_header_of_the_caller_is_not_exposed() {
        let callers = CallersHeaders::of(&headers(&["x-api-key", "authorization"], &["accept"]));
        let sent = headers(&["x-api-key", "authorization"], &["accept"]);
        assert_eq!(exposed(&sent, callers.as_ref()), None);
        let sent = headers(&["x-api-key", "x-token"], &["accept"]);
        assert_eq!(exposed(&sent, callers.as_ref()).unwrap(), "x-token");
        assert!(CallersHeaders::of(&headers(&["authorization"], &["accept"])).is_none());
    }
}
