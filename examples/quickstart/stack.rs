//! The client side: hyper-util's client, the layer around it, and what a call through it came to.

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

/// Far below the number of sockets that any system lets a program open.
const CALLS_ON_THE_WIRE: usize = 32;

type HttpClient = ConcurrencyLimit<Client<HttpConnector, Full<Bytes>>>;

/// A client of the API, with a token cache and servers of its own; clones share them.
#[derive(Clone)]
pub(crate) struct Stack {
    pub(crate) servers: Arc<Servers>,
    api: ClientCredentials<HttpClient>,
}

/// What a call came to.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
    /// The number of the token that the API got.
    pub(crate) token: usize,
    /// Whether the call had to wait for that token.
    pub(crate) waited: bool,
    pub(crate) took: Duration,
    pub(crate) not_replayed: Option<NotReplayed>,
}

impl Stack {
    /// Starts servers whose tokens live so long, and makes a client for them.
    pub(crate) async fn start(token_life: Duration) -> Result<Self, BoxError> {
        Self::start_with(token_life, APPLICATION, TokenCache::builder()).await
    }

    /// The same, with other credentials or another cache.
    pub(crate) async fn start_with(
        token_life: Duration,
        (client_id, client_secret): (&str, &str),
        cache: TokenCacheBuilder,
    ) -> Result<Self, BoxError> {
        let servers = Servers::start(token_life).await?;
        let http = ServiceBuilder::new()
            .concurrency_limit(CALLS_ON_THE_WIRE)
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

    pub(crate) async fn get(&self) -> Result<Answer, BoxError> {
        let request = Request::get(&self.servers.api_url);
        self.call(request.body(Full::default())?).await
    }

    pub(crate) async fn post(&self, body: Bytes) -> Result<Answer, BoxError> {
        let request = Request::post(&self.servers.api_url);
        self.call(request.body(Full::new(body))?).await
    }

    /// So many calls at once, each in a task of its own.
    pub(crate) async fn get_all(&self, calls: usize) -> Vec<Result<Answer, BoxError>> {
        let mut tasks = JoinSet::new();
        for _ in 0..calls {
            let stack = self.clone();
            tasks.spawn(async move { stack.get().await });
        }
        tasks.join_all().await
    }

    async fn call(&self, request: Request<Full<Bytes>>) -> Result<Answer, BoxError> {
        let started = now();
        let mut api = self.api.clone();
        let response = api.ready().await?.call(request);
        // A call that finds a token has taken it by now; what is issued later, it waits for.
        let issued_tokens = self.servers.issued_tokens();
        let (head, body) = response.await?.into_parts();
        let body = body.collect().await?.to_bytes();

        let token = head.headers.get(TOKEN_NUMBER);
        let token = token.ok_or("the API does not say which token it got")?;
        let token = token.to_str()?.parse()?;
        Ok(Answer {
            status: head.status,
            body,
            token,
            waited: token > issued_tokens,
            took: started.elapsed(),
            not_replayed: head
                .extensions
                .get::<TokenOutcome>()
                .and_then(TokenOutcome::not_replayed)
                .cloned(),
        })
    }
}
