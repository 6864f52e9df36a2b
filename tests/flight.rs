//! Token requests: shared by all callers, owned by none, and repeated when they are lost.

mod support;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    task::Poll,
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use support::{Api, Failure, Issuer, LONG, call, settle, stack};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    time::{Instant, advance, sleep, timeout},
};
use tower::{BoxError, Service, service_fn};
use tower_client_credentials::{AccessToken, TokenCache, TokenRequest};

const LATENCY: Duration = Duration::from_millis(80);

/// Longer than any of these tests takes. A call that waits for this long hangs.
const HANGING: Duration = Duration::from_secs(20);

#[tokio::test(start_paused = true)]
async fn one_token_request_per_key_on_a_cold_cache() {
    let issuer = Issuer::new().latency(LATENCY);
    let api = Api::accepting_all();
    let service = stack(&issuer, api.service());

    let responses = join_all((0..10_000).map(|_| call(&service))).await;

    assert!(responses.iter().all(Result::is_ok));
    assert_eq!(issuer.requests(), 1);
    assert_eq!(api.received().len(), 10_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_token_request_per_key_from_many_threads() {
    let issuer = Issuer::new().latency(LATENCY);
    let service = stack(&issuer, Api::accepting_all().service());

    let calls = (0..2_000).map(|_| {
        let service = service.clone();
        tokio::spawn(async move { call(&service).await.map(drop) })
    });
    for outcome in join_all(calls).await {
        outcome.unwrap().unwrap();
    }

    assert_eq!(issuer.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn no_caller_owns_a_token_request() {
    let issuer = Issuer::new().latency(LATENCY);
    let cache = issuer.cache();
    let start = Instant::now();

    // All callers give up before the token service answers, twice.
    for _ in 0..2 {
        let impatient = (0..80).map(|_| timeout(Duration::from_millis(25), cache.token()));
        assert!(join_all(impatient).await.iter().all(Result::is_err));
    }
    let token = cache.token().await.unwrap();

    assert_eq!(token.expose(), "token-1");
    assert_eq!(issuer.requests(), 1);
    assert_eq!(start.elapsed(), LATENCY);
}

#[tokio::test(start_paused = true)]
async fn caller_that_timed_out_gets_the_token_on_its_second_try() {
    let issuer = Issuer::new().latency(LATENCY);
    let service = stack(&issuer, Api::accepting_all().service());
    let patience = Duration::from_millis(50);

    let first = join_all((0..80).map(|_| timeout(patience, call(&service)))).await;
    let second = join_all((0..80).map(|_| timeout(patience, call(&service)))).await;

    assert!(first.iter().all(Result::is_err));
    assert!(second.iter().all(|outcome| matches!(outcome, Ok(Ok(_)))));
    assert_eq!(issuer.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn dropped_caller_does_not_cancel_the_token_request() {
    let issuer = Issuer::new().latency(LATENCY);
    let cache = issuer.cache();
    let mut first = tokio_test::task::spawn(cache.token());
    let mut second = tokio_test::task::spawn(cache.token());
    assert!(first.poll().is_pending());
    assert!(second.poll().is_pending());

    drop(first);
    settle().await;
    advance(LATENCY).await;
    settle().await;

    assert!(second.is_woken());
    assert!(second.poll().is_ready());
    assert_eq!(issuer.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn panic_of_the_token_service_is_a_failed_attempt() {
    let issuer = Issuer::new();
    let cache = issuer.cache();

    issuer.fail(Failure::Panic);
    let error = cache.token().await.unwrap_err();
    assert!(error.is_token_service() && error.is_transient());
    assert_eq!(error.to_string(), "token service panicked");
    assert_eq!(issuer.requests(), 3);

    issuer.fail(None);
    advance(error.retry_after().unwrap()).await;
    assert_eq!(cache.token().await.unwrap().expose(), "token-4");
}

#[tokio::test(start_paused = true)]
async fn token_request_without_an_answer_fails_after_thirty_seconds() {
    let issuer = Issuer::new();
    issuer.fail(Failure::Silence);
    let cache = issuer.cache();
    let start = Instant::now();

    let errors = join_all((0..100).map(|_| cache.token())).await;

    assert_eq!(start.elapsed(), Duration::from_secs(30));
    assert_eq!(issuer.requests(), 3, "an attempt takes at most 10 s");
    for error in errors {
        let error = error.unwrap_err();
        assert!(error.is_timeout() && error.is_transient());
        assert_eq!(error.to_string(), "token service did not answer within 30s");
    }
}

#[tokio::test(start_paused = true)]
async fn no_task_runs_while_there_is_nothing_to_fetch() {
    let issuer = Issuer::new().latency(LATENCY);
    let cache = issuer.cache();

    cache.token().await.unwrap();
    settle().await;

    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    drop(cache);
}

#[tokio::test(start_paused = true)]
async fn no_task_outlives_the_last_handle() {
    let issuer = Issuer::new();
    issuer.fail(Failure::Silence);
    let cache = issuer.cache();
    let service = stack(&issuer, Api::accepting_all().service());
    assert!(timeout(LATENCY, cache.token()).await.is_err());
    assert!(timeout(LATENCY, call(&service)).await.is_err());
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 2);

    drop((cache, service));
    settle().await;

    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
}

#[test]
fn token_request_is_repeated_after_its_runtime_shut_down() {
    let issuer = Issuer::new().latency(LATENCY);
    let cache = issuer.cache();

    let first = paused_runtime();
    first.block_on(async {
        assert!(timeout(LATENCY / 8, cache.token()).await.is_err());
    });
    drop(first);

    let token = token_from_another_runtime(&cache);
    assert_eq!(token.expose(), "token-2");
}

#[test]
fn waiter_on_another_runtime_starts_over_when_the_first_shuts_down() {
    let issuer = Issuer::new().latency(LATENCY);
    let cache = issuer.cache();
    let (first, second) = (paused_runtime(), paused_runtime());
    first.block_on(async {
        assert!(timeout(LATENCY / 8, cache.token()).await.is_err());
    });
    let mut waiter = tokio_test::task::spawn(cache.token());
    second.block_on(async { assert!(waiter.poll().is_pending()) });

    drop(first);

    assert!(waiter.is_woken());
    assert_eq!(second.block_on(waiter).unwrap().expose(), "token-2");
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn caller_whose_own_token_requests_are_lost_starts_three_more() {
    let issuer = Issuer::new();
    issuer.fail(Failure::Silence);
    let cache = issuer.cache();
    let mut caller = tokio_test::task::spawn(cache.token());

    for number in 1..=4 {
        assert!(caller.poll().is_pending(), "token request {number}");
        settle().await;
        assert_eq!(issuer.requests(), number);
        // The process stands still until the token request counts as lost.
        advance(Duration::from_secs(32)).await;
        settle().await;
    }

    let error = caller.await.unwrap_err();
    assert!(error.is_no_runtime(), "{error}");
    assert_eq!(issuer.requests(), 4);
}

#[tokio::test(start_paused = true)]
async fn caller_that_is_polled_too_late_for_eleven_tokens_gives_up() {
    let issuer = Issuer::new();
    let cache = issuer.cache();
    let mut caller = tokio_test::task::spawn(cache.token());

    for number in 1..=11 {
        assert!(caller.poll().is_pending(), "token {number}");
        settle().await;
        assert_eq!(issuer.requests(), number);
        advance(LONG).await;
    }

    let error = caller.await.unwrap_err();
    assert!(error.is_expired(), "{error}");
    assert_eq!(issuer.requests(), 11);
}

#[test]
fn runtime_that_nobody_drives_does_not_block_another() {
    let issuer = Issuer::new().latency(LATENCY);
    let cache = TokenCache::builder()
        .deadline(Duration::from_millis(200))
        .build(issuer.service());
    let parked = paused_runtime();
    parked.block_on(async {
        assert!(timeout(LATENCY / 8, cache.token()).await.is_err());
    });

    let token = token_from_another_runtime(&cache);
    assert_eq!(token.expose(), "token-2");
}

#[test]
fn cache_in_a_static_serves_one_short_runtime_after_another() {
    let issuer = Issuer::new().lifetime(Duration::ZERO);
    let cache = issuer.cache();
    for number in 1..=50 {
        let token = runtime().block_on(cache.token()).unwrap();
        assert_eq!(token.expose(), format!("token-{number}"));
    }
}

#[test]
fn call_outside_a_runtime_fails_with_a_clear_error() {
    let cache = Issuer::new().cache();

    let error = cache.token().now_or_never().unwrap().unwrap_err();

    assert!(error.is_no_runtime());
    assert!(error.to_string().starts_with("no Tokio runtime"), "{error}");
}

#[test]
fn call_in_a_runtime_without_timers_fails_with_a_clear_error() {
    let cache = Issuer::new().cache();
    let without_timers = Builder::new_current_thread().build().unwrap();

    let error = without_timers.block_on(cache.token()).unwrap_err();

    assert!(error.is_no_runtime());
}

#[test]
fn cached_token_needs_no_runtime() {
    let cache = Issuer::new().cache();
    runtime().block_on(cache.token()).unwrap();

    let token = cache.token().now_or_never().unwrap().unwrap();

    assert_eq!(token.expose(), "token-1");
}

/// Runs `calls` on a thread of its own, because calls that wait for a lock that is held never end.
fn returns_in_time(calls: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        calls();
        let _ = done.send(());
    });
    let result = finished.recv_timeout(HANGING);
    assert_ne!(
        result,
        Err(mpsc::RecvTimeoutError::Timeout),
        "the cache waits for its own lock"
    );
    thread.join().unwrap();
}

/// Calls a cache when it is cloned, and when it is dropped.
struct Reentering {
    cache: Arc<OnceLock<TokenCache>>,
    times: Arc<AtomicUsize>,
}

impl Reentering {
    fn new() -> Self {
        Self {
            cache: Arc::default(),
            times: Arc::default(),
        }
    }

    /// Another one for the same cache.
    fn another(&self) -> Self {
        Self {
            cache: Arc::clone(&self.cache),
            times: Arc::clone(&self.times),
        }
    }

    /// Makes the cache take every lock that a caller can make it take.
    fn touch(&self) {
        self.times.fetch_add(1, Ordering::SeqCst);
        let Some(cache) = self.cache.get() else {
            return;
        };
        let stranger = AccessToken::new("stranger").unwrap();
        cache.reject(&stranger);
        let _ = format!("{cache:?}");
        if let Some(Ok(current)) = cache.token().now_or_never() {
            cache.reject(&current);
        }
        let _ = cache.token().now_or_never();
    }

    /// How often the cache was called since the last time.
    fn times(&self) -> usize {
        self.times.swap(0, Ordering::SeqCst)
    }
}

impl Clone for Reentering {
    fn clone(&self) -> Self {
        self.touch();
        self.another()
    }
}

impl Drop for Reentering {
    fn drop(&mut self) {
        self.touch();
    }
}

impl std::fmt::Debug for Reentering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an error that calls the cache when it is dropped")
    }
}

impl std::fmt::Display for Reentering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Reentering {}

impl std::task::Wake for Reentering {
    fn wake(self: Arc<Self>) {
        self.touch();
    }
}

#[test]
fn no_user_code_runs_under_a_lock_when_a_service_is_cloned_called_polled_or_dropped() {
    returns_in_time(|| {
        let reentering = Reentering::new();
        let held = reentering.another();
        let tokens = service_fn(move |_: TokenRequest| {
            held.touch();
            let future = held.another();
            async move {
                future.touch();
                tokio::task::yield_now().await;
                future.touch();
                Ok::<_, BoxError>(AccessToken::new("token-1")?.with_lifetime(LONG))
            }
        });
        let service = Cloned(tokens, reentering.another());
        let cache = reentering.cache.get_or_init(|| TokenCache::new(service));

        runtime().block_on(async {
            cache.token().await.unwrap();
            assert!(reentering.times() >= 6);
            let token = cache.token().await.unwrap();
            cache.reject(&token);
            cache.token().await.unwrap();
            cache.reset();
            cache.token().await.unwrap();
            settle().await;
            assert!(reentering.times() >= 6);
        });
    });
}

/// A service that calls the cache when it is cloned and when a clone is dropped.
#[derive(Clone)]
struct Cloned<S>(
    S,
    #[allow(dead_code, reason = "dropped with the service")] Reentering,
);

impl<S: Service<TokenRequest>> Service<TokenRequest> for Cloned<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: TokenRequest) -> S::Future {
        self.0.call(request)
    }
}

#[test]
fn no_user_code_runs_under_a_lock_when_an_error_is_dropped() {
    returns_in_time(|| {
        let reentering = Reentering::new();
        let is_failing = Arc::new(AtomicBool::new(true));
        let (cause, fails) = (reentering.another(), is_failing.clone());
        let cache =
            TokenCache::builder()
                .max_attempts(2)
                .build(service_fn(move |_: TokenRequest| {
                    let error = fails.load(Ordering::SeqCst).then(|| cause.another());
                    async move {
                        match error {
                            Some(error) => Err(BoxError::from(error)),
                            None => Ok(AccessToken::new("token-1")?.with_lifetime(LONG)),
                        }
                    }
                }));
        let cache = reentering.cache.get_or_init(|| cache);

        paused_runtime().block_on(async {
            // One failure replaces another, then a token does, and then a reset forgets one.
            for _ in 0..3 {
                drop(cache.token().await.unwrap_err());
                settle().await;
                advance(Duration::from_secs(10)).await;
            }
            assert!(reentering.times() > 0);
            is_failing.store(false, Ordering::SeqCst);
            drop(cache.token().await.unwrap());
            assert!(reentering.times() > 0);
            is_failing.store(true, Ordering::SeqCst);
            cache.reset();
            drop(cache.token().await.unwrap_err());
            reentering.times();
            cache.reset();
            assert!(reentering.times() > 0);
        });
    });
}

#[test]
fn no_user_code_runs_under_a_lock_when_the_error_of_an_overdue_token_request_is_dropped() {
    returns_in_time(|| {
        let reentering = Reentering::new();
        let cause = reentering.another();
        let cache = TokenCache::new(service_fn(move |_: TokenRequest| {
            let error = cause.another();
            async move {
                sleep(LATENCY).await;
                Err::<AccessToken, _>(BoxError::from(error))
            }
        }));
        let cache = reentering.cache.get_or_init(|| cache);
        let runtime = paused_runtime();
        let mut caller = tokio_test::task::spawn(cache.token());
        runtime.block_on(async {
            assert!(caller.poll().is_pending());
            settle().await;
            // Nobody drives the runtime until the token request counts as lost.
            assert!(advance(Duration::from_secs(40)).now_or_never().is_none());
        });
        reentering.times();

        runtime.block_on(settle());

        assert!(reentering.times() > 0);
    });
}

#[test]
fn no_user_code_runs_under_a_lock_when_a_waker_is_woken_or_dropped() {
    returns_in_time(|| {
        let reentering = Reentering::new();
        let issuer = Issuer::new();
        let cache = reentering.cache.get_or_init(|| issuer.cache());
        runtime().block_on(async {
            for gives_up in [false, true] {
                cache.reset();
                let waker = Arc::new(reentering.another());
                let is_woken = Arc::downgrade(&waker);
                let waker = std::task::Waker::from(waker);
                let mut waiting = Box::pin(cache.token());
                let mut cx = std::task::Context::from_waker(&waker);
                assert!(waiting.as_mut().poll(&mut cx).is_pending());
                drop(waker);
                assert_eq!(reentering.times(), 0);
                if gives_up {
                    drop(waiting);
                    assert!(reentering.times() > 0);
                }
                settle().await;
                assert!(reentering.times() > 0 || gives_up);
                assert!(is_woken.upgrade().is_none());
            }
        });
    });
}

fn token_from_another_runtime(cache: &TokenCache) -> AccessToken {
    paused_runtime()
        .block_on(async { timeout(HANGING, cache.token()).await })
        .expect("the call returns")
        .expect("another token request succeeds")
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn paused_runtime() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap()
}

/// Short-lived runtimes take token requests with them. Callers on other runtimes don't fail.
#[test]
fn cache_in_a_static_serves_many_runtimes_at_once() {
    static CACHE: OnceLock<TokenCache> = OnceLock::new();
    let issuer = Issuer::new()
        .lifetime(Duration::ZERO)
        .latency(Duration::from_millis(3));
    let cache = CACHE.get_or_init(|| issuer.cache());
    let runtime = |number: u64| {
        let mut builder = match number % 4 {
            0 => Builder::new_multi_thread(),
            _ => Builder::new_current_thread(),
        };
        builder.worker_threads(2).enable_all().build().unwrap()
    };
    let call_often = |number: u64| {
        for round in 0..50 {
            runtime(number).block_on(async {
                if number % 2 == 0 {
                    let patience = Duration::from_micros((round * 37 + number * 91) % 4000);
                    let _gives_up = timeout(patience, cache.token()).await;
                } else {
                    let patience = Duration::from_secs(20);
                    let token = timeout(patience, cache.token()).await;
                    token.expect("the call returns").expect("the call succeeds");
                }
            });
        }
    };

    std::thread::scope(|scope| {
        for number in 0..16 {
            scope.spawn(move || call_often(number));
        }
    });
}

/// A caller on a lasting runtime gets its token, however many token requests of others are lost.
#[test]
fn token_requests_lost_by_other_callers_do_not_count() {
    let issuer = Issuer::new().latency(Duration::from_secs(1));
    let cache = issuer.cache();
    let begin_elsewhere = || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let given_up = runtime.block_on(async { cache.token().now_or_never() });
        assert!(given_up.is_none());
        runtime
    };
    let lasting = paused_runtime();
    let mut waiter = tokio_test::task::spawn(cache.token());

    let mut elsewhere = begin_elsewhere();
    for _ in 0..20 {
        let entered = lasting.enter();
        assert!(waiter.poll().is_pending());
        drop(entered);
        drop(elsewhere);
        elsewhere = begin_elsewhere();
    }
    drop(elsewhere);

    let token = lasting.block_on(async { timeout(LONG, waiter).await });
    assert_eq!(token.unwrap().unwrap().expose(), "token-1");
}
