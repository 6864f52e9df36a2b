//! Bugs that were found once. Each test is named after the correct behaviour.

mod support;

use std::{
    collections::HashMap,
    future::{Future, pending, ready},
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread::ThreadId,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::join_all};
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use http_body::{Body, Frame};
use support::{Api, Failure, Issuer, LONG, call, request, settle, stack};
use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, Sleep, advance, sleep, timeout},
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, ClientCredentialsLayer, Error, NotReplayed, Rejection, TokenCache, TokenOutcome,
    TokenRequest,
    replay::{Buffered, ReplayBody, ReplayPolicy},
};

const SECOND: Duration = Duration::from_secs(1);

/// A service that is ready only while the gate is open.
struct Gated<S> {
    inner: S,
    is_open: Arc<AtomicBool>,
}
impl<S: Clone> Clone for Gated<S> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            is_open: self.is_open.clone(),
        }
    }
}
impl<S: Service<Request<String>>> Service<Request<String>> for Gated<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        if self.is_open.load(Ordering::SeqCst) {
            self.inner.poll_ready(cx)
        } else {
            // Wakes nobody: the tests poll again by hand.
            Poll::Pending
        }
    }
    fn call(&mut self, request: Request<String>) -> S::Future {
        self.inner.call(request)
    }
}

/// A service that takes some time to become ready. Each clone starts over.
struct Slow<S> {
    inner: S,
    ready_after: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}
impl<S: Clone> Clone for Slow<S> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            ready_after: self.ready_after,
            waiting: None,
        }
    }
}
impl<S: Service<Request<String>>> Service<Request<String>> for Slow<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let ready_after = self.ready_after;
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(sleep(ready_after)));
        if waiting.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.inner.poll_ready(cx)
    }
    fn call(&mut self, request: Request<String>) -> S::Future {
        self.waiting = None;
        self.inner.call(request)
    }
}

#[tokio::test(start_paused = true)]
async fn jitter_of_nan_neither_panics_nor_causes_a_storm() {
    let issuer = Issuer::new();
    let cache = TokenCache::builder()
        .jitter(f64::NAN)
        .build(issuer.service());

    let outcome = cache.token().await;
    assert_eq!(issuer.requests(), 1, "{outcome:?}");
    outcome.unwrap();
}

#[tokio::test(start_paused = true)]
async fn waiter_that_is_polled_late_does_not_get_an_expired_token() {
    let issuer = Issuer::new().latency(SECOND);
    let cache = issuer.cache();
    let mut late = tokio_test::task::spawn(cache.token());
    assert!(late.poll().is_pending());
    settle().await;
    advance(SECOND).await;
    settle().await;
    assert!(late.is_woken());

    advance(2 * LONG).await;

    let token = match late.poll() {
        Poll::Ready(token) => token.unwrap(),
        Poll::Pending => late.await.unwrap(),
    };
    assert_eq!(token.expose(), "token-2");
}

#[tokio::test(start_paused = true)]
async fn waiter_that_is_polled_late_does_not_get_a_rejected_token() {
    let issuer = Issuer::new().latency(SECOND);
    let cache = issuer.cache();
    let mut late = tokio_test::task::spawn(cache.token());
    assert!(late.poll().is_pending());
    settle().await;
    advance(SECOND).await;
    settle().await;
    let token = cache.token().await.unwrap();
    assert!(matches!(cache.reject(&token), Rejection::Withheld));

    let token = match late.poll() {
        Poll::Ready(token) => token.unwrap(),
        Poll::Pending => late.await.unwrap(),
    };
    assert_eq!(token.expose(), "token-2");
}

#[tokio::test(start_paused = true)]
async fn rejected_token_with_zero_lifetime_is_not_sent_by_another_waiter() {
    let issuer = Issuer::new().lifetime(Duration::ZERO).latency(SECOND);
    let api = Api::accepting(|token| token != "token-1");
    let is_open = Arc::new(AtomicBool::new(true));
    let gated = Gated {
        inner: api.service(),
        is_open: is_open.clone(),
    };
    let service = stack(&issuer, gated);

    let mut a = tokio_test::task::spawn(service.clone().call(request()));
    let mut b = tokio_test::task::spawn(service.clone().call(request()));
    assert!(a.poll().is_pending());
    assert!(b.poll().is_pending());
    settle().await;
    advance(SECOND).await;
    settle().await;
    is_open.store(false, Ordering::SeqCst);
    assert!(b.poll().is_pending()); // Has token-1 and waits for readiness.
    is_open.store(true, Ordering::SeqCst);
    assert!(a.poll().is_pending()); // Was sent, got a 401 and waits for the renewal.
    assert_eq!(api.tokens(), ["token-1"]);

    let _ = b.poll();
    assert_eq!(
        api.tokens(),
        ["token-1"],
        "b must not send the rejected token while its renewal runs"
    );
}

#[tokio::test(start_paused = true)]
async fn replay_whose_token_expires_before_the_send_reports_why_there_is_no_other() {
    let issuer = Issuer::new();
    let api = Api::accepting(|_| false);
    let is_open = Arc::new(AtomicBool::new(true));
    let gated = Gated {
        inner: api.service(),
        is_open: is_open.clone(),
    };
    let service = stack(&issuer, gated);
    service.cache().token().await.unwrap();

    let mut a = tokio_test::task::spawn(service.clone().call(request()));
    is_open.store(false, Ordering::SeqCst);
    assert!(a.poll().is_pending()); // Got a 401 and waits for the renewal.
    settle().await;
    assert!(a.poll().is_pending()); // Has token-2 and waits for readiness.
    assert_eq!(issuer.requests(), 2);
    advance(2 * LONG).await; // token-2 expires.
    issuer.fail(Failure::Permanent);
    is_open.store(true, Ordering::SeqCst);

    // The rejection was read and dropped to free its connection, so it cannot be returned.
    let error = a.await.unwrap_err();
    assert!(error.downcast::<Error>().unwrap().is_token_service());
    assert_eq!(issuer.requests(), 3);
}

#[tokio::test(start_paused = true)]
async fn replay_whose_token_is_rejected_before_the_send_waits_for_the_next() {
    let issuer = Issuer::new();
    let api = Api::accepting(|token| token == "token-3");
    let is_open = Arc::new(AtomicBool::new(true));
    let gated = Gated {
        inner: api.service(),
        is_open: is_open.clone(),
    };
    let cache = TokenCache::builder()
        .cool_down(SECOND)
        .build(issuer.service());
    let service = ClientCredentialsLayer::with_cache(cache.clone()).layer(gated);
    cache.token().await.unwrap();

    let mut a = tokio_test::task::spawn(service.clone().call(request()));
    is_open.store(false, Ordering::SeqCst);
    assert!(a.poll().is_pending());
    settle().await;
    assert!(a.poll().is_pending()); // Has token-2 and waits for readiness.
    advance(2 * SECOND).await;
    let token = cache.token().await.unwrap();
    assert!(matches!(cache.reject(&token), Rejection::Withheld));
    is_open.store(true, Ordering::SeqCst);

    assert_eq!(a.await.unwrap().status(), StatusCode::OK);
    assert_eq!(issuer.requests(), 3);
}

#[tokio::test(start_paused = true)]
async fn short_lived_tokens_never_cause_a_loop_however_late_the_service_becomes_ready() {
    let issuer = Issuer::new().lifetime(SECOND);
    let api = Api::accepting_all();
    let slow = Slow {
        inner: api.service(),
        ready_after: 2 * SECOND,
        waiting: None,
    };
    let service = stack(&issuer, slow);

    let outcome = timeout(Duration::from_secs(600), call(&service)).await;

    assert!(issuer.requests() <= 11, "{}", issuer.requests());
    assert!(
        outcome.is_ok(),
        "the call still loops after {} token requests",
        issuer.requests()
    );
}

/// A token that cannot be replaced is used until its stated end, even if the service is not ready.
#[tokio::test(start_paused = true)]
async fn last_resort_is_sent_before_its_stated_end_however_late_the_service_becomes_ready() {
    for (name, called_at, ready_after, is_sent) in [
        ("ready at once", 1790, Duration::ZERO, true),
        ("ready before the end", 1790, 9 * SECOND, true),
        ("ready at the end", 1790, 10 * SECOND, false),
        ("ready after the end", 1795, 9 * SECOND, false),
    ] {
        let issuer = Issuer::new();
        let api = Api::accepting_all();
        let slow = Slow {
            inner: api.service(),
            ready_after,
            waiting: None,
        };
        let cache = TokenCache::builder().jitter(0.0).build(issuer.service());
        let mut service = ClientCredentialsLayer::with_cache(cache.clone()).layer(slow);
        cache.token().await.unwrap();
        let end = Instant::now() + LONG;
        issuer.fail(Failure::Permanent);
        // The service of the call becomes ready once before, and once while the call waits.
        advance(called_at * SECOND - ready_after).await;
        service.ready().await.unwrap();
        let left = end - LONG + called_at * SECOND - Instant::now();
        advance(left).await;

        let result = timeout(60 * SECOND, service.call(request())).await;

        let result = result.expect("the call returns");
        assert_eq!(result.is_ok(), is_sent, "{name}");
        let sent = if is_sent { 1 } else { 0 };
        assert_eq!(api.tokens(), vec!["token-1"; sent], "{name}");
        if let Err(error) = result {
            let error = error.downcast_ref::<Error>().unwrap();
            assert!(error.is_token_service(), "{name}: {error}");
        }
    }
}

/// Moves the paused clock without running any task, as if nobody drove the runtime meanwhile.
fn pass_undriven(runtime: &Runtime, time: Duration) {
    runtime.block_on(async { assert!(advance(time).now_or_never().is_none()) });
}

fn paused_runtime() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}

/// A blocking client drives its runtime only while it makes a call.
#[test]
fn token_request_on_an_undriven_runtime_is_not_a_failure() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let service = service_fn(move |_: TokenRequest| {
        let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            sleep(4 * SECOND).await;
            let token = AccessToken::new(format!("token-{number}"))?;
            Ok::<_, BoxError>(token.with_lifetime(100 * SECOND))
        }
    });
    let cache = TokenCache::builder()
        .jitter(0.0)
        .deadline(20 * SECOND)
        .max_attempts(1)
        .build(service);
    let runtime = paused_runtime();
    assert_eq!(runtime.block_on(cache.token()).unwrap().expose(), "token-1");
    // At 80 s: due for refresh since 70 s, and not expired until 90 s.
    pass_undriven(&runtime, 76 * SECOND);
    let due = runtime.block_on(async {
        let token = cache.token().await;
        tokio::task::yield_now().await; // The refresh is polled for the first time.
        token
    });
    assert_eq!(due.unwrap().expose(), "token-1");
    assert_eq!(requests.load(Ordering::SeqCst), 2);

    // At 100.5 s: past the deadline of the refresh, which is overdue from 101 s on.
    pass_undriven(&runtime, Duration::from_millis(20_500));
    let token = runtime.block_on(cache.token());

    assert_eq!(token.unwrap().expose(), "token-2");
}

#[test]
fn overdue_token_request_on_an_undriven_runtime_is_not_a_failure() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let service = service_fn(move |_: TokenRequest| {
        let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            // Twice, because a socket has to be polled more than once, too.
            sleep(4 * SECOND).await;
            sleep(4 * SECOND).await;
            let token = AccessToken::new(format!("token-{number}"))?;
            Ok::<_, BoxError>(token.with_lifetime(100 * SECOND))
        }
    });
    let cache = TokenCache::builder()
        .jitter(0.0)
        .deadline(20 * SECOND)
        .max_attempts(1)
        .build(service);
    let runtime = paused_runtime();
    runtime.block_on(cache.token()).unwrap();
    pass_undriven(&runtime, 72 * SECOND);
    let due = runtime.block_on(async {
        let token = cache.token().await;
        tokio::task::yield_now().await;
        token
    });
    assert_eq!(due.unwrap().expose(), "token-1");
    assert_eq!(requests.load(Ordering::SeqCst), 2);

    pass_undriven(&runtime, 60 * SECOND);
    let token = runtime.block_on(async {
        sleep(Duration::from_millis(1)).await; // Any other work on this runtime.
        cache.token().await
    });

    assert_eq!(token.unwrap().expose(), "token-3");
}

#[tokio::test(start_paused = true)]
async fn one_token_request_per_key_even_if_its_task_starts_late() {
    let in_progress = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (counted, peak) = (in_progress.clone(), most.clone());
    let service = service_fn(move |_: TokenRequest| {
        let (counted, peak) = (counted.clone(), peak.clone());
        async move {
            let now = counted.fetch_add(1, Ordering::SeqCst) + 1;
            peak.fetch_max(now, Ordering::SeqCst);
            let _ends = OnDrop(|| {
                let _ = counted.fetch_sub(1, Ordering::SeqCst);
            });
            sleep(Duration::from_secs(29)).await;
            Ok::<_, BoxError>(AccessToken::new("token")?)
        }
    });
    let cache = TokenCache::new(service);
    let mut first = tokio_test::task::spawn(cache.token());
    // The task is spawned, but the runtime is busy and does not poll it yet.
    assert!(first.poll().is_pending());
    advance(5 * SECOND).await;
    settle().await;
    sleep(27 * SECOND).await;
    let mut second = tokio_test::task::spawn(cache.token());
    let _ = second.poll();
    settle().await;
    let _ = first.poll();
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

/// How often each thread has panicked, which includes panics that are caught.
static PANICS: LazyLock<Mutex<HashMap<ThreadId, usize>>> = LazyLock::new(|| {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let thread = std::thread::current().id();
        match PANICS.lock().unwrap().get_mut(&thread) {
            Some(panics) => *panics += 1,
            None => before(info),
        }
    }));
    Mutex::default()
});

/// Counts the panics of this thread. A runtime that was made for one thread runs its tasks there.
fn panics_in<T>(calls: impl FnOnce() -> T) -> (usize, T) {
    let thread = std::thread::current().id();
    PANICS.lock().unwrap().insert(thread, 0);
    let result = calls();
    (PANICS.lock().unwrap().remove(&thread).unwrap(), result)
}

#[test]
fn runtime_without_timers_fails_calls_with_one_panic_message_per_token_request() {
    let issuer = Issuer::new();
    let service = stack(&issuer, Api::accepting_all().service());
    let without_timers = paused_runtime_without_timers();

    for token_requests in 1..=3 {
        let call_often = || {
            let errors = (0..100).map(|_| without_timers.block_on(call(&service)).unwrap_err());
            errors.collect::<Vec<_>>()
        };
        let (panics, errors) = panics_in(call_often);

        assert_eq!(panics, 1, "token request {token_requests}");
        for error in &errors {
            let error = error.downcast_ref::<Error>().unwrap();
            assert!(error.is_no_runtime(), "{error}");
            assert!(error.to_string().contains("`enable_time`"), "{error}");
        }
        let last = errors.last().unwrap().downcast_ref::<Error>().unwrap();
        pass_undriven(&without_timers, last.retry_after().unwrap());
    }
    assert_eq!(issuer.requests(), 0, "the token service is not called");

    // Other runtimes are not affected once the back-off is over.
    let token = paused_runtime().block_on(async {
        sleep(60 * SECOND).await;
        service.cache().token().await
    });
    token.unwrap();
}

#[test]
fn cached_token_is_used_on_a_runtime_without_timers() {
    let service = stack(&Issuer::new(), Api::accepting_all().service());
    paused_runtime().block_on(service.cache().token()).unwrap();
    let without_timers = paused_runtime_without_timers();

    let (panics, ()) = panics_in(|| {
        for _ in 0..100 {
            without_timers.block_on(call(&service)).unwrap();
        }
    });

    assert_eq!(panics, 0);
}

#[test]
fn runtime_without_timers_prints_at_most_one_panic_message_per_refresh() {
    let cache = TokenCache::builder()
        .jitter(0.0)
        .build(Issuer::new().service());
    paused_runtime().block_on(cache.token()).unwrap();

    // Due for refresh from 1490 to 1790 s.
    let without_timers = paused_runtime_without_timers();
    pass_undriven(&without_timers, Duration::from_secs(1600));
    let (panics, ()) = panics_in(|| {
        for _ in 0..100 {
            without_timers.block_on(cache.token()).unwrap();
        }
    });

    assert!(panics <= 1, "{panics} panics");
}

#[test]
fn rejection_on_a_runtime_without_timers_is_returned_with_a_reason() {
    let service = stack(&Issuer::new(), Api::accepting_none().service());
    paused_runtime().block_on(service.cache().token()).unwrap();
    let without_timers = paused_runtime_without_timers();

    let (panics, ()) = panics_in(|| {
        for _ in 0..100 {
            let response = without_timers.block_on(call(&service)).unwrap();
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
            let outcome = response.extensions().get::<TokenOutcome>().unwrap();
            let Some(NotReplayed::RenewalFailed(error)) = outcome.not_replayed() else {
                panic!("{outcome}");
            };
            assert!(error.is_no_runtime(), "{error}");
            assert!(error.to_string().contains("`enable_time`"), "{error}");
        }
    });

    assert!(panics <= 1, "{panics} panics");
}

#[test]
fn rejected_token_is_used_again_on_a_runtime_without_timers() {
    let cache = Issuer::new().cache();
    let token = paused_runtime().block_on(cache.token()).unwrap();
    let without_timers = paused_runtime_without_timers();
    cache.reject(&token);

    let (panics, ()) = panics_in(|| {
        for _ in 0..10 {
            let calls = (0..100).map(|_| cache.token());
            for token in without_timers.block_on(join_all(calls)) {
                assert_eq!(token.unwrap().expose(), "token-1");
            }
        }
    });

    assert!(panics <= 1, "{panics} panics");
}

fn paused_runtime_without_timers() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.start_paused(true).build().unwrap()
}

/// A body of empty frames that ends after a million of them. Counts its polls.
#[derive(Debug)]
struct EmptyFrames(Arc<AtomicUsize>);
impl Body for EmptyFrames {
    type Data = Bytes;
    type Error = BoxError;
    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.0.fetch_add(1, Ordering::SeqCst) > 1_000_000 {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::new()))))
    }
}

#[tokio::test(start_paused = true)]
async fn draining_a_rejection_ends_even_if_every_frame_is_empty() {
    let issuer = Issuer::new();
    let frames = Arc::new(AtomicUsize::new(0));
    let counted = frames.clone();
    let api = service_fn(move |request: Request<String>| {
        let mut response = Response::new(EmptyFrames(counted.clone()));
        if request.headers()[AUTHORIZATION] == "Bearer token-1" {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
        }
        ready(Ok::<_, BoxError>(response))
    });
    let service = ClientCredentialsLayer::new(issuer.service()).layer(api);
    service.oneshot(request()).await.unwrap();
    assert!(frames.load(Ordering::SeqCst) < 100_000, "{frames:?}");
}

/// A body that fails, and must not be polled again.
struct Failing(Poll<()>);
impl Body for Failing {
    type Data = Bytes;
    type Error = BoxError;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        assert!(self.0.is_pending(), "polled after its error");
        self.0 = Poll::Ready(());
        Poll::Ready(Some(Err("connection reset".into())))
    }
}

#[tokio::test(start_paused = true)]
async fn rejection_whose_body_failed_is_not_read_further() {
    let api = service_fn(|request: Request<String>| {
        let mut response = Response::new(Failing(Poll::Pending));
        if request.headers()[AUTHORIZATION] == "Bearer token-1" {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
        }
        ready(Ok::<_, BoxError>(response))
    });
    let service = ClientCredentialsLayer::new(Issuer::new().service()).layer(api);

    let response = service.oneshot(request()).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
}

#[test]
fn rejected_token_serves_again_when_its_renewal_is_overdue_and_none_can_start() {
    let issuer = Issuer::new();
    let cache = TokenCache::builder()
        .deadline(Duration::from_millis(100))
        .build(issuer.service());
    let runtime = paused_runtime();
    let token = runtime.block_on(cache.token()).unwrap();
    issuer.fail(Failure::Silence);
    assert!(matches!(cache.reject(&token), Rejection::Withheld));
    // One waiter starts the renewal and gives up. After that, nobody drives the runtime.
    runtime.block_on(async { assert!(cache.token().now_or_never().is_none()) });

    // Without timers, no token request can start here.
    let without_timers = paused_runtime_without_timers();
    pass_undriven(&without_timers, Duration::from_millis(1300));
    let token = without_timers.block_on(async { cache.token().now_or_never() });

    let token = token.expect("the call does not wait").unwrap();
    assert_eq!(token.expose(), "token-1");
}

struct PanicsInDrop;
impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("panics on purpose");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn panic_while_a_timed_out_token_request_is_dropped_is_an_ordinary_failure() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let service = service_fn(move |_: TokenRequest| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let _guard = PanicsInDrop;
            pending::<()>().await;
            Ok::<_, BoxError>(AccessToken::new("token")?)
        }
    });
    let cache = TokenCache::new(service);
    let start = Instant::now();
    let error = cache.token().await.unwrap_err();
    assert!(
        !error.is_no_runtime(),
        "{error} after {:?}, {requests:?} requests",
        start.elapsed()
    );
}

/// The memory of a frame. Runs a function when the last `Bytes` of it is dropped.
struct Owner {
    bytes: [u8; 4],
    on_drop: Box<dyn Fn() + Send + Sync>,
}
impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
impl Drop for Owner {
    fn drop(&mut self) {
        (self.on_drop)();
    }
}

type Slot = Arc<Mutex<Option<ReplayBody<Pooled>>>>;

/// A body whose frames poll the body in the slot when they are dropped.
struct Pooled {
    slot: Slot,
    left: u32,
}
impl Body for Pooled {
    type Data = Bytes;
    type Error = BoxError;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.left == 0 {
            return Poll::Pending;
        }
        self.left -= 1;
        let slot = self.slot.clone();
        // A buffer pool that wakes a waiting task, and an executor that polls the task at once.
        let on_drop = Box::new(move || {
            if let Ok(mut body) = slot.try_lock() {
                if let Some(body) = body.as_mut() {
                    let mut cx = Context::from_waker(std::task::Waker::noop());
                    let _ = Pin::new(body).poll_frame(&mut cx);
                }
            }
        });
        let owner = Owner {
            bytes: *b"data",
            on_drop,
        };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(owner)))))
    }
}

#[test]
fn no_user_code_runs_under_a_lock_when_buffered_frames_are_dropped() {
    let (sender, done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let slot = Slot::default();
        let (mut body, kept) = Buffered::new(1024).split(Pooled {
            slot: slot.clone(),
            left: 3,
        });
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let frame = Pin::new(&mut body).poll_frame(&mut cx);
        drop(frame);
        let frame = Pin::new(&mut body).poll_frame(&mut cx);
        drop(frame);
        *slot.lock().unwrap() = Some(body);
        drop(kept); // The request was accepted, so the buffered frames are dropped.
        sender.send(()).unwrap();
    });
    done.recv_timeout(Duration::from_secs(5)).expect("deadlock");
}

/// A token service with its own cache, which replaces a token only if a request names it as
/// rejected.
fn caching_service(
    requests: Arc<Mutex<Vec<Option<String>>>>,
) -> impl Service<TokenRequest, Response = AccessToken, Error = BoxError, Future: Send + 'static>
+ Clone
+ Send {
    let number = Arc::new(AtomicUsize::new(1));
    service_fn(move |request: TokenRequest| {
        let named = request.rejected.map(|token| token.expose().to_owned());
        let current = format!("token-{}", number.load(Ordering::SeqCst));
        if named.as_ref() == Some(&current) {
            number.fetch_add(1, Ordering::SeqCst);
        }
        requests.lock().unwrap().push(named);
        let number = number.clone();
        async move {
            sleep(SECOND).await;
            let token = AccessToken::new(format!("token-{}", number.load(Ordering::SeqCst)))?;
            Ok::<_, BoxError>(token.with_lifetime(LONG))
        }
    })
}

#[tokio::test(start_paused = true)]
async fn rejection_during_a_refresh_reaches_the_token_service() {
    let requests = Arc::default();
    let api = Api::accepting(|token| token == "token-2");
    let cache = TokenCache::builder()
        .jitter(0.0)
        .build(caching_service(Arc::clone(&requests)));
    let service = ClientCredentialsLayer::with_cache(cache.clone()).layer(api.service());
    cache.token().await.unwrap();
    advance(Duration::from_secs(1500)).await;
    cache.token().await.unwrap(); // Due for refresh: a refresh starts in the background.
    settle().await;

    let response = call(&service).await.unwrap(); // Gets a 401 while the refresh runs.
    let named = requests.lock().unwrap().clone();
    assert_eq!(
        response.status(),
        StatusCode::OK,
        "sent tokens {:?}, named {named:?} as rejected, {:?}",
        api.tokens(),
        response
            .extensions()
            .get::<TokenOutcome>()
            .and_then(TokenOutcome::not_replayed)
    );
}

#[tokio::test(start_paused = true)]
async fn ordinary_refresh_starts_no_cool_down() {
    let issuer = Issuer::new().latency(SECOND);
    let is_revoked = Arc::new(AtomicBool::new(false));
    let revoked = is_revoked.clone();
    let api = Api::accepting(move |token| match token {
        "token-1" => false,
        "token-2" => !revoked.load(Ordering::SeqCst),
        _ => true,
    })
    .latency(5 * SECOND);
    let cache = TokenCache::builder()
        .refresh_window(Duration::ZERO)
        .build(issuer.service());
    let service = ClientCredentialsLayer::with_cache(cache).layer(api.service());
    service.cache().token().await.unwrap();
    advance(Duration::from_secs(1787)).await;

    // Sends token-1, which expires at 1790 s; the 401 arrives at 1792 s.
    let late = tokio::spawn({
        let service = service.clone();
        async move { call(&service).await }
    });
    settle().await;
    advance(Duration::from_millis(4500)).await;
    // The token has expired, so this is an ordinary refresh.
    let mut other = tokio_test::task::spawn(service.cache().token());
    assert!(other.poll().is_pending());
    settle().await;
    assert_eq!(late.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(issuer.rejected(), [None, None], "no request was a renewal");

    is_revoked.store(true, Ordering::SeqCst);
    let response = call(&service).await.unwrap();
    assert_eq!(
        response.status(),
        StatusCode::OK,
        "{:?}",
        response
            .extensions()
            .get::<TokenOutcome>()
            .and_then(TokenOutcome::not_replayed)
    );
}

/// Runs a function when it is dropped.
struct OnDrop<F: FnMut()>(F);
impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A server may issue the same token again until it expires. A token from the next token request is
/// then not a newer token.
#[tokio::test(start_paused = true)]
async fn token_that_is_issued_again_is_not_replayed_when_its_renewal_fails() {
    let asked = Arc::new(AtomicUsize::new(0));
    let tokens = service_fn(move |_: TokenRequest| {
        let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            if number > 2 {
                return Err(Error::permanent("disabled"));
            }
            Ok(AccessToken::new("token-1")?.with_lifetime(Duration::from_secs(1800)))
        }
    });
    let cache = TokenCache::builder().jitter(0.0).build(tokens);
    let api = Api::accepting_none().latency(Duration::from_secs(5));
    let service = ClientCredentialsLayer::with_cache(cache.clone()).layer(api.service());
    cache.token().await.unwrap();
    advance(Duration::from_secs(1490)).await;

    // The refresh runs in the background and ends before the rejection arrives.
    let response = call(&service).await.unwrap();

    assert_eq!(api.tokens(), ["token-1"]);
    let outcome = response.extensions().get::<TokenOutcome>().unwrap();
    assert!(matches!(
        outcome.not_replayed(),
        Some(NotReplayed::RenewalFailed(_))
    ));
}
