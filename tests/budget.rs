//! What the keys of one token endpoint share: pauses of a client, and probes of an origin that is
//! down.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    future::Future,
    io,
    sync::{Arc, Mutex},
    task::{Context, Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::join_all};
use http::{Request, Response, Uri, header::RETRY_AFTER};
use http_body_util::{BodyExt, Full};
use proptest::{collection::vec, prelude::*};
use tokio::{
    task::{self, JoinHandle, yield_now},
    time::{Instant, advance, sleep, timeout},
};
use tower::{BoxError, Service, ServiceExt, limit::ConcurrencyLimit, service_fn};
use tower_client_credentials::{
    AccessToken, ClientAuth, Error, TokenCache, TokenEndpoint, TokenParameters, TokenRequest,
};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn a_thousand_cold_tenants_cost_an_endpoint_that_is_down_tens_of_requests() {
    for latency in [Duration::ZERO, MILLISECOND, 100 * MILLISECOND] {
        for reply in [Reply::Refused, Reply::Status(503, None)] {
            let server = Server::new(move |_| (latency, reply));
            // As many at a time as a cache allows.
            let endpoint = ConcurrencyLimit::new(server.endpoint(), 64);
            let start = Instant::now();
            let tokens = (0..1000).map(|number| {
                let cache = cache(&endpoint, &format!("tenant-{number}"));
                async move { (cache.token().await.unwrap_err(), start.elapsed()) }
            });

            let outcomes = join_all(tokens).await;

            let requests = server.seen().len();
            assert!(requests < 150, "{requests} requests, {latency:?}");
            for (error, waited) in outcomes {
                let is_why = match reply {
                    Reply::Refused => error.to_string().ends_with("failed: connection refused"),
                    _ => error.status().is_some_and(|status| status == 503),
                };
                assert!(is_why, "{error}");
                assert!(waited < 10 * SECOND, "{waited:?}, {latency:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_tenants_get_tokens_within_seconds_after_an_outage() {
    let is_down = Arc::new(Mutex::new(true));
    let server = {
        let is_down = Arc::clone(&is_down);
        Server::new(move |_| match *is_down.lock().unwrap() {
            true => (MILLISECOND, Reply::Refused),
            false => (100 * MILLISECOND, Reply::Token),
        })
    };
    let endpoint = server.endpoint();
    let tenants: Vec<_> = (0..1000).map(|number| format!("tenant-{number}")).collect();
    for round in 0..30 {
        for tenant in tenants.iter().skip(round).step_by(30) {
            let _ = endpoint.clone().oneshot(of(tenant)).await;
        }
        sleep(SECOND).await;
    }
    let during = server.seen().len();
    assert!(during < 30 * 4, "{during} requests in 30 s");

    *is_down.lock().unwrap() = false;
    let up = Instant::now();
    let tokens = tenants.iter().map(|tenant| {
        let endpoint = endpoint.clone();
        async move {
            while endpoint.clone().oneshot(of(tenant)).await.is_err() {
                sleep(200 * MILLISECOND).await;
            }
            up.elapsed()
        }
    });
    let waited = join_all(tokens).await.into_iter().max().unwrap();
    assert!(waited < 3 * SECOND, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_key_alone_makes_all_attempts_of_its_token_request() {
    for reply in [
        Reply::Refused,
        Reply::Status(500, None),
        Reply::Status(503, Some(2)),
        Reply::Status(429, Some(2)),
    ] {
        let server = Server::new(move |_| (MILLISECOND, reply));
        let cache = cache(&server.endpoint(), "a");

        cache.token().await.unwrap_err();

        assert_eq!(server.seen().len(), 3, "{reply:?}");
    }
    let server = Server::new(|_| (MILLISECOND, Reply::Status(429, None)));
    cache(&server.endpoint(), "a").token().await.unwrap_err();
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn reset_ends_the_pause_of_the_key_that_caused_it() {
    let server = Server::new(|_| (MILLISECOND, Reply::Status(429, Some(120))));
    let cache = cache(&server.endpoint(), "a");
    cache.token().await.unwrap_err();
    let before = server.seen().len();

    cache.reset();
    cache.token().await.unwrap_err();

    assert!(server.seen().len() > before);
}

#[tokio::test(start_paused = true)]
async fn too_many_requests_pause_other_keys_of_the_client_but_no_other_client() {
    for (retry_after, pause) in [
        (Some(30), 30 * SECOND),
        (None, SECOND),
        (Some(0), SECOND),
        // A Unix time.
        (Some(1_764_324_000), SECOND),
    ] {
        let server = Server::new(move |request: &Seen| match &*request.scope {
            "refused" => (Duration::ZERO, Reply::Status(429, retry_after)),
            _ => (Duration::ZERO, Reply::Token),
        });
        let endpoint = server.endpoint();
        let request = |client: &str, scope: &str| {
            let parameters = TokenParameters::default().with_tenant(client);
            endpoint
                .clone()
                .oneshot(TokenRequest::new(parameters.with_scope(scope)))
        };
        let first = request("a", "refused").await.unwrap_err();
        assert_eq!(server.seen().len(), 1);

        advance(pause / 2).await;
        let second = request("a", "other").await.unwrap_err();
        assert_eq!(second.to_string(), first.to_string());
        assert_eq!(second.retry_after(), Some(pause - pause / 2));
        assert_eq!(server.seen().len(), 1, "not sent");

        request("b", "other").await.unwrap();
        assert_eq!(server.seen().len(), 2, "another client is not paused");

        advance(pause - pause / 2 - MILLISECOND).await;
        request("a", "other").await.unwrap_err();
        advance(MILLISECOND).await;
        request("a", "other").await.unwrap();
        assert_eq!(server.seen().len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_of_a_5xx_pauses_the_client_and_that_of_a_permanent_error_nobody() {
    for (status, is_paused) in [(503, true), (401, false), (400, false)] {
        let server = Server::new(move |request: &Seen| match &*request.scope {
            "refused" => (Duration::ZERO, Reply::Status(status, Some(30))),
            _ => (Duration::ZERO, Reply::Token),
        });
        let endpoint = server.endpoint();
        let request = |scope: &str| {
            let parameters = TokenParameters::default().with_scope(scope);
            endpoint.clone().oneshot(TokenRequest::new(parameters))
        };
        request("refused").await.unwrap_err();
        sleep(SECOND).await;

        assert_eq!(request("other").await.is_err(), is_paused, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn error_of_an_origin_names_the_client_that_gets_it() {
    let server = Server::new(|_| (MILLISECOND, Reply::Status(503, Some(30))));
    let endpoint = server.endpoint();
    endpoint.clone().oneshot(of("a")).await.unwrap_err();

    let error = endpoint.oneshot(of("b")).await.unwrap_err();

    assert_eq!(server.seen().len(), 1);
    assert_eq!(error.client_id(), Some("id-b"));
    assert_eq!(error.endpoint_host(), Some("auth.example"));
    assert_eq!(
        error.to_string(),
        "token endpoint auth.example could not serve client \"id-b\": 503"
    );
    assert_eq!(
        error.retry_after(),
        None,
        "the server asked client a to wait"
    );
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_the_probe_and_share_its_end() {
    for (reply, requests) in [
        (Reply::Refused, 2),
        // All others are sent as well.
        (Reply::Token, 12),
        (Reply::Status(401, None), 12),
    ] {
        let answers = Arc::new(Mutex::new(vec![
            (SECOND, reply),
            (MILLISECOND, Reply::Refused),
        ]));
        let server = Server::new(move |_| {
            let next = answers.lock().unwrap().pop();
            next.unwrap_or((MILLISECOND, reply))
        });
        let endpoint = server.endpoint();
        endpoint.clone().oneshot(of("first")).await.unwrap_err();
        sleep(20 * MILLISECOND).await;

        let probe = tokio::spawn(endpoint.clone().oneshot(of("probe")));
        settle().await;
        // Also another cache with the same key.
        let tenants = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "probe"];
        let waiting = tenants.map(|tenant| tokio::spawn(endpoint.clone().oneshot(of(tenant))));
        settle().await;
        assert_eq!(server.seen().len(), 2, "one probe at a time");

        let first = probe.await.unwrap();
        for waiting in join_all(waiting).await {
            let outcome = waiting.unwrap();
            assert_eq!(outcome.is_ok(), first.is_ok());
        }
        assert_eq!(server.seen().len(), requests, "{reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_probe_hands_over_to_a_waiting_request() {
    let answers = Arc::new(Mutex::new(vec![(MILLISECOND, Reply::Refused)]));
    let server = Server::new(move |_| {
        let next = answers.lock().unwrap().pop();
        next.unwrap_or((SECOND, Reply::Token))
    });
    let endpoint = server.endpoint();
    endpoint.clone().oneshot(of("first")).await.unwrap_err();
    sleep(20 * MILLISECOND).await;
    let probe = tokio::spawn(endpoint.clone().oneshot(of("probe")));
    settle().await;
    let waiting: Vec<JoinHandle<_>> = (0..10)
        .map(|number| tokio::spawn(endpoint.clone().oneshot(of(&format!("{number}")))))
        .collect();
    settle().await;

    probe.abort();
    settle().await;
    assert_eq!(server.seen().len(), 3, "one of them is sent");

    for waiting in join_all(waiting).await {
        waiting.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn probe_without_an_answer_holds_up_others_for_five_seconds() {
    let answers = Arc::new(Mutex::new(vec![
        (3600 * SECOND, Reply::Refused),
        (MILLISECOND, Reply::Refused),
    ]));
    let server = Server::new(move |_| {
        let next = answers.lock().unwrap().pop();
        next.unwrap_or((MILLISECOND, Reply::Token))
    });
    let endpoint = server.endpoint();
    endpoint.clone().oneshot(of("first")).await.unwrap_err();
    sleep(20 * MILLISECOND).await;
    let _probe = tokio::spawn(endpoint.clone().oneshot(of("probe")));
    settle().await;

    let start = Instant::now();
    endpoint.oneshot(of("other")).await.unwrap();

    assert_eq!(start.elapsed(), 5 * SECOND + MILLISECOND);
}

/// The firewall in front of the endpoint drops packets.
#[tokio::test(start_paused = true)]
async fn a_thousand_cold_tenants_cost_a_silent_endpoint_tens_of_requests() {
    let server = Server::new(|_| (3600 * SECOND, Reply::Refused));
    let endpoint = ConcurrencyLimit::new(server.endpoint(), 64);
    let tokens = (0..1000).map(|number| {
        let cache = cache(&endpoint, &format!("tenant-{number}"));
        async move { cache.token().await.unwrap_err() }
    });

    for error in join_all(tokens).await {
        assert!(error.is_timeout(), "{error}");
    }

    let requests = server.seen().len();
    assert!(requests < 100, "{requests}");
}

#[tokio::test(start_paused = true)]
async fn one_key_that_always_fails_does_not_pause_the_others() {
    let server = Server::new(|request: &Seen| match &*request.client {
        "id-broken" => (MILLISECOND, Reply::Status(500, None)),
        _ => (MILLISECOND, Reply::Token),
    });
    let endpoint = server.endpoint();
    for _ in 0..100 {
        endpoint.clone().oneshot(of("broken")).await.unwrap_err();
        sleep(10 * MILLISECOND).await;
    }

    endpoint.oneshot(of("other")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn other_origins_and_other_endpoints_share_nothing() {
    let server = Server::new(|request: &Seen| match &*request.origin {
        "https://down.example" => (MILLISECOND, Reply::Refused),
        _ => (MILLISECOND, Reply::Token),
    });
    let down = server.endpoint().url("https://down.example/token").unwrap();
    let up = down.clone().url("https://down.example:8443/token").unwrap();
    down.clone().oneshot(of("a")).await.unwrap_err();
    down.clone().oneshot(of("b")).await.unwrap_err();
    assert_eq!(server.seen().len(), 1);

    let other_path = down.clone().url("https://DOWN.example:443/other").unwrap();
    other_path.oneshot(of("b")).await.unwrap_err();
    assert_eq!(server.seen().len(), 1, "the same origin");

    up.oneshot(of("b")).await.unwrap();
    let separate = server.endpoint().url("https://down.example/token").unwrap();
    separate.oneshot(of("b")).await.unwrap_err();
    assert_eq!(server.seen().len(), 3);
}

/// An error of an HTTP client that uses the endpoint when it is dropped.
struct UsesEndpoint(Mutex<TokenEndpoint>);

impl fmt::Debug for UsesEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UsesEndpoint")
    }
}

impl fmt::Display for UsesEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("connection refused")
    }
}

impl std::error::Error for UsesEndpoint {}

impl Drop for UsesEndpoint {
    fn drop(&mut self) {
        let endpoint = self.0.lock().unwrap().clone();
        let _ = endpoint.oneshot(of("drop")).now_or_never();
    }
}

/// A waker that uses the endpoint.
struct WakerUsesEndpoint(Mutex<TokenEndpoint>);

impl Wake for WakerUsesEndpoint {
    fn wake(self: Arc<Self>) {
        let endpoint = self.0.lock().unwrap().clone();
        let _ = endpoint.oneshot(of("waker")).now_or_never();
    }
}

/// Otherwise, this test deadlocks.
#[tokio::test(start_paused = true)]
async fn no_user_code_runs_under_the_lock_of_a_budget() {
    let endpoint: Arc<Mutex<Option<TokenEndpoint>>> = Arc::default();
    let http = {
        let endpoint = Arc::clone(&endpoint);
        service_fn(move |request: Request<Full<Bytes>>| {
            let endpoint = endpoint.lock().unwrap().clone().unwrap();
            async move {
                match &*Seen::read(request).await.client {
                    "up" => return Reply::Token.response(),
                    "slow" => sleep(SECOND).await,
                    _ => {}
                }
                Err(BoxError::from(UsesEndpoint(Mutex::new(endpoint))))
            }
        })
    };
    let auth = ClientAuth::from_fn(|request| async move {
        let tenant = request.parameters.tenant().unwrap();
        Ok::<_, Error>(ClientAuth::none(tenant))
    });
    let tokens = TokenEndpoint::new(http, "https://auth.example/token", auth).unwrap();
    *endpoint.lock().unwrap() = Some(tokens.clone());
    let call = |tenant| tokens.clone().oneshot(of(tenant));

    // The second error replaces the first, and a token ends the outage.
    for tenant in ["down", "down", "other", "up"] {
        drop(call(tenant).await);
        sleep(20 * MILLISECOND).await;
    }
    // A probe that fails and one that is dropped wake those who wait.
    for is_dropped in [false, true] {
        drop(call("down").await);
        sleep(100 * MILLISECOND).await;
        let probe = tokio::spawn(call("slow"));
        settle().await;
        let waker = Waker::from(Arc::new(WakerUsesEndpoint(Mutex::new(tokens.clone()))));
        let mut waiting = Box::pin(call("waiting"));
        let mut context = Context::from_waker(&waker);
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        settle().await;
        match is_dropped {
            true => probe.abort(),
            false => sleep(SECOND).await,
        }
        settle().await;
        drop(probe.await);
    }
    *endpoint.lock().unwrap() = None;
}

// --- Random histories ---

/// A token request of a random history.
#[derive(Clone, Debug)]
struct Planned {
    /// After the previous one.
    pause: Duration,
    origin: usize,
    client: usize,
    scope: usize,
    latency: Duration,
    reply: Reply,
    dropped_after: Option<Duration>,
}

fn planned() -> impl Strategy<Value = Planned> {
    let milliseconds = |longest: u64| (0..=longest).prop_map(Duration::from_millis);
    let pause = prop_oneof![
        Just(Duration::ZERO),
        milliseconds(30),
        milliseconds(1500),
        milliseconds(8000)
    ];
    let latency = prop_oneof![
        Just(Duration::ZERO),
        milliseconds(50),
        milliseconds(2000),
        milliseconds(20_000)
    ];
    let reply = prop_oneof![
        3 => Just(Reply::Token),
        4 => Just(Reply::Refused),
        2 => Just(Reply::Status(500, None)),
        1 => Just(Reply::Status(503, Some(3))),
        1 => Just(Reply::Status(429, None)),
        1 => Just(Reply::Status(429, Some(10))),
        1 => Just(Reply::Status(401, None)),
    ];
    let dropped_after = prop_oneof![
        3 => Just(None),
        1 => milliseconds(100).prop_map(Some),
        1 => milliseconds(12_000).prop_map(Some)
    ];
    let which = (0..2_usize, 0..3_usize, 0..3_usize);
    (pause, which, latency, reply, dropped_after).prop_map(
        |(pause, (origin, client, scope), latency, reply, dropped_after)| Planned {
            pause,
            origin,
            client,
            scope,
            latency,
            reply,
            dropped_after,
        },
    )
}

/// What the server knows about its own state.
#[derive(Default)]
struct Observer {
    /// Origins whose last answer was a failure, with those requests in flight that arrived since.
    failing: HashMap<String, Vec<(task::Id, Instant)>>,
    /// Until when the server asked clients of an origin to wait.
    pauses: HashMap<(String, String), Instant>,
    sent: HashSet<task::Id>,
    was_silent: bool,
}

impl Observer {
    fn arrived(&mut self, seen: &Seen) {
        let now = Instant::now();
        self.sent.insert(task::id());
        if let Some(probes) = self.failing.get_mut(&seen.origin) {
            let is_overdue = |started_at: Instant| now >= started_at + 5 * SECOND;
            assert!(
                probes.iter().all(|(_, started_at)| is_overdue(*started_at)),
                "two probes at a time"
            );
            probes.push((task::id(), now));
        }
    }

    fn answered(&mut self, seen: &Seen, reply: Reply) {
        let now = Instant::now();
        match reply {
            Reply::Refused | Reply::Status(500.., _) => {
                let probes = self.failing.entry(seen.origin.clone()).or_default();
                probes.retain(|(id, _)| *id != task::id());
            }
            _ => drop(self.failing.remove(&seen.origin)),
        }
        let pause = match reply {
            Reply::Status(_, Some(seconds)) => Duration::from_secs(seconds),
            Reply::Status(429, None) => SECOND,
            _ => return,
        };
        let client = (seen.origin.clone(), seen.client.clone());
        let ends_at = self.pauses.entry(client).or_insert(now);
        *ends_at = (now + pause).max(*ends_at);
    }

    fn dropped(&mut self, seen: &Seen, arrived_at: Instant) {
        self.was_silent |= Instant::now() >= arrived_at + 5 * SECOND;
        if let Some(probes) = self.failing.get_mut(&seen.origin) {
            probes.retain(|(id, _)| *id != task::id());
        }
        // Probes that follow each other and are dropped count together.
        self.was_silent |= self.failing.contains_key(&seen.origin);
    }

    /// Asserts that there was a reason not to send the request.
    fn refused(&self, origin: &str, client: &str, error: &Error) {
        let is_paused = || {
            let client = (origin.to_owned(), client.to_owned());
            let ends_at = self.pauses.get(&client);
            ends_at.is_some_and(|ends_at| Instant::now() < *ends_at)
        };
        match error.status().map(|status| status.as_u16()) {
            Some(429) => assert!(is_paused(), "{client} is refused but not paused"),
            Some(503) => assert!(is_paused() || self.failing.contains_key(origin)),
            Some(500) => assert!(self.failing.contains_key(origin)),
            None if error.is_transport() => assert!(self.failing.contains_key(origin)),
            None if error.is_timeout() => assert!(self.was_silent),
            _ => panic!("refused for no reason: {error}"),
        }
    }
}

/// A request in flight; it counts as dropped unless it is answered.
struct InFlight {
    observer: Arc<Mutex<Observer>>,
    seen: Seen,
    arrived_at: Instant,
    is_answered: bool,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.is_answered && !std::thread::panicking() {
            let mut observer = self.observer.lock().unwrap();
            observer.dropped(&self.seen, self.arrived_at);
        }
    }
}

async fn run(history: Vec<Planned>) {
    let observer: Arc<Mutex<Observer>> = Arc::default();
    let plans: Arc<Mutex<HashMap<task::Id, Planned>>> = Arc::default();
    let http = {
        let (observer, plans) = (Arc::clone(&observer), Arc::clone(&plans));
        service_fn(move |request: Request<Full<Bytes>>| {
            let (observer, plans) = (Arc::clone(&observer), Arc::clone(&plans));
            async move {
                let seen = Seen::read(request).await;
                observer.lock().unwrap().arrived(&seen);
                let mut in_flight = InFlight {
                    observer: Arc::clone(&observer),
                    seen,
                    arrived_at: Instant::now(),
                    is_answered: false,
                };
                let plan = plans.lock().unwrap()[&task::id()].clone();
                if plan.latency > Duration::ZERO {
                    sleep(plan.latency).await;
                }
                in_flight.is_answered = true;
                let mut observer = observer.lock().unwrap();
                observer.answered(&in_flight.seen, plan.reply);
                plan.reply.response()
            }
        })
    };
    let url = |request: TokenRequest| async move {
        let tenant = request.parameters.tenant().unwrap();
        let (origin, _) = tenant.split_once(' ').unwrap();
        Ok::<_, Error>(format!("{origin}/token"))
    };
    let auth = ClientAuth::from_fn(|request| async move {
        let tenant = request.parameters.tenant().unwrap();
        let (_, client) = tenant.split_once(' ').unwrap();
        Ok::<_, Error>(ClientAuth::none(client))
    });
    let endpoint = TokenEndpoint::with_url_fn(http, url, auth).unwrap();

    let mut calls = Vec::new();
    for plan in history {
        sleep(plan.pause).await;
        let (origin, client) = (
            format!("https://{}.example", plan.origin),
            format!("id-{}", plan.client),
        );
        let parameters = TokenParameters::default()
            .with_tenant(format!("{origin} {client}"))
            .with_scope(plan.scope.to_string());
        let (endpoint, observer) = (endpoint.clone(), Arc::clone(&observer));
        let plans = Arc::clone(&plans);
        calls.push(tokio::spawn(async move {
            plans.lock().unwrap().insert(task::id(), plan.clone());
            let call = endpoint.oneshot(TokenRequest::new(parameters));
            let never = 100_000 * SECOND;
            let Ok(outcome) = timeout(plan.dropped_after.unwrap_or(never), call).await else {
                assert!(plan.dropped_after.is_some(), "waits forever");
                return;
            };
            let observer = observer.lock().unwrap();
            match outcome {
                Err(error) if !observer.sent.contains(&task::id()) => {
                    observer.refused(&origin, &client, &error);
                }
                outcome => assert_eq!(outcome.is_ok(), plan.reply == Reply::Token),
            }
        }));
    }
    for call in calls {
        call.await.unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_never_have_two_probes_or_a_refusal_without_a_reason(
        history in vec(planned(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(history));
    }
}

// --- The server ---

#[derive(Clone, Copy, Debug, PartialEq)]
enum Reply {
    Token,
    /// With `Retry-After` in seconds.
    Status(u16, Option<u64>),
    Refused,
}

/// A token request, as the server sees it.
#[derive(Clone, Debug)]
struct Seen {
    origin: String,
    client: String,
    scope: String,
}

type Answer = dyn Fn(&Seen) -> (Duration, Reply) + Send + Sync;

/// Answers as a function says, and records the token requests.
#[derive(Clone)]
struct Server {
    answer: Arc<Answer>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    fn new(answer: impl Fn(&Seen) -> (Duration, Reply) + Send + Sync + 'static) -> Self {
        Self {
            answer: Arc::new(answer),
            seen: Arc::default(),
        }
    }

    /// Each tenant has its own client id.
    fn endpoint(&self) -> TokenEndpoint {
        let server = self.clone();
        let http = service_fn(move |request: Request<Full<Bytes>>| {
            let server = server.clone();
            async move {
                let seen = Seen::read(request).await;
                server.seen.lock().unwrap().push(seen.clone());
                let (latency, reply) = (server.answer)(&seen);
                if latency > Duration::ZERO {
                    sleep(latency).await;
                }
                reply.response()
            }
        });
        let auth = ClientAuth::from_fn(|request| async move {
            let tenant = request.parameters.tenant().unwrap_or_default();
            Ok::<_, Error>(ClientAuth::none(format!("id-{tenant}")))
        });
        TokenEndpoint::new(http, "https://auth.example/token", auth).unwrap()
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Seen {
    async fn read(request: Request<Full<Bytes>>) -> Self {
        let uri: &Uri = request.uri();
        let origin = format!(
            "{}://{}",
            uri.scheme_str().unwrap(),
            uri.authority().unwrap()
        );
        let form = request.into_body().collect().await.unwrap().to_bytes();
        let form: HashMap<_, _> = form_urlencoded::parse(&form).into_owned().collect();
        Self {
            origin,
            client: form["client_id"].clone(),
            scope: form.get("scope").cloned().unwrap_or_default(),
        }
    }
}

impl Reply {
    fn response(self) -> Result<Response<String>, BoxError> {
        match self {
            Self::Token => Ok(Response::new(r#"{"access_token":"token-1"}"#.to_owned())),
            Self::Refused => Err(io::Error::from(io::ErrorKind::ConnectionRefused).into()),
            Self::Status(status, retry_after) => {
                let mut response = Response::builder().status(status);
                if let Some(seconds) = retry_after {
                    response = response.header(RETRY_AFTER, seconds);
                }
                Ok(response.body(String::new())?)
            }
        }
    }
}

fn of(tenant: &str) -> TokenRequest {
    TokenRequest::new(TokenParameters::default().with_tenant(tenant))
}

fn cache<S>(token_service: &S, tenant: &str) -> TokenCache
where
    S: Service<TokenRequest, Response = AccessToken, Error = Error, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
{
    TokenCache::builder()
        .parameters(TokenParameters::default().with_tenant(tenant))
        .build(token_service.clone())
}

async fn settle() {
    for _ in 0..100 {
        yield_now().await;
    }
}
