//! The layer around a tonic channel, below a generated client.
//!
//! ```text
//! cargo run --manifest-path tests/clients/Cargo.toml --example tonic
//! ```
//!
//! Starts a token endpoint and a gRPC server on 127.0.0.1. The server rejects the first call, as if
//! its token had been revoked. Fails if the call does not succeed.

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tonic::{body::Body, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tower::{ServiceBuilder, ServiceExt};
use tower_client_credentials::{
    BoxError, ClientAuth, ClientCredentialsLayer, TokenEndpoint, replay::Buffered,
};
use tower_client_credentials_test::{Api, AuthServer, Reply};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let auth = AuthServer::new().with_client("my-client", "s3cret");
    let unauthenticated = Reply::status(200)
        .with_header("content-type", "application/grpc")
        .with_header("grpc-status", "16");
    let (_reporter, health) = tonic_health::server::health_reporter();
    let api = Api::new(&auth)
        .next_once(unauthenticated)
        .answer(move |request| {
            let response = health.clone().oneshot(request.map(Full::new));
            async { response.await.unwrap_or_else(|never| match never {}) }
        });
    let (auth_server, api_server) = (auth.serve().await?, api.serve().await?);

    // A channel connects to one host only, so token requests need another client. hyper-util's does
    // not follow redirects.
    let tokens = TokenEndpoint::new(
        Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>(),
        auth_server.url("/token"),
        ClientAuth::client_secret_basic("my-client", "s3cret"),
    )?;
    let layer = ClientCredentialsLayer::new(tokens)
        .rejected_when(|response| {
            response
                .headers
                .get("grpc-status")
                .is_some_and(|status| status == "16")
        })
        .replay(Buffered::new(64 * 1024).map(Body::new));
    let channel = Endpoint::from_shared(api_server.url(""))?.connect().await?;
    let channel = ServiceBuilder::new().layer(layer).service(channel);

    let mut client = HealthClient::new(channel);
    let response = client
        .check(HealthCheckRequest::default())
        .await?
        .into_inner();

    println!("the server is {}", response.status().as_str_name());
    assert_eq!(response.status(), ServingStatus::Serving);
    // The first send, and the second one with a new token.
    api.assert_sends(2);
    api.assert_replays_match();
    auth.assert_token_requests(2);
    Ok(())
}
