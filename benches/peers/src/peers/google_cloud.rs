//! [`google-cloud-auth`](https://docs.rs/google-cloud-auth): credentials whose task requests a
//! token when they are built, and again before it expires. The crate has no client-credentials
//! grant. Its user credentials accept another token endpoint; they use the refresh-token grant (RFC
//! 6749 §6), which also takes one token request per token.
//!
//! Limits: it has no way to report a rejected token.

use google_cloud_auth::credentials::{CacheableResource, Credentials, user_account};
use http::Extensions;
use serde_json::json;
use tower::BoxError;

use crate::{
    endpoint::{CLIENT_ID, CLIENT_SECRET, Endpoint},
    peer::{ApiRequest, ApiResponse, ByHand, Client, Leaf, Peer, send},
};

#[derive(Clone)]
pub(crate) struct GoogleCloud(Credentials);

impl Peer for GoogleCloud {
    const NAME: &'static str = "google-cloud-auth";
    const NO_REJECTION: Option<&'static str> = Some("it has no way to report a rejected token");

    type Client<L: Leaf> = ByHand<Self, L>;

    async fn start(endpoint: &Endpoint) -> Result<Self, BoxError> {
        let credentials = user_account::Builder::new(json!({
            "type": "authorized_user",
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "refresh_token": "refresh",
            "token_uri": endpoint.url(),
        }));
        Ok(Self(credentials.build()?))
    }

    fn client<L: Leaf>(&self, leaf: L) -> Self::Client<L> {
        ByHand {
            tokens: self.clone(),
            leaf,
        }
    }
}

impl<L: Leaf> Client for ByHand<GoogleCloud, L> {
    async fn send(&mut self, mut request: ApiRequest) -> Result<ApiResponse, BoxError> {
        // Without an entity tag in the extensions, it always returns the headers.
        let headers = self.tokens.0.headers(Extensions::new()).await?;
        let CacheableResource::New { data, .. } = headers else {
            return Err("the credentials returned no headers".into());
        };
        request.headers_mut().extend(data);
        send(&mut self.leaf, request).await
    }
}
