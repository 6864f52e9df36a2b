//! The total timeout of a request covers the wait for a token, both sends, and the response.

mod support;

use std::{future::pending, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use http::StatusCode;
use http_body_util::Full;
use reqwest::Client;
use support::{Server, api_rejecting, in_time, issuer, status, tokens};
use tower_client_credentials_reqwest::{ApiClient, ClientExt};

const TIMEOUT: Duration = Duration::from_millis(200);

/// Never answers.
async fn silent() -> Server {
    Server::start(|_| pending::<http::Response<Full<Bytes>>>()).await
}

/// Rejects the first token, and doesn't answer requests with another one.
async fn silent_after_a_rejection() -> Server {
    Server::start(|request| async move {
        if request.token() == "Bearer token-1" {
            return status(StatusCode::UNAUTHORIZED);
        }
        pending().await
    })
    .await
}

#[tokio::test]
async fn timeout_ends_every_wait_of_a_call() {
    let (issuer, api) = (issuer().await, api_rejecting([]).await);
    for (name, issuer, api) in [
        ("token", &silent().await, &api),
        ("first send", &issuer, &silent().await),
        (
            "second send",
            &support::issuer().await,
            &silent_after_a_rejection().await,
        ),
    ] {
        let client = Client::new().with_client_credentials(tokens(issuer));
        let of_the_request = client.get(api.url("/")).timeout(TIMEOUT);
        let of_the_client = client.clone().timeout(TIMEOUT).get(api.url("/"));
        for request in [of_the_request, of_the_client] {
            let error = in_time(request.send()).await.unwrap_err();

            assert!(error.is_timeout(), "{name}: {error:?}");
            // Not the deadline of a token request, which is longer, nor a timer of reqwest.
            assert!(error.token_error().is_none(), "{name}: {error:?}");
            assert!(error.reqwest_error().is_none(), "{name}: {error:?}");
        }
    }
}

#[tokio::test]
async fn timeouts_during_sends_have_one_kind() {
    let (issuer, api) = (issuer().await, silent().await);
    let client = Client::new().with_client_credentials(tokens(&issuer));
    client.cache().token().await.unwrap();

    let calls = (0..50).map(|number| {
        let timeout = TIMEOUT + Duration::from_micros(100 * number);
        client.get(api.url("/")).timeout(timeout).send()
    });
    for error in in_time(join_all(calls)).await {
        let error = error.unwrap_err();
        assert!(error.is_timeout(), "{error:?}");
        assert!(error.reqwest_error().is_none(), "{error:?}");
    }
}

#[tokio::test]
async fn timeout_of_the_request_replaces_that_of_the_client() {
    let (issuer, api) = (issuer().await, api_rejecting([]).await);
    let client = Client::new().with_client_credentials(tokens(&issuer));
    let client: ApiClient = client.timeout(Duration::ZERO);

    let request = client.get(api.url("/"));
    assert!(in_time(request.send()).await.unwrap_err().is_timeout());
    let request = client.get(api.url("/")).timeout(Duration::MAX);
    assert_eq!(
        in_time(request.send()).await.unwrap().status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn timeout_of_one_call_does_not_cancel_the_token_request() {
    let (release, released) = tokio::sync::watch::channel(false);
    let issuer = Server::start(move |_| {
        let mut released = released.clone();
        async move {
            released.wait_for(|it| *it).await.unwrap();
            http::Response::new(Full::from(
                r#"{"access_token":"token-1","expires_in":1800}"#,
            ))
        }
    })
    .await;
    let api = api_rejecting([]).await;
    let client = Client::new().with_client_credentials(tokens(&issuer));

    let request = client.get(api.url("/")).timeout(TIMEOUT);
    assert!(in_time(request.send()).await.unwrap_err().is_timeout());
    release.send_replace(true);
    let response = in_time(client.get(api.url("/")).send()).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(issuer.received().len(), 1);
}

#[tokio::test]
async fn timeout_covers_reading_the_response() {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    let issuer = issuer().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let unfinished = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await.unwrap();
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";
        stream.write_all(head).await.unwrap();
        pending::<()>().await;
    });
    let client = Client::new().with_client_credentials(tokens(&issuer));

    let response = in_time(client.get(url).timeout(TIMEOUT).send())
        .await
        .unwrap();
    let error = in_time(response.text()).await.unwrap_err();

    assert!(error.is_timeout(), "{error:?}");
    unfinished.abort();
}
