//! reqwest's client: a service for its own request type, with its own body. It works with tower's own
//! combinators, with tower-reqwest, and with this repository's crate for reqwest.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use reqwest::{Body, Client, ClientBuilder, redirect::Policy};
use support::{Loopback, Protocol, Servers, Upload, hash, in_time, text};
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use tower_client_credentials::{
    BoxError, ClientAuth, ClientCredentialsLayer, NotReplayed, TokenCache, TokenEndpoint,
    TokenOutcome,
    replay::{Buffered, CloneWith, ReplayBody},
};
use tower_reqwest::HttpClientLayer;

const MIB: usize = 1024 * 1024;

fn client(protocol: Protocol) -> Client {
    builder(protocol).build().unwrap()
}

/// A redirect must not send the client secret to another URL.
fn token_client(protocol: Protocol) -> Client {
    builder(protocol).redirect(Policy::none()).build().unwrap()
}

fn builder(protocol: Protocol) -> ClientBuilder {
    let builder = Client::builder().tcp_nodelay(true);
    match protocol {
        Protocol::Http1 => builder.http1_only(),
        Protocol::Http2 => builder.http2_prior_knowledge(),
    }
}

/// Adapts reqwest's client to requests of the `http` crate, with tower's own combinators.
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

/// Copies a body that is in memory, as the private `reqwest::Body::try_clone` does.
fn try_clone(body: &Body) -> Option<Body> {
    body.as_bytes()
        .map(|bytes| Body::from(Bytes::copy_from_slice(bytes)))
}

fn upload(number: usize, len: usize) -> (Body, String) {
    let upload = Upload::new(number, len);
    let hash = upload.hash();
    (Body::wrap(upload), hash)
}

async fn status_and_text(response: Response<Body>) -> (StatusCode, String) {
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.into()).unwrap())
}

#[tokio::test]
async fn client_can_be_adapted_with_combinators_of_tower() {
    for protocol in Protocol::ALL {
        for path in ["/late/1", "/reading-on/1"] {
            let servers = Servers::start().await;
            let tokens = servers.tokens(adapted(token_client(protocol)));
            let service = ServiceBuilder::new()
                .layer(
                    ClientCredentialsLayer::new(tokens)
                        .replay(Buffered::new(4 * MIB).map(Body::wrap)),
                )
                .service(adapted(client(protocol)));

            let (body, expected) = upload(1, 3 * MIB);
            let request = Request::put(servers.url(path)).body(body).unwrap();
            let response = in_time(service.oneshot(request)).await.unwrap();

            assert_eq!(status_and_text(response).await, (StatusCode::OK, expected));
        }
    }
}

#[tokio::test]
async fn client_can_be_adapted_with_tower_reqwest() {
    for protocol in Protocol::ALL {
        let servers = Servers::start().await;
        let tokens = servers.tokens(HttpClientLayer.layer(token_client(protocol)));
        let service = ServiceBuilder::new()
            .layer(
                ClientCredentialsLayer::new(tokens).replay(Buffered::new(4 * MIB).map(Body::wrap)),
            )
            .layer(HttpClientLayer)
            .service(client(protocol));

        let (body, expected) = upload(1, 3 * MIB);
        let request = Request::put(servers.url("/late/1")).body(body).unwrap();
        let response = in_time(service.oneshot(request)).await.unwrap();

        assert_eq!(status_and_text(response).await, (StatusCode::OK, expected));
    }
}

#[tokio::test]
async fn body_in_memory_is_copied_and_replayed() {
    let servers = Servers::start().await;
    let tokens = servers.tokens(adapted(token_client(Protocol::Http1)));
    let service = ClientCredentialsLayer::new(tokens)
        .replay(CloneWith(try_clone))
        .layer(adapted(client(Protocol::Http1)));
    let request = Request::post(servers.url("/late/1"))
        .body(Body::from("name=Ada"))
        .unwrap();

    let response = in_time(service.oneshot(request)).await.unwrap();

    assert_eq!(
        status_and_text(response).await,
        (StatusCode::OK, hash("name=Ada"))
    );
    assert_eq!(servers.connections().accepted(), 1);
}

#[tokio::test]
async fn streamed_body_cannot_be_copied_and_is_sent_once() {
    let servers = Servers::start().await;
    let tokens = servers.tokens(adapted(token_client(Protocol::Http1)));
    let service = ClientCredentialsLayer::new(tokens)
        .replay(CloneWith(try_clone))
        .layer(adapted(client(Protocol::Http1)));
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

/// The request is built as usual and sent through the stack.
#[tokio::test]
async fn request_from_reqwests_builder_is_replayed() {
    let servers = Servers::start().await;
    let client = client(Protocol::Http1);
    let tokens = servers.tokens(adapted(token_client(Protocol::Http1)));
    let policy = Buffered::new(MIB).map(|body: ReplayBody<Body>| Body::wrap(body));
    let service = ClientCredentialsLayer::new(tokens)
        .replay(policy)
        .layer(adapted(client.clone()));

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

/// The API answers while reqwest still uploads, or after it has uploaded.
#[tokio::test]
async fn long_upload_is_replayed_with_the_crate_for_reqwest() {
    use tower_client_credentials_reqwest::{ClientExt, ReplayBodies, token_client};

    for protocol in Protocol::ALL {
        for path in ["/late/1", "/reading-on/1"] {
            for is_sized in [true, false] {
                let servers = Servers::start().await;
                let replay = ReplayBodies::default().stream_limit(4 * MIB);
                let tokens = servers.tokens(token_client().unwrap());
                let layer = ClientCredentialsLayer::new(tokens).replay(replay);
                let api = client(protocol).with_client_credentials(layer);

                let upload = Upload::new(1, 3 * MIB);
                let expected = upload.hash();
                let upload = if is_sized { upload.sized() } else { upload };
                let request = api.put(servers.url(path)).body(Body::wrap(upload));
                let response = in_time(request.send()).await.unwrap();

                assert_eq!(response.status(), StatusCode::OK);
                assert_eq!(response.text().await.unwrap(), expected);
                let received = servers.received();
                assert_eq!(received[0].framing, received[1].framing);
                assert_eq!(servers.issued(), 2);
            }
        }
    }
}

#[tokio::test]
async fn token_client_without_redirects_keeps_the_secret_from_another_host() {
    for protocol in Protocol::ALL {
        let other = Loopback::start(async |_| Response::new(text(""))).await;
        let location = other.url("/");
        let issuer = Loopback::start(move |_| {
            let response = Response::builder().status(StatusCode::TEMPORARY_REDIRECT);
            let response = response.header("location", &location).body(text(""));
            async { response.unwrap() }
        })
        .await;
        let auth = ClientAuth::client_secret_post("id", "secret");
        let http = adapted(token_client(protocol));
        let tokens = TokenEndpoint::new(http, issuer.url("/token"), auth).unwrap();

        let error = in_time(TokenCache::new(tokens).token()).await.unwrap_err();

        assert_eq!(error.status(), Some(StatusCode::TEMPORARY_REDIRECT));
        assert_eq!(other.connections().accepted(), 0);
    }
}
