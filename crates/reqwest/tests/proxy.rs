//! Proxies from the environment, which reqwest uses unless they are turned off.

mod support;

use std::{
    env,
    process::{Command, Output},
};

use http::StatusCode;
use reqwest::Client;
use support::{Server, api_rejecting, in_time, status};
use tokio::task::spawn_blocking;
use tower_client_credentials::{AccessToken, BoxError, TokenRequest};
use tower_client_credentials_reqwest::ClientExt;

/// Names the URL of the API in the process whose environment has a proxy.
const API: &str = "API_BEHIND_PROXY";

#[tokio::test]
async fn proxy_from_the_environment_receives_tokens_for_loopback() {
    if let Ok(url) = env::var(API) {
        return call_with_and_without_proxy(&url).await;
    }
    let proxy = Server::start(|_| async { status(StatusCode::OK) }).await;
    let api = api_rejecting([]).await;

    let (proxy_url, api_url) = (proxy.url(""), api.url("/orders"));
    let output = in_time(spawn_blocking(move || run_again(&proxy_url, &api_url))).await;

    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(proxy.tokens(), ["Bearer token-1"]);
    assert_eq!(proxy.received()[0].target, "/orders");
    assert_eq!(api.tokens(), ["Bearer token-1"]);
}

/// Runs this test with a proxy in its environment.
fn run_again(proxy: &str, api: &str) -> Output {
    let mut command = Command::new(env::current_exe().unwrap());
    for name in ["no_proxy", "NO_PROXY", "HTTP_PROXY", "REQUEST_METHOD"] {
        command.env_remove(name);
    }
    command
        .arg("proxy_from_the_environment_receives_tokens_for_loopback")
        .env("http_proxy", proxy)
        .env(API, api)
        .output()
        .unwrap()
}

async fn call_with_and_without_proxy(url: &str) {
    let tokens = tower::service_fn(|_: TokenRequest| async {
        Ok::<_, BoxError>(AccessToken::new("token-1")?)
    });
    for client in [Client::new(), Client::builder().no_proxy().build().unwrap()] {
        let client = client.with_client_credentials(tokens);
        let response = in_time(client.get(url).send()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
}
