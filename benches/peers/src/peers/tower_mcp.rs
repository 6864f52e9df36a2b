//! The token provider of [`tower-mcp`](https://docs.rs/tower-mcp). Its own HTTP transport only
//! speaks MCP, so this sets the header and handles rejections the way that transport does.

use ::tower_mcp::client::{OAuthClientCredentials, TokenProvider};
use http::StatusCode;
use tower::BoxError;

use crate::{
    endpoint::{CLIENT_ID, CLIENT_SECRET, Endpoint},
    peer::{ApiRequest, ApiResponse, ByHand, Client, Leaf, Peer, send, set_bearer},
};

#[derive(Clone)]
pub(crate) struct TowerMcp(OAuthClientCredentials);

impl Peer for TowerMcp {
    const NAME: &'static str = "tower-mcp";

    type Client<L: Leaf> = ByHand<Self, L>;

    async fn start(endpoint: &Endpoint) -> Result<Self, BoxError> {
        let provider = OAuthClientCredentials::builder()
            .client_id(CLIENT_ID)
            .client_secret(CLIENT_SECRET)
            .token_endpoint(endpoint.url())
            .resource("https://mcp.example.com")
            .build()?;
        Ok(Self(provider))
    }

    fn client<L: Leaf>(&self, leaf: L) -> Self::Client<L> {
        ByHand {
            tokens: self.clone(),
            leaf,
        }
    }
}

impl<L: Leaf> Client for ByHand<TowerMcp, L> {
    async fn send(&mut self, mut request: ApiRequest) -> Result<ApiResponse, BoxError> {
        set_bearer(&mut request, &self.tokens.0.get_token().await?)?;
        send(&mut self.leaf, request).await
    }

    async fn send_twice(&mut self, request: ApiRequest) -> Result<ApiResponse, BoxError> {
        let again = request.clone();
        let response = self.send(request).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        self.tokens.0.invalidate().await;
        self.send(again).await
    }
}
