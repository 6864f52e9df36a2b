//! Fresh, due for refresh, expired: at each boundary and a nanosecond before it, under paused time.

mod support;

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::FutureExt;

use support::{Api, Failure, Issuer, LONG, call, request, settle, stack};
use tokio::time::{Instant, advance, sleep};
use tower::{BoxError, Layer, Service, service_fn};
use tower_client_credentials::{
    AccessToken, ClientCredentialsLayer, Error, TokenCache, TokenRequest,
};

const NANOSECOND: Duration = Duration::from_nanos(1);

/// When a token that lives for half an hour is due for refresh: one refresh window before it expires.
const DUE_AT: Duration = Duration::from_secs(1800 - 10 - 300);

/// When it expires: one expiry margin before its end.
const EXPIRED_AT: Duration = Duration::from_secs(1800 - 10);

/// A wall clock that advances with tokio's paused clock, however slow the machine is.
fn paused_wall_clock() -> impl Fn() -> SystemTime + Send + Sync + 'static {
    let start = Instant::now();
    move || SystemTime::UNIX_EPOCH + start.elapsed()
}

fn without_jitter(issuer: &Issuer) -> TokenCache {
    TokenCache::builder().jitter(0.0).build(issuer.service())
}

#[tokio::test(start_paused = true)]
async fn fresh_token_is_used_without_a_token_request() {
    let issuer = Issuer::new();
    let cache = without_jitter(&issuer);
    cache.token().await.unwrap();

    advance(DUE_AT - NANOSECOND).await;
    let token = cache.token().await.unwrap();
    settle().await;

    assert_eq!(token.expose(), "token-1");
    assert_eq!(issuer.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn token_due_for_refresh_is_used_while_its_refresh_runs() {
    let issuer = Issuer::new();
    let cache = without_jitter(&issuer);
    cache.token().await.unwrap();

    advance(DUE_AT).await;
    let during = cache.token().await.unwrap();
    settle().await;
    let after = cache.token().await.unwrap();

    assert_eq!(during.expose(), "token-1");
    assert_eq!(after.expose(), "token-2");
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn token_due_for_refresh_is_used_until_it_expires() {
    let issuer = Issuer::new();
    let cache = without_jitter(&issuer);
    cache.token().await.unwrap();

    issuer.fail(Failure::Silence);
    advance(EXPIRED_AT - NANOSECOND).await;
    let token = cache.token().await.unwrap();

    assert_eq!(token.expose(), "token-1");
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_not_sent() {
    let issuer = Issuer::new();
    let api = Api::accepting_all();
    let service = ClientCredentialsLayer::with_cache(without_jitter(&issuer)).layer(api.service());
    call(&service).await.unwrap();

    advance(EXPIRED_AT).await;
    call(&service).await.unwrap();

    assert_eq!(api.tokens(), ["token-1", "token-2"]);
}

/// A service that has checked the cache doesn't check it again for a millisecond.
#[tokio::test(start_paused = true)]
async fn an_expired_token_is_not_sent_even_if_the_cache_was_just_checked() {
    const HALF_A_MILLISECOND: Duration = Duration::from_micros(500);
    let issuer = Issuer::new();
    let api = Api::accepting_all();
    let cache = TokenCache::builder()
        .refresh_window(Duration::from_secs(10))
        .jitter(0.0)
        .build(issuer.service());
    let mut service = ClientCredentialsLayer::with_cache(cache).layer(api.service());
    service.call(request()).await.unwrap();
    // The refresh hangs until after the token has expired.
    issuer.fail(Failure::Silence);
    advance(EXPIRED_AT - Duration::from_secs(10)).await;
    service.call(request()).await.unwrap();
    settle().await;

    advance(Duration::from_secs(10) - HALF_A_MILLISECOND).await;
    service.call(request()).await.unwrap();
    advance(HALF_A_MILLISECOND).await;
    let waiting = service.call(request()).now_or_never();

    assert!(waiting.is_none());
    assert_eq!(api.tokens(), ["token-1"; 3]);
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn jitter_delays_a_refresh_by_at_most_half_of_the_window() {
    let mut refreshed_at = Vec::new();
    for _ in 0..200 {
        let issuer = Issuer::new();
        let cache = issuer.cache();
        cache.token().await.unwrap();
        let start = Instant::now();
        advance(DUE_AT - NANOSECOND).await;
        while issuer.requests() == 1 {
            cache.token().await.unwrap();
            settle().await;
            advance(Duration::from_secs(1)).await;
        }
        refreshed_at.push(start.elapsed());
    }

    let earliest = *refreshed_at.iter().min().unwrap();
    let latest = *refreshed_at.iter().max().unwrap();
    assert!(earliest >= DUE_AT, "{earliest:?}");
    assert!(latest <= DUE_AT + Duration::from_secs(152), "{latest:?}");
    assert!(
        latest - earliest > Duration::from_secs(100),
        "{earliest:?} to {latest:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn no_request_waits_for_a_routine_refresh() {
    for lifetime in [1, 2, 60, 1800] {
        let latency = Duration::from_millis(50);
        let issuer = Issuer::new()
            .lifetime(Duration::from_secs(lifetime))
            .latency(latency);
        let cache = TokenCache::builder()
            .wall_clock(paused_wall_clock())
            .build(issuer.service());
        let api = Api::accepting_all();
        let service = ClientCredentialsLayer::with_cache(cache).layer(api.service());

        // Traffic for twenty lifetimes, with forty calls in each.
        let pause = Duration::from_secs(lifetime) / 40;
        let mut waited = Vec::new();
        for number in 0..800 {
            let start = Instant::now();
            call(&service).await.unwrap();
            if start.elapsed() > Duration::ZERO {
                waited.push(number);
            }
            settle().await;
            advance(pause).await;
            settle().await;
        }

        assert_eq!(waited, [0], "with tokens of {lifetime} s");
        let requests = issuer.requests();
        assert!(
            (20..=30).contains(&requests),
            "{requests} with {lifetime} s"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_just_obtained_is_used() {
    let hour = Duration::from_secs(3600);
    for lifetime in [0, 1, 10, 100, 1000, 10_000] {
        let issuer = Issuer::new().lifetime(Duration::from_millis(lifetime));
        let api = Api::accepting_all();
        let cache = TokenCache::builder()
            .refresh_window(hour)
            .expiry_margin(hour)
            .wall_clock(paused_wall_clock())
            .build(issuer.service());
        let service = ClientCredentialsLayer::with_cache(cache).layer(api.service());

        let response = call(&service).await.unwrap();

        assert_eq!(response.body(), "accepted", "with tokens of {lifetime} ms");
        assert_eq!(issuer.requests(), 1, "with tokens of {lifetime} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_took_longer_to_get_than_it_lives_is_used() {
    let issuer = Issuer::new()
        .lifetime(Duration::from_secs(1))
        .latency(Duration::from_secs(5));
    let api = Api::accepting_all();
    let service = stack(&issuer, api.service());

    let calls = (0..100).map(|_| call(&service));
    futures_util::future::try_join_all(calls).await.unwrap();

    assert_eq!(issuer.requests(), 1);
    assert_eq!(api.received().len(), 100);
}

#[tokio::test(start_paused = true)]
async fn token_with_a_lifetime_of_zero_serves_only_the_calls_that_waited_for_it() {
    let issuer = Issuer::new()
        .lifetime(Duration::ZERO)
        .latency(Duration::from_millis(50));
    let api = Api::accepting_all();
    let service = stack(&issuer, api.service());

    let calls = (0..100).map(|_| call(&service));
    futures_util::future::try_join_all(calls).await.unwrap();
    assert_eq!(issuer.requests(), 1);

    call(&service).await.unwrap();
    assert_eq!(issuer.requests(), 2);
    assert_eq!(api.tokens().last().unwrap(), "token-2");
}

#[tokio::test(start_paused = true)]
async fn lifetimes_are_capped_at_a_year() {
    let issuer = Issuer::new().lifetime(Duration::MAX);
    let cache = without_jitter(&issuer);
    cache.token().await.unwrap();

    advance(Duration::from_secs(364 * 24 * 60 * 60)).await;
    assert_eq!(cache.token().await.unwrap().expose(), "token-1");

    advance(Duration::from_secs(24 * 60 * 60)).await;
    assert_eq!(cache.token().await.unwrap().expose(), "token-2");
}

#[tokio::test(start_paused = true)]
async fn lifetime_defaults_to_five_minutes() {
    let issuer = Issuer::new().lifetime(None);
    let cache = without_jitter(&issuer);
    cache.token().await.unwrap();

    advance(Duration::from_secs(300 - 10 - 60) - NANOSECOND).await;
    cache.token().await.unwrap();
    settle().await;
    assert_eq!(issuer.requests(), 1);

    advance(Duration::from_secs(60) + NANOSECOND).await;
    assert_eq!(cache.token().await.unwrap().expose(), "token-2");
}

/// Google's metadata server returns the same token until 30 s before its end.
#[tokio::test(start_paused = true)]
async fn unchanged_token_is_requested_again_after_half_of_its_remaining_lifetime() {
    let start = Instant::now();
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = requests.clone();
    let unchanging = service_fn(move |_: TokenRequest| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move {
            let left = LONG.saturating_sub(start.elapsed());
            Ok::<_, BoxError>(AccessToken::new("the-same")?.with_lifetime(left))
        }
    });
    let cache = TokenCache::new(unchanging);

    while start.elapsed() < LONG - Duration::from_secs(30) {
        cache.token().await.unwrap();
        settle().await;
        advance(Duration::from_millis(500)).await;
    }

    // At most 310 s are left when the token is due for the first time. Each request halves that.
    let requests = requests.load(Ordering::SeqCst);
    assert!((3..=12).contains(&requests), "{requests}");
}

#[tokio::test(start_paused = true)]
async fn failed_refresh_does_not_affect_calls_until_the_token_expires() {
    let issuer = Issuer::new();
    let api = Api::accepting_all();
    let service = ClientCredentialsLayer::with_cache(without_jitter(&issuer)).layer(api.service());
    call(&service).await.unwrap();

    issuer.fail(Failure::Transient);
    advance(DUE_AT).await;
    for _ in 0..299 {
        let start = Instant::now();
        call(&service).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        advance(Duration::from_secs(1)).await;
        settle().await;
    }

    // The back-off is 1, 2, 4 ... 60 s: about ten token requests of three attempts in five minutes.
    let requests = issuer.requests();
    assert!((20..=36).contains(&requests), "{requests}");
}

/// Name, stated lifetime, when the call is made, and whether it is served. Lifetimes that aren't
/// stated are assumed to be five minutes.
const LAST_RESORTS: &[(&str, Option<u64>, Duration, bool)] = &[
    ("at the expiry", Some(1800), EXPIRED_AT, true),
    (
        "just before the end",
        Some(1800),
        Duration::from_nanos(1_800_000_000_000 - 1),
        true,
    ),
    ("at the end", Some(1800), LONG, false),
    (
        "an hour later",
        Some(1800),
        Duration::from_secs(5400),
        false,
    ),
    (
        "at the expiry of ten seconds",
        Some(10),
        Duration::from_secs(9),
        true,
    ),
    (
        "just before the end of ten seconds",
        Some(10),
        Duration::from_nanos(10_000_000_000 - 1),
        true,
    ),
    (
        "at the end of ten seconds",
        Some(10),
        Duration::from_secs(10),
        false,
    ),
    (
        "at the expiry of an assumed lifetime",
        None,
        Duration::from_secs(290),
        true,
    ),
    (
        "just before the end of an assumed lifetime",
        None,
        Duration::from_nanos(300_000_000_000 - 1),
        true,
    ),
    (
        "at the end of an assumed lifetime",
        None,
        Duration::from_secs(300),
        false,
    ),
];

/// The API may accept a token until its stated end. The margin before that is for clocks that differ.
#[tokio::test(start_paused = true)]
async fn token_that_cannot_be_replaced_serves_until_its_stated_end() {
    for &(name, lifetime, called_at, is_served) in LAST_RESORTS {
        for in_back_off in [false, true] {
            let issuer = Issuer::new().lifetime(lifetime.map(Duration::from_secs));
            let api = Api::accepting_all();
            let cache = without_jitter(&issuer);
            let service = ClientCredentialsLayer::with_cache(cache.clone()).layer(api.service());
            call(&service).await.unwrap();
            issuer.fail(Failure::Permanent);
            // The first of the two calls sends the token request.
            let calls = 1 + usize::from(in_back_off);
            advance(called_at).await;

            for number in 0..calls {
                let name = format!("{name}, call {number}");
                let result = call(&service).await;
                assert_eq!(result.is_ok(), is_served, "{name}");
                if let Err(error) = result {
                    let error = error.downcast_ref::<Error>().unwrap();
                    assert!(error.is_token_service(), "{name}: {error}");
                }
                let token = cache.token().await;
                assert_eq!(token.is_ok(), is_served, "{name}");
                assert_eq!(issuer.requests(), 2, "{name}");
            }
            let sent = 1 + if is_served { calls } else { 0 };
            assert_eq!(api.tokens(), vec!["token-1"; sent], "{name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn token_that_the_api_rejected_is_no_last_resort() {
    let issuer = Issuer::new();
    let cache = without_jitter(&issuer);
    let token = cache.token().await.unwrap();
    issuer.fail(Failure::Permanent);
    advance(EXPIRED_AT - Duration::from_secs(1)).await;
    cache.reject(&token);
    assert_eq!(cache.token().await.unwrap().expose(), "token-1");

    advance(Duration::from_secs(1)).await;

    assert!(cache.token().await.unwrap_err().is_token_service());
}

/// The call itself saw the rejection of the token, which expired meanwhile.
#[tokio::test(start_paused = true)]
async fn token_is_no_last_resort_for_the_call_that_it_was_rejected_for() {
    let issuer = Issuer::new();
    let api = Api::accepting_none().latency(Duration::from_millis(500));
    let service = ClientCredentialsLayer::with_cache(without_jitter(&issuer)).layer(api.service());
    service.cache().token().await.unwrap();
    issuer.fail(Failure::Permanent);
    advance(EXPIRED_AT - NANOSECOND).await;

    let response = call(&service).await.unwrap();

    assert_eq!(response.status(), http::StatusCode::UNAUTHORIZED);
    assert_eq!(api.tokens(), ["token-1"]);
}

/// The scope of the tokens of a service, whose memory shows how long each token is kept.
#[tokio::test(start_paused = true)]
async fn keep_warm_releases_a_rejected_token_when_its_renewal_has_landed() {
    for is_kept_warm in [true, false] {
        let scopes: Arc<Mutex<Vec<Weak<str>>>> = Arc::default();
        let noted = Arc::clone(&scopes);
        let tokens = service_fn(move |_: TokenRequest| {
            let scope: Arc<str> = Arc::from("orders.read");
            let mut noted = noted.lock().unwrap();
            noted.push(Arc::downgrade(&scope));
            let token = AccessToken::new(format!("token-{}", noted.len()));
            async move { Ok::<_, BoxError>(token?.with_scope(scope).with_lifetime(LONG)) }
        });
        let builder = TokenCache::builder().jitter(0.0);
        let cache = match is_kept_warm {
            true => builder.keep_warm().build(tokens),
            false => builder.build(tokens),
        };
        let kept = || {
            let scopes = scopes.lock().unwrap();
            let kept = scopes.iter().map(|scope| scope.strong_count() > 0);
            kept.collect::<Vec<_>>()
        };

        let token = cache.token().await.unwrap();
        cache.reject(&token);
        drop(token);
        assert_eq!(kept(), [true]);
        cache.token().await.unwrap();
        settle().await;

        assert_eq!(kept(), [false, true], "kept warm: {is_kept_warm}");
        let tasks = tokio::runtime::Handle::current().metrics();
        assert_eq!(tasks.num_alive_tasks() > 0, is_kept_warm);
        drop(cache);
        settle().await;
        assert_eq!(kept(), [false, false]);
    }
}

#[tokio::test(start_paused = true)]
async fn keep_warm_has_a_token_ready_after_hours_without_calls() {
    let issuer = Issuer::new().latency(Duration::from_millis(50));
    let cache = TokenCache::builder().keep_warm().build(issuer.service());
    cache.token().await.unwrap();

    for _ in 0..10 {
        // Hours without a call, in steps so that timers fire on time.
        for _ in 0..3600 {
            advance(Duration::from_secs(1)).await;
        }
        let start = Instant::now();
        cache.token().await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    let requests = issuer.requests();
    assert!((20..=27).contains(&requests), "{requests}");
}

#[tokio::test(start_paused = true)]
async fn keep_warm_ends_with_the_last_handle() {
    let issuer = Issuer::new();
    let cache = TokenCache::builder().keep_warm().build(issuer.service());
    let other = cache.clone();
    cache.token().await.unwrap();
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    settle().await;
    assert_eq!(tasks(), 1);

    drop(cache);
    settle().await;
    assert_eq!(tasks(), 1);
    drop(other);
    settle().await;

    assert_eq!(tasks(), 0);
    assert_eq!(issuer.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn keep_warm_survives_an_outage_and_respects_the_back_off() {
    let issuer = Issuer::new();
    let cache = TokenCache::builder().keep_warm().build(issuer.service());
    cache.token().await.unwrap();

    issuer.fail(Failure::Permanent);
    for _ in 0..7200 {
        advance(Duration::from_secs(1)).await;
        settle().await;
    }
    let requests = issuer.requests();
    assert!((80..=150).contains(&requests), "{requests}");
    assert!(
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
            <= 2
    );

    issuer.fail(None);
    for _ in 0..75 {
        advance(Duration::from_secs(1)).await;
        settle().await;
    }
    let start = Instant::now();
    cache.token().await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn keep_warm_requests_tokens_with_a_lifetime_of_zero_at_most_once_a_second() {
    let issuer = Issuer::new().lifetime(Duration::ZERO);
    let cache = TokenCache::builder().keep_warm().build(issuer.service());
    cache.token().await.unwrap();

    for _ in 0..1000 {
        advance(Duration::from_millis(10)).await;
        settle().await;
    }

    assert!(issuer.requests() <= 11, "{}", issuer.requests());
}

/// A container can be paused for longer than a token request may take.
#[tokio::test(start_paused = true)]
async fn keep_warm_continues_after_the_process_was_paused_during_a_refresh() {
    let issuer = Issuer::new();
    let cache = TokenCache::builder()
        .jitter(0.0)
        .keep_warm()
        .build(issuer.service());
    cache.token().await.unwrap();
    issuer.fail(Failure::Silence);
    sleep(Duration::from_secs(1491)).await;
    assert_eq!(issuer.requests(), 2, "the refresh is under way");

    advance(Duration::from_secs(40)).await;
    issuer.fail(None);
    sleep(Duration::from_secs(60)).await;

    assert_eq!(issuer.requests(), 3);
    assert!(cache.token().now_or_never().is_some(), "a token is there");
}

#[tokio::test(start_paused = true)]
async fn keep_warm_continues_after_a_reset_during_a_refresh() {
    let issuer = Issuer::new().latency(Duration::from_secs(5));
    let cache = TokenCache::builder()
        .jitter(0.0)
        .keep_warm()
        .build(issuer.service());
    cache.token().await.unwrap();
    // The refresh starts after 1490 s and takes 5 s.
    sleep(Duration::from_secs(1486)).await;
    assert_eq!(issuer.requests(), 2, "the refresh is under way");

    cache.reset();
    sleep(Duration::from_secs(10)).await;

    assert_eq!(issuer.requests(), 3);
    let token = cache.token().now_or_never().expect("a token is there");
    assert_eq!(token.unwrap().expose(), "token-3");
    sleep(Duration::from_secs(1500)).await;
    assert_eq!(issuer.requests(), 4, "it is refreshed again");
}

#[tokio::test(start_paused = true)]
async fn keep_warm_notices_within_a_minute_that_the_machine_was_suspended() {
    let (issuer, wall) = (Issuer::new(), Arc::new(Mutex::new(SystemTime::UNIX_EPOCH)));
    let cache = TokenCache::builder()
        .jitter(0.0)
        .keep_warm()
        .wall_clock({
            let (wall, start) = (Arc::clone(&wall), Instant::now());
            move || *wall.lock().unwrap() + start.elapsed()
        })
        .build(issuer.service());
    cache.token().await.unwrap();

    *wall.lock().unwrap() += Duration::from_secs(3600);
    sleep(Duration::from_secs(61)).await;

    assert_eq!(issuer.requests(), 2);
}
