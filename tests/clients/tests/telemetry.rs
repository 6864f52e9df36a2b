//! The metrics and events of the features `metrics` and `tracing`.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use http_body_util::Full;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, BoxError, ClientAuth, ClientCredentialsLayer, Error, TokenCache, TokenEndpoint,
    TokenRequest, replay::CloneBody,
};
use tracing::{
    Dispatch, Level, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::NoSubscriber,
};
use tracing_subscriber::{Layer as _, layer::Context, layer::SubscriberExt, registry::LookupSpan};

const LATENCY: Duration = Duration::from_millis(80);

/// A token service that issues "token-1", "token-2" and so on after a while, or fails.
#[derive(Clone, Default)]
struct Issuer {
    issued: Arc<AtomicUsize>,
    is_down: Arc<Mutex<bool>>,
    cache_name: Option<&'static str>,
}

impl Issuer {
    fn cache(&self) -> TokenCache {
        let issuer = self.clone();
        let mut builder = TokenCache::builder().jitter(0.0);
        if let Some(name) = self.cache_name {
            builder = builder.name(name);
        }
        builder.build(service_fn(move |_: TokenRequest| {
            let issuer = issuer.clone();
            async move {
                tokio::time::sleep(LATENCY).await;
                if *issuer.is_down.lock().unwrap() {
                    return Err(Error::permanent("s3cret: the tenant is disabled"));
                }
                let number = issuer.issued.fetch_add(1, Ordering::SeqCst) + 1;
                let token = AccessToken::new(format!("s3cret-token-{number}"))?;
                Ok(token.with_lifetime(Duration::from_secs(1800)))
            }
        }))
    }

    fn set_down(&self, is_down: bool) {
        *self.is_down.lock().unwrap() = is_down;
    }
}

/// An API that accepts tokens with a number in the range.
fn api(
    accepted: std::ops::RangeInclusive<usize>,
) -> impl Service<Request<String>, Response = Response<String>, Error = BoxError, Future: Send> + Clone
{
    service_fn(move |request: Request<String>| {
        let token = request.headers().get(AUTHORIZATION);
        let token = token.and_then(|token| token.to_str().ok());
        let number = token.and_then(|token| token.rsplit('-').next()?.parse().ok());
        let is_accepted = number.is_some_and(|number| accepted.contains(&number));
        let status = match is_accepted {
            true => StatusCode::OK,
            false => StatusCode::UNAUTHORIZED,
        };
        async move {
            let mut response = Response::new(String::new());
            *response.status_mut() = status;
            Ok(response)
        }
    })
}

async fn call<S>(layer: &ClientCredentialsLayer<CloneBody>, api: S) -> u16
where
    S: Service<Request<String>, Response = Response<String>, Error = BoxError> + Clone,
{
    let request = Request::get("https://api.example/")
        .body(String::new())
        .unwrap();
    match layer.layer(api).oneshot(request).await {
        Ok(response) => response.status().as_u16(),
        Err(_) => 0,
    }
}

/// Produces one event of each kind: a first token, a hit, a refresh, a renewal, a cool-down, an
/// outage.
async fn produce_events(issuer: &Issuer) {
    let layer = ClientCredentialsLayer::with_cache(issuer.cache());
    let minutes = |minutes: u64| tokio::time::advance(Duration::from_secs(60 * minutes));

    let both = tokio::join!(call(&layer, api(1..=1)), call(&layer, api(1..=1)));
    assert_eq!(both, (200, 200), "two calls wait for the first token");
    assert_eq!(call(&layer, api(1..=1)).await, 200, "a fresh token");
    minutes(26).await;
    assert_eq!(call(&layer, api(1..=1)).await, 200, "due for refresh");
    tokio::time::sleep(2 * LATENCY).await;
    assert_eq!(
        call(&layer, api(3..=3)).await,
        200,
        "a renewal and a replay"
    );
    assert_eq!(call(&layer, api(9..=9)).await, 401, "after a replay");
    assert_eq!(call(&layer, api(9..=9)).await, 401, "within the cool-down");
    issuer.set_down(true);
    minutes(60).await;
    assert_eq!(
        call(&layer, api(4..=4)).await,
        0,
        "the token expired and cannot be replaced"
    );
    assert_eq!(
        call(&layer, api(4..=4)).await,
        0,
        "the error is returned at once"
    );
    let elsewhere = Request::get("http://api.example/")
        .body(String::new())
        .unwrap();
    layer.layer(api(4..=4)).oneshot(elsewhere).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn metrics_count_what_happened() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);

    produce_events(&Issuer::default()).await;

    let expected = "\
fail_fast_total{} = 1
rejections_after_replay_total{} = 1
rejections_total{action=cooling_down} = 2
rejections_total{action=withheld} = 2
replays_total{} = 2
requests_without_token_total{reason=plain_http} = 1
token_request_duration_seconds{cause=due_for_refresh,outcome=token} = 1 of 0.08
token_request_duration_seconds{cause=expired,outcome=token_service} = 1 of 0.08
token_request_duration_seconds{cause=first,outcome=token} = 1 of 0.08
token_request_duration_seconds{cause=rejected,outcome=token} = 2 of 0.08
token_requests_total{cause=due_for_refresh,outcome=token} = 1
token_requests_total{cause=expired,outcome=token_service} = 1
token_requests_total{cause=first,outcome=token} = 1
token_requests_total{cause=rejected,outcome=token} = 2
wait_duration_seconds{outcome=token_service} = 1 of 0.08
wait_duration_seconds{outcome=token} = 4 of 0.08
waiters{} = 0
";
    let metrics = text(&snapshotter);
    let (expiry, rest): (Vec<_>, Vec<_>) = metrics
        .lines()
        .partition(|line| line.starts_with("token_expiry"));
    assert_eq!(rest.join("\n") + "\n", expected);
    let seconds: f64 = expiry[0].rsplit(' ').next().unwrap().parse().unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    // The wall clock is not paused, so the last token still has most of its lifetime.
    let left = seconds - now.as_secs_f64();
    assert!((1700.0..=1790.0).contains(&left), "{left} s left");
}

#[tokio::test(start_paused = true)]
async fn calls_with_a_fresh_token_emit_nothing() {
    let layer = ClientCredentialsLayer::with_cache(Issuer::default().cache());
    call(&layer, api(1..=1)).await;
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let log = Log::default();
    let _tracing = log.subscribe();

    for _ in 0..10 {
        assert_eq!(call(&layer, api(1..=1)).await, 200);
    }

    assert_eq!(text(&snapshotter), "");
    assert!(log.lines(Level::TRACE).is_empty());
}

#[tokio::test(start_paused = true)]
async fn cancelled_waiter_no_longer_counts_as_waiting() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let cache = Issuer::default().cache();

    let cancelled = tokio::time::timeout(LATENCY / 2, cache.token()).await;

    assert!(cancelled.is_err());
    assert!(text(&snapshotter).contains("waiters{} = 0\n"));
}

#[tokio::test(start_paused = true)]
async fn events_describe_what_happened_without_secrets() {
    let log = Log::default();
    let _tracing = log.subscribe();

    produce_events(&Issuer::default()).await;

    let expected = "\
DEBUG token received | token_request cause=first attempts=1 waiters=2 outcome=token
DEBUG token received | token_request cause=due_for_refresh attempts=1 waiters=0 outcome=token
INFO API rejected the token action=withheld
DEBUG token received | token_request cause=rejected attempts=1 waiters=1 outcome=token
DEBUG sending the request again with another token token_renewed=true
INFO API rejected the token action=withheld
DEBUG token received | token_request cause=rejected attempts=1 waiters=1 outcome=token
DEBUG sending the request again with another token token_renewed=true
DEBUG API rejected the token action=cooling_down
DEBUG API rejected the replay as well
DEBUG API rejected the token action=cooling_down
DEBUG attempt of a token request failed attempt=1 error.type=token_service error=token service failed | token_request cause=expired
WARN token request failed cause=expired error.type=token_service error=token service failed | token_request cause=expired attempts=1 waiters=1 outcome=token_service error.type=token_service
DEBUG returning the error of the last token request without a new one error.type=token_service
DEBUG sending the request without a token reason=plain_http
";
    let lines = log.lines(Level::TRACE);
    assert_eq!(lines.join("\n") + "\n", expected);
    assert!(!lines.concat().contains("s3cret"));
}

#[tokio::test(start_paused = true)]
async fn every_event_and_span_names_the_cache() {
    let log = Log::default();
    let _tracing = log.subscribe();

    produce_events(&Issuer {
        cache_name: Some("orders"),
        ..Issuer::default()
    })
    .await;

    let expected = "\
DEBUG token received | token_request cache=orders cause=first attempts=1 waiters=2 outcome=token
DEBUG token received | token_request cache=orders cause=due_for_refresh attempts=1 waiters=0 outcome=token
INFO API rejected the token cache=orders action=withheld
DEBUG token received | token_request cache=orders cause=rejected attempts=1 waiters=1 outcome=token
DEBUG sending the request again with another token cache=orders token_renewed=true
INFO API rejected the token cache=orders action=withheld
DEBUG token received | token_request cache=orders cause=rejected attempts=1 waiters=1 outcome=token
DEBUG sending the request again with another token cache=orders token_renewed=true
DEBUG API rejected the token cache=orders action=cooling_down
DEBUG API rejected the replay as well cache=orders
DEBUG API rejected the token cache=orders action=cooling_down
DEBUG attempt of a token request failed cache=orders attempt=1 error.type=token_service error=token service failed | token_request cache=orders cause=expired
WARN token request failed cache=orders cause=expired error.type=token_service error=cache \"orders\": token service failed | token_request cache=orders cause=expired attempts=1 waiters=1 outcome=token_service error.type=token_service
DEBUG returning the error of the last token request without a new one cache=orders error.type=token_service
DEBUG sending the request without a token cache=orders reason=plain_http
";
    assert_eq!(log.lines(Level::TRACE).join("\n") + "\n", expected);
}

/// Once for each call: one that waited for the token request, and one that came during the back-off.
#[tokio::test(start_paused = true)]
async fn token_that_is_used_as_a_last_resort_is_logged() {
    let log = Log::default();
    let _tracing = log.subscribe();
    let issuer = Issuer {
        cache_name: Some("orders"),
        ..Issuer::default()
    };
    let layer = ClientCredentialsLayer::with_cache(issuer.cache());
    assert_eq!(call(&layer, api(1..=1)).await, 200);
    tokio::time::advance(Duration::from_secs(1795)).await;
    issuer.set_down(true);
    let before = log.lines(Level::TRACE).len();

    assert_eq!(call(&layer, api(1..=1)).await, 200, "within the margin");
    assert_eq!(call(&layer, api(1..=1)).await, 200, "during the back-off");

    let expected = "DEBUG using an expired token until its stated end cache=orders";
    let lines = &log.lines(Level::TRACE)[before..];
    let [attempt, request, uses @ ..] = lines else {
        panic!("{lines:?}");
    };
    assert!(attempt.starts_with("DEBUG attempt of a token request failed"));
    assert!(request.starts_with("WARN token request failed"));
    assert_eq!(uses, [expected; 2]);
}

/// No matter how many calls it rejects.
#[tokio::test(start_paused = true)]
async fn rejection_is_logged_once_at_info() {
    let log = Log::default();
    let _tracing = log.subscribe();
    let layer = ClientCredentialsLayer::with_cache(Issuer::default().cache());
    call(&layer, api(1..=1)).await;

    let calls = (0..100).map(|_| call(&layer, api(2..=2)));
    let statuses = futures_util::future::join_all(calls).await;

    assert_eq!(statuses, [200; 100]);
    let rejections = log.lines(Level::INFO);
    assert_eq!(rejections, ["INFO API rejected the token action=withheld"]);
}

#[tokio::test(start_paused = true)]
async fn healthy_service_is_silent_at_info() {
    let log = Log::default();
    let _tracing = log.subscribe();
    let layer = ClientCredentialsLayer::with_cache(Issuer::default().cache());

    for _ in 0..100 {
        assert_eq!(call(&layer, api(1..=100)).await, 200);
        tokio::time::advance(Duration::from_secs(60)).await;
        tokio::time::sleep(2 * LATENCY).await;
    }

    assert!(log.lines(Level::DEBUG).len() > 3, "it was refreshed");
    assert_eq!(log.lines(Level::INFO), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn token_request_that_is_dropped_has_the_outcome_lost() {
    let log = Log::default();
    let _tracing = log.subscribe();
    let cache = Issuer::default().cache();

    let cancelled = tokio::time::timeout(LATENCY / 2, cache.token()).await;
    assert!(cancelled.is_err());
    drop(cache);
    tokio::time::sleep(LATENCY).await;

    let lines = log.lines(Level::TRACE);
    assert_eq!(lines.len(), 1);
    assert!(
        lines[0].ends_with("cause=first attempts=0 outcome=lost"),
        "{}",
        lines[0]
    );
}

#[tokio::test(start_paused = true)]
async fn span_names_the_endpoint_and_the_client_and_an_event_the_missing_scopes() {
    let log = Log::default();
    let _tracing = log.subscribe();
    let http = service_fn(|_: Request<Full<Bytes>>| async {
        let reply = r#"{"access_token":"secret-token","scope":"orders.read"}"#;
        Ok::<_, BoxError>(Response::new(Full::new(Bytes::from(reply))))
    });
    let auth = ClientAuth::client_secret_post("my-client", "s3cret");
    let tokens = TokenEndpoint::new(http, "https://auth.example/token", auth).unwrap();

    let cache = TokenCache::new(tokens.scope("orders.read orders.write orders.list"));
    cache.token().await.unwrap();

    let span = "token_request cause=first server.address=auth.example client_id=my-client";
    assert_eq!(
        log.lines(Level::TRACE),
        [
            format!(
                "INFO token has fewer scopes than requested \
                 missing=orders.write orders.list | {span}"
            ),
            format!("DEBUG token received | {span} attempts=1 waiters=1 outcome=token"),
        ]
    );
}

/// Formats all metrics, sorted, one per line.
fn text(snapshotter: &Snapshotter) -> String {
    let mut lines = Vec::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let key = key.key();
        let name = key.name().strip_prefix("client_credentials_").unwrap();
        let mut labels: Vec<_> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        labels.sort();
        let value = match value {
            DebugValue::Counter(count) => count.to_string(),
            DebugValue::Gauge(value) => value.to_string(),
            DebugValue::Histogram(values) => {
                let longest = values.iter().max().unwrap();
                // Timers of a paused runtime have a resolution of a millisecond.
                format!("{} of {:.2}", values.len(), longest.into_inner())
            }
        };
        lines.push(format!("{name}{{{}}} = {value}\n", labels.join(",")));
    }
    lines.sort();
    lines.concat()
}

/// Records each event with the fields that its span had at that time.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(Level, String)>>>);

/// A second subscriber, which receives nothing, for the duration of the tests.
///
/// With a single subscriber, `tracing` asks the current thread's subscriber whether a new event is
/// of interest, and caches the result for all threads. On a thread without a subscriber, as in a
/// test without a log, the result is no.
static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));

impl Log {
    fn subscribe(&self) -> tracing::subscriber::DefaultGuard {
        LazyLock::force(&SECOND);
        let subscriber = tracing_subscriber::registry().with(self.clone().with_filter(
            tracing_subscriber::filter::filter_fn(|metadata| {
                metadata.target().starts_with("tower_client_credentials")
            }),
        ));
        tracing::subscriber::set_default(subscriber)
    }

    /// Returns the lines at this level and above.
    fn lines(&self, level: Level) -> Vec<String> {
        let lines = self.0.lock().unwrap();
        let lines = lines.iter().filter(|(of, _)| *of <= level);
        lines.map(|(_, line)| line.clone()).collect()
    }
}

/// The fields of a span.
#[derive(Default)]
struct Fields(BTreeMap<usize, String>);

impl Fields {
    fn record(&mut self, fields: impl FnOnce(&mut dyn Visit)) {
        fields(self);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Skips a value that varies and one that is always the same.
        if !matches!(field.name(), "retry_after" | "otel.kind") {
            let text = match field.name() {
                "message" => format!("{value:?}"),
                name => format!("{name}={}", format!("{value:?}").trim_matches('"')),
            };
            self.0.insert(field.index(), text);
        }
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<_> = self.0.values().map(String::as_str).collect();
        f.write_str(&texts.join(" "))
    }
}

impl<S> tracing_subscriber::Layer<S> for Log
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, cx: Context<'_, S>) {
        let mut fields = Fields::default();
        fields.record(|fields| attributes.record(fields));
        cx.span(id).unwrap().extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, cx: Context<'_, S>) {
        let span = cx.span(id).unwrap();
        let mut extensions = span.extensions_mut();
        extensions
            .get_mut::<Fields>()
            .unwrap()
            .record(|fields| values.record(fields));
    }

    fn on_event(&self, event: &tracing::Event<'_>, cx: Context<'_, S>) {
        let mut fields = Fields::default();
        fields.record(|fields| event.record(fields));
        let metadata = event.metadata();
        let mut line = format!("{} {fields}", metadata.level());
        if let Some(span) = cx.event_span(event) {
            let extensions = span.extensions();
            let fields = extensions.get::<Fields>().unwrap();
            line += &format!(" | {} {fields}", span.name());
        }
        self.0.lock().unwrap().push((*metadata.level(), line));
    }
}
