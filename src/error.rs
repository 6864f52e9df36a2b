//! The error type.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use http::StatusCode;
use tower::BoxError;

/// An error from acquiring an access token.
///
/// All calls that waited for the same token get the same error, so it is cheap to clone. The layer
/// returns it as a [`BoxError`]. Use `downcast_ref::<Error>()` to access it.
///
/// `Display` says what failed, why and, if known, what to do:
///
/// * If the HTTP client failed, `Display` ends with the cause, such as `connection refused`, and
///   [`source`](StdError::source) returns `None`.
/// * If your own function or token service failed, its error is the source.
///
/// Log the whole source chain. No text occurs in it twice.
///
/// `Display` and `Debug` don't show secrets, tokens or response bodies. They show only the host of
/// the token URL. The texts of sources and of [`transport_error`](Self::transport_error) aren't
/// filtered.
///
/// # Examples
///
/// ```
/// use tower::BoxError;
/// use tower_client_credentials::{AccessToken, Error};
///
/// let error: BoxError = AccessToken::new("ends with a line break\n").unwrap_err().into();
///
/// let error = error.downcast_ref::<Error>().expect("the error is this crate's own");
/// assert!(error.is_invalid_token());
/// assert!(!error.is_transient());
/// ```
///
/// The answer of a token endpoint:
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
    rejected_status: Option<StatusCode>,
}

#[derive(Clone)]
struct Inner {
    kind: Kind,
    context: Context,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// Which of several endpoints an error comes from. The party that knows adds it.
#[derive(Clone, Debug, Default)]
struct Context {
    /// The name of the token cache.
    cache: Option<Arc<str>>,
    /// The host of the token endpoint.
    endpoint: Option<Arc<str>>,
    /// In a form that is safe to show.
    client_id: Option<Arc<str>>,
    /// The label of the tenant, in a form that is safe to show. Only where no client id is known.
    tenant: Option<Arc<str>>,
}

/// One variant per thing that a caller would do differently.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// A setting that can never work.
    Configuration(String),
    /// A token that cannot be sent in a header.
    InvalidToken {
        /// The text that is wrong: the token, or what precedes it in the header.
        what: &'static str,
        fact: &'static str,
    },
    /// The token endpoint answered with an error.
    Refused(Refusal),
    /// The token endpoint answered with something that is not a token reply.
    InvalidReply {
        status: StatusCode,
        fact: String,
        /// Whether the reply comes from something in between, or is not whole.
        transient: bool,
    },
    /// The HTTP client failed; its error is the source.
    Transport {
        /// The cause in a form that is safe to show.
        cause: Option<String>,
    },
    /// A function given to `ClientAuth` failed, or returned credentials that cannot be sent.
    ClientAuth { transient: bool },
    /// The function that chooses the token URL failed, or returned a URL that cannot be used.
    TokenUrl { transient: bool },
    /// A token service of the user's failed.
    TokenService { transient: bool },
    /// The token service panicked.
    Panicked,
    /// The token service did not answer within the limit of an attempt or of a token request.
    TimedOut(Duration),
    /// The token request waited for too long for other token requests of the cache.
    Queued(Duration),
    /// There is no runtime to spawn the token request on.
    NoRuntime,
    /// The runtime of the token request has no timers.
    NoTimers,
    /// The runtimes of several token requests in a row shut down.
    RuntimeLost,
    /// The request's header map is full.
    TooManyHeaders,
    /// The body of a replay changed before the replay could be sent.
    BodyChanged,
    /// The rejected token was renewed too recently to renew it again. Callers of the layer see
    /// [`NotReplayed::CoolingDown`](crate::NotReplayed::CoolingDown) instead.
    CoolingDown,
    /// The renewal returned the token that the API had rejected. Callers of the layer see
    /// [`NotReplayed::SameToken`](crate::NotReplayed::SameToken) instead.
    SameToken,
    /// Each token that the call waited for was unusable by the time the inner service was ready.
    Expired,
}

/// An error reply of a token endpoint (RFC 6749 §5.2), with texts that are safe to show.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) uri: Option<String>,
    /// What is wrong with a body without any of these texts.
    pub(crate) fact: Option<String>,
    /// What to do.
    pub(crate) hint: Option<String>,
    pub(crate) transient: bool,
}

impl Error {
    /// Wraps an error of a token service to say that retrying won't help.
    ///
    /// Without it, the cache retries when your token service fails. The token service must return
    /// this error itself, optionally boxed. As the source of another error, it has no effect.
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

    /// Wraps an error of a token service to say that a retry may help, after `retry_after` at the
    /// earliest.
    ///
    /// Errors of your own types are transient, too. Use this function if the server says how long
    /// to wait. With `None`, the cache chooses the pause.
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

    /// Returns whether a setting is invalid, such as a relative token URL or an empty client id.
    pub fn is_configuration(&self) -> bool {
        matches!(self.inner.kind, Kind::Configuration(_))
    }

    /// Returns whether a text passed to [`AccessToken`](crate::AccessToken) can't be sent in a
    /// header.
    ///
    /// If a token endpoint issues such a token, the error is an
    /// [invalid reply](Self::is_invalid_reply) instead.
    pub fn is_invalid_token(&self) -> bool {
        matches!(self.inner.kind, Kind::InvalidToken { .. })
    }

    /// Returns whether the token endpoint answered with an error.
    ///
    /// See [`status`](Self::status), [`code`](Self::code), [`description`](Self::description) and
    /// [`hint`](Self::hint) for details.
    pub fn is_refused(&self) -> bool {
        matches!(self.inner.kind, Kind::Refused(_))
    }

    /// Returns whether the token endpoint answered with something that is not a token reply.
    pub fn is_invalid_reply(&self) -> bool {
        matches!(self.inner.kind, Kind::InvalidReply { .. })
    }

    /// Returns whether the HTTP client failed to send the token request or to receive the reply.
    pub fn is_transport(&self) -> bool {
        matches!(self.inner.kind, Kind::Transport { .. })
    }

    /// Returns whether a function passed to [`ClientAuth`](crate::ClientAuth) failed, or returned
    /// credentials that can't be sent.
    pub fn is_client_auth(&self) -> bool {
        matches!(self.inner.kind, Kind::ClientAuth { .. })
    }

    /// Returns whether the function passed to
    /// [`TokenEndpoint::with_url_fn`](crate::TokenEndpoint::with_url_fn) failed, or returned a URL that
    /// can't be used.
    pub fn is_token_url(&self) -> bool {
        matches!(self.inner.kind, Kind::TokenUrl { .. })
    }

    /// Returns whether your own token service failed, or any token service panicked.
    pub fn is_token_service(&self) -> bool {
        matches!(self.inner.kind, Kind::TokenService { .. } | Kind::Panicked)
    }

    /// Returns whether the token service didn't answer in time.
    ///
    /// Either an attempt or the whole token request reached its limit, or the token request waited for
    /// too long for [other token requests](crate::TokenCacheBuilder::max_token_requests) of the cache.
    pub fn is_timeout(&self) -> bool {
        matches!(self.inner.kind, Kind::TimedOut(_) | Kind::Queued(_))
    }

    /// Returns whether the token request had no Tokio runtime with timers, or its runtimes shut down
    /// repeatedly.
    pub fn is_no_runtime(&self) -> bool {
        matches!(
            self.inner.kind,
            Kind::NoRuntime | Kind::NoTimers | Kind::RuntimeLost
        )
    }

    /// Returns whether the API rejected the token, and the cache had no other one.
    ///
    /// Either the last renewal is too recent for another one, or the renewal returned the rejected token.
    /// A call through the layer fails with this error only if it has dropped the API's response, so
    /// [`rejected_status`](Self::rejected_status) is set.
    pub fn is_token_rejected(&self) -> bool {
        matches!(self.inner.kind, Kind::CoolingDown | Kind::SameToken)
    }

    /// Returns whether the call's tokens became unusable before the HTTP client was ready.
    ///
    /// Each time the call got a token, the token expired or was rejected before the HTTP client
    /// could send the request.
    pub fn is_expired(&self) -> bool {
        matches!(self.inner.kind, Kind::Expired)
    }

    /// Returns whether the request already has as many headers as it can hold.
    pub fn is_too_many_headers(&self) -> bool {
        matches!(self.inner.kind, Kind::TooManyHeaders)
    }

    /// Returns whether the request's body changed while the call waited to send it again.
    ///
    /// The body shares its data with the body that was sent first, and that one was read meanwhile.
    /// See [`CloneBody`](crate::replay::CloneBody).
    pub fn is_body_changed(&self) -> bool {
        matches!(self.inner.kind, Kind::BodyChanged)
    }

    /// Returns whether the same call may succeed later.
    ///
    /// These errors are transient:
    ///
    /// * the replies 408, 425, 429 and 5xx; the codes `temporarily_unavailable`, `server_error`,
    ///   `slow_down` and `internal_failure`; other replies whose description asks to retry, unless
    ///   their code or status refuses the client;
    /// * 2xx replies that aren't JSON objects because they are empty, cut off or compressed, or because
    ///   something other than the token endpoint sent them, such as a gateway;
    /// * transport errors, timeouts, panics, a missing or lost runtime, and
    ///   [expired tokens](Self::is_expired);
    /// * errors of your own token services and of functions passed to
    ///   [`ClientAuth`](crate::ClientAuth) or
    ///   [`TokenEndpoint::with_url_fn`](crate::TokenEndpoint::with_url_fn), unless they are
    ///   [`permanent`](Self::permanent).
    ///
    /// All other errors are permanent.
    pub fn is_transient(&self) -> bool {
        match &self.inner.kind {
            Kind::Refused(refusal) => refusal.transient,
            Kind::InvalidReply { transient, .. }
            | Kind::TokenService { transient }
            | Kind::ClientAuth { transient }
            | Kind::TokenUrl { transient } => *transient,
            Kind::Transport { .. }
            | Kind::Panicked
            | Kind::TimedOut(_)
            | Kind::Queued(_)
            | Kind::NoRuntime
            | Kind::RuntimeLost
            | Kind::CoolingDown
            | Kind::SameToken
            | Kind::Expired => true,
            Kind::Configuration(_)
            | Kind::InvalidToken { .. }
            | Kind::NoTimers
            | Kind::TooManyHeaders
            | Kind::BodyChanged => false,
        }
    }

    /// Returns how long to wait before the next token request.
    ///
    /// The time starts when this error is returned. A [`TokenCache`](crate::TokenCache) that returned
    /// this error sends no token request until the time has passed. Until then, all callers that
    /// need a token get the same error.
    ///
    /// A [`TokenEndpoint`](crate::TokenEndpoint) returns the time that the server asks for, whether
    /// it is plausible or not. It reads `Retry-After`, otherwise `x-ms-retry-after-ms`, and for a 429
    /// otherwise `RateLimit-Reset`.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Returns how long the failed call waited for tokens, or `None` if it didn't wait.
    ///
    /// Calls that share an error may have waited for different times. Errors of
    /// [`TokenCache::token`](crate::TokenCache::token) don't contain this time.
    pub fn waited(&self) -> Option<Duration> {
        self.waited
    }

    /// Returns the status of the API's response if the API rejected the token of the failed call.
    ///
    /// A call that waits for the renewal of a rejected token drops the API's response after one
    /// second. If the renewal fails after that, the call fails with an error that has this status,
    /// and `Display` starts with it.
    pub fn rejected_status(&self) -> Option<StatusCode> {
        self.rejected_status
    }

    /// Returns the HTTP client's error if [`is_transport`](Self::is_transport) is `true`.
    ///
    /// Use it to distinguish causes in code. It isn't a [`source`](StdError::source), because
    /// `Display` already ends with the cause. The text of the HTTP client's error isn't filtered
    /// and may contain the token URL with its path and query.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io;
    /// use tower_client_credentials::Error;
    ///
    /// fn is_broken_pipe(error: &Error) -> bool {
    ///     let error = error.transport_error().and_then(|error| error.downcast_ref::<io::Error>());
    ///     error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    /// }
    /// # assert!(!is_broken_pipe(&Error::permanent("the tenant is disabled")));
    /// ```
    pub fn transport_error(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.inner.source.as_deref().filter(|_| self.is_transport())
    }

    /// Returns the status of the token endpoint's reply, if there was one.
    pub fn status(&self) -> Option<StatusCode> {
        match &self.inner.kind {
            Kind::Refused(refusal) => Some(refusal.status),
            Kind::InvalidReply { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Returns the `error` code of the token endpoint's reply, such as `invalid_client` (RFC 6749
    /// §5.2).
    pub fn code(&self) -> Option<&str> {
        self.refusal()?.code.as_deref()
    }

    /// Returns the `error_description` of the token endpoint's reply, a human-readable text.
    pub fn description(&self) -> Option<&str> {
        self.refusal()?.description.as_deref()
    }

    /// Returns the `error_uri` of the token endpoint's reply, the URI of a page about the error.
    pub fn error_uri(&self) -> Option<&str> {
        self.refusal()?.uri.as_deref()
    }

    /// Returns what to do about the error, if known. `Display` ends with this text.
    ///
    /// There are hints for the error codes of RFC 6749 §5.2, for `access_denied` and
    /// `invalid_target`, for the statuses 401, 403, 404, 405, 407 and 410, and for errors that a
    /// [`provider`](crate::provider) documents. Depending on the error, the hint names the client
    /// authentication method and its alternatives, or the requested scopes or resources.
    ///
    /// The text isn't part of the stable API.
    pub fn hint(&self) -> Option<&str> {
        self.refusal()?.hint.as_deref()
    }

    /// Returns the [name](crate::TokenCacheBuilder::name) of the token cache, if it has one.
    pub fn cache_name(&self) -> Option<&str> {
        self.inner.context.cache.as_deref()
    }

    /// Returns the host of the token endpoint, if a [`TokenEndpoint`](crate::TokenEndpoint) returned
    /// the error.
    pub fn endpoint_host(&self) -> Option<&str> {
        self.inner.context.endpoint.as_deref()
    }

    /// Returns the client id of the failed token request, if a
    /// [`TokenEndpoint`](crate::TokenEndpoint) sent one.
    ///
    /// The id is shown as in `Display`: after 200 characters, it is cut, and parts that are equal to
    /// a secret are redacted.
    pub fn client_id(&self) -> Option<&str> {
        self.inner.context.client_id.as_deref()
    }

    /// Returns whether the token endpoint refused too many requests.
    pub(crate) fn is_too_many_requests(&self) -> bool {
        self.status() == Some(StatusCode::TOO_MANY_REQUESTS)
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.inner.kind
    }

    /// Returns the kind as one word, for metrics and traces.
    pub(crate) fn type_name(&self) -> &'static str {
        match &self.inner.kind {
            Kind::Configuration(_) => "configuration",
            Kind::InvalidToken { .. } => "invalid_token",
            Kind::Refused(_) => "refused",
            Kind::InvalidReply { .. } => "invalid_reply",
            Kind::Transport { .. } => "transport",
            Kind::ClientAuth { .. } => "client_auth",
            Kind::TokenUrl { .. } => "token_url",
            Kind::TokenService { .. } => "token_service",
            Kind::Panicked => "panicked",
            Kind::TimedOut(_) => "timeout",
            Kind::Queued(_) => "queued",
            Kind::NoRuntime => "no_runtime",
            Kind::NoTimers => "no_timers",
            Kind::RuntimeLost => "runtime_lost",
            Kind::TooManyHeaders => "too_many_headers",
            Kind::BodyChanged => "body_changed",
            Kind::CoolingDown => "cooling_down",
            Kind::SameToken => "same_token",
            Kind::Expired => "expired",
        }
    }

    pub(crate) fn new(kind: Kind) -> Self {
        Self::from_parts(kind, None)
    }

    pub(crate) fn with_source(kind: Kind, source: impl Into<BoxError>) -> Self {
        Self::from_parts(kind, Some(source.into().into()))
    }

    pub(crate) fn configuration(message: impl Into<String>) -> Self {
        Self::new(Kind::Configuration(message.into()))
    }

    pub(crate) fn clock_panicked() -> Self {
        Self::configuration("wall clock of the token cache panicked")
    }

    pub(crate) fn unsendable(what: &'static str, fact: &'static str) -> Self {
        Self::new(Kind::InvalidToken { what, fact })
    }

    /// There was no answer within `limit`. The source is the last error that says more than that.
    pub(crate) fn timed_out(limit: Duration, last_error: Option<Self>) -> Self {
        let source = match last_error {
            Some(last) if last.is_timeout() => last.inner.source.clone(),
            Some(last) => Some(Arc::from(BoxError::from(last))),
            None => None,
        };
        Self::from_parts(Kind::TimedOut(limit), source)
    }

    /// Takes an error of this crate as it is; any other error of a token service is transient.
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

    /// Records how long the failed call had waited.
    pub(crate) fn after(mut self, waited: Option<Duration>) -> Self {
        self.waited = waited;
        self
    }

    /// Records how the API had rejected the token of the failed call.
    pub(crate) fn after_rejection(mut self, status: Option<StatusCode>) -> Self {
        self.rejected_status = status;
        self
    }

    /// Names the token cache.
    pub(crate) fn in_cache(mut self, name: Option<&Arc<str>>) -> Self {
        if let Some(name) = name.filter(|_| self.inner.context.cache.is_none()) {
            Arc::make_mut(&mut self.inner).context.cache = Some(Arc::clone(name));
        }
        self
    }

    /// Names the token endpoint by its host.
    pub(crate) fn at_endpoint(mut self, host: &str) -> Self {
        Arc::make_mut(&mut self.inner).context.endpoint = Some(host.into());
        self
    }

    /// Names the client by its id, in a form that is safe to show.
    pub(crate) fn for_client(mut self, id: &str) -> Self {
        Arc::make_mut(&mut self.inner).context.client_id = Some(id.into());
        self
    }

    /// Names the tenant by its label, in a form that is safe to show.
    pub(crate) fn for_tenant(mut self, label: Option<&str>) -> Self {
        if let Some(label) = label {
            Arc::make_mut(&mut self.inner).context.tenant = Some(label.into());
        }
        self
    }

    fn from_parts(kind: Kind, source: Option<Arc<dyn StdError + Send + Sync>>) -> Self {
        Self {
            inner: Arc::new(Inner {
                kind,
                context: Context::default(),
                source,
            }),
            retry_after: None,
            waited: None,
            rejected_status: None,
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
        if let Some(status) = self.rejected_status {
            let status = status.as_u16();
            write!(
                f,
                "API answered {status}, and no other token is available: "
            )?;
        }
        let context = &self.inner.context;
        if let Some(cache) = &context.cache {
            write!(f, "cache {cache:?}: ")?;
        }
        let endpoint = || context.token_endpoint();
        match &self.inner.kind {
            Kind::Configuration(message) => f.write_str(message),
            Kind::InvalidToken { what, fact } => write!(f, "{what} {fact}"),
            Kind::Refused(refusal) => refusal.describe(context, f),
            Kind::InvalidReply { status, fact, .. } => {
                let status = status.as_u16();
                write!(
                    f,
                    "{} answered {status} without a token: {fact}",
                    endpoint()
                )
            }
            Kind::Transport { cause: Some(cause) } => {
                write!(f, "request to {} failed: {cause}", endpoint())
            }
            Kind::Transport { cause: None } => write!(f, "request to {} failed", endpoint()),
            Kind::ClientAuth { .. } => {
                f.write_str("function given to ClientAuth")?;
                context.describe_tenant(f)?;
                if context.endpoint.is_some() {
                    let preposition = if context.tenant.is_some() {
                        "at"
                    } else {
                        "for"
                    };
                    write!(f, " {preposition} {}", endpoint())?;
                }
                f.write_str(" failed")
            }
            Kind::TokenUrl { .. } => {
                f.write_str("function given to TokenEndpoint::with_url_fn")?;
                context.describe_tenant(f)?;
                f.write_str(" failed")
            }
            Kind::TokenService { .. } => f.write_str("token service failed"),
            Kind::Panicked => f.write_str("token service panicked"),
            Kind::TimedOut(deadline) => {
                let deadline = in_milliseconds(*deadline);
                write!(f, "token service did not answer within {deadline}")
            }
            Kind::Queued(limit) => {
                let limit = in_milliseconds(*limit);
                write!(
                    f,
                    "token request was not sent: other token requests of the cache took longer than \
                     {limit}; raise `max_token_requests` if the token service can answer more at a time"
                )
            }
            Kind::RuntimeLost => f.write_str(
                "token requests were lost because their Tokio runtimes shut down, several times in \
                 a row",
            ),
            Kind::TooManyHeaders => f.write_str(
                "request has no room for the access token: it has as many headers as it can hold",
            ),
            Kind::BodyChanged => f.write_str(
                "request was not sent again because its body changed: it shares its data with the \
                 body that was sent first",
            ),
            Kind::CoolingDown => f.write_str(
                "access token was rejected, and the last renewal is too recent for another one",
            ),
            Kind::SameToken => {
                f.write_str("renewal returned the access token that the API had rejected")
            }
            Kind::NoTimers => f.write_str(
                "Tokio runtime of the token request has no timers; call `enable_time` or \
                 `enable_all` on the runtime's builder",
            ),
            Kind::Expired => f.write_str(
                "access token expired or was rejected before the HTTP client was ready to send the \
                 request",
            ),
            Kind::NoRuntime => f.write_str(
                "no Tokio runtime for the token request; make calls inside a running runtime that \
                 has timers enabled",
            ),
        }
    }
}

/// Shows a duration in ASCII, rounded down: `Debug` shows microseconds with a sign that isn't ASCII.
pub(crate) fn in_milliseconds(duration: Duration) -> String {
    let fraction = Duration::from_millis(duration.subsec_millis().into());
    match Duration::from_secs(duration.as_secs()) + fraction {
        Duration::ZERO => "less than 1ms".to_owned(),
        rounded => format!("{rounded:?}"),
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.inner.kind)
            .field("context", &self.inner.context)
            .field("retry_after", &self.retry_after)
            .field("waited", &self.waited)
            .field("rejected_status", &self.rejected_status)
            // The text of a foreign error may show the URL of a request.
            .field("has_source", &self.inner.source.is_some())
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // `Display` ends with the cause of a transport error; as a source it would be shown twice.
        if self.is_transport() {
            return None;
        }
        self.inner.source.as_deref().map(|source| source as _)
    }
}

impl Context {
    fn token_endpoint(&self) -> String {
        match &self.endpoint {
            Some(host) => format!("token endpoint {host}"),
            None => "token endpoint".to_owned(),
        }
    }

    fn describe_tenant(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tenant {
            Some(label) => write!(f, " for tenant {label:?}"),
            None => Ok(()),
        }
    }

    fn client(&self) -> String {
        match &self.client_id {
            Some(id) => format!("client {id:?}"),
            None => "the client".to_owned(),
        }
    }
}

impl Refusal {
    fn describe(&self, context: &Context, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.status.as_u16();
        let (endpoint, client) = (context.token_endpoint(), context.client());
        let has_texts = self.code.is_some() || self.description.is_some();
        match self.status {
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                write!(
                    f,
                    "proxy in front of {endpoint} refused the request: {status}"
                )?;
            }
            _ if self.transient => write!(f, "{endpoint} could not serve {client}: {status}")?,
            // Other statuses without an error may come from any server.
            _ if has_texts || self.status.is_success() || self.is_about_the_client() => {
                write!(f, "{endpoint} refused {client}: {status}")?;
            }
            _ => write!(f, "{endpoint} answered {status}")?,
        }

        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        if let Some(description) = &self.description {
            write!(f, " ({description})")?;
        }
        if !has_texts && !self.transient && !self.status.is_success() {
            f.write_str(" without an OAuth error")?;
        }
        if let Some(fact) = &self.fact {
            write!(f, " ({fact})")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }

    fn is_about_the_client(&self) -> bool {
        matches!(
            self.status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
        )
    }
}
