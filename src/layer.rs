use std::{fmt, sync::Arc};

use http::response::Parts;
use tower::{BoxError, Layer, Service};

use crate::{
    AccessToken, ClientCredentials, CloneBody, Never, TokenCache, TokenRequest,
    config::{Config, RejectWhen},
};

/// Gives every request of a service an access token; see the [crate docs](crate).
///
/// Every request that goes through the layer gets the token, whatever host it is for and whether it
/// goes over https or plain http, unless it carries an `Authorization` header of its own. So put the
/// layer around a client for the API alone, and a redirect follower below it: above, it would carry
/// the token to another host.
///
/// # Examples
///
/// With all defaults:
///
/// ```
/// # use tower_client_credentials::{AccessToken, TokenRequest};
/// # use tower::{BoxError, service_fn};
/// # let token_service = service_fn(|_: TokenRequest| async {
/// #     Ok::<_, BoxError>(AccessToken::new("token-1")?)
/// # });
/// # let http = service_fn(|_: http::Request<String>| async {
/// #     Ok::<_, BoxError>(http::Response::new(String::new()))
/// # });
/// use tower::ServiceBuilder;
/// use tower_client_credentials::ClientCredentialsLayer;
///
/// let api = ServiceBuilder::new()
///     .layer(ClientCredentialsLayer::new(token_service))
///     .service(http);
/// ```
///
/// For an API that answers 403 when a token has expired:
///
/// ```
/// # use tower_client_credentials::{AccessToken, TokenRequest};
/// # use tower::{BoxError, service_fn};
/// # let token_service = service_fn(|_: TokenRequest| async {
/// #     Ok::<_, BoxError>(AccessToken::new("token-1")?)
/// # });
/// use http::StatusCode;
/// use tower_client_credentials::ClientCredentialsLayer;
///
/// let layer = ClientCredentialsLayer::new(token_service)
///     .reject_when(|response| response.status == StatusCode::FORBIDDEN);
/// ```
#[derive(Clone)]
#[must_use = "a layer does nothing until it is put around a service"]
pub struct ClientCredentialsLayer<R = CloneBody> {
    cache: TokenCache,
    replay: R,
    reject_when: Option<RejectWhen>,
}

impl ClientCredentialsLayer {
    /// Makes a layer with all defaults, and a [`TokenCache`] of its own around the token service.
    pub fn new<T>(token_service: T) -> Self
    where
        T: Service<TokenRequest, Response = AccessToken> + Clone + Send + 'static,
        T::Error: Into<BoxError>,
        T::Future: Send + 'static,
    {
        Self::with_cache(TokenCache::new(token_service))
    }

    /// Makes a layer that takes its tokens from the given cache, which several stacks can share.
    pub fn with_cache(cache: TokenCache) -> Self {
        Self {
            cache,
            replay: CloneBody,
            reject_when: None,
        }
    }
}

impl<R> ClientCredentialsLayer<R> {
    /// Sets how a request is sent a second time when the API rejected its token. Default:
    /// [`CloneBody`].
    pub fn replay<P>(self, policy: P) -> ClientCredentialsLayer<P> {
        ClientCredentialsLayer {
            cache: self.cache,
            replay: policy,
            reject_when: self.reject_when,
        }
    }

    /// Sends every request once: [`replay`](Self::replay) with [`Never`].
    ///
    /// A single request is sent once if it carries the extension [`NoReplay`](crate::NoReplay).
    pub fn never_retry(self) -> ClientCredentialsLayer<Never> {
        self.replay(Never)
    }

    /// Sets which responses reject the token, instead of the default.
    ///
    /// By default a 401 does, unless it carries a Bearer challenge whose error is
    /// `insufficient_scope` or `invalid_request` (RFC 6750 §3.1): another token would not help then.
    /// Some APIs answer 403 instead, and gRPC has `grpc-status: 16` in the headers of a 200.
    pub fn reject_when(
        mut self,
        predicate: impl Fn(&Parts) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.reject_when = Some(Arc::new(predicate));
        self
    }

    /// The cache that the layer's services take their tokens from.
    pub fn cache(&self) -> &TokenCache {
        &self.cache
    }
}

impl<S, R: Clone> Layer<S> for ClientCredentialsLayer<R> {
    type Service = ClientCredentials<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        let config = Config {
            cache: self.cache.clone(),
            replay: self.replay.clone(),
            reject_when: self.reject_when.clone(),
        };
        ClientCredentials::new(inner, config)
    }
}

impl<R: fmt::Debug> fmt::Debug for ClientCredentialsLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentialsLayer")
            .field("cache", &self.cache)
            .field("replay", &self.replay)
            .finish_non_exhaustive()
    }
}
