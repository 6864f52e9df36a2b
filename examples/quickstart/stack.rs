//! The client side: hyper-util's client, the layer around it, and the outcome of a call. The servers
//! are those of the test kit.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{task::JoinSet, time::Instant};
use tower::{Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimit};
use tower_client_credentials::{
    BoxError, ClientCredentials, ClientCredentialsLayer, NotReplayed, TokenCache,
    TokenCacheBuilder, TokenOutcome, provider,
};
use tower_client_credentials_test::{
    Api, AuthServer, Client as Application, Reply, Server, TokenState, personality::LinkedIn,
};

/// A registered application: its id and its secret. Like LinkedIn's secrets, this one needs
/// encoding.
pub(crate) const APPLICATION: (&str, &str) = ("77tt5zexample", "not/a+real=secret==");

/// An application without access to 2-legged OAuth.
pub(crate) const UNPRIVILEGED: (&str, &str) = ("77uu6yexample", "not/a+real=one=either==");

/// The response time of the authorization server.
pub(crate) const TOKEN_DELAY: Duration = Duration::from_millis(50);

/// Far below the number of sockets that a program may open.
const MAX_CONCURRENT_CALLS: usize = 32;

type HttpClient = ConcurrencyLimit<Client<HttpConnector, Full<Bytes>>>;

/// A client of the API with its own token cache and servers. Clones share them.
#[derive(Clone)]
pub(crate) struct Stack {
    pub(crate) auth: AuthServer,
    pub(crate) api: Api,
    pub(crate) token_url: String,
    pub(crate) api_url: String,
    client: ClientCredentials<HttpClient>,
    _servers: Arc<[Server; 2]>,
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
        let auth = AuthServer::new()
            .personality(LinkedIn)
            .with_client(APPLICATION.0, APPLICATION.1)
            .register(Application::new(UNPRIVILEGED.0, UNPRIVILEGED.1).without_grant())
            .lifetime(token_lifetime)
            .always(Reply::normal().delayed(TOKEN_DELAY));
        let api = Api::new(&auth);
        let servers = [auth.serve().await?, api.serve().await?];
        let token_url = servers[0].url("/oauth/v2/accessToken");

        let http = ServiceBuilder::new()
            .concurrency_limit(MAX_CONCURRENT_CALLS)
            .service(Client::builder(TokioExecutor::new()).build_http());
        let tokens = provider::linkedin(http.clone(), client_id, client_secret)?.url(&token_url)?;
        let client = ServiceBuilder::new()
            .layer(ClientCredentialsLayer::with_cache(cache.build(tokens)))
            .service(http);
        Ok(Self {
            auth,
            api,
            token_url,
            api_url: servers[1].url("/v2/posts"),
            client,
            _servers: Arc::new(servers),
        })
    }

    pub(crate) fn expired_tokens(&self) -> usize {
        let tokens = self.auth.tokens();
        let states = tokens
            .iter()
            .map(|token| self.auth.token_state(token.expose()));
        states.filter(|state| *state == TokenState::Expired).count()
    }

    pub(crate) async fn get(&self) -> Result<Outcome, BoxError> {
        let request = Request::get(&self.api_url);
        self.call(request.body(Full::default())?).await
    }

    pub(crate) async fn post(&self, body: Bytes) -> Result<Outcome, BoxError> {
        let request = Request::post(&self.api_url);
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
        let started = Instant::now();
        let mut client = self.client.clone();
        let response = client.ready().await?.call(request);
        // A call that finds a token already has it. Tokens that are issued later were waited for.
        let issued_tokens = self.auth.issued_tokens();
        let (head, body) = response.await?.into_parts();
        let body = body.collect().await?.to_bytes();

        let token = head.headers.get("x-token-number");
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
