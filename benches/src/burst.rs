use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::BoxFuture};
use http::{StatusCode, header::AUTHORIZATION};
use tokio::{
    runtime::{self, Runtime},
    sync::Barrier,
    task::JoinSet,
    time::sleep,
};
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_client_credentials::{ClientCredentialsLayer, TokenCache};

use crate::{ApiRequest, ApiResponse, Tokens, request, secret};

const CALLS: usize = 10_000;

/// Time that the token service takes.
pub const TOKEN_DELAY: Duration = Duration::from_millis(50);

/// The result of 10,000 concurrent calls.
#[derive(Debug)]
pub struct Burst {
    pub token_requests: usize,
    /// Sends of the call that was sent most often.
    pub max_sends: u32,
    /// Calls that did not end with a successful response.
    pub unanswered: usize,
    /// Time until the last call ended.
    pub elapsed: Duration,
}

/// A runtime with two workers, like that of a small server.
pub fn burst_runtime() -> std::io::Result<Runtime> {
    runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
}

impl Burst {
    /// Makes the calls while the cache has no token yet.
    pub async fn cold() -> Result<Self, BoxError> {
        let tokens = Tokens::new(TOKEN_DELAY);
        let cache = TokenCache::new(tokens.service());
        Ok(Self::run(cache, &tokens, None).await)
    }

    /// Makes the calls while the cache has a fresh token.
    pub async fn warm() -> Result<Self, BoxError> {
        let tokens = Tokens::new(Duration::ZERO);
        let cache = TokenCache::new(tokens.service());
        cache.token().await?;
        Ok(Self::run(cache, &tokens, None).await)
    }

    /// Revokes the token while all calls are in flight. The API sends half of the rejections at
    /// once and the other half after `delay`.
    pub async fn rejected(delay: Duration) -> Result<Self, BoxError> {
        let tokens = Tokens::new(TOKEN_DELAY);
        let cache = TokenCache::new(tokens.service());
        cache.token().await?;
        let revoked = Arc::new(RevokedToken {
            header_value: format!("Bearer {}", secret(1)),
            in_flight: Barrier::new(CALLS),
            delay,
        });
        Ok(Self::run(cache, &tokens, Some(revoked)).await)
    }

    async fn run(cache: TokenCache, tokens: &Tokens, revoked: Option<Arc<RevokedToken>>) -> Self {
        let layer = ClientCredentialsLayer::with_cache(cache);
        let max_sends = Arc::new(AtomicU32::new(0));
        let answered = Arc::new(AtomicU64::new(0));
        let mut calls = JoinSet::new();
        let start = Instant::now();
        for number in 0..CALLS {
            let is_delayed = number % 2 == 1;
            let sends = Arc::new(AtomicU32::new(0));
            let (revoked, counter) = (revoked.clone(), Arc::clone(&sends));
            let api = service_fn(move |request: ApiRequest| {
                counter.fetch_add(1, Ordering::Relaxed);
                respond(revoked.clone(), is_delayed, request)
            });
            let call = layer.layer(api).oneshot(request(4));
            let (max_sends, answered) = (Arc::clone(&max_sends), Arc::clone(&answered));
            calls.spawn(call.map(move |response| {
                let is_success = response.is_ok_and(|response| response.status().is_success());
                answered.fetch_add(is_success.into(), Ordering::Relaxed);
                max_sends.fetch_max(sends.load(Ordering::Relaxed), Ordering::Relaxed);
            }));
        }
        while calls.join_next().await.is_some() {}
        let elapsed = start.elapsed();
        let answered = answered.load(Ordering::Relaxed) as usize;
        Self {
            token_requests: tokens.requests(),
            max_sends: max_sends.load(Ordering::Relaxed),
            unanswered: CALLS - answered,
            elapsed,
        }
    }
}

/// A token that the API rejects once all calls have arrived with it.
struct RevokedToken {
    header_value: String,
    in_flight: Barrier,
    delay: Duration,
}

fn respond(
    revoked: Option<Arc<RevokedToken>>,
    is_delayed: bool,
    request: ApiRequest,
) -> BoxFuture<'static, Result<ApiResponse, BoxError>> {
    Box::pin(async move {
        let mut response = ApiResponse::default();
        if let Some(revoked) = revoked
            && request.headers()[AUTHORIZATION] == revoked.header_value.as_str()
        {
            revoked.in_flight.wait().await;
            if is_delayed && !revoked.delay.is_zero() {
                sleep(revoked.delay).await;
            }
            *response.status_mut() = StatusCode::UNAUTHORIZED;
        }
        Ok(response)
    })
}
