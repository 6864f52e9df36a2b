//! Many callers at once, and a token endpoint that is slow, fails, or has its tokens revoked.

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

/// How long an impatient caller waits, how often it tries, and how long a token takes it.
pub(crate) const PATIENCE: Duration = Duration::from_millis(50);
const TRIES: usize = 4;
pub(crate) const SLOW: Duration = Duration::from_millis(80);

/// In all other works, until there is a token, or none.
const TOKEN_DELAY: Duration = Duration::from_millis(50);
const REFUSAL_DELAY: Duration = Duration::from_millis(10);

/// Several times as long as a token takes, so that calls are rejected before, during and after that.
pub(crate) const SPREAD: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Nobody has a token yet.
    Stampede,
    /// Callers that give up before the first token is there, and try again.
    Impatience,
    /// The token endpoint is out of order.
    Outage,
    /// The API rejects the token of calls in flight, all at the same moment.
    Storm,
    /// The same, one call after the other.
    LongStorm,
}

/// Why a peer has no part in a work.
pub(crate) type Cannot = &'static str;

pub(crate) struct Tally {
    pub(crate) callers: usize,
    /// How many got an answer of the API other than a rejection.
    pub(crate) served: usize,
    /// How many token requests had been made when the last caller had its answer.
    pub(crate) token_requests: usize,
    /// When that was.
    pub(crate) last: Duration,
}

impl Work {
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

    pub(crate) fn words(self) -> String {
        let callers = thousands(self.callers());
        let [patience, slow, token, refusal, spread] =
            [PATIENCE, SLOW, TOKEN_DELAY, REFUSAL_DELAY, SPREAD].map(|time| time.as_millis());
        match self {
            Self::Stampede => format!(
                "{callers} callers at once, no token yet; the token endpoint takes {token} ms."
            ),
            Self::Impatience => format!(
                "{callers} callers at once, no token yet; each gives up after {patience} ms and \
                 tries {TRIES} times;\nthe token endpoint takes {slow} ms."
            ),
            Self::Outage => format!(
                "{callers} callers at once, no token yet; the token endpoint answers 503 after \
                 {refusal} ms."
            ),
            Self::Storm => format!(
                "{callers} calls in flight are answered 401 at once; \
                 the token endpoint takes {token} ms."
            ),
            Self::LongStorm => format!(
                "{callers} calls in flight are answered 401 one after the other, in {spread} ms;\n\
                 the token endpoint takes {token} ms."
            ),
        }
    }

    fn obstacle<P: Peer>(self) -> Option<Cannot> {
        match self {
            Self::Stampede | Self::Impatience | Self::Outage => P::NEVER_COLD,
            Self::Storm | Self::LongStorm => P::DEAF,
        }
    }
}

pub(crate) fn run<P: Peer>(work: Work) -> Result<Tally, Cannot> {
    if let Some(why) = work.obstacle::<P>() {
        return Err(why);
    }
    let callers = work.callers();
    let tally = runtime().block_on(async {
        match work {
            Work::Stampede => {
                cold::<P, _>(callers, Endpoint::issuing_after(TOKEN_DELAY), patient).await
            }
            Work::Impatience => {
                cold::<P, _>(callers, Endpoint::issuing_after(SLOW), impatient).await
            }
            Work::Outage => {
                cold::<P, _>(callers, Endpoint::failing_after(REFUSAL_DELAY), patient).await
            }
            Work::Storm => storm::<P>(callers, Duration::ZERO).await,
            Work::LongStorm => storm::<P>(callers, SPREAD).await,
        }
    });
    Ok(tally)
}

async fn cold<P: Peer, F>(
    callers: usize,
    endpoint: Endpoint,
    call: fn(P::Client<Nothing>) -> F,
) -> Tally
where
    F: Future<Output = bool> + Send + 'static,
{
    let peer = P::start(&endpoint).await.expect("the peer is set up right");
    let client = peer.client(Nothing);
    let (served, last) = gather(callers, || call(client.clone())).await;
    Tally {
        callers,
        served,
        token_requests: endpoint.requests(),
        last,
    }
}

async fn storm<P: Peer>(callers: usize, spread: Duration) -> Tally {
    let endpoint = Endpoint::issuing_after(TOKEN_DELAY);
    let peer = P::start(&endpoint).await.expect("the peer is set up right");
    let api = Api::new(callers, spread);
    let mut client = peer.client(api.clone());
    let first = client.send(request()).await;
    assert!(is_served(&first), "the first token is accepted");

    let issued = endpoint.requests();
    api.revoke(issued);
    let (served, last) = gather(callers, || {
        let mut client = client.clone();
        async move { is_served(&client.send_twice(request()).await) }
    })
    .await;
    Tally {
        callers,
        served,
        token_requests: endpoint.requests() - issued,
        last,
    }
}

/// Makes all calls at once; how many were served, and when the last was done.
async fn gather<F>(callers: usize, call: impl Fn() -> F) -> (usize, Duration)
where
    F: Future<Output = bool> + Send + 'static,
{
    let began = Instant::now();
    let mut calls: JoinSet<_> = (0..callers).map(|_| timeout(LIMIT, call())).collect();
    let mut served = 0;
    while let Some(call) = calls.join_next().await {
        served += usize::from(matches!(call, Ok(Ok(true))));
    }
    (served, began.elapsed())
}

async fn patient(mut client: impl Client) -> bool {
    is_served(&client.send(request()).await)
}

async fn impatient(mut client: impl Client) -> bool {
    for _ in 0..TRIES {
        if let Ok(answer) = timeout(PATIENCE, client.send(request())).await
            && is_served(&answer)
        {
            return true;
        }
    }
    false
}

pub(crate) fn is_served(answer: &Result<ApiResponse, BoxError>) -> bool {
    answer
        .as_ref()
        .is_ok_and(|response| response.status().is_success())
}
