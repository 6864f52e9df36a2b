use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use http::StatusCode;
use tower::BoxError;

/// An error from getting an access token.
///
/// Cheap to clone, because every call that waited for the same token gets the same error. The layer
/// hands it out as a [`BoxError`]; find it there with `downcast_ref::<Error>()`.
///
/// `Display` says which party failed, how, and what to do about it where that is known, at this level
/// alone. The cause, such as a failed DNS look-up, is its [`source`](StdError::source): log the whole
/// chain. Neither `Display` nor `Debug` shows a secret, a token or a response body. A source is the
/// HTTP client's own error, or that of a function or token service of yours, with its own text,
/// which nobody filters; `Debug` only says whether there is one.
///
/// # Examples
///
/// ```
/// use tower::BoxError;
/// use tower_client_credentials::{AccessToken, Error};
///
/// let error: BoxError = AccessToken::new("ends with a line break\n").unwrap_err().into();
///
/// let error = error.downcast_ref::<Error>().expect("it is one of ours");
/// assert!(error.is_invalid_token());
/// assert!(!error.is_transient());
/// ```
///
/// What a token endpoint said:
///
/// ```
/// # use bytes::Bytes;
/// # use http_body_util::Full;
/// # use tower::{BoxError, ServiceExt, service_fn};
/// # use tower_client_credentials::{TokenRequest, provider};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// # let http = service_fn(|_: http::Request<Full<Bytes>>| async {
/// #     let reply = r#"{
/// #         "error": "invalid_client_id",
/// #         "error_description": "Client authentication failed"
/// #     }"#;
/// #     Ok::<_, BoxError>(http::Response::builder().status(401).body(reply.to_owned())?)
/// # });
/// # let tokens = provider::linkedin(http, "77tt5z", "wrong")?;
/// let error = tokens.oneshot(TokenRequest::default()).await.unwrap_err();
///
/// assert!(error.is_refused() && !error.is_transient());
/// assert_eq!(error.status(), Some(http::StatusCode::UNAUTHORIZED));
/// assert_eq!(error.code(), Some("invalid_client_id"));
/// assert_eq!(error.description(), Some("Client authentication failed"));
/// assert!(error.hint().is_some_and(|hint| hint.contains("client id and secret")));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Error {
    inner: Arc<Inner>,
    retry_after: Option<Duration>,
    waited: Option<Duration>,
}

struct Inner {
    kind: Kind,
    source: Option<BoxError>,
}

/// One variant per thing that a caller would do differently.
#[derive(Debug)]
pub(crate) enum Kind {
    /// A setting that can never work.
    Configuration(String),
    /// A token that no header can carry: what it is, and what is wrong with it.
    InvalidToken(&'static str, &'static str),
    /// The token endpoint answered with an error.
    Refused(Refusal),
    /// The token endpoint answered with something that is no token reply.
    InvalidReply(StatusCode, String),
    /// The HTTP client could not bring the reply.
    Transport,
    /// A function of the user's for credentials or for an assertion failed.
    ClientAuth { transient: bool },
    /// A token service of the user's failed.
    TokenService { transient: bool },
    /// The token service panicked.
    Panicked,
    /// No answer within a flight's deadline.
    TimedOut(Duration),
    /// There is no runtime to ask for a token on.
    NoRuntime,
    /// The runtimes that a token was asked for on went away, each time.
    RuntimeLost,
    /// A request has as many headers as it can hold.
    TooManyHeaders,
    /// The rejected token was renewed so lately that it is not renewed again. Callers are told so by
    /// [`NotReplayed::CoolingDown`](crate::NotReplayed::CoolingDown) instead.
    CoolingDown,
    /// No token that was waited for was usable any more when the inner service was ready to send.
    Expired,
}

/// An error reply of a token endpoint (RFC 6749 §5.2).
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) uri: Option<String>,
    /// What the user has to do, where the provider documents it.
    pub(crate) hint: Option<&'static str>,
}

impl Error {
    /// Wraps an error of a token service that asking again would not mend.
    ///
    /// Any other error of a token service counts as transient: it is retried. So does this one when
    /// it comes wrapped: it has to be the service's error itself, boxed at most, not the source of
    /// another.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_client_credentials::Error;
    ///
    /// let error = Error::permanent("the tenant is disabled");
    /// assert!(error.is_token_service() && !error.is_transient());
    /// ```
    pub fn permanent(source: impl Into<BoxError>) -> Self {
        Self::with_source(Kind::TokenService { transient: false }, source)
    }

    /// Wraps an error of a token service that asking again may mend, and says after how long.
    ///
    /// Any other error of a token service counts as transient as well; this is for servers that say
    /// when they want to be asked again. `None` leaves the pause to the cache.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_client_credentials::Error;
    ///
    /// let error = Error::transient("too many requests", Some(Duration::from_secs(5)));
    /// assert!(error.is_token_service() && error.is_transient());
    /// assert_eq!(error.retry_after(), Some(Duration::from_secs(5)));
    /// ```
    pub fn transient(source: impl Into<BoxError>, retry_after: Option<Duration>) -> Self {
        Self::with_source(Kind::TokenService { transient: true }, source)
            .with_retry_after(retry_after)
    }

    /// Whether a setting can never work: an unusable token URL, an empty client id.
    pub fn is_configuration(&self) -> bool {
        matches!(self.inner.kind, Kind::Configuration(_))
    }

    /// Whether a token that was given to [`AccessToken`](crate::AccessToken) cannot be sent in a
    /// header; one of a token reply is an [invalid reply](Self::is_invalid_reply).
    pub fn is_invalid_token(&self) -> bool {
        matches!(self.inner.kind, Kind::InvalidToken(..))
    }

    /// Whether the token endpoint answered with an error; see [`status`](Self::status),
    /// [`code`](Self::code) and [`advice`](Self::hint).
    pub fn is_refused(&self) -> bool {
        matches!(self.inner.kind, Kind::Refused(_))
    }

    /// Whether the token endpoint answered with something that is not a token reply.
    pub fn is_invalid_reply(&self) -> bool {
        matches!(self.inner.kind, Kind::InvalidReply(..))
    }

    /// Whether the HTTP client failed to bring a reply of the token endpoint.
    pub fn is_transport(&self) -> bool {
        matches!(self.inner.kind, Kind::Transport)
    }

    /// Whether a function that was given to [`ClientAuth`](crate::ClientAuth) failed, or gave
    /// credentials that cannot be sent.
    pub fn is_client_auth(&self) -> bool {
        matches!(self.inner.kind, Kind::ClientAuth { .. })
    }

    /// Whether a token service of yours failed, or any token service panicked.
    pub fn is_token_service(&self) -> bool {
        matches!(self.inner.kind, Kind::TokenService { .. } | Kind::Panicked)
    }

    /// Whether the token service did not answer within the deadline of a flight.
    pub fn is_timeout(&self) -> bool {
        matches!(self.inner.kind, Kind::TimedOut(_))
    }

    /// Whether there was no Tokio runtime to ask for a token on, or it went away each time.
    pub fn is_no_runtime(&self) -> bool {
        matches!(self.inner.kind, Kind::NoRuntime | Kind::RuntimeLost)
    }

    /// Whether the token that a call waited for expired or was rejected before the HTTP client was
    /// ready to send the request, and waiting for another did not help.
    pub fn is_expired(&self) -> bool {
        matches!(self.inner.kind, Kind::Expired)
    }

    /// Whether the request has no room for the token: it holds as many headers as it can.
    pub fn is_too_many_headers(&self) -> bool {
        matches!(self.inner.kind, Kind::TooManyHeaders)
    }

    /// Whether asking again may help.
    ///
    /// Transient are transport errors, timeouts, panics, a runtime that is missing or was lost,
    /// [`is_expired`](Self::is_expired), errors of other token services and of functions given to
    /// [`ClientAuth`](crate::ClientAuth) unless they are [`permanent`](Self::permanent), and the
    /// replies 408, 425, 429, 5xx, `temporarily_unavailable`, `server_error` and `slow_down`. All
    /// else is permanent.
    pub fn is_transient(&self) -> bool {
        match &self.inner.kind {
            Kind::Refused(refusal) => refusal.is_transient(),
            Kind::InvalidReply(status, _) => is_transient_status(*status),
            Kind::TokenService { transient } | Kind::ClientAuth { transient } => *transient,
            Kind::Transport
            | Kind::Panicked
            | Kind::TimedOut(_)
            | Kind::NoRuntime
            | Kind::RuntimeLost
            | Kind::CoolingDown
            | Kind::Expired => true,
            Kind::Configuration(_) | Kind::InvalidToken(..) | Kind::TooManyHeaders => false,
        }
    }

    /// How long the token endpoint is not asked again, counted from when this error was returned.
    ///
    /// From a [`TokenEndpoint`](crate::TokenEndpoint) it is what `Retry-After` said, an hour at
    /// most; from a [`TokenCache`](crate::TokenCache) it is how long the cache goes on answering
    /// with this error.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// How long the call that failed with this error had waited for tokens, if it had.
    ///
    /// Each call has its own; an error that comes from [`TokenCache::token`](crate::TokenCache::token)
    /// has none.
    pub fn waited(&self) -> Option<Duration> {
        self.waited
    }

    /// The status of the token endpoint's reply, if there was one.
    pub fn status(&self) -> Option<StatusCode> {
        match &self.inner.kind {
            Kind::Refused(refusal) => Some(refusal.status),
            Kind::InvalidReply(status, _) => Some(*status),
            _ => None,
        }
    }

    /// The `error` code of the token endpoint's reply, such as `invalid_client` (RFC 6749 §5.2).
    pub fn code(&self) -> Option<&str> {
        self.refusal()?.code.as_deref()
    }

    /// The `error_description` of the token endpoint's reply: a text for people.
    pub fn description(&self) -> Option<&str> {
        self.refusal()?.description.as_deref()
    }

    /// The `error_uri` of the token endpoint's reply: a page about the error.
    pub fn error_uri(&self) -> Option<&str> {
        self.refusal()?.uri.as_deref()
    }

    /// What to do about it, where the provider documents the error; `Display` ends with it.
    pub fn hint(&self) -> Option<&'static str> {
        self.refusal()?.hint
    }

    /// Whether a rejected token was not renewed again.
    pub(crate) fn is_cooling_down(&self) -> bool {
        matches!(self.inner.kind, Kind::CoolingDown)
    }

    /// The kind in one word, for metrics and traces.
    pub(crate) fn type_name(&self) -> &'static str {
        match &self.inner.kind {
            Kind::Configuration(_) => "configuration",
            Kind::InvalidToken(..) => "invalid_token",
            Kind::Refused(_) => "refused",
            Kind::InvalidReply(..) => "invalid_reply",
            Kind::Transport => "transport",
            Kind::ClientAuth { .. } => "client_auth",
            Kind::TokenService { .. } => "token_service",
            Kind::Panicked => "panicked",
            Kind::TimedOut(_) => "timeout",
            Kind::NoRuntime => "no_runtime",
            Kind::RuntimeLost => "runtime_lost",
            Kind::TooManyHeaders => "too_many_headers",
            Kind::CoolingDown => "cooling_down",
            Kind::Expired => "expired",
        }
    }

    pub(crate) fn new(kind: Kind) -> Self {
        Self::from_parts(kind, None)
    }

    pub(crate) fn with_source(kind: Kind, source: impl Into<BoxError>) -> Self {
        Self::from_parts(kind, Some(source.into()))
    }

    pub(crate) fn configuration(message: impl Into<String>) -> Self {
        Self::new(Kind::Configuration(message.into()))
    }

    pub(crate) fn unsendable(what: &'static str, fact: &'static str) -> Self {
        Self::new(Kind::InvalidToken(what, fact))
    }

    pub(crate) fn timed_out(deadline: Duration, last_error: Option<Self>) -> Self {
        Self::from_parts(Kind::TimedOut(deadline), last_error.map(BoxError::from))
    }

    /// What a token service returned: ours as it is, any other as transient.
    pub(crate) fn from_token_service(error: BoxError) -> Self {
        match error.downcast::<Self>() {
            Ok(ours) => *ours,
            Err(other) => Self::transient(other, None),
        }
    }

    pub(crate) fn with_retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }

    /// The error of a call that has waited so long.
    pub(crate) fn after(mut self, waited: Option<Duration>) -> Self {
        self.waited = waited;
        self
    }

    fn from_parts(kind: Kind, source: Option<BoxError>) -> Self {
        Self {
            inner: Arc::new(Inner { kind, source }),
            retry_after: None,
            waited: None,
        }
    }

    fn refusal(&self) -> Option<&Refusal> {
        match &self.inner.kind {
            Kind::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inner.kind {
            Kind::Configuration(message) => f.write_str(message),
            Kind::InvalidToken(what, fact) => write!(f, "the {what} {fact}"),
            Kind::Refused(refusal) => refusal.fmt(f),
            Kind::InvalidReply(status, fact) => {
                write!(f, "token endpoint answered {} with no token: {fact}", status.as_u16())
            }
            Kind::Transport => f.write_str("HTTP client brought no reply of the token endpoint"),
            Kind::ClientAuth { .. } => {
                f.write_str("function for client credentials or an assertion failed")
            }
            Kind::TokenService { .. } => f.write_str("token service failed"),
            Kind::Panicked => f.write_str("token service panicked"),
            Kind::TimedOut(deadline) => {
                write!(f, "token service did not answer within {deadline:?}")
            }
            Kind::RuntimeLost => f.write_str(
                "token requests were lost with the Tokio runtimes that they ran on, several times \
                 in a row",
            ),
            Kind::TooManyHeaders => f.write_str(
                "request has no room for the access token: it holds as many headers as it can",
            ),
            Kind::CoolingDown => {
                f.write_str("access token was rejected, and a renewal was tried a moment ago")
            }
            Kind::Expired => f.write_str(
                "access token was no longer usable when the HTTP client was ready to send the request",
            ),
            Kind::NoRuntime => f.write_str(
                "no Tokio runtime to ask for a token on; make calls inside a running runtime that has \
                 timers enabled",
            ),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.inner.kind)
            .field("retry_after", &self.retry_after)
            .field("waited", &self.waited)
            // Its text is not ours: the URL of a request may stand in it.
            .field("has_source", &self.inner.source.is_some())
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.source.as_deref().map(|source| source as _)
    }
}

impl Refusal {
    fn is_transient(&self) -> bool {
        is_transient_status(self.status)
            || matches!(
                self.code.as_deref(),
                Some("temporarily_unavailable" | "server_error" | "slow_down")
            )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let says_nothing = self.code.is_none() && self.description.is_none();
        if says_nothing && !self.is_transient() && !self.status.is_success() {
            // Some other server, or another page of it.
            let status = self.status.as_u16();
            return write!(
                f,
                "token endpoint answered {status} without an OAuth error; check the token URL"
            );
        }
        let verdict = if self.is_transient() {
            "token endpoint could not serve the request"
        } else {
            "token endpoint refused the client"
        };
        write!(f, "{verdict}: {}", self.status.as_u16())?;
        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        if let Some(description) = &self.description {
            write!(f, " ({description})")?;
        }
        if let Some(hint) = self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

fn is_transient_status(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        )
}
