//! A token service and an API to test against. Both are scripted and record what they receive.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses only a part of this module"
)]

pub mod keyed;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use tower::{BoxError, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, ClientCredentials, ClientCredentialsLayer, TokenCache, TokenRequest,
    replay::CloneBody,
};

/// A token lifetime that no test reaches by accident.
pub const LONG: Duration = Duration::from_secs(1800);

/// A token service that issues "token-1", "token-2" and so on.
#[derive(Clone)]
pub struct Issuer {
    lifetime: Option<Duration>,
    latency: Duration,
    requests: Arc<AtomicUsize>,
    rejected: Arc<Mutex<Vec<Option<String>>>>,
    failing: Arc<Mutex<Option<Failure>>>,
}

/// What an issuer does instead of issuing a token.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    /// Fails with an error of another type, which counts as transient.
    Transient,
    Permanent,
    /// Fails with a `Retry-After` of one minute.
    RateLimited,
    Panic,
    /// Never answers.
    Silence,
}

impl Issuer {
    pub fn new() -> Self {
        Self {
            lifetime: Some(LONG),
            latency: Duration::ZERO,
            requests: Arc::default(),
            rejected: Arc::default(),
            failing: Arc::default(),
        }
    }

    pub fn lifetime(mut self, lifetime: impl Into<Option<Duration>>) -> Self {
        self.lifetime = lifetime.into();
        self
    }

    pub fn latency(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    pub fn fail(&self, failure: impl Into<Option<Failure>>) {
        *self.failing.lock().unwrap() = failure.into();
    }

    /// The number of times that the token service was called.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// The rejected token that each request named.
    pub fn rejected(&self) -> Vec<Option<String>> {
        self.rejected.lock().unwrap().clone()
    }

    pub fn service(
        &self,
    ) -> impl Service<TokenRequest, Response = AccessToken, Error = BoxError, Future: Send + 'static>
    + Clone
    + Send
    + use<> {
        let issuer = self.clone();
        service_fn(move |request| issuer.clone().issue(request))
    }

    pub fn cache(&self) -> TokenCache {
        TokenCache::new(self.service())
    }

    async fn issue(self, request: TokenRequest) -> Result<AccessToken, BoxError> {
        let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let rejected = request.rejected.map(|token| token.expose().to_owned());
        self.rejected.lock().unwrap().push(rejected);
        if !self.latency.is_zero() {
            tokio::time::sleep(self.latency).await;
        }
        let failure = *self.failing.lock().unwrap();
        match failure {
            None => {}
            Some(Failure::Transient) => return Err("out of order".into()),
            Some(Failure::Permanent) => {
                return Err(tower_client_credentials::Error::permanent("disabled").into());
            }
            Some(Failure::RateLimited) => {
                let minute = Duration::from_secs(60);
                let error = tower_client_credentials::Error::transient("busy", Some(minute));
                return Err(error.into());
            }
            Some(Failure::Panic) => panic!("the token service panics on purpose"),
            Some(Failure::Silence) => std::future::pending().await,
        }
        let token = AccessToken::new(format!("token-{number}"))?;
        Ok(match self.lifetime {
            Some(lifetime) => token.with_lifetime(lifetime),
            None => token,
        })
    }
}

/// An API that answers 200 to the tokens that it accepts and 401 to all others, as LinkedIn does.
#[derive(Clone)]
pub struct Api {
    accepts: Arc<Mutex<Accepts>>,
    latency: Duration,
    received: Arc<Mutex<Vec<Received>>>,
}

type Accepts = Box<dyn FnMut(&str) -> bool + Send>;

/// One request that reached the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub token: String,
    pub body: String,
}

impl Api {
    pub fn accepting(accepts: impl FnMut(&str) -> bool + Send + 'static) -> Self {
        Self {
            accepts: Arc::new(Mutex::new(Box::new(accepts))),
            latency: Duration::ZERO,
            received: Arc::default(),
        }
    }

    pub fn accepting_all() -> Self {
        Self::accepting(|_| true)
    }

    pub fn accepting_none() -> Self {
        Self::accepting(|_| false)
    }

    pub fn latency(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// The tokens that reached the API, in order.
    pub fn tokens(&self) -> Vec<String> {
        self.received()
            .into_iter()
            .map(|received| received.token)
            .collect()
    }

    pub fn service(
        &self,
    ) -> impl Service<
        Request<String>,
        Response = Response<String>,
        Error = BoxError,
        Future: Send + 'static,
    > + Clone
    + Send
    + Sync
    + use<> {
        let api = self.clone();
        service_fn(move |request| api.clone().answer(request))
    }

    async fn answer(self, request: Request<String>) -> Result<Response<String>, BoxError> {
        let token = request.headers()[AUTHORIZATION].to_str()?;
        let token = token.strip_prefix("Bearer ").unwrap_or(token).to_owned();
        let is_accepted = (self.accepts.lock().unwrap())(&token);
        self.received.lock().unwrap().push(Received {
            token,
            body: request.into_body(),
        });
        if !self.latency.is_zero() {
            tokio::time::sleep(self.latency).await;
        }
        Ok(if is_accepted {
            Response::new("accepted".to_owned())
        } else {
            rejection()
        })
    }
}

/// LinkedIn's answer to a token that it does not accept. It has no `WWW-Authenticate`.
pub fn rejection() -> Response<String> {
    let body = r#"{"serviceErrorCode":65600,"message":"Invalid access token","status":401}"#;
    let mut response = Response::new(body.to_owned());
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    response
}

/// The layer around `inner`, with default options.
pub fn stack<S>(issuer: &Issuer, inner: S) -> ClientCredentials<S, CloneBody> {
    tower::ServiceBuilder::new()
        .layer(ClientCredentialsLayer::new(issuer.service()))
        .service(inner)
}

/// A request with a body that can be replayed.
pub fn request() -> Request<String> {
    Request::post("https://api.linkedin.com/v2/people")
        .body("name=Ada".to_owned())
        .unwrap()
}

/// Makes a clone of the service ready and calls it once.
pub async fn call<S>(service: &S) -> Result<Response<String>, BoxError>
where
    S: Service<Request<String>, Response = Response<String>, Error = BoxError> + Clone,
{
    service.clone().oneshot(request()).await
}

/// Runs every other task until it waits for something.
pub async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Polls every other task a few times, which is enough for one cache with nothing else running.
pub async fn settle_briefly() {
    for _ in 0..4 {
        tokio::task::yield_now().await;
    }
}
