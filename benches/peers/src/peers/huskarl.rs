//! [`huskarl`](https://docs.rs/huskarl): a cache around a grant, and an authorizer that
//! turns cached tokens into headers. Its guide asks for `process_response` after every response.

use std::sync::Arc;

use ::huskarl::{
    authorizer::HttpAuthorizer,
    cache::{GrantTokenSource, InMemoryRefreshTokenStore, InMemoryTokenCache},
    core::{
        client_auth::ClientSecret,
        secrets::{ProvidedSecret, SecretString},
    },
    grant::client_credentials::{ClientCredentialsGrant, ClientCredentialsGrantParameters},
};
use http::StatusCode;
use huskarl_reqwest::ReqwestClient;
use tower::BoxError;

use crate::{
    endpoint::{CLIENT_ID, CLIENT_SECRET, Endpoint},
    peer::{ApiRequest, ApiResponse, ByHand, Client, Leaf, Peer, send},
};

#[derive(Clone)]
pub(crate) struct Huskarl(Arc<HttpAuthorizer>);

impl Peer for Huskarl {
    const NAME: &'static str = "huskarl";

    type Client<L: Leaf> = ByHand<Self, L>;

    async fn start(endpoint: &Endpoint) -> Result<Self, BoxError> {
        let secret = ProvidedSecret::new(SecretString::new(CLIENT_SECRET));
        let grant = ClientCredentialsGrant::builder()
            .client_id(CLIENT_ID)
            .client_auth(ClientSecret::new(secret))
            .token_endpoint(endpoint.url().parse()?)
            .http_client(ReqwestClient::builder().build().await?)
            .build();
        let source = GrantTokenSource::builder()
            .grant(grant)
            .grant_parameters(ClientCredentialsGrantParameters::builder().build())
            .refresh_store(InMemoryRefreshTokenStore::default())
            .build();
        let cache = InMemoryTokenCache::builder().source(source).build();
        let authorizer = HttpAuthorizer::builder().cache(cache).build();
        Ok(Self(Arc::new(authorizer)))
    }

    fn client<L: Leaf>(&self, leaf: L) -> Self::Client<L> {
        ByHand {
            tokens: self.clone(),
            leaf,
        }
    }
}

impl<L: Leaf> Client for ByHand<Huskarl, L> {
    async fn send(&mut self, mut request: ApiRequest) -> Result<ApiResponse, BoxError> {
        let authorizer = &self.tokens.0;
        let uri = request.uri().clone();
        let headers = authorizer.get_headers(request.method(), &uri).await?;
        request.headers_mut().extend(headers);
        let response = send(&mut self.leaf, request).await?;
        authorizer.process_response(&uri, response.headers());
        Ok(response)
    }

    async fn send_twice(&mut self, request: ApiRequest) -> Result<ApiResponse, BoxError> {
        let again = request.clone();
        let response = self.send(request).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        self.send(again).await
    }
}
