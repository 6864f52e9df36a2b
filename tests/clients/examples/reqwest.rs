//! The layer around reqwest's client.
//!
//! Starts a token endpoint and an API on 127.0.0.1; the API refuses the first token, as if it had
//! been revoked. Ends with a panic if the upload does not arrive whole.

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use reqwest::Body;
use support::{Servers, hash};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_client_credentials::{BoxError, ClientCredentialsLayer, replay::Buffered};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let servers = Servers::start().await;
    let client = reqwest::Client::new();

    // reqwest's client takes requests of its own type: two combinators make it one of http's.
    let http = ServiceBuilder::new()
        .map_response(Response::<Body>::from)
        .filter(|request: Request<Body>| {
            reqwest::Request::try_from(request).map_err(BoxError::from)
        })
        .service(client.clone());

    // For any server: TokenEndpoint::new(http.clone(), url, ClientAuth::client_secret_post(id, secret))?
    let tokens = servers.tokens(http.clone());
    let layer =
        ClientCredentialsLayer::new(tokens).replay(Buffered::new(64 * 1024).map(Body::wrap));
    let mut api = ServiceBuilder::new().layer(layer).service(http);

    // Requests are built as always, and sent through the stack.
    let lines = ["one\n", "two\n", "three\n"].map(|line| Ok::<_, BoxError>(Bytes::from(line)));
    let request = client
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
        "the first token is refused, the second accepted"
    );
    Ok(())
}
