//! The load, and what became of its calls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use benches::{ApiRequest, ApiResponse, ENDPOINT, Tokens, request};
use futures_util::future::{BoxFuture, poll_immediate};
use http::header::AUTHORIZATION;
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{Instant, interval, sleep},
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::{AccessToken, ClientCredentialsLayer};

/// How long a token lives; so short that 20 expiries take no longer than a minute.
pub(crate) const LIFETIME: Duration = Duration::from_secs(3);

/// How long the API takes.
pub(crate) const API: Duration = Duration::from_millis(5);

const PACE: Duration = Duration::from_millis(1);
const EXPIRIES: usize = 20;

/// What counts as around an expiry, before and after.
const AROUND: Duration = Duration::from_millis(500);

/// What one of the two ways to a token came to. Times are counted from the start.
pub(crate) struct Run {
    pub(crate) samples: Vec<Sample>,
    /// When the request for each token but the first began.
    pub(crate) expiries: Vec<Duration>,
}

pub(crate) struct Sample {
    /// When the call was due, which is earlier than when it was made if the machine was busy.
    pub(crate) due: Duration,
    pub(crate) latency: Duration,
    /// For a token, however short.
    pub(crate) waited: bool,
}

impl Run {
    /// How many milliseconds calls were due after each expiry, and how many they took.
    pub(crate) fn since_expiries(&self) -> impl Iterator<Item = (f64, f64)> {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
        self.expiries.iter().flat_map(move |expiry| {
            self.samples.iter().map(move |sample| {
                let since = milliseconds(sample.due) - milliseconds(*expiry);
                (since, milliseconds(sample.latency))
            })
        })
    }

    /// The latencies around the expiries, and those away from them. The start is neither.
    pub(crate) fn around_and_away(&self) -> (Vec<Duration>, Vec<Duration>) {
        let (around, away): (Vec<_>, Vec<_>) = self
            .samples
            .iter()
            .filter(|sample| sample.due > AROUND)
            .partition(|sample| {
                let mut expiries = self.expiries.iter();
                expiries.any(|expiry| expiry.abs_diff(sample.due) < AROUND)
            });
        let latencies = |samples: Vec<&Sample>| samples.iter().map(|s| s.latency).collect();
        (latencies(around), latencies(away))
    }
}

/// Makes the calls with the layer and, beside each, one with a token that never expires: what disturbs
/// the one disturbs the other.
pub(crate) async fn with_layer() -> Result<[Run; 2], BoxError> {
    let tokens = Tokens::living(ENDPOINT, LIFETIME);
    let constant = Tokens::new(Duration::ZERO);
    let ways = [Calls::with_layer(&tokens), Calls::on_demand(&constant)];
    let [layer, constant] = load(ways, &tokens).await?;
    let expiries = layer.expiries.clone();
    Ok([
        layer,
        Run {
            expiries,
            ..constant
        },
    ])
}

/// Makes the calls with a token that is fetched when a call finds it expired.
pub(crate) async fn on_demand() -> Result<Run, BoxError> {
    let tokens = Tokens::living(ENDPOINT, LIFETIME);
    let [on_demand] = load([Calls::on_demand(&tokens)], &tokens).await?;
    Ok(on_demand)
}

async fn load<const N: usize>(mut ways: [Calls; N], tokens: &Tokens) -> Result<[Run; N], BoxError> {
    // The load begins when the first call of each has its token.
    ways.iter_mut().for_each(|way| way.make(Instant::now()));
    sleep(2 * ENDPOINT).await;
    let mut ticks = interval(PACE);
    while tokens.asked() <= EXPIRIES {
        let due = ticks.tick().await;
        ways.iter_mut().for_each(|way| way.make(due));
    }
    let mut runs = Vec::new();
    for way in ways {
        runs.push(way.finish(tokens).await?);
    }
    runs.try_into().map_err(|_| "each way has a run".into())
}

type Response = BoxFuture<'static, Result<ApiResponse, BoxError>>;

struct Calls {
    start: Instant,
    make: Box<dyn Fn() -> Response>,
    /// How many requests came to the API.
    sent: Arc<AtomicU64>,
    made: JoinSet<Result<Sample, BoxError>>,
}

impl Calls {
    fn new(make: impl Fn() -> Response + 'static, sent: Arc<AtomicU64>) -> Self {
        Self {
            start: Instant::now(),
            make: Box::new(make),
            sent,
            made: JoinSet::new(),
        }
    }

    fn with_layer(tokens: &Tokens) -> Self {
        let sent = Arc::default();
        let service = ClientCredentialsLayer::new(tokens.service()).layer(api(&sent));
        let make = move || Box::pin(service.clone().oneshot(request(4))) as Response;
        Self::new(make, sent)
    }

    /// The usual cache of one's own: who finds the token expired fetches another, under the lock.
    fn on_demand(tokens: &Tokens) -> Self {
        let sent = Arc::default();
        let (api, tokens) = (api(&sent), tokens.clone());
        let current: Arc<Mutex<Option<(AccessToken, Instant)>>> = Arc::default();
        let make = move || {
            let (api, tokens, current) = (api.clone(), tokens.clone(), Arc::clone(&current));
            Box::pin(async move {
                let mut current = current.lock().await;
                let token = match &*current {
                    Some((token, expires_at)) if Instant::now() < *expires_at => token.clone(),
                    _ => {
                        let token = tokens.issue().await?;
                        // As early as the layer takes a token for expired.
                        *current =
                            Some((token.clone(), Instant::now() + tokens.lifetime() * 9 / 10));
                        token
                    }
                };
                drop(current);
                let mut request = request(4);
                let value = token.header_value().clone();
                request.headers_mut().insert(AUTHORIZATION, value);
                api.oneshot(request).await
            }) as Response
        };
        Self::new(make, sent)
    }

    fn make(&mut self, due: Instant) {
        let (start, sent) = (self.start, Arc::clone(&self.sent));
        let mut call = (self.make)();
        self.made.spawn(async move {
            let sent_before = sent.load(Ordering::Relaxed);
            let answer = poll_immediate(&mut call).await;
            // Nothing else runs during a poll, so it was this call's request or none.
            let waited = sent.load(Ordering::Relaxed) == sent_before;
            match answer {
                Some(response) => response?,
                None => call.await?,
            };
            Ok(Sample {
                due: due.saturating_duration_since(start),
                latency: due.elapsed(),
                waited,
            })
        });
    }

    async fn finish(mut self, tokens: &Tokens) -> Result<Run, BoxError> {
        let mut samples = Vec::new();
        while let Some(sample) = self.made.join_next().await {
            samples.push(sample??);
        }
        let begun = tokens.begun();
        let since_start = |begun: &Instant| begun.saturating_duration_since(self.start);
        Ok(Run {
            samples,
            expiries: begun.iter().skip(1).map(since_start).collect(),
        })
    }
}

/// Answers after a while, and counts what it answers.
fn api(
    sent: &Arc<AtomicU64>,
) -> impl Service<ApiRequest, Response = ApiResponse, Error = BoxError, Future = Response>
+ Clone
+ Send
+ use<> {
    let sent = Arc::clone(sent);
    service_fn(move |_: ApiRequest| {
        sent.fetch_add(1, Ordering::Relaxed);
        Box::pin(async {
            sleep(API).await;
            Ok(ApiResponse::default())
        }) as Response
    })
}
