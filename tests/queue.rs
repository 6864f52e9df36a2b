//! Token requests that wait until fewer others are under way.

mod support;

use std::{num::NonZeroUsize, time::Duration};

use futures_util::{FutureExt, future::join_all};
use support::{
    Api,
    keyed::{KeyedIssuer, call_with, tenant},
    settle,
};
use tokio::{
    runtime::Builder,
    time::{Instant, advance, sleep},
};
use tower::Layer;
use tower_client_credentials::{ClientCredentialsLayer, Error, TokenCache, TokenCacheBuilder};

const SECOND: Duration = Duration::from_secs(1);

const DEADLINE: Duration = Duration::from_secs(10);

fn max_token_requests(requests: usize) -> TokenCacheBuilder {
    TokenCache::builder()
        .max_token_requests(NonZeroUsize::new(requests).unwrap())
        .deadline(DEADLINE)
        .attempt_timeout(DEADLINE)
}

/// Requests the token of a key in a task, and returns the token and how long it took.
async fn token(cache: &TokenCache, key: &str) -> (Result<String, Error>, Duration) {
    let start = Instant::now();
    let handle = cache.with_parameters(tenant(key));
    let token = handle.token().await;
    (
        token.map(|token| token.expose().to_owned()),
        start.elapsed(),
    )
}

#[tokio::test(start_paused = true)]
async fn one_token_request_per_key_for_10_000_cold_keys_at_once() {
    let issuer = KeyedIssuer::new().latency(Duration::from_millis(200));
    let api = Api::accepting_all();
    let service = ClientCredentialsLayer::new(issuer.service()).layer(api.service());
    let start = Instant::now();

    let calls = (0..10_000).map(|number| call_with(&service, tenant(number.to_string())));
    let responses = join_all(calls).await;

    assert!(responses.iter().all(Result::is_ok));
    assert_eq!(issuer.most_under_way(), 64);
    assert_eq!(issuer.requests(), 10_000);
    for number in 0..10_000 {
        assert_eq!(issuer.requests_for(&number.to_string()), 1);
    }
    // 157 rounds, one after the other.
    let least = Duration::from_millis(157 * 200);
    let elapsed = start.elapsed();
    assert!(elapsed >= least && elapsed < least + SECOND, "{elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn deadline_of_a_token_request_starts_when_it_leaves_the_queue() {
    let issuer = KeyedIssuer::new().latency(8 * SECOND);
    let cache = issuer.build(max_token_requests(1));

    let tokens = join_all(["a", "b", "c"].map(|key| token(&cache, key))).await;

    for ((token, elapsed), (expected, seconds)) in
        tokens
            .into_iter()
            .zip([("a-1", 8), ("b-1", 16), ("c-1", 24)])
    {
        assert_eq!(token.unwrap(), expected);
        assert_eq!(elapsed.as_secs(), seconds);
    }
    assert_eq!(issuer.most_under_way(), 1);
}

#[tokio::test(start_paused = true)]
async fn token_request_that_left_the_queue_still_has_a_deadline() {
    let issuer = KeyedIssuer::new().latency(8 * SECOND);
    issuer.slow_down("b", 60 * SECOND);
    let cache = issuer.build(max_token_requests(1));

    let tokens = join_all(["a", "b"].map(|key| token(&cache, key))).await;

    let (error, elapsed) = &tokens[1];
    let error = error.as_ref().unwrap_err();
    assert!(error.is_timeout());
    assert!(error.to_string().contains("did not answer"), "{error}");
    assert_eq!(elapsed.as_secs(), 8 + 10);
}

#[tokio::test(start_paused = true)]
async fn a_token_request_is_bounded_in_time_while_it_waits_for_others() {
    let issuer = KeyedIssuer::new().latency(9 * SECOND);
    let cache = issuer.build(max_token_requests(1).name("orders"));

    let keys = ["a", "b", "c", "d", "e"];
    let tokens = join_all(keys.map(|key| token(&cache, key))).await;

    // Two deadlines after they began to wait, the last two gave up.
    let elapsed = tokens.iter().map(|it| it.1.as_secs());
    assert_eq!(elapsed.collect::<Vec<_>>(), [9, 18, 27, 20, 20]);
    assert!(tokens[..3].iter().all(|it| it.0.is_ok()));
    for (token, _) in &tokens[3..] {
        let error = token.as_ref().unwrap_err();
        assert!(error.is_timeout() && error.is_transient());
        assert!(error.retry_after().is_some());
        assert_eq!(error.cache_name(), Some("orders"));
        let text = error.to_string();
        assert!(
            text.contains("20s") && text.contains("`max_token_requests`"),
            "{text}"
        );
    }
    assert_eq!(issuer.requests(), 3);

    // Once the others have ended, the same key gets its token.
    assert_eq!(token(&cache, "d").await.0.unwrap(), "d-1");
}

#[tokio::test(start_paused = true)]
async fn callers_that_give_up_leave_their_token_requests_in_the_queue() {
    let issuer = KeyedIssuer::new().latency(SECOND);
    let cache = issuer.build(max_token_requests(1));
    for key in ["a", "b", "c"] {
        assert!(token(&cache, key).now_or_never().is_none());
    }

    sleep(3 * SECOND + Duration::from_millis(100)).await;

    for key in ["a", "b", "c"] {
        let (token, elapsed) = token(&cache, key).await;
        assert_eq!(token.unwrap(), format!("{key}-1"));
        assert_eq!(elapsed, Duration::ZERO);
    }
    assert_eq!(issuer.requests(), 3);
    assert_eq!(issuer.most_under_way(), 1);
}

/// Even later than a token request takes that doesn't wait.
#[tokio::test(start_paused = true)]
async fn later_callers_join_a_token_request_that_is_still_queued() {
    let issuer = KeyedIssuer::new().latency(9 * SECOND);
    let cache = issuer.build(max_token_requests(1));
    for key in ["a", "b", "c"] {
        assert!(token(&cache, key).now_or_never().is_none());
    }
    sleep(15 * SECOND).await;

    let (token, elapsed) = token(&cache, "c").await;

    assert_eq!(token.unwrap(), "c-1");
    assert_eq!(elapsed.as_secs(), 27 - 15);
    assert_eq!(issuer.requests_for("c"), 1);
}

#[tokio::test(start_paused = true)]
async fn callers_of_a_queued_token_request_share_it() {
    let issuer = KeyedIssuer::new().latency(SECOND);
    let cache = issuer.build(max_token_requests(1));

    let calls = (0..100).map(|number| token(&cache, ["a", "b"][number % 2]));
    let tokens = join_all(calls).await;

    assert!(tokens.iter().all(|it| it.0.is_ok()));
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn token_request_that_fails_gives_up_its_place() {
    let issuer = KeyedIssuer::new().latency(SECOND);
    let cache = issuer.build(max_token_requests(2));
    for key in ["a", "b", "c"] {
        issuer.fail(key, Error::permanent("unknown tenant"));
    }

    let tokens = join_all(["a", "b", "c", "d", "e"].map(|key| token(&cache, key))).await;

    let is_ok = tokens.iter().map(|it| it.0.is_ok());
    assert_eq!(is_ok.collect::<Vec<_>>(), [false, false, false, true, true]);
    assert_eq!(tokens[4].1.as_secs(), 3);
    assert_eq!(issuer.most_under_way(), 2);
}

#[tokio::test(start_paused = true)]
async fn token_requests_of_the_caches_own_parameters_wait_as_well() {
    let issuer = KeyedIssuer::new().latency(SECOND);
    let cache = issuer.build(max_token_requests(1));
    let start = Instant::now();
    let (other, own) = tokio::join!(token(&cache, "a"), cache.token());

    other.0.unwrap();
    own.unwrap();

    assert_eq!(start.elapsed().as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn calls_with_a_token_do_not_wait_while_its_refresh_is_queued() {
    let issuer = KeyedIssuer::new();
    let cache = issuer.build(max_token_requests(1).jitter(0.0));
    let a = cache.with_parameters(tenant("a"));
    a.token().await.unwrap();
    advance(Duration::from_secs(1800 - 310)).await;
    issuer.slow_down("b", 8 * SECOND);
    assert!(token(&cache, "b").now_or_never().is_none());
    let start = Instant::now();

    // Due for refresh.
    for _ in 0..10 {
        assert_eq!(a.token().await.unwrap().expose(), "a-1");
        settle().await;
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    sleep(9 * SECOND).await;

    assert_eq!(a.token().await.unwrap().expose(), "a-2");
    assert_eq!(issuer.requests_for("a"), 2);
}

/// The places of token requests whose runtime is shut down can be used again.
#[test]
fn token_request_whose_runtime_is_shut_down_gives_up_its_place() {
    let issuer = KeyedIssuer::new();
    issuer.slow_down("a", 60 * SECOND);
    let cache = issuer.build(max_token_requests(1));
    let runtime = || Builder::new_current_thread().enable_all().build().unwrap();
    let (short, lasting) = (runtime(), runtime());
    short.block_on(async {
        assert!(token(&cache, "a").now_or_never().is_none());
        settle().await;
    });

    lasting.block_on(async {
        let waiting = token(&cache, "b");
        tokio::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        settle().await;
        assert_eq!(issuer.requests_for("b"), 0);
        tokio::task::spawn_blocking(move || drop(short))
            .await
            .unwrap();
        assert_eq!(waiting.await.0.unwrap(), "b-1");
    });
}

#[tokio::test(start_paused = true)]
async fn a_deadline_of_any_length_can_wait_for_others() {
    let issuer = KeyedIssuer::new();
    issuer.slow_down("a", 60 * SECOND);
    let cache = issuer.build(
        TokenCache::builder()
            .max_token_requests(NonZeroUsize::new(1).unwrap())
            .deadline(Duration::MAX)
            .attempt_timeout(Duration::MAX),
    );

    let tokens = join_all(["a", "b"].map(|key| token(&cache, key))).await;

    for (token, _) in tokens {
        token.unwrap();
    }
}

/// The first poll of a call doesn't run the task of its token request.
#[test]
fn token_request_on_a_runtime_that_nobody_drives_takes_no_place() {
    let issuer = KeyedIssuer::new();
    let cache = issuer.build(max_token_requests(1));
    let runtime = || Builder::new_current_thread().enable_all().build().unwrap();
    let (undriven, driven) = (runtime(), runtime());
    {
        let _context = undriven.enter();
        assert!(token(&cache, "a").now_or_never().is_none());
    }

    let (token, waited) = driven.block_on(token(&cache, "b"));

    assert_eq!(token.unwrap(), "b-1");
    assert!(waited < SECOND, "{waited:?}");
}

#[test]
fn runtime_without_timers_is_named_as_the_cause_even_by_a_queued_token_request() {
    let issuer = KeyedIssuer::new();
    let cache = issuer.build(max_token_requests(1));
    let runtime = Builder::new_current_thread().build().unwrap();

    let tokens = runtime.block_on(join_all(["a", "b"].map(|key| token(&cache, key))));

    for (token, _) in tokens {
        let error = token.unwrap_err();
        assert!(error.is_no_runtime(), "{error}");
        assert!(error.to_string().contains("enable_time"), "{error}");
    }
}
