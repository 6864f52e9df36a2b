//! [`middle`](https://docs.rs/middle): an authorizer that is built with a token and refreshes it in
//! its own task. Its own client is tied to reqwest, so this sets the header the way that client
//! does.
//!
//! Limits: it has no cold start, as `build` waits for the first token (and makes up to four
//! requests 10 ms apart), and it has no way to report a rejected token.

use std::sync::Arc;

use ::middle::{Authorizer, BasicClientCredentialAuthorizer};
use http::header::AUTHORIZATION;
use tower::BoxError;
use url::Url;

use crate::{
    endpoint::{CLIENT_ID, CLIENT_SECRET, Endpoint},
    peer::{ApiRequest, ApiResponse, ByHand, Client, Leaf, Peer, send},
};

#[derive(Clone)]
pub(crate) struct Middle(BasicClientCredentialAuthorizer);

impl Peer for Middle {
    const NAME: &'static str = "middle";
    const NO_COLD_START: Option<&'static str> =
        Some("it requests its first token before it can be called");
    const NO_REJECTION: Option<&'static str> = Some("it has no way to report a rejected token");

    type Client<L: Leaf> = ByHand<Self, L>;

    async fn start(endpoint: &Endpoint) -> Result<Self, BoxError> {
        let authorizer = BasicClientCredentialAuthorizer::basic_builder(
            CLIENT_ID,
            CLIENT_SECRET,
            Url::parse(endpoint.url())?,
        );
        Ok(Self(authorizer.build().await?))
    }

    fn client<L: Leaf>(&self, leaf: L) -> Self::Client<L> {
        ByHand {
            tokens: self.clone(),
            leaf,
        }
    }
}

impl<L: Leaf> Client for ByHand<Middle, L> {
    async fn send(&mut self, mut request: ApiRequest) -> Result<ApiResponse, BoxError> {
        let header_value = self.tokens.0.authorization_header()?;
        let headers = request.headers_mut();
        if !headers.contains_key(AUTHORIZATION) {
            headers.insert(AUTHORIZATION, Arc::unwrap_or_clone(header_value));
        }
        send(&mut self.leaf, request).await
    }
}
