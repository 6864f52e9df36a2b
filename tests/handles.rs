//! Handles to a cache for programs that are not layers: threads, synchronous code, and futures that
//! another executor polls.

mod support;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, future::join_all};
use http::StatusCode;
use support::{
    Api, Failure, Issuer, LONG, call,
    keyed::{KeyedIssuer, scope, tenant},
    settle,
};
use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, advance},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, BoxError, ClientCredentialsLayer, Error, Rejection, TokenCache, TokenCacheBuilder,
    TokenOutcome, TokenRequest,
};

const LATENCY: Duration = Duration::from_millis(80);

const SECOND: Duration = Duration::from_secs(1);

/// Longer than any of these tests takes. A caller that waits for this long hangs.
const HANGING: Duration = Duration::from_secs(20);

/// A runtime on which nothing blocks, for token requests.
fn named_runtime() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().unwrap()
}

fn on(runtime: &Runtime) -> TokenCacheBuilder {
    TokenCache::builder().runtime(runtime.handle().clone())
}

/// Runs a test on a thread without a runtime, and fails if that thread hangs.
fn on_a_thread<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || drop(sender.send(run())));
    match receiver.recv_timeout(HANGING) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the thread hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().unwrap_err())
        }
    }
}

/// Polls a future without Tokio, and parks the thread in between.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    assert!(tokio::runtime::Handle::try_current().is_err());
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        thread::park();
    }
}

// --- `current` ---

#[tokio::test(start_paused = true)]
async fn current_never_waits_and_starts_a_token_request() {
    let issuer = Issuer::new().latency(LATENCY);
    let cache = issuer.cache();

    for _ in 0..10 {
        assert!(cache.current().is_none());
        settle().await;
    }
    advance(LATENCY).await;
    settle().await;

    assert_eq!(cache.current().unwrap().expose(), "token-1");
    assert_eq!(issuer.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn current_starts_the_refresh_of_a_token_that_is_due_and_returns_the_token() {
    let issuer = Issuer::new();
    let cache = TokenCache::builder().jitter(0.0).build(issuer.service());
    cache.token().await.unwrap();

    advance(LONG - Duration::from_secs(310)).await;
    assert_eq!(cache.current().unwrap().expose(), "token-1");
    settle().await;

    assert_eq!(cache.current().unwrap().expose(), "token-2");
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn current_starts_no_token_request_during_a_pause() {
    let issuer = Issuer::new();
    issuer.fail(Failure::Permanent);
    let cache = issuer.cache();
    cache.token().await.unwrap_err();

    for _ in 0..10 {
        assert!(cache.current().is_none());
        settle().await;
    }
    assert_eq!(issuer.requests(), 1);

    issuer.fail(None);
    advance(2 * SECOND).await;
    assert!(cache.current().is_none());
    settle().await;
    assert_eq!(cache.current().unwrap().expose(), "token-2");
}

#[test]
fn current_outside_a_runtime_starts_a_token_request_on_the_named_one_only() {
    on_a_thread(|| {
        let issuer = Issuer::new();
        let unnamed = issuer.cache();
        assert!(unnamed.current().is_none());

        let runtime = named_runtime();
        let cache = on(&runtime).build(issuer.service());
        assert!(cache.current().is_none());
        // Waits for the token request that `current` has started.
        let token = cache.blocking_token().unwrap();

        assert_eq!(token.expose(), "token-1");
        assert_eq!(cache.current().unwrap().expose(), "token-1");
        assert_eq!(issuer.requests(), 1);
    });
}

/// Without a runtime, nobody can renew the token, and an unexpired token is better than none.
#[test]
fn rejected_token_serves_again_where_nobody_can_renew_it() {
    on_a_thread(|| {
        let cache = Issuer::new().cache();
        cache.seed(seed("token"));
        let token = cache.current().unwrap();

        assert!(matches!(cache.reject(&token), Rejection::Withheld));
        assert_eq!(cache.current().unwrap().expose(), "token");
        assert!(matches!(cache.reject(&token), Rejection::Withheld));
        assert_eq!(cache.blocking_token().unwrap().expose(), "token");
        cache.reject(&token);
        assert_eq!(block_on(cache.token()).unwrap().expose(), "token");
    });
}

// --- `blocking_token` ---

#[test]
fn one_token_request_per_key_serves_many_threads_beside_the_named_runtime() {
    let runtime = named_runtime();
    let issuer = KeyedIssuer::new().latency(LATENCY);
    let cache = issuer.build(on(&runtime));

    on_a_thread(move || {
        thread::scope(|scope| {
            for number in 0..64 {
                let cache = cache.with_parameters(tenant(["a", "b"][number % 2]));
                scope.spawn(move || {
                    let token = cache.blocking_token().unwrap();
                    assert_eq!(token.expose(), ["a-1", "b-1"][number % 2]);
                });
            }
        });
        assert_eq!(issuer.requests(), 2);
    });
}

#[test]
fn blocking_token_without_a_runtime_is_an_error_unless_there_is_a_token() {
    on_a_thread(|| {
        let issuer = Issuer::new();
        let cache = TokenCache::builder().name("orders").build(issuer.service());

        let error = cache.blocking_token().unwrap_err();
        assert!(error.is_no_runtime(), "{error}");
        assert_eq!(error.cache_name(), Some("orders"));
        assert_eq!(issuer.requests(), 0);

        cache.seed(seed("token"));
        assert_eq!(cache.blocking_token().unwrap().expose(), "token");
    });
}

#[test]
fn blocking_token_works_on_a_thread_that_belongs_to_a_runtime_but_runs_no_tasks() {
    on_a_thread(|| {
        let runtime = named_runtime();
        let cache = Issuer::new().latency(LATENCY).cache();

        let task = runtime.spawn_blocking({
            let cache = cache.clone();
            move || cache.blocking_token().unwrap()
        });
        assert_eq!(runtime.block_on(task).unwrap().expose(), "token-1");
        cache.reset();
        let _entered = runtime.enter();
        assert_eq!(cache.blocking_token().unwrap().expose(), "token-2");
    });
}

#[test]
fn blocking_token_panics_only_if_it_has_to_wait_on_a_thread_that_runs_tasks() {
    on_a_thread(|| {
        let runtime = named_runtime();
        let issuer = Issuer::new();
        let cache = on(&runtime).build(issuer.service());

        runtime.block_on(async {
            let blocking = || cache.blocking_token();
            assert!(catch_unwind(AssertUnwindSafe(blocking)).is_err());
            // The panic did no harm.
            let token = cache.token().await.unwrap();
            assert_eq!(cache.blocking_token().unwrap().expose(), token.expose());
        });
        assert_eq!(issuer.requests(), 1);
    });
}

#[test]
fn failures_are_shared_with_threads() {
    on_a_thread(|| {
        let runtime = named_runtime();
        let issuer = Issuer::new();
        issuer.fail(Failure::Permanent);
        let cache = on(&runtime).build(issuer.service());

        for _ in 0..10 {
            let error = cache.blocking_token().unwrap_err();
            assert!(error.is_token_service() && !error.is_transient());
        }
        assert_eq!(issuer.requests(), 1);
    });
}

#[test]
fn expired_token_is_replaced_for_a_thread() {
    on_a_thread(|| {
        let runtime = named_runtime();
        let wall = Arc::new(Mutex::new(SystemTime::UNIX_EPOCH));
        let cache = on(&runtime)
            .wall_clock({
                let wall = Arc::clone(&wall);
                move || *wall.lock().unwrap()
            })
            .build(Issuer::new().service());
        assert_eq!(cache.blocking_token().unwrap().expose(), "token-1");

        *wall.lock().unwrap() += LONG;

        assert_eq!(cache.blocking_token().unwrap().expose(), "token-2");
    });
}

// --- `refresh` ---

#[tokio::test(start_paused = true)]
async fn refresh_is_shared_and_leaves_the_token_in_use_meanwhile() {
    let issuer = Issuer::new().latency(LATENCY);
    let cache = issuer.cache();
    cache.token().await.unwrap();
    let start = Instant::now();

    let mut refreshes: Vec<_> = (0..1000)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.refresh().await })
        })
        .collect();
    settle().await;
    assert_eq!(cache.token().await.unwrap().expose(), "token-1");
    assert_eq!(cache.current().unwrap().expose(), "token-1");
    assert_eq!(start.elapsed(), Duration::ZERO);
    // Callers that are dropped don't end the token request.
    refreshes.drain(..500).for_each(|refresh| refresh.abort());
    for refreshed in join_all(refreshes).await {
        assert_eq!(refreshed.unwrap().unwrap().expose(), "token-2");
    }

    assert_eq!(cache.current().unwrap().expose(), "token-2");
    assert_eq!(issuer.requests(), 2);
    // Not a renewal.
    assert_eq!(issuer.rejected(), [None, None]);
}

#[tokio::test(start_paused = true)]
async fn refresh_waits_for_the_token_request_that_is_under_way() {
    let issuer = Issuer::new().latency(LATENCY);
    let cache = issuer.cache();
    assert!(cache.token().now_or_never().is_none());

    assert_eq!(cache.refresh().await.unwrap().expose(), "token-1");
    assert_eq!(cache.refresh().await.unwrap().expose(), "token-2");
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn refresh_ignores_the_back_off() {
    let issuer = Issuer::new();
    issuer.fail(Failure::RateLimited);
    let cache = issuer.cache();
    cache.token().await.unwrap_err();

    issuer.fail(None);
    cache.token().await.unwrap_err();
    let token = cache.refresh().await.unwrap();

    assert_eq!(token.expose(), "token-2");
    // And ends it.
    assert_eq!(cache.token().await.unwrap().expose(), "token-2");
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn refresh_ignores_the_cool_down() {
    let issuer = Issuer::new();
    let cache = issuer.cache();
    for token in ["token-1", "token-2"] {
        let current = cache.token().await.unwrap();
        assert_eq!(current.expose(), token);
        cache.reject(&current);
    }
    let rejected = cache.token().await.unwrap();
    assert_eq!(rejected.expose(), "token-2");
    assert!(matches!(cache.reject(&rejected), Rejection::CoolingDown));

    let token = cache.refresh().await.unwrap();

    assert_eq!(token.expose(), "token-3");
    assert_eq!(cache.token().await.unwrap().expose(), "token-3");
}

#[tokio::test(start_paused = true)]
async fn failed_refresh_leaves_the_token() {
    let issuer = Issuer::new();
    let cache = issuer.cache();
    cache.token().await.unwrap();
    issuer.fail(Failure::Permanent);

    for requests in 2..5 {
        let error = cache.refresh().await.unwrap_err();

        assert!(error.is_token_service() && !error.is_transient());
        assert_eq!(cache.token().await.unwrap().expose(), "token-1");
        assert_eq!(cache.current().unwrap().expose(), "token-1");
        assert_eq!(issuer.requests(), requests);
    }
}

#[test]
fn refresh_outside_a_runtime_needs_a_named_one() {
    on_a_thread(|| {
        let issuer = Issuer::new();
        let unnamed = TokenCache::builder().name("orders").build(issuer.service());
        unnamed.seed(seed("token"));
        let error = block_on(unnamed.refresh()).unwrap_err();
        assert!(error.is_no_runtime());
        assert_eq!(error.cache_name(), Some("orders"));
        assert_eq!(block_on(unnamed.token()).unwrap().expose(), "token");

        let runtime = named_runtime();
        let cache = on(&runtime).build(issuer.service());
        assert_eq!(block_on(cache.refresh()).unwrap().expose(), "token-1");
        assert_eq!(block_on(cache.refresh()).unwrap().expose(), "token-2");
    });
}

/// A token service must not wait for the token that it requests.
#[tokio::test(start_paused = true)]
async fn refresh_in_its_own_token_service_is_an_error() {
    let cache = Arc::new(std::sync::OnceLock::<TokenCache>::new());
    let tokens = service_fn({
        let cache = Arc::downgrade(&cache);
        move |_: TokenRequest| {
            let cache = cache.upgrade().unwrap();
            async move { cache.get().unwrap().refresh().await }
        }
    });
    let cache = cache.get_or_init(|| TokenCache::new(tokens));

    let error = cache.token().await.unwrap_err();

    assert!(error.is_configuration(), "{error}");
}

// --- `seed`, and what a token knows of its expiry ---

#[tokio::test(start_paused = true)]
async fn seeded_token_is_used_until_it_expires() {
    let start = Instant::now();
    let epoch = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let issuer = Issuer::new();
    let cache = TokenCache::builder()
        .jitter(0.0)
        .refresh_window(Duration::from_secs(60))
        .wall_clock(move || epoch + start.elapsed())
        .build(issuer.service());
    let expires_at = epoch + Duration::from_secs(600);
    let seed = AccessToken::new("seed")
        .unwrap()
        .with_expires_at(expires_at);

    cache.seed(seed);
    let token = cache.token().await.unwrap();
    assert_eq!(token.expose(), "seed");
    assert_eq!(token.expires_at(), Some(expires_at));
    assert_eq!(token.lifetime(), None);
    assert_eq!(issuer.requests(), 0);

    // Due for refresh a minute before it expires, which is 10 seconds before its end.
    advance(Duration::from_secs(600 - 10 - 60)).await;
    assert_eq!(cache.token().await.unwrap().expose(), "seed");
    settle().await;

    assert_eq!(cache.token().await.unwrap().expose(), "token-1");
}

#[tokio::test(start_paused = true)]
async fn seeded_token_that_has_expired_is_not_used() {
    let issuer = Issuer::new();
    let cache = issuer.cache();
    for past in [Duration::ZERO, SECOND, LONG] {
        let expires_at = SystemTime::now() - past;
        cache.seed(AccessToken::new("old").unwrap().with_expires_at(expires_at));
        assert!(cache.current().is_none());
        settle().await;
        assert_ne!(cache.token().await.unwrap().expose(), "old");
    }
}

fn seed(text: &str) -> AccessToken {
    AccessToken::new(text).unwrap().with_lifetime(LONG)
}

#[tokio::test(start_paused = true)]
async fn seeded_token_is_used_during_a_back_off() {
    let issuer = Issuer::new();
    issuer.fail(Failure::Permanent);
    let cache = issuer.cache();
    cache.token().await.unwrap_err();

    cache.seed(seed("seed"));

    assert_eq!(cache.token().await.unwrap().expose(), "seed");
}

#[tokio::test(start_paused = true)]
async fn seeded_token_is_used_although_the_token_before_was_rejected() {
    let issuer = Issuer::new();
    let cache = issuer.cache();
    cache.seed(seed("seed-1"));
    let token = cache.current().unwrap();
    assert!(matches!(cache.reject(&token), Rejection::Withheld));

    cache.seed(seed("seed-2"));

    assert_eq!(cache.token().await.unwrap().expose(), "seed-2");
    settle().await;
    assert_eq!(issuer.requests(), 0);
}

#[tokio::test(start_paused = true)]
async fn token_request_that_is_under_way_replaces_a_seeded_token() {
    let issuer = Issuer::new().latency(LATENCY);
    let cache = issuer.cache();
    assert!(cache.refresh().now_or_never().is_none());
    settle().await;

    cache.seed(seed("seed"));
    assert_eq!(cache.token().await.unwrap().expose(), "seed");
    advance(LATENCY).await;
    settle().await;

    assert_eq!(cache.token().await.unwrap().expose(), "token-1");
}

#[tokio::test(start_paused = true)]
async fn seed_is_for_the_key_of_its_handle() {
    let issuer = KeyedIssuer::new();
    let cache = issuer.cache();
    let a = cache.with_parameters(tenant("a"));
    a.seed(seed("seed"));

    assert_eq!(a.token().await.unwrap().expose(), "seed");
    assert_eq!(cache.token().await.unwrap().expose(), "none-1");
    let b = cache.with_parameters(tenant("b"));
    assert_eq!(b.token().await.unwrap().expose(), "b-1");
}

#[tokio::test(start_paused = true)]
async fn token_knows_when_it_expires_if_the_server_stated_a_lifetime() {
    let epoch = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let cache = |issuer: &Issuer| {
        TokenCache::builder()
            .wall_clock(move || epoch)
            .build(issuer.service())
    };
    let token = cache(&Issuer::new()).token().await.unwrap();
    assert_eq!(token.expires_at(), Some(epoch + LONG));
    assert_eq!(token.remaining(), Some(Duration::ZERO));

    let token = cache(&Issuer::new().lifetime(None)).token().await.unwrap();
    assert_eq!((token.expires_at(), token.remaining()), (None, None));
}

#[test]
fn remaining_counts_down_by_the_wall_clock() {
    let expires_at = SystemTime::now() + LONG;
    let token = AccessToken::new("token")
        .unwrap()
        .with_expires_at(expires_at);

    let remaining = token.remaining().unwrap();
    assert!(
        remaining <= LONG && remaining > LONG - HANGING,
        "{remaining:?}"
    );
    let expired = token.with_expires_at(SystemTime::UNIX_EPOCH);
    assert_eq!(expired.remaining(), Some(Duration::ZERO));
    // The later setter counts.
    let token = expired.with_lifetime(LONG);
    assert_eq!((token.lifetime(), token.expires_at()), (Some(LONG), None));
}

#[test]
fn handle_tells_its_parameters() {
    let issuer = KeyedIssuer::new();
    let cache = issuer.build(TokenCache::builder().parameters(scope("own")));
    let other = cache.with_parameters(scope("b a").with_tenant("t"));

    assert_eq!(cache.parameters(), &scope("own"));
    assert_eq!(other.parameters(), &scope("a b").with_tenant("t"));
    assert_eq!(other.parameters().scopes(), ["b", "a"]);
    let back = other.with_parameters(scope("own"));
    assert_eq!(back.parameters(), cache.parameters());
}

// --- Futures that another executor polls ---

#[test]
fn another_executor_gets_the_first_token_and_waits_for_a_token_request() {
    on_a_thread(|| {
        let runtime = named_runtime();
        let issuer = Issuer::new().latency(LATENCY);
        let cache = on(&runtime).build(issuer.service());

        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    assert_eq!(block_on(cache.token()).unwrap().expose(), "token-1");
                });
            }
        });

        assert_eq!(issuer.requests(), 1);
    });
}

#[test]
fn another_executor_without_a_named_runtime_gets_an_error() {
    on_a_thread(|| {
        let issuer = Issuer::new();
        let service = ClientCredentialsLayer::with_cache(issuer.cache())
            .layer(Api::accepting_all().service());

        let error = block_on(call(&service)).unwrap_err();

        assert!(error.downcast_ref::<Error>().unwrap().is_no_runtime());
        assert_eq!(issuer.requests(), 0);
    });
}

#[test]
fn rejected_token_serves_again_after_a_second_on_another_executor() {
    on_a_thread(|| {
        let runtime = named_runtime();
        let issuer = Issuer::new();
        let cache = on(&runtime).build(issuer.service());
        let token = block_on(cache.token()).unwrap();
        issuer.fail(Failure::Silence);
        let start = std::time::Instant::now();

        cache.reject(&token);
        let served = block_on(cache.token()).unwrap();

        assert_eq!(served.expose(), "token-1");
        assert!(start.elapsed() >= SECOND);
        assert_eq!(issuer.requests(), 2);
    });
}

#[test]
fn rejected_request_is_replayed_on_another_executor() {
    // A renewal that takes longer than the rejection is held, and one that doesn't.
    for latency in [LATENCY, SECOND + LATENCY] {
        on_a_thread(move || {
            let runtime = named_runtime();
            let issuer = KeyedIssuer::new();
            let cache = issuer.build(on(&runtime));
            block_on(cache.token()).unwrap();
            issuer.slow_down("none", latency);
            let api = Api::accepting(|token| token == "none-2");
            let service = ClientCredentialsLayer::with_cache(cache).layer(api.service());

            let response = block_on(call(&service)).unwrap();

            assert_eq!(response.status(), StatusCode::OK);
            assert!(
                response
                    .extensions()
                    .get::<TokenOutcome>()
                    .unwrap()
                    .replayed()
            );
            assert_eq!(api.tokens(), ["none-1", "none-2"]);
            assert_eq!(issuer.rejected("none"), [None, Some("none-1".to_owned())]);
        });
    }
}

#[test]
fn rejection_is_held_for_a_second_on_another_executor() {
    for (latency, is_held) in [(LATENCY, true), (SECOND + LATENCY, false)] {
        on_a_thread(move || {
            let runtime = named_runtime();
            let issuer = KeyedIssuer::new();
            let cache = issuer.build(on(&runtime));
            block_on(cache.token()).unwrap();
            issuer.slow_down("none", latency);
            issuer.fail("none", Error::permanent("disabled"));
            let service =
                ClientCredentialsLayer::with_cache(cache).layer(Api::accepting_none().service());

            match block_on(call(&service)) {
                Ok(response) => assert!(is_held && response.status() == StatusCode::UNAUTHORIZED),
                Err(error) => {
                    let error = error.downcast_ref::<Error>().unwrap();
                    assert_eq!(error.rejected_status(), Some(StatusCode::UNAUTHORIZED));
                    assert!(!is_held);
                }
            }
        });
    }
}

#[test]
fn rejection_of_a_request_that_is_not_replayed_is_renewed_on_the_named_runtime() {
    on_a_thread(|| {
        let runtime = named_runtime();
        let issuer = Issuer::new();
        let cache = on(&runtime).build(issuer.service());
        let api = Api::accepting(|token| token == "token-2");
        let service = ClientCredentialsLayer::with_cache(cache.clone())
            .no_replay()
            .layer(api.service());

        let response = block_on(service.oneshot(support::request())).unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);

        // Nobody asks for the next token. `on_a_thread` limits the time.
        while issuer.requests() < 2 {
            thread::yield_now();
        }
        assert_eq!(block_on(cache.token()).unwrap().expose(), "token-2");
    });
}

#[test]
fn named_runtime_that_was_shut_down_is_a_clear_error() {
    on_a_thread(|| {
        let runtime = named_runtime();
        let issuer = Issuer::new();
        let cache = on(&runtime).name("orders").build(issuer.service());
        drop(runtime);
        let service =
            ClientCredentialsLayer::with_cache(cache.clone()).layer(Api::accepting_all().service());

        let of_the_layer = block_on(call(&service)).unwrap_err();
        let errors = [
            block_on(cache.token()).unwrap_err(),
            block_on(cache.refresh()).unwrap_err(),
            cache.blocking_token().unwrap_err(),
            of_the_layer.downcast_ref::<Error>().unwrap().clone(),
        ];
        for error in errors {
            assert!(error.is_no_runtime(), "{error}");
            assert!(error.to_string().contains("shut down"), "{error}");
            assert!(error.is_transient());
            assert_eq!(error.cache_name(), Some("orders"));
        }
        assert!(cache.current().is_none());
        assert_eq!(issuer.requests(), 0);
    });
}

#[test]
fn named_runtime_that_is_shut_down_frees_those_who_wait() {
    on_a_thread(|| {
        let runtime = named_runtime();
        let called = Arc::new(AtomicUsize::new(0));
        let tokens = service_fn({
            let called = Arc::clone(&called);
            move |_: TokenRequest| {
                called.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<Result<AccessToken, BoxError>>()
            }
        });
        let cache = on(&runtime).build(tokens);
        let seeded = cache.with_parameters(tenant("seeded"));
        let token = seed("seed");
        seeded.seed(token.clone());
        seeded.reject(&token);

        thread::scope(|scope| {
            let waiting = scope.spawn(|| block_on(cache.token()));
            let blocking = scope.spawn(|| cache.blocking_token());
            // The renewal is lost as well, but its token is still there.
            let withheld = scope.spawn(|| block_on(seeded.token()));
            while called.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
            drop(runtime);
            assert!(waiting.join().unwrap().unwrap_err().is_no_runtime());
            assert!(blocking.join().unwrap().unwrap_err().is_no_runtime());
            assert_eq!(withheld.join().unwrap().unwrap().expose(), "seed");
        });
    });
}
