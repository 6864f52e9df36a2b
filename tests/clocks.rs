//! Two clocks: a token has expired as soon as either says so, and neither can cause a storm.

mod support;

use std::{
    error::Error as _,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, future::join_all};
use support::{Api, Failure, Issuer, call, request, settle};
use tokio::{
    runtime::Runtime,
    time::{Instant, advance, sleep},
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, ClientCredentialsLayer, Error, TokenCache, TokenCacheBuilder, TokenRequest,
};

const SECOND: Duration = Duration::from_secs(1);
const NANOSECOND: Duration = Duration::from_nanos(1);
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

    fn builder(&self) -> TokenCacheBuilder {
        let wall = self.clone();
        TokenCache::builder()
            .jitter(0.0)
            .wall_clock(move || *wall.0.lock().unwrap())
    }

    fn cache(&self, issuer: &Issuer) -> TokenCache {
        self.builder().build(issuer.service())
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

/// How soon a task notices that the wall clock was set, with timers of a millisecond.
const NOTICED_WITHIN: Duration = Duration::from_millis(1001);

/// A machine is suspended for an hour in the middle of a token request.
#[tokio::test(start_paused = true)]
async fn token_request_ends_within_a_second_after_the_wall_clock_passes_its_deadline() {
    for (name, forward, ends_soon) in [
        ("almost the deadline", 29 * SECOND, false),
        ("the deadline", 30 * SECOND, true),
        ("an hour", HOUR, true),
    ] {
        let (issuer, wall) = (Issuer::new(), Wall::new());
        issuer.fail(Failure::Silence);
        let limit = Duration::MAX;
        let cache = wall
            .builder()
            .attempt_timeout(limit)
            .build(issuer.service());
        let mut waiters: Vec<_> = (0..3)
            .map(|_| tokio_test::task::spawn(cache.token()))
            .collect();
        assert!(waiters.iter_mut().all(|waiter| waiter.poll().is_pending()));
        sleep(3 * SECOND).await;

        wall.forward(forward);
        let start = Instant::now();
        let errors = join_all(waiters).await;

        let took = start.elapsed();
        let limit = if ends_soon {
            NOTICED_WITHIN
        } else {
            27 * SECOND
        };
        assert!(took <= limit, "{name}: {took:?}");
        assert_eq!(took <= NOTICED_WITHIN, ends_soon, "{name}: {took:?}");
        for error in errors {
            let error = error.unwrap_err();
            assert!(error.is_timeout(), "{name}: {error}");
            assert_eq!(error.to_string(), "token service did not answer within 30s");
        }
        assert_eq!(issuer.requests(), 1, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn attempt_ends_within_a_second_after_the_wall_clock_passes_its_limit() {
    for (name, forward, ends_soon) in [
        ("almost the limit", 9 * SECOND, false),
        ("the limit", 10 * SECOND, true),
        ("more than the limit", 25 * SECOND, true),
    ] {
        let (issuer, wall) = (Issuer::new(), Wall::new());
        issuer.fail(Failure::Silence);
        let builder = wall.builder().retry_backoff(Duration::ZERO);
        let cache = builder.build(issuer.service());
        let mut waiter = tokio_test::task::spawn(cache.token());
        assert!(waiter.poll().is_pending());
        sleep(3 * SECOND).await;
        issuer.fail(None);

        wall.forward(forward);
        let start = Instant::now();
        let token = waiter.await.unwrap();

        assert_eq!(token.expose(), "token-2", "{name}");
        let took = start.elapsed();
        assert_eq!(took <= NOTICED_WITHIN, ends_soon, "{name}: {took:?}");
        assert!(took <= 7 * SECOND + Duration::from_millis(2), "{name}");
    }
}

/// The server asks for a pause, and the machine is suspended meanwhile.
#[tokio::test(start_paused = true)]
async fn pause_between_attempts_ends_within_a_second_after_the_wall_clock_passes_the_deadline() {
    for (name, forward, ends_soon) in [
        ("almost the deadline", 29 * SECOND, false),
        ("the deadline", 30 * SECOND, true),
        ("an hour", HOUR, true),
    ] {
        let wall = Wall::new();
        let attempts = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&attempts);
        let cache = wall.builder().build(service_fn(move |_: TokenRequest| {
            let is_first = counted.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                if is_first {
                    return Err(Error::transient("busy", Some(19 * SECOND)));
                }
                AccessToken::new("token-1")
            }
        }));
        let mut waiter = tokio_test::task::spawn(cache.token());
        assert!(waiter.poll().is_pending());
        sleep(SECOND).await;

        wall.forward(forward);
        let start = Instant::now();
        let result = waiter.await;

        let took = start.elapsed();
        assert_eq!(took <= NOTICED_WITHIN, ends_soon, "{name}: {took:?}");
        if !ends_soon {
            assert_eq!(result.unwrap().expose(), "token-1");
            continue;
        }
        let error = result.unwrap_err();
        assert!(error.is_timeout(), "{name}: {error}");
        let source = error.source().expect("the error of the attempt");
        let busy = source.downcast_ref::<Error>().unwrap();
        assert!(busy.is_token_service(), "{name}: {busy}");
        assert_eq!(attempts.load(Ordering::SeqCst), 1, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn wall_clock_that_is_set_back_extends_no_token_request() {
    let (issuer, wall) = (Issuer::new(), Wall::new());
    issuer.fail(Failure::Silence);
    let cache = wall.cache(&issuer);
    let start = Instant::now();
    let mut waiter = tokio_test::task::spawn(cache.token());
    assert!(waiter.poll().is_pending());
    sleep(3 * SECOND).await;

    wall.back(HOUR);
    let error = waiter.await.unwrap_err();

    assert!(error.is_timeout(), "{error}");
    assert_eq!(start.elapsed(), 30 * SECOND);
    assert_eq!(issuer.requests(), 3, "each attempt has its own limit");
}

/// The wall clock is wrong, and no other token is available. The API still accepts the token.
#[tokio::test(start_paused = true)]
async fn token_serves_until_its_end_if_only_the_wall_clock_says_that_it_expired() {
    for failure in [Failure::Transient, Failure::Permanent] {
        let (issuer, wall, api) = (Issuer::new(), Wall::new(), Api::accepting_all());
        let service = ClientCredentialsLayer::with_cache(wall.cache(&issuer)).layer(api.service());
        call(&service).await.unwrap();
        let end = Instant::now() + 1800 * SECOND;
        issuer.fail(failure);

        wall.forward(HOUR);
        while end - Instant::now() > 20 * SECOND {
            call(&service).await.unwrap();
            assert_eq!(service.cache().token().await.unwrap().expose(), "token-1");
            advance(10 * SECOND).await;
        }
        // Fails without a pause, before the token ends.
        issuer.fail(Failure::Permanent);
        advance(end - Instant::now() - NANOSECOND).await;
        call(&service).await.unwrap();
        advance(NANOSECOND).await;
        let error = call(&service).await.unwrap_err();

        assert!(error.downcast::<Error>().unwrap().is_token_service());
        assert!(service.cache().token().await.is_err());
        assert!(api.tokens().iter().all(|token| token == "token-1"));
    }
}

#[tokio::test(start_paused = true)]
async fn token_that_only_the_wall_clock_ended_is_replaced_once_that_is_possible() {
    let (issuer, wall) = (Issuer::new(), Wall::new());
    let cache = wall.cache(&issuer);
    cache.token().await.unwrap();
    issuer.fail(Failure::Permanent);
    wall.forward(HOUR);
    assert_eq!(cache.token().await.unwrap().expose(), "token-1");

    issuer.fail(None);
    advance(2 * SECOND).await;

    assert_eq!(cache.token().await.unwrap().expose(), "token-3");
}

/// A wall clock that panics while a test says so, and in the tasks of token requests only if it says
/// that, too.
#[derive(Clone, Default)]
struct Panicking {
    in_calls: Arc<AtomicBool>,
    in_tasks: Arc<AtomicBool>,
}

impl Panicking {
    fn builder(&self) -> TokenCacheBuilder {
        let clock = self.clone();
        TokenCache::builder().wall_clock(move || {
            let is_task = tokio::task::try_id().is_some();
            let panics = if is_task {
                &clock.in_tasks
            } else {
                &clock.in_calls
            };
            assert!(!panics.load(Ordering::SeqCst), "the clock is broken");
            SystemTime::UNIX_EPOCH + 1_000_000 * HOUR
        })
    }

    fn cache(&self, issuer: &Issuer) -> TokenCache {
        self.builder().build(issuer.service())
    }
}

/// Returns the message of the panic in `call`.
fn panic_of<T>(call: impl FnOnce() -> T) -> String {
    let payload = catch_unwind(AssertUnwindSafe(call)).map(drop).unwrap_err();
    let text = payload.downcast_ref::<&str>().copied();
    text.unwrap_or_default().to_owned()
}

#[tokio::test(start_paused = true)]
async fn panic_of_the_wall_clock_in_a_call_reaches_the_caller() {
    let (issuer, clock, api) = (Issuer::new(), Panicking::default(), Api::accepting_all());
    let cache = clock.cache(&issuer);
    let mut service = ClientCredentialsLayer::with_cache(cache.clone()).layer(api.service());
    let mut waiting = tokio_test::task::spawn(service.clone().oneshot(request()));
    assert!(waiting.poll().is_pending());
    settle().await;

    clock.in_calls.store(true, Ordering::SeqCst);
    let broken = "the clock is broken";
    assert_eq!(panic_of(|| waiting.poll()), broken, "a call that waits");
    drop(waiting);
    assert_eq!(panic_of(|| service.call(request())), broken, "a call");
    assert_eq!(panic_of(|| cache.token().now_or_never()), broken);
    let stranger = AccessToken::new("stranger").unwrap();
    assert_eq!(panic_of(|| cache.reject(&stranger)), broken);
    cache.reset();

    clock.in_calls.store(false, Ordering::SeqCst);
    call(&service).await.unwrap();
    service.call(request()).await.unwrap();
    assert_eq!(api.tokens(), ["token-2"; 2]);
}

#[tokio::test(start_paused = true)]
async fn panic_of_the_wall_clock_in_a_token_request_is_its_error() {
    for while_waiting in [false, true] {
        let (issuer, clock) = (Issuer::new(), Panicking::default());
        let cache = clock.cache(&issuer.clone().latency(5 * SECOND));
        if !while_waiting {
            clock.in_tasks.store(true, Ordering::SeqCst);
        }
        let mut waiters: Vec<_> = (0..3)
            .map(|_| tokio_test::task::spawn(cache.token()))
            .collect();
        assert!(waiters.iter_mut().all(|waiter| waiter.poll().is_pending()));
        settle().await;
        clock.in_tasks.store(true, Ordering::SeqCst);

        for error in join_all(waiters).await {
            let error = error.unwrap_err();
            assert!(error.is_configuration(), "{error}");
            assert_eq!(error.to_string(), "wall clock of the token cache panicked");
        }

        // The back-off applies, and then there is another token request.
        let requests = issuer.requests();
        assert_eq!(requests, usize::from(while_waiting));
        clock.in_tasks.store(false, Ordering::SeqCst);
        let error = cache.token().await.unwrap_err();
        assert!(error.is_configuration(), "{error}");
        assert_eq!(issuer.requests(), requests);
        advance(error.retry_after().unwrap()).await;
        cache.token().await.unwrap();
        assert_eq!(issuer.requests(), requests + 1);
    }
}

/// A wall clock that panics once, when a test says so, and otherwise follows the monotonic clock.
fn panicking_once() -> (TokenCacheBuilder, Arc<AtomicBool>) {
    let panics: Arc<AtomicBool> = Arc::default();
    let (panics_once, start) = (Arc::clone(&panics), Instant::now());
    let builder = TokenCache::builder().jitter(0.0).wall_clock(move || {
        let panics = panics_once.swap(false, Ordering::SeqCst);
        assert!(!panics, "the clock is broken");
        SystemTime::UNIX_EPOCH + 1_000_000 * HOUR + start.elapsed()
    });
    (builder, panics)
}

#[tokio::test(start_paused = true)]
async fn single_panic_of_the_wall_clock_during_an_attempt_is_not_blamed_on_the_token_service() {
    for max_attempts in [1, 3] {
        let (builder, panics) = panicking_once();
        let issuer = Issuer::new().latency(5 * SECOND);
        let builder = builder.max_attempts(max_attempts);
        let cache = builder.build(issuer.service());
        let mut waiter = tokio_test::task::spawn(cache.token());
        assert!(waiter.poll().is_pending());
        settle().await;
        assert_eq!(issuer.requests(), 1, "an attempt is under way");

        panics.store(true, Ordering::SeqCst);
        let error = waiter.await.unwrap_err();

        assert!(!panics.load(Ordering::SeqCst), "the clock was read");
        assert!(error.is_configuration(), "{error}");
        assert_eq!(error.to_string(), "wall clock of the token cache panicked");
        assert_eq!(issuer.requests(), 1, "{max_attempts} attempts");
        advance(error.retry_after().unwrap()).await;
        assert_eq!(cache.token().await.unwrap().expose(), "token-2");
    }
}

#[tokio::test(start_paused = true)]
async fn keep_warm_checks_again_within_a_minute_after_a_panic_of_the_wall_clock() {
    let (builder, panics) = panicking_once();
    let issuer = Issuer::new();
    let cache = builder.keep_warm().build(issuer.service());
    cache.token().await.unwrap();
    sleep(1489 * SECOND).await;
    assert_eq!(issuer.requests(), 1);

    panics.store(true, Ordering::SeqCst);
    sleep(2 * SECOND).await;
    assert!(!panics.load(Ordering::SeqCst), "the clock was read");
    assert_eq!(issuer.requests(), 1, "the check failed");
    sleep(60 * SECOND).await;

    assert_eq!(issuer.requests(), 2);
    assert_eq!(cache.token().await.unwrap().expose(), "token-2");
}

/// A board whose clock has lost its time may read anything.
#[tokio::test(start_paused = true)]
async fn wall_clock_at_the_end_of_its_range_panics_nowhere() {
    let (mut seconds, mut farthest) = (u64::MAX / 2, SystemTime::UNIX_EPOCH);
    while seconds > 0 {
        let later = farthest.checked_add(Duration::from_secs(seconds));
        farthest = later.unwrap_or(farthest);
        seconds /= 2;
    }
    for before_the_end in [0, 1, 29, 31, 3600, 1_000_000_000] {
        let now = farthest - Duration::from_secs(before_the_end);
        let issuer = Issuer::new();
        let builder = TokenCache::builder().keep_warm().wall_clock(move || now);
        let cache = builder.build(issuer.service());
        let api = Api::accepting(|token| token != "token-1");
        let service = ClientCredentialsLayer::with_cache(cache.clone()).layer(api.service());

        for _ in 0..3 {
            call(&service).await.unwrap();
            let token = cache.token().await.unwrap();
            cache.reject(&token);
            cache.refresh().await.unwrap();
            sleep(61 * SECOND).await;
        }
        issuer.fail(Failure::Transient);
        cache.refresh().await.unwrap_err();
    }
}

/// A second panic while the first one unwinds would abort the process of all tests.
#[test]
fn wall_clock_that_panics_while_a_token_request_is_dropped_aborts_nothing() {
    for (name, is_answered) in [("token request", false), ("keep-warm task", true)] {
        for unwinding in [false, true] {
            let (issuer, clock) = (Issuer::new(), Panicking::default());
            issuer.fail((!is_answered).then_some(Failure::Silence));
            let cache = clock.builder().keep_warm().build(issuer.service());
            let runtime = paused_runtime();
            let mut caller = tokio_test::task::spawn(cache.token());
            runtime.block_on(async {
                assert!(caller.poll().is_pending());
                settle().await;
            });
            assert_eq!(caller.is_woken(), is_answered, "{name}");
            assert_eq!(runtime.metrics().num_alive_tasks(), 1, "{name}");
            clock.in_calls.store(true, Ordering::SeqCst);
            clock.in_tasks.store(true, Ordering::SeqCst);

            if unwinding {
                let message = panic_of(move || {
                    let _dropped_while_unwinding = (runtime, caller);
                    panic!("on purpose");
                });
                assert_eq!(message, "on purpose", "{name}");
            } else {
                drop((runtime, caller));
            }

            clock.in_calls.store(false, Ordering::SeqCst);
            clock.in_tasks.store(false, Ordering::SeqCst);
            issuer.fail(None);
            paused_runtime().block_on(cache.token()).unwrap();
        }
    }
}

fn paused_runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}
