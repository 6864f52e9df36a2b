//! The client side: hyper-util's client, the layer around it, and the outcome of a call.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::task::JoinSet;
use tower::{Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimit};
use tower_client_credentials::{
    BoxError, ClientCredentials, ClientCredentialsLayer, NotReplayed, TokenCache,
    TokenCacheBuilder, TokenOutcome, provider,
};

use crate::servers::{APPLICATION, Servers, TOKEN_NUMBER, now};

/// Far below the number of sockets that a program may open.
const MAX_CONCURRENT_CALLS: usize = 32;

type HttpClient = ConcurrencyLimit<Client<HttpConnector, Full<Bytes>>>;

/// A client of the API with its own token cache and servers. Clones share them.
#[derive(Clone)]
pub(crate) struct Stack {
    pub(crate) servers: Arc<Servers>,
    api: ClientCredentials<HttpClient>,
}

/// The outcome of a call.
pub(crate) struct Outcome {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
    /// The number of the token that the API received.
    pub(crate) token: usize,
    /// Whether the call waited for that token.
    pub(crate) waited: bool,
    pub(crate) elapsed: Duration,
    pub(crate) not_replayed: Option<NotReplayed>,
}

impl Stack {
    /// Starts servers with the given token lifetime, and builds a client for them.
    pub(crate) async fn start(token_lifetime: Duration) -> Result<Self, BoxError> {
        Self::start_with(token_lifetime, APPLICATION, TokenCache::builder()).await
    }

    /// Like [`start`](Self::start), with other credentials or another cache.
    pub(crate) async fn start_with(
        token_lifetime: Duration,
        (client_id, client_secret): (&str, &str),
        cache: TokenCacheBuilder,
    ) -> Result<Self, BoxError> {
        let servers = Servers::start(token_lifetime).await?;
        let http = ServiceBuilder::new()
            .concurrency_limit(MAX_CONCURRENT_CALLS)
            .service(Client::builder(TokioExecutor::new()).build_http());

        let tokens =
            provider::linkedin(http.clone(), client_id, client_secret)?.url(&servers.token_url)?;
        let api = ServiceBuilder::new()
            .layer(ClientCredentialsLayer::with_cache(cache.build(tokens)))
            .service(http);
        Ok(Self {
            servers: Arc::new(servers),
            api,
        })
    }

    pub(crate) async fn get(&self) -> Result<Outcome, BoxError> {
        let request = Request::get(&self.servers.api_url);
        self.call(request.body(Full::default())?).await
    }

    pub(crate) async fn post(&self, body: Bytes) -> Result<Outcome, BoxError> {
        let request = Request::post(&self.servers.api_url);
        self.call(request.body(Full::new(body))?).await
    }

    /// Makes concurrent calls, each in its own task.
    pub(crate) async fn get_all(&self, calls: usize) -> Vec<Result<Outcome, BoxError>> {
        let mut tasks = JoinSet::new();
        for _ in 0..calls {
            let stack = self.clone();
            tasks.spawn(async move { stack.get().await });
        }
        tasks.join_all().await
    }

    async fn call(&self, request: Request<Full<Bytes>>) -> Result<Outcome, BoxError> {
        let started = now();
        let mut api = self.api.clone();
        let response = api.ready().await?.call(request);
        // A call that finds a token already has it. Tokens that are issued later were waited for.
        let issued_tokens = self.servers.issued_tokens();
        let (head, body) = response.await?.into_parts();
        let body = body.collect().await?.to_bytes();

        let token = head.headers.get(TOKEN_NUMBER);
        let token = token.ok_or("the API does not name the token that it received")?;
        let token = token.to_str()?.parse()?;
        Ok(Outcome {
            status: head.status,
            body,
            token,
            waited: token > issued_tokens,
            elapsed: started.elapsed(),
            not_replayed: head
                .extensions
                .get::<TokenOutcome>()
                .and_then(TokenOutcome::not_replayed)
                .cloned(),
        })
    }
}
