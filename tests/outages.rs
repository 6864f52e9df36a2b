//! Long outages: how many requests each server gets, and what callers notice.
//!
//! Each scenario makes two calls per second for 90 minutes.

mod support;

use std::{
    ops::{Range, RangeInclusive},
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response, StatusCode};
use support::{Failure, Issuer, rejection, settle};
use tokio::time::{Instant, advance};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::ClientCredentialsLayer;

const CALLS_PER_SECOND: u64 = 2;
const PACE: Duration = Duration::from_millis(500);
const LATENCY: Duration = Duration::from_millis(50);
const LENGTH: u64 = 90 * 60;

/// The results of the calls to one path.
#[derive(Clone, Debug, Default)]
struct Observed {
    calls: usize,
    errors: usize,
    rejections: usize,
    waited: usize,
    longest_wait: Duration,
}

impl Observed {
    fn note(&mut self, outcome: &Result<Response<String>, BoxError>, took: Duration) {
        self.calls += 1;
        match outcome {
            Ok(response) if response.status() == StatusCode::OK => {}
            Ok(_) => self.rejections += 1,
            Err(_) => self.errors += 1,
        }
        if took > Duration::ZERO {
            self.waited += 1;
        }
        self.longest_wait = self.longest_wait.max(took);
    }
}

/// Makes the calls of a scenario, alternating between the paths. Calls `at` with each second.
async fn traffic<S>(service: S, paths: &[&'static str], mut at: impl FnMut(u64)) -> Vec<Observed>
where
    S: Service<Request<String>, Response = Response<String>, Error = BoxError>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let seen: Arc<Mutex<Vec<Observed>>> =
        Arc::new(Mutex::new(vec![Observed::default(); paths.len()]));
    for number in 0..LENGTH * CALLS_PER_SECOND {
        if number % CALLS_PER_SECOND == 0 {
            at(number / CALLS_PER_SECOND);
        }
        let index = usize::try_from(number).unwrap() % paths.len();
        let request = Request::get(paths[index]).body(String::new()).unwrap();
        let (service, seen) = (service.clone(), seen.clone());
        tokio::spawn(async move {
            let start = Instant::now();
            let outcome = service.oneshot(request).await;
            seen.lock().unwrap()[index].note(&outcome, start.elapsed());
        });
        settle_briefly().await;
        advance(LATENCY).await;
        settle_briefly().await;
        advance(PACE - LATENCY).await;
    }
    // A call that still waits returns once the token request ends.
    for _ in 0..40 {
        settle().await;
        advance(Duration::from_secs(1)).await;
    }
    let seen = seen.lock().unwrap().clone();
    let answered: usize = seen.iter().map(|seen| seen.calls).sum();
    assert_eq!(answered as u64, LENGTH * CALLS_PER_SECOND, "a call hangs");
    seen
}

/// Converts a number of calls to seconds of traffic.
fn seconds(calls: usize) -> usize {
    calls / usize::try_from(CALLS_PER_SECOND).unwrap()
}

async fn settle_briefly() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

fn accepting()
-> impl Service<Request<String>, Response = Response<String>, Error = BoxError, Future: Send + 'static>
+ Clone
+ Send
+ 'static {
    service_fn(|_: Request<String>| async { Ok(Response::new(String::new())) })
}

/// An outage of the token service, and its permitted effects.
struct Outage {
    name: &'static str,
    failure: Failure,
    /// In seconds. The first token is due for refresh after 1490 to 1640 s and expires after 1790 s.
    when: Range<u64>,
    token_requests: RangeInclusive<usize>,
    /// The calls that fail, in seconds of traffic.
    failed_for: RangeInclusive<usize>,
    longest_wait: Duration,
}

const NO_CALLS: RangeInclusive<usize> = 0..=0;

/// Three attempts and the pauses between them, rounded up to the steps that time advances in.
const RETRIES: Duration = Duration::from_millis(1050);

/// From the expiry of the first token to the end of a long outage, and at most one back-off more.
const LONG_OUTAGE: RangeInclusive<usize> = 1200..=1310;

#[tokio::test(start_paused = true)]
async fn token_service_outages_cost_what_the_table_says() {
    let deadline = Duration::from_secs(30);
    let outages = [
        Outage {
            name: "none",
            failure: Failure::Transient,
            when: 0..0,
            token_requests: 4..=4,
            failed_for: NO_CALLS,
            longest_wait: LATENCY,
        },
        Outage {
            name: "down while the token is fresh",
            failure: Failure::Transient,
            when: 300..1400,
            token_requests: 4..=4,
            failed_for: NO_CALLS,
            longest_wait: LATENCY,
        },
        Outage {
            name: "down for less than the token lives",
            failure: Failure::Transient,
            when: 1400..1715,
            token_requests: 7..=40,
            failed_for: NO_CALLS,
            longest_wait: LATENCY,
        },
        Outage {
            name: "down for longer than the token lives",
            failure: Failure::Transient,
            when: 1400..3000,
            token_requests: 70..=140,
            failed_for: LONG_OUTAGE,
            longest_wait: RETRIES,
        },
        Outage {
            name: "refusing the client for longer than the token lives",
            failure: Failure::Permanent,
            when: 1400..3000,
            token_requests: 25..=50,
            failed_for: LONG_OUTAGE,
            longest_wait: LATENCY,
        },
        Outage {
            name: "rate-limiting for longer than the token lives",
            failure: Failure::RateLimited,
            when: 1400..3000,
            token_requests: 15..=40,
            failed_for: LONG_OUTAGE,
            longest_wait: LATENCY,
        },
        Outage {
            name: "panicking for longer than the token lives",
            failure: Failure::Panic,
            when: 1400..3000,
            token_requests: 70..=140,
            failed_for: LONG_OUTAGE,
            longest_wait: RETRIES,
        },
        Outage {
            name: "silent for longer than the token lives",
            failure: Failure::Silence,
            when: 1400..3000,
            // Three attempts in each token request.
            token_requests: 45..=100,
            failed_for: 1100..=1340,
            longest_wait: deadline,
        },
    ];
    for outage in outages {
        let issuer = Issuer::new().latency(LATENCY);
        let service = ClientCredentialsLayer::new(issuer.service()).layer(accepting());

        let seen = traffic(service, &["/"], |second| {
            issuer.fail(outage.when.contains(&second).then_some(outage.failure));
        })
        .await;

        let name = outage.name;
        let (seen, requests) = (&seen[0], issuer.requests());
        assert!(
            outage.token_requests.contains(&requests),
            "{name}: {requests}, {seen:?}"
        );
        assert!(
            outage.failed_for.contains(&seconds(seen.errors)),
            "{name}: {seen:?}"
        );
        assert!(seen.longest_wait <= outage.longest_wait, "{name}: {seen:?}");
        assert_eq!(seen.rejections, 0, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn flapping_token_service_does_not_affect_calls() {
    let issuer = Issuer::new().latency(LATENCY);
    let service = ClientCredentialsLayer::new(issuer.service()).layer(accepting());

    let seen = traffic(service, &["/"], |second| {
        issuer.fail((second % 60 >= 30).then_some(Failure::Transient));
    })
    .await;

    assert_eq!((seen[0].errors, seen[0].waited), (0, 1), "{seen:?}");
    assert!(issuer.requests() <= 60, "{}", issuer.requests());
}

#[tokio::test(start_paused = true)]
async fn slow_token_service_delays_only_the_first_calls() {
    let latency = Duration::from_secs(9);
    let issuer = Issuer::new().latency(latency);
    let service = ClientCredentialsLayer::new(issuer.service()).layer(accepting());

    let seen = traffic(service, &["/"], |_| {}).await;

    assert_eq!(seen[0].errors, 0);
    assert_eq!(
        seconds(seen[0].waited),
        9,
        "the calls of the first 9 seconds"
    );
    assert!(seen[0].longest_wait <= latency);
    assert_eq!(issuer.requests(), 4);
}

/// An API that answers 401 unless `accepts` returns true for the path and the token's number.
fn api(
    accepts: impl Fn(&str, usize) -> bool + Send + Sync + 'static,
) -> impl Service<Request<String>, Response = Response<String>, Error = BoxError, Future: Send + 'static>
+ Clone
+ Send
+ 'static {
    let accepts = Arc::new(accepts);
    service_fn(move |request: Request<String>| {
        let token = request.headers()["authorization"].to_str().unwrap();
        let number = token.rsplit_once('-').unwrap().1.parse().unwrap();
        let is_accepted = accepts(request.uri().path(), number);
        async move {
            Ok(if is_accepted {
                Response::new(String::new())
            } else {
                rejection()
            })
        }
    })
}

#[tokio::test(start_paused = true)]
async fn api_that_rejects_every_token_causes_one_renewal_per_cool_down() {
    let issuer = Issuer::new().latency(LATENCY);
    let service = ClientCredentialsLayer::new(issuer.service()).layer(api(|_, _| false));

    let seen = traffic(service, &["/"], |_| {}).await;

    assert_eq!(seen[0].errors, 0);
    assert_eq!(seen[0].rejections, seen[0].calls);
    // The first, and one just over every 30 s.
    let requests = issuer.requests();
    assert!((175..=181).contains(&requests), "{requests}");
}

#[tokio::test(start_paused = true)]
async fn path_that_always_rejects_delays_other_paths_once_per_cool_down() {
    let issuer = Issuer::new().latency(LATENCY);
    let service = ClientCredentialsLayer::new(issuer.service()).layer(api(|path, _| path != "/no"));

    let seen = traffic(service, &["/no", "/yes"], |_| {}).await;

    let [no, yes] = &seen[..] else {
        unreachable!("two paths")
    };
    assert_eq!(no.rejections, no.calls);
    assert_eq!((yes.errors, yes.rejections), (0, 0));
    assert!(yes.waited <= issuer.requests(), "{yes:?}");
    assert!(yes.longest_wait <= LATENCY, "{yes:?}");
    assert!(
        (175..=181).contains(&issuer.requests()),
        "{}",
        issuer.requests()
    );
}

/// LinkedIn refuses a token for some seconds after issuing it.
#[tokio::test(start_paused = true)]
async fn api_that_rejects_young_tokens_causes_two_token_requests_per_lifetime() {
    const YOUTH: Duration = Duration::from_secs(10);
    let born: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let known = born.clone();
    let accepts = move |_: &str, number: usize| {
        let mut born = known.lock().unwrap();
        while born.len() < number {
            born.push(Instant::now());
        }
        born[number - 1].elapsed() >= YOUTH
    };
    let issuer = Issuer::new().latency(LATENCY);
    let service = ClientCredentialsLayer::new(issuer.service()).layer(api(accepts));

    let seen = traffic(service, &["/"], |_| {}).await;

    assert_eq!(seen[0].errors, 0);
    let lives = 4;
    assert!(issuer.requests() <= 2 * lives, "{}", issuer.requests());
    let rejected_for = seconds(seen[0].rejections);
    assert!(rejected_for <= lives * 11, "{rejected_for} s");
}
