//! Each test is named after what must not go wrong again.

mod support;

use std::{
    future::{Future, pending, ready},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use http_body::{Body, Frame};
use support::{Api, Failure, Issuer, LONG, call, request, settle, stack};
use tokio::{
    runtime::Builder,
    time::{Instant, Sleep, advance, sleep, timeout},
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, ClientCredentialsLayer, Error, NotReplayed, Rejection, TokenCache, TokenOutcome,
    TokenRequest,
    replay::{Buffered, ReplayPolicy},
};

const SECOND: Duration = Duration::from_secs(1);

/// An inner service that is ready when the gate says so.
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
            // The tests poll by hand.
            Poll::Pending
        }
    }
    fn call(&mut self, request: Request<String>) -> S::Future {
        self.inner.call(request)
    }
}

/// An inner service each of whose instances takes some time to get ready.
struct Slow<S> {
    inner: S,
    takes: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}
impl<S: Clone> Clone for Slow<S> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            takes: self.takes,
            waiting: None,
        }
    }
}
impl<S: Service<Request<String>>> Service<Request<String>> for Slow<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let takes = self.takes;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(takes)));
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
async fn jitter_that_is_no_number_neither_panics_nor_storms() {
    let issuer = Issuer::new();
    let cache = TokenCache::builder()
        .jitter(f64::NAN)
        .build(issuer.service());

    let outcome = cache.token().await;
    assert_eq!(issuer.requests(), 1, "{outcome:?}");
    outcome.unwrap();
}

#[tokio::test(start_paused = true)]
async fn waiter_that_is_polled_late_is_not_given_an_expired_token() {
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
async fn waiter_that_is_polled_late_is_not_given_a_rejected_token() {
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
async fn lifeless_token_that_was_rejected_is_given_to_nobody_else() {
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
    assert!(b.poll().is_pending()); // has token-1, waits for readiness
    is_open.store(true, Ordering::SeqCst);
    assert!(a.poll().is_pending()); // sent, 401, renewing
    assert_eq!(api.tokens(), ["token-1"]);

    let _ = b.poll();
    assert_eq!(
        api.tokens(),
        ["token-1"],
        "b sent the rejected token while its renewal runs"
    );
}

#[tokio::test(start_paused = true)]
async fn replay_whose_token_is_lost_before_it_is_sent_says_why_there_is_no_other() {
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
    assert!(a.poll().is_pending()); // 401, renewal under way
    settle().await;
    assert!(a.poll().is_pending()); // token-2, waits for readiness
    assert_eq!(issuer.requests(), 2);
    advance(2 * LONG).await; // token-2 expires
    issuer.fail(Failure::Permanent);
    is_open.store(true, Ordering::SeqCst);

    // The rejection was read and dropped for the sake of its connection, so it cannot come back.
    let error = a.await.unwrap_err();
    assert!(error.downcast::<Error>().unwrap().is_token_service());
    assert_eq!(issuer.requests(), 3);
}

#[tokio::test(start_paused = true)]
async fn replay_whose_token_another_call_rejected_waits_for_the_next() {
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
    assert!(a.poll().is_pending()); // token-2 granted, not ready
    advance(2 * SECOND).await;
    let token = cache.token().await.unwrap();
    assert!(matches!(cache.reject(&token), Rejection::Withheld));
    is_open.store(true, Ordering::SeqCst);

    assert_eq!(a.await.unwrap().status(), StatusCode::OK);
    assert_eq!(issuer.requests(), 3);
}

#[tokio::test(start_paused = true)]
async fn short_lived_tokens_never_loop_however_late_the_service_gets_ready() {
    let issuer = Issuer::new().lifetime(SECOND);
    let api = Api::accepting_all();
    let slow = Slow {
        inner: api.service(),
        takes: 2 * SECOND,
        waiting: None,
    };
    let service = stack(&issuer, slow);

    let outcome = timeout(Duration::from_secs(600), call(&service)).await;

    assert!(issuer.requests() <= 11, "{}", issuer.requests());
    assert!(
        outcome.is_ok(),
        "still looping after {} token requests",
        issuer.requests()
    );
}

#[test]
fn flight_whose_runtime_was_not_driven_is_no_failure_of_the_token_service() {
    // A blocking client: one current-thread runtime, driven for the time of each call.
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let service = service_fn(move |_: TokenRequest| {
        let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            sleep(Duration::from_millis(20)).await;
            let token = AccessToken::new(format!("token-{number}"))?;
            Ok::<_, BoxError>(token.with_lifetime(Duration::from_millis(500)))
        }
    });
    let cache = TokenCache::builder()
        .jitter(0.0)
        .deadline(Duration::from_millis(10).max(Duration::from_millis(100)))
        .max_attempts(1)
        .build(service);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(cache.token()).unwrap().expose(), "token-1");
    std::thread::sleep(Duration::from_millis(400)); // stale at 350 ms, expired at 450 ms
    let stale = runtime.block_on(async {
        let token = cache.token().await; // starts a refresh behind
        tokio::task::yield_now().await; // the flight's first poll
        token
    });
    assert_eq!(stale.unwrap().expose(), "token-1");
    std::thread::sleep(Duration::from_millis(300)); // nobody drives the flight; expired, not overdue
    let token = runtime.block_on(cache.token());
    assert!(
        token.is_ok(),
        "{token:?}; {} token requests",
        requests.load(Ordering::SeqCst)
    );
}

#[test]
fn flight_that_is_overdue_as_nobody_drove_it_is_no_failure_of_the_token_service() {
    let service = service_fn(move |_: TokenRequest| async move {
        sleep(Duration::from_millis(20)).await;
        let token = AccessToken::new("token")?;
        Ok::<_, BoxError>(token.with_lifetime(Duration::from_millis(500)))
    });
    // The service's timer of 20 ms has elapsed as well, but a real socket has to be polled twice.
    let service = service_fn(move |r: TokenRequest| {
        let service = service;
        async move {
            let token = service.oneshot(r).await;
            sleep(Duration::from_millis(20)).await;
            token
        }
    });
    let cache = TokenCache::builder()
        .jitter(0.0)
        .deadline(Duration::from_millis(100))
        .max_attempts(1)
        .build(service);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(cache.token()).unwrap();
    std::thread::sleep(Duration::from_millis(370));
    runtime
        .block_on(async {
            let token = cache.token().await;
            tokio::task::yield_now().await;
            token
        })
        .unwrap();
    std::thread::sleep(Duration::from_millis(2000)); // overdue too
    let token = runtime.block_on(async {
        sleep(Duration::from_millis(1)).await; // any other work before
        cache.token().await
    });
    assert!(token.is_ok(), "{token:?}");
}

#[tokio::test(start_paused = true)]
async fn one_flight_even_if_its_task_starts_late() {
    let under_way = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (counted, peak) = (under_way.clone(), most.clone());
    let service = service_fn(move |_: TokenRequest| {
        let (counted, peak) = (counted.clone(), peak.clone());
        async move {
            let now = counted.fetch_add(1, Ordering::SeqCst) + 1;
            peak.fetch_max(now, Ordering::SeqCst);
            let _landing = OnDrop(|| {
                let _ = counted.fetch_sub(1, Ordering::SeqCst);
            });
            sleep(Duration::from_secs(29)).await;
            Ok::<_, BoxError>(AccessToken::new("token")?)
        }
    });
    let cache = TokenCache::new(service);
    let mut first = tokio_test::task::spawn(cache.token());
    assert!(first.poll().is_pending()); // spawned, not polled: the worker is busy
    let mut keep_first_waiting = Box::pin(first);
    advance(5 * SECOND).await;
    settle().await;
    sleep(27 * SECOND).await;
    let mut second = tokio_test::task::spawn(cache.token());
    let _ = second.poll();
    settle().await;
    let _ = keep_first_waiting.poll();
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[test]
fn no_panic_message_for_each_call_in_a_runtime_without_timers() {
    let issuer = Issuer::new();
    let cache = issuer.cache();
    let with = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    with.block_on(cache.token()).unwrap();
    // Make it stale: let the paused clock's token be short.
    let cache = TokenCache::builder()
        .jitter(0.0)
        .build(Issuer::new().lifetime(SECOND).service());
    let with = Builder::new_current_thread().enable_all().build().unwrap();
    with.block_on(cache.token()).unwrap();
    std::thread::sleep(Duration::from_millis(730)); // stale from 700 to 900 ms
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let me = std::thread::current().id();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() == me {
            PANICS.fetch_add(1, Ordering::SeqCst);
        } else {
            before(info);
        }
    }));
    let without = Builder::new_current_thread().build().unwrap();
    for _ in 0..100 {
        without.block_on(cache.token()).unwrap();
    }
    assert!(
        PANICS.load(Ordering::SeqCst) <= 1,
        "{} panics",
        PANICS.load(Ordering::SeqCst)
    );
}

/// A body of empty frames, as many as are asked for.
#[derive(Debug)]
struct Empties(Arc<AtomicUsize>);
impl Body for Empties {
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
async fn draining_ends_even_if_every_frame_is_empty() {
    let issuer = Issuer::new();
    let frames = Arc::new(AtomicUsize::new(0));
    let counted = frames.clone();
    let api = service_fn(move |request: Request<String>| {
        let mut response = Response::new(Empties(counted.clone()));
        if request.headers()[AUTHORIZATION] == "Bearer token-1" {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
        }
        ready(Ok::<_, BoxError>(response))
    });
    let service = ClientCredentialsLayer::new(issuer.service()).layer(api);
    service.oneshot(request()).await.unwrap();
    assert!(frames.load(Ordering::SeqCst) < 100_000, "{frames:?}");
}

#[test]
fn withheld_token_is_reinstated_when_its_renewal_is_overdue_and_nobody_can_renew() {
    let answers = Arc::new(AtomicBool::new(true));
    let does = answers.clone();
    let service = service_fn(move |_: TokenRequest| {
        let does = does.load(Ordering::SeqCst);
        async move {
            if !does {
                pending::<()>().await;
            }
            Ok::<_, BoxError>(AccessToken::new("token-1")?.with_lifetime(LONG))
        }
    });
    let cache = TokenCache::builder()
        .deadline(Duration::from_millis(100))
        .build(service);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let token = runtime.block_on(cache.token()).unwrap();
    answers.store(false, Ordering::SeqCst);
    assert!(matches!(cache.reject(&token), Rejection::Withheld));
    // A waiter that gives up; then nobody drives the runtime any more.
    runtime.block_on(async { assert!(cache.token().now_or_never().is_none()) });
    std::thread::sleep(Duration::from_millis(1300));

    // No runtime here. "An unexpired rejected token is used again rather than nothing."
    let outcome = cache.token().now_or_never().expect("does not wait");
    assert!(outcome.is_ok(), "{outcome:?}");
}

struct PanicsInDrop;
impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("in drop, on purpose");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn panic_in_the_drop_of_a_timed_out_token_request_is_a_failure_like_any_other() {
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

type Slot = Arc<Mutex<Option<tower_client_credentials::replay::ReplayBody<Pooled>>>>;

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
        // The pool wakes whoever waits for a buffer; here the executor polls the body inline.
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
fn no_lock_is_held_while_what_was_remembered_is_dropped() {
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
        drop(kept); // accepted: what was remembered is freed
        sender.send(()).unwrap();
    });
    done.recv_timeout(Duration::from_secs(5)).expect("deadlock");
}

/// A token service with a cache of its own, that gives up a token only if told so.
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
async fn rejection_during_a_refresh_is_told_to_the_token_service() {
    let requests = Arc::default();
    let api = Api::accepting(|token| token == "token-2");
    let cache = TokenCache::builder()
        .jitter(0.0)
        .build(caching_service(Arc::clone(&requests)));
    let service = ClientCredentialsLayer::with_cache(cache.clone()).layer(api.service());
    cache.token().await.unwrap();
    advance(Duration::from_secs(1500)).await;
    cache.token().await.unwrap(); // stale: a refresh starts behind
    settle().await;

    let response = call(&service).await.unwrap(); // 401 while the refresh is under way
    let named = requests.lock().unwrap().clone();
    assert_eq!(
        response.status(),
        StatusCode::OK,
        "sent with {:?}, named as rejected: {named:?}, {:?}",
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

    // Sent with token-1, which expires (at 1790 s) before the 401 comes at 1792 s.
    let late = tokio::spawn({
        let service = service.clone();
        async move { call(&service).await }
    });
    settle().await;
    advance(Duration::from_millis(4500)).await;
    let mut other = tokio_test::task::spawn(service.cache().token()); // expired: an ordinary refresh
    assert!(other.poll().is_pending());
    settle().await;
    assert_eq!(late.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(
        issuer.rejected(),
        [None, None],
        "no renewal was ever asked for"
    );

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

/// A server may hand out a token again until it ends. What was sent with it before names another
/// flight, and that is no other token.
#[tokio::test(start_paused = true)]
async fn token_that_was_handed_out_again_is_not_sent_again_when_its_renewal_fails() {
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

    // Its refresh runs behind it, and is there before the rejection.
    let response = call(&service).await.unwrap();

    assert_eq!(api.tokens(), ["token-1"]);
    let outcome = response.extensions().get::<TokenOutcome>().unwrap();
    assert!(matches!(
        outcome.not_replayed(),
        Some(NotReplayed::RenewalFailed(_))
    ));
}
