//! Redirects within an origin are followed with the token. No token and no secret goes to another.

mod support;

use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode, header::AUTHORIZATION};
use reqwest::{Client, Response};
use support::{Server, api_rejecting, in_time, issuer, redirect, status, tokens};
use tower_client_credentials::{
    AccessToken, BoxError, ClientAuth, ClientCredentialsLayer, TokenCache, TokenEndpoint,
    TokenOutcome, TokenRemoved, TokenRequest,
};
use tower_client_credentials_reqwest::{
    ApiClient, ClientBuilderExt, ClientExt, Error, ReqwestService, token_client,
};

const API_KEY: HeaderName = HeaderName::from_static("x-amz-access-token");

/// Redirects `/away` to another server, and `/near` to `/orders` with the token checked.
async fn redirecting(code: StatusCode, other: &Server) -> Server {
    let away = Arc::<str>::from(other.url("/stolen"));
    Server::start(move |request| {
        let away = Arc::clone(&away);
        async move {
            let is_rejected = request.token() == "Bearer token-1";
            match &*request.target {
                "/away" => redirect(code, &away),
                "/near" => redirect(code, "/orders"),
                _ if is_rejected => status(StatusCode::UNAUTHORIZED),
                _ => status(StatusCode::OK),
            }
        }
    })
    .await
}

/// A cache for tokens in a header that reqwest doesn't remove.
fn custom_tokens() -> TokenCache {
    TokenCache::new(tower::service_fn(|_: TokenRequest| async {
        let token = AccessToken::new("token-1")?.with_header(API_KEY, "")?;
        Ok::<_, BoxError>(token)
    }))
}

fn clients(tokens: &TokenCache) -> [ApiClient; 2] {
    [
        Client::new().with_client_credentials(tokens.clone()),
        Client::builder()
            .with_client_credentials(tokens.clone())
            .unwrap(),
    ]
}

#[tokio::test]
async fn redirect_within_the_origin_is_followed_with_token_and_body_in_both_sends() {
    for code in [
        StatusCode::TEMPORARY_REDIRECT,
        StatusCode::PERMANENT_REDIRECT,
    ] {
        let issuer = issuer().await;
        let cache = TokenCache::builder()
            .cool_down(std::time::Duration::ZERO)
            .build(tokens(&issuer));
        let other = api_rejecting([]).await;
        for (number, client) in clients(&cache).into_iter().enumerate() {
            let api = redirecting(code, &other).await;

            let request = client.post(api.url("/near")).body("name=Ada");
            let response = in_time(request.send()).await.unwrap();

            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.url().as_str(), api.url("/orders"));
            let received = api.received();
            let targets = received.iter().map(|request| &*request.target);
            let expected: &[_] = match number {
                // Only the first client has a token that is rejected.
                0 => &["/near", "/orders", "/near", "/orders"],
                _ => &["/near", "/orders"],
            };
            assert_eq!(Vec::from_iter(targets), expected);
            assert!(received.iter().all(|request| request.body == "name=Ada"));
            assert!(!api.tokens().contains(&String::new()));
        }
        assert_eq!(issuer.received().len(), 2);
    }
}

#[tokio::test]
async fn unauthorized_response_of_another_origin_keeps_the_token() {
    let issuer = issuer().await;
    let other = Server::start(|_| async { status(StatusCode::UNAUTHORIZED) }).await;
    let api = redirecting(StatusCode::FOUND, &other).await;
    let client = Client::new().with_client_credentials(tokens(&issuer));

    for _ in 0..2 {
        let response = in_time(client.get(api.url("/away")).send()).await.unwrap();

        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.url().as_str(), other.url("/stolen"));
        assert!(response.extensions().get::<TokenRemoved>().is_some());
        let outcome = response.extensions().get::<TokenOutcome>();
        assert!(outcome.is_none_or(|it| it.not_replayed().is_none() && !it.replayed()));
    }
    assert_eq!(other.tokens(), ["", ""]);
    assert_eq!(api.tokens(), ["Bearer token-1", "Bearer token-1"]);
    assert_eq!(issuer.received().len(), 1);
}

#[tokio::test]
async fn response_to_a_request_without_a_token_is_not_marked() -> Result<(), BoxError> {
    let issuer = issuer().await;
    let other = api_rejecting([]).await;
    let api = redirecting(StatusCode::FOUND, &other).await;
    let layer = ClientCredentialsLayer::new(tokens(&issuer));
    let layer = layer.allowed_origins(["https://api.example"])?;
    let client = Client::new().with_client_credentials(layer);

    let response = in_time(client.get(api.url("/away")).send()).await?;

    assert_eq!(response.url().as_str(), other.url("/stolen"));
    assert_eq!(api.tokens(), [""]);
    assert!(response.extensions().get::<TokenRemoved>().is_none());
    Ok(())
}

#[tokio::test]
async fn rejection_after_a_redirect_within_the_origin_is_a_rejection() {
    let issuer = issuer().await;
    let other = api_rejecting([]).await;
    let api = redirecting(StatusCode::FOUND, &other).await;
    let client = Client::new().with_client_credentials(tokens(&issuer));

    let response = in_time(client.get(api.url("/near")).send()).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(issuer.received().len(), 2);
    assert_eq!(
        api.tokens(),
        [
            "Bearer token-1",
            "Bearer token-1",
            "Bearer token-2",
            "Bearer token-2"
        ]
    );
}

#[tokio::test]
async fn rejection_after_see_other_repeats_the_post_unless_replays_are_off() {
    for is_repeated in [true, false] {
        let issuer = issuer().await;
        let api = Server::start(|request| async move {
            match (&*request.target, request.token()) {
                ("/orders", _) => redirect(StatusCode::SEE_OTHER, "/orders/7"),
                (_, "Bearer token-1") => status(StatusCode::UNAUTHORIZED),
                _ => status(StatusCode::OK),
            }
        })
        .await;
        let client = Client::new().with_client_credentials(tokens(&issuer));

        let mut request = client.post(api.url("/orders")).body("tea");
        if !is_repeated {
            request = request.no_replay();
        }
        let response = in_time(request.send()).await.unwrap();

        let received = api.received();
        let requests = received.iter().map(|it| (it.method.as_str(), &*it.target));
        let once = [("POST", "/orders"), ("GET", "/orders/7")];
        let sends = if is_repeated { 2 } else { 1 };
        assert_eq!(Vec::from_iter(requests), once.repeat(sends));
        assert_eq!(response.status() == StatusCode::OK, is_repeated);
    }
}

#[tokio::test]
async fn token_in_a_custom_header_is_not_sent_by_a_client_that_may_follow_redirects() {
    let other = api_rejecting([]).await;
    let api = redirecting(StatusCode::FOUND, &other).await;
    let client = Client::new().with_client_credentials(custom_tokens());

    let error = in_time(client.get(api.url("/away")).send())
        .await
        .unwrap_err();

    assert!(error.is_unsafe_redirect());
    let shown = error.to_string();
    assert!(shown.contains("x-amz-access-token") && shown.contains("ClientBuilderExt"));
    assert_eq!(api.connections() + other.connections(), 0);
}

#[tokio::test]
async fn token_in_a_custom_header_follows_redirects_within_the_origin_only() {
    let other = api_rejecting([]).await;
    for code in [StatusCode::FOUND, StatusCode::TEMPORARY_REDIRECT] {
        let api = redirecting(code, &other).await;
        let client = Client::builder()
            .with_client_credentials(custom_tokens())
            .unwrap();

        let near = in_time(client.get(api.url("/near")).send()).await.unwrap();
        let away = in_time(client.get(api.url("/away")).send()).await.unwrap();

        assert_eq!((near.status(), away.status()), (StatusCode::OK, code));
        assert_eq!(away.url().as_str(), api.url("/away"));
        let keys = api.received();
        let keys = keys.iter().map(|request| request.header(API_KEY.as_str()));
        assert_eq!(Vec::from_iter(keys), ["token-1"; 3]);
    }
    assert_eq!(other.connections(), 0);
}

#[tokio::test]
async fn redirects_within_an_origin_are_limited() {
    let looping = Server::start(|_| async { redirect(StatusCode::FOUND, "/again") }).await;
    let client = Client::builder()
        .with_client_credentials(custom_tokens())
        .unwrap();

    let error = in_time(client.get(looping.url("/")).send())
        .await
        .unwrap_err();

    assert!(
        error
            .reqwest_error()
            .is_some_and(reqwest::Error::is_redirect)
    );
    assert_eq!(looping.received().len(), 11);
}

#[tokio::test]
async fn secret_header_of_the_caller_is_sent_as_without_tokens() {
    let (issuer, api) = (issuer().await, api_rejecting([]).await);
    let client = Client::new().with_client_credentials(tokens(&issuer));
    let mut key = HeaderValue::from_static("key-1");
    key.set_sensitive(true);

    let request = client.get(api.url("/")).header("x-api-key", key);
    let response = in_time(request.send()).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(api.received()[0].header("x-api-key"), "key-1");
    assert_eq!(api.tokens(), ["Bearer token-1"]);
}

#[tokio::test]
async fn token_endpoint_that_redirects_never_sees_a_second_post() {
    for code in [301, 302, 303, 307, 308] {
        let code = StatusCode::from_u16(code).unwrap();
        let other = api_rejecting([]).await;
        for location in ["/elsewhere".to_owned(), other.url("/token")] {
            let issuer = Server::start(move |_| {
                let response = redirect(code, &location);
                async { response }
            })
            .await;
            let auth = ClientAuth::client_secret_basic("my-client", "s3cret");
            let url = issuer.url("/token");
            let tokens = TokenEndpoint::new(token_client().unwrap(), url, auth).unwrap();
            let client = Client::new().with_client_credentials(tokens);

            let error = in_time(client.get("http://127.0.0.1:9/").send()).await;

            let error = error.unwrap_err();
            let status = error
                .token_error()
                .and_then(tower_client_credentials::Error::status);
            assert_eq!(status, Some(code), "{error}");
            assert_eq!(issuer.received().len(), 1);
        }
        assert_eq!(other.connections(), 0);
    }
}

#[tokio::test]
async fn token_of_another_origin_is_refused_if_the_client_follows_redirects() {
    for code in [302, 307] {
        let code = StatusCode::from_u16(code).unwrap();
        let other =
            Server::start(|_| async { http::Response::new(r#"{"access_token":"stolen"}"#.into()) })
                .await;
        let location = other.url("/token");
        let issuer = Server::start(move |_| {
            let response = redirect(code, &location);
            async { response }
        })
        .await;
        let auth = ClientAuth::client_secret_basic("my-client", "s3cret");
        let unsafe_client = ReqwestService::new(Client::new());
        let tokens = TokenEndpoint::new(unsafe_client, issuer.url("/token"), auth).unwrap();
        let client = Client::new().with_client_credentials(tokens);

        let error = in_time(client.get("http://127.0.0.1:9/").send()).await;

        let error = error.unwrap_err();
        assert!(error.to_string().contains("from another origin"), "{error}");
        assert_eq!(other.tokens(), [""]);
        assert!(
            !other.received()[0]
                .body
                .windows(6)
                .any(|it| it == b"s3cret")
        );
    }
}

#[tokio::test]
async fn default_authorization_header_gives_way_to_the_token() {
    let (issuer, api) = (issuer().await, api_rejecting([]).await);
    let mut headers = http::HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_static("Basic default"));
    let client = Client::builder().default_headers(headers).build().unwrap();
    let client = client.with_client_credentials(tokens(&issuer));

    in_time(client.get(api.url("/")).send()).await.unwrap();
    let own = client.get(api.url("/")).header(AUTHORIZATION, "Basic own");
    in_time(own.send()).await.unwrap();

    assert_eq!(api.tokens(), ["Bearer token-1", "Basic own"]);
}

#[tokio::test]
async fn credentials_of_the_request_are_sent_instead_of_a_token() {
    let issuer = issuer().await;
    let api = Server::start(|_| async { status(StatusCode::UNAUTHORIZED) }).await;
    let client = Client::new().with_client_credentials(tokens(&issuer));

    let basic = client.get(api.url("/")).basic_auth("ada", Some("s3cret"));
    let without_password = client.get(api.url("/")).basic_auth("ada", None::<&str>);
    let bearer = client.get(api.url("/")).bearer_auth("own-token");
    for request in [basic, without_password, bearer] {
        let response = in_time(request.send()).await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    }

    assert_eq!(
        api.tokens(),
        [
            "Basic YWRhOnMzY3JldA==",
            "Basic YWRhOg==",
            "Bearer own-token"
        ]
    );
    assert_eq!(issuer.received().len(), 0);
}

#[tokio::test]
async fn allowed_origins_apply_to_the_client() -> Result<(), BoxError> {
    let (issuer, api, other) = (
        issuer().await,
        api_rejecting([]).await,
        api_rejecting([]).await,
    );
    let layer = ClientCredentialsLayer::new(tokens(&issuer)).allowed_origins([api.url("")])?;
    let client = Client::new().with_client_credentials(layer);

    let response: Result<Response, Error> = in_time(client.get(other.url("/")).send()).await;
    in_time(client.get(api.url("/")).send()).await?;

    let response = response?;
    let outcome = response.extensions().get::<TokenOutcome>();
    assert!(outcome.and_then(TokenOutcome::omitted).is_some());
    assert_eq!(other.tokens(), [""]);
    assert_eq!(api.tokens(), ["Bearer token-1"]);
    Ok(())
}
