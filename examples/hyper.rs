//! The layer around hyper-util's client, with a streaming request body.
//!
//! ```text
//! cargo run --example hyper
//! ```
//!
//! Starts a server on 127.0.0.1 that is both token endpoint and API. Its API rejects the first
//! token, as if it had been revoked. Fails if the upload does not arrive complete.

use std::{convert::Infallible, net::Ipv4Addr};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use http_body::Frame;
use http_body_util::{BodyExt, Collected, Full, StreamBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::net::TcpListener;
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_client_credentials::{
    BoxError, ClientAuth, ClientCredentialsLayer, TokenEndpoint, replay::Buffered,
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let server = start_server().await?;

    // A client of hyper-util sends one body type. Token requests have a body in memory; requests to
    // the API have the body type of the replay policy. So each of them gets a client.
    let tokens = TokenEndpoint::new(
        client::<Full<Bytes>>(),
        format!("{server}/token"),
        ClientAuth::client_secret_post("my-client", "s3cret"),
    )?;
    let mut api = ServiceBuilder::new()
        .layer(ClientCredentialsLayer::new(tokens).replay(Buffered::new(64 * 1024)))
        .service(client());

    let request = Request::put(format!("{server}/reports/7")).body(report())?;
    let response = api.ready().await?.call(request).await?;

    let status = response.status();
    let stored = response.into_body().collect().await?.to_bytes();
    println!("{status}: {stored:?}");
    if status != StatusCode::CREATED || stored != "one\ntwo\nthree\n" {
        return Err("the API did not store the report that was sent".into());
    }
    Ok(())
}

fn client<B>() -> Client<HttpConnector, B>
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

async fn start_server() -> Result<String, BoxError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection =
                http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(respond));
            tokio::spawn(connection);
        }
    });
    Ok(url)
}

/// The token endpoint issues a new token each time. The API echoes the bodies that it accepts.
async fn respond(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static ISSUED: AtomicUsize = AtomicUsize::new(0);

    let (head, body) = request.into_parts();
    let body = body.collect().await.map(Collected::to_bytes);
    let (status, body) = match (head.uri.path(), head.headers.get(AUTHORIZATION), body) {
        ("/token", _, _) => {
            let number = ISSUED.fetch_add(1, Ordering::SeqCst) + 1;
            let reply = format!(r#"{{"access_token":"token-{number}","expires_in":1800}}"#);
            (StatusCode::OK, Bytes::from(reply))
        }
        (_, Some(token), Ok(body)) if token != "Bearer token-1" => (StatusCode::CREATED, body),
        _ => (StatusCode::UNAUTHORIZED, Bytes::new()),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    Ok(response)
}
