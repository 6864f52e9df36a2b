//! A streamed upload with reqwest.
//!
//! ```text
//! cargo run --manifest-path tests/clients/Cargo.toml --example reqwest
//! ```
//!
//! Starts a token endpoint and an API on 127.0.0.1. The API rejects the first token, as if it had
//! been revoked. Panics if the upload does not arrive complete.

use bytes::Bytes;
use futures_util::stream;
use reqwest::{Body, Client};
use support::{Servers, hash};
use tower_client_credentials::BoxError;
use tower_client_credentials_reqwest::{ClientExt, token_client};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let servers = Servers::start().await;
    // Outside of this example, build the endpoint with
    // `TokenEndpoint::new(token_client()?, url, ClientAuth::client_secret_basic(id, secret))?`.
    let tokens = servers.tokens(token_client()?);
    let api = Client::new().with_client_credentials(tokens);

    let lines = ["one\n", "two\n", "three\n"].map(|line| Ok::<_, BoxError>(Bytes::from(line)));
    let body = Body::wrap_stream(stream::iter(lines));
    let response = api
        .put(servers.url("/late/reports/7"))
        .body(body)
        .send()
        .await?;

    let received = response.error_for_status()?.text().await?;
    println!("the API received {received}");
    assert_eq!(received, hash("one\ntwo\nthree\n"));
    assert_eq!(
        servers.issued(),
        2,
        "the first token is rejected, the second accepted"
    );
    Ok(())
}
