use std::{fmt, ops::Range, sync::Arc, time::Duration};

use http::HeaderValue;

use crate::{Error, secret::wiped_on_drop};

/// An access token, as a token service answers with it.
///
/// Holds the ready-made value of the `Authorization` header, marked sensitive, so that nothing has
/// to be formatted for a request. Cloning copies no text, and the text is wiped when its last clone is
/// dropped; an HTTP client copies it when it writes the request. `Debug` shows neither the token nor the
/// header, and of the scope only whether there is one.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_client_credentials::AccessToken;
///
/// let token = AccessToken::new("AQXdSP_W41...")?.with_lifetime(Duration::from_secs(1800));
///
/// assert_eq!(token.token_type(), "Bearer");
/// assert_eq!(token.header_value(), "Bearer AQXdSP_W41...");
/// assert!(!format!("{token:?}").contains("AQXdSP"));
/// # Ok::<(), tower_client_credentials::Error>(())
/// ```
#[derive(Clone)]
pub struct AccessToken {
    // "Bearer AQXd...": the token type, one space, the token.
    header_value: HeaderValue,
    token_type_len: usize,
    lifetime: Option<Duration>,
    scope: Option<Arc<str>>,
}

impl AccessToken {
    /// Makes a Bearer token (RFC 6750) of the text that a server issued.
    ///
    /// # Errors
    ///
    /// Fails if `token` is empty or holds anything but visible ASCII characters: such a text cannot
    /// be sent in a header. A line break at its end usually comes from the file it was read from.
    pub fn new(token: impl AsRef<str>) -> Result<Self, Error> {
        Self::with_type("Bearer", token)
    }

    /// Makes a token of another type: `token_type` is what stands before it in the `Authorization`
    /// header.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_client_credentials::AccessToken;
    ///
    /// let token = AccessToken::with_type("GenieKey", "eb243592-faa2")?;
    /// assert_eq!(token.header_value(), "GenieKey eb243592-faa2");
    /// # Ok::<(), tower_client_credentials::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Fails as [`new`](Self::new) does, for either text.
    pub fn with_type(token_type: impl AsRef<str>, token: impl AsRef<str>) -> Result<Self, Error> {
        let (token_type, token) = (token_type.as_ref(), token.as_ref());
        sendable("token type", token_type)?;
        sendable("access token", token)?;

        Ok(Self {
            header_value: header_value(token_type, token),
            token_type_len: token_type.len(),
            lifetime: None,
            scope: None,
        })
    }

    /// Sets how long the token lives, counted from when it was asked for.
    ///
    /// With a lifetime of zero it serves the calls that waited for it and is then gone. Without this,
    /// the cache assumes [a lifetime](crate::TokenCacheBuilder::default_lifetime).
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

    /// The same, with a text of its own.
    pub(super) fn copied(&self) -> Self {
        Self {
            header_value: header_value(self.token_type(), self.expose()),
            ..self.clone()
        }
    }

    /// The token itself. It is a secret: whoever has it can use it.
    pub fn expose(&self) -> &str {
        self.text(self.token_type_len + 1..self.header_value.len())
    }

    /// The token type, as it stands in the header: `Bearer` unless another was given.
    pub fn token_type(&self) -> &str {
        self.text(0..self.token_type_len)
    }

    /// The value of the `Authorization` header, marked sensitive.
    pub fn header_value(&self) -> &HeaderValue {
        &self.header_value
    }

    /// How long the server said that the token lives, if it said so.
    pub fn lifetime(&self) -> Option<Duration> {
        self.lifetime
    }

    /// The scope that the server said it granted, if it said so: the text as it came, mostly
    /// separated by spaces; an array is joined with them.
    pub fn scope(&self) -> Option<&str> {
        self.scope.as_deref()
    }

    /// Whether both would be sent as the same header.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.header_value == other.header_value
    }

    fn text(&self, range: Range<usize>) -> &str {
        std::str::from_utf8(&self.header_value.as_bytes()[range])
            .expect("a token is made of ASCII characters only")
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessToken")
            .field("token_type", &self.token_type())
            .field("lifetime", &self.lifetime)
            .field("has_scope", &self.scope.is_some())
            .finish_non_exhaustive()
    }
}

/// The value of the `Authorization` header; both texts are sendable.
fn header_value(token_type: &str, token: &str) -> HeaderValue {
    let text = wiped_on_drop([token_type, " ", token].concat());
    let mut header_value = HeaderValue::from_maybe_shared(text)
        .expect("visible ASCII characters and a space are a valid header value");
    header_value.set_sensitive(true);
    header_value
}

/// Refuses a text that a header cannot carry as one word.
fn sendable(what: &'static str, text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::unsendable(what, "is empty"));
    }
    match text.bytes().position(|byte| !byte.is_ascii_graphic()) {
        None => Ok(()),
        Some(at) if text[at..].trim().is_empty() => Err(Error::unsendable(
            what,
            "ends with white space or a line break; trim what was read from a file",
        )),
        Some(_) => Err(Error::unsendable(
            what,
            "holds a character that a header cannot carry",
        )),
    }
}
