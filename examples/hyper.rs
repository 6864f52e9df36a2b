//! The layer around hyper-util's client, with a streaming request body.
//!
//! ```text
//! cargo run --example hyper
//! ```
//!
//! Starts a token endpoint and an API on 127.0.0.1. The API rejects the first request, as if its
//! token had been revoked. Fails if the upload does not arrive complete.

use bytes::Bytes;
use futures_util::stream;
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
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

    // A client of hyper-util sends one body type. Token requests have a body in memory; requests to
    // the API have the body type of the replay policy. So each of them gets a client.
    let tokens = TokenEndpoint::new(
        http_client::<Full<Bytes>>(),
        auth_server.url("/token"),
        ClientAuth::client_secret_post("my-client", "s3cret"),
    )?;
    let mut client = ServiceBuilder::new()
        .layer(ClientCredentialsLayer::new(tokens).replay(Buffered::new(64 * 1024)))
        .service(http_client());

    let request = Request::put(api_server.url("/reports/7")).body(report())?;
    let response = client.ready().await?.call(request).await?;

    let status = response.status();
    let received = response.into_body().collect().await?.to_bytes();
    println!("{status}: {received:?}");
    if status != StatusCode::OK || received != "one\ntwo\nthree\n" {
        return Err("the API did not receive the report that was sent".into());
    }
    // The first send, and the second one with a new token.
    api.assert_sends(2);
    api.assert_replays_match();
    auth.assert_token_requests(2);
    Ok(())
}

fn http_client<B>() -> Client<HttpConnector, B>
where
    B: http_body::Body<Data: Send> + Send,
{
    Client::builder(TokioExecutor::new()).build_http()
}

/// Returns a body of unknown length.
fn report() -> impl http_body::Body<Data = Bytes, Error = BoxError> + Send + Unpin + 'static {
    let lines = ["one\n", "two\n", "three\n"];
    let frames = lines.map(|line| Ok::<_, BoxError>(Frame::data(Bytes::from(line))));
    StreamBody::new(stream::iter(frames))
}
