//! hyper-util's client: any body, HTTP/1.1 and HTTP/2.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{
    BodyExt, Full, StreamBody,
    combinators::{BoxBody, UnsyncBoxBody},
};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use support::{Loopback, Protocol, Servers, Upload, hash, hyper_client, in_time};
use tokio::sync::Notify;
use tower::{Layer, ServiceExt};
use tower_client_credentials::{
    BoxError, ClientCredentials, ClientCredentialsLayer, NotReplayed, TokenOutcome,
    replay::{Buffered, ReplayBody},
};

const MIB: usize = 1024 * 1024;

/// The usual stack, with bodies that can be cloned.
fn full(
    servers: &Servers,
    protocol: Protocol,
) -> ClientCredentials<Client<HttpConnector, Full<Bytes>>> {
    let http = hyper_client(protocol);
    ClientCredentialsLayer::new(servers.tokens(http.clone())).layer(http)
}

/// A stack for streaming bodies; its tokens come by a client of their own.
fn buffered<B>(
    servers: &Servers,
    protocol: Protocol,
    limit: usize,
) -> ClientCredentials<Client<HttpConnector, ReplayBody<B>>, Buffered>
where
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    let tokens = servers.tokens(hyper_client::<Full<Bytes>>(protocol));
    ClientCredentialsLayer::new(tokens)
        .replay(Buffered::new(limit))
        .layer(hyper_client(protocol))
}

async fn answer(response: Response<Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.into()).unwrap())
}

/// A server that closes an HTTP/1.1 connection before it has read everything now and then loses its
/// own answer (RFC 9112 §9.6), and then the client has none.
fn refusals(protocol: Protocol) -> &'static [&'static str] {
    match protocol {
        Protocol::Http1 => &["/late/1", "/reading-on/1"],
        Protocol::Http2 => &["/late/1", "/early/1", "/first-frame/1", "/reading-on/1"],
    }
}

fn versions(servers: &Servers) -> Vec<Version> {
    let received = servers.received();
    received
        .into_iter()
        .map(|received| received.version)
        .collect()
}

#[tokio::test]
async fn full_body_is_sent_again_with_another_token() {
    for (protocol, version) in [
        (Protocol::Http1, Version::HTTP_11),
        (Protocol::Http2, Version::HTTP_2),
    ] {
        let servers = Servers::start().await;
        let request = Request::post(servers.url("/late/1"))
            .body(Full::from("name=Ada"))
            .unwrap();

        let response = in_time(full(&servers, protocol).oneshot(request))
            .await
            .unwrap();

        assert_eq!(answer(response).await, (StatusCode::OK, hash("name=Ada")));
        assert_eq!(versions(&servers), [version, version]);
        let tokens = servers
            .received()
            .into_iter()
            .map(|received| received.authorization.unwrap());
        assert!(tokens.eq(["Bearer token-1", "Bearer token-2"]));
    }
}

/// Answers of each size and form in which they usually come.
#[tokio::test]
async fn rejection_leaves_its_connection_to_the_replay() {
    for len in [0, 1, 70, 8 * 1024, 32 * 1024] {
        for is_chunked in [false, true] {
            let mut refusal = Response::builder().status(StatusCode::UNAUTHORIZED);
            if is_chunked {
                refusal = refusal.header("transfer-encoding", "chunked");
            }
            let refusal = refusal.body(Bytes::from(vec![b'x'; len])).unwrap();
            let servers = Servers::with_refusal(refusal).await;
            let request = Request::post(servers.url("/late/1"))
                .body(Full::from("name=Ada"))
                .unwrap();

            let response = in_time(full(&servers, Protocol::Http1).oneshot(request))
                .await
                .unwrap();

            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(servers.received().len(), 2);
            let connections = servers.connections().accepted();
            assert_eq!(connections, 1, "{len} bytes, chunked: {is_chunked}");
        }
    }
}

/// The same where the client's own tasks run at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejection_leaves_its_connection_to_the_replay_on_many_threads() {
    let servers = Servers::start().await;
    let request = Request::post(servers.url("/late/1"))
        .body(Full::from("name=Ada"))
        .unwrap();

    let call = tokio::spawn(full(&servers, Protocol::Http1).oneshot(request));
    let response = in_time(call).await.unwrap().unwrap();

    assert_eq!(answer(response).await, (StatusCode::OK, hash("name=Ada")));
    assert_eq!(servers.received().len(), 2);
    assert_eq!(servers.connections().accepted(), 1);
}

/// What is still to come is not waited for, and costs the connection.
#[tokio::test]
async fn rejection_that_is_too_long_costs_its_connection() {
    let refusal = Response::builder().status(StatusCode::UNAUTHORIZED);
    let refusal = refusal.body(Bytes::from(vec![b'x'; MIB])).unwrap();
    let servers = Servers::with_refusal(refusal).await;
    let request = Request::post(servers.url("/late/1"))
        .body(Full::from("name=Ada"))
        .unwrap();

    let response = in_time(full(&servers, Protocol::Http1).oneshot(request))
        .await
        .unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(servers.connections().accepted(), 2);
}

#[tokio::test]
async fn boxed_body_is_sent_again() {
    for protocol in Protocol::ALL {
        let servers = Servers::start().await;
        let upload = Upload::new(1, MIB);
        let expected = upload.hash();
        let body: BoxBody<Bytes, BoxError> = upload.boxed();
        let request = Request::put(servers.url("/late/1")).body(body).unwrap();

        let service = buffered(&servers, protocol, MIB);
        let response = in_time(service.oneshot(request)).await.unwrap();

        assert_eq!(answer(response).await, (StatusCode::OK, expected));
    }
}

#[tokio::test]
async fn trailers_are_sent_again() {
    for protocol in Protocol::ALL {
        let servers = Servers::start().await;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        let body = Upload::new(1, 1000).with_trailers(async { Some(Ok(trailers)) });
        let request = Request::put(servers.url("/late/1"))
            .header("trailer", "x-sum")
            .body(body.boxed_unsync())
            .unwrap();

        let service = buffered(&servers, protocol, MIB);
        let response = in_time(service.oneshot(request)).await.unwrap();

        assert_eq!(response.status(), StatusCode::OK);
        let sums = servers
            .received()
            .into_iter()
            .map(|received| received.trailer.unwrap());
        assert!(sums.eq(["7", "7"]));
    }
}

/// A proxy passes on what it gets while it gets it.
#[tokio::test]
async fn incoming_body_is_passed_on_and_sent_again() {
    for protocol in Protocol::ALL {
        for path in refusals(protocol) {
            let servers = Servers::start().await;
            let target = servers.url(path);
            let service = buffered::<Incoming>(&servers, protocol, 4 * MIB);
            let proxy = Loopback::start(move |request: Request<Incoming>| {
                let request = Request::put(&target).body(request.into_body()).unwrap();
                let response = service.clone().oneshot(request);
                async { response.await.unwrap() }
            })
            .await;
            let upload = Upload::new(1, 3 * MIB);
            let expected = upload.hash();
            let request = Request::put(proxy.url("/")).body(upload).unwrap();

            let response = in_time(hyper_client(protocol).request(request))
                .await
                .unwrap();

            assert_eq!(
                answer(response).await,
                (StatusCode::OK, expected),
                "{protocol:?}, {path}"
            );
        }
    }
}

#[tokio::test]
async fn streamed_20_mib_are_sent_again_whenever_the_rejection_comes() {
    for protocol in Protocol::ALL {
        for path in refusals(protocol) {
            let servers = Servers::start().await;
            let upload = Upload::new(1, 20 * MIB);
            let expected = upload.hash();
            let request = Request::put(servers.url(path)).body(upload).unwrap();

            let service = buffered(&servers, protocol, 20 * MIB);
            let response = in_time(service.oneshot(request)).await.unwrap();

            assert_eq!(
                answer(response).await,
                (StatusCode::OK, expected),
                "{protocol:?}, {path}"
            );
        }
    }
}

/// What was not sent when the 401 came need not be remembered, however much it is.
#[tokio::test]
async fn early_rejection_lets_the_replay_take_over_more_than_the_limit() {
    for protocol in Protocol::ALL {
        let servers = Servers::start().await;
        let upload = Upload::new(1, 20 * MIB);
        let expected = upload.hash();
        // Its first frame is there; the others only when another token was asked for.
        let (body, renewed) = body_that_waits(upload);
        let tokens = servers.tokens(hyper_client::<Full<Bytes>>(protocol));
        let tokens = tokens.map_response(move |token| {
            if token.expose() != "token-1" {
                renewed.notify_one();
            }
            token
        });
        let service = ClientCredentialsLayer::new(tokens)
            .replay(Buffered::new(64 * 1024))
            .layer(hyper_client(protocol));
        let request = Request::put(servers.url("/reading-on/1"))
            .body(body)
            .unwrap();

        let response = in_time(service.oneshot(request)).await.unwrap();

        assert_eq!(
            answer(response).await,
            (StatusCode::OK, expected),
            "{protocol:?}"
        );
    }
}

/// A body whose first frame is there, and which goes on when it is told to.
fn body_that_waits(mut upload: Upload) -> (UnsyncBoxBody<Bytes, BoxError>, Arc<Notify>) {
    let go_on = Arc::new(Notify::new());
    let is_told = Arc::clone(&go_on);
    let first = async { (upload.frame().await.unwrap(), upload) };
    let frames = first.map(|(first, upload)| {
        let rest = async move {
            is_told.notified().await;
            upload.into_data_stream().map_ok(Frame::data)
        };
        stream::iter([first]).chain(rest.flatten_stream())
    });
    (
        StreamBody::new(frames.flatten_stream()).boxed_unsync(),
        go_on,
    )
}

#[tokio::test]
async fn upload_over_the_limit_is_sent_once_and_whole() {
    for protocol in Protocol::ALL {
        for upload in [Upload::new(1, 20 * MIB), Upload::new(1, 20 * MIB).sized()] {
            let servers = Servers::start().await;
            let expected = upload.hash();
            let request = Request::put(servers.url("/late/1")).body(upload).unwrap();

            let service = buffered(&servers, protocol, MIB);
            let response = in_time(service.oneshot(request)).await.unwrap();

            assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
            assert!(matches!(
                response
                    .extensions()
                    .get::<TokenOutcome>()
                    .and_then(TokenOutcome::not_replayed),
                Some(NotReplayed::BodyOverLimit)
            ));
            let received = servers.received();
            assert_eq!(received.len(), 1);
            assert_eq!(received[0].hash.as_ref(), Some(&expected));
        }
    }
}

/// HTTP/1.1 would send a body of unknown length in chunks.
#[tokio::test]
async fn size_of_a_streamed_body_is_passed_on() {
    let server = Loopback::start(|request: Request<Incoming>| async move {
        let length = request.headers().get("content-length").cloned();
        let _ = request.into_body().collect().await;
        Response::builder()
            .header(
                "x-length",
                length.unwrap_or_else(|| "none".parse().unwrap()),
            )
            .body(support::text(""))
            .unwrap()
    })
    .await;
    let servers = Servers::start().await;
    let request = Request::put(server.url("/"))
        .body(Upload::new(1, 40_000).sized())
        .unwrap();

    let service = buffered(&servers, Protocol::Http1, MIB);
    let response = in_time(service.oneshot(request)).await.unwrap();

    assert_eq!(response.headers()["x-length"], "40000");
}
