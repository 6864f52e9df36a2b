//! Concurrent callers, and a token endpoint that is slow, fails, or has its tokens revoked.

use std::time::Duration;

use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tower::BoxError;

use crate::{
    api::{Api, Nothing, request},
    endpoint::{Endpoint, runtime},
    peer::{ApiResponse, Client, Peer},
    report::thousands,
};

/// A call that takes longer counts as not served.
const LIMIT: Duration = Duration::from_secs(20);

/// The timeout of an impatient caller, its number of attempts, and the time that a token takes.
pub(crate) const PATIENCE: Duration = Duration::from_millis(50);
const ATTEMPTS: usize = 4;
pub(crate) const SLOW: Duration = Duration::from_millis(80);

/// The delays of the token endpoint in the other scenarios.
const TOKEN_DELAY: Duration = Duration::from_millis(50);
const REFUSAL_DELAY: Duration = Duration::from_millis(10);

/// Several times as long as a token request, so that rejections arrive before, during and after it.
pub(crate) const SPREAD: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// No caller has a token yet.
    Stampede,
    /// Callers give up before the first token arrives, and try again.
    Impatience,
    /// The token endpoint is unavailable.
    Outage,
    /// The API rejects the token of all calls in flight at the same moment.
    Storm,
    /// The API rejects the token of all calls in flight, one after the other.
    LongStorm,
}

/// The reason why a peer does not support a scenario.
pub(crate) type Unsupported = &'static str;

pub(crate) struct Outcome {
    pub(crate) callers: usize,
    /// Callers whose call was accepted by the API.
    pub(crate) served: usize,
    /// Token requests until the last caller was done.
    pub(crate) token_requests: usize,
    /// The time until the last caller was done.
    pub(crate) elapsed: Duration,
}

impl Scenario {
    pub(crate) const ALL: [Self; 5] = [
        Self::Stampede,
        Self::Impatience,
        Self::Outage,
        Self::Storm,
        Self::LongStorm,
    ];

    pub(crate) fn callers(self) -> usize {
        match self {
            Self::Stampede | Self::Storm | Self::LongStorm => 1_000,
            Self::Impatience => 80,
            Self::Outage => 50,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stampede => "Stampede",
            Self::Impatience => "Impatience",
            Self::Outage => "Outage",
            Self::Storm => "401 storm",
            Self::LongStorm => "Long 401 storm",
        }
    }

    pub(crate) fn description(self) -> String {
        let callers = thousands(self.callers());
        let [patience, slow, token, refusal, spread] =
            [PATIENCE, SLOW, TOKEN_DELAY, REFUSAL_DELAY, SPREAD].map(|time| time.as_millis());
        match self {
            Self::Stampede => format!(
                "{callers} concurrent callers, no token yet; the token endpoint takes {token} ms."
            ),
            Self::Impatience => format!(
                "{callers} concurrent callers, no token yet; each gives up after {patience} ms and \
                 tries {ATTEMPTS} times;\nthe token endpoint takes {slow} ms."
            ),
            Self::Outage => format!(
                "{callers} concurrent callers, no token yet; the token endpoint responds with 503 \
                 after {refusal} ms."
            ),
            Self::Storm => format!(
                "{callers} calls in flight get a 401 at the same moment; \
                 the token endpoint takes {token} ms."
            ),
            Self::LongStorm => format!(
                "{callers} calls in flight get a 401 one after the other, within {spread} ms;\n\
                 the token endpoint takes {token} ms."
            ),
        }
    }

    fn unsupported_by<P: Peer>(self) -> Option<Unsupported> {
        match self {
            Self::Stampede | Self::Impatience | Self::Outage => P::NO_COLD_START,
            Self::Storm | Self::LongStorm => P::NO_REJECTION,
        }
    }
}

pub(crate) fn run<P: Peer>(scenario: Scenario) -> Result<Outcome, Unsupported> {
    if let Some(reason) = scenario.unsupported_by::<P>() {
        return Err(reason);
    }
    let callers = scenario.callers();
    let outcome = runtime().block_on(async {
        match scenario {
            Scenario::Stampede => {
                cold::<P, _>(callers, Endpoint::issuing_after(TOKEN_DELAY), patient).await
            }
            Scenario::Impatience => {
                cold::<P, _>(callers, Endpoint::issuing_after(SLOW), impatient).await
            }
            Scenario::Outage => {
                cold::<P, _>(callers, Endpoint::failing_after(REFUSAL_DELAY), patient).await
            }
            Scenario::Storm => storm::<P>(callers, Duration::ZERO).await,
            Scenario::LongStorm => storm::<P>(callers, SPREAD).await,
        }
    });
    Ok(outcome)
}

async fn cold<P: Peer, F>(
    callers: usize,
    endpoint: Endpoint,
    call: fn(P::Client<Nothing>) -> F,
) -> Outcome
where
    F: Future<Output = bool> + Send + 'static,
{
    let peer = P::start(&endpoint)
        .await
        .expect("the configuration is valid");
    let client = peer.client(Nothing);
    let (served, elapsed) = gather(callers, || call(client.clone())).await;
    Outcome {
        callers,
        served,
        token_requests: endpoint.requests(),
        elapsed,
    }
}

async fn storm<P: Peer>(callers: usize, spread: Duration) -> Outcome {
    let endpoint = Endpoint::issuing_after(TOKEN_DELAY);
    let peer = P::start(&endpoint)
        .await
        .expect("the configuration is valid");
    let api = Api::new(callers, spread);
    let mut client = peer.client(api.clone());
    let first = client.send(request()).await;
    assert!(is_served(&first), "the first token is accepted");

    let issued = endpoint.requests();
    api.revoke(issued);
    let (served, elapsed) = gather(callers, || {
        let mut client = client.clone();
        async move { is_served(&client.send_twice(request()).await) }
    })
    .await;
    Outcome {
        callers,
        served,
        token_requests: endpoint.requests() - issued,
        elapsed,
    }
}

/// Makes all calls concurrently. Returns how many were served, and the time until the last was
/// done.
async fn gather<F>(callers: usize, call: impl Fn() -> F) -> (usize, Duration)
where
    F: Future<Output = bool> + Send + 'static,
{
    let started = Instant::now();
    let mut calls: JoinSet<_> = (0..callers).map(|_| timeout(LIMIT, call())).collect();
    let mut served = 0;
    while let Some(call) = calls.join_next().await {
        served += usize::from(matches!(call, Ok(Ok(true))));
    }
    (served, started.elapsed())
}

async fn patient(mut client: impl Client) -> bool {
    is_served(&client.send(request()).await)
}

async fn impatient(mut client: impl Client) -> bool {
    for _ in 0..ATTEMPTS {
        if let Ok(response) = timeout(PATIENCE, client.send(request())).await
            && is_served(&response)
        {
            return true;
        }
    }
    false
}

pub(crate) fn is_served(response: &Result<ApiResponse, BoxError>) -> bool {
    response
        .as_ref()
        .is_ok_and(|response| response.status().is_success())
}
