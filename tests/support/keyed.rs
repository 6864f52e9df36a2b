//! A token service with many keys, and requests that choose theirs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use http::{Request, Response};
use tower::{BoxError, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, Error, TokenCache, TokenCacheBuilder, TokenParameters, TokenRequest,
};

use super::{LONG, request};

/// A token service that issues "a-1", "a-2" and so on for the scope or tenant "a".
#[derive(Clone, Default)]
pub struct KeyedIssuer {
    latency: Duration,
    lifetime: Option<Duration>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    received: Vec<Asked>,
    counts: HashMap<String, usize>,
    /// Each issued token with a text that it owns, and that is dropped with it.
    issued: Vec<(String, Weak<str>)>,
    latencies: HashMap<String, Duration>,
    failing: HashMap<String, Error>,
    under_way: usize,
    most_under_way: usize,
}

/// What a token request asked for. Holds no token, so that the test can see which tokens are kept.
#[derive(Clone, Debug)]
pub struct Asked {
    pub parameters: TokenParameters,
    pub rejected: Option<String>,
}

impl KeyedIssuer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn latency(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(lifetime);
        self
    }

    /// Sets how long token requests for `key` take from now on.
    pub fn slow_down(&self, key: &str, latency: Duration) {
        let mut state = self.state.lock().unwrap();
        state.latencies.insert(key.to_owned(), latency);
    }

    /// Lets token requests for `key` fail from now on; with `None`, they no longer fail.
    pub fn fail(&self, key: &str, error: impl Into<Option<Error>>) {
        let failing = &mut self.state.lock().unwrap().failing;
        match error.into() {
            Some(error) => drop(failing.insert(key.to_owned(), error)),
            None => drop(failing.remove(key)),
        }
    }

    /// All token requests, in order.
    pub fn received(&self) -> Vec<Asked> {
        self.state.lock().unwrap().received.clone()
    }

    pub fn requests(&self) -> usize {
        self.state.lock().unwrap().received.len()
    }

    pub fn requests_for(&self, key: &str) -> usize {
        let counts = &self.state.lock().unwrap().counts;
        counts.get(key).copied().unwrap_or_default()
    }

    /// The rejected token that each token request for `key` named.
    pub fn rejected(&self, key: &str) -> Vec<Option<String>> {
        let received = self.received().into_iter();
        let same_key = received.filter(|it| name_of(&it.parameters) == key);
        same_key.map(|it| it.rejected).collect()
    }

    /// The tokens that somebody still holds: the cache, or the test.
    pub fn kept(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let kept = state.issued.iter().filter(|it| it.1.strong_count() > 0);
        kept.map(|(token, _)| token.clone()).collect()
    }

    pub fn under_way(&self) -> usize {
        self.state.lock().unwrap().under_way
    }

    pub fn most_under_way(&self) -> usize {
        self.state.lock().unwrap().most_under_way
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
        self.build(TokenCache::builder())
    }

    pub fn build(&self, builder: TokenCacheBuilder) -> TokenCache {
        builder.build(self.service())
    }

    async fn issue(self, request: TokenRequest) -> Result<AccessToken, BoxError> {
        let name = name_of(&request.parameters);
        let _under_way = UnderWay::new(&self.state);
        let (number, latency) = {
            let mut state = self.state.lock().unwrap();
            state.received.push(Asked {
                parameters: request.parameters,
                rejected: request.rejected.map(|it| it.expose().to_owned()),
            });
            let count = state.counts.entry(name.clone()).or_default();
            *count += 1;
            let number = *count;
            let latency = state.latencies.get(&name).copied();
            (number, latency.unwrap_or(self.latency))
        };
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let failure = self.state.lock().unwrap().failing.get(&name).cloned();
        if let Some(error) = failure {
            return Err(error.into());
        }
        let token = format!("{name}-{number}");
        let owned: Arc<str> = token.as_str().into();
        let issued = (token.clone(), Arc::downgrade(&owned));
        self.state.lock().unwrap().issued.push(issued);
        let lifetime = self.lifetime.unwrap_or(LONG);
        let token = AccessToken::new(token)?.with_lifetime(lifetime);
        Ok(token.with_scope(owned))
    }
}

/// Counts a token request, also if it is dropped.
struct UnderWay(Arc<Mutex<State>>);

impl UnderWay {
    fn new(state: &Arc<Mutex<State>>) -> Self {
        let mut locked = state.lock().unwrap();
        locked.under_way += 1;
        locked.most_under_way = locked.most_under_way.max(locked.under_way);
        Self(Arc::clone(state))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.lock().unwrap().under_way -= 1;
    }
}

/// What tokens are named after: the tenant, otherwise the scopes.
fn name_of(parameters: &TokenParameters) -> String {
    match parameters.tenant() {
        Some(tenant) => tenant.to_owned(),
        None if parameters.scopes().is_empty() => "none".to_owned(),
        None => parameters.scopes().join("+"),
    }
}

pub fn scope(scope: &str) -> TokenParameters {
    TokenParameters::default().with_scope(scope)
}

pub fn tenant(label: impl Into<String>) -> TokenParameters {
    TokenParameters::default().with_tenant(label)
}

/// A request that chooses its token with an extension.
pub fn request_with(parameters: TokenParameters) -> Request<String> {
    let mut request = request();
    request.extensions_mut().insert(parameters);
    request
}

/// Makes a clone of the service ready and calls it once, with an extension.
pub async fn call_with<S>(
    service: &S,
    parameters: TokenParameters,
) -> Result<Response<String>, BoxError>
where
    S: Service<Request<String>, Response = Response<String>, Error = BoxError> + Clone,
{
    service.clone().oneshot(request_with(parameters)).await
}
