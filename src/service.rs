use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{TryFutureExt, future::BoxFuture};
use http::{Request, Response, header::AUTHORIZATION};
use http_body::Body;
use tower::{BoxError, Service, util::Oneshot};

use crate::{
    CallError, TokenCache, TokenOmitted,
    call::{FirstSend, Job, Options, Replay, ResponseFuture, SentToken},
    replay::{CloneBody, ReplayPolicy, SavedRequest},
    scheme::Put,
    telemetry,
    token::LastSeen,
};

/// A service that sends every request with an access token. See the [crate docs](crate).
///
/// Created by [`ClientCredentialsLayer`](crate::ClientCredentialsLayer). Clones share their tokens.
///
/// The inner service that was polled ready sends the request. Each call also clones the inner
/// service. A replay polls this clone ready and sends the request through it, as tower's `Retry`
/// does. With a policy that never replays, no clone is made.
///
/// A call that has to wait for a token gives up the readiness of its inner service, because the
/// token request may need the same permit. Once the token is there, the call polls a clone ready.
///
/// # Examples
///
/// ```
/// # use tower_client_credentials::{AccessToken, TokenRequest};
/// # use tower::{BoxError, service_fn};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// # let token_service = service_fn(|_: TokenRequest| async {
/// #     Ok::<_, BoxError>(AccessToken::new("token-1")?)
/// # });
/// # let http = service_fn(|request: http::Request<String>| async move {
/// #     assert_eq!(request.headers()["authorization"], "Bearer token-1");
/// #     Ok::<_, BoxError>(http::Response::new(String::new()))
/// # });
/// use tower::{Layer, Service, ServiceExt};
/// use tower_client_credentials::{ClientCredentials, ClientCredentialsLayer};
///
/// // The type of the service can be named.
/// let mut api: ClientCredentials<_> = ClientCredentialsLayer::new(token_service).layer(http);
///
/// let request = http::Request::get("https://api.example/people").body(String::new())?;
/// let response = api.ready().await?.call(request).await?;
///
/// // The cache supplies tokens for other purposes, and the inner service remains accessible.
/// let token = api.cache().token().await?;
/// assert_eq!(token.header_value(), "Bearer token-1");
/// let (_seen, _changed) = (api.get_ref().clone(), api.get_mut());
/// let _http = api.into_inner();
/// # assert_eq!(response.status(), 200);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// A call fails with an [`Error`](crate::Error) if no token can be obtained, or if the token can't
/// be added to the request. If the inner service fails, the call returns the inner service's error.
///
/// A response that rejects the token isn't an error. Its [`TokenOutcome`](crate::TokenOutcome)
/// extension says why the request wasn't replayed. There is one exception: if a renewal fails after
/// more than one second, the call has dropped the response. The call then fails with an error that
/// has a [`rejected_status`](crate::Error::rejected_status).
///
/// # Panics
///
/// A call panics if the inner service's `call` panics. The service can still be used afterwards.
///
/// # Cancel safety
///
/// See [`ResponseFuture`].
#[derive(Clone)]
pub struct ClientCredentials<S, R = CloneBody> {
    inner: S,
    last_seen: LastSeen,
    options: Arc<Options<R>>,
}

impl<S, R> ClientCredentials<S, R> {
    pub(crate) fn new(inner: S, options: Options<R>) -> Self {
        Self {
            inner,
            last_seen: LastSeen::nothing(),
            options: Arc::new(options),
        }
    }

    /// Sends a request through a clone of this service.
    ///
    /// Clones the service, polls the clone ready, and calls it. The returned future borrows nothing and
    /// is boxed, so it can be spawned, awaited in a spawned `async` block or a handler, and put into a
    /// struct.
    ///
    /// All parts of the call must be [`Send`]. For a client that isn't, use
    /// [`ServiceExt::oneshot`](tower::ServiceExt::oneshot) on a clone.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_client_credentials::{AccessToken, TokenRequest};
    /// # use tower::{BoxError, service_fn};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let token_service = service_fn(|_: TokenRequest| async {
    /// #     Ok::<_, BoxError>(AccessToken::new("token-1")?)
    /// # });
    /// # let http = service_fn(|_: http::Request<String>| async {
    /// #     Ok::<_, BoxError>(http::Response::new(String::new()))
    /// # });
    /// use tower::Layer;
    /// use tower_client_credentials::ClientCredentialsLayer;
    ///
    /// let api = ClientCredentialsLayer::new(token_service).layer(http);
    ///
    /// let request = http::Request::get("https://api.example/people").body(String::new())?;
    /// let response = api.send(request.clone()).await?;
    ///
    /// let task = tokio::spawn(api.send(request));
    /// # assert_eq!(response.status(), 200);
    /// # assert_eq!(task.await??.status(), 200);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Fails as the service does, see [`ClientCredentials`]. The error implements
    /// [`std::error::Error`], so `?` converts it into most other errors.
    pub fn send<B, ResBody>(&self, request: Request<B>) -> CallFuture<ResBody>
    where
        R: ReplayPolicy<B, Body: Send, Kept: Send> + Clone + Send + Sync + 'static,
        S: Service<Request<R::Body>, Response = Response<ResBody>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: Send + 'static,
        ResBody: Body + Send + 'static,
    {
        CallFuture(Box::pin(
            Oneshot::new(self.clone(), request).map_err(CallError::from),
        ))
    }

    /// Returns the cache that supplies the tokens.
    pub fn cache(&self) -> &TokenCache {
        &self.options.cache
    }

    /// Returns a reference to the inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Consumes this service and returns the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

/// The future of [`ClientCredentials::send`].
///
/// # Cancel safety
///
/// Dropping this future drops the request. It doesn't cancel a token request that the call waits
/// for: other calls can use the token.
// Boxed, because rustc can't prove that an `async` block is `Send` if it awaits the future of a
// service whose error is boxed.
#[must_use = "futures do nothing unless polled"]
pub struct CallFuture<B>(BoxFuture<'static, Result<Response<B>, CallError>>);

impl<B> Future for CallFuture<B> {
    type Output = Result<Response<B>, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<B> fmt::Debug for CallFuture<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallFuture").finish_non_exhaustive()
    }
}

impl<S, R, B, ResBody> Service<Request<B>> for ClientCredentials<S, R>
where
    S: Service<Request<R::Body>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    R: ReplayPolicy<B>,
    ResBody: Body,
{
    type Response = Response<ResBody>;
    type Error = BoxError;
    type Future = ResponseFuture<S, R, B>;

    /// Polls the inner service, which may reserve a permit.
    ///
    /// A call that has to wait for a token returns the permit, and gets another one before it sends the
    /// request. A service that is ready and isn't called keeps the permit until it is dropped.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let options = &self.options;
        if let Some(reason) = options.destinations.omission_reason(&request) {
            return self.send_untouched(request, Some(reason));
        }
        if options.may_need_other_token(&request) {
            return self.call_with_parameters(request);
        }
        let Some(token) = self.last_seen.token(&options.cache) else {
            return self.wait_for_token(request, None);
        };
        let Put::Done(presented) = token.token().scheme().put_on(&mut request) else {
            return self.wait_for_token(request, None);
        };
        let token = Arc::clone(token);
        let sent = SentToken { token, presented };
        send(&mut self.inner, options, None, sent, request)
    }
}

/// Sends a request that carries its token.
#[inline]
fn send<S, R, B, ResBody>(
    inner: &mut S,
    options: &Arc<Options<R>>,
    other_cache: Option<TokenCache>,
    sent: SentToken,
    request: Request<B>,
) -> ResponseFuture<S, R, B>
where
    S: Service<Request<R::Body>, Response = Response<ResBody>> + Clone,
    R: ReplayPolicy<B>,
{
    let (head, body) = request.into_parts();
    let (body, kept) = options.policy.split(body);
    let saved = SavedRequest::new(&head, Some(sent.token.token().scheme()), kept);
    let replay = saved.map(|request| Replay {
        service: inner.clone(),
        request,
    });
    let response = inner.call(Request::from_parts(head, body));
    let first = FirstSend {
        sent,
        options: Arc::clone(options),
        other_cache,
        replay,
    };
    ResponseFuture::calling(response, first)
}

impl<S, R> ClientCredentials<S, R> {
    /// The request, or an option of the layer, may choose the parameters of the token.
    fn call_with_parameters<B, ResBody>(&mut self, request: Request<B>) -> ResponseFuture<S, R, B>
    where
        S: Service<Request<R::Body>, Response = Response<ResBody>> + Clone,
        R: ReplayPolicy<B>,
    {
        let (head, body) = request.into_parts();
        let other_cache = self.options.other_cache(&head);
        let mut request = Request::from_parts(head, body);
        let cache = other_cache.as_ref().unwrap_or(&self.options.cache);
        let Some(token) = cache.usable() else {
            return self.wait_for_token(request, other_cache);
        };
        let Put::Done(presented) = token.token().scheme().put_on(&mut request) else {
            return self.wait_for_token(request, other_cache);
        };
        let sent = SentToken { token, presented };
        send(&mut self.inner, &self.options, other_cache, sent, request)
    }

    /// The request carries a token of the caller's own, or must not carry ours.
    #[cold]
    fn send_untouched<B>(
        &mut self,
        request: Request<B>,
        omitted: Option<TokenOmitted>,
    ) -> ResponseFuture<S, R, B>
    where
        S: Service<Request<R::Body>>,
        R: ReplayPolicy<B>,
    {
        // A request with a token of its own needs none.
        let omitted = omitted.filter(|_| !has_own_token(self.cache(), &request));
        if let Some(reason) = omitted {
            telemetry::token_omitted(self.cache().name(), reason.label());
        }
        let (head, body) = request.into_parts();
        let (body, _) = self.options.policy.split(body);
        let response = self.inner.call(Request::from_parts(head, body));
        ResponseFuture::calling_untouched(response, omitted)
    }

    /// There is no token that may be used now, or the request can't take it.
    #[cold]
    fn wait_for_token<B, ResBody>(
        &mut self,
        request: Request<B>,
        other_cache: Option<TokenCache>,
    ) -> ResponseFuture<S, R, B>
    where
        S: Service<Request<R::Body>, Response = Response<ResBody>> + Clone,
        R: ReplayPolicy<B>,
    {
        let cache = other_cache.as_ref().unwrap_or(&self.options.cache);
        if has_own_token(cache, &request) {
            return self.send_untouched(request, None);
        }
        let (head, body) = request.into_parts();
        let (body, kept) = self.options.policy.split(body);
        let saved = SavedRequest::new(&head, None, kept);
        // The readied service may hold the very permit that the token request needs, so it is
        // dropped. Its clones have to be polled ready before they are called.
        self.inner = self.inner.clone();
        ResponseFuture::waiting(Job::new(
            Arc::clone(&self.options),
            other_cache,
            self.inner.clone(),
            Some(Request::from_parts(head, body)),
            saved,
        ))
    }
}

/// Whether the caller has set the header that the token goes into.
fn has_own_token<B>(cache: &TokenCache, request: &Request<B>) -> bool {
    match cache.last_token() {
        Some(last) => last.token().scheme().is_on(request.headers()),
        // Tokens go there until one names another header.
        None => request.headers().contains_key(AUTHORIZATION),
    }
}

impl<S: fmt::Debug, R: fmt::Debug> fmt::Debug for ClientCredentials<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentials")
            .field("inner", &self.inner)
            .field("cache", &self.options.cache)
            .field("replay", &self.options.policy)
            .finish_non_exhaustive()
    }
}
