//! The header that carries the token, and the requests that pass unchanged.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{
    Request, Response, StatusCode,
    header::{AUTHORIZATION, HeaderName},
};
use support::{Issuer, rejection, request, stack};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, ClientCredentialsLayer, Error, TokenOutcome, TokenRequest,
};
use tower_test::{assert_request_eq, mock};

/// An API that answers with the request that it received.
fn mirror()
-> impl Service<Request<String>, Response = Response<String>, Error = BoxError, Future: Send + 'static>
+ Clone {
    service_fn(|request: Request<String>| async {
        let (head, body) = request.into_parts();
        let mut response = Response::new(body);
        *response.headers_mut() = head.headers;
        *response.extensions_mut() = head.extensions;
        Ok::<_, BoxError>(response)
    })
}

#[tokio::test(start_paused = true)]
async fn every_request_carries_the_token_in_a_sensitive_header() {
    let service = stack(&Issuer::new(), mirror());

    for _ in 0..3 {
        let response = service.clone().oneshot(request()).await.unwrap();

        let header = &response.headers()[AUTHORIZATION];
        assert_eq!(header, "Bearer token-1");
        assert!(header.is_sensitive());
        assert!(!format!("{response:?}").contains("token-1"));
    }
}

/// A rejection of the caller's own credentials does not affect the token.
#[tokio::test(start_paused = true)]
async fn callers_own_header_wins() {
    for is_warm in [false, true] {
        let issuer = Issuer::new();
        let (inner, mut api) = mock::pair::<Request<String>, Response<String>>();
        let service = stack(&issuer, inner);
        if is_warm {
            service.cache().token().await.unwrap();
        }
        let mut own = request();
        own.headers_mut()
            .insert(AUTHORIZATION, "Basic b3du".parse().unwrap());
        let mut call = tokio_test::task::spawn(service.clone().oneshot(own));
        assert!(call.poll().is_pending());

        let (sent, answer) = api.next_request().await.unwrap();
        answer.send_response(rejection());
        let response = call.await.unwrap();

        assert_eq!(sent.headers()[AUTHORIZATION], "Basic b3du");
        assert_eq!(sent.body(), "name=Ada");
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert!(response.extensions().get::<TokenOutcome>().is_none());
        assert_eq!(issuer.requests(), usize::from(is_warm));
        let token = service.cache().token().await.unwrap();
        assert_eq!(token.header_value(), "Bearer token-1");
    }
}

#[tokio::test(start_paused = true)]
async fn callers_own_header_wins_and_all_headers_keep_their_order() {
    let issuer = Issuer::new();
    let mut service = stack(&issuer, mirror());
    let own = [
        ("x-a", "1"),
        ("authorization", "Bearer token-1"),
        ("x-b", "2"),
        ("authorization", "Basic b3du"),
        ("x-a", "3"),
    ];

    for has_token in [false, true] {
        let mut request = request();
        for (name, value) in own {
            request.headers_mut().append(name, value.parse().unwrap());
        }
        let given = request.headers().clone();
        let response = service.ready().await.unwrap().call(request).await.unwrap();

        let sent: Vec<_> = response.headers().iter().collect();
        assert_eq!(sent, given.iter().collect::<Vec<_>>(), "token: {has_token}");
        assert_eq!(issuer.requests(), usize::from(has_token));
        service.cache().token().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn request_with_no_room_for_another_header_fails() {
    let issuer = Issuer::new();
    let mut service = stack(&issuer, mirror());

    for has_token in [false, true] {
        let mut full = request();
        // Until `HeaderMap` takes no more.
        for number in 0.. {
            let name: HeaderName = format!("x-{number}").parse().unwrap();
            if full.headers_mut().try_append(name, number.into()).is_err() {
                break;
            }
        }
        let error = service.ready().await.unwrap().call(full).await.unwrap_err();

        let error = error.downcast::<Error>().unwrap();
        assert!(error.to_string().contains("as many headers as it can"));
        assert!(error.is_too_many_headers(), "token: {has_token}");
        assert!(!error.is_transient());
        service.cache().token().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn rest_of_the_request_is_unchanged() {
    #[derive(Clone, Debug, PartialEq)]
    struct Mark(u32);
    let service = stack(&Issuer::new(), mirror());
    let mut marked = request();
    marked.headers_mut().insert("x-a", "1".parse().unwrap());
    marked.extensions_mut().insert(Mark(7));

    let response = service.oneshot(marked).await.unwrap();

    assert_eq!(response.body(), "name=Ada");
    assert_eq!(response.headers().len(), 2);
    assert_eq!(response.headers()["x-a"], "1");
    assert_eq!(response.extensions().get(), Some(&Mark(7)));
}

/// A layer whose tokens are sent in the header `name`, after `prefix`.
fn layer_with_header(name: &'static str, prefix: &'static str) -> ClientCredentialsLayer {
    let name = HeaderName::from_static(name);
    ClientCredentialsLayer::new(service_fn(move |_: TokenRequest| {
        let name = name.clone();
        async move { AccessToken::new("1000.abc")?.with_header(name, prefix) }
    }))
}

#[tokio::test(start_paused = true)]
async fn token_is_sent_in_the_header_that_it_names() {
    for (name, prefix, sent) in [
        (
            "authorization",
            "Zoho-oauthtoken",
            "Zoho-oauthtoken 1000.abc",
        ),
        ("x-amz-access-token", "", "1000.abc"),
        ("x-token", "Bearer", "Bearer 1000.abc"),
    ] {
        let service = layer_with_header(name, prefix).layer(mirror());

        for _ in 0..2 {
            let response = service.clone().oneshot(request()).await.unwrap();

            assert_eq!(response.headers()[name], sent);
            assert!(response.headers()[name].is_sensitive());
            assert_eq!(response.headers().len(), 1);
        }
    }
}

/// Walmart's API expects the token in one header and the client's Basic credentials in another.
#[tokio::test(start_paused = true)]
async fn callers_own_authorization_header_is_left_alone_if_the_token_uses_another_header() {
    let layer = layer_with_header("wm_sec.access_token", "");
    layer.cache().token().await.unwrap();
    let service = layer.layer(mirror());
    let mut request = request();
    let own = "Basic b3du".parse().unwrap();
    request.headers_mut().insert(AUTHORIZATION, own);

    let response = service.oneshot(request).await.unwrap();

    assert_eq!(response.headers()[AUTHORIZATION], "Basic b3du");
    assert_eq!(response.headers()["wm_sec.access_token"], "1000.abc");
}

#[tokio::test(start_paused = true)]
async fn callers_own_header_wins_if_the_token_uses_a_custom_header() {
    let service = layer_with_header("x-token", "").layer(mirror());

    for _ in 0..2 {
        let mut request = request();
        let own = "own".parse().unwrap();
        request.headers_mut().insert("x-token", own);
        let response = service.clone().oneshot(request).await.unwrap();

        assert_eq!(response.headers()["x-token"], "own");
        assert_eq!(response.headers().len(), 1);
    }
}

/// The last token says which header tokens go into, although it has expired.
#[tokio::test(start_paused = true)]
async fn request_with_an_authorization_header_waits_for_a_token_that_goes_into_another() {
    let lifetime = Duration::from_secs(60);
    let layer = ClientCredentialsLayer::new(service_fn(move |_: TokenRequest| async move {
        let token = AccessToken::new("1000.abc")?.with_lifetime(lifetime);
        token.with_header(HeaderName::from_static("x-token"), "")
    }));
    layer.cache().token().await.unwrap();
    tokio::time::advance(2 * lifetime).await;
    let service = layer.layer(mirror());
    let mut request = request();
    let own = "Basic b3du".parse().unwrap();
    request.headers_mut().insert(AUTHORIZATION, own);

    let response = service.oneshot(request).await.unwrap();

    assert_eq!(response.headers()[AUTHORIZATION], "Basic b3du");
    assert_eq!(response.headers()["x-token"], "1000.abc");
}

/// The first token shows that the request has a header of its own.
#[tokio::test(start_paused = true)]
async fn rejection_of_a_callers_own_custom_header_is_not_the_tokens() {
    let sends = Arc::new(AtomicUsize::new(0));
    let counted = sends.clone();
    let api = service_fn(move |_: Request<String>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, BoxError>(rejection()) }
    });
    let service = layer_with_header("x-token", "").layer(api);
    let mut request = request();
    let own = "own".parse().unwrap();
    request.headers_mut().insert("x-token", own);

    let response = service.oneshot(request).await.unwrap();

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(sends.load(Ordering::SeqCst), 1);
    let outcome = response.extensions().get::<TokenOutcome>();
    assert!(outcome.and_then(TokenOutcome::not_replayed).is_none());
}

#[test]
fn token_header_that_frames_the_message_is_refused() {
    for name in ["host", "content-length", "transfer-encoding"] {
        let token = AccessToken::new("token-1").unwrap();
        let error = token.with_header(HeaderName::from_static(name), "");

        let error = error.unwrap_err();
        assert!(error.is_configuration());
        let message = format!("token header must not be {name}, which frames the message");
        assert_eq!(error.to_string(), message);
    }
}

#[tokio::test(start_paused = true)]
async fn token_service_receives_the_parameters_of_the_cache() {
    let (token_service, mut issuer) = mock::pair::<TokenRequest, AccessToken>();
    let parameters = tower_client_credentials::TokenParameters::default()
        .with_scope("r_basic w_basic")
        .with_resource("https://api.example/")
        .with_audience("api")
        .with_parameter("organization", "7");
    let cache = tower_client_credentials::TokenCache::builder()
        .parameters(parameters.clone())
        .build(token_service);
    let mut waiting = tokio_test::task::spawn(cache.token());
    assert!(waiting.poll().is_pending());

    let (asked, answer) = issuer.next_request().await.unwrap();
    answer.send_response(AccessToken::new("token-1").unwrap());

    assert_eq!(asked.parameters, parameters);
    assert_eq!(asked.parameters.scopes(), ["r_basic", "w_basic"]);
    assert!(asked.rejected.is_none());
    assert_eq!(waiting.await.unwrap().expose(), "token-1");
}

/// How a user tests a client stack: a mock on each side and no sockets.
#[tokio::test(start_paused = true)]
async fn both_sides_can_be_mocked() {
    let (token_service, mut issuer) = mock::pair::<TokenRequest, AccessToken>();
    let (http, mut api) = mock::pair::<&'static str, ()>();
    let http = tower::ServiceBuilder::new()
        .map_request(
            |request: Request<String>| match request.headers().get(AUTHORIZATION) {
                Some(token) if token == "Bearer token-1" => "authorized",
                _ => "not authorized",
            },
        )
        .map_response(|()| Response::new(String::new()))
        .service(http);
    let service = ClientCredentialsLayer::new(token_service).layer(http);
    let mut call = tokio_test::task::spawn(service.oneshot(request()));
    assert!(call.poll().is_pending());

    let (_, answer) = issuer.next_request().await.unwrap();
    answer.send_response(AccessToken::new("token-1").unwrap());
    support::settle().await;
    assert!(call.poll().is_pending());
    assert_request_eq!(api, "authorized").send_response(());

    call.await.unwrap();
}
