//! reqwest's client: a service of its own request type, with a body of its own.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use reqwest::{Body, Client};
use support::{Protocol, Servers, Upload, hash, in_time};
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use tower_client_credentials::{
    BoxError, ClientCredentialsLayer, NotReplayed, TokenOutcome,
    replay::{Buffered, CloneWith, ReplayBody},
};
use tower_reqwest::HttpClientLayer;

const MIB: usize = 1024 * 1024;

fn client(protocol: Protocol) -> Client {
    let builder = Client::builder().tcp_nodelay(true);
    match protocol {
        Protocol::Http1 => builder.http1_only(),
        Protocol::Http2 => builder.http2_prior_knowledge(),
    }
    .build()
    .unwrap()
}

/// reqwest's client as an HTTP client like others, made with tower's own combinators.
fn adapted(
    client: Client,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = BoxError, Future: Send + 'static>
+ Clone
+ Send
+ Sync
+ 'static {
    ServiceBuilder::new()
        .map_response(|response: reqwest::Response| Response::<Body>::from(response))
        .filter(|request: Request<Body>| Ok::<_, BoxError>(reqwest::Request::try_from(request)?))
        .service(client)
}

/// A body that is in memory can be copied; `reqwest::Body::try_clone` does so but is private.
fn try_clone(body: &Body) -> Option<Body> {
    body.as_bytes()
        .map(|bytes| Body::from(Bytes::copy_from_slice(bytes)))
}

fn upload(number: usize, len: usize) -> (Body, String) {
    let upload = Upload::new(number, len);
    let hash = upload.hash();
    (Body::wrap(upload), hash)
}

async fn answer(response: Response<Body>) -> (StatusCode, String) {
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.into()).unwrap())
}

#[tokio::test]
async fn client_adapted_with_towers_own_combinators() {
    for protocol in Protocol::ALL {
        for path in ["/late/1", "/reading-on/1"] {
            let servers = Servers::start().await;
            let http = adapted(client(protocol));
            let service = ServiceBuilder::new()
                .layer(
                    ClientCredentialsLayer::new(servers.tokens(http.clone()))
                        .replay(Buffered::new(4 * MIB).map(Body::wrap)),
                )
                .service(http);

            let (body, expected) = upload(1, 3 * MIB);
            let request = Request::put(servers.url(path)).body(body).unwrap();
            let response = in_time(service.oneshot(request)).await.unwrap();

            assert_eq!(answer(response).await, (StatusCode::OK, expected));
        }
    }
}

#[tokio::test]
async fn client_adapted_with_tower_reqwest() {
    for protocol in Protocol::ALL {
        let servers = Servers::start().await;
        let http = ServiceBuilder::new()
            .layer(HttpClientLayer)
            .service(client(protocol));
        let service = ServiceBuilder::new()
            .layer(
                ClientCredentialsLayer::new(servers.tokens(http.clone()))
                    .replay(Buffered::new(4 * MIB).map(Body::wrap)),
            )
            .service(http);

        let (body, expected) = upload(1, 3 * MIB);
        let request = Request::put(servers.url("/late/1")).body(body).unwrap();
        let response = in_time(service.oneshot(request)).await.unwrap();

        assert_eq!(answer(response).await, (StatusCode::OK, expected));
    }
}

#[tokio::test]
async fn body_in_memory_is_copied() {
    let servers = Servers::start().await;
    let http = adapted(client(Protocol::Http1));
    let service = ClientCredentialsLayer::new(servers.tokens(http.clone()))
        .replay(CloneWith(try_clone))
        .layer(http);
    let request = Request::post(servers.url("/late/1"))
        .body(Body::from("name=Ada"))
        .unwrap();

    let response = in_time(service.oneshot(request)).await.unwrap();

    assert_eq!(answer(response).await, (StatusCode::OK, hash("name=Ada")));
    assert_eq!(servers.connections().accepted(), 1);
}

#[tokio::test]
async fn streamed_body_cannot_be_copied_and_is_sent_once() {
    let servers = Servers::start().await;
    let http = adapted(client(Protocol::Http1));
    let service = ClientCredentialsLayer::new(servers.tokens(http.clone()))
        .replay(CloneWith(try_clone))
        .layer(http);
    let (body, expected) = upload(1, MIB);
    let request = Request::put(servers.url("/late/1")).body(body).unwrap();

    let response = in_time(service.oneshot(request)).await.unwrap();

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(matches!(
        response
            .extensions()
            .get::<TokenOutcome>()
            .and_then(TokenOutcome::not_replayed),
        Some(NotReplayed::BodyNotKept)
    ));
    assert_eq!(servers.received()[0].hash.as_ref(), Some(&expected));
}

/// Requests are built as always, and sent through the stack.
#[tokio::test]
async fn request_of_reqwests_own_builder() {
    let servers = Servers::start().await;
    let client = client(Protocol::Http1);
    let http = adapted(client.clone());
    let policy = Buffered::new(MIB).map(|body: ReplayBody<Body>| Body::wrap(body));
    let service = ClientCredentialsLayer::new(servers.tokens(http.clone()))
        .replay(policy)
        .layer(http);

    let request = client
        .post(servers.url("/late/1"))
        .body("name=Ada")
        .build()
        .unwrap();
    let request = Request::<Body>::try_from(request).unwrap();
    let response = in_time(service.oneshot(request)).await.unwrap();
    let response = reqwest::Response::from(response);

    assert_eq!(response.text().await.unwrap(), hash("name=Ada"));
}
