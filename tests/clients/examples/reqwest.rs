//! The layer around reqwest's client.
//!
//! ```text
//! cargo run --manifest-path tests/clients/Cargo.toml --example reqwest
//! ```
//!
//! Starts a token endpoint and an API on 127.0.0.1. The API rejects the first token, as if it had
//! been revoked. Panics if the upload does not arrive complete.

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use reqwest::{Body, Client, redirect::Policy};
use support::{Servers, hash};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_client_credentials::{BoxError, ClientCredentialsLayer, replay::Buffered};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let servers = Servers::start().await;
    // A redirect must not send the client secret to another URL.
    let token_client = Client::builder().redirect(Policy::none()).build()?;
    let api_client = Client::new();

    // reqwest's client takes requests of its own type. Two combinators turn it into a service for
    // requests of the `http` crate.
    let adapt = |client: Client| {
        ServiceBuilder::new()
            .map_response(Response::<Body>::from)
            .filter(|request: Request<Body>| {
                reqwest::Request::try_from(request).map_err(BoxError::from)
            })
            .service(client)
    };

    // Outside of this example, build the endpoint with
    // `TokenEndpoint::new(client, url, ClientAuth::client_secret_basic(id, secret))?`.
    let tokens = servers.tokens(adapt(token_client));
    let layer =
        ClientCredentialsLayer::new(tokens).replay(Buffered::new(64 * 1024).map(Body::wrap));
    let mut api = ServiceBuilder::new()
        .layer(layer)
        .service(adapt(api_client.clone()));

    // Build requests as usual, and send them through the stack.
    let lines = ["one\n", "two\n", "three\n"].map(|line| Ok::<_, BoxError>(Bytes::from(line)));
    let request = api_client
        .put(servers.url("/late/reports/7"))
        .body(Body::wrap_stream(stream::iter(lines)))
        .build()?;
    let response = api.ready().await?.call(request.try_into()?).await?;
    let response = reqwest::Response::from(response).error_for_status()?;

    let received = response.text().await?;
    println!("the API received {received}");
    assert_eq!(received, hash("one\ntwo\nthree\n"));
    assert_eq!(
        servers.issued(),
        2,
        "the first token is rejected, the second accepted"
    );
    Ok(())
}
