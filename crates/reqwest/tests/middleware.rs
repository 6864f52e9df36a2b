//! The middleware of reqwest-middleware. `bodies.rs` tests its replays.
#![cfg(feature = "middleware")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join_all;
use http::{Extensions, StatusCode};
use reqwest::{Client, Request, Response};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Error, Middleware, Next};
use support::{Server, api_rejecting, in_time, issuer, redirect, status, tokens};
use tower_client_credentials::{
    AccessToken, BoxError, NotReplayed, TokenOutcome, TokenParameters, TokenRemoved, TokenRequest,
    replay::NoReplay,
};
use tower_client_credentials_reqwest::{ClientCredentialsMiddleware, SentUrl};

fn client(issuer: &Server) -> ClientWithMiddleware {
    ClientBuilder::new(Client::new())
        .with(ClientCredentialsMiddleware::new(tokens(issuer)))
        .build()
}

/// Counts the sends in an extension that it finds or adds, and fails the ones after a number.
struct Counting {
    fails_after: usize,
}

#[derive(Clone, Default)]
struct Sends(Arc<AtomicUsize>);

#[async_trait]
impl Middleware for Counting {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let sends = extensions.get_or_insert_default::<Sends>();
        if sends.0.fetch_add(1, Ordering::SeqCst) >= self.fails_after {
            return Err(Error::middleware(std::io::Error::other("no more sends")));
        }
        next.run(request, extensions).await
    }
}

#[tokio::test]
async fn extensions_pass_through_both_sends_and_back() {
    struct Outer(Sends);

    #[async_trait]
    impl Middleware for Outer {
        async fn handle(
            &self,
            request: Request,
            extensions: &mut Extensions,
            next: Next<'_>,
        ) -> reqwest_middleware::Result<Response> {
            extensions.insert(self.0.clone());
            let response = next.run(request, extensions).await;
            assert!(extensions.get::<Sends>().is_some());
            response
        }
    }

    for (fails_after, succeeds) in [(2, true), (1, false)] {
        let (issuer, api) = (issuer().await, api_rejecting(["token-1"]).await);
        let sends = Sends::default();
        let client = ClientBuilder::new(Client::new())
            .with(Outer(sends.clone()))
            .with(ClientCredentialsMiddleware::new(tokens(&issuer)))
            .with(Counting { fails_after })
            .build();

        let result = in_time(client.get(api.url("/")).send()).await;

        assert_eq!(sends.0.load(Ordering::SeqCst), 2);
        match result {
            Ok(response) => assert!(succeeds && response.status() == StatusCode::OK),
            Err(error) => assert!(!succeeds && error.to_string() == "no more sends", "{error}"),
        }
    }
}

#[tokio::test]
async fn extensions_return_when_a_call_is_dropped() {
    /// Drops calls after 100 ms, and then looks for the extensions.
    struct Impatient(Sends);

    #[async_trait]
    impl Middleware for Impatient {
        async fn handle(
            &self,
            request: Request,
            extensions: &mut Extensions,
            next: Next<'_>,
        ) -> reqwest_middleware::Result<Response> {
            extensions.insert(self.0.clone());
            let call = next.run(request, extensions);
            let dropped = tokio::time::timeout(Duration::from_millis(100), call).await;
            assert!(dropped.is_err());
            assert!(extensions.get::<Sends>().is_some());
            Err(Error::middleware(std::io::Error::other("dropped")))
        }
    }

    let silent = Server::start(|_| std::future::pending::<http::Response<_>>()).await;
    let issuer = issuer().await;
    for (issuer, sends) in [(&silent, 0), (&issuer, 1)] {
        let count = Sends::default();
        let client = ClientBuilder::new(Client::new())
            .with(Impatient(count.clone()))
            .with(ClientCredentialsMiddleware::new(tokens(issuer)))
            .with(Counting { fails_after: 2 })
            .build();

        let error = in_time(client.get(silent.url("/")).send()).await;

        assert_eq!(error.unwrap_err().to_string(), "dropped");
        assert_eq!(count.0.load(Ordering::SeqCst), sends);
    }
}

#[tokio::test]
async fn token_parameters_in_the_extensions_of_a_request_apply() {
    let tokens = tower::service_fn(|request: TokenRequest| async move {
        Ok::<_, BoxError>(AccessToken::new(request.parameters.scopes().join("+"))?)
    });
    let api = Server::start(|_| async { status(StatusCode::OK) }).await;
    let client = ClientBuilder::new(Client::new())
        .with(ClientCredentialsMiddleware::new(tokens))
        .build();

    for scope in ["read", "write"] {
        let parameters = TokenParameters::default().with_scope(scope);
        let request = client.get(api.url("/")).with_extension(parameters);
        in_time(request.send()).await.unwrap();
    }

    assert_eq!(api.tokens(), ["Bearer read", "Bearer write"]);
}

#[tokio::test]
async fn hundred_callers_cause_one_renewal() {
    let (issuer, api) = (issuer().await, api_rejecting(["token-1"]).await);
    let client = client(&issuer);

    let calls = (0..100).map(|_| tokio::spawn(client.get(api.url("/")).send()));
    for response in in_time(join_all(calls)).await {
        assert_eq!(response.unwrap().unwrap().status(), StatusCode::OK);
    }

    assert_eq!(issuer.received().len(), 2);
}

#[tokio::test]
async fn request_with_no_replay_is_sent_once_with_a_reason() {
    let (issuer, api) = (issuer().await, api_rejecting(["token-1"]).await);

    let request = client(&issuer).get(api.url("/")).with_extension(NoReplay);
    let response = in_time(request.send()).await.unwrap();

    let outcome = response.extensions().get::<TokenOutcome>();
    let reason = outcome.and_then(TokenOutcome::not_replayed);
    assert!(matches!(reason, Some(NotReplayed::OptedOut)));
    assert_eq!(api.received().len(), 1);
}

#[tokio::test]
async fn timeout_covers_the_wait_for_a_token() {
    let issuer = Server::start(|_| std::future::pending::<http::Response<_>>()).await;
    let api = api_rejecting([]).await;

    let request = client(&issuer).get(api.url("/"));
    let error = in_time(request.timeout(Duration::from_millis(200)).send()).await;

    let Err(Error::Middleware(error)) = error else {
        panic!("{error:?}")
    };
    let error = error.downcast::<tower_client_credentials_reqwest::Error>();
    assert!(error.unwrap().is_timeout());
}

#[tokio::test]
async fn timeout_during_a_send_is_an_error_of_reqwest() {
    let silent = Server::start(|_| std::future::pending::<http::Response<_>>()).await;
    let issuer = issuer().await;
    let client = client(&issuer);

    let calls = (0..50).map(|number| {
        let timeout = Duration::from_millis(200) + Duration::from_micros(100 * number);
        client.get(silent.url("/")).timeout(timeout).send()
    });
    for error in in_time(join_all(calls)).await {
        let error = error.unwrap_err();
        assert!(error.is_timeout(), "{error:?}");
    }
}

#[tokio::test]
async fn errors_of_reqwest_and_of_the_token_endpoint_differ() {
    let refusing = Server::start(|_| async { status(StatusCode::FORBIDDEN) }).await;

    let error = in_time(client(&refusing).get("http://127.0.0.1:9/").send()).await;
    let Err(Error::Middleware(error)) = error else {
        panic!("{error:?}")
    };
    let error = error.downcast::<tower_client_credentials_reqwest::Error>();
    assert!(error.unwrap().token_error().is_some());

    let issuer = issuer().await;
    let error = in_time(client(&issuer).get("http://127.0.0.1:9/").send()).await;
    assert!(error.unwrap_err().is_connect());
}

#[tokio::test]
async fn token_in_a_custom_header_needs_redirects_within_the_origin() {
    let tokens = || {
        tower::service_fn(|_: TokenRequest| async {
            let header = http::HeaderName::from_static("x-token");
            Ok::<_, BoxError>(AccessToken::new("token-1")?.with_header(header, "")?)
        })
    };
    let api = Server::start(|_| async { status(StatusCode::OK) }).await;
    let middleware = ClientCredentialsMiddleware::new(tokens());
    for (middleware, requests) in [
        (middleware.clone(), 0),
        (middleware.redirects_within_origin(), 1),
    ] {
        let client = ClientBuilder::new(Client::new()).with(middleware).build();

        let result = in_time(client.get(api.url("/")).send()).await;

        assert_eq!(result.is_ok(), requests == 1);
        assert_eq!(api.received().len(), requests);
    }
}

/// Sends requests to another server.
struct Rerouting(reqwest::Url);

#[async_trait]
impl Middleware for Rerouting {
    async fn handle(
        &self,
        mut request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        *request.url_mut() = self.0.clone();
        next.run(request, extensions).await
    }
}

#[tokio::test]
async fn rejection_by_the_server_that_another_middleware_names_renews_the_token() {
    for notes_url in [true, false] {
        let (issuer, api) = (issuer().await, api_rejecting(["token-1"]).await);
        let mut builder = ClientBuilder::new(Client::new())
            .with(ClientCredentialsMiddleware::new(tokens(&issuer)))
            .with(Rerouting(api.url("/").parse().unwrap()));
        if notes_url {
            builder = builder.with(SentUrl);
        }

        let request = builder.build().get("https://api.example/");
        let response = in_time(request.send()).await.unwrap();

        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(api.tokens(), ["Bearer token-1", "Bearer token-2"]);
    }
}

#[tokio::test]
async fn rejection_by_another_middleware_renews_the_token() {
    /// Answers without the client, as a mock does.
    struct Mock;

    #[async_trait]
    impl Middleware for Mock {
        async fn handle(
            &self,
            request: Request,
            _: &mut Extensions,
            _: Next<'_>,
        ) -> reqwest_middleware::Result<Response> {
            let is_rejected = request.headers()["authorization"] == "Bearer token-1";
            let mut response = http::Response::new("");
            if is_rejected {
                *response.status_mut() = StatusCode::UNAUTHORIZED;
            }
            Ok(response.into())
        }
    }

    let issuer = issuer().await;
    let client = ClientBuilder::new(Client::new())
        .with(ClientCredentialsMiddleware::new(tokens(&issuer)))
        .with(Mock)
        .with(SentUrl)
        .build();

    let response = in_time(client.get("https://api.example/").send()).await;

    assert_eq!(response.unwrap().status(), StatusCode::OK);
    assert_eq!(issuer.received().len(), 2);
}

#[tokio::test]
async fn unauthorized_response_of_another_origin_keeps_the_token_if_the_url_is_noted() {
    let (issuer, api) = (issuer().await, api_rejecting([]).await);
    let other = Server::start(|_| async { status(StatusCode::UNAUTHORIZED) }).await;
    let away = other.url("/");
    let api_that_redirects = Server::start(move |_| {
        let response = redirect(StatusCode::FOUND, &away);
        async { response }
    })
    .await;
    let client = ClientBuilder::new(Client::new())
        .with(ClientCredentialsMiddleware::new(tokens(&issuer)))
        .with(SentUrl)
        .build();

    let url = api_that_redirects.url("/");
    let response = in_time(client.get(url).send()).await.unwrap();
    let next = in_time(client.get(api.url("/")).send()).await.unwrap();

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(response.extensions().get::<TokenRemoved>().is_some());
    assert!(next.extensions().get::<TokenRemoved>().is_none());
    assert_eq!(other.tokens(), [""]);
    assert_eq!(api.tokens(), ["Bearer token-1"]);
    assert_eq!(issuer.received().len(), 1);
}
