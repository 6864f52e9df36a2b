//! [`middle`](https://docs.rs/middle): an authorizer that is built with a token and refreshes it in a
//! task of its own. Its own client is bound to reqwest, so the header is set as that client does it.
//!
//! Cannot: be cold, as `build` waits for the first token (and makes four requests 10 ms apart before
//! it gives up); be told of a rejected token.

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
    const NEVER_COLD: Option<&'static str> =
        Some("it gets its first token while it is built, before there is anything to call");
    const DEAF: Option<&'static str> = Some("it cannot be told that a token was rejected");

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
