//! Two clocks: a token has expired as soon as either says so, and neither can cause a storm.

mod support;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use support::{Api, Issuer, call, settle};
use tokio::time::advance;
use tower::Layer;
use tower_client_credentials::{ClientCredentialsLayer, TokenCache};

const HOUR: Duration = Duration::from_secs(3600);

/// A wall clock that a test sets.
#[derive(Clone)]
struct Wall(Arc<Mutex<SystemTime>>);

impl Wall {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(
            SystemTime::UNIX_EPOCH + 1_000_000 * HOUR,
        )))
    }

    fn cache(&self, issuer: &Issuer) -> TokenCache {
        let wall = self.clone();
        TokenCache::builder()
            .jitter(0.0)
            .wall_clock(move || *wall.0.lock().unwrap())
            .build(issuer.service())
    }

    fn forward(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }

    fn back(&self, by: Duration) {
        *self.0.lock().unwrap() -= by;
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_not_sent_after_the_machine_was_suspended() {
    for (slept, token) in [
        (
            Duration::from_secs(1790) - Duration::from_nanos(1),
            "token-1",
        ),
        (Duration::from_secs(1790), "token-2"),
    ] {
        let (issuer, wall, api) = (Issuer::new(), Wall::new(), Api::accepting_all());
        let service = ClientCredentialsLayer::with_cache(wall.cache(&issuer)).layer(api.service());
        call(&service).await.unwrap();

        // The monotonic clock stands still while the machine is suspended.
        wall.forward(slept);
        call(&service).await.unwrap();

        assert_eq!(api.tokens(), ["token-1", token], "slept {slept:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn wall_clock_that_is_set_back_does_not_extend_a_lifetime() {
    let (issuer, wall, api) = (Issuer::new(), Wall::new(), Api::accepting_all());
    let service = ClientCredentialsLayer::with_cache(wall.cache(&issuer)).layer(api.service());
    call(&service).await.unwrap();

    wall.back(10 * HOUR);
    advance(Duration::from_secs(1790)).await;
    call(&service).await.unwrap();

    assert_eq!(api.tokens(), ["token-1", "token-2"]);
}

#[tokio::test(start_paused = true)]
async fn wall_clock_that_jumps_causes_at_most_one_early_token_request() {
    let (issuer, wall) = (Issuer::new(), Wall::new());
    let cache = wall.cache(&issuer);
    cache.token().await.unwrap();

    for (jump, requests) in [("forward", 2), ("back", 2), ("back", 2), ("forward", 2)] {
        match jump {
            "forward" => wall.forward(5 * HOUR),
            _ => wall.back(5 * HOUR),
        }
        for _ in 0..1000 {
            cache.token().await.unwrap();
            settle().await;
        }
        assert_eq!(issuer.requests(), requests, "after a jump {jump}");
    }
}
