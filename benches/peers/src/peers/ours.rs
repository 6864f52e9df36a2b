//! This crate: the layer with and without replays, and the cache alone.

use bytes::Bytes;
use http::{StatusCode, header::AUTHORIZATION};
use http_body_util::Full;
use hyper_util::{client::legacy::Client as HyperClient, rt::TokioExecutor};
use tower::{BoxError, Layer};
use tower_client_credentials::{
    AccessToken, ClientAuth, ClientCredentials, ClientCredentialsLayer, TokenCache, TokenEndpoint,
    replay::{CloneBody, NoReplay},
};

use crate::{
    endpoint::{CLIENT_ID, CLIENT_SECRET, Endpoint},
    peer::{ApiRequest, ApiResponse, ByHand, Client, Layered, Leaf, Peer, send},
};

fn tokens(endpoint: &Endpoint) -> Result<TokenCache, BoxError> {
    let http = HyperClient::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let auth = ClientAuth::client_secret_post(CLIENT_ID, CLIENT_SECRET);
    Ok(TokenCache::new(TokenEndpoint::new(
        http,
        endpoint.url(),
        auth,
    )?))
}

/// The layer without replays.
pub(crate) struct WithNoReplay(ClientCredentialsLayer<NoReplay>);

impl Peer for WithNoReplay {
    const NAME: &'static str = "this crate, NoReplay";
    const OURS: bool = true;
    const NO_REJECTION: Option<&'static str> = Some("configured to return a 401 to the caller");

    type Client<L: Leaf> = Layered<ClientCredentials<L, NoReplay>>;

    async fn start(endpoint: &Endpoint) -> Result<Self, BoxError> {
        let layer = ClientCredentialsLayer::with_cache(tokens(endpoint)?);
        Ok(Self(layer.no_replay()))
    }

    fn client<L: Leaf>(&self, leaf: L) -> Self::Client<L> {
        Layered(self.0.layer(leaf))
    }
}

/// The layer with all defaults.
pub(crate) struct WithCloneBody(ClientCredentialsLayer<CloneBody>);

impl Peer for WithCloneBody {
    const NAME: &'static str = "this crate, CloneBody";
    const OURS: bool = true;
    const REPLAYS: bool = true;

    type Client<L: Leaf> = Layered<ClientCredentials<L, CloneBody>>;

    async fn start(endpoint: &Endpoint) -> Result<Self, BoxError> {
        Ok(Self(ClientCredentialsLayer::with_cache(tokens(endpoint)?)))
    }

    fn client<L: Leaf>(&self, leaf: L) -> Self::Client<L> {
        Layered(self.0.layer(leaf))
    }
}

/// The cache without the layer, for protocols other than HTTP.
#[derive(Clone)]
pub(crate) struct Cache(TokenCache);

impl Peer for Cache {
    const NAME: &'static str = "this crate, TokenCache";
    const OURS: bool = true;

    type Client<L: Leaf> = ByHand<Self, L>;

    async fn start(endpoint: &Endpoint) -> Result<Self, BoxError> {
        Ok(Self(tokens(endpoint)?))
    }

    fn client<L: Leaf>(&self, leaf: L) -> Self::Client<L> {
        ByHand {
            tokens: self.clone(),
            leaf,
        }
    }
}

impl Cache {
    async fn authorize(&self, request: &mut ApiRequest) -> Result<AccessToken, BoxError> {
        let token = self.0.token().await?;
        let header_value = token.header_value().clone();
        request.headers_mut().insert(AUTHORIZATION, header_value);
        Ok(token)
    }
}

impl<L: Leaf> Client for ByHand<Cache, L> {
    async fn send(&mut self, mut request: ApiRequest) -> Result<ApiResponse, BoxError> {
        self.tokens.authorize(&mut request).await?;
        send(&mut self.leaf, request).await
    }

    async fn send_twice(&mut self, mut request: ApiRequest) -> Result<ApiResponse, BoxError> {
        let mut again = request.clone();
        let token = self.tokens.authorize(&mut request).await?;
        let response = send(&mut self.leaf, request).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        self.tokens.0.reject(&token);
        self.tokens.authorize(&mut again).await?;
        send(&mut self.leaf, again).await
    }
}
