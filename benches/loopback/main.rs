//! What the layer adds to a call of hyper-util's client over a loopback connection, as a share of
//! that call.
//!
//! ```text
//! cargo bench --manifest-path benches/Cargo.toml --bench loopback
//! ```
//!
//! The client and an HTTP/1.1 server run on one thread. All stacks share one keep-alive connection
//! and take turns, for about 45 seconds. Calls over a real network take longer, so the shares are
//! lower there.

mod server;

use std::{
    cmp::Ordering,
    time::{Duration, Instant},
};

use benches::{RetryOnce, Tokens, median, request, secret};
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::runtime::{self, Runtime};
use tower::{BoxError, Layer, Service, ServiceExt, retry::Retry};
use tower_client_credentials::{ClientCredentialsLayer, TokenCache};
use tower_http::auth::AddAuthorizationLayer;

const HEADERS: usize = 4;
const CALLS_PER_TURN: u32 = 100;
const WARM_UP: usize = 20;
const RUNS: usize = 5;
const TIME_PER_RUN: Duration = Duration::from_secs(8);

/// The stacks that the others are compared with, by their place.
const BARE: usize = 0;
const ADD_AUTHORIZATION: usize = 1;

fn main() -> Result<(), BoxError> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let uri = runtime.block_on(server::start())?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let http: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let cache = TokenCache::new(Tokens::new(Duration::ZERO).service());
    runtime.block_on(cache.token())?;

    let add = AddAuthorizationLayer::bearer(&secret(1)).layer(http.clone());
    let retry = Retry::new(RetryOnce, add.clone());
    let layer = ClientCredentialsLayer::with_cache(cache);
    let no_replay = layer.clone().no_replay().layer(http.clone());
    let clone_body = layer.layer(http.clone());
    let mut stacks = [
        Stack::new("bare client", &runtime, &uri, http),
        Stack::new("AddAuthorization", &runtime, &uri, add),
        Stack::new("Retry, AddAuthorization", &runtime, &uri, retry),
        Stack::new("NoReplay", &runtime, &uri, no_replay),
        Stack::new("CloneBody", &runtime, &uri, clone_body),
    ];
    for stack in &mut stacks {
        for _ in 0..WARM_UP {
            (stack.turn)()?;
        }
    }
    let runs: Result<Vec<_>, _> = (0..RUNS).map(|_| Run::measure(&mut stacks)).collect();
    print(&stacks, &runs?);
    Ok(())
}

struct Stack<'a> {
    name: &'static str,
    /// Makes some calls and returns the microseconds that each took.
    turn: Box<dyn FnMut() -> Result<f64, BoxError> + 'a>,
}

impl<'a> Stack<'a> {
    fn new<S>(name: &'static str, runtime: &'a Runtime, uri: &'a Uri, mut service: S) -> Self
    where
        S: Service<Request<Full<Bytes>>, Response = Response<Incoming>> + 'a,
        S::Error: Into<BoxError>,
    {
        let turn = Box::new(move || runtime.block_on(turn(&mut service, uri)));
        Self { name, turn }
    }
}

async fn turn<S>(service: &mut S, uri: &Uri) -> Result<f64, BoxError>
where
    S: Service<Request<Full<Bytes>>, Response = Response<Incoming>>,
    S::Error: Into<BoxError>,
{
    let start = Instant::now();
    for _ in 0..CALLS_PER_TURN {
        let mut request = request(HEADERS);
        *request.uri_mut() = uri.clone();
        let service = service.ready().await.map_err(Into::into)?;
        let response = service.call(request).await.map_err(Into::into)?;
        assert!(response.status().is_success(), "{}", response.status());
        // The connection goes back to the pool at the end of the body.
        response.into_body().collect().await?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS_PER_TURN))
}

/// The time of a call through each of the stacks, in microseconds: medians of one run.
struct Run(Vec<f64>);

impl Run {
    fn measure(stacks: &mut [Stack<'_>]) -> Result<Self, BoxError> {
        let start = Instant::now();
        let mut times = vec![Vec::new(); stacks.len()];
        // Each round starts with another stack.
        for first in (0..stacks.len()).cycle() {
            for turn in 0..stacks.len() {
                let stack = (first + turn) % stacks.len();
                times[stack].push((stacks[stack].turn)()?);
            }
            if start.elapsed() > TIME_PER_RUN {
                break;
            }
        }
        Ok(Self(times.into_iter().map(median).collect()))
    }

    /// How much longer a call through one stack takes than through another, in percent.
    fn added(&self, stack: usize, other: usize) -> f64 {
        100.0 * (self.0[stack] / self.0[other] - 1.0)
    }
}

fn print(stacks: &[Stack<'_>], runs: &[Run]) {
    println!(
        "A call with {HEADERS} headers over a loopback connection, and how much longer it takes than with\n\
         another stack. Medians of {RUNS} runs, lowest and highest.\n\n\
         {:26}{:>8}{:>26}{:>26}",
        "", "µs", "than the bare client", "than AddAuthorization"
    );
    for (index, stack) in stacks.iter().enumerate() {
        let time = median(runs.iter().map(|run| run.0[index]).collect());
        let [than_bare, than_add] =
            [BARE, ADD_AUTHORIZATION].map(|other| match index.cmp(&other) {
                Ordering::Greater => spread(runs.iter().map(|run| run.added(index, other))),
                _ => String::new(),
            });
        println!("{:26}{time:>8.1}{than_bare:>26}{than_add:>26}", stack.name);
    }
}

fn spread(values: impl Iterator<Item = f64>) -> String {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    let (lowest, highest) = (values[0], values[values.len() - 1]);
    format!("{:.1} % ({lowest:.1} to {highest:.1})", median(values))
}
