use std::{fmt, sync::Arc};

use http::{Uri, request, response::Parts};
use tower::{BoxError, Layer, Service};

use crate::{
    AccessToken, ClientCredentials, Error, TokenCache, TokenParameters, TokenRemoved, TokenRequest,
    call::{Options, ParametersBy, RejectedWhen},
    origin::{Destinations, Origin},
    replay::{CloneBody, NoReplay},
};

/// Adds an access token to every request of the wrapped service. See the [crate docs](crate).
///
/// These requests are sent unchanged:
///
/// * requests that already have the token's header, usually `Authorization`,
/// * requests over plain HTTP to another machine, or with a scheme other than `https`, unless
///   [`allow_http`](Self::allow_http) is set,
/// * requests to origins that [`allowed_origins`](Self::allowed_origins) doesn't list.
///
/// Without `allowed_origins`, requests to any host get a token. This includes redirects to other
/// hosts if a layer above this one follows them.
///
/// # Examples
///
/// With the default options:
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
    parameters_by: Option<ParametersBy>,
    replay: R,
    rejected_when: Option<RejectedWhen>,
    destinations: Destinations,
}

impl ClientCredentialsLayer {
    /// Creates a layer with the default options and its own [`TokenCache`] for the token service.
    pub fn new<T>(token_service: T) -> Self
    where
        T: Service<TokenRequest, Response = AccessToken> + Clone + Send + 'static,
        T::Error: Into<BoxError>,
        T::Future: Send + 'static,
    {
        Self::with_cache(TokenCache::new(token_service))
    }

    /// Creates a layer that takes its tokens from `cache`. Several layers can share a cache.
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
            parameters_by: None,
            replay: CloneBody,
            rejected_when: None,
            destinations: Destinations::default(),
        }
    }
}

impl<R> ClientCredentialsLayer<R> {
    /// Sets how a request is sent again after the API has rejected its token. Default:
    /// [`CloneBody`].
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_client_credentials::{ClientCredentialsLayer, TokenEndpoint, replay::Buffered};
    ///
    /// fn layer(tokens: TokenEndpoint) -> ClientCredentialsLayer<Buffered> {
    ///     ClientCredentialsLayer::new(tokens).replay(Buffered::new(64 * 1024))
    /// }
    /// ```
    pub fn replay<P>(self, policy: P) -> ClientCredentialsLayer<P> {
        ClientCredentialsLayer {
            cache: self.cache,
            parameters_by: self.parameters_by,
            replay: policy,
            rejected_when: self.rejected_when,
            destinations: self.destinations,
        }
    }

    /// Sends each request only once. Short for `replay(NoReplay)`.
    ///
    /// To send a single request only once, add [`NoReplay`] to its extensions instead.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_client_credentials::{ClientCredentialsLayer, TokenEndpoint, replay::NoReplay};
    ///
    /// /// A layer that sends requests once, and one that may send them twice, with the same tokens.
    /// fn layers(
    ///     tokens: TokenEndpoint,
    /// ) -> (ClientCredentialsLayer<NoReplay>, ClientCredentialsLayer) {
    ///     let once = ClientCredentialsLayer::new(tokens).no_replay();
    ///     let twice = ClientCredentialsLayer::with_cache(once.cache().clone());
    ///     (once, twice)
    /// }
    /// ```
    pub fn no_replay(self) -> ClientCredentialsLayer<NoReplay> {
        self.replay(NoReplay)
    }

    /// Sets a function that chooses the parameters of a request's token. By default, all requests use
    /// the cache's own.
    ///
    /// Requests with equal parameters share a token. The parameters replace the cache's own, tenant
    /// included. With `None`, the request uses the cache's own. A request that has [`TokenParameters`]
    /// in its extensions uses those instead.
    ///
    /// The function is called for each request, so prefer to clone parameters that are ready.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_client_credentials::{AccessToken, TokenRequest};
    /// # use tower::{BoxError, service_fn};
    /// # let token_service = service_fn(|_: TokenRequest| async {
    /// #     Ok::<_, BoxError>(AccessToken::new("token-1")?)
    /// # });
    /// use tower_client_credentials::{ClientCredentialsLayer, TokenParameters};
    ///
    /// let reports = TokenParameters::default().with_scope("reports.read");
    /// let layer = ClientCredentialsLayer::new(token_service).parameters_by(move |request| {
    ///     let is_report = request.uri.path().starts_with("/reports/");
    ///     is_report.then(|| reports.clone())
    /// });
    /// # drop(layer);
    /// ```
    ///
    /// # Panics
    ///
    /// A call panics if the function panics.
    pub fn parameters_by(
        mut self,
        parameters: impl Fn(&request::Parts) -> Option<TokenParameters> + Send + Sync + 'static,
    ) -> Self {
        self.parameters_by = Some(Arc::new(parameters));
        self
    }

    /// Sets which responses count as a rejection of the token. Replaces the default rule.
    ///
    /// By default, these responses are rejections:
    ///
    /// * a 401, unless its Bearer challenges name only the errors `insufficient_scope` and
    ///   `invalid_request` (RFC 6750 §3.1), which another token wouldn't fix,
    /// * a 400 or a 403 with the error `invalid_token` in a Bearer challenge.
    ///
    /// A response with the extension [`TokenRemoved`] is never a rejection.
    ///
    /// Set this option if your API rejects tokens in another way. Some APIs answer 403 without a
    /// challenge, and gRPC servers answer 200 with `grpc-status: 16` in the headers. The function
    /// doesn't see the body.
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
    /// // Every 401 is a rejection, regardless of its challenges.
    /// let layer = ClientCredentialsLayer::new(token_service)
    ///     .rejected_when(|response| response.status == http::StatusCode::UNAUTHORIZED);
    /// # drop(layer);
    /// ```
    pub fn rejected_when(
        mut self,
        predicate: impl Fn(&Parts) -> bool + Send + Sync + 'static,
    ) -> Self {
        let rejected_when = move |response: &Parts| {
            // A response of another origin says nothing about the token.
            !TokenRemoved::is_on(response) && predicate(response)
        };
        self.rejected_when = Some(Arc::new(rejected_when));
        self
    }

    /// Restricts tokens to the given origins. Default: no restriction.
    ///
    /// An origin consists of a scheme, a host and a port, such as `https://api.example:8443`. The
    /// port defaults to that of the scheme. Requests to other origins are sent without a token.
    /// [`TokenOutcome::omitted`](crate::TokenOutcome::omitted) reports this. Calling this method
    /// again adds origins. Patterns such as `https://*.example` aren't supported.
    ///
    /// Requests with the schemes `wss` and `unix` get a token only if an allowed origin has this
    /// scheme, such as `wss://api.example` or `unix://2f746d702f736f636b`, or with
    /// [`allow_http`](Self::allow_http).
    ///
    /// The origin of a request is determined as follows:
    ///
    /// * If both the URI and the `Host` header name a host, both must match an allowed origin.
    /// * If the URI is only a path, the `Host` header must match, and the scheme isn't compared.
    /// * If neither names a host, the request gets no token. This applies to all requests of tonic
    ///   and kube, because these clients add the host below this layer.
    ///
    /// With an empty list, no request gets a token. `CONNECT` requests never get one.
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
    /// Fails if an origin
    ///
    /// * isn't an absolute URL,
    /// * has no host or an invalid port,
    /// * has a pattern or a list in place of a host,
    /// * has no port, and its scheme isn't `http`, `https`, `ws`, `wss` or `unix`,
    /// * contains user information, a path or a query.
    pub fn allowed_origins<O>(mut self, origins: impl IntoIterator<Item = O>) -> Result<Self, Error>
    where
        O: TryInto<Uri, Error: Into<BoxError>>,
    {
        let origins = origins.into_iter().map(Origin::new);
        self.destinations
            .allow_origins(origins.collect::<Result<_, _>>()?);
        Ok(self)
    }

    /// Allows sending tokens over plain HTTP, where anyone on the network path can read and use
    /// them.
    ///
    /// By default, requests get a token only over `https`, and over `http` to loopback. Others are
    /// sent without a token, and [`TokenOutcome::omitted`](crate::TokenOutcome::omitted) reports
    /// this. A URI that is only a path doesn't contain a scheme, so such requests get a token even
    /// without this option.
    ///
    /// All other schemes count as plain HTTP, except `wss` and `unix` if
    /// [`allowed_origins`](Self::allowed_origins) lists an origin with this scheme. Schemes are
    /// compared exactly: a URI that was built with the scheme `HTTPS` counts as plain HTTP, because
    /// some HTTP clients would send the request unencrypted. `Uri` parses `HTTPS://` into `https`.
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
    /// // In a service mesh that encrypts the traffic.
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

    /// Returns the cache that supplies the tokens.
    pub fn cache(&self) -> &TokenCache {
        &self.cache
    }
}

impl<S, R: Clone> Layer<S> for ClientCredentialsLayer<R> {
    type Service = ClientCredentials<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        let options = Options {
            cache: self.cache.clone(),
            parameters_by: self.parameters_by.clone(),
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
