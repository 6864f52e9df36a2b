use std::{
    fmt,
    mem::ManuallyDrop,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, header::AUTHORIZATION};
use http_body::Body;
use tower::{BoxError, Service};

use crate::{
    TokenCache, TokenOmitted,
    anchor::Anchor,
    authorization::Authorization,
    config::Config,
    future::ResponseFuture,
    lease::Lease,
    replay::{CloneBody, ReplayPolicy},
    send::{NotKept, Unsent, WAITS},
    token::{LastSeen, Seen},
};

/// A service whose requests carry an access token; see the [crate docs](crate).
///
/// Made by [`ClientCredentialsLayer`](crate::ClientCredentialsLayer). Clones share the tokens.
///
/// The inner service sends a request when it is ready, as with any middleware. A second send goes through a
/// clone that is polled ready first. It is cloned from one that is kept for all calls, not from one for each
/// call, and taken anew when a call looks at the cache: if the last look is a millisecond old, or another
/// token is there. So a replay may not see what the inner service changed in itself since, and clones of this
/// service may replay with each other's: state that has to be exact belongs behind an `Arc`.
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
/// // The type of a service can be named, here that of a function.
/// let mut api: ClientCredentials<_> = ClientCredentialsLayer::new(token_service).layer(http);
///
/// let request = http::Request::get("https://api.example/people").body(String::new())?;
/// let response = api.ready().await?.call(request).await?;
///
/// // Its tokens serve elsewhere, too, and the inner service can be reached, and had back.
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
/// A call fails with an [`Error`](crate::Error) if no token can be had or put on the request, and
/// else with the inner service's own error. A rejection that comes back carries an
/// [`TokenOutcome`](crate::TokenOutcome) that says why it was not mended.
///
/// # Panics
///
/// A call panics when that of the inner service does; further calls are served. With a policy that can keep
/// nothing, such as [`NoReplay`](crate::replay::NoReplay), what the service shares with its calls is then not freed: its
/// options, with what the policy and `rejected_when` hold, but neither the cache nor a token.
///
/// # Cancel safety
///
/// See [`ResponseFuture`].
pub struct ClientCredentials<S, R = CloneBody> {
    inner: S,
    view: LastSeen,
    lease: Lease<S, R>,
    anchor: Arc<Anchor>,
}

impl<S, R> ClientCredentials<S, R> {
    pub(crate) fn new(inner: S, anchor: Anchor, config: Config<R>) -> Self {
        Self {
            inner,
            view: LastSeen::new(),
            lease: Lease::new(config),
            anchor: Arc::new(anchor),
        }
    }

    /// The cache that the tokens come from.
    pub fn cache(&self) -> &TokenCache {
        &self.anchor.cache
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service; calls that are made from now on are replayed with what it becomes.
    ///
    /// Allocates, and the next call that may be replayed clones the inner service.
    pub fn get_mut(&mut self) -> &mut S {
        // The next request that may be sent twice leaves a spare service in the new lease.
        self.lease = self.lease.another();
        &mut self.inner
    }

    /// Gives back the inner service.
    pub fn into_inner(self) -> S {
        self.inner
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

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if let Some(reason) = self.anchor.destinations.omission_reason(&request) {
            return self.send_without_token(reason, request);
        }
        match self.view.see(&self.anchor.cache) {
            Seen::Before => {}
            Seen::Now => self.lease.renew_spare(&self.inner),
            Seen::Twice => self.take_a_lease(),
        }
        let own_headers = request.headers().len();
        match Authorization::put(request.headers_mut(), self.view.token()) {
            // Said apart, because the compiler else moves, and drops, what is not kept.
            Authorization::Ours(generation) if const { keeps_nothing::<R::Kept>() } => {
                // Not dropped if the inner service panics: with anything to drop then, the compiler has its
                // future, however large, written to one place and copied to another. What is lost is small,
                // as a lease does not keep the cache.
                let lease = ManuallyDrop::new(self.lease.clone());
                ResponseFuture::calling(
                    self.send_once(request),
                    Some((generation, Err(NotKept::Body))),
                    ManuallyDrop::into_inner(lease),
                )
            }
            Authorization::Ours(generation) => {
                let (head, body) = request.into_parts();
                let (body, retained) =
                    self.lease
                        .split(&self.inner, &head, own_headers, body, &self.anchor);
                let response = self.inner.call(Request::from_parts(head, body));
                let sent = Some((generation, retained));
                ResponseFuture::calling(response, sent, self.lease.clone())
            }
            Authorization::Callers => self.send_untouched(request),
            Authorization::Missing => self.send_later(request),
        }
    }
}

/// Whether a policy whose `Kept` has no values, as that of `NoReplay`, can keep nothing.
const fn keeps_nothing<K>() -> bool {
    size_of::<Option<K>>() == 0
}

impl<S, R> ClientCredentials<S, R> {
    /// A service that lasts has a lease and an anchor of its own, as its view has a text: clones that were
    /// made since it took the last ones share those.
    #[cold]
    fn take_a_lease(&mut self) {
        self.lease = self.lease.another();
        self.anchor = Arc::new(self.anchor.another());
    }

    /// The request must not carry the token; one that brings its own `Authorization` needs none.
    #[cold]
    fn send_without_token<B>(
        &mut self,
        reason: TokenOmitted,
        request: Request<B>,
    ) -> ResponseFuture<S, R, B>
    where
        S: Service<Request<R::Body>>,
        R: ReplayPolicy<B>,
    {
        if request.headers().contains_key(AUTHORIZATION) {
            return self.send_untouched(request);
        }
        let response = self.send_once(request);
        ResponseFuture::withheld(response, reason, self.lease.clone())
    }

    /// The request brings its own `Authorization`.
    #[cold]
    fn send_untouched<B>(&mut self, request: Request<B>) -> ResponseFuture<S, R, B>
    where
        S: Service<Request<R::Body>>,
        R: ReplayPolicy<B>,
    {
        let response = self.send_once(request);
        ResponseFuture::calling(response, None, self.lease.clone())
    }

    /// Sends a request that will not be sent again, with the body that its policy makes of it.
    #[inline]
    fn send_once<B>(&mut self, request: Request<B>) -> S::Future
    where
        S: Service<Request<R::Body>>,
        R: ReplayPolicy<B>,
    {
        self.inner.call(self.lease.replay.sent_once(request))
    }

    /// There is no token yet, or no room for it.
    #[cold]
    fn send_later<B>(&mut self, request: Request<B>) -> ResponseFuture<S, R, B>
    where
        S: Service<Request<R::Body>> + Clone,
        R: ReplayPolicy<B>,
    {
        let (head, body) = request.into_parts();
        let own_headers = head.headers.len();
        let (body, retained) =
            self.lease
                .split(&self.inner, &head, own_headers, body, &self.anchor);
        // The readied service may hold the very permit that the token request needs, so it goes. Its
        // clones have to be polled ready, here and in the future.
        self.inner = self.inner.clone();
        let unsent = Unsent {
            inner: self.inner.clone(),
            request: Request::from_parts(head, body),
            retained,
            anchor: Arc::clone(&self.anchor),
            waits_left: WAITS,
            outcome: Box::default(),
        };
        ResponseFuture::waiting(unsent, self.lease.clone())
    }
}

impl<S: Clone, R> Clone for ClientCredentials<S, R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            view: self.view.clone(),
            lease: self.lease.clone(),
            anchor: Arc::clone(&self.anchor),
        }
    }
}

impl<S: fmt::Debug, R: fmt::Debug> fmt::Debug for ClientCredentials<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentials")
            .field("inner", &self.inner)
            .field("cache", &self.anchor.cache)
            .field("replay", &*self.lease.replay)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use tokio::time::advance;
    use tower::{Layer, ServiceExt, service_fn};

    use super::*;
    use crate::{AccessToken, ClientCredentialsLayer, TokenRequest, token::CachedToken};

    /// Threads that count references to the same thing slow each other down.
    #[tokio::test(start_paused = true)]
    async fn clones_that_last_share_nothing_that_calls_count() {
        let cache = TokenCache::new(service_fn(|_: TokenRequest| async {
            Ok::<_, BoxError>(AccessToken::new("token-1")?)
        }));
        cache.token().await.unwrap();
        let http = service_fn(|_: Request<String>| async {
            Ok::<_, Infallible>(Response::new(String::new()))
        });
        let mut first = ClientCredentialsLayer::with_cache(cache).layer(http);
        let mut second = first.clone();
        let inherited = first.lease.clone();

        for lasts in [false, true] {
            for service in [&mut first, &mut second] {
                let called = service.ready().await.unwrap();
                called.call(Request::default()).await.unwrap();
            }
            let pairs = [
                (&first, &second.lease),
                (&first, &inherited),
                (&second, &inherited),
            ];
            for (service, lease) in pairs {
                assert_eq!(service.lease.counts_apart_from(lease), lasts);
            }
            assert_eq!(!Arc::ptr_eq(&first.anchor, &second.anchor), lasts);
            let [one, other] = [&first, &second].map(|service| service.view.token().unwrap());
            let text = |held: &CachedToken| held.token().expose().as_ptr();
            assert_eq!(text(one) != text(other), lasts);
            advance(Duration::from_millis(1)).await;
        }
        assert!(!first.clone().lease.counts_apart_from(&first.lease));
    }
}
