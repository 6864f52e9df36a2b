//! hyper-util's client: all kinds of bodies, over HTTP/1.1 and HTTP/2.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, TryStreamExt, future::join_all, stream};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{
    BodyExt, Full, StreamBody,
    combinators::{BoxBody, UnsyncBoxBody},
};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use support::{Loopback, Protocol, Servers, Upload, hash, hyper_client, in_time};
use tokio::sync::{Barrier, Notify};
use tower::{Layer, ServiceExt};
use tower_client_credentials::{
    BoxError, ClientAuth, ClientCredentials, ClientCredentialsLayer, NotReplayed, TokenEndpoint,
    TokenOutcome,
    replay::{Buffered, ReplayBody},
};

const MIB: usize = 1024 * 1024;

/// The default stack for bodies that can be cloned.
fn full(
    servers: &Servers,
    protocol: Protocol,
) -> ClientCredentials<Client<HttpConnector, Full<Bytes>>> {
    let http = hyper_client(protocol);
    ClientCredentialsLayer::new(servers.tokens(http.clone())).layer(http)
}

/// A stack for streaming bodies. Token requests have another client.
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

async fn status_and_text(response: Response<Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.into()).unwrap())
}

/// The paths on which the client reliably receives the rejection.
///
/// A server that closes an HTTP/1.1 connection before reading the whole request may lose its own
/// response (RFC 9112 §9.6).
fn rejecting_paths(protocol: Protocol) -> &'static [&'static str] {
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
async fn full_body_is_replayed_with_another_token() {
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

        assert_eq!(
            status_and_text(response).await,
            (StatusCode::OK, hash("name=Ada"))
        );
        assert_eq!(versions(&servers), [version, version]);
        let tokens = servers
            .received()
            .into_iter()
            .map(|received| received.authorization.unwrap());
        assert!(tokens.eq(["Bearer token-1", "Bearer token-2"]));
    }
}

/// For typical sizes of rejections, with a length and chunked.
#[tokio::test]
async fn replay_reuses_the_connection_of_the_rejection() {
    for len in [0, 1, 70, 8 * 1024, 32 * 1024] {
        for is_chunked in [false, true] {
            let mut rejection = Response::builder().status(StatusCode::UNAUTHORIZED);
            if is_chunked {
                rejection = rejection.header("transfer-encoding", "chunked");
            }
            let rejection = rejection.body(Bytes::from(vec![b'x'; len])).unwrap();
            let servers = Servers::with_rejection(rejection).await;
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

/// The client's tasks run in parallel to the call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_reuses_the_connection_of_the_rejection_on_many_threads() {
    let servers = Servers::start().await;
    let request = Request::post(servers.url("/late/1"))
        .body(Full::from("name=Ada"))
        .unwrap();

    let call = tokio::spawn(full(&servers, Protocol::Http1).oneshot(request));
    let response = in_time(call).await.unwrap().unwrap();

    assert_eq!(
        status_and_text(response).await,
        (StatusCode::OK, hash("name=Ada"))
    );
    assert_eq!(servers.received().len(), 2);
    assert_eq!(servers.connections().accepted(), 1);
}

/// The replay does not wait for the rest of the rejection.
#[tokio::test]
async fn replay_after_a_rejection_that_stalls_opens_a_new_connection() {
    let api = Loopback::start(|request: Request<Incoming>| async move {
        let start = stream::iter([Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"...")))]);
        if request.headers()["authorization"] == "Bearer token-1" {
            let stalling = start.chain(stream::pending()).boxed();
            let mut response = Response::new(StreamBody::new(stalling));
            *response.status_mut() = StatusCode::UNAUTHORIZED;
            return response;
        }
        Response::new(StreamBody::new(start.boxed()))
    })
    .await;
    let servers = Servers::with_api(api).await;
    let request = Request::post(servers.url("/"))
        .body(Full::from("name=Ada"))
        .unwrap();

    let started_at = Instant::now();
    let response = in_time(full(&servers, Protocol::Http1).oneshot(request))
        .await
        .unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(servers.connections().accepted(), 2);
    // The rest of a rejection is read for 5 s at most, but not before the request is sent again.
    assert!(started_at.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn boxed_body_is_replayed() {
    for protocol in Protocol::ALL {
        let servers = Servers::start().await;
        let upload = Upload::new(1, MIB);
        let expected = upload.hash();
        let body: BoxBody<Bytes, BoxError> = upload.boxed();
        let request = Request::put(servers.url("/late/1")).body(body).unwrap();

        let service = buffered(&servers, protocol, MIB);
        let response = in_time(service.oneshot(request)).await.unwrap();

        assert_eq!(status_and_text(response).await, (StatusCode::OK, expected));
    }
}

#[tokio::test]
async fn trailers_are_replayed() {
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

/// A proxy forwards a request body while it receives it.
#[tokio::test]
async fn incoming_body_is_forwarded_and_replayed() {
    for protocol in Protocol::ALL {
        for path in rejecting_paths(protocol) {
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
                status_and_text(response).await,
                (StatusCode::OK, expected),
                "{protocol:?}, {path}"
            );
        }
    }
}

#[tokio::test]
async fn stream_of_20_mib_is_replayed_whenever_the_rejection_arrives() {
    for protocol in Protocol::ALL {
        for path in rejecting_paths(protocol) {
            let servers = Servers::start().await;
            let upload = Upload::new(1, 20 * MIB);
            let expected = upload.hash();
            let request = Request::put(servers.url(path)).body(upload).unwrap();

            let service = buffered(&servers, protocol, 20 * MIB);
            let response = in_time(service.oneshot(request)).await.unwrap();

            assert_eq!(
                status_and_text(response).await,
                (StatusCode::OK, expected),
                "{protocol:?}, {path}"
            );
        }
    }
}

/// The part of the body that was not sent before the 401 needs no buffer.
#[tokio::test]
async fn body_over_the_limit_is_replayed_after_an_early_rejection() {
    for protocol in Protocol::ALL {
        let servers = Servers::start().await;
        let upload = Upload::new(1, 20 * MIB);
        let expected = upload.hash();
        // Only the first frame is available before the renewal.
        let (body, renewed) = pausing_body(upload);
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
            status_and_text(response).await,
            (StatusCode::OK, expected),
            "{protocol:?}"
        );
    }
}

/// Returns a body that pauses after its first frame, and a signal to continue.
fn pausing_body(mut upload: Upload) -> (UnsyncBoxBody<Bytes, BoxError>, Arc<Notify>) {
    let resume = Arc::new(Notify::new());
    let resumed = Arc::clone(&resume);
    let first = async { (upload.frame().await.unwrap(), upload) };
    let frames = first.map(|(first, upload)| {
        let rest = async move {
            resumed.notified().await;
            upload.into_data_stream().map_ok(Frame::data)
        };
        stream::iter([first]).chain(rest.flatten_stream())
    });
    (
        StreamBody::new(frames.flatten_stream()).boxed_unsync(),
        resume,
    )
}

#[tokio::test]
async fn upload_over_the_limit_is_sent_once_and_completely() {
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

type MakeBody = fn() -> UnsyncBoxBody<Bytes, BoxError>;

/// Bodies that HTTP clients frame in different ways.
const BODIES: [(&str, MakeBody); 8] = [
    ("many frames of unknown length", || {
        Upload::new(1, 100_000).boxed_unsync()
    }),
    ("one frame of unknown length", || {
        Upload::new(1, 10).boxed_unsync()
    }),
    ("no frame, of unknown length", || {
        Upload::new(1, 0).boxed_unsync()
    }),
    ("no frame after a while, of unknown length", || {
        let nothing = async {
            tokio::task::yield_now().await;
            stream::empty::<Result<Frame<Bytes>, BoxError>>()
        };
        StreamBody::new(nothing.flatten_stream()).boxed_unsync()
    }),
    ("many frames of known length", || {
        Upload::new(1, 100_000).sized().boxed_unsync()
    }),
    ("one frame of known length", || {
        Upload::new(1, 10).sized().boxed_unsync()
    }),
    ("empty", || {
        Full::new(Bytes::new())
            .map_err(BoxError::from)
            .boxed_unsync()
    }),
    ("trailers", || {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        let trailers = async { Some(Ok(trailers)) };
        Upload::new(1, 10).with_trailers(trailers).boxed_unsync()
    }),
];

/// A body that was sent in chunks gets no `Content-Length` on the replay, although all of it is in
/// memory then; one that had a `Content-Length` keeps it.
#[tokio::test]
async fn both_sends_are_framed_as_without_the_layer() {
    for protocol in Protocol::ALL {
        for path in rejecting_paths(protocol) {
            for (name, body) in BODIES {
                let case = format!("{protocol:?}, {path}, {name}");
                let servers = Servers::start().await;
                let request = |path| Request::post(servers.url(path)).body(body()).unwrap();
                let bare = in_time(hyper_client(protocol).request(request("/accepted"))).await;
                assert_eq!(bare.unwrap().status(), StatusCode::OK, "{case}");

                let service = buffered(&servers, protocol, MIB);
                let response = in_time(service.oneshot(request(path))).await.unwrap();

                assert_eq!(response.status(), StatusCode::OK, "{case}");
                let _ = response.into_body().collect().await;
                let received = servers.received();
                let [bare, sends @ ..] = &received[..] else {
                    panic!("nothing was received: {case}")
                };
                assert!(!sends.is_empty(), "{case}");
                for send in sends {
                    assert_eq!(send.framing, bare.framing, "{case}");
                }
            }
        }
    }
}

/// HTTP/1.1 sends a body of unknown size in chunks.
#[tokio::test]
async fn size_of_a_streaming_body_is_preserved() {
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

/// The token endpoint and the API share one HTTP/2 connection and its window. Unread rejections fill
/// the window, so the reply with the new token can't be sent until they are dropped.
#[tokio::test]
async fn unread_rejections_do_not_starve_the_token_reply_on_their_connection() {
    const SMALLEST_WINDOW: u32 = 65_535;
    // The second row fills the window of 5 MiB that hyper-util has by default.
    for (calls, rejection_len, window) in [
        (1, SMALLEST_WINDOW as usize, Some(SMALLEST_WINDOW)),
        (150, 64 * 1024, None),
    ] {
        let server = shared_server(calls, rejection_len).await;
        let mut client = Client::builder(TokioExecutor::new());
        client.http2_only(true);
        client.http2_initial_connection_window_size(window);
        client.http2_initial_stream_window_size(window);
        let http = client.build::<_, Full<Bytes>>(HttpConnector::new());
        let auth = ClientAuth::client_secret_post("id", "secret");
        let tokens = TokenEndpoint::new(http.clone(), server.url("/token"), auth).unwrap();
        let service = ClientCredentialsLayer::new(tokens).layer(http);
        service.cache().token().await.unwrap();

        let started_at = Instant::now();
        let responses = join_all((0..calls).map(|_| {
            let request = Request::get(server.url("/")).body(Full::default());
            service.clone().oneshot(request.unwrap())
        }));
        let responses = in_time(responses).await;

        for response in responses {
            assert_eq!(response.unwrap().status(), StatusCode::OK, "{calls} calls");
        }
        // A second of patience, and time for a busy machine. A token request may last 30 s.
        assert!(
            started_at.elapsed() < Duration::from_secs(10),
            "{calls} calls"
        );
        assert_eq!(server.connections().accepted(), 1);
    }
}

/// Issues tokens at "/token", and rejects the first one when so many requests have come with it. The
/// second token is issued a little later, when the rejections are under way.
async fn shared_server(rejections: usize, rejection_len: usize) -> Loopback {
    let issued = Arc::new(AtomicUsize::new(0));
    let all_here = Arc::new(Barrier::new(rejections));
    let rejection = Bytes::from(vec![b'x'; rejection_len]);
    Loopback::start(move |request: Request<Incoming>| {
        let (issued, all_here) = (Arc::clone(&issued), Arc::clone(&all_here));
        let rejection = rejection.clone();
        async move {
            if request.uri().path() == "/token" {
                let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
                if number > 1 {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                return Response::new(support::text(format!(
                    r#"{{"access_token":"token-{number}","expires_in":1800}}"#
                )));
            }
            if request.headers()["authorization"] != "Bearer token-1" {
                return Response::new(support::text("accepted"));
            }
            all_here.wait().await;
            let mut response = Response::new(support::text(rejection));
            *response.status_mut() = StatusCode::UNAUTHORIZED;
            response
        }
    })
    .await
}
