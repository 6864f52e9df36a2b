//! The layer around hyper-util's client, with a body that is streamed.
//!
//! Starts a server on 127.0.0.1 that is token endpoint and API in one, and whose API refuses the
//! first token, as if it had been revoked. Ends with an error if the upload does not arrive whole.

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

    // hyper-util's client has one body type: tokens are asked for with a body in memory, and the API
    // gets what the layer makes of a stream.
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
        return Err("the report was not stored as it was sent".into());
    }
    Ok(())
}

fn client<B>() -> Client<HttpConnector, B>
where
    B: http_body::Body<Data: Send> + Send,
{
    Client::builder(TokioExecutor::new()).build_http()
}

/// A body whose length is not known when it is sent.
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
                http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::spawn(connection);
        }
    });
    Ok(url)
}

/// The token endpoint issues a new token each time; the API gives back what it accepts.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static ISSUED: AtomicUsize = AtomicUsize::new(0);

    let (head, body) = request.into_parts();
    let body = body.collect().await.map(Collected::to_bytes);
    let (status, answer) = match (head.uri.path(), head.headers.get(AUTHORIZATION), body) {
        ("/token", _, _) => {
            let number = ISSUED.fetch_add(1, Ordering::SeqCst) + 1;
            let reply = format!(r#"{{"access_token":"token-{number}","expires_in":1800}}"#);
            (StatusCode::OK, Bytes::from(reply))
        }
        (_, Some(token), Ok(body)) if token != "Bearer token-1" => (StatusCode::CREATED, body),
        _ => (StatusCode::UNAUTHORIZED, Bytes::new()),
    };
    let mut response = Response::new(Full::new(answer));
    *response.status_mut() = status;
    Ok(response)
}
