use std::{fmt, sync::Arc};

use http::{Uri, response::Parts};
use tower::{BoxError, Layer, Service};

use crate::{
    AccessToken, ClientCredentials, Error, TokenCache, TokenRequest,
    call::{Options, RejectedWhen},
    origin::{Destinations, Origin},
    replay::{CloneBody, NoReplay},
};

/// Gives every request of a service an access token; see the [crate docs](crate).
///
/// A request that carries an `Authorization` header of its own passes untouched. So does one that must
/// not carry the token: over plain http to another host, unless [`allow_http`](Self::allow_http) is
/// set, or to another origin than those of [`allowed_origins`](Self::allowed_origins). Without these, a request gets
/// the token whatever host it is for; a redirect follower above the layer would carry it to another.
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
///     .rejected_when(|response| response.status == StatusCode::FORBIDDEN);
/// ```
#[derive(Clone)]
#[must_use = "a layer does nothing until it is put around a service"]
pub struct ClientCredentialsLayer<R = CloneBody> {
    cache: TokenCache,
    replay: R,
    rejected_when: Option<RejectedWhen>,
    destinations: Destinations,
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_client_credentials::{AccessToken, TokenRequest};
    /// # use tower::{BoxError, service_fn};
    /// # let token_service = service_fn(|_: TokenRequest| async {
    /// #     Ok::<_, BoxError>(AccessToken::new("token-1")?)
    /// # });
    /// use tower_client_credentials::{ClientCredentialsLayer, TokenCache};
    ///
    /// let cache = TokenCache::new(token_service);
    /// let for_reports = ClientCredentialsLayer::with_cache(cache.clone());
    /// let for_uploads = ClientCredentialsLayer::with_cache(cache).no_replay();
    /// # drop((for_reports, for_uploads));
    /// ```
    pub fn with_cache(cache: TokenCache) -> Self {
        Self {
            cache,
            replay: CloneBody,
            rejected_when: None,
            destinations: Destinations::default(),
        }
    }
}

impl<R> ClientCredentialsLayer<R> {
    /// Sets how a request is sent a second time when the API rejected its token. Default:
    /// [`CloneBody`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_client_credentials::{AccessToken, TokenRequest};
    /// # use tower::{BoxError, service_fn};
    /// # let token_service = service_fn(|_: TokenRequest| async {
    /// #     Ok::<_, BoxError>(AccessToken::new("token-1")?)
    /// # });
    /// use tower_client_credentials::{ClientCredentialsLayer, replay::Buffered};
    ///
    /// let layer = ClientCredentialsLayer::new(token_service).replay(Buffered::new(64 * 1024));
    /// # drop(layer);
    /// ```
    pub fn replay<P>(self, policy: P) -> ClientCredentialsLayer<P> {
        ClientCredentialsLayer {
            cache: self.cache,
            replay: policy,
            rejected_when: self.rejected_when,
            destinations: self.destinations,
        }
    }

    /// Sends every request once: [`replay`](Self::replay) with [`NoReplay`].
    ///
    /// A single request is sent once if it carries the extension [`NoReplay`](crate::replay::NoReplay).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_client_credentials::{AccessToken, TokenRequest};
    /// # use tower::{BoxError, service_fn};
    /// # let token_service = service_fn(|_: TokenRequest| async {
    /// #     Ok::<_, BoxError>(AccessToken::new("token-1")?)
    /// # });
    /// use tower_client_credentials::ClientCredentialsLayer;
    ///
    /// let once = ClientCredentialsLayer::new(token_service).no_replay();
    /// // Another layer with the same tokens, for calls that may be sent twice.
    /// let twice = ClientCredentialsLayer::with_cache(once.cache().clone());
    /// ```
    pub fn no_replay(self) -> ClientCredentialsLayer<NoReplay> {
        self.replay(NoReplay)
    }

    /// Sets which responses reject the token, instead of the default.
    ///
    /// By default a 401 does, unless its Bearer challenges name an error, and none but
    /// `insufficient_scope` and `invalid_request` (RFC 6750 §3.1): another token would not help then.
    /// Many servers send no challenge at all. Some APIs answer 403 instead, and gRPC has
    /// `grpc-status: 16` in the headers of a 200.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_client_credentials::{AccessToken, TokenRequest};
    /// # use tower::{BoxError, service_fn};
    /// # let token_service = service_fn(|_: TokenRequest| async {
    /// #     Ok::<_, BoxError>(AccessToken::new("token-1")?)
    /// # });
    /// use tower_client_credentials::ClientCredentialsLayer;
    ///
    /// // Any 401, whatever its challenges say.
    /// let layer = ClientCredentialsLayer::new(token_service)
    ///     .rejected_when(|response| response.status == http::StatusCode::UNAUTHORIZED);
    /// # drop(layer);
    /// ```
    pub fn rejected_when(
        mut self,
        predicate: impl Fn(&Parts) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.rejected_when = Some(Arc::new(predicate));
        self
    }

    /// Sets the only origins that tokens may go to. Default: every origin.
    ///
    /// An origin is a scheme, a host and a port, as in `https://api.example` or
    /// `https://api.example:8443`: without a port it is the scheme's own. Requests to other origins
    /// pass untouched, and their responses say so ([`TokenOutcome::omitted`](crate::TokenOutcome::omitted)).
    ///
    /// A request whose URI is a path alone is taken by its `Host` header; what its scheme is, it does
    /// not say. Without `Host`, as tonic's and kube's requests are where the layer sees them, it goes
    /// to no known origin and gets no token. When URI and `Host` name two hosts, both have to be of
    /// these origins. With an empty list no request gets a token; a tunnel (`CONNECT`) never does.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_client_credentials::{AccessToken, Error, TokenRequest};
    /// # use tower::{BoxError, service_fn};
    /// # fn main() -> Result<(), Error> {
    /// # let token_service = service_fn(|_: TokenRequest| async {
    /// #     Ok::<_, BoxError>(AccessToken::new("token-1")?)
    /// # });
    /// use tower_client_credentials::ClientCredentialsLayer;
    ///
    /// let layer = ClientCredentialsLayer::new(token_service)
    ///     .allowed_origins(["https://api.linkedin.com", "https://www.linkedin.com"])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Fails if an origin is no absolute URL, names no host or a bad port, has a scheme other than
    /// http, https, ws and wss and no port, or has user information, a path or a query.
    pub fn allowed_origins<O>(mut self, origins: impl IntoIterator<Item = O>) -> Result<Self, Error>
    where
        O: TryInto<Uri, Error: Into<BoxError>>,
    {
        let origins = origins.into_iter().map(Origin::new);
        self.destinations
            .restrict_to(origins.collect::<Result<_, _>>()?);
        Ok(self)
    }

    /// Lets tokens go over plain http, where everybody on the way can read and use them.
    ///
    /// Without this, a request over plain http to another host than this machine's loopback passes
    /// untouched, and its response says so ([`TokenOutcome::omitted`](crate::TokenOutcome::omitted)). A
    /// request whose URI is a path alone does not say how it goes, and gets the token. Every scheme but
    /// `https`, `wss` and `unix` counts as plain http.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_client_credentials::{AccessToken, TokenRequest};
    /// # use tower::{BoxError, service_fn};
    /// # let token_service = service_fn(|_: TokenRequest| async {
    /// #     Ok::<_, BoxError>(AccessToken::new("token-1")?)
    /// # });
    /// use tower_client_credentials::ClientCredentialsLayer;
    ///
    /// // In a service mesh, which encrypts what goes over the network.
    /// let layer = ClientCredentialsLayer::new(token_service)
    ///     .allowed_origins(["http://orders.mesh.internal:8080"])?
    ///     .allow_http();
    /// # drop(layer);
    /// # Ok::<(), BoxError>(())
    /// ```
    pub fn allow_http(mut self) -> Self {
        self.destinations.allow_http();
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
        let options = Options {
            cache: self.cache.clone(),
            destinations: self.destinations.clone(),
            policy: self.replay.clone(),
            rejected_when: self.rejected_when.clone(),
        };
        ClientCredentials::new(inner, options)
    }
}

impl<R: fmt::Debug> fmt::Debug for ClientCredentialsLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentialsLayer")
            .field("cache", &self.cache)
            .field("replay", &self.replay)
            .field("destinations", &self.destinations)
            .finish_non_exhaustive()
    }
}
