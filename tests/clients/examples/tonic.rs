//! The layer around a tonic channel, below a generated client.
//!
//! ```text
//! cargo run --manifest-path tests/clients/Cargo.toml --example tonic
//! ```
//!
//! Starts a token endpoint and a gRPC server on 127.0.0.1. The server rejects the first token, as
//! if it had been revoked. Fails if the call does not succeed.

use bytes::Bytes;
use http::{Request, header::AUTHORIZATION};
use http_body_util::Full;
use hyper::body::Incoming;
use support::{Loopback, Protocol, Servers, hyper_client};
use tonic::{Status, body::Body, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tower::{ServiceBuilder, ServiceExt};
use tower_client_credentials::{BoxError, ClientCredentialsLayer, replay::Buffered};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let servers = start_servers().await;

    // A channel connects to one host only, so token requests need another client. hyper-util's does
    // not follow redirects. Outside of this example, build the endpoint with
    // `TokenEndpoint::new(client, url, ClientAuth::client_secret_basic(id, secret))?`.
    let tokens = servers.tokens(hyper_client::<Full<Bytes>>(Protocol::Http1));
    let layer = ClientCredentialsLayer::new(tokens)
        .rejected_when(|response| {
            response
                .headers
                .get("grpc-status")
                .is_some_and(|status| status == "16")
        })
        .replay(Buffered::new(64 * 1024).map(Body::new));
    let channel = Endpoint::from_shared(servers.url(""))?.connect().await?;
    let channel = ServiceBuilder::new().layer(layer).service(channel);

    let mut client = HealthClient::new(channel);
    let response = client
        .check(HealthCheckRequest::default())
        .await?
        .into_inner();

    println!("the server is {}", response.status().as_str_name());
    assert_eq!(response.status(), ServingStatus::Serving);
    assert_eq!(
        servers.issued(),
        2,
        "the first token is rejected, the second accepted"
    );
    Ok(())
}

/// Starts tonic's health service behind a check of the token.
async fn start_servers() -> Servers {
    let (_reporter, health) = tonic_health::server::health_reporter();
    let api = Loopback::start(move |request: Request<Incoming>| {
        let health = health.clone();
        async move {
            match request.headers().get(AUTHORIZATION) {
                Some(token) if token != "Bearer token-1" => health
                    .oneshot(request)
                    .await
                    .unwrap_or_else(|never| match never {}),
                _ => Status::unauthenticated("token expired").into_http(),
            }
        }
    })
    .await;
    Servers::with_api(api).await
}
