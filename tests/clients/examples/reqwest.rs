//! A streamed upload with reqwest.
//!
//! ```text
//! cargo run --manifest-path tests/clients/Cargo.toml --example reqwest
//! ```
//!
//! Starts a token endpoint and an API on 127.0.0.1. The API rejects the first request, as if its
//! token had been revoked. Panics if the upload does not arrive complete.

use bytes::Bytes;
use futures_util::stream;
use reqwest::{Body, Client};
use tower_client_credentials::{BoxError, ClientAuth, TokenEndpoint};
use tower_client_credentials_reqwest::{ClientExt, token_client};
use tower_client_credentials_test::{Api, AuthServer, Reply};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let auth = AuthServer::new().with_client("my-client", "s3cret");
    let api = Api::new(&auth).next_once(Reply::unauthorized(r#"Bearer error="invalid_token""#));
    let (auth_server, api_server) = (auth.serve().await?, api.serve().await?);

    let tokens = TokenEndpoint::new(
        token_client()?,
        auth_server.url("/token"),
        ClientAuth::client_secret_basic("my-client", "s3cret"),
    )?;
    let client = Client::new().with_client_credentials(tokens);

    let lines = ["one\n", "two\n", "three\n"].map(|line| Ok::<_, BoxError>(Bytes::from(line)));
    let body = Body::wrap_stream(stream::iter(lines));
    let response = client
        .put(api_server.url("/reports/7"))
        .body(body)
        .send()
        .await?;

    let received = response.error_for_status()?.text().await?;
    println!("the API received {received:?}");
    assert_eq!(received, "one\ntwo\nthree\n");
    // The first send, and the second one with a new token.
    api.assert_sends(2);
    api.assert_replays_match();
    auth.assert_token_requests(2);
    Ok(())
}
