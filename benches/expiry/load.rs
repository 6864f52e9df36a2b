//! A steady load, and the latency of its calls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use benches::{ApiRequest, ApiResponse, TOKEN_DELAY, Tokens, request};
use futures_util::future::{BoxFuture, poll_immediate};
use http::header::AUTHORIZATION;
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{Instant, interval, sleep},
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::{AccessToken, ClientCredentialsLayer};

/// The lifetime of a token: short, so that 20 expiries take at most a minute.
pub(crate) const LIFETIME: Duration = Duration::from_secs(3);

/// Time that the API takes.
pub(crate) const API_DELAY: Duration = Duration::from_millis(5);

const INTERVAL: Duration = Duration::from_millis(1);
const EXPIRIES: usize = 20;

/// A call is around an expiry if it was due within this time before or after it.
const AROUND: Duration = Duration::from_millis(500);

/// The calls of one client. Times are counted from the start.
pub(crate) struct Run {
    pub(crate) samples: Vec<Sample>,
    /// The moments at which tokens were requested, except the first.
    pub(crate) expiries: Vec<Duration>,
}

pub(crate) struct Sample {
    /// The moment at which the call was due. On a busy machine it was made later.
    pub(crate) due: Duration,
    pub(crate) latency: Duration,
    /// Whether the call waited for a token.
    pub(crate) waited: bool,
}

impl Run {
    /// For each expiry and call: the milliseconds from the expiry to the call, and those that the
    /// call took.
    pub(crate) fn since_expiries(&self) -> impl Iterator<Item = (f64, f64)> {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
        self.expiries.iter().flat_map(move |expiry| {
            self.samples.iter().map(move |sample| {
                let since = milliseconds(sample.due) - milliseconds(*expiry);
                (since, milliseconds(sample.latency))
            })
        })
    }

    /// The latencies around the expiries and those away from them. The start belongs to neither.
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

/// Makes calls with the layer and, at the same moments, calls with a token that never expires: a
/// disturbance of the machine then affects both.
pub(crate) async fn with_layer() -> Result<[Run; 2], BoxError> {
    let tokens = Tokens::with_lifetime(TOKEN_DELAY, LIFETIME);
    let constant = Tokens::new(Duration::ZERO);
    let clients = [Client::with_layer(&tokens), Client::on_demand(&constant)];
    let [layer, constant] = load(clients, &tokens).await?;
    let expiries = layer.expiries.clone();
    Ok([
        layer,
        Run {
            expiries,
            ..constant
        },
    ])
}

/// Makes calls with a token that is fetched when a call finds it expired.
pub(crate) async fn on_demand() -> Result<Run, BoxError> {
    let tokens = Tokens::with_lifetime(TOKEN_DELAY, LIFETIME);
    let [on_demand] = load([Client::on_demand(&tokens)], &tokens).await?;
    Ok(on_demand)
}

async fn load<const N: usize>(
    mut clients: [Client; N],
    tokens: &Tokens,
) -> Result<[Run; N], BoxError> {
    // The load begins when each client has its first token.
    let now = Instant::now();
    clients.iter_mut().for_each(|client| client.call(now));
    sleep(2 * TOKEN_DELAY).await;
    let mut ticks = interval(INTERVAL);
    while tokens.requests() <= EXPIRIES {
        let due = ticks.tick().await;
        clients.iter_mut().for_each(|client| client.call(due));
    }
    let mut runs = Vec::new();
    for client in clients {
        runs.push(client.finish(tokens).await?);
    }
    runs.try_into().map_err(|_| "each client has a run".into())
}

type Response = BoxFuture<'static, Result<ApiResponse, BoxError>>;

struct Client {
    start: Instant,
    send: Box<dyn Fn() -> Response>,
    /// The number of requests that the API received.
    received: Arc<AtomicU64>,
    calls: JoinSet<Result<Sample, BoxError>>,
}

impl Client {
    fn new(send: impl Fn() -> Response + 'static, received: Arc<AtomicU64>) -> Self {
        Self {
            start: Instant::now(),
            send: Box::new(send),
            received,
            calls: JoinSet::new(),
        }
    }

    fn with_layer(tokens: &Tokens) -> Self {
        let received = Arc::default();
        let service = ClientCredentialsLayer::new(tokens.service()).layer(api(&received));
        let send = move || Box::pin(service.clone().oneshot(request(4))) as Response;
        Self::new(send, received)
    }

    /// The usual hand-written cache: a call that finds the token expired fetches another under the
    /// lock.
    fn on_demand(tokens: &Tokens) -> Self {
        let received = Arc::default();
        let (api, tokens) = (api(&received), tokens.clone());
        let current: Arc<Mutex<Option<(AccessToken, Instant)>>> = Arc::default();
        let send = move || {
            let (api, tokens, current) = (api.clone(), tokens.clone(), Arc::clone(&current));
            Box::pin(async move {
                let mut current = current.lock().await;
                let token = match &*current {
                    Some((token, expires_at)) if Instant::now() < *expires_at => token.clone(),
                    _ => {
                        let token = tokens.issue().await?;
                        // The layer considers a token expired this early, too.
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
        Self::new(send, received)
    }

    fn call(&mut self, due: Instant) {
        let (start, received) = (self.start, Arc::clone(&self.received));
        let mut call = (self.send)();
        self.calls.spawn(async move {
            let before = received.load(Ordering::Relaxed);
            let response = poll_immediate(&mut call).await;
            // Nothing else runs during a poll, so the API received this call's request or none.
            let waited = received.load(Ordering::Relaxed) == before;
            match response {
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
        while let Some(sample) = self.calls.join_next().await {
            samples.push(sample??);
        }
        let requested_at = tokens.requested_at();
        let since_start = |moment: &Instant| moment.saturating_duration_since(self.start);
        Ok(Run {
            samples,
            expiries: requested_at.iter().skip(1).map(since_start).collect(),
        })
    }
}

/// Responds after a delay, and counts the requests.
fn api(
    received: &Arc<AtomicU64>,
) -> impl Service<ApiRequest, Response = ApiResponse, Error = BoxError, Future = Response>
+ Clone
+ Send
+ use<> {
    let received = Arc::clone(received);
    service_fn(move |_: ApiRequest| {
        received.fetch_add(1, Ordering::Relaxed);
        Box::pin(async {
            sleep(API_DELAY).await;
            Ok(ApiResponse::default())
        }) as Response
    })
}
