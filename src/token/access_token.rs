use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{
    HeaderName, HeaderValue,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
};

use crate::{
    Error,
    clock::{Clock, Moment},
    scheme::{Scheme, TokenHeader},
    secret::wiped_on_drop,
};

/// An access token, as returned by a token service.
///
/// Contains the complete value of the header that carries the token, so requests don't have to
/// format it. The value is marked sensitive. Clones share the text of the token, which is wiped
/// when the last clone is dropped. HTTP clients make their own copies when they write requests.
///
/// `Debug` doesn't show the token, the header value or the scope, but only whether there is a
/// scope.
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
    /// By the wall clock. Set by the user, or by the cache from the lifetime.
    expires_at: Option<SystemTime>,
    scope: Option<Arc<GrantedScope>>,
}

/// The scope that a server granted.
struct GrantedScope {
    granted: Arc<str>,
    /// What was asked for and not granted.
    missing: Vec<String>,
}

impl AccessToken {
    /// Creates a Bearer token (RFC 6750) from the text that a server issued.
    ///
    /// # Errors
    ///
    /// Fails if `token` is empty or contains anything but visible ASCII characters, because such
    /// text can't be sent in a header. A common cause is the trailing line break of a file.
    pub fn new(token: impl AsRef<str>) -> Result<Self, Error> {
        Ok(Self {
            scheme: Scheme::Header(token_header(AUTHORIZATION, "Bearer", token.as_ref())?),
            lifetime: None,
            expires_at: None,
            scope: None,
        })
    }

    /// Sets the header that carries the token, and the word in front of the token.
    ///
    /// By default, a token is sent as `Authorization: Bearer {token}`. One space separates `prefix`
    /// from the token. With an empty `prefix`, the value is the token alone.
    ///
    /// The layer doesn't need an option for this header. Requests that already have it are sent
    /// unchanged. Other headers, including `Authorization`, aren't changed. Before the first token
    /// arrives, the layer doesn't know the header yet. Until then, requests that already have an
    /// `Authorization` header are sent unchanged.
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
        if FRAMING.contains(&name) {
            let message = format!("token header must not be {name}, which frames the message");
            return Err(Error::configuration(message));
        }
        let prefix = prefix.as_ref();
        if !prefix.is_empty() {
            check_sendable("prefix of the token header", prefix)?;
        }
        self.scheme = Scheme::Header(token_header(name, prefix, self.expose())?);
        Ok(self)
    }

    /// Sets how long the token lives, counted from the moment when it was requested.
    ///
    /// A token with a lifetime of zero serves only the calls that waited for it. If no lifetime is
    /// set, the cache uses its [default](crate::TokenCacheBuilder::default_lifetime).
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(lifetime);
        self.expires_at = None;
        self
    }

    /// Sets when the token expires, by the wall clock.
    ///
    /// Use this method instead of [`with_lifetime`](Self::with_lifetime) for a token that was kept
    /// somewhere, for example by an earlier process. The later call of the two counts.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use tower_client_credentials::AccessToken;
    ///
    /// let expires_at = SystemTime::now() + Duration::from_secs(600);
    /// let token = AccessToken::new("token-1")?.with_expires_at(expires_at);
    ///
    /// assert_eq!(token.expires_at(), Some(expires_at));
    /// # Ok::<(), tower_client_credentials::Error>(())
    /// ```
    #[must_use]
    pub fn with_expires_at(mut self, expires_at: SystemTime) -> Self {
        self.expires_at = Some(expires_at);
        self.lifetime = None;
        self
    }

    /// Sets the scope that the server granted.
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
        self.scope = Some(Arc::new(GrantedScope {
            granted: scope.into(),
            missing: Vec::new(),
        }));
        self
    }

    /// Returns the token, which is a secret: anyone who has it can use it.
    pub fn expose(&self) -> &str {
        let header = self.scheme.token_header();
        // One space separates the prefix from the token.
        let start = match header.prefix().len() {
            0 => 0,
            len => len + 1,
        };
        std::str::from_utf8(&header.value.as_bytes()[start..])
            .expect("a token is made of ASCII characters only")
    }

    /// Returns the name of the header that carries the token, `authorization` by default.
    pub fn header_name(&self) -> &HeaderName {
        &self.scheme.token_header().name
    }

    /// Returns the value of the header that carries the token. The value is marked sensitive.
    pub fn header_value(&self) -> &HeaderValue {
        &self.scheme.token_header().value
    }

    /// Returns the lifetime that the server stated, if any.
    pub fn lifetime(&self) -> Option<Duration> {
        self.lifetime
    }

    /// Returns when the token expires, by the wall clock, if that is known.
    ///
    /// A token from a [`TokenCache`](crate::TokenCache) knows it if the server stated a lifetime. The
    /// time is the stated one, without the [margin](crate::TokenCacheBuilder::expiry_margin) that the
    /// cache subtracts.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }

    /// Returns how much of the lifetime is left, by the system's wall clock, if the expiry is known.
    ///
    /// Returns zero for a token that has expired.
    pub fn remaining(&self) -> Option<Duration> {
        let now = Clock::default().now().wall;
        let left = self.expires_at?.duration_since(now);
        Some(left.unwrap_or_default())
    }

    /// Returns the token as received after a request that was sent at `requested_at`, and its lifetime.
    pub(super) fn received(mut self, requested_at: &Moment) -> (Self, Option<Duration>) {
        let left = |at: SystemTime| at.duration_since(requested_at.wall).unwrap_or_default();
        let lifetime = self.lifetime.or(self.expires_at.map(left));
        if let Some(lifetime) = self.lifetime {
            self.expires_at = requested_at.wall.checked_add(lifetime);
        }
        (self, lifetime)
    }

    /// Returns the scope that the server granted, if it stated one.
    ///
    /// This is the server's text, usually scopes separated by spaces. If the server sends an array,
    /// its elements are joined with spaces.
    pub fn scope(&self) -> Option<&str> {
        self.scope.as_ref().map(|scope| &*scope.granted)
    }

    /// Returns the requested scopes that the server didn't grant.
    ///
    /// A [`TokenEndpoint`](crate::TokenEndpoint) sets them if the reply states a scope. If it doesn't,
    /// the server granted all requested scopes (RFC 6749 §5.1). Tokens of your own token services
    /// have no missing scopes.
    ///
    /// # Examples
    ///
    /// ```
    /// # use bytes::Bytes;
    /// # use http_body_util::Full;
    /// # use tower::{BoxError, ServiceExt, service_fn};
    /// # use tower_client_credentials::{ClientAuth, TokenEndpoint, TokenRequest};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// # let http = service_fn(|_: http::Request<Full<Bytes>>| async {
    /// #     let reply = r#"{"access_token":"token-1","scope":"orders.read"}"#;
    /// #     Ok::<_, BoxError>(http::Response::new(reply.to_owned()))
    /// # });
    /// # let auth = ClientAuth::client_secret_basic("my-client", "s3cret");
    /// let tokens = TokenEndpoint::new(http, "https://auth.example/token", auth)?
    ///     .scope("orders.read orders.write");
    ///
    /// // The server grants `orders.read` only.
    /// let token = tokens.oneshot(TokenRequest::default()).await?;
    ///
    /// assert_eq!(token.missing_scopes(), ["orders.write"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn missing_scopes(&self) -> &[String] {
        self.scope.as_ref().map_or(&[], |scope| &scope.missing)
    }

    /// Sets which scopes the server has not granted, if it stated a scope.
    pub(crate) fn with_missing_scopes(mut self, missing: Vec<String>) -> Self {
        self.scope = self.scope.map(|scope| {
            let granted = Arc::clone(&scope.granted);
            Arc::new(GrantedScope { granted, missing })
        });
        self
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

/// Headers that say where a message goes and how long it is.
const FRAMING: [HeaderName; 7] = [
    CONNECTION,
    CONTENT_LENGTH,
    HOST,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The header `{name}: {prefix} {token}`. The prefix can be sent.
fn token_header(name: HeaderName, prefix: &str, token: &str) -> Result<TokenHeader, Error> {
    check_sendable("access token", token)?;
    let space = if prefix.is_empty() { "" } else { " " };
    let text = wiped_on_drop([prefix, space, token].concat());
    let mut value = HeaderValue::from_maybe_shared(text)
        .expect("visible ASCII characters and a space are a valid header value");
    value.set_sensitive(true);
    Ok(TokenHeader {
        name,
        value,
        prefix_len: prefix.len(),
    })
}

/// Refuses text that a header can't carry as one word.
fn check_sendable(what: &'static str, text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::unsendable(what, "is empty"));
    }
    match text.bytes().position(|byte| !byte.is_ascii_graphic()) {
        None => Ok(()),
        Some(at) if text[at..].trim().is_empty() => Err(Error::unsendable(
            what,
            "ends with white space or a line break; trim text that is read from a file",
        )),
        Some(_) => Err(Error::unsendable(
            what,
            "contains a character that a header cannot carry",
        )),
    }
}
