//! A failing token service: retries within the token request, one error for all, then a back-off.

mod support;

use std::{
    error::Error as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::Full;
use support::{Api, Failure, Issuer, call, settle, stack};
use tokio::time::{Instant, advance};
use tower::{BoxError, Service, service_fn};
use tower_client_credentials::{
    AccessToken, ClientAuth, Error, TokenCache, TokenEndpoint, TokenRequest,
};

const SECOND: Duration = Duration::from_secs(1);
const NANOSECOND: Duration = Duration::from_nanos(1);

/// A cache whose token service answers by the number of the attempt, and the times of the attempts.
fn scripted(
    answer: impl Fn(usize) -> Result<AccessToken, BoxError> + Send + Sync + 'static,
) -> (TokenCache, Arc<Mutex<Vec<Instant>>>) {
    let attempts: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let (noted, answer) = (attempts.clone(), Arc::new(answer));
    let cache = TokenCache::new(service_fn(move |_: TokenRequest| {
        let (noted, answer) = (noted.clone(), answer.clone());
        async move {
            let mut noted = noted.lock().unwrap();
            noted.push(Instant::now());
            answer(noted.len())
        }
    }));
    (cache, attempts)
}

fn token(number: usize) -> Result<AccessToken, BoxError> {
    Ok(AccessToken::new(format!("token-{number}"))?)
}

fn pauses(attempts: &Mutex<Vec<Instant>>) -> Vec<Duration> {
    let attempts = attempts.lock().unwrap();
    attempts.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[tokio::test(start_paused = true)]
async fn transient_errors_are_retried_within_the_token_request() {
    let (cache, attempts) = scripted(|attempt| match attempt {
        1 | 2 => Err("connection refused".into()),
        _ => token(attempt),
    });

    let tokens = join_all((0..100).map(|_| cache.token())).await;

    assert!(
        tokens
            .iter()
            .all(|token| token.as_ref().unwrap().expose() == "token-3")
    );
    assert_eq!(attempts.lock().unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn pauses_between_attempts_have_full_jitter_up_to_200_ms_and_400_ms() {
    let mut first = Vec::new();
    let mut second = Vec::new();
    for _ in 0..200 {
        let (cache, attempts) = scripted(|_| Err("connection refused".into()));
        cache.token().await.unwrap_err();
        let pauses = pauses(&attempts);
        assert_eq!(pauses.len(), 2);
        first.push(pauses[0]);
        second.push(pauses[1]);
    }

    // Timers have a resolution of a millisecond.
    for (drawn, longest) in [(first, 202), (second, 402)] {
        let longest = Duration::from_millis(longest);
        assert!(drawn.iter().all(|pause| *pause <= longest));
        assert!(
            drawn.iter().any(|pause| *pause < longest / 5),
            "no full jitter"
        );
        assert!(
            drawn.iter().any(|pause| *pause > longest / 5 * 4),
            "no full jitter"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn permanent_errors_are_not_retried() {
    let (cache, attempts) = scripted(|_| Err(Error::permanent("disabled").into()));

    let error = cache.token().await.unwrap_err();

    assert!(!error.is_transient());
    assert_eq!(attempts.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn custom_errors_of_a_token_service_are_transient_and_become_the_source() {
    let (cache, _) = scripted(|_| Err("connection refused".into()));

    let error = cache.token().await.unwrap_err();

    assert!(error.is_token_service() && error.is_transient());
    assert_eq!(error.to_string(), "token service failed");
    assert_eq!(error.source().unwrap().to_string(), "connection refused");
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_obeyed_between_attempts() {
    let (cache, attempts) = scripted(|attempt| match attempt {
        1 => Err(Error::transient("slow down", Some(7 * SECOND)).into()),
        _ => token(attempt),
    });

    cache.token().await.unwrap();

    let pause = pauses(&attempts)[0];
    assert!(pause >= 7 * SECOND && pause < 11 * SECOND, "{pause:?}");
}

#[tokio::test(start_paused = true)]
async fn retry_after_beyond_the_deadline_ends_the_token_request_immediately() {
    let (cache, attempts) =
        scripted(|_| Err(Error::transient("slow down", Some(90 * SECOND)).into()));
    let start = Instant::now();

    let error = cache.token().await.unwrap_err();

    assert_eq!(start.elapsed(), Duration::ZERO);
    let pause = error.retry_after().unwrap();
    assert!(pause >= 90 * SECOND && pause <= 135 * SECOND, "{pause:?}");
    advance(pause - SECOND).await;
    cache.token().await.unwrap_err();
    assert_eq!(attempts.lock().unwrap().len(), 1);
    advance(SECOND).await;
    cache.token().await.unwrap_err();
    assert_eq!(attempts.lock().unwrap().len(), 2);
}

/// Larger values are mostly Unix times or milliseconds.
#[tokio::test(start_paused = true)]
async fn implausible_retry_after_falls_back_to_the_back_off() {
    let max = 300 * SECOND;
    for (retry_after, is_obeyed) in [
        (max, true),
        (max + Duration::from_nanos(1), false),
        (3600 * SECOND, false),
        (30_000 * SECOND, false),
        (1_764_324_000 * SECOND, false),
        (Duration::MAX, false),
    ] {
        let (cache, attempts) =
            scripted(move |_| Err(Error::transient("slow down", Some(retry_after)).into()));

        let error = cache.token().await.unwrap_err();

        let pause = error.retry_after().unwrap();
        let expected = if is_obeyed {
            max..=max.mul_f64(1.5)
        } else {
            SECOND.mul_f64(0.8)..=SECOND.mul_f64(1.2)
        };
        assert!(expected.contains(&pause), "{retry_after:?}: {pause:?}");
        let attempts_before = attempts.lock().unwrap().len();
        // One that is ignored doesn't end the token request either.
        assert_eq!(attempts_before, if is_obeyed { 1 } else { 3 });
        advance(pause).await;
        cache.token().await.unwrap_err();
        assert!(attempts.lock().unwrap().len() > attempts_before);
    }
}

#[tokio::test(start_paused = true)]
async fn max_retry_after_sets_what_is_obeyed() {
    let longest = Duration::MAX;
    let cache = TokenCache::builder()
        .max_retry_after(longest)
        .build(service_fn(move |_: TokenRequest| async move {
            let error = Error::transient("slow down", Some(longest));
            Err::<AccessToken, BoxError>(error.into())
        }));

    let error = cache.token().await.unwrap_err();

    let day = 24 * 3600 * SECOND;
    let pause = error.retry_after().unwrap();
    assert!(pause >= day && pause <= day.mul_f64(1.5), "{pause:?}");
}

#[tokio::test(start_paused = true)]
async fn reset_ends_the_pause_that_a_server_asked_for() {
    let (cache, attempts) = scripted(|attempt| match attempt {
        1 => Err(Error::transient("slow down", Some(200 * SECOND)).into()),
        _ => token(attempt),
    });
    cache.token().await.unwrap_err();
    cache.token().await.unwrap_err();
    assert_eq!(attempts.lock().unwrap().len(), 1);

    cache.reset();

    assert_eq!(cache.token().await.unwrap().expose(), "token-2");
}

#[tokio::test(start_paused = true)]
async fn a_token_request_is_bounded_in_time_including_its_pauses() {
    let (cache, attempts) =
        scripted(|_| Err(Error::transient("slow down", Some(9 * SECOND)).into()));
    let start = Instant::now();

    cache.token().await.unwrap_err();

    assert_eq!(attempts.lock().unwrap().len(), 3);
    assert!(start.elapsed() <= 30 * SECOND, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn timeout_has_the_error_of_the_previous_attempt_as_its_source() {
    for (name, attempt_timeout) in [("an attempt", 10 * SECOND), ("the deadline", 60 * SECOND)] {
        let has_failed = Arc::new(AtomicBool::new(false));
        let tokens = service_fn(move |_: TokenRequest| {
            let is_first = !has_failed.swap(true, Ordering::SeqCst);
            async move {
                if is_first {
                    return Err::<AccessToken, BoxError>("connection refused".into());
                }
                std::future::pending().await
            }
        });
        let builder = TokenCache::builder().attempt_timeout(attempt_timeout);

        let error = builder.build(tokens).token().await.unwrap_err();

        // Later attempts had no answer at all, which says less.
        assert!(error.is_timeout(), "{name}");
        let last = error.source().expect(name);
        assert_eq!(last.to_string(), "token service failed");
        assert_eq!(last.source().unwrap().to_string(), "connection refused");
    }
}

/// A token service whose first `silent` attempts get no answer. Counts its attempts.
fn silent_at_first(
    silent: usize,
) -> (
    impl Service<TokenRequest, Response = AccessToken, Error = BoxError, Future: Send + 'static>
    + Clone
    + Send,
    Arc<AtomicUsize>,
) {
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    let tokens = service_fn(move |_: TokenRequest| {
        let attempt = counted.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            if attempt <= silent {
                std::future::pending::<()>().await;
            }
            token(attempt)
        }
    });
    (tokens, attempts)
}

#[tokio::test(start_paused = true)]
async fn attempt_without_an_answer_is_followed_by_another_one() {
    // Pauses of up to 200 and 400 ms, which timers extend by a millisecond.
    for (name, silent, timeout, shortest, longest) in [
        ("one silent attempt", 1, None, 10_000, 10_201),
        ("two silent attempts", 2, None, 20_000, 20_602),
        ("a limit of two seconds", 1, Some(2 * SECOND), 2_000, 2_201),
        (
            "two attempts with a limit",
            2,
            Some(2 * SECOND),
            4_000,
            4_602,
        ),
    ] {
        let (tokens, attempts) = silent_at_first(silent);
        let mut builder = TokenCache::builder();
        if let Some(timeout) = timeout {
            builder = builder.attempt_timeout(timeout);
        }
        let cache = builder.build(tokens);
        let start = Instant::now();

        let answers = join_all((0..10).map(|_| cache.token())).await;

        let took = start.elapsed();
        let expected = Duration::from_millis(shortest)..=Duration::from_millis(longest);
        assert!(expected.contains(&took), "{name}: {took:?}");
        assert_eq!(attempts.load(Ordering::SeqCst), silent + 1, "{name}");
        for answer in answers {
            let token = answer.unwrap();
            assert_eq!(token.expose(), format!("token-{}", silent + 1), "{name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn error_of_an_attempt_without_an_answer_says_how_long_it_took() {
    let minute = 60 * SECOND;
    for (name, deadline, attempt_timeout, max_attempts, text) in [
        ("the only attempt", 30 * SECOND, 2 * SECOND, 1, "2s"),
        ("the last attempt", 30 * SECOND, 2 * SECOND, 3, "2s"),
        ("the deadline", 5 * SECOND, 2 * SECOND, 10, "5s"),
        ("a longer limit", 5 * SECOND, minute, 3, "5s"),
        ("no limit", 5 * SECOND, Duration::MAX, 3, "5s"),
        (
            "no time at all",
            5 * SECOND,
            Duration::ZERO,
            1,
            "less than 1ms",
        ),
    ] {
        let (tokens, _) = silent_at_first(usize::MAX);
        let cache = TokenCache::builder()
            .deadline(deadline)
            .attempt_timeout(attempt_timeout)
            .max_attempts(max_attempts)
            .build(tokens);
        let start = Instant::now();

        let error = cache.token().await.unwrap_err();

        assert!(error.is_timeout() && error.is_transient(), "{name}");
        assert_eq!(
            error.to_string(),
            format!("token service did not answer within {text}"),
            "{name}"
        );
        assert!(error.source().is_none(), "{name}");
        let took = start.elapsed();
        assert!(took <= deadline.min(10 * SECOND), "{name}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn error_after_an_attempt_without_an_answer_is_that_of_the_last_attempt() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let cache = TokenCache::builder()
        .max_attempts(2)
        .build(service_fn(move |_: TokenRequest| {
            let attempt = attempts.fetch_add(1, Ordering::SeqCst) + 1;
            async move {
                if attempt == 1 {
                    std::future::pending::<()>().await;
                }
                Err::<AccessToken, BoxError>("connection refused".into())
            }
        }));

    let error = cache.token().await.unwrap_err();

    assert!(error.is_token_service(), "{error}");
    assert_eq!(error.source().unwrap().to_string(), "connection refused");
}

/// A token endpoint that answers with `status` and `Retry-After` for a while. The times of its
/// requests are noted.
fn endpoint(
    status: u16,
    retry_after: &'static str,
    failures: usize,
    body: &'static str,
) -> (TokenCache, Arc<Mutex<Vec<Instant>>>) {
    endpoint_with(status, ("retry-after", retry_after), failures, body)
}

/// The same with another header.
fn endpoint_with(
    status: u16,
    header: (&'static str, &'static str),
    failures: usize,
    body: &'static str,
) -> (TokenCache, Arc<Mutex<Vec<Instant>>>) {
    let requests: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let noted = Arc::clone(&requests);
    let http = service_fn(move |_: Request<Full<Bytes>>| {
        let mut noted = noted.lock().unwrap();
        noted.push(Instant::now());
        let response = if noted.len() <= failures {
            let failure = Response::builder().status(status);
            failure.header(header.0, header.1).body(body)
        } else {
            let token = r#"{"access_token":"token-1","token_type":"Bearer","expires_in":1800}"#;
            Response::builder().body(token)
        };
        let response = response.unwrap().map(|body| Full::new(Bytes::from(body)));
        async { Ok::<_, BoxError>(response) }
    });
    let auth = ClientAuth::client_secret_basic("my-client", "s3cret");
    let tokens = TokenEndpoint::new(http, "https://auth.example/token", auth).unwrap();
    (TokenCache::new(tokens), requests)
}

/// Some servers send a Unix time, or milliseconds.
#[tokio::test(start_paused = true)]
async fn implausible_retry_after_of_a_token_endpoint_delays_nothing() {
    for retry_after in ["1764324000", "30000", "3600", "301", "18446744073709551615"] {
        // Over at once: the next attempt of the same token request gets the token.
        let (cache, requests) = endpoint(503, retry_after, 1, "");
        let start = Instant::now();
        cache.token().await.unwrap();
        assert!(start.elapsed() <= Duration::from_millis(201));
        assert_eq!(requests.lock().unwrap().len(), 2, "{retry_after}");

        // Over after the last attempt: the next token request follows the back-off.
        let (cache, requests) = endpoint(503, retry_after, 3, "");
        let error = cache.token().await.unwrap_err();
        let pause = error.retry_after().unwrap();
        assert!(pause <= SECOND.mul_f64(1.2), "{retry_after}: {pause:?}");
        advance(pause).await;
        cache.token().await.unwrap();
        assert_eq!(requests.lock().unwrap().len(), 4, "{retry_after}");
    }
}

#[tokio::test(start_paused = true)]
async fn plausible_retry_after_of_a_token_endpoint_is_obeyed() {
    for (retry_after, pause) in [("300", 300), ("60", 60)] {
        let (cache, requests) = endpoint(503, retry_after, 1, "");

        let error = cache.token().await.unwrap_err();

        let left = error.retry_after().unwrap();
        let expected = pause * SECOND..=pause * SECOND * 3 / 2;
        assert!(expected.contains(&left), "{retry_after}: {left:?}");
        advance(left - NANOSECOND).await;
        cache.token().await.unwrap_err();
        assert_eq!(requests.lock().unwrap().len(), 1, "{retry_after}");
        advance(NANOSECOND).await;
        cache.token().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_of_a_permanent_error_is_ignored() {
    let wrong = r#"{"error":"invalid_client"}"#;
    for (status, body) in [(401, wrong), (400, wrong), (403, ""), (401, "")] {
        let (cache, requests) = endpoint(status, "200", 1, body);

        let error = cache.token().await.unwrap_err();

        assert!(!error.is_transient(), "{status}: {error}");
        let pause = error.retry_after().unwrap();
        assert!(pause <= SECOND.mul_f64(1.2), "{status}: {pause:?}");
        advance(pause).await;
        cache.token().await.unwrap();
        assert_eq!(requests.lock().unwrap().len(), 2, "{status}");
    }
}

/// A server that refuses too many requests gets no second one without a pause that it asked for.
#[tokio::test(start_paused = true)]
async fn too_many_requests_are_retried_only_after_a_plausible_pause() {
    for (retry_after, attempts) in [("2", 2), ("301", 1), ("1764324000", 1), ("soon", 1)] {
        let (cache, requests) = endpoint(429, retry_after, 1, "");
        let start = Instant::now();

        let answer = cache.token().await;

        assert_eq!(requests.lock().unwrap().len(), attempts, "{retry_after}");
        match attempts {
            1 => {
                let pause = answer.unwrap_err().retry_after().unwrap();
                assert!(pause <= SECOND.mul_f64(1.2), "{retry_after}: {pause:?}");
            }
            _ => {
                answer.unwrap();
                let took = start.elapsed();
                assert!(took >= 2 * SECOND && took <= 4 * SECOND, "{took:?}");
            }
        }
    }
}

/// A server that is overloaded may send a header that says nothing.
#[tokio::test(start_paused = true)]
async fn too_many_requests_with_no_time_left_to_wait_are_not_retried() {
    for header in [
        ("retry-after", "0"),
        ("retry-after", "0.0"),
        ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("ratelimit-reset", "0"),
        ("ratelimit", r#""default";r=0;t=0"#),
        ("x-ratelimit-reset", "1000000001"),
        ("x-ms-retry-after-ms", "0"),
        ("retry-after-ms", "0"),
    ] {
        let (cache, requests) = endpoint_with(429, header, 3, "");

        let error = cache.token().await.unwrap_err();

        assert!(error.is_transient(), "{header:?}: {error}");
        assert_eq!(requests.lock().unwrap().len(), 1, "{header:?}");
        let pause = error.retry_after().unwrap();
        let back_off = SECOND.mul_f64(0.8)..=SECOND.mul_f64(1.2);
        assert!(back_off.contains(&pause), "{header:?}: {pause:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn reset_ends_a_cool_down() {
    let issuer = Issuer::new();
    let service = stack(&issuer, Api::accepting_none().service());
    call(&service).await.unwrap();
    call(&service).await.unwrap();
    assert_eq!(issuer.requests(), 2, "the second call is in the cool-down");

    service.cache().reset();
    call(&service).await.unwrap();

    // Another first token, and its renewal.
    assert_eq!(issuer.requests(), 4);
}

#[tokio::test(start_paused = true)]
async fn reset_leaves_a_token_request_to_its_waiters() {
    for fails in [false, true] {
        let issuer = Issuer::new().latency(4 * SECOND);
        let cache = issuer.cache();
        let mut before = tokio_test::task::spawn(cache.token());
        assert!(before.poll().is_pending());
        settle().await;
        issuer.fail(fails.then_some(Failure::Permanent));

        advance(SECOND).await;
        cache.reset();
        let mut after = tokio_test::task::spawn(cache.token());
        assert!(after.poll().is_pending());
        settle().await;
        assert_eq!(issuer.requests(), 2, "the next caller starts another");
        advance(3 * SECOND).await;
        settle().await;
        let Poll::Ready(answer) = before.poll() else {
            panic!("the first token request has ended");
        };
        assert!(after.poll().is_pending());
        issuer.fail(None);

        match answer {
            Ok(token) => assert_eq!((token.expose(), fails), ("token-1", false)),
            Err(error) => assert!(fails && error.is_token_service(), "{error}"),
        }
        // Neither its token nor its failure is kept.
        assert_eq!(after.await.unwrap().expose(), "token-2");
        assert_eq!(cache.token().await.unwrap().expose(), "token-2");
    }
}

#[tokio::test(start_paused = true)]
async fn reset_cancels_a_token_request_that_nobody_waits_for() {
    for is_reset in [false, true] {
        let issuer = Issuer::new().latency(4 * SECOND);
        let cache = issuer.cache();
        let mut waiter = tokio_test::task::spawn(cache.token());
        assert!(waiter.poll().is_pending());
        settle().await;
        drop(waiter);
        settle().await;

        if is_reset {
            cache.reset();
        }
        settle().await;

        let tasks = tokio::runtime::Handle::current().metrics();
        assert_eq!(tasks.num_alive_tasks(), usize::from(!is_reset));
        assert_eq!(issuer.requests(), 1);
    }
}

/// The next token request needs no pause, whatever the server said to the one before.
#[tokio::test(start_paused = true)]
async fn error_of_a_token_request_from_before_a_reset_asks_for_no_pause() {
    for is_reset in [false, true] {
        let issuer = Issuer::new().latency(SECOND);
        let cache = issuer.cache();
        issuer.fail(Failure::RateLimited);
        let mut waiters: Vec<_> = (0..3)
            .map(|_| tokio_test::task::spawn(cache.token()))
            .collect();
        assert!(waiters.iter_mut().all(|waiter| waiter.poll().is_pending()));
        settle().await;

        if is_reset {
            cache.reset();
        }
        let errors = join_all(waiters).await;

        assert_eq!(issuer.requests(), 1);
        for error in errors {
            let error = error.unwrap_err();
            assert!(error.is_token_service(), "{error}");
            assert_eq!(error.retry_after().is_none(), is_reset, "{error:?}");
        }
        issuer.fail(None);
        assert_eq!(cache.token().await.is_ok(), is_reset);
    }
}

#[tokio::test(start_paused = true)]
async fn failures_are_shared_by_all_waiters() {
    let issuer = Issuer::new().latency(Duration::from_millis(50));
    issuer.fail(Failure::Permanent);
    let service = stack(&issuer, Api::accepting_all().service());

    let errors = join_all((0..1000).map(|_| call(&service))).await;

    assert_eq!(issuer.requests(), 1);
    for error in errors {
        let error = error.unwrap_err();
        let error = error.downcast_ref::<Error>().unwrap();
        assert!(error.is_token_service());
        assert!(error.retry_after().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn failures_are_short_and_honest_about_the_next_attempt() {
    let issuer = Issuer::new();
    issuer.fail(Failure::Permanent);
    let cache = issuer.cache();
    let first = cache.token().await.unwrap_err();
    let pause = first.retry_after().unwrap();
    assert!(
        pause >= SECOND * 4 / 5 && pause <= SECOND * 6 / 5,
        "{pause:?}"
    );

    // Callers get the same error immediately, with the time that is left.
    advance(pause / 2).await;
    let start = Instant::now();
    let second = cache.token().await.unwrap_err();
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(second.to_string(), first.to_string());
    assert_eq!(second.retry_after(), Some(pause - pause / 2));
    advance(pause - pause / 2 - Duration::from_nanos(1)).await;
    cache.token().await.unwrap_err();
    assert_eq!(issuer.requests(), 1);

    // After the back-off, there is another token request.
    issuer.fail(None);
    advance(Duration::from_nanos(1)).await;
    assert_eq!(cache.token().await.unwrap().expose(), "token-2");
}

#[tokio::test(start_paused = true)]
async fn back_off_doubles_to_a_minute_and_starts_over_after_a_success() {
    let issuer = Issuer::new().lifetime(Duration::ZERO);
    let cache = issuer.cache();
    for _ in 0..2 {
        issuer.fail(Failure::Permanent);
        for expected in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            let pause = cache.token().await.unwrap_err().retry_after().unwrap();
            let expected = expected * SECOND;
            assert!(
                pause >= expected * 4 / 5 && pause <= expected * 6 / 5,
                "{pause:?}"
            );
            advance(pause).await;
        }
        issuer.fail(None);
        cache.token().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn outage_shorter_than_the_lifetime_of_the_token_does_not_affect_calls() {
    let issuer = Issuer::new();
    let service = stack(&issuer, Api::accepting_all().service());
    call(&service).await.unwrap();

    issuer.fail(Failure::Transient);
    for second in 0..1790 + 600 {
        if second == 1700 {
            issuer.fail(None);
        }
        call(&service)
            .await
            .expect("the token is used until it expires");
        settle().await;
        advance(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn outage_longer_than_the_lifetime_of_the_token_causes_few_token_requests() {
    let issuer = Issuer::new();
    let service = stack(&issuer, Api::accepting_all().service());
    call(&service).await.unwrap();
    issuer.fail(Failure::Transient);
    advance(1800 * SECOND).await;

    // Ten calls per second, for an hour.
    let before = issuer.requests();
    for _ in 0..36_000 {
        let start = Instant::now();
        call(&service).await.unwrap_err();
        assert!(start.elapsed() < SECOND);
        advance(Duration::from_millis(100)).await;
    }

    // Once the back-off has grown, there are three attempts per minute.
    let requests = issuer.requests() - before;
    assert!((150..=260).contains(&requests), "{requests}");
}
