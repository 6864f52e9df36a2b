//! The rules of a tower service: readiness, clones, panics, and limits that services share.

mod support;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
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
    AccessToken, CallError, ClientCredentials, ClientCredentialsLayer, ServiceBuilderExt,
    TokenCache, TokenRequest,
    replay::{CloneBody, NoReplay, ReplayPolicy},
};
use tower_test::mock;

/// Longer than any call takes. A call that reaches it is deadlocked.
const DEADLOCKED: Duration = Duration::from_secs(10 * 60);

/// One HTTP client for both servers: `/token` is the token service, every other path is the API.
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

/// A token service that sends its requests with the given client. The API rejects its first token.
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
                None => "rejected".to_owned(),
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

    for outcome in outcomes.expect("a call must not hold the permit that its token needs") {
        assert_eq!(outcome.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn token_and_api_calls_can_share_one_buffer() {
    let shared = Buffer::new(client(), 1);
    let service = ClientCredentialsLayer::new(tokens_over(shared.clone())).layer(shared);

    let calls = (0..20).map(|_| call(&service));
    let outcomes = timeout(DEADLOCKED, futures_util::future::join_all(calls)).await;

    for outcome in outcomes.expect("a call must not hold the slot that its token needs") {
        assert_eq!(outcome.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn service_that_was_polled_ready_is_the_one_called() {
    let issuer = Issuer::new();
    let (inner, mut api) = mock::pair::<Request<String>, Response<String>>();
    let mut service = stack(&issuer, inner);
    service.cache().token().await.unwrap();
    api.allow(1);

    // There is one permit: calling another instance would mean waiting for a second one.
    poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
    let _response = service.call(request());

    assert!(api.next_request().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn readiness_comes_from_the_inner_service() {
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
async fn replay_waits_until_the_inner_service_is_ready() {
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
async fn expired_token_is_not_sent_however_late_the_service_becomes_ready() {
    let issuer = Issuer::new().lifetime(Duration::from_secs(60));
    let (inner, mut api) = mock::pair::<Request<String>, Response<String>>();
    api.allow(1);
    let mut service = stack(&issuer, inner);
    poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
    let mut call = tokio_test::task::spawn(service.call(request()));
    assert!(call.poll().is_pending());
    settle().await;
    assert_eq!(issuer.requests(), 1);

    // The token has arrived, but it expires before the service is ready.
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
async fn error_from_poll_ready_is_returned_unchanged() {
    let issuer = Issuer::new();
    let (inner, mut api) = mock::pair::<Request<String>, Response<String>>();
    let service = stack(&issuer, inner);

    api.send_error("closed");
    let error = call(&service).await.unwrap_err();

    assert_eq!(error.to_string(), "closed");
}

#[tokio::test(start_paused = true)]
async fn call_that_is_dropped_before_its_first_poll_makes_no_token_request() {
    let issuer = Issuer::new();
    let mut service = stack(&issuer, Api::accepting_all().service());

    drop(service.ready().await.unwrap().call(request()));
    settle().await;

    assert_eq!(issuer.requests(), 0);
}

#[tokio::test(start_paused = true)]
async fn clones_and_stacks_share_one_cache() {
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
async fn box_error_downcasts_to_the_token_error() {
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
async fn replay_uses_the_inner_service_as_changed_through_get_mut() {
    let first = Api::accepting_all();
    let second = Api::accepting(|token| token != "token-1");
    let mut service = stack(&Issuer::new(), first.service());
    // The first call waits for the token; the second one takes the fast path.
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

/// The inner service panics in `call`, as a client does that finds no runtime.
#[tokio::test(start_paused = true)]
async fn panic_of_the_inner_service_reaches_the_caller_and_leaks_nothing() {
    async fn panics_and_serves_with<R: ReplayPolicy<String, Body = String> + Clone>(policy: R) {
        let issuer = Issuer::new();
        let api = Api::accepting_all();
        let tokens = issuer.service();
        let token_service_alive = Arc::new(());
        let alive = Arc::clone(&token_service_alive);
        let token_service = service_fn(move |request| {
            let _alive = &alive;
            tokens.clone().oneshot(request)
        });
        let inner = api.service();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let panicking = service_fn(move |request| {
            let call = counted.fetch_add(1, Ordering::Relaxed);
            assert!(call % 2 == 1, "panics on purpose");
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
        }
        assert_eq!(api.tokens(), ["token-1"; 3]);

        drop(service);
        settle().await;
        assert_eq!(Arc::strong_count(&token_service_alive), 1);
        assert_eq!(Arc::strong_count(&calls), 1);
        advance(2 * LONG).await;
        settle().await;
        assert_eq!(issuer.requests(), 1);
    }
    panics_and_serves_with(CloneBody).await;
    panics_and_serves_with(NoReplay).await;
}

/// `BoxCloneService` is one example.
#[tokio::test(start_paused = true)]
async fn inner_service_need_not_be_sync() {
    let api = Api::accepting(|token| token != "token-1");
    let service = stack(&Issuer::new(), BoxCloneService::new(api.service()));

    let response = tokio::spawn(service.oneshot(request())).await.unwrap();

    assert_eq!(response.unwrap().status(), StatusCode::OK);
    assert_eq!(api.tokens(), ["token-1", "token-2"]);
}

#[test]
fn inner_service_is_accessible() {
    let mut service = stack(&Issuer::new(), "inner");

    assert_eq!(*service.get_ref(), "inner");
    *service.get_mut() = "another";
    assert_eq!(service.into_inner(), "another");
}

#[test]
fn service_is_covariant_in_its_inner_service() {
    fn shorten<'a>(
        service: ClientCredentials<&'static str, CloneBody>,
        _: &'a str,
    ) -> ClientCredentials<&'a str, CloneBody> {
        service
    }
    let local = String::from("local");

    let mut service = shorten(stack(&Issuer::new(), "static"), &local);
    *service.get_mut() = &local;

    assert_eq!(*service.get_ref(), "local");
}

#[test]
fn services_and_futures_have_the_auto_traits_of_their_parts() {
    fn all<T: Clone + Send + Sync + Unpin>() {}
    fn sync<T: Sync>() {}
    fn send<T: Send>(_: &T) {}
    type Inner = tower::util::BoxCloneSyncService<Request<NotSync>, Response<String>, BoxError>;

    all::<TokenCache>();
    all::<ClientCredentialsLayer>();
    all::<ClientCredentials<tower::util::BoxCloneSyncService<(), (), ()>>>();
    sync::<ClientCredentials<std::sync::MutexGuard<'_, ()>>>();
    all::<tower_client_credentials::Error>();
    all::<AccessToken>();

    // Neither the service nor its future requires a body that is `Sync`.
    let service = ClientCredentialsLayer::new(Issuer::new().service())
        .no_replay()
        .layer(Inner::new(service_fn(|_: Request<NotSync>| async {
            Ok::<_, BoxError>(Response::new(String::new()))
        })));
    send(&service.oneshot(Request::new(NotSync(std::cell::Cell::new(1)))));
}

struct NotSync(#[allow(dead_code, reason = "makes the type not `Sync`")] std::cell::Cell<u8>);

#[tokio::test(start_paused = true)]
async fn request_that_was_sent_can_be_spawned_and_outlives_its_service() {
    let issuer = Issuer::new();
    let api = Api::accepting(|token| token == "token-2");
    // A boxed error in an `async` block is what rustc can't always prove to be `Send`.
    let inner = {
        let api = api.service();
        service_fn(move |request: Request<String>| {
            let api = api.clone();
            async move {
                let response = api.oneshot(request).await?;
                Ok::<_, BoxError>(response)
            }
        })
    };
    let service = ServiceBuilder::new()
        .client_credentials(issuer.service())
        .service(inner);

    let response = service.send(request());
    let in_block = tokio::spawn(async move {
        let response = service.send(request()).await?;
        Ok::<_, BoxError>(response.status())
    });

    let response = tokio::spawn(response).await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(in_block.await.unwrap().unwrap(), StatusCode::OK);
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn send_polls_its_clone_ready() {
    let issuer = Issuer::new();
    let (inner, mut handle) = mock::spawn_with(|inner| inner);
    let service = stack(&issuer, inner.into_inner());
    handle.allow(1);

    let call = tokio::spawn(service.send(request()));
    let (sent, respond) = handle.next_request().await.unwrap();
    respond.send_response(Response::new(String::new()));

    assert_eq!(sent.headers()["authorization"], "Bearer token-1");
    assert_eq!(call.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn error_of_send_is_a_standard_error_that_shows_and_downcasts_to_its_cause() {
    /// Converts the error as most error types do.
    async fn send(issuer: &Issuer) -> Result<(), Box<dyn std::error::Error>> {
        let service = stack(issuer, Api::accepting_all().service());
        service.send(request()).await?;
        Ok(())
    }
    let issuer = Issuer::new();
    issuer.fail(support::Failure::Permanent);

    let error = send(&issuer).await.unwrap_err();
    let error = error.downcast::<CallError>().unwrap();

    let cause = error.downcast_ref::<tower_client_credentials::Error>();
    let cause = cause.expect("the error is the crate's own");
    assert!(cause.is_token_service());
    assert_eq!(error.to_string(), cause.to_string());
    let sources = [
        std::error::Error::source(&*error),
        std::error::Error::source(cause),
    ];
    let [source, expected] = sources.map(|source| source.map(ToString::to_string));
    assert_eq!(source.as_deref(), Some("disabled"));
    assert_eq!(source, expected);
    assert!(error.into_inner().is::<tower_client_credentials::Error>());
}
