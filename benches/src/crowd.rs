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

/// How long the token endpoint takes.
pub const ENDPOINT: Duration = Duration::from_millis(50);

/// What 10,000 calls at once came to.
#[derive(Debug)]
pub struct Crowd {
    pub token_requests: usize,
    /// Of the call that was sent to the API most often.
    pub most_sends: u32,
    pub unanswered: usize,
    /// Until the last call was done.
    pub took: Duration,
}

/// One that makes 10,000 calls at once as a server does: two workers.
pub fn crowd_runtime() -> std::io::Result<Runtime> {
    runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
}

impl Crowd {
    /// Calls on a cache that has no token yet.
    pub async fn stampede() -> Result<Self, BoxError> {
        let tokens = Tokens::new(ENDPOINT);
        let cache = TokenCache::new(tokens.service());
        Ok(Self::calls(cache, &tokens, None).await)
    }

    /// The same calls when the token is there already.
    pub async fn warm() -> Result<Self, BoxError> {
        let tokens = Tokens::new(Duration::ZERO);
        let cache = TokenCache::new(tokens.service());
        cache.token().await?;
        Ok(Self::calls(cache, &tokens, None).await)
    }

    /// Calls whose token is revoked when all of them are in flight. Half of the rejections come at
    /// once, the others so much later.
    pub async fn storm(later: Duration) -> Result<Self, BoxError> {
        let tokens = Tokens::new(ENDPOINT);
        let cache = TokenCache::new(tokens.service());
        cache.token().await?;
        let revoked = Arc::new(Revoked {
            value: format!("Bearer {}", secret(1)),
            in_flight: Barrier::new(CALLS),
            later,
        });
        Ok(Self::calls(cache, &tokens, Some(revoked)).await)
    }

    async fn calls(cache: TokenCache, tokens: &Tokens, revoked: Option<Arc<Revoked>>) -> Self {
        let layer = ClientCredentialsLayer::with_cache(cache);
        let most_sends = Arc::new(AtomicU32::new(0));
        let answered = Arc::new(AtomicU64::new(0));
        let mut calls = JoinSet::new();
        let start = Instant::now();
        for number in 0..CALLS {
            let is_late = number % 2 == 1;
            let sends = Arc::new(AtomicU32::new(0));
            let (revoked, counted) = (revoked.clone(), Arc::clone(&sends));
            let api = service_fn(move |request: ApiRequest| {
                counted.fetch_add(1, Ordering::Relaxed);
                answer(revoked.clone(), is_late, request)
            });
            let call = layer.layer(api).oneshot(request(4));
            let (most_sends, answered) = (Arc::clone(&most_sends), Arc::clone(&answered));
            calls.spawn(call.map(move |response| {
                let is_answered = response.is_ok_and(|response| response.status().is_success());
                answered.fetch_add(is_answered.into(), Ordering::Relaxed);
                most_sends.fetch_max(sends.load(Ordering::Relaxed), Ordering::Relaxed);
            }));
        }
        while calls.join_next().await.is_some() {}
        let took = start.elapsed();
        let answered = answered.load(Ordering::Relaxed) as usize;
        Self {
            token_requests: tokens.asked(),
            most_sends: most_sends.load(Ordering::Relaxed),
            unanswered: CALLS - answered,
            took,
        }
    }
}

/// A token that the API refuses, once all calls have brought it.
struct Revoked {
    value: String,
    in_flight: Barrier,
    later: Duration,
}

fn answer(
    revoked: Option<Arc<Revoked>>,
    is_late: bool,
    request: ApiRequest,
) -> BoxFuture<'static, Result<ApiResponse, BoxError>> {
    Box::pin(async move {
        let mut response = ApiResponse::default();
        if let Some(revoked) = revoked
            && request.headers()[AUTHORIZATION] == revoked.value.as_str()
        {
            revoked.in_flight.wait().await;
            if is_late && !revoked.later.is_zero() {
                sleep(revoked.later).await;
            }
            *response.status_mut() = StatusCode::UNAUTHORIZED;
        }
        Ok(response)
    })
}
