//! [`aliri_tokens`](https://docs.rs/aliri_tokens): a task that refreshes a token ahead of time and
//! publishes it on a watch channel.
//!
//! Limits: it has no cold start, as spawning it waits for the first token (one request, whose error
//! the caller gets), and it has no way to report a rejected token.

use ::aliri::jwt::Audience;
use ::aliri_tokens::{
    ClientId, ClientSecret, TokenLifetimeConfig, TokenWatcher,
    backoff::ErrorBackoffConfig,
    jitter::RandomEarlyJitter,
    sources::oauth2::{
        ClientCredentialsTokenSource,
        dto::{ClientCredentials, ClientCredentialsWithAudience},
    },
};
use aliri_clock::DurationSecs;
use tower::BoxError;

use crate::{
    endpoint::{CLIENT_ID, CLIENT_SECRET, Endpoint},
    peer::{ApiRequest, ApiResponse, ByHand, Client, Leaf, Peer, send, set_bearer},
};

#[derive(Clone)]
pub(crate) struct Aliri(TokenWatcher);

impl Peer for Aliri {
    const NAME: &'static str = "aliri_tokens";
    const NO_COLD_START: Option<&'static str> =
        Some("it requests its first token before it can be called");
    const NO_REJECTION: Option<&'static str> = Some("it has no way to report a rejected token");

    type Client<L: Leaf> = ByHand<Self, L>;

    async fn start(endpoint: &Endpoint) -> Result<Self, BoxError> {
        let credentials = ClientCredentials {
            client_id: ClientId::from_static(CLIENT_ID),
            client_secret: ClientSecret::from_static(CLIENT_SECRET),
        };
        let source = ClientCredentialsTokenSource::new(
            reqwest_0_12::Client::new(),
            endpoint.url().parse()?,
            ClientCredentialsWithAudience {
                credentials: credentials.into(),
                audience: Audience::from_static("https://api.example.com"),
            },
            TokenLifetimeConfig::default(),
        );
        let watcher = TokenWatcher::spawn_from_token_source(
            source,
            RandomEarlyJitter::new(DurationSecs(60)),
            ErrorBackoffConfig::default(),
        );
        Ok(Self(watcher.await?))
    }

    fn client<L: Leaf>(&self, leaf: L) -> Self::Client<L> {
        ByHand {
            tokens: self.clone(),
            leaf,
        }
    }
}

impl<L: Leaf> Client for ByHand<Aliri, L> {
    async fn send(&mut self, mut request: ApiRequest) -> Result<ApiResponse, BoxError> {
        set_bearer(&mut request, self.tokens.0.token().access_token().as_str())?;
        send(&mut self.leaf, request).await
    }
}
