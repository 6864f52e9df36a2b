use std::{
    future::{Ready, ready},
    time::{Duration, SystemTime},
};

use http::StatusCode;
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

/// A service that is measured.
pub trait Api: Service<ApiRequest, Response = ApiResponse, Error = BoxError> {}

impl<S: Service<ApiRequest, Response = ApiResponse, Error = BoxError>> Api for S {}

/// The stacks that are compared. Each call attaches a token that is there already.
pub struct Stacks {
    token: String,
    cache: TokenCache,
    watchful: TokenCache,
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
            watchful: cache(TokenCache::builder().wall_clock(SystemTime::now))?,
        })
    }

    pub fn leaf<F>(&self) -> Leaf<F> {
        Leaf::default()
    }

    /// A constant header: no expiry, no second send.
    pub fn add_authorization<F>(&self) -> AddAuthorization<Leaf<F>> {
        AddAuthorizationLayer::bearer(&self.token).layer(Leaf::default())
    }

    /// The same, with tower's own way of a second send.
    pub fn retry<F>(&self) -> Retry<RetryOnce, AddAuthorization<Leaf<F, 1>>> {
        let layer = AddAuthorizationLayer::bearer(&self.token);
        Retry::new(RetryOnce, layer.layer(Leaf::default()))
    }

    pub fn never<F>(&self) -> ClientCredentials<Leaf<F>, NoReplay> {
        let layer = ClientCredentialsLayer::with_cache(self.cache.clone());
        layer.no_replay().layer(Leaf::default())
    }

    pub fn clone_body<F>(&self) -> ClientCredentials<Leaf<F>> {
        ClientCredentialsLayer::with_cache(self.cache.clone()).layer(Leaf::default())
    }

    /// With a wall clock that is read by each call, and not once in a millisecond.
    pub fn watchful<F>(&self) -> ClientCredentials<Leaf<F, 1>, NoReplay> {
        let layer = ClientCredentialsLayer::with_cache(self.watchful.clone());
        layer.no_replay().layer(Leaf::default())
    }
}

/// Keeps a clone of every request, and sends it once more after a 401.
#[derive(Clone, Debug)]
pub struct RetryOnce;

impl Policy<ApiRequest, ApiResponse, BoxError> for RetryOnce {
    type Future = Ready<()>;

    fn retry(
        &mut self,
        _: &mut ApiRequest,
        result: &mut Result<ApiResponse, BoxError>,
    ) -> Option<Ready<()>> {
        match result {
            Ok(response) if response.status() == StatusCode::UNAUTHORIZED => Some(ready(())),
            _ => None,
        }
    }

    fn clone_request(&mut self, request: &ApiRequest) -> Option<ApiRequest> {
        Some(request.clone())
    }
}
