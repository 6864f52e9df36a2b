use std::{
    future::{Ready, ready},
    time::{Duration, SystemTime},
};

use http::{Request, Response, StatusCode};
use tokio::runtime;
use tower::{
    BoxError, Layer, Service,
    retry::{Policy, Retry},
};
use tower_client_credentials::{
    ClientCredentials, ClientCredentialsLayer, TokenCache, TokenCacheBuilder, replay::NoReplay,
};
use tower_http::auth::{AddAuthorization, AddAuthorizationLayer};

use crate::{ApiRequest, ApiResponse, Leaf, Tokens, secret};

/// A service that the benches call.
pub trait Api: Service<ApiRequest, Response = ApiResponse, Error = BoxError> {}

impl<S: Service<ApiRequest, Response = ApiResponse, Error = BoxError>> Api for S {}

/// Builds the stacks that are compared. Their tokens are fresh from the start.
pub struct Stacks {
    token: String,
    cache: TokenCache,
    cache_with_wall_clock: TokenCache,
}

impl Stacks {
    pub fn new() -> Result<Self, BoxError> {
        let cache = |builder: TokenCacheBuilder| {
            let cache = builder.build(Tokens::new(Duration::ZERO).service());
            let runtime = runtime::Builder::new_current_thread()
                .enable_time()
                .build()?;
            runtime.block_on(cache.token())?;
            Ok::<_, BoxError>(cache)
        };
        Ok(Self {
            token: secret(1),
            cache: cache(TokenCache::builder())?,
            cache_with_wall_clock: cache(TokenCache::builder().wall_clock(SystemTime::now))?,
        })
    }

    /// The leaf alone. All other figures are less those of this one.
    pub fn leaf<F>(&self) -> Leaf<F> {
        Leaf::default()
    }

    /// A constant header: no expiry and no replay.
    pub fn add_authorization<F>(&self) -> AddAuthorization<Leaf<F>> {
        AddAuthorizationLayer::bearer(&self.token).layer(Leaf::default())
    }

    /// A constant header, and tower's own middleware for sending a request again.
    pub fn retry<F>(&self) -> Retry<RetryOnce, AddAuthorization<Leaf<F, 1>>> {
        let layer = AddAuthorizationLayer::bearer(&self.token);
        Retry::new(RetryOnce, layer.layer(Leaf::default()))
    }

    pub fn no_replay<F>(&self) -> ClientCredentials<Leaf<F>, NoReplay> {
        let layer = ClientCredentialsLayer::with_cache(self.cache.clone());
        layer.no_replay().layer(Leaf::default())
    }

    pub fn clone_body<F>(&self) -> ClientCredentials<Leaf<F>> {
        ClientCredentialsLayer::with_cache(self.cache.clone()).layer(Leaf::default())
    }

    /// `NoReplay` with a wall clock of its own, which makes every call look up the cache and read
    /// both clocks.
    pub fn lookup_each_call<F>(&self) -> ClientCredentials<Leaf<F, 1>, NoReplay> {
        let layer = ClientCredentialsLayer::with_cache(self.cache_with_wall_clock.clone());
        layer.no_replay().layer(Leaf::default())
    }
}

/// Keeps a clone of every request and sends it once more after a 401.
#[derive(Clone, Debug)]
pub struct RetryOnce;

impl<B, ResBody, E> Policy<Request<B>, Response<ResBody>, E> for RetryOnce
where
    B: Clone,
{
    type Future = Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<B>,
        result: &mut Result<Response<ResBody>, E>,
    ) -> Option<Ready<()>> {
        match result {
            Ok(response) if response.status() == StatusCode::UNAUTHORIZED => Some(ready(())),
            _ => None,
        }
    }

    fn clone_request(&mut self, request: &Request<B>) -> Option<Request<B>> {
        Some(request.clone())
    }
}
