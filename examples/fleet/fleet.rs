//! The processes of a fleet and their calls, with 10,000 real token caches.
//!
//! Times are counted from the start of the fleet.

use std::{collections::BTreeMap, time::Duration};

use futures_util::FutureExt;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tower::BoxError;
use tower_client_credentials::{ClientAuth, TokenCache, TokenEndpoint};

use crate::{
    day::Day,
    endpoint::{Endpoint, issued_at},
};

pub(crate) const PROCESSES: usize = 10_000;

pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The interval between the calls of a process. Each process has its own phase.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);

/// All processes start within this time.
const START: Duration = Duration::from_secs(1);

/// Calls are made at multiples of this, so that many share one step of the paused clock.
const TICK: Duration = Duration::from_millis(200);

/// Calls in this first part of a token's lifetime are skipped: the token is fresh, and they would
/// change nothing in the cache. A refresh starts at most 5 min 10 s before the token expires.
const SKIPPED: Duration = Duration::from_secs(24 * 60);

/// When refreshes start.
#[derive(Clone, Copy)]
pub(crate) enum Refreshes {
    /// After a random delay: the default.
    Jittered,
    /// At the start of the refresh window.
    InStep,
}

struct Fleet {
    endpoint: Endpoint,
    processes: Vec<Process>,
    /// The processes that make their next call at each moment.
    schedule: BTreeMap<Duration, Vec<usize>>,
    waiting: JoinSet<Wait>,
    day: Day,
}

struct Process {
    cache: TokenCache,
    /// The moment of the second call. Further calls follow every [`INTERVAL`].
    phase: Duration,
    has_token: bool,
}

/// A call that did not find a token at once.
struct Wait {
    had_token: bool,
    elapsed: Duration,
    failed: bool,
}

/// Runs a fleet for a day. With paused time, this takes seconds.
pub(crate) async fn run(refreshes: Refreshes) -> Result<Day, BoxError> {
    let started_at = Instant::now();
    let mut fleet = Fleet::new(refreshes)?;
    while let Some((now, callers)) = fleet.schedule.pop_first() {
        if now >= DAY {
            break;
        }
        sleep_until(started_at + now).await;
        for caller in callers {
            let next = fleet.call(caller, now);
            fleet.schedule.entry(next).or_default().push(caller);
        }
    }
    Ok(fleet.into_day().await)
}

impl Fleet {
    fn new(refreshes: Refreshes) -> Result<Self, BoxError> {
        let endpoint = Endpoint::start();
        let mut processes = Vec::with_capacity(PROCESSES);
        let mut schedule: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for process in 0..PROCESSES {
            let starts_at = random_up_to(START);
            schedule.entry(starts_at).or_default().push(process);
            processes.push(Process {
                cache: cache(&endpoint, refreshes)?,
                phase: starts_at + TICK + random_up_to(INTERVAL),
                has_token: false,
            });
        }
        Ok(Self {
            endpoint,
            processes,
            schedule,
            waiting: JoinSet::new(),
            day: Day::default(),
        })
    }

    /// Makes a call of this process and returns the time of its next call.
    fn call(&mut self, caller: usize, now: Duration) -> Duration {
        let process = &mut self.processes[caller];
        match process.cache.token().now_or_never() {
            Some(Ok(token)) => {
                let issued_at = issued_at(&token);
                if !process.has_token {
                    process.has_token = true;
                    self.day.first_tokens.push(issued_at);
                }
                self.day.record_token_age(now - issued_at);
                process.next_call_after(now.max(issued_at + SKIPPED))
            }
            Some(Err(_shared)) => {
                let next = process.next_call_after(now);
                self.day.calls(process.has_token).failed += 1;
                next
            }
            None => {
                // The token request continues while a task waits in place of this call.
                self.waiting.spawn(process.wait());
                process.next_call_after(now)
            }
        }
    }

    async fn into_day(mut self) -> Day {
        for wait in self.waiting.join_all().await {
            self.day
                .calls(wait.had_token)
                .record_wait(wait.elapsed, wait.failed);
        }
        self.day.first_tokens.sort_unstable();
        self.day.seconds = self.endpoint.take_seconds(DAY);
        self.day
    }
}

impl Process {
    /// Returns the time of the first call after `moment`.
    fn next_call_after(&self, moment: Duration) -> Duration {
        match moment.checked_sub(self.phase) {
            None => self.phase,
            Some(since) => moment + INTERVAL - remainder(since, INTERVAL),
        }
    }

    fn wait(&self) -> impl Future<Output = Wait> + Send + 'static {
        let (cache, had_token, since) = (self.cache.clone(), self.has_token, Instant::now());
        async move {
            let failed = cache.token().await.is_err();
            Wait {
                had_token,
                elapsed: since.elapsed(),
                failed,
            }
        }
    }
}

/// Builds the token cache of a process, as a program would.
fn cache(endpoint: &Endpoint, refreshes: Refreshes) -> Result<TokenCache, BoxError> {
    let tokens = TokenEndpoint::new(
        endpoint.http_client(),
        "https://auth.example/oauth/v2/accessToken",
        ClientAuth::client_secret_post("77tt5zexample", "not/a+real=secret=="),
    )?;
    Ok(match refreshes {
        Refreshes::Jittered => TokenCache::new(tokens),
        Refreshes::InStep => TokenCache::builder().jitter(0.0).build(tokens),
    })
}

fn random_up_to(max: Duration) -> Duration {
    let time = max.mul_f64(fastrand::f64());
    time - remainder(time, TICK)
}

/// Returns `time` modulo `unit`.
fn remainder(time: Duration, unit: Duration) -> Duration {
    let nanos = time.as_nanos() % unit.as_nanos();
    Duration::from_nanos(nanos.try_into().expect("units are seconds at most"))
}
