use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};

use crate::{
    Error,
    scheme::{Scheme, TokenHeader},
};

/// An access token, as returned by a token service.
///
/// Holds the ready-made value of the header that carries the token, marked sensitive, so that no
/// request has to format it. Cloning copies no text. The text is wiped when its last clone is
/// dropped; HTTP clients make a copy when they write the request.
///
/// `Debug` shows neither the token nor the header value. Of the scope, `Debug` only shows whether
/// there is one.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_client_credentials::AccessToken;
///
/// let token = AccessToken::new("AQXdSP_W41...")?.with_lifetime(Duration::from_secs(1800));
///
/// assert_eq!(token.header_name(), "authorization");
/// assert_eq!(token.header_value(), "Bearer AQXdSP_W41...");
/// assert!(!format!("{token:?}").contains("AQXdSP"));
/// # Ok::<(), tower_client_credentials::Error>(())
/// ```
#[derive(Clone)]
pub struct AccessToken {
    scheme: Scheme,
    lifetime: Option<Duration>,
    scope: Option<Arc<str>>,
}

impl AccessToken {
    /// Creates a Bearer token (RFC 6750) from the text that a server issued.
    ///
    /// # Errors
    ///
    /// Fails if `token` is empty or contains anything but visible ASCII characters, because such
    /// text can't be sent in a header. A trailing line break usually comes from the file that the
    /// token was read from.
    pub fn new(token: impl AsRef<str>) -> Result<Self, Error> {
        Ok(Self {
            scheme: Scheme::Header(TokenHeader::bearer(token.as_ref())?),
            lifetime: None,
            scope: None,
        })
    }

    /// Sets the header that carries the token, and the word in front of the token.
    ///
    /// By default, a token is sent as `Authorization: Bearer {token}`. One space separates `prefix`
    /// from the token. With an empty `prefix`, the value is the token alone.
    ///
    /// The token brings its header along, so the layer needs no option for it. Requests that already
    /// have this header are sent untouched; their other headers, `Authorization` included, are left
    /// alone. Before the first token arrives, the layer can't know the header: requests that have an
    /// `Authorization` header of their own are then sent untouched.
    ///
    /// # Examples
    ///
    /// ```
    /// use http::{HeaderName, header::AUTHORIZATION};
    /// use tower_client_credentials::AccessToken;
    ///
    /// let token = AccessToken::new("eb243592-faa2")?.with_header(AUTHORIZATION, "GenieKey")?;
    /// assert_eq!(token.header_value(), "GenieKey eb243592-faa2");
    ///
    /// let name = HeaderName::from_static("x-amz-access-token");
    /// let token = AccessToken::new("Atza|IQEBLjAsAhRmHjNgHpi0U-Dme37rR6CuUpSR")?.with_header(name, "")?;
    /// assert_eq!(token.header_value(), "Atza|IQEBLjAsAhRmHjNgHpi0U-Dme37rR6CuUpSR");
    /// # Ok::<(), tower_client_credentials::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Fails if `prefix` contains anything but visible ASCII characters, or if `name` is a header
    /// that frames the message, such as `Host` or `Content-Length`.
    pub fn with_header(mut self, name: HeaderName, prefix: impl AsRef<str>) -> Result<Self, Error> {
        let header = self.scheme.token_header().renamed(name, prefix.as_ref())?;
        self.scheme = Scheme::Header(header);
        Ok(self)
    }

    /// Sets how long the token lives, counted from the moment it was requested.
    ///
    /// A token with a lifetime of zero serves the calls that waited for it and no others. Without a
    /// lifetime, the cache assumes a [default](crate::TokenCacheBuilder::default_lifetime).
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(lifetime);
        self
    }

    /// Sets the scope that the server says it granted.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_client_credentials::AccessToken;
    ///
    /// let token = AccessToken::new("token-1")?.with_scope("orders.read");
    /// assert_eq!(token.scope(), Some("orders.read"));
    /// # Ok::<(), tower_client_credentials::Error>(())
    /// ```
    #[must_use]
    pub fn with_scope(mut self, scope: impl Into<Arc<str>>) -> Self {
        self.scope = Some(scope.into());
        self
    }

    /// The token itself. It is a secret: whoever has it can use it.
    pub fn expose(&self) -> &str {
        self.scheme.token_header().token()
    }

    /// The name of the header that carries the token: `authorization` unless another one was set.
    pub fn header_name(&self) -> &HeaderName {
        self.scheme.token_header().name()
    }

    /// The value of the header that carries the token, marked sensitive.
    pub fn header_value(&self) -> &HeaderValue {
        self.scheme.token_header().value()
    }

    /// The lifetime that the server stated, if it stated one.
    pub fn lifetime(&self) -> Option<Duration> {
        self.lifetime
    }

    /// The scope that the server granted, if it named one.
    ///
    /// The text is the server's own: usually scopes separated by spaces. A reply that lists scopes
    /// in an array is joined with spaces.
    pub fn scope(&self) -> Option<&str> {
        self.scope.as_deref()
    }

    pub(crate) fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    #[cfg(test)]
    pub(crate) fn with_scheme(self, scheme: Scheme) -> Self {
        Self { scheme, ..self }
    }

    /// Whether both tokens would be sent as the same header.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.scheme.token_header() == other.scheme.token_header()
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessToken")
            .field("header", self.header_name())
            .field("prefix", &self.scheme.token_header().prefix())
            .field("lifetime", &self.lifetime)
            .field("has_scope", &self.scope.is_some())
            .finish_non_exhaustive()
    }
}
