//! What tower asks of a service, and what shared limits ask of this one.

mod support;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::poll_fn;
use http::{Request, Response, StatusCode};
use support::{Api, Issuer, LONG, call, request, settle, stack};
use tokio::time::{advance, timeout};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt, buffer::Buffer, service_fn,
    util::BoxCloneService,
};
use tower_client_credentials::{
    AccessToken, ClientCredentials, ClientCredentialsLayer, TokenCache, TokenRequest,
    replay::{CloneBody, NoReplay, ReplayPolicy},
};
use tower_test::mock;

/// Longer than any call takes; what is reached is a deadlock.
const DEADLOCKED: Duration = Duration::from_secs(10 * 60);

/// A token service and an API behind one HTTP client, told apart by their path.
fn client()
-> impl Service<Request<String>, Response = Response<String>, Error = BoxError, Future: Send + 'static>
+ Clone
+ Send
+ 'static {
    service_fn(|request: Request<String>| async move {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let token = request.headers().get("authorization");
        let is_accepted = request.uri().path() == "/token"
            || token.is_some_and(|token| token == "Bearer accepted");
        let mut response = Response::new("accepted".to_owned());
        if !is_accepted {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
        }
        Ok(response)
    })
}

/// A token service that sends its requests with the given client; its first token is refused.
fn tokens_over<C>(
    client: C,
) -> impl Service<TokenRequest, Response = AccessToken, Error = BoxError, Future: Send + 'static>
+ Clone
+ Send
+ 'static
where
    C: Service<Request<String>, Response = Response<String>, Error: Into<BoxError>>
        + Clone
        + Send
        + 'static,
    C::Future: Send,
{
    service_fn(move |request: TokenRequest| {
        let client = client.clone();
        async move {
            let ask = Request::post("/token").body(String::new())?;
            let response = client.oneshot(ask).await.map_err(Into::into)?;
            let text = match request.rejected {
                Some(_) => response.into_body(),
                None => "refused".to_owned(),
            };
            AccessToken::new(text).map_err(BoxError::from)
        }
    })
}

#[tokio::test(start_paused = true)]
async fn token_and_api_calls_can_share_one_permit() {
    let shared = ServiceBuilder::new()
        .layer(tower::limit::GlobalConcurrencyLimitLayer::new(1))
        .service(client());
    let service = ClientCredentialsLayer::new(tokens_over(shared.clone())).layer(shared);

    let calls = (0..20).map(|_| call(&service));
    let outcomes = timeout(DEADLOCKED, futures_util::future::join_all(calls)).await;

    for outcome in outcomes.expect("a call holds the permit that its token needs") {
        assert_eq!(outcome.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn token_and_api_calls_can_share_one_buffer() {
    let shared = Buffer::new(client(), 1);
    let service = ClientCredentialsLayer::new(tokens_over(shared.clone())).layer(shared);

    let calls = (0..20).map(|_| call(&service));
    let outcomes = timeout(DEADLOCKED, futures_util::future::join_all(calls)).await;

    for outcome in outcomes.expect("a call holds the slot that its token needs") {
        assert_eq!(outcome.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn the_service_that_was_polled_ready_is_the_one_that_is_called() {
    let issuer = Issuer::new();
    let (inner, mut api) = mock::pair::<Request<String>, Response<String>>();
    let mut service = stack(&issuer, inner);
    service.cache().token().await.unwrap();
    api.allow(1);

    // With one permit in all, polling any other instance would wait for ever.
    poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
    let _response = service.call(request());

    assert!(api.next_request().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn readiness_is_that_of_the_inner_service() {
    let issuer = Issuer::new();
    let (inner, mut api) = mock::pair::<Request<String>, Response<String>>();
    let mut service = tokio_test::task::spawn(stack(&issuer, inner));
    api.allow(0);

    assert!(
        service
            .enter(|cx, mut service| service.poll_ready(cx))
            .is_pending()
    );
    api.allow(1);
    assert!(service.is_woken());
    assert!(
        service
            .enter(|cx, mut service| service.poll_ready(cx))
            .is_ready()
    );
}

#[tokio::test(start_paused = true)]
async fn replay_waits_until_the_service_is_ready_again() {
    let issuer = Issuer::new();
    let (inner, mut api) = mock::pair::<Request<String>, Response<String>>();
    let service = stack(&issuer, inner);
    service.cache().token().await.unwrap();
    api.allow(1);
    let mut call = tokio_test::task::spawn(service.oneshot(request()));
    assert!(call.poll().is_pending());
    let (_, answer) = api.next_request().await.unwrap();

    answer.send_response(support::rejection());
    assert!(call.poll().is_pending());
    settle().await;
    assert!(call.poll().is_pending());
    api.allow(1);
    assert!(call.poll().is_pending());

    let (replay, answer) = api.next_request().await.unwrap();
    answer.send_response(Response::default());
    assert_eq!(replay.headers()["authorization"], "Bearer token-2");
    assert_eq!(call.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_never_sent_however_late_the_service_gets_ready() {
    let issuer = Issuer::new().lifetime(Duration::from_secs(60));
    let (inner, mut api) = mock::pair::<Request<String>, Response<String>>();
    api.allow(1);
    let mut service = stack(&issuer, inner);
    poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
    let mut call = tokio_test::task::spawn(service.call(request()));
    assert!(call.poll().is_pending());
    settle().await;
    assert_eq!(issuer.requests(), 1);

    // The token is there, but the service is not ready before it has expired.
    api.allow(0);
    assert!(call.poll().is_pending());
    advance(Duration::from_secs(120)).await;
    api.allow(1);
    assert!(call.poll().is_pending());
    let answering = async {
        let (sent, answer) = api.next_request().await.unwrap();
        answer.send_response(Response::default());
        sent
    };
    let (response, sent) = tokio::join!(call, answering);

    assert_eq!(sent.headers()["authorization"], "Bearer token-2");
    assert_eq!(response.unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn error_of_readiness_comes_back_as_it_came() {
    let issuer = Issuer::new();
    let (inner, mut api) = mock::pair::<Request<String>, Response<String>>();
    let service = stack(&issuer, inner);

    api.send_error("closed");
    let error = call(&service).await.unwrap_err();

    assert_eq!(error.to_string(), "closed");
}

#[tokio::test(start_paused = true)]
async fn call_that_is_dropped_before_it_is_polled_asks_for_nothing() {
    let issuer = Issuer::new();
    let mut service = stack(&issuer, Api::accepting_all().service());

    drop(service.ready().await.unwrap().call(request()));
    settle().await;

    assert_eq!(issuer.requests(), 0);
}

#[tokio::test(start_paused = true)]
async fn clones_and_stacks_share_their_cache() {
    let issuer = Issuer::new();
    let cache = issuer.cache();
    let api = Api::accepting_all();
    let one = ClientCredentialsLayer::with_cache(cache.clone()).layer(api.service());
    let other = ClientCredentialsLayer::with_cache(cache).layer(api.service());

    call(&one).await.unwrap();
    call(&one.clone()).await.unwrap();
    call(&other).await.unwrap();

    assert_eq!(issuer.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn token_error_is_found_in_the_box_error() {
    let issuer = Issuer::new();
    issuer.fail(support::Failure::Permanent);
    let service = stack(&issuer, Api::accepting_all().service());

    let error = call(&service).await.unwrap_err();

    let error = error
        .downcast_ref::<tower_client_credentials::Error>()
        .unwrap();
    assert!(error.is_token_service());
}

#[tokio::test(start_paused = true)]
async fn replay_goes_through_a_clone_of_what_the_inner_service_was_changed_to() {
    let first = Api::accepting_all();
    let second = Api::accepting(|token| token != "token-1");
    let mut service = stack(&Issuer::new(), first.service());
    // The second one finds the token that the first one waited for, and all there is to look at.
    for _ in 0..2 {
        let response = service.ready().await.unwrap().call(request());
        assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    }

    *service.get_mut() = second.service();
    let response = service.ready().await.unwrap().call(request());
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);

    assert_eq!(first.tokens(), ["token-1", "token-1"]);
    assert_eq!(second.tokens(), ["token-1", "token-2"]);
}

/// An API behind a service that counts its clones; each sends the number of the call that it makes.
struct Counting<S> {
    inner: S,
    calls: usize,
    counted: Arc<()>,
    clones: Arc<AtomicUsize>,
}

impl<S> Counting<S> {
    fn new(inner: S) -> Self {
        Self {
            inner,
            calls: 0,
            counted: Arc::default(),
            clones: Arc::default(),
        }
    }
}

impl<S: Clone> Clone for Counting<S> {
    fn clone(&self) -> Self {
        self.clones.fetch_add(1, Ordering::Relaxed);
        Self {
            inner: self.inner.clone(),
            calls: self.calls,
            counted: self.counted.clone(),
            clones: self.clones.clone(),
        }
    }
}

impl<S: Service<Request<String>>> Service<Request<String>> for Counting<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<String>) -> S::Future {
        self.calls += 1;
        *request.body_mut() = self.calls.to_string();
        self.inner.call(request)
    }
}

#[tokio::test(start_paused = true)]
async fn inner_service_is_not_cloned_for_each_call() {
    let issuer = Issuer::new();
    let counting = Counting::new(Api::accepting_all().service());
    let (clones, counted) = (counting.clones.clone(), Arc::downgrade(&counting.counted));
    let mut service = stack(&issuer, counting);
    service
        .ready()
        .await
        .unwrap()
        .call(request())
        .await
        .unwrap();
    clones.store(0, Ordering::Relaxed);

    let mut responses = Vec::new();
    for _ in 0..100 {
        responses.push(service.ready().await.unwrap().call(request()));
    }

    // One is kept for replays, and was taken anew with the look that the first of these calls had.
    assert!(clones.load(Ordering::Relaxed) <= 1);
    drop((service, responses));
    assert_eq!(counted.strong_count(), 0, "nothing is kept");
}

/// What is in a service itself is not looked at for each call, and not kept for long.
#[tokio::test(start_paused = true)]
async fn replay_goes_through_a_clone_of_the_inner_service_as_it_was_a_millisecond_ago() {
    let mut sends = 0;
    let api = Api::accepting(move |_| {
        sends += 1;
        sends != 4
    });
    let mut service = stack(&Issuer::new(), Counting::new(api.service()));

    for _ in 0..4 {
        let response = service.ready().await.unwrap().call(request());
        assert_eq!(response.await.unwrap().status(), StatusCode::OK);
        advance(Duration::from_millis(1)).await;
    }

    let received = api.received();
    let [.., before, rejected, replayed] = &received[..] else {
        panic!("one is replayed");
    };
    assert_ne!(rejected.body, before.body);
    assert_eq!(replayed.body, rejected.body);
}

/// In `call`, not in its future: where a client finds out that it has no runtime, say.
#[tokio::test(start_paused = true)]
async fn service_serves_on_after_its_inner_service_panicked_and_leaves_no_task() {
    async fn panics_and_serves_with<R: ReplayPolicy<String, Body = String> + Clone>(policy: R) {
        let issuer = Issuer::new();
        let alive = Arc::new(());
        let (tokens, in_use) = (issuer.service(), Arc::clone(&alive));
        let token_service = service_fn(move |request| {
            let _in_use = Arc::clone(&in_use);
            tokens.clone().oneshot(request)
        });
        let mut calls = 0;
        let api = Api::accepting_all();
        let inner = api.service();
        let panicking = service_fn(move |request| {
            calls += 1;
            assert!(calls % 2 == 0, "on purpose");
            inner.clone().oneshot(request)
        });
        let cache = TokenCache::builder().keep_warm().build(token_service);
        cache.token().await.unwrap();
        let mut service = ClientCredentialsLayer::with_cache(cache)
            .replay(policy)
            .layer(panicking);

        for _ in 0..3 {
            let service = service.ready().await.unwrap();
            let panicked = catch_unwind(AssertUnwindSafe(|| drop(service.call(request()))));
            assert!(panicked.is_err());
            let response = service.ready().await.unwrap().call(request()).await;
            assert_eq!(response.unwrap().status(), StatusCode::OK);
            // Each with another lease.
            advance(Duration::from_millis(1)).await;
        }
        assert_eq!(api.tokens(), ["token-1"; 3]);

        drop(service);
        settle().await;
        assert_eq!(Arc::strong_count(&alive), 1, "the token service is kept");
        advance(2 * LONG).await;
        settle().await;
        assert_eq!(issuer.requests(), 1);
    }
    panics_and_serves_with(CloneBody).await;
    panics_and_serves_with(NoReplay).await;
}

/// Such as `BoxCloneService`.
#[tokio::test(start_paused = true)]
async fn inner_service_need_not_be_sync() {
    let api = Api::accepting(|token| token != "token-1");
    let service = stack(&Issuer::new(), BoxCloneService::new(api.service()));

    let response = tokio::spawn(service.oneshot(request())).await.unwrap();

    assert_eq!(response.unwrap().status(), StatusCode::OK);
    assert_eq!(api.tokens(), ["token-1", "token-2"]);
}

#[test]
fn inner_service_can_be_had_back() {
    let mut service = stack(&Issuer::new(), "inner");

    assert_eq!(*service.get_ref(), "inner");
    *service.get_mut() = "another";
    assert_eq!(service.into_inner(), "another");
}

#[test]
fn services_and_futures_have_the_auto_traits_of_their_parts() {
    fn all<T: Clone + Send + Sync + Unpin>() {}
    fn send<T: Send>(_: &T) {}
    type Inner = tower::util::BoxCloneSyncService<Request<NotSync>, Response<String>, BoxError>;

    all::<TokenCache>();
    all::<ClientCredentialsLayer>();
    all::<ClientCredentials<tower::util::BoxCloneSyncService<(), (), ()>>>();
    all::<tower_client_credentials::Error>();
    all::<AccessToken>();

    // Neither the service nor its future needs a body that is `Sync`.
    let service = ClientCredentialsLayer::new(Issuer::new().service())
        .no_replay()
        .layer(Inner::new(service_fn(|_: Request<NotSync>| async {
            Ok::<_, BoxError>(Response::new(String::new()))
        })));
    send(&service.oneshot(Request::new(NotSync(std::cell::Cell::new(1)))));
}

struct NotSync(#[allow(dead_code, reason = "makes the type not `Sync`")] std::cell::Cell<u8>);
