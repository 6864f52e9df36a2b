use std::{error::Error as StdError, fmt, time::Duration};

use http::HeaderName;
use tower_client_credentials::BoxError;

/// An error from sending a request with an access token.
///
/// `Display` and [`source`](StdError::source) are those of the error that caused it.
///
/// # Examples
///
/// ```no_run
/// use tower_client_credentials_reqwest::ApiClient;
///
/// # async fn run(api: &ApiClient) {
/// if let Err(error) = api.get("https://api.example.com/orders").send().await {
///     if error.is_timeout() {
///         eprintln!("the API or the token endpoint is slow");
///     } else if let Some(error) = error.token_error() {
///         eprintln!("no access token: {error}");
///     } else if let Some(error) = error.reqwest_error() {
///         eprintln!("no response: {error}");
///     }
/// }
/// # }
/// ```
pub struct Error {
    kind: Kind,
}

enum Kind {
    /// reqwest could not build or send the request.
    Reqwest(reqwest::Error),
    /// There is no token, or it can't be added to the request.
    Token(tower_client_credentials::Error),
    /// The total timeout of the request elapsed before its response arrived.
    TimedOut(Duration),
    /// A redirect could take the token in this header to another origin.
    RedirectsMayExpose(HeaderName),
    /// Neither reqwest nor the token cache failed, but another middleware.
    Other(BoxError),
}

impl Error {
    /// Returns whether a timeout elapsed: that of the request, one of reqwest's, or the deadline of a
    /// token request.
    ///
    /// If that of the request elapses, [`token_error`](Self::token_error) and
    /// [`reqwest_error`](Self::reqwest_error) return `None`, whatever the call was waiting for.
    pub fn is_timeout(&self) -> bool {
        match &self.kind {
            Kind::Reqwest(error) => error.is_timeout(),
            Kind::Token(error) => error.is_timeout(),
            Kind::TimedOut(_) => true,
            Kind::RedirectsMayExpose(_) | Kind::Other(_) => false,
        }
    }

    /// Returns whether reqwest couldn't connect to the API.
    pub fn is_connect(&self) -> bool {
        self.reqwest_error().is_some_and(reqwest::Error::is_connect)
    }

    /// Returns whether the request wasn't sent because the client may follow redirects to other
    /// origins, and reqwest wouldn't remove the token there.
    ///
    /// Build the client with [`ClientBuilderExt`](crate::ClientBuilderExt) or
    /// [`ReqwestService::within_origin`](crate::ReqwestService::within_origin) instead.
    pub fn is_unsafe_redirect(&self) -> bool {
        matches!(self.kind, Kind::RedirectsMayExpose(_))
    }

    /// Returns the error of the token request, if there is no token to send the request with.
    pub fn token_error(&self) -> Option<&tower_client_credentials::Error> {
        match &self.kind {
            Kind::Token(error) => Some(error),
            _ => None,
        }
    }

    /// Returns reqwest's error, if reqwest couldn't build or send the request.
    pub fn reqwest_error(&self) -> Option<&reqwest::Error> {
        match &self.kind {
            Kind::Reqwest(error) => Some(error),
            _ => None,
        }
    }

    pub(crate) fn timed_out(timeout: Duration) -> Self {
        Kind::TimedOut(timeout).into()
    }

    pub(crate) fn redirects_may_expose(header: HeaderName) -> Self {
        Kind::RedirectsMayExpose(header).into()
    }

    /// Finds the error in that of a stack.
    pub(crate) fn from_boxed(error: BoxError) -> Self {
        error.downcast::<Self>().map_or_else(
            |error| {
                error.downcast().map_or_else(
                    |error| Kind::Other(error).into(),
                    |error| Kind::Token(*error).into(),
                )
            },
            |error| *error,
        )
    }

    /// Takes an error of a middleware that was added after ours.
    #[cfg(feature = "middleware")]
    pub(crate) fn from_middleware(error: reqwest_middleware::Error) -> Self {
        match error {
            reqwest_middleware::Error::Reqwest(error) => error.into(),
            error => Kind::Other(error.into()).into(),
        }
    }

    /// Converts the error into that of reqwest-middleware, with reqwest's own error as it is.
    #[cfg(feature = "middleware")]
    pub(crate) fn into_middleware_error(self) -> reqwest_middleware::Error {
        match self.kind {
            Kind::Reqwest(error) => reqwest_middleware::Error::Reqwest(error),
            Kind::Other(error) => match error.downcast() {
                Ok(error) => *error,
                Err(error) => reqwest_middleware::Error::middleware(Self::from(Kind::Other(error))),
            },
            kind => reqwest_middleware::Error::middleware(Self::from(kind)),
        }
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self { kind }
    }
}

impl From<reqwest::Error> for Error {
    fn from(error: reqwest::Error) -> Self {
        Kind::Reqwest(error).into()
    }
}

impl From<tower_client_credentials::Error> for Error {
    fn from(error: tower_client_credentials::Error) -> Self {
        Kind::Token(error).into()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Reqwest(error) => error.fmt(f),
            Kind::Token(error) => error.fmt(f),
            Kind::TimedOut(timeout) => {
                write!(
                    f,
                    "request and its access token took longer than {timeout:?}"
                )
            }
            Kind::RedirectsMayExpose(header) => write!(
                f,
                "request was not sent because a redirect could take its header {header} to another \
                 origin; build the client with `ClientBuilderExt::with_client_credentials` or \
                 `ReqwestService::within_origin`"
            ),
            Kind::Other(error) => error.fmt(f),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Reqwest(error) => error.fmt(f),
            Kind::Token(error) => error.fmt(f),
            Kind::TimedOut(timeout) => f.debug_tuple("TimedOut").field(timeout).finish(),
            Kind::RedirectsMayExpose(header) => {
                f.debug_tuple("RedirectsMayExpose").field(header).finish()
            }
            Kind::Other(error) => error.fmt(f),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.kind {
            Kind::Reqwest(error) => error.source(),
            Kind::Token(error) => error.source(),
            Kind::TimedOut(_) | Kind::RedirectsMayExpose(_) => None,
            Kind::Other(error) => error.source(),
        }
    }
}
