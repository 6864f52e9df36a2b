//! The URL of a token endpoint.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use http::{Uri, uri::Scheme};
use tower::BoxError;

use crate::{
    Error, TokenRequest,
    error::Kind,
    host::{is_loopback, without_trailing_dot},
};

/// Where the URL of a token request comes from.
#[derive(Clone)]
pub(super) enum UrlSource {
    Fixed(TokenUrl),
    /// What the function returns for this token request.
    FromFn(UrlFn),
}

type UrlFn = Arc<
    dyn Fn(TokenRequest) -> Pin<Box<dyn Future<Output = Result<TokenUrl, Error>> + Send>>
        + Send
        + Sync,
>;

impl UrlSource {
    pub(super) fn from_fn<F, Fut, U, E>(url: F) -> Self
    where
        F: Fn(TokenRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<U, E>> + Send + 'static,
        U: TryInto<Uri, Error: Into<BoxError>> + fmt::Display,
        E: Into<BoxError>,
    {
        Self::FromFn(Arc::new(move |request| {
            let url = url(request);
            Box::pin(async {
                match url.await {
                    Ok(url) => TokenUrl::new(url).map_err(TokenUrl::unusable),
                    Err(error) => Err(function_failed(error.into())),
                }
            })
        }))
    }

    /// Returns the URL of one token request.
    pub(super) async fn url(&self, request: &TokenRequest) -> Result<TokenUrl, Error> {
        match self {
            Self::Fixed(url) => Ok(url.clone()),
            Self::FromFn(url) => url(request.clone()).await,
        }
    }
}

impl fmt::Debug for UrlSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(url) => url.fmt(f),
            Self::FromFn(_) => f.write_str("with_url_fn"),
        }
    }
}

/// Keeps what the function's error says about retries, if it is this crate's.
fn function_failed(error: BoxError) -> Error {
    let ours = error.downcast_ref::<Error>();
    let transient = ours.is_none_or(Error::is_transient);
    let retry_after = ours.and_then(Error::retry_after);
    Error::with_source(Kind::TokenUrl { transient }, error).with_retry_after(retry_after)
}

/// An absolute http or https URL without user information or fragment.
///
/// `Debug` shows scheme, host, port and path, but no query, which may contain a key.
#[derive(Clone)]
pub(super) struct TokenUrl(Uri);

impl TokenUrl {
    /// Parses a token URL.
    ///
    /// Looks for a fragment in the text, because [`Uri`] drops it.
    pub(super) fn new(
        url: impl TryInto<Uri, Error: Into<BoxError>> + fmt::Display,
    ) -> Result<Self, Error> {
        if url.to_string().contains('#') {
            return Err(refused("has a fragment; remove it"));
        }
        let uri = url.try_into().map_err(|error| {
            Error::with_source(
                Kind::Configuration("token URL is not a valid URL".into()),
                error,
            )
        })?;

        let secure = uri.scheme() == Some(&Scheme::HTTPS);
        if !secure && uri.scheme() != Some(&Scheme::HTTP) {
            return Err(refused(
                "must be absolute, such as https://auth.example/oauth/token",
            ));
        }
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let host = uri.host().unwrap_or("");
        if authority.contains('@') {
            return Err(refused(
                "contains user information; pass the credentials to ClientAuth instead",
            ));
        }
        if host.is_empty() {
            return Err(refused("has no host"));
        }
        // HTTP clients use the scheme's port if they cannot parse this one.
        if authority.len() > host.len() && uri.port_u16().is_none() {
            return Err(refused("has an invalid port"));
        }
        Ok(Self(uri))
    }

    /// Wraps the reason why a URL that a function returned can't be used. The same URL never can.
    pub(super) fn unusable(reason: Error) -> Error {
        Error::with_source(Kind::TokenUrl { transient: false }, reason)
    }

    pub(super) fn uri(&self) -> &Uri {
        &self.0
    }

    pub(super) fn host(&self) -> &str {
        self.0.host().expect("a token URL has a host")
    }

    /// Returns scheme, host in lower case and port.
    pub(super) fn origin(&self) -> (bool, String, u16) {
        let is_https = self.0.scheme() == Some(&Scheme::HTTPS);
        let port = self.0.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let host = without_trailing_dot(self.host()).to_ascii_lowercase();
        (is_https, host, port)
    }

    /// Returns whether others may read a secret that is sent to this URL.
    pub(super) fn exposes_secrets(&self) -> bool {
        self.0.scheme() != Some(&Scheme::HTTPS) && !is_loopback(self.host())
    }

    /// Resolves a `Location` that is a URL or an absolute path.
    ///
    /// Drops its query and path parameters, which may contain the key of a session.
    pub(super) fn redirected_to(&self, location: &str) -> Option<Self> {
        let location = location.split(['?', '#', ';']).next()?.trim();
        let (scheme, authority) = (self.0.scheme_str()?, self.0.authority()?);
        let target = if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            format!("{scheme}://{authority}{location}")
        } else {
            location.to_owned()
        };
        let target = Self(Uri::try_from(target).ok()?);
        shown(&target.0).map(|_| target)
    }

    /// Returns whether credentials for the other URL may be sent to this one, too.
    pub(super) fn is_https_on_the_host_of(&self, other: &Self) -> bool {
        self.0.scheme() == Some(&Scheme::HTTPS) && self.host().eq_ignore_ascii_case(other.host())
    }
}

impl fmt::Debug for TokenUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.0).unwrap_or_default())
    }
}

fn refused(fact: &'static str) -> Error {
    Error::configuration(format!("token URL {fact}"))
}

/// Formats a URL without user information and query; `None` if it has no scheme or no host.
fn shown(uri: &Uri) -> Option<String> {
    let (scheme, host, path) = (uri.scheme_str()?, uri.host()?, uri.path());
    Some(match uri.port() {
        Some(port) => format!("{scheme}://{host}:{port}{path}"),
        None => format!("{scheme}://{host}{path}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn location_is_resolved_without_its_secret_parts() {
        let url = TokenUrl::new("https://old.example:8443/a/token?key=1").unwrap();

        for (location, moved_to) in [
            (
                "https://u:p@new.example/t?q=1#f",
                Some("https://new.example/t"),
            ),
            ("http://new.example:81/t", Some("http://new.example:81/t")),
            ("//new.example/t", Some("https://new.example/t")),
            ("/t?q=1", Some("https://old.example:8443/t")),
            (
                "http://login.example/in;jsessionid=1?x",
                Some("http://login.example/in"),
            ),
            ("t", None),
            ("../t", None),
            ("?q=1", None),
            ("token:v2", None),
            ("mailto:somebody", None),
            ("https://", None),
            ("a b", None),
        ] {
            let target = url.redirected_to(location);
            let shown = target.map(|target| format!("{target:?}"));
            assert_eq!(shown.as_deref(), moved_to, "{location}");
        }
    }
}
