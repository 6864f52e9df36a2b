//! Many keys in one cache: how a request chooses its key, that keys don't touch each other, and which
//! keys are evicted.

mod support;

use std::{
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use http::{HeaderMap, Request, Response, StatusCode, header::AUTHORIZATION};
use support::{
    Api, call,
    keyed::{KeyedIssuer, call_with, request_with, scope, tenant},
    rejection, settle, settle_briefly,
};
use tokio::{
    runtime::Handle,
    time::{Instant, advance, sleep},
};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, ClientCredentialsLayer, Error, NotReplayed, Rejection, TokenCache,
    TokenCacheBuilder, TokenOutcome, TokenRequest, replay::NoReplay,
};

const LATENCY: Duration = Duration::from_millis(80);

const SECOND: Duration = Duration::from_secs(1);

const MINUTE: Duration = Duration::from_secs(60);

fn max_tokens(tokens: usize) -> TokenCacheBuilder {
    TokenCache::builder().max_tokens(NonZeroUsize::new(tokens).unwrap())
}

/// Requests tokens of other keys, so that any key that can be evicted from a cache of few keys is.
async fn churn(cache: &TokenCache, round: &str) {
    for number in 0..200 {
        let other = cache.with_parameters(tenant(format!("{round}-{number}")));
        other.token().await.unwrap();
    }
}

// --- Which key a request uses ---

#[tokio::test(start_paused = true)]
async fn extension_precedes_the_function_and_the_function_precedes_the_cache() {
    let issuer = KeyedIssuer::new();
    let cache = issuer.build(TokenCache::builder().parameters(scope("own")));
    let api = Api::accepting_all();
    let service = ClientCredentialsLayer::with_cache(cache)
        .parameters_by(|request| {
            let path = request.uri.path();
            path.strip_prefix("/tenants/").map(tenant)
        })
        .layer(api.service());

    for (path, extension, token) in [
        ("/", None, "own-1"),
        ("/tenants/a", None, "a-1"),
        ("/", Some(scope("b")), "b-1"),
        ("/tenants/a", Some(scope("b")), "b-1"),
        ("/tenants/a", Some(scope("own")), "own-1"),
    ] {
        let mut request = Request::get(format!("https://api.example{path}"));
        if let Some(parameters) = extension {
            request = request.extension(parameters);
        }
        let request = request.body(String::new()).unwrap();

        service.clone().oneshot(request).await.unwrap();

        assert_eq!(api.tokens().last().unwrap(), token);
    }
    assert_eq!(issuer.requests(), 3);
}

#[tokio::test(start_paused = true)]
async fn parameters_of_a_request_replace_those_of_the_cache_tenant_included() {
    let issuer = KeyedIssuer::new();
    let own = scope("own").with_audience("own").with_tenant("own");
    let cache = issuer.build(TokenCache::builder().parameters(own));
    let service = ClientCredentialsLayer::with_cache(cache).layer(Api::accepting_all().service());

    call_with(&service, scope("b")).await.unwrap();

    let parameters = &issuer.received()[0].parameters;
    assert_eq!(parameters.scopes(), ["b"]);
    assert!(parameters.audiences().is_empty());
    assert_eq!(parameters.tenant(), None);
}

#[tokio::test(start_paused = true)]
async fn requests_and_handles_with_equal_parameters_share_a_token() {
    let issuer = KeyedIssuer::new();
    let cache = issuer.cache();
    let api = Api::accepting_all();
    let service = ClientCredentialsLayer::with_cache(cache.clone()).layer(api.service());

    call_with(&service, scope("b a")).await.unwrap();
    call_with(&service, scope("a").with_scope("b"))
        .await
        .unwrap();
    let handle = cache.with_parameters(scope("a a b"));
    let of_another_handle = cache.with_parameters(tenant("t"));
    let token = handle.token().await.unwrap();
    let same = of_another_handle.with_parameters(scope("a b"));

    assert_eq!(api.tokens(), ["b+a-1"; 2]);
    assert_eq!(token.expose(), "b+a-1");
    assert_eq!(same.token().await.unwrap().expose(), "b+a-1");
    assert_eq!(issuer.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn handle_with_the_parameters_of_the_cache_is_a_handle_to_its_own_token() {
    let issuer = KeyedIssuer::new();
    let cache = issuer.build(TokenCache::builder().parameters(scope("a b")));
    let token = cache.token().await.unwrap();

    let same = cache.with_parameters(tenant("t"));
    let same = same.with_parameters(scope("b a"));

    assert_eq!(same.token().await.unwrap().expose(), token.expose());
    assert_eq!(issuer.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn tenants_do_not_share_a_token() {
    let issuer = KeyedIssuer::new();
    let api = Api::accepting_all();
    let service = ClientCredentialsLayer::new(issuer.service()).layer(api.service());

    for parameters in [
        scope("s"),
        scope("s").with_tenant("a"),
        scope("s").with_tenant("b"),
        scope("s").with_tenant(""),
    ] {
        call_with(&service, parameters).await.unwrap();
    }

    assert_eq!(api.tokens(), ["s-1", "a-1", "b-1", "-1"]);
    assert_eq!(issuer.requests(), 4);
}

#[tokio::test(start_paused = true)]
async fn one_token_request_per_key_for_10_000_calls_over_10_keys() {
    let issuer = KeyedIssuer::new().latency(LATENCY);
    let api = Api::accepting_all();
    let service = ClientCredentialsLayer::new(issuer.service()).layer(api.service());
    let key = |number: usize| format!("key{}", number % 10);

    let calls = (0..10_000).map(|number| call_with(&service, tenant(key(number))));
    let responses = join_all(calls).await;

    assert!(responses.iter().all(Result::is_ok));
    assert_eq!(issuer.requests(), 10);
    assert_eq!(issuer.most_under_way(), 10);
    let tokens = api.tokens();
    for number in 0..10 {
        let token = format!("{}-1", key(number));
        let sent = tokens.iter().filter(|it| **it == token).count();
        assert_eq!(sent, 1000);
    }
}

#[tokio::test(start_paused = true)]
async fn one_token_request_per_key_renews_the_rejected_tokens_of_10_keys() {
    let issuer = KeyedIssuer::new().latency(LATENCY);
    let api = Api::accepting(|token| token.ends_with("-2")).latency(LATENCY);
    let service = ClientCredentialsLayer::new(issuer.service()).layer(api.service());
    let key = |number: usize| format!("key{}", number % 10);

    let calls = (0..10_000).map(|number| call_with(&service, tenant(key(number))));
    let responses = join_all(calls).await;

    let is_ok = |it: &Result<Response<String>, _>| it.as_ref().unwrap().status() == StatusCode::OK;
    assert!(responses.iter().all(is_ok));
    assert_eq!(issuer.requests(), 20);
}

#[tokio::test(start_paused = true)]
async fn panic_of_the_function_reaches_the_caller_and_leaves_the_service_usable() {
    let issuer = KeyedIssuer::new();
    let api = Api::accepting_all();
    let mut service = ClientCredentialsLayer::new(issuer.service())
        .parameters_by(|request| match request.uri.path() {
            "/panic" => panic!("the function panics on purpose"),
            _ => Some(tenant("a")),
        })
        .layer(api.service());
    let request = |path: &str| {
        let request = Request::get(format!("https://api.example{path}"));
        request.body(String::new()).unwrap()
    };

    let panicking = || drop(service.call(request("/panic")));
    let panicked = catch_unwind(AssertUnwindSafe(panicking));
    service.call(request("/")).await.unwrap();

    assert!(panicked.is_err());
    assert_eq!(api.tokens(), ["a-1"]);
    assert_eq!(issuer.requests(), 1);
}

// --- Keys don't touch each other ---

#[tokio::test(start_paused = true)]
async fn rejection_of_one_key_does_not_touch_another() {
    let issuer = KeyedIssuer::new();
    let api = Api::accepting(|token| token != "b-1");
    let service = ClientCredentialsLayer::new(issuer.service()).layer(api.service());

    for key in ["a", "b", "a", "b"] {
        let response = call_with(&service, tenant(key)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
    call(&service).await.unwrap();

    assert_eq!(api.tokens(), ["a-1", "b-1", "b-2", "a-1", "b-2", "none-1"]);
    assert_eq!(issuer.rejected("b"), [None, Some("b-1".to_owned())]);
    assert_eq!(issuer.requests(), 4);
}

#[tokio::test(start_paused = true)]
async fn rejection_names_a_token_of_the_handles_own_key() {
    let issuer = KeyedIssuer::new();
    let cache = issuer.cache();
    let (a, b) = (
        cache.with_parameters(tenant("a")),
        cache.with_parameters(tenant("b")),
    );
    let token = a.token().await.unwrap();
    b.token().await.unwrap();

    assert!(matches!(b.reject(&token), Rejection::Replaced));
    assert!(matches!(cache.reject(&token), Rejection::Replaced));
    assert!(b.current().is_some());
    assert!(matches!(a.reject(&token), Rejection::Withheld));

    assert_eq!(a.token().await.unwrap().expose(), "a-2");
    assert_eq!(b.token().await.unwrap().expose(), "b-1");
}

#[tokio::test(start_paused = true)]
async fn cool_down_of_one_key_does_not_touch_another() {
    let issuer = KeyedIssuer::new();
    let api = Api::accepting(|token| !token.starts_with("b-") && token != "a-1");
    let service = ClientCredentialsLayer::new(issuer.service()).layer(api.service());

    call_with(&service, tenant("b")).await.unwrap();
    let cooling_down = call_with(&service, tenant("b")).await.unwrap();
    let other = call_with(&service, tenant("a")).await.unwrap();

    let outcome: &TokenOutcome = cooling_down.extensions().get().unwrap();
    let reason = outcome.not_replayed();
    assert!(
        matches!(reason, Some(NotReplayed::CoolingDown)),
        "{reason:?}"
    );
    assert_eq!(other.status(), StatusCode::OK);
    assert_eq!(issuer.requests_for("a"), 2);
    assert_eq!(issuer.requests_for("b"), 2);
}

#[tokio::test(start_paused = true)]
async fn failure_and_reset_of_one_key_do_not_touch_another() {
    let issuer = KeyedIssuer::new();
    let cache = issuer.cache();
    let (a, b) = (
        cache.with_parameters(tenant("a")),
        cache.with_parameters(tenant("b")),
    );
    issuer.fail("b", Error::permanent("unknown tenant"));

    b.token().await.unwrap_err();
    // Within the back-off of `b`, which costs no token request.
    a.token().await.unwrap();
    cache.token().await.unwrap();
    let error = b.token().await.unwrap_err();

    assert!(error.is_token_service() && error.retry_after().is_some());
    assert_eq!(issuer.requests_for("b"), 1);
    assert_eq!(issuer.requests(), 3);

    // A reset of other keys doesn't end the back-off.
    issuer.fail("b", None);
    a.reset();
    cache.reset();
    b.token().await.unwrap_err();
    b.reset();
    assert_eq!(b.token().await.unwrap().expose(), "b-2");
    assert_eq!(a.token().await.unwrap().expose(), "a-2");
}

#[tokio::test(start_paused = true)]
async fn calls_of_one_key_do_not_wait_for_the_renewal_of_another() {
    let issuer = KeyedIssuer::new();
    let api = Api::accepting(|token| token != "b-1");
    let service = ClientCredentialsLayer::new(issuer.service()).layer(api.service());
    call_with(&service, tenant("a")).await.unwrap();
    let b = service.cache().with_parameters(tenant("b"));
    b.token().await.unwrap();
    issuer.slow_down("b", 5 * SECOND);

    let renewing = tokio::spawn({
        let service = service.clone();
        async move { call_with(&service, tenant("b")).await.map(drop) }
    });
    settle().await;
    let start = Instant::now();
    for key in ["a", "c"] {
        call_with(&service, tenant(key)).await.unwrap();
    }

    assert_eq!(issuer.under_way(), 1);
    assert_eq!(start.elapsed(), Duration::ZERO);
    renewing.await.unwrap().unwrap();
    assert_eq!(start.elapsed(), 5 * SECOND);
    assert_eq!(api.tokens(), ["a-1", "b-1", "a-1", "c-1", "b-2"]);
}

/// A hanging token request for one key delays no other, as long as there are places left.
#[tokio::test(start_paused = true)]
async fn calls_of_one_key_do_not_wait_for_the_first_token_of_another() {
    let issuer = KeyedIssuer::new();
    let cache = issuer.cache();
    issuer.slow_down("b", MINUTE);
    let mut hanging = tokio_test::task::spawn(async {
        let b = cache.with_parameters(tenant("b"));
        b.token().await
    });
    assert!(hanging.poll().is_pending());
    settle().await;
    let start = Instant::now();

    cache.with_parameters(tenant("a")).token().await.unwrap();

    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(issuer.under_way(), 1);
}

/// Such as a token exchange, which sends one token to get another.
#[tokio::test(start_paused = true)]
async fn token_service_may_use_the_token_of_another_key() {
    let cache = Arc::new(OnceLock::<TokenCache>::new());
    let tokens = service_fn({
        let cache = Arc::downgrade(&cache);
        move |request: TokenRequest| {
            let cache = cache.upgrade().unwrap();
            async move {
                if request.parameters.tenant().is_none() {
                    return AccessToken::new("own");
                }
                let own = cache.get().unwrap().with_parameters(scope("other"));
                let own = own.token().await?;
                AccessToken::new(format!("in-exchange-for-{}", own.expose()))
            }
        }
    });
    let cache = cache.get_or_init(|| TokenCache::new(tokens));

    let token = cache.with_parameters(tenant("a")).token().await.unwrap();

    assert_eq!(token.expose(), "in-exchange-for-own");
}

// --- Each way through a call uses the request's key ---

#[tokio::test(start_paused = true)]
async fn replay_of_a_request_renews_its_own_key() {
    // With a token that is there, and with one that the request waits for.
    for is_warm in [true, false] {
        for latency in [Duration::ZERO, 3 * SECOND] {
            let issuer = KeyedIssuer::new();
            let cache = issuer.cache();
            cache.token().await.unwrap();
            let b = cache.with_parameters(tenant("b"));
            if is_warm {
                b.token().await.unwrap();
            }
            let api = Api::accepting(|token| token == "b-2");
            let service = ClientCredentialsLayer::with_cache(cache).layer(api.service());

            let calls = tokio::spawn({
                let service = service.clone();
                async move { call_with(&service, tenant("b")).await }
            });
            while api.received().is_empty() {
                tokio::task::yield_now().await;
                issuer.slow_down("b", latency);
            }
            let response = calls.await.unwrap().unwrap();

            assert_eq!(response.status(), StatusCode::OK);
            let outcome: &TokenOutcome = response.extensions().get().unwrap();
            assert!(outcome.replayed() && outcome.token_renewed());
            assert_eq!(api.tokens(), ["b-1", "b-2"]);
            assert_eq!(issuer.rejected("b"), [None, Some("b-1".to_owned())]);
            assert_eq!(issuer.requests_for("none"), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rejected_request_that_is_not_replayed_renews_its_own_key() {
    for is_warm in [true, false] {
        for by_extension in [true, false] {
            let issuer = KeyedIssuer::new();
            let cache = issuer.cache();
            cache.token().await.unwrap();
            if is_warm {
                let b = cache.with_parameters(tenant("b"));
                b.token().await.unwrap();
            }
            let api = Api::accepting(|token| token == "b-2");
            let mut request = request_with(tenant("b"));
            let layer = ClientCredentialsLayer::with_cache(cache.clone());
            let status = if by_extension {
                request.extensions_mut().insert(NoReplay);
                let service = layer.layer(api.service());
                service.oneshot(request).await.unwrap().status()
            } else {
                let service = layer.no_replay().layer(api.service());
                service.oneshot(request).await.unwrap().status()
            };
            settle().await;

            assert_eq!(status, StatusCode::UNAUTHORIZED);
            assert_eq!(api.tokens(), ["b-1"]);
            // In the background.
            assert_eq!(issuer.rejected("b"), [None, Some("b-1".to_owned())]);
            assert_eq!(issuer.requests_for("none"), 1);
            let b = cache.with_parameters(tenant("b"));
            assert_eq!(b.token().await.unwrap().expose(), "b-2");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn failed_renewal_of_a_request_returns_the_error_of_its_own_key() {
    let issuer = KeyedIssuer::new();
    let api = Api::accepting(|token| !token.starts_with('b'));
    let service = ClientCredentialsLayer::new(issuer.service()).layer(api.service());
    call(&service).await.unwrap();
    let b = service.cache().with_parameters(tenant("b"));
    b.token().await.unwrap();
    issuer.fail("b", Error::permanent("unknown tenant"));

    let response = call_with(&service, tenant("b")).await.unwrap();

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let outcome: &TokenOutcome = response.extensions().get().unwrap();
    assert!(
        matches!(outcome.not_replayed(), Some(NotReplayed::RenewalFailed(error)) if error.is_token_service()),
        "{outcome:?}"
    );
    assert_eq!(call(&service).await.unwrap().status(), StatusCode::OK);
}

/// The token is rejected for another call while the request waits for its service.
#[tokio::test(start_paused = true)]
async fn request_that_waits_for_its_service_gets_another_token_of_its_own_key() {
    let issuer = KeyedIssuer::new();
    let cache = issuer.cache();
    cache.token().await.unwrap();
    let api = Api::accepting_all().latency(10 * SECOND);
    let service = ServiceBuilder::new()
        .layer(ClientCredentialsLayer::with_cache(cache.clone()))
        .concurrency_limit(1)
        .service(api.service());
    let occupying = tokio::spawn({
        let service = service.clone();
        async move { call(&service).await.map(drop) }
    });
    settle().await;
    // Took its permit before: waits for its token without one, and then for another.
    let waiting = tokio::spawn({
        let service = service.clone();
        async move { call_with(&service, tenant("b")).await.map(drop) }
    });
    settle().await;
    let b = cache.with_parameters(tenant("b"));
    let token = b.token().await.unwrap();

    b.reject(&token);
    occupying.await.unwrap().unwrap();
    waiting.await.unwrap().unwrap();

    assert_eq!(api.tokens(), ["none-1", "b-2"]);
    assert_eq!(issuer.requests_for("none"), 1);
}

#[tokio::test(start_paused = true)]
async fn callers_own_header_wins_for_every_key() {
    // Tokens of the tenant "x" go into another header.
    let requests = Arc::new(Mutex::new(Vec::new()));
    let tokens = service_fn({
        let requests = Arc::clone(&requests);
        move |request: TokenRequest| {
            let tenant = request.parameters.tenant().unwrap_or("none").to_owned();
            requests.lock().unwrap().push(tenant.clone());
            async move {
                let token = AccessToken::new(format!("{tenant}-1"))?;
                Ok::<_, BoxError>(match &*tenant {
                    "x" => token.with_header("x-token".parse()?, "")?,
                    _ => token,
                })
            }
        }
    });
    let seen = Arc::new(Mutex::new(Vec::<HeaderMap>::new()));
    let http = service_fn({
        let seen = Arc::clone(&seen);
        move |request: Request<String>| {
            seen.lock().unwrap().push(request.headers().clone());
            async { Ok::<_, BoxError>(rejection()) }
        }
    });
    let service = ClientCredentialsLayer::new(tokens).layer(http);

    // For a key without a token, nothing is requested.
    let mut request = request_with(tenant("b"));
    let own = "Bearer own".parse().unwrap();
    request.headers_mut().insert(AUTHORIZATION, own);
    service.clone().oneshot(request.clone()).await.unwrap();
    assert!(requests.lock().unwrap().is_empty());
    assert_eq!(
        seen.lock().unwrap().pop().unwrap()[AUTHORIZATION],
        "Bearer own"
    );

    for key in ["b", "x"] {
        call_with(&service, tenant(key)).await.unwrap();
    }
    let token_requests = requests.lock().unwrap().len();
    seen.lock().unwrap().clear();

    for (key, header, value) in [
        ("b", "authorization", "Bearer own"),
        ("x", "x-token", "own"),
    ] {
        let mut request = request_with(tenant(key));
        request.headers_mut().insert(header, value.parse().unwrap());
        service.clone().oneshot(request).await.unwrap();
        let headers = seen.lock().unwrap().pop().unwrap();
        assert_eq!(headers[header], value);
        assert!(!headers.contains_key("x-token") || key == "x");
        assert!(!headers.contains_key(AUTHORIZATION) || key == "b");
    }
    // The header of another key's tokens is an ordinary one.
    let mut request = request_with(tenant("x"));
    let own = "Bearer own".parse().unwrap();
    request.headers_mut().insert(AUTHORIZATION, own);
    service.clone().oneshot(request).await.unwrap();
    let headers = seen.lock().unwrap().pop().unwrap();
    assert_eq!(headers[AUTHORIZATION], "Bearer own");
    assert_eq!(headers["x-token"], "x-1");
    // The rejections of requests with a header of their own say nothing about a token.
    assert_eq!(requests.lock().unwrap().len(), token_requests);

    // Nor is a token requested after the tokens have expired.
    advance(10 * MINUTE).await;
    let mut request = request_with(tenant("x"));
    let own = "own".parse().unwrap();
    request.headers_mut().insert("x-token", own);
    service.clone().oneshot(request).await.unwrap();
    assert_eq!(seen.lock().unwrap().pop().unwrap()["x-token"], "own");
    assert_eq!(requests.lock().unwrap().len(), token_requests);
}

// --- Callers that are dropped ---

#[tokio::test(start_paused = true)]
async fn dropped_callers_of_32_keys_leave_no_token_request_and_no_reference() {
    let issuer = KeyedIssuer::new().latency(LATENCY);
    let cache = issuer.build(max_tokens(1));
    let service =
        ClientCredentialsLayer::with_cache(cache.clone()).layer(Api::accepting_all().service());
    let key = |number: usize| format!("dropped{number}");

    for number in 0..32 {
        let handle = cache.with_parameters(tenant(key(number)));
        let mut first = tokio_test::task::spawn(call_with(&service, tenant(key(number))));
        let mut waiter = tokio_test::task::spawn(handle.token());
        assert!(first.poll().is_pending() && waiter.poll().is_pending());
        // In either order, before and after the token service was called.
        if number % 4 < 2 {
            settle().await;
        }
        if number % 2 == 0 {
            drop(first);
            drop(waiter);
        } else {
            drop(waiter);
            drop(first);
        }
    }
    settle().await;
    assert_eq!(issuer.under_way(), 32);
    sleep(LATENCY).await;
    settle().await;

    assert_eq!(issuer.under_way(), 0);
    assert_eq!(issuer.requests(), 32);
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    churn(&cache, "other").await;
    settle().await;
    let kept = issuer.kept();
    assert!(
        !kept.iter().any(|token| token.starts_with("dropped")),
        "{kept:?}"
    );
    for number in 0..32 {
        let handle = cache.with_parameters(tenant(key(number)));
        handle.token().await.unwrap();
        assert_eq!(issuer.requests_for(&key(number)), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn no_caller_owns_a_token_request_not_even_the_last_handle_of_its_key() {
    let issuer = KeyedIssuer::new();
    issuer.slow_down("b", 5 * SECOND);
    let cache = issuer.build(max_tokens(1));
    let b = cache.with_parameters(tenant("b"));
    let mut caller = tokio_test::task::spawn({
        let b = b.clone();
        async move { b.token().await }
    });
    assert!(caller.poll().is_pending());
    settle().await;

    drop(caller);
    drop(b);
    churn(&cache, "other").await;
    assert_eq!(issuer.under_way(), 1);
    advance(5 * SECOND).await;
    settle().await;

    assert_eq!(issuer.under_way(), 0);
    assert!(issuer.kept().contains(&"b-1".to_owned()));
    let b = cache.with_parameters(tenant("b"));
    assert_eq!(b.token().await.unwrap().expose(), "b-1");
}

#[tokio::test(start_paused = true)]
async fn no_task_outlives_the_last_handle_of_the_cache_whatever_the_keys() {
    for is_kept_warm in [false, true] {
        let issuer = KeyedIssuer::new();
        let builder = TokenCache::builder().max_token_requests(NonZeroUsize::new(3).unwrap());
        let cache = issuer.build(if is_kept_warm {
            builder.keep_warm()
        } else {
            builder
        });
        for number in 0..10 {
            let handle = cache.with_parameters(tenant(format!("{number}")));
            handle.token().await.unwrap();
        }
        for number in 0..5 {
            issuer.slow_down(&format!("{number}"), MINUTE);
            let handle = cache.with_parameters(tenant(format!("{number}")));
            // Three of these are under way, and two wait for their turn.
            assert!(handle.refresh().now_or_never().is_none());
        }
        settle().await;
        assert_eq!(issuer.under_way(), 3);
        let last_handle = cache.with_parameters(tenant("0"));
        drop(cache);
        settle().await;
        assert_eq!(issuer.under_way(), 3);

        drop(last_handle);
        settle().await;

        assert_eq!(issuer.under_way(), 0);
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
        assert!(issuer.kept().is_empty());
    }
}

// --- Which keys are evicted ---

#[tokio::test(start_paused = true)]
async fn at_most_max_tokens_that_nobody_uses_are_kept() {
    for max in [1, 10, 100] {
        let issuer = KeyedIssuer::new();
        let cache = issuer.build(max_tokens(max));
        cache.token().await.unwrap();

        for number in 0..1000 {
            let handle = cache.with_parameters(tenant(format!("key{number}")));
            handle.token().await.unwrap();
            settle_briefly().await;
            // One more, until the next key comes, and the cache's own.
            let kept = issuer.kept().len();
            assert!(kept <= max + 2, "{kept} of {max}");
        }

        // The cache uses what it may.
        assert!(issuer.kept().len() >= max);
        assert!(issuer.kept().contains(&"none-1".to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn keys_in_use_exceed_max_tokens_and_shrink_when_they_fall_out_of_use() {
    let issuer = KeyedIssuer::new();
    let cache = issuer.build(max_tokens(1));
    let mut handles = Vec::new();
    for number in 0..100 {
        let handle = cache.with_parameters(tenant(format!("held{number}")));
        handle.token().await.unwrap();
        handles.push(handle);
    }
    churn(&cache, "other").await;

    for handle in &handles {
        handle.token().await.unwrap();
        let again = cache.with_parameters(handle.parameters().clone());
        again.token().await.unwrap();
    }
    assert_eq!(issuer.requests(), 100 + 200);

    drop(handles);
    churn(&cache, "another").await;
    settle().await;
    let kept = issuer.kept();
    assert!(kept.len() <= 2, "{kept:?}");
}

#[tokio::test(start_paused = true)]
async fn key_of_a_call_that_may_be_replayed_is_not_evicted() {
    for is_replayed in [true, false] {
        let issuer = KeyedIssuer::new();
        let cache = issuer.build(max_tokens(1));
        let api = Api::accepting(|token| token != "b-1").latency(10 * SECOND);
        let layer = ClientCredentialsLayer::with_cache(cache.clone());
        let in_flight = {
            let mut request = request_with(tenant("b"));
            if !is_replayed {
                request.extensions_mut().insert(NoReplay);
            }
            tokio::spawn(layer.layer(api.service()).oneshot(request))
        };
        settle().await;
        assert_eq!(api.tokens(), ["b-1"]);

        churn(&cache, "other").await;
        let again = cache.with_parameters(tenant("b"));
        assert_eq!(again.token().await.unwrap().expose(), "b-1");
        drop(again);
        churn(&cache, "another").await;
        let response = in_flight.await.unwrap().unwrap();
        settle().await;

        // The rejection reached the key that all calls use.
        assert_eq!(response.status() == StatusCode::OK, is_replayed);
        let again = cache.with_parameters(tenant("b"));
        assert_eq!(again.token().await.unwrap().expose(), "b-2");
        assert_eq!(issuer.rejected("b"), [None, Some("b-1".to_owned())]);
    }
}

#[tokio::test(start_paused = true)]
async fn key_with_a_token_request_is_not_evicted() {
    let issuer = KeyedIssuer::new();
    let cache = issuer.build(max_tokens(1));
    issuer.slow_down("b", 5 * SECOND);
    let calls = || {
        let handle = cache.with_parameters(tenant("b"));
        tokio::spawn(async move { handle.token().await.unwrap() })
    };

    let first = calls();
    first.abort();
    settle().await;
    let first = calls();
    settle().await;
    first.abort();
    churn(&cache, "other").await;
    let second = calls();

    assert_eq!(second.await.unwrap().expose(), "b-1");
    assert_eq!(issuer.requests_for("b"), 1);
}

/// Ends a token request of another key, after which the cache looks for idle keys.
async fn look_for_idle_keys(cache: &TokenCache) {
    cache.refresh().await.unwrap();
    settle().await;
}

#[tokio::test(start_paused = true)]
async fn idle_keys_are_evicted_and_used_keys_are_not() {
    let issuer = KeyedIssuer::new();
    let cache = issuer.build(TokenCache::builder().idle_timeout(100 * SECOND));
    let service =
        ClientCredentialsLayer::with_cache(cache.clone()).layer(Api::accepting_all().service());
    for key in ["idle", "used"] {
        call_with(&service, tenant(key)).await.unwrap();
    }
    let held = cache.with_parameters(tenant("held"));
    held.token().await.unwrap();

    advance(99 * SECOND).await;
    look_for_idle_keys(&cache).await;
    call_with(&service, tenant("used")).await.unwrap();
    let kept = |token: &str| issuer.kept().contains(&token.to_owned());
    assert!(kept("idle-1"));

    // Up to a quarter of the idle timeout passes between two looks at all keys.
    advance(26 * SECOND).await;
    look_for_idle_keys(&cache).await;
    assert!(!kept("idle-1"));
    assert!(kept("used-1") && kept("held-1"));

    call_with(&service, tenant("idle")).await.unwrap();
    assert_eq!(issuer.requests_for("idle"), 2);
    advance(10 * MINUTE).await;
    look_for_idle_keys(&cache).await;
    assert!(!kept("used-1") && !kept("idle-2"));
    assert!(kept("held-1"));
    // The idle timeout of a key starts when somebody last used it.
    drop(held);
    advance(99 * SECOND).await;
    look_for_idle_keys(&cache).await;
    assert!(kept("held-1"));
    advance(126 * SECOND).await;
    look_for_idle_keys(&cache).await;
    assert!(!kept("held-1"));
}

#[tokio::test(start_paused = true)]
async fn own_token_of_the_cache_is_never_evicted() {
    let issuer = KeyedIssuer::new();
    let cache = issuer.build(max_tokens(1).idle_timeout(SECOND));
    cache.token().await.unwrap();

    advance(10 * MINUTE).await;
    churn(&cache, "other").await;
    advance(10 * MINUTE).await;
    churn(&cache, "another").await;

    assert_eq!(cache.token().await.unwrap().expose(), "none-1");
    assert_eq!(issuer.requests_for("none"), 1);
}

// --- Keeping tokens warm ---

#[tokio::test(start_paused = true)]
async fn tokens_of_all_keys_that_are_in_use_are_kept_warm() {
    let issuer = KeyedIssuer::new().lifetime(10 * MINUTE);
    let cache = issuer.build(TokenCache::builder().keep_warm());
    let handles = ["a", "b", "c"].map(|key| cache.with_parameters(tenant(key)));
    for handle in &handles {
        handle.token().await.unwrap();
    }
    issuer.fail("b", Error::transient("down", None));

    sleep(6 * 60 * MINUTE).await;

    for (handle, key) in handles.iter().zip(["a", "b", "c"]) {
        let has_token = handle.current().is_some();
        // The failure of one key stops neither its own refreshes nor those of the others.
        assert_eq!(has_token, key != "b");
        assert!(issuer.requests_for(key) > 30, "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn keeping_tokens_warm_does_not_keep_keys_that_nobody_uses() {
    let issuer = KeyedIssuer::new().lifetime(10 * MINUTE);
    let cache = issuer.build(TokenCache::builder().keep_warm());
    for key in ["a", "b"] {
        let handle = cache.with_parameters(tenant(key));
        handle.token().await.unwrap();
    }
    cache.token().await.unwrap();
    let in_use = cache.with_parameters(tenant("c"));
    in_use.token().await.unwrap();

    // The idle timeout is an hour.
    sleep(59 * MINUTE).await;
    let refreshes = issuer.requests_for("a");
    assert!(refreshes >= 6);
    sleep(20 * MINUTE).await;

    let kept = issuer.kept();
    let is_idle = |token: &String| token.starts_with("a-") || token.starts_with("b-");
    assert!(!kept.iter().any(is_idle), "{kept:?}");
    let requests = ["a", "b"].map(|key| issuer.requests_for(key));
    sleep(10 * 60 * MINUTE).await;
    assert_eq!(["a", "b"].map(|key| issuer.requests_for(key)), requests);
    // The cache's own token, and one with a handle, are still refreshed.
    assert!(cache.current().is_some() && in_use.current().is_some());
    // One task for each of them, and none for the others.
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 2);
}

/// A cache of kept-warm tokens with more keys than it may keep.
#[tokio::test(start_paused = true)]
async fn keeping_tokens_warm_does_not_exceed_max_tokens() {
    let issuer = KeyedIssuer::new().lifetime(10 * MINUTE);
    let cache = issuer.build(max_tokens(5).keep_warm());

    churn(&cache, "other").await;
    settle().await;

    assert!(issuer.kept().len() <= 6);
    let requests = issuer.requests();
    sleep(30 * MINUTE).await;
    assert!(issuer.requests() - requests <= 6 * 4);
}
