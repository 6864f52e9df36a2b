//! The processes of a fleet and their calls: 10,000 real caches, no model of them.
//!
//! Times are counted from the fleet's start.

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

/// How often each process makes a call, at a beat of its own.
pub(crate) const PACE: Duration = Duration::from_secs(5);

/// All processes start within it.
const START: Duration = Duration::from_secs(1);

/// Calls are made at multiples of it, so that time need not be stopped for each alone.
const TICK: Duration = Duration::from_millis(200);

/// Calls that come in this part of a token's life are left out: they find it fresh, which changes
/// nothing in the cache. Its refresh begins 5 min 10 s before its end at the earliest.
const UNEVENTFUL: Duration = Duration::from_secs(24 * 60);

/// Whether refreshes are put off at random.
#[derive(Clone, Copy)]
pub(crate) enum Refreshes {
    /// As all defaults have it.
    Jittered,
    InStep,
}

struct Fleet {
    endpoint: Endpoint,
    processes: Vec<Process>,
    /// When which processes make their next call.
    timetable: BTreeMap<Duration, Vec<usize>>,
    waiting: JoinSet<Wait>,
    day: Day,
}

struct Process {
    cache: TokenCache,
    /// After the first call, calls are made at this moment and every [`PACE`] from then on.
    beat: Duration,
    has_token: bool,
}

/// A call that did not find a token at once.
struct Wait {
    had_token: bool,
    took: Duration,
    failed: bool,
}

/// Runs a fleet for a day; on a runtime whose time is paused, that takes seconds.
pub(crate) async fn run(refreshes: Refreshes) -> Result<Day, BoxError> {
    let started_at = Instant::now();
    let mut fleet = Fleet::new(refreshes)?;
    while let Some((now, callers)) = fleet.timetable.pop_first() {
        if now >= DAY {
            break;
        }
        sleep_until(started_at + now).await;
        for caller in callers {
            let next = fleet.call(caller, now);
            fleet.timetable.entry(next).or_default().push(caller);
        }
    }
    Ok(fleet.into_day().await)
}

impl Fleet {
    fn new(refreshes: Refreshes) -> Result<Self, BoxError> {
        let endpoint = Endpoint::open();
        let mut processes = Vec::with_capacity(PROCESSES);
        let mut timetable: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for process in 0..PROCESSES {
            let starts_at = random_part_of(START);
            timetable.entry(starts_at).or_default().push(process);
            processes.push(Process {
                cache: cache(&endpoint, refreshes)?,
                beat: starts_at + TICK + random_part_of(PACE),
                has_token: false,
            });
        }
        Ok(Self {
            endpoint,
            processes,
            timetable,
            waiting: JoinSet::new(),
            day: Day::default(),
        })
    }

    /// Makes a call of this process; returns when it makes the next that matters.
    fn call(&mut self, caller: usize, now: Duration) -> Duration {
        let process = &mut self.processes[caller];
        match process.cache.token().now_or_never() {
            Some(Ok(token)) => {
                let issued_at = issued_at(&token);
                if !process.has_token {
                    process.has_token = true;
                    self.day.first_tokens.push(issued_at);
                }
                self.day.note_token_age(now - issued_at);
                process.beat_after(now.max(issued_at + UNEVENTFUL))
            }
            Some(Err(_shared)) => {
                let next = process.beat_after(now);
                self.day.calls(process.has_token).failed += 1;
                next
            }
            None => {
                // The flight goes on without this caller; the one in the task takes its place.
                self.waiting.spawn(process.wait());
                process.beat_after(now)
            }
        }
    }

    async fn into_day(mut self) -> Day {
        for wait in self.waiting.join_all().await {
            self.day
                .calls(wait.had_token)
                .note_wait(wait.took, wait.failed);
        }
        self.day.first_tokens.sort_unstable();
        self.day.seconds = self.endpoint.close(DAY);
        self.day
    }
}

impl Process {
    /// When the first call after `moment` is due.
    fn beat_after(&self, moment: Duration) -> Duration {
        match moment.checked_sub(self.beat) {
            None => self.beat,
            Some(since) => moment + PACE - remainder(since, PACE),
        }
    }

    fn wait(&self) -> impl Future<Output = Wait> + Send + 'static {
        let (cache, had_token, since) = (self.cache.clone(), self.has_token, Instant::now());
        async move {
            let failed = cache.token().await.is_err();
            Wait {
                had_token,
                took: since.elapsed(),
                failed,
            }
        }
    }
}

/// What each process has: a token endpoint over HTTP, and a cache in front of it.
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

fn random_part_of(most: Duration) -> Duration {
    let part = most.mul_f64(fastrand::f64());
    part - remainder(part, TICK)
}

/// What is left of `time` beyond multiples of `unit`.
fn remainder(time: Duration, unit: Duration) -> Duration {
    let nanos = time.as_nanos() % unit.as_nanos();
    Duration::from_nanos(nanos.try_into().expect("a unit of seconds is short"))
}
