//! The layer around reqwest's client.
//!
//! ```text
//! cargo run --manifest-path tests/clients/Cargo.toml --example reqwest
//! ```
//!
//! Starts a token endpoint and an API on 127.0.0.1. The API rejects the first request, as if its
//! token had been revoked. Panics if the upload does not arrive complete.

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use reqwest::{Body, Client, redirect::Policy};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_client_credentials::{
    BoxError, ClientAuth, ClientCredentialsLayer, TokenEndpoint, replay::Buffered,
};
use tower_client_credentials_test::{Api, AuthServer, Reply};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let auth = AuthServer::new().with_client("my-client", "s3cret");
    let api = Api::new(&auth).next_once(Reply::unauthorized(r#"Bearer error="invalid_token""#));
    let (auth_server, api_server) = (auth.serve().await?, api.serve().await?);

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

    let tokens = TokenEndpoint::new(
        adapt(token_client),
        auth_server.url("/token"),
        ClientAuth::client_secret_basic("my-client", "s3cret"),
    )?;
    let layer =
        ClientCredentialsLayer::new(tokens).replay(Buffered::new(64 * 1024).map(Body::wrap));
    let mut client = ServiceBuilder::new()
        .layer(layer)
        .service(adapt(api_client.clone()));

    // Build requests as usual, and send them through the stack.
    let lines = ["one\n", "two\n", "three\n"].map(|line| Ok::<_, BoxError>(Bytes::from(line)));
    let request = api_client
        .put(api_server.url("/reports/7"))
        .body(Body::wrap_stream(stream::iter(lines)))
        .build()?;
    let response = client.ready().await?.call(request.try_into()?).await?;
    let response = reqwest::Response::from(response).error_for_status()?;

    let received = response.text().await?;
    println!("the API received {received:?}");
    assert_eq!(received, "one\ntwo\nthree\n");
    // The first send, and the second one with a new token.
    api.assert_sends(2);
    api.assert_replays_match();
    auth.assert_token_requests(2);
    Ok(())
}
