//! Which responses are rejections, and whether a renewal and a replay follow.

mod support;

use std::{
    collections::{HashSet, VecDeque},
    ops::RangeInclusive,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use http::{Request, Response, StatusCode, Version, header::WWW_AUTHENTICATE};
use support::{Api, Failure, Issuer, LONG, call, rejection, request, settle, stack};
use tokio::time::{Instant, advance};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, ClientCredentialsLayer, Error, NotReplayed, Rejection, TokenCache, TokenOutcome,
    TokenRemoved, TokenRequest, replay::NoReplay,
};

const SECOND: Duration = Duration::from_secs(1);
const NANOSECOND: Duration = Duration::from_nanos(1);
const COOL_DOWN: Duration = Duration::from_secs(30);

fn accepting_only(token: &'static str) -> Api {
    Api::accepting(move |presented| presented == token)
}

fn reason(response: &Response<String>) -> &NotReplayed {
    let outcome = response.extensions().get::<TokenOutcome>();
    outcome
        .and_then(TokenOutcome::not_replayed)
        .expect("a reason is attached")
}

#[tokio::test(start_paused = true)]
async fn rejected_request_is_replayed_with_a_new_token() {
    let issuer = Issuer::new();
    let api = accepting_only("token-2");
    let service = stack(&issuer, api.service());

    let response = call(&service).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert!(
        response
            .extensions()
            .get::<TokenOutcome>()
            .and_then(TokenOutcome::not_replayed)
            .is_none()
    );
    assert_eq!(api.tokens(), ["token-1", "token-2"]);
    assert_eq!(api.received()[0].body, api.received()[1].body);
    assert_eq!(issuer.rejected(), [None, Some("token-1".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn two_sends_at_most() {
    let issuer = Issuer::new();
    let api = Api::accepting_none();
    let cache = TokenCache::builder()
        .cool_down(Duration::ZERO)
        .build(issuer.service());
    let service = ClientCredentialsLayer::with_cache(cache).layer(api.service());

    for calls in 1..=10 {
        let response = call(&service).await.unwrap();

        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert!(matches!(reason(&response), NotReplayed::RejectedAgain));
        assert_eq!(api.received().len(), 2 * calls);
    }
}

#[tokio::test(start_paused = true)]
async fn call_waits_for_at_most_one_renewal() {
    let latency = Duration::from_millis(50);
    let issuer = Issuer::new().latency(latency);
    let service = stack(&issuer, Api::accepting_none().service());
    call(&service).await.unwrap();
    advance(COOL_DOWN).await;

    let start = Instant::now();
    call(&service).await.unwrap();

    assert_eq!(start.elapsed(), latency);
}

#[tokio::test(start_paused = true)]
async fn one_token_request_per_key_for_ten_thousand_rejections() {
    let issuer = Issuer::new().latency(Duration::from_millis(50));
    let api = accepting_only("token-2").latency(Duration::from_millis(10));
    let service = stack(&issuer, api.service());
    service.cache().token().await.unwrap();

    let responses = join_all((0..10_000).map(|_| call(&service))).await;

    for response in responses {
        assert_eq!(response.unwrap().status(), StatusCode::OK);
    }
    assert_eq!(issuer.requests(), 2);
    assert_eq!(api.received().len(), 20_000);
}

#[tokio::test(start_paused = true)]
async fn rejection_by_comparison_replays_with_a_newer_token_that_is_there() {
    let issuer = Issuer::new();
    let (inner, mut api) = tower_test::mock::pair::<Request<String>, Response<String>>();
    let service = stack(&issuer, inner);
    service.cache().token().await.unwrap();
    let mut first = tokio_test::task::spawn(service.clone().oneshot(request()));
    let mut second = tokio_test::task::spawn(service.clone().oneshot(request()));
    assert!(first.poll().is_pending());
    assert!(second.poll().is_pending());
    let (_, answer_first) = api.next_request().await.unwrap();
    let (_, answer_second) = api.next_request().await.unwrap();

    // The first rejection renews the token. The second one finds the newer token and fetches
    // nothing.
    answer_first.send_response(rejection());
    assert!(first.poll().is_pending());
    settle().await;
    assert_eq!(issuer.requests(), 2);
    answer_second.send_response(rejection());
    assert!(second.poll().is_pending());
    let (replay, answer) = api.next_request().await.unwrap();
    answer.send_response(Response::default());
    settle().await;

    assert_eq!(replay.headers()["authorization"], "Bearer token-2");
    assert!(second.poll().is_ready());
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn no_storm_from_an_api_that_rejects_every_token() {
    let issuer = Issuer::new().latency(Duration::from_millis(20));
    let api = Api::accepting_none().latency(Duration::from_millis(5));
    let service = stack(&issuer, api.service());
    let start = Instant::now();

    // About 1,000 calls a second for 95 seconds, and still one renewal every 30 s.
    while start.elapsed() < Duration::from_secs(95) {
        let responses = join_all((0..100).map(|_| call(&service))).await;
        for response in responses {
            assert_eq!(*response.unwrap().body(), *rejection().body());
        }
        advance(Duration::from_millis(100)).await;
    }

    assert_eq!(issuer.requests(), 1 + 4);
}

#[tokio::test(start_paused = true)]
async fn caller_sees_what_the_api_said_during_the_cool_down() {
    let issuer = Issuer::new();
    let api = Api::accepting_none();
    let service = stack(&issuer, api.service());
    call(&service).await.unwrap();

    let response = call(&service).await.unwrap();

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(response.body(), rejection().body());
    assert!(matches!(reason(&response), NotReplayed::CoolingDown));
    assert_eq!(api.received().len(), 2 + 1);
}

/// LinkedIn rejects a token for some seconds after issuing it.
#[tokio::test(start_paused = true)]
async fn caller_sees_what_the_api_said_during_the_cool_down_even_if_a_refresh_is_slow() {
    for (latency, failure) in [(5 * SECOND, None), (Duration::ZERO, Some(Failure::Silence))] {
        let issuer = Issuer::new().latency(latency);
        let api = Api::accepting_none();
        let cache = TokenCache::builder()
            .jitter(0.0)
            .cool_down(LONG)
            .build(issuer.service());
        let service = ClientCredentialsLayer::with_cache(cache).layer(api.service());
        call(&service).await.unwrap();
        assert_eq!(issuer.requests(), 2, "a cool-down has begun");
        issuer.fail(failure);
        advance(Duration::from_secs(1500)).await;
        service.cache().token().await.unwrap();
        settle().await;
        assert_eq!(issuer.requests(), 3, "a refresh is under way");

        let start = Instant::now();
        let response = call(&service).await.unwrap();

        assert_eq!(start.elapsed(), Duration::ZERO, "{failure:?}");
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.body(), rejection().body());
        assert!(matches!(reason(&response), NotReplayed::CoolingDown));
        assert_eq!(api.tokens(), ["token-1", "token-2", "token-2"]);
        assert_eq!(issuer.requests(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn no_storm_from_an_api_that_rejects_young_tokens() {
    let issuer = Issuer::new();
    let start = Instant::now();
    let api = Api::accepting(move |_| start.elapsed() > Duration::from_secs(10));
    let service = stack(&issuer, api.service());

    while start.elapsed() < Duration::from_secs(20) {
        call(&service).await.unwrap();
        advance(Duration::from_millis(100)).await;
    }
    let response = call(&service).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn rejected_token_is_withheld_while_its_renewal_runs() {
    let issuer = Issuer::new().latency(Duration::from_millis(50));
    let api = accepting_only("token-2");
    let service = stack(&issuer, api.service());
    service.cache().token().await.unwrap();
    let mut rejected = tokio_test::task::spawn(call(&service));
    assert!(rejected.poll().is_pending());

    let late = join_all((0..100).map(|_| call(&service))).await;

    assert!(
        late.iter()
            .all(|outcome| outcome.as_ref().unwrap().status() == StatusCode::OK)
    );
    let tokens: Vec<_> = api.tokens().into_iter().skip(1).collect();
    assert_eq!(tokens.len(), 100);
    assert!(tokens.iter().all(|token| token == "token-2"));
}

#[tokio::test(start_paused = true)]
async fn caller_sees_what_the_api_said_when_the_renewal_fails() {
    let issuer = Issuer::new();
    let api = Api::accepting(|_| false);
    let service = stack(&issuer, api.service());
    service.cache().token().await.unwrap();
    issuer.fail(Failure::Permanent);

    let response = call(&service).await.unwrap();

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(response.body(), rejection().body());
    let NotReplayed::RenewalFailed(error) = reason(&response) else {
        panic!("{:?}", reason(&response));
    };
    assert!(error.is_token_service());
    assert_eq!(api.received().len(), 1);
    let token = service.cache().token().await.unwrap();
    assert_eq!(token.expose(), "token-1");
}

/// The original response comes back whole if the renewal fails within one second. After that, the
/// response is dropped, and the caller gets the error of the renewal.
#[tokio::test(start_paused = true)]
async fn caller_sees_what_the_api_said_however_long_the_renewal_takes() {
    for (renewal, is_held) in [
        (Duration::from_millis(999), true),
        (Duration::from_millis(1001), false),
        (Duration::from_secs(9), false),
    ] {
        let issuer = Issuer::new();
        let api = Api::accepting_none();
        let service = stack(&issuer.clone().latency(renewal), api.service());
        service.cache().token().await.unwrap();
        issuer.fail(Failure::Permanent);

        let result = call(&service).await;

        assert_eq!(api.received().len(), 1, "{renewal:?}");
        if is_held {
            let response = result.unwrap();
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
            assert_eq!(response.body(), rejection().body());
            let NotReplayed::RenewalFailed(error) = reason(&response) else {
                panic!("{:?}", reason(&response));
            };
            assert_eq!(error.to_string(), "token service failed");
            assert_eq!(error.rejected_status(), None);
            continue;
        }
        let error = result.unwrap_err();
        let error = error.downcast_ref::<Error>().unwrap();
        assert!(error.is_token_service() && !error.is_transient());
        assert_eq!(error.rejected_status(), Some(StatusCode::UNAUTHORIZED));
        assert_eq!(error.waited(), Some(renewal));
        assert_eq!(
            error.to_string(),
            "API answered 401, and no other token is available: token service failed"
        );
        // The error that calls share says nothing of this call.
        advance(COOL_DOWN).await;
        let token = service.cache().token().await.unwrap();
        assert_eq!(token.expose(), "token-1");
    }
}

/// A response body that never ends and says when it is dropped.
struct Unread(Arc<AtomicBool>);

impl Drop for Unread {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl http_body::Body for Unread {
    type Data = bytes::Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, BoxError>>> {
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn unread_rejection_is_dropped_after_one_second() {
    for (version, status) in [
        (Version::HTTP_11, StatusCode::UNAUTHORIZED),
        (Version::HTTP_2, StatusCode::FORBIDDEN),
    ] {
        let issuer = Issuer::new();
        let is_dropped = Arc::new(AtomicBool::new(false));
        let api = service_fn({
            let is_dropped = is_dropped.clone();
            move |request: Request<String>| {
                let is_rejected = request.headers()["authorization"] == "Bearer token-1";
                let dropped = if is_rejected {
                    is_dropped.clone()
                } else {
                    Arc::default()
                };
                let mut response = Response::new(Unread(dropped));
                *response.version_mut() = version;
                if is_rejected {
                    *response.status_mut() = status;
                }
                async { Ok::<_, BoxError>(response) }
            }
        });
        let tokens = issuer.clone().latency(Duration::from_secs(9));
        let service = ClientCredentialsLayer::new(tokens.service())
            .rejected_when(move |response| response.status == status)
            .layer(api);
        service.cache().token().await.unwrap();
        let mut call = tokio_test::task::spawn(service.oneshot(request()));
        assert!(call.poll().is_pending());

        advance(Duration::from_millis(999)).await;
        settle().await;
        assert!(!call.is_woken() && !is_dropped.load(Ordering::SeqCst));
        advance(Duration::from_millis(2)).await;
        settle().await;
        assert!(call.is_woken(), "{version:?}");
        assert!(call.poll().is_pending());

        assert!(is_dropped.load(Ordering::SeqCst), "{version:?}");
        // The request is still sent again when the renewal ends.
        let response = call.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let outcome = response.extensions().get::<TokenOutcome>().unwrap();
        assert!(outcome.replayed() && outcome.token_renewed());
    }
}

/// The timer of a held rejection ends with its call.
#[tokio::test(start_paused = true)]
async fn no_task_is_left_behind_by_a_held_rejection() {
    let issuer = Issuer::new();
    let service = stack(
        &issuer.clone().latency(Duration::from_millis(100)),
        accepting_only("token-2").service(),
    );
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };

    call(&service).await.unwrap();
    settle().await;

    assert_eq!(tasks(), 0);
}

/// The number of a token from an [`Issuer`].
fn number(token: &str) -> usize {
    let (_, number) = token.rsplit_once('-').unwrap();
    number.parse().unwrap()
}

/// An API that accepts the tokens from the given number on, which a test can raise.
fn revoking() -> (Api, Arc<AtomicUsize>) {
    let oldest = Arc::new(AtomicUsize::new(1));
    let accepted = Arc::clone(&oldest);
    let api = Api::accepting(move |token| number(token) >= accepted.load(Ordering::SeqCst));
    (api, oldest)
}

#[tokio::test(start_paused = true)]
async fn accepted_token_is_renewed_at_once_although_its_predecessor_was_renewed_seconds_ago() {
    let issuer = Issuer::new();
    let (api, oldest) = revoking();
    let service = stack(&issuer, api.service());
    call(&service).await.unwrap();

    for revoked in 1..=2 {
        oldest.store(revoked + 1, Ordering::SeqCst);
        let start = Instant::now();
        let response = call(&service).await.unwrap();

        assert_eq!(response.status(), StatusCode::OK, "revocation {revoked}");
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(issuer.requests(), 1 + revoked);
        advance(2 * SECOND).await;
        assert_eq!(call(&service).await.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn pauses_between_renewals_of_accepted_tokens_double_up_to_the_cool_down() {
    let issuer = Issuer::new();
    let (api, oldest) = revoking();
    let service = stack(&issuer, api.service());
    call(&service).await.unwrap();

    for pause in [0, 1, 2, 4, 8, 16, 30, 30] {
        let before = issuer.requests();
        oldest.store(before + 1, Ordering::SeqCst);
        if pause > 0 {
            advance(pause * SECOND - NANOSECOND).await;
            let response = call(&service).await.unwrap();
            assert!(matches!(reason(&response), NotReplayed::CoolingDown));
            assert_eq!(issuer.requests(), before, "before {pause} s");
            advance(NANOSECOND).await;
        }

        let response = call(&service).await.unwrap();

        assert_eq!(response.status(), StatusCode::OK, "after {pause} s");
        assert_eq!(issuer.requests(), before + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn pauses_between_renewals_start_over_after_a_minute_without_a_rejection() {
    for (name, quiet, starts_over) in [
        ("almost a minute", 60 * SECOND - NANOSECOND, false),
        ("a minute", 60 * SECOND, true),
    ] {
        let issuer = Issuer::new();
        let (api, oldest) = revoking();
        let service = stack(&issuer, api.service());
        call(&service).await.unwrap();
        // The next pause is 2 s after three renewals that start over, and 8 s after five.
        for pause in [Duration::ZERO, SECOND, 2 * SECOND, quiet] {
            advance(pause).await;
            oldest.fetch_add(1, Ordering::SeqCst);
            assert_eq!(call(&service).await.unwrap().status(), StatusCode::OK);
        }

        advance(SECOND).await;
        oldest.fetch_add(1, Ordering::SeqCst);
        let response = call(&service).await.unwrap();

        assert_eq!(response.status() == StatusCode::OK, starts_over, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn token_that_was_never_accepted_is_renewed_once_per_cool_down() {
    let issuer = Issuer::new();
    let service = stack(&issuer, Api::accepting_none().service());
    let start = Instant::now();
    let mut renewed_after = Vec::new();

    while start.elapsed() < Duration::from_secs(100) {
        let before = issuer.requests();
        call(&service).await.unwrap();
        // The first call gets the first token, too.
        if issuer.requests() > before {
            renewed_after.push(start.elapsed().as_secs());
        }
        advance(SECOND).await;
    }

    assert_eq!(renewed_after, [0, 30, 60, 90]);
    assert_eq!(issuer.requests(), 1 + 4);
}

/// That the API accepted a token says nothing about the next one.
#[tokio::test(start_paused = true)]
async fn token_that_was_never_accepted_waits_for_the_cool_down_although_its_predecessor_was() {
    let issuer = Issuer::new();
    let (api, oldest) = revoking();
    let service = stack(&issuer, api.service());
    call(&service).await.unwrap();
    oldest.store(usize::MAX, Ordering::SeqCst);
    call(&service).await.unwrap();
    assert_eq!(issuer.requests(), 2, "the accepted token was renewed");

    for (name, elapsed, requests) in [
        ("almost the cool-down", COOL_DOWN - NANOSECOND, 2),
        ("the cool-down", NANOSECOND, 3),
    ] {
        advance(elapsed).await;
        call(&service).await.unwrap();
        assert_eq!(issuer.requests(), requests, "{name}");
    }
}

/// LinkedIn refuses tokens for some seconds after issuing them.
#[tokio::test(start_paused = true)]
async fn api_that_refuses_young_tokens_is_healed_when_the_token_is_old_enough() {
    const YOUTH: Duration = Duration::from_secs(10);
    let issuer = Issuer::new();
    let mut born = Vec::new();
    let api = Api::accepting(move |token| {
        born.resize_with(born.len().max(number(token)), Instant::now);
        born[number(token) - 1].elapsed() >= YOUTH
    });
    let service = stack(&issuer, api.service());

    for age in 0..10 {
        let response = call(&service).await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{age} s");
        advance(SECOND).await;
    }

    let response = call(&service).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(issuer.requests(), 2);
}

/// How a token is sent whose acceptance counts.
#[derive(Clone, Copy, Debug)]
enum Sent {
    /// By a service that has been used before.
    Reused,
    /// By a clone of the service.
    Cloned,
    /// By a call that waited for it.
    Waited,
    /// By the second send of a call whose first token was rejected.
    Replayed,
    /// With a request that must not be sent again.
    NoReplay,
}

const EVERY_SEND: [Sent; 5] = [
    Sent::Reused,
    Sent::Cloned,
    Sent::Waited,
    Sent::Replayed,
    Sent::NoReplay,
];

fn answer(status: u16) -> Response<String> {
    Response::builder()
        .status(status)
        .body(String::new())
        .unwrap()
}

/// Sends a renewed token once, and lets the API reject it two seconds later. Returns whether it is
/// renewed, too, which it is if the `first_answer` proves that the API accepted it.
async fn is_renewed_again(
    sent: Sent,
    first_answer: Response<String>,
    rejected_when: Option<fn(&http::response::Parts) -> bool>,
) -> bool {
    let issuer = Issuer::new();
    let answers: Arc<Mutex<VecDeque<_>>> = Arc::default();
    let scripted = Arc::clone(&answers);
    let api = service_fn(move |_: Request<String>| {
        let answer = scripted.lock().unwrap().pop_front();
        async { Ok::<_, BoxError>(answer.expect("a scripted answer")) }
    });
    let script = |next: &[&Response<String>]| {
        let next = next.iter().map(|&answer| answer.clone());
        answers.lock().unwrap().extend(next);
    };
    let mut layer = ClientCredentialsLayer::new(issuer.service());
    if let Some(rejected_when) = rejected_when {
        layer = layer.rejected_when(rejected_when);
    }
    let mut service = layer.layer(api);
    let once = || {
        let mut once = request();
        once.extensions_mut().insert(NoReplay);
        once
    };
    service.cache().token().await.unwrap();

    // The first renewal. A bad gateway says nothing about the token.
    match sent {
        Sent::Waited => {
            script(&[&rejection(), &first_answer]);
            service.clone().oneshot(once()).await.unwrap();
        }
        Sent::Replayed => script(&[&rejection(), &first_answer]),
        Sent::Reused | Sent::Cloned | Sent::NoReplay => {
            script(&[&rejection(), &answer(502), &first_answer]);
            service.call(request()).await.unwrap();
        }
    }
    let start = Instant::now();
    match sent {
        Sent::Reused => service.call(request()).await.unwrap(),
        Sent::NoReplay => service.call(once()).await.unwrap(),
        Sent::Cloned | Sent::Waited | Sent::Replayed => call(&service).await.unwrap(),
    };
    assert_eq!(issuer.requests(), 2, "{sent:?}");
    assert!(answers.lock().unwrap().is_empty(), "{sent:?}");
    assert_eq!(start.elapsed(), Duration::ZERO);

    advance(2 * SECOND).await;
    script(&[&rejection(), &answer(200)]);
    call(&service).await.unwrap();
    issuer.requests() == 3
}

#[tokio::test(start_paused = true)]
async fn only_a_success_proves_that_a_token_was_accepted() {
    for (name, status, proves) in [
        ("200", 200, true),
        ("204", 204, true),
        ("299", 299, true),
        ("301, a redirect", 301, false),
        ("304, from a cache", 304, false),
        ("404, from a gateway", 404, false),
        ("407, from a proxy", 407, false),
        ("429, from a gateway", 429, false),
        ("500", 500, false),
        ("502, from a gateway", 502, false),
    ] {
        for sent in EVERY_SEND {
            let is_renewed = is_renewed_again(sent, answer(status), None).await;
            assert_eq!(is_renewed, proves, "{name}, {sent:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn success_of_a_request_without_its_token_proves_nothing() {
    let mut redirected = answer(200);
    redirected.extensions_mut().insert(TokenRemoved);

    for sent in EVERY_SEND {
        let is_renewed = is_renewed_again(sent, redirected.clone(), None).await;
        assert!(!is_renewed, "{sent:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn success_that_rejected_when_calls_a_rejection_proves_nothing() {
    fn rejects(response: &http::response::Parts) -> bool {
        response.status == StatusCode::UNAUTHORIZED || response.headers.contains_key("expired")
    }
    let mut expired = answer(200);
    let yes = http::HeaderValue::from_static("yes");
    expired.headers_mut().insert("expired", yes);

    for (name, first_answer, proves) in [
        ("a rejection with 200", expired, false),
        ("200", answer(200), true),
        ("404", answer(404), false),
    ] {
        for sent in EVERY_SEND {
            let is_renewed = is_renewed_again(sent, first_answer.clone(), Some(rejects)).await;
            assert_eq!(is_renewed, proves, "{name}, {sent:?}");
        }
    }
}

/// An API that rejects every token on one path, and accepts every token on the others.
fn with_a_bad_path()
-> impl Service<Request<String>, Response = Response<String>, Error = BoxError, Future: Send + 'static>
+ Clone
+ Send {
    service_fn(|request: Request<String>| {
        let is_rejected = request.uri().path() == "/no";
        async move {
            Ok(if is_rejected {
                rejection()
            } else {
                answer(200)
            })
        }
    })
}

fn bad_request() -> Request<String> {
    let uri = "https://api.linkedin.com/no";
    Request::get(uri).body(String::new()).unwrap()
}

/// Makes healthy calls for `seconds`, and returns for how long they waited in total.
async fn healthy_calls_wait<S>(service: &S, seconds: u64) -> Duration
where
    S: Service<Request<String>, Response = Response<String>, Error = BoxError> + Clone,
{
    let mut waited = Duration::ZERO;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(seconds) {
        let before = Instant::now();
        assert_eq!(call(service).await.unwrap().status(), StatusCode::OK);
        waited += before.elapsed();
        settle().await;
        advance(Duration::from_millis(50)).await;
    }
    waited
}

/// What a second of waiting may come to with timers that have a resolution of a millisecond.
const ABOUT_A_SECOND: RangeInclusive<Duration> = SECOND..=Duration::from_millis(1002);

#[tokio::test(start_paused = true)]
async fn rejected_token_is_withheld_for_a_second_in_total_if_the_token_endpoint_hangs() {
    for while_refreshing in [false, true] {
        let issuer = Issuer::new();
        let cache = TokenCache::builder().jitter(0.0).build(issuer.service());
        let service = ClientCredentialsLayer::with_cache(cache).layer(with_a_bad_path());
        call(&service).await.unwrap();
        issuer.fail(Failure::Silence);
        if while_refreshing {
            advance(Duration::from_secs(1490)).await;
            call(&service).await.unwrap();
            settle().await;
            advance(3 * SECOND).await;
            assert_eq!(issuer.requests(), 2, "the refresh hangs");
        }
        let bad_calls = tokio::spawn({
            let service = service.clone();
            async move {
                loop {
                    tokio::spawn(service.clone().oneshot(bad_request()));
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            }
        });
        settle().await;

        let waited = healthy_calls_wait(&service, 25).await;

        assert!(
            ABOUT_A_SECOND.contains(&waited),
            "{waited:?}, while refreshing: {while_refreshing}"
        );
        bad_calls.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn every_call_that_waits_for_a_renewal_that_hangs_goes_on_after_a_second() {
    let issuer = Issuer::new();
    let service = stack(&issuer, with_a_bad_path());
    call(&service).await.unwrap();
    issuer.fail(Failure::Silence);
    let mut bad = tokio_test::task::spawn(service.clone().oneshot(bad_request()));
    assert!(bad.poll().is_pending());

    let start = Instant::now();
    let responses = join_all((0..100).map(|_| call(&service))).await;

    let waited = start.elapsed();
    assert!(ABOUT_A_SECOND.contains(&waited), "{waited:?}");
    for response in responses {
        assert_eq!(response.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn token_waits_for_a_second_after_a_rejection_that_the_caller_reported() {
    for later in [Duration::ZERO, 5 * SECOND] {
        let issuer = Issuer::new();
        let cache = issuer.cache();
        let token = cache.token().await.unwrap();
        issuer.fail(Failure::Silence);
        assert!(matches!(cache.reject(&token), Rejection::Withheld));
        advance(later).await;

        let start = Instant::now();
        let again = cache.token().await.unwrap();

        assert_eq!(again.expose(), "token-1");
        let waited = start.elapsed();
        assert!(ABOUT_A_SECOND.contains(&waited), "{waited:?}");
        assert!(cache.token().now_or_never().is_some());
    }
}

/// A path that always rejects, beside one that accepts, on one cache. The token endpoint is slow.
#[tokio::test(start_paused = true)]
async fn healthy_calls_beside_an_api_that_refuses_every_token_wait_for_a_second_per_renewal() {
    let issuer = Issuer::new().latency(5 * SECOND);
    let service = stack(&issuer, with_a_bad_path());
    call(&service).await.unwrap();
    let bad_calls = tokio::spawn({
        let service = service.clone();
        async move {
            loop {
                tokio::spawn(service.clone().oneshot(bad_request()));
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
    });
    settle().await;

    let waited = healthy_calls_wait(&service, 300).await;

    let renewals = issuer.requests() - 1;
    assert!((10..=20).contains(&renewals), "{renewals}");
    assert!(
        waited <= u32::try_from(renewals).unwrap() * Duration::from_millis(1060),
        "{waited:?} for {renewals} renewals"
    );
    bad_calls.abort();
}

/// A token service that always returns the same token.
fn unchanging(
    latency: Duration,
) -> (
    impl Service<TokenRequest, Response = AccessToken, Error = BoxError, Future: Send + 'static>
    + Clone
    + Send,
    Arc<AtomicUsize>,
) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let tokens = service_fn(move |_: TokenRequest| {
        let is_first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            if !is_first {
                tokio::time::sleep(latency).await;
            }
            Ok(AccessToken::new("the-same")?.with_lifetime(LONG))
        }
    });
    (tokens, requests)
}

#[tokio::test(start_paused = true)]
async fn request_is_sent_once_if_the_renewal_returns_the_rejected_token() {
    for (latency, is_held) in [
        (Duration::from_millis(1), true),
        (Duration::from_millis(999), true),
        (Duration::from_millis(1001), false),
    ] {
        let (tokens, requests) = unchanging(latency);
        let api = Api::accepting_none().latency(Duration::from_millis(10));
        let service = ClientCredentialsLayer::new(tokens).layer(api.service());
        service.cache().token().await.unwrap();

        let results = join_all((0..100).map(|_| call(&service))).await;

        assert_eq!(api.received().len(), 100, "each is sent once: {latency:?}");
        assert_eq!(requests.load(Ordering::SeqCst), 2, "{latency:?}");
        for result in results {
            if is_held {
                let response = result.unwrap();
                assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
                assert_eq!(response.body(), rejection().body());
                assert!(
                    matches!(reason(&response), NotReplayed::SameToken),
                    "{:?}",
                    reason(&response)
                );
                continue;
            }
            let error = result.unwrap_err();
            let error = error.downcast_ref::<Error>().unwrap();
            assert_eq!(error.rejected_status(), Some(StatusCode::UNAUTHORIZED));
            assert_eq!(
                error.to_string(),
                "API answered 401, and no other token is available: renewal returned the access \
                 token that the API had rejected"
            );
        }
        // Other calls use the token, and the next rejection waits for the cool-down.
        let token = service.cache().token().now_or_never().unwrap().unwrap();
        assert_eq!(token.expose(), "the-same");
        let response = call(&service).await.unwrap();
        assert!(matches!(reason(&response), NotReplayed::CoolingDown));
        assert_eq!(requests.load(Ordering::SeqCst), 2, "{latency:?}");
    }
}

/// The token service returns a token that was rejected before. Meanwhile, a call has waited for its
/// HTTP client.
#[tokio::test(start_paused = true)]
async fn rejected_token_that_comes_back_before_the_service_is_ready_is_not_sent_again() {
    for (cool_down, next) in [(COOL_DOWN, None), (Duration::ZERO, Some("token-3"))] {
        let remaining = Arc::new(Mutex::new(VecDeque::from([
            "token-1", "token-2", "token-1", "token-3",
        ])));
        let issued = Arc::clone(&remaining);
        let tokens = service_fn(move |_: TokenRequest| {
            let token = issued.lock().unwrap().pop_front().unwrap();
            async move { Ok::<_, BoxError>(AccessToken::new(token)?.with_lifetime(LONG)) }
        });
        let cache = TokenCache::builder().cool_down(cool_down).build(tokens);
        let (inner, mut api) = tower_test::mock::pair::<Request<String>, Response<String>>();
        let service = ClientCredentialsLayer::with_cache(cache.clone()).layer(inner);
        cache.token().await.unwrap();

        api.allow(1);
        let mut waiting = tokio_test::task::spawn(service.oneshot(request()));
        assert!(waiting.poll().is_pending());
        let (sent, respond) = api.next_request().await.unwrap();
        assert_eq!(sent.headers()["authorization"], "Bearer token-1");
        respond.send_response(rejection());
        assert!(waiting.poll().is_pending());
        settle().await;
        assert!(waiting.poll().is_pending(), "the service is not ready");
        let renewed = cache.token().await.unwrap();
        assert_eq!(renewed.expose(), "token-2");

        cache.accept(&renewed);
        assert!(matches!(cache.reject(&renewed), Rejection::Withheld));
        assert_eq!(cache.token().await.unwrap().expose(), "token-1");
        api.allow(1);
        let outcome = waiting.poll();

        if let Some(next) = next {
            assert!(outcome.is_pending());
            settle().await;
            api.allow(1);
            assert!(waiting.poll().is_pending());
            let (sent, respond) = api.next_request().await.unwrap();
            assert_eq!(sent.headers()["authorization"], format!("Bearer {next}"));
            respond.send_response(answer(200));
            assert_eq!(waiting.await.unwrap().status(), StatusCode::OK);
            continue;
        }
        let Poll::Ready(Err(error)) = outcome else {
            panic!("the call waits on, or has a response");
        };
        let error = error.downcast_ref::<Error>().unwrap();
        assert!(error.is_token_rejected(), "{error}");
        assert_eq!(error.rejected_status(), Some(StatusCode::UNAUTHORIZED));
        assert!(api.next_request().now_or_never().is_none());
        assert_eq!(remaining.lock().unwrap().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_during_the_back_off_of_a_renewal_are_told_its_failure() {
    let issuer = Issuer::new();
    let api = Api::accepting_none();
    let service = stack(&issuer, api.service());
    call(&service).await.unwrap();
    assert_eq!(issuer.requests(), 2, "a cool-down has begun");
    advance(COOL_DOWN).await;
    issuer.fail(Failure::Permanent);

    for calls in 1..=5 {
        let response = call(&service).await.unwrap();

        let NotReplayed::RenewalFailed(error) = reason(&response) else {
            panic!("call {calls}: {:?}", reason(&response));
        };
        assert!(error.is_token_service(), "call {calls}: {error}");
        assert!(error.retry_after().is_some(), "call {calls}");
        assert_eq!(issuer.requests(), 3);
        advance(Duration::from_millis(100)).await;
    }
    let token = service.cache().token().await.unwrap();
    assert!(matches!(
        service.cache().reject(&token),
        Rejection::Failing(_)
    ));

    // After the back-off, the token is renewed again although the cool-down is not over.
    advance(SECOND).await;
    let response = call(&service).await.unwrap();
    assert!(matches!(reason(&response), NotReplayed::RenewalFailed(_)));
    assert_eq!(issuer.requests(), 4);
}

#[tokio::test(start_paused = true)]
async fn rejected_token_serves_again_when_its_renewal_fails() {
    let issuer = Issuer::new().latency(Duration::from_millis(50));
    let cache = issuer.cache();
    let token = cache.token().await.unwrap();
    issuer.fail(Failure::Permanent);
    assert!(matches!(cache.reject(&token), Rejection::Withheld));

    let tokens = join_all((0..10).map(|_| cache.token())).await;

    assert!(
        tokens
            .iter()
            .all(|token| token.as_ref().unwrap().expose() == "token-1")
    );
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn cool_down_ends_after_thirty_seconds() {
    for (elapsed, renewals) in [(COOL_DOWN - Duration::from_nanos(1), 1), (COOL_DOWN, 2)] {
        let issuer = Issuer::new();
        let service = stack(&issuer, Api::accepting_none().service());
        call(&service).await.unwrap();

        advance(elapsed).await;
        call(&service).await.unwrap();

        assert_eq!(issuer.requests(), 1 + renewals, "after {elapsed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn reject_returns_what_happens_to_the_token() {
    let issuer = Issuer::new();
    let cache = issuer.cache();
    let first = cache.token().await.unwrap();

    assert!(matches!(cache.reject(&first), Rejection::Withheld));
    assert!(matches!(cache.reject(&first), Rejection::Withheld));
    assert_eq!(issuer.requests(), 1);
    let second = cache.token().await.unwrap();
    assert_eq!(second.expose(), "token-2");
    assert!(matches!(cache.reject(&first), Rejection::Replaced));
    assert!(matches!(cache.reject(&second), Rejection::CoolingDown));
    assert_eq!(cache.token().await.unwrap().expose(), "token-2");

    issuer.fail(Failure::Permanent);
    advance(COOL_DOWN).await;
    assert!(matches!(cache.reject(&second), Rejection::Withheld));
    cache.token().await.unwrap();
    assert!(matches!(cache.reject(&second), Rejection::Failing(_)));
}

#[tokio::test(start_paused = true)]
async fn reject_says_that_a_renewal_takes_longer_than_a_second() {
    let issuer = Issuer::new().latency(5 * SECOND);
    let cache = issuer.cache();
    let token = cache.token().await.unwrap();
    assert!(matches!(cache.reject(&token), Rejection::Withheld));
    let mut refresh = tokio_test::task::spawn(cache.refresh());
    assert!(refresh.poll().is_pending());
    settle().await;

    advance(SECOND - NANOSECOND).await;
    assert!(matches!(cache.reject(&token), Rejection::Withheld));
    assert!(cache.token().now_or_never().is_none(), "withheld");
    for elapsed in [NANOSECOND, 3 * SECOND] {
        advance(elapsed).await;
        let rejection = cache.reject(&token);
        assert!(matches!(rejection, Rejection::Renewing), "{rejection:?}");
        let in_use = cache.token().now_or_never().unwrap().unwrap();
        assert_eq!(in_use.expose(), "token-1");
    }
    assert_eq!(refresh.await.unwrap().expose(), "token-2");
    assert!(matches!(cache.reject(&token), Rejection::Replaced));
    assert_eq!(issuer.requests(), 2);
}

/// Callers try again until they have another token.
#[tokio::test(start_paused = true)]
async fn callers_that_reject_and_refresh_make_one_token_request() {
    let issuer = Issuer::new().latency(5 * SECOND);
    let cache = issuer.cache();
    cache.token().await.unwrap();
    let caller = |delay: Duration| {
        let cache = cache.clone();
        async move {
            tokio::time::sleep(delay).await;
            let mut token = cache.token().await.unwrap();
            let mut rejections = 0;
            while token.expose() == "token-1" {
                rejections += 1;
                let next = match cache.reject(&token) {
                    Rejection::Withheld | Rejection::Renewing => cache.refresh().await,
                    Rejection::Replaced => cache.token().await,
                    rejection => panic!("{rejection:?}"),
                };
                token = next.unwrap();
            }
            (token.expose().to_owned(), rejections)
        }
    };

    let delays = (0..20).map(|number| number * Duration::from_millis(200));
    let callers = join_all(delays.map(caller)).await;

    for (token, rejections) in callers {
        assert_eq!(token, "token-2");
        assert!(rejections <= 1, "{rejections}");
    }
    assert_eq!(issuer.rejected(), [None, Some("token-1".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn accepted_token_is_renewed_at_once_if_the_program_reported_that() {
    for (accepted, is_renewed) in [
        (Some("token-2"), true),
        (Some("token-1"), false),
        (Some("stranger"), false),
        (None, false),
    ] {
        let issuer = Issuer::new();
        let cache = issuer.cache();
        let first = cache.token().await.unwrap();
        assert!(matches!(cache.reject(&first), Rejection::Withheld));
        let second = cache.token().await.unwrap();
        assert_eq!(second.expose(), "token-2");

        if let Some(accepted) = accepted {
            cache.accept(&AccessToken::new(accepted).unwrap());
        }
        advance(2 * SECOND).await;
        let rejection = cache.reject(&second);

        match rejection {
            Rejection::Withheld => assert!(is_renewed, "{accepted:?}"),
            Rejection::CoolingDown => assert!(!is_renewed, "{accepted:?}"),
            rejection => panic!("{accepted:?}: {rejection:?}"),
        }
        cache.token().await.unwrap();
        assert_eq!(issuer.requests(), 2 + usize::from(is_renewed));
    }
}

#[tokio::test(start_paused = true)]
async fn accepting_a_token_that_the_cache_does_not_hold_does_nothing() {
    let issuer = Issuer::new();
    let cache = issuer.cache();

    cache.accept(&AccessToken::new("token-1").unwrap());
    settle().await;

    assert_eq!(issuer.requests(), 0);
    assert!(cache.token().await.is_ok());
    cache.reset();
    cache.accept(&AccessToken::new("token-1").unwrap());
    assert_eq!(cache.token().await.unwrap().expose(), "token-2");
}

#[tokio::test(start_paused = true)]
async fn rejected_call_without_replay_renews_the_token_for_the_next_call() {
    let issuer = Issuer::new();
    let api = accepting_only("token-2");
    let service = ClientCredentialsLayer::new(issuer.service())
        .no_replay()
        .layer(api.service());

    let response = service.clone().oneshot(request()).await.unwrap();
    settle().await;

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(matches!(reason(&response), NotReplayed::BodyNotKept));
    assert_eq!(api.received().len(), 1);
    let response = service.oneshot(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn request_with_the_no_replay_extension_is_sent_once() {
    let issuer = Issuer::new();
    let api = accepting_only("token-2");
    let service = stack(&issuer, api.service());
    let mut once = request();
    once.extensions_mut().insert(NoReplay);

    let response = service.clone().oneshot(once).await.unwrap();

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(matches!(reason(&response), NotReplayed::OptedOut));
    assert_eq!(api.received().len(), 1);
    assert_eq!(call(&service).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn rejected_token_that_has_expired_is_replaced() {
    let issuer = Issuer::new().lifetime(Duration::ZERO);
    let api = accepting_only("token-2");
    let service = stack(&issuer, api.service());

    let response = call(&service).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn rejected_when_replaces_the_verdict_table() {
    let rows = [
        (
            "403, which the function rejects",
            StatusCode::FORBIDDEN,
            true,
        ),
        (
            "401, which the function accepts",
            StatusCode::UNAUTHORIZED,
            false,
        ),
        ("200", StatusCode::OK, false),
    ];
    for (name, status, is_rejected) in rows {
        let issuer = Issuer::new();
        let api = service_fn(move |_: Request<String>| async move {
            let mut response = Response::new(String::new());
            *response.status_mut() = status;
            Ok::<_, BoxError>(response)
        });
        let service = ClientCredentialsLayer::new(issuer.service())
            .rejected_when(|response| response.status == StatusCode::FORBIDDEN)
            .layer(api);

        service.oneshot(request()).await.unwrap();

        assert_eq!(issuer.requests() == 2, is_rejected, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn response_to_a_request_without_its_token_does_not_reject_it() {
    let issuer = Issuer::new();
    let layer = ClientCredentialsLayer::with_cache(issuer.cache());
    for layer in [layer.clone(), layer.rejected_when(|_| true)] {
        let api = Api::accepting_none();
        let redirected = api.service();
        let service = layer.layer(service_fn(move |request| {
            let response = redirected.clone().oneshot(request);
            async {
                let mut response = response.await?;
                response.extensions_mut().insert(TokenRemoved);
                Ok::<_, BoxError>(response)
            }
        }));

        let response = call(&service).await.unwrap();

        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(api.tokens(), ["token-1"]);
        assert_eq!(issuer.requests(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn error_from_the_inner_service_is_returned_unchanged() {
    let issuer = Issuer::new();
    let failing = service_fn(|_: Request<String>| async {
        Err::<Response<String>, BoxError>("connection reset".into())
    });
    let service = stack(&issuer, failing);

    let error = call(&service).await.unwrap_err();

    assert_eq!(error.to_string(), "connection reset");
    assert_eq!(issuer.requests(), 1);
}

/// Name, status, `WWW-Authenticate` fields, and whether the response rejects the token.
const VERDICTS: &[(&str, u16, &[&str], bool)] = &[
    (
        "401 without a challenge: LinkedIn, node-oauth",
        401,
        &[],
        true,
    ),
    ("401, Bearer alone", 401, &["Bearer"], true),
    (
        "401, Bearer without an error",
        401,
        &[r#"Bearer realm="api""#],
        true,
    ),
    (
        "401, no Bearer challenge",
        401,
        &[r#"Basic realm="api""#],
        true,
    ),
    (
        "401, invalid_token",
        401,
        &[r#"Bearer error="invalid_token""#],
        true,
    ),
    (
        "401, two challenges in one field: auth0",
        401,
        &[
            r#"Bearer realm="api", error="invalid_token", error_description="expired, or revoked", DPoP algs="ES256 PS256""#,
        ],
        true,
    ),
    (
        "401, an unknown error, scheme in lower case: Authlib",
        401,
        &[r#"bearer realm="api", error="missing_authorization""#],
        true,
    ),
    (
        "401, insufficient_scope",
        401,
        &[r#"Bearer error="insufficient_scope""#],
        false,
    ),
    (
        "401, invalid_request",
        401,
        &[r#"Bearer error="invalid_request""#],
        false,
    ),
    (
        "401, error as a token",
        401,
        &["Bearer error=insufficient_scope"],
        false,
    ),
    (
        "401, scheme in capitals",
        401,
        &[r#"BEARER ERROR="insufficient_scope""#],
        false,
    ),
    (
        "401, the second challenge of a field",
        401,
        &[r#"Basic realm="api", Bearer scope="a b", error="insufficient_scope""#],
        false,
    ),
    (
        "401, the second field",
        401,
        &[
            r#"Basic realm="api""#,
            r#"Bearer error="insufficient_scope""#,
        ],
        false,
    ),
    (
        "401, two Bearer challenges, one of them with invalid_token",
        401,
        &[
            r#"Bearer error="insufficient_scope""#,
            r#"Bearer error="invalid_token""#,
        ],
        true,
    ),
    (
        "401, an error of another scheme",
        401,
        &[r#"DPoP error="insufficient_scope", algs="ES256""#],
        true,
    ),
    (
        "401, an error in a description",
        401,
        &[r#"Bearer error_description="error=\"insufficient_scope\"", error="invalid_token""#],
        true,
    ),
    (
        "401, a description that is not ASCII",
        401,
        &["Bearer error_description=\"portée insuffisante\", error=\"insufficient_scope\""],
        false,
    ),
    (
        "401, a field that is cut off",
        401,
        &[r#"Bearer error="insuf"#],
        true,
    ),
    ("401, an empty field", 401, &[""], true),
    ("403", 403, &[], false),
    (
        "403, invalid_token",
        403,
        &[r#"Bearer error="invalid_token""#],
        true,
    ),
    (
        "403, insufficient_scope and invalid_token",
        403,
        &[r#"Bearer error="insufficient_scope", Bearer error="invalid_token""#],
        true,
    ),
    (
        "403, Bearer without an error",
        403,
        &[r#"Bearer realm="api""#],
        false,
    ),
    (
        "403, an unknown error",
        403,
        &[r#"Bearer error="missing_authorization""#],
        false,
    ),
    (
        "403, invalid_token in a description",
        403,
        &[r#"Bearer error_description="error=\"invalid_token\"""#],
        false,
    ),
    ("400", 400, &[], false),
    (
        "400, invalid_token",
        400,
        &[r#"Bearer error="invalid_token""#],
        true,
    ),
    (
        "400, invalid_request",
        400,
        &[r#"Bearer error="invalid_request""#],
        false,
    ),
    (
        "407, invalid_token",
        407,
        &[r#"Bearer error="invalid_token""#],
        false,
    ),
    (
        "404, invalid_token",
        404,
        &[r#"Bearer error="invalid_token""#],
        false,
    ),
    ("429", 429, &[], false),
    ("500", 500, &[], false),
    ("200", 200, &[r#"Bearer error="invalid_token""#], false),
];

#[test]
fn verdicts_match_the_table() {
    let names: HashSet<_> = VERDICTS.iter().map(|row| row.0).collect();
    assert_eq!(names.len(), VERDICTS.len());

    for &(name, status, challenges, is_rejected) in VERDICTS {
        let challenges = challenges.iter().map(|&challenge| challenge.to_owned());
        assert_eq!(rejects(status, challenges.collect()), is_rejected, "{name}");
    }
}

/// Name and `WWW-Authenticate` fields. `SCHEME` stands for the scheme of the token, and `ERROR` for
/// the error code.
const TOLERATED: &[(&str, &[&str])] = &[
    ("a comma after the scheme", &[r#"SCHEME, error="ERROR""#]),
    (
        "no comma",
        &[r#"SCHEME error="ERROR" error_description="expired""#],
    ),
    (
        "no comma, error last",
        &[r#"SCHEME realm="api" error_description="expired" error="ERROR""#],
    ),
    (
        "no comma and no space",
        &[r#"SCHEME realm="api"error="ERROR""#],
    ),
    (
        "no comma and no quotes",
        &["SCHEME realm=api error=ERROR scope=a"],
    ),
    (
        "semicolons",
        &[r#"SCHEME realm="api"; error="ERROR"; scope="a""#],
    ),
    (
        "token68 before",
        &[r#"Negotiate YII=, SCHEME error="ERROR""#],
    ),
    (
        "long token68 before",
        &[r#"Negotiate YII/+a~==, SCHEME error="ERROR""#],
    ),
    (
        "token68 without padding before",
        &[r#"NTLM TlRMTVNTUAAC, SCHEME error="ERROR""#],
    ),
    (
        "token68 before, no comma",
        &[r#"Negotiate YII= SCHEME error="ERROR""#],
    ),
    (
        "token68 after",
        &[r#"SCHEME error="ERROR", Negotiate YII="#],
    ),
    (
        "token68 before and after",
        &[r#"Negotiate YII=, SCHEME error="ERROR", NTLM abc="#],
    ),
    (
        "a scheme alone before",
        &[r#"Negotiate, SCHEME error="ERROR""#],
    ),
    (
        "a scheme alone after",
        &[r#"SCHEME error="ERROR", Negotiate"#],
    ),
    (
        "description without quotes",
        &[
            "SCHEME error=ERROR, error_description=The token expired at 12:00, resource_id=https://org.example/",
        ],
    ),
    (
        "description without quotes before",
        &["SCHEME error_description=The token expired at 12:00, error=ERROR"],
    ),
    (
        "description with a comma and without quotes",
        &["SCHEME error_description=Expired, please renew it, error=ERROR"],
    ),
    (
        "description without quotes or comma",
        &["SCHEME error_description=The token expired error=ERROR"],
    ),
    (
        "description with bare quotes",
        &[r#"SCHEME error_description="The "jwt" expired", error="ERROR""#],
    ),
    (
        "description with escaped quotes",
        &[r#"SCHEME error_description="The \"jwt\", expired", error="ERROR""#],
    ),
    (
        "backslash before a closing quote",
        &[r#"SCHEME realm="C:\", error="ERROR""#],
    ),
    (
        "two challenges in one field",
        &[r#"Basic realm="r", SCHEME error="ERROR""#],
    ),
    (
        "two challenges in two fields",
        &[r#"Basic realm="r""#, r#"SCHEME error="ERROR""#],
    ),
    (
        "two challenges in the other order",
        &[r#"SCHEME error="ERROR", Basic realm="r""#],
    ),
    (
        "two challenges, no comma",
        &[r#"Basic realm="r" SCHEME error="ERROR""#],
    ),
    (
        "two challenges, no comma and no quotes",
        &["Basic realm=r SCHEME error=ERROR"],
    ),
    (
        "two challenges, another scheme with an error",
        &[r#"DPoP error="use_dpop_nonce", algs="ES256", SCHEME error="ERROR""#],
    ),
    (
        "one challenge in two fields",
        &[r#"SCHEME realm="r""#, r#"error="ERROR""#],
    ),
    ("empty elements", &[r#", ,SCHEME ,error="ERROR",,"#]),
    ("an empty field before", &["", r#"SCHEME error="ERROR""#]),
    ("single quotes", &["SCHEME realm='x',error='ERROR'"]),
    (
        "single quotes, no comma",
        &["SCHEME realm='x' error='ERROR'"],
    ),
    (
        "single quotes around an apostrophe",
        &["SCHEME error_description='the token's end', error='ERROR'"],
    ),
    (
        "an apostrophe without its partner",
        &["SCHEME realm='x, error=ERROR"],
    ),
    ("no quotes", &["SCHEME error=ERROR"]),
    (
        "white space around the equals sign",
        &[r#"SCHEME error = "ERROR""#],
    ),
    (
        "white space within the quotes",
        &[r#"SCHEME error=" ERROR ""#],
    ),
    ("tabs", &["SCHEME\trealm=\"x\",\terror=\"ERROR\""]),
    ("error in capitals", &[r#"SCHEME ERROR="ERROR""#]),
    ("escaped letters", &[r#"SCHEME error="\ERROR""#]),
    (
        "the error's quote is not closed",
        &[r#"SCHEME error="ERROR"#],
    ),
    (
        "the error's quote is not closed, another parameter follows",
        &[r#"SCHEME error="ERROR, realm="api""#],
    ),
    (
        "the last quote is not closed",
        &[r#"SCHEME error="ERROR", error_description="The token expi"#],
    ),
    (
        "the first quote is not closed",
        &[r#"SCHEME realm="api, error="ERROR""#],
    ),
    (
        "the first quote is not closed, the error has no quotes",
        &["SCHEME realm=\"api, error=ERROR"],
    ),
    (
        "a quote of another field is not closed",
        &[r#"Basic realm="r"#, r#"SCHEME error="ERROR""#],
    ),
    (
        "a description that is not ASCII",
        &["SCHEME error_description=\"abgelaufen – é\", error=\"ERROR\""],
    ),
    (
        "a description that is neither ASCII nor in quotes",
        &["SCHEME error_description=expiré le 3 août, error=ERROR"],
    ),
    ("curly quotes", &["SCHEME error=“ERROR”"]),
];

#[test]
fn challenges_that_break_the_grammar_are_understood() {
    for &(name, fields) in TOLERATED {
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let rejects = |status, error: &str| {
                let fields = fields.iter().map(|field| {
                    // `ERROR=` is the name of the parameter in capitals.
                    let field = field.replace("ERROR=", "\u{1}").replace("ERROR", error);
                    field.replace('\u{1}', "ERROR=").replace("SCHEME", scheme)
                });
                rejects(status, fields.collect())
            };

            for token_error in ["invalid_token", "Invalid_Token"] {
                for status in [400, 401, 403] {
                    assert!(rejects(status, token_error), "{status}, {name}");
                }
            }
            for other_error in ["insufficient_scope", "invalid_request"] {
                for status in [400, 401, 403] {
                    assert!(!rejects(status, other_error), "{status}, {name}");
                }
            }
            assert!(rejects(401, "unknown"), "{name}");
            assert!(!rejects(403, "unknown"), "{name}");
        }
    }
}

#[test]
fn error_of_another_scheme_is_never_taken_for_the_tokens() {
    let others = ["DPoP", "Basic", "Custom", "X-Bearer"];
    for &(name, fields) in TOLERATED {
        // Without a comma, only well-known schemes are told apart from other words.
        let others = if name.contains("no comma") {
            &others[..2]
        } else {
            &others[..]
        };
        for other in others {
            let rejects = |status, error: &str| {
                let before = "Bearer realm=\"api\"".to_owned();
                let fields = fields.iter().map(|field| {
                    let field = field.replace("ERROR=", "error=");
                    field.replace("ERROR", error).replace("SCHEME", other)
                });
                rejects(status, [before].into_iter().chain(fields).collect())
            };

            assert!(rejects(401, "insufficient_scope"), "{other}, {name}");
            assert!(!rejects(400, "invalid_token"), "{other}, {name}");
            assert!(!rejects(403, "invalid_token"), "{other}, {name}");
        }
    }
}

#[test]
fn only_the_beginning_of_long_challenges_is_read() {
    let late = |len| {
        format!(
            "Bearer realm=\"{}\", error=\"invalid_token\"",
            "x".repeat(len)
        )
    };
    assert!(rejects(403, vec![late(4000)]));
    assert!(!rejects(403, vec![late(4096)]));

    let fields = |empty| {
        let mut fields = vec![String::new(); empty];
        fields.push("Bearer error=\"invalid_token\"".to_owned());
        fields
    };
    assert!(rejects(403, fields(15)));
    assert!(!rejects(403, fields(16)));
}

/// Whether a response with these `WWW-Authenticate` fields causes a renewal.
fn rejects(status: u16, challenges: Vec<String>) -> bool {
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for challenge in challenges {
        let value = http::HeaderValue::from_bytes(challenge.as_bytes()).unwrap();
        response.headers_mut().append(WWW_AUTHENTICATE, value);
    }
    let api = service_fn(move |_: Request<String>| {
        let response = response.clone();
        async move { Ok::<_, BoxError>(response) }
    });
    let issuer = Issuer::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();

    runtime.block_on(call(&stack(&issuer, api))).unwrap();

    issuer.requests() == 2
}

#[test]
fn rejection_outside_a_runtime_is_returned_with_a_reason() {
    let issuer = Issuer::new();
    let service = stack(&issuer, Api::accepting_none().service());
    tokio_test::block_on(service.cache().token()).unwrap();

    let response = call(&service).now_or_never().unwrap().unwrap();

    let NotReplayed::RenewalFailed(error) = reason(&response) else {
        panic!("{:?}", reason(&response));
    };
    assert!(error.is_no_runtime());
    assert!(call(&service).now_or_never().unwrap().is_ok());
}
