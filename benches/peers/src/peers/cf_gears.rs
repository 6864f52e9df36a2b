//! [`cf-gears-toolkit-auth`](https://docs.rs/cf-gears-toolkit-auth): two tower layers over one
//! token provider. Both require services with the error type of its own HTTP client.

use std::convert::Infallible;

use toolkit_auth::{
    BearerAuthAutoRefreshLayer, BearerAuthLayer, OAuthClientConfig, SecretString, TokenProvider,
};
use toolkit_http::HttpError;
use tower::{BoxError, Layer, ServiceExt, util::MapErr};

use crate::{
    endpoint::{CLIENT_ID, CLIENT_SECRET, Endpoint},
    peer::{Layered, Leaf, Peer},
};

type Adapted<L> = MapErr<L, fn(Infallible) -> HttpError>;

fn adapt<L: Leaf>(leaf: L) -> Adapted<L> {
    leaf.map_err(|never| match never {})
}

fn tokens(endpoint: &Endpoint) -> Result<TokenProvider, BoxError> {
    let config = OAuthClientConfig {
        token_endpoint: Some(endpoint.url().parse()?),
        client_id: CLIENT_ID.to_owned(),
        client_secret: SecretString::new(CLIENT_SECRET),
        ..OAuthClientConfig::default()
    };
    Ok(TokenProvider::new(config)?)
}

/// The layer without replays.
pub(crate) struct Plain(BearerAuthLayer);

impl Peer for Plain {
    const NAME: &'static str = "cf-gears, plain";
    const NO_REJECTION: Option<&'static str> = Some("its other layer handles them");

    type Client<L: Leaf> = Layered<<BearerAuthLayer as Layer<Adapted<L>>>::Service>;

    async fn start(endpoint: &Endpoint) -> Result<Self, BoxError> {
        Ok(Self(BearerAuthLayer::new(tokens(endpoint)?)))
    }

    fn client<L: Leaf>(&self, leaf: L) -> Self::Client<L> {
        Layered(self.0.layer(adapt(leaf)))
    }
}

/// The layer that sends a request once more after a 401.
pub(crate) struct AutoRefresh(BearerAuthAutoRefreshLayer);

impl Peer for AutoRefresh {
    const NAME: &'static str = "cf-gears, auto-refresh";
    const REPLAYS: bool = true;

    type Client<L: Leaf> = Layered<<BearerAuthAutoRefreshLayer as Layer<Adapted<L>>>::Service>;

    async fn start(endpoint: &Endpoint) -> Result<Self, BoxError> {
        Ok(Self(BearerAuthAutoRefreshLayer::new(tokens(endpoint)?)))
    }

    fn client<L: Leaf>(&self, leaf: L) -> Self::Client<L> {
        Layered(self.0.layer(adapt(leaf)))
    }
}
