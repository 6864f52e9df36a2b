//! Each scripted fault, as hyper's client sees it on a port, and as a caller in process does.

mod support;

use std::{
    convert::Infallible,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use support::{auth_server, form_request, hyper_client, in_time, io_kind, json, token_request};
use tokio::time::{Instant, timeout};
use tower::ServiceExt;
use tower_client_credentials_test::{
    Api, AuthServer, Body, BoxError, Outcome, Reply, Server, TokenReply,
};

/// Whether a client notices something within this time decides that a server hangs.
const A_WHILE: Duration = Duration::from_millis(200);

/// An authorization server on a port, and a client for one HTTP version.
struct OnPort {
    auth: AuthServer,
    server: Server,
    http2: bool,
}

impl OnPort {
    async fn both() -> [Self; 2] {
        [Self::start(false).await, Self::start(true).await]
    }

    async fn start(http2: bool) -> Self {
        let auth = auth_server();
        let server = auth.serve().await.unwrap();
        Self {
            auth,
            server,
            http2,
        }
    }

    async fn send(&self) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
        let request = token_request(self.server.url("/token"));
        hyper_client(self.http2).request(request).await
    }
}

async fn in_process(auth: &AuthServer) -> std::io::Result<Response<Body>> {
    auth.clone()
        .oneshot(token_request("https://auth.example.com/token"))
        .await
}

#[tokio::test]
async fn a_status_arrives_with_its_headers_and_body() {
    for on_port in OnPort::both().await {
        let busy = Reply::status(503)
            .with_header("retry-after", "7")
            .with_body("busy");
        on_port.auth.next_once(busy);

        let response = in_time(on_port.send()).await.unwrap();

        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "7");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "busy");
        on_port.auth.assert_script_used();
    }
}

#[tokio::test]
async fn a_reset_is_a_reset_of_the_connection() {
    for on_port in OnPort::both().await {
        on_port.auth.next_once(Reply::reset());

        let error = in_time(on_port.send()).await.unwrap_err();

        assert_eq!(
            io_kind(error),
            Some(ErrorKind::ConnectionReset),
            "http2: {}",
            on_port.http2
        );
        assert_eq!(on_port.auth.requests()[0].outcome(), Outcome::Reset);
        // The server goes on.
        assert_eq!(
            in_time(on_port.send()).await.unwrap().status(),
            StatusCode::OK
        );
    }

    let auth = auth_server().next_once(Reply::reset());
    let error = in_process(&auth).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Uses a socket without an HTTP client, to see exactly what the server sends.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_sends_rst_and_no_byte() {
    let auth = auth_server().next_once(Reply::reset());
    let server = auth.serve().await.unwrap();
    let address = server.address();

    let read = tokio::task::spawn_blocking(move || {
        let mut socket = TcpStream::connect(address).unwrap();
        socket
            .write_all(b"POST /token HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
            .unwrap();
        let mut received = Vec::new();
        let error = socket
            .read_to_end(&mut received)
            .map_err(|error| error.kind());
        (error, received)
    });

    let (error, received) = in_time(read).await.unwrap();
    assert_eq!(error, Err(ErrorKind::ConnectionReset));
    assert!(received.is_empty());
}

#[tokio::test]
async fn a_hanging_server_sends_nothing() {
    for on_port in OnPort::both().await {
        on_port.auth.next_once(Reply::hang());
        let mut response = pin!(on_port.send());

        assert!(timeout(A_WHILE, &mut response).await.is_err());

        assert_eq!(on_port.auth.requests()[0].outcome(), Outcome::Unanswered);
        assert_eq!(
            in_time(on_port.send()).await.unwrap().status(),
            StatusCode::OK
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_in_process_never_answers() {
    let auth = auth_server().next_once(Reply::hang());

    let a_year = Duration::from_secs(365 * 24 * 60 * 60);
    assert!(timeout(a_year, in_process(&auth)).await.is_err());
}

#[tokio::test]
async fn a_stopped_server_refuses_connections_until_it_comes_back() {
    let OnPort { auth, server, .. } = OnPort::start(false).await;
    let (address, url) = (server.address(), server.url("/token"));
    let client = hyper_client(false);
    in_time(client.request(token_request(&url))).await.unwrap();

    in_time(server.stop()).await;
    // The pooled connection is closed as well.
    let error = in_time(hyper_client(false).request(token_request(&url)))
        .await
        .unwrap_err();
    assert_eq!(io_kind(error), Some(ErrorKind::ConnectionRefused));

    let _server = Server::start_at(address, auth.clone()).await.unwrap();
    let response = in_time(hyper_client(false).request(token_request(&url)))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    auth.assert_token_requests(2);
}

#[tokio::test]
async fn a_body_that_is_cut_off_ends_after_its_half() {
    for on_port in OnPort::both().await {
        let reply = Reply::status(200).with_body("0123456789").cut_off();
        on_port.auth.next_once(reply);

        let response = in_time(on_port.send()).await.unwrap();

        assert_eq!(response.headers()["content-length"], "10");
        let (data, failed) = in_time(read(response.into_body())).await;
        assert_eq!(data, "01234", "http2: {}", on_port.http2);
        assert!(failed);
    }

    let auth = auth_server().next_once(Reply::normal().cut_off());
    let (data, failed) = read(in_process(&auth).await.unwrap().into_body()).await;
    assert!(data.starts_with(b"{\"access_token\":"));
    assert!(failed);
    assert_eq!(
        auth.requests()[0].outcome(),
        Outcome::Interrupted(StatusCode::OK)
    );
}

#[tokio::test]
async fn an_empty_body_can_be_cut_off_too() {
    for on_port in OnPort::both().await {
        on_port.auth.next_once(Reply::status(200).cut_off());

        let response = in_time(on_port.send()).await;
        // HTTP/2 may see the error before the headers.
        let Ok(response) = response else {
            assert!(on_port.http2);
            continue;
        };

        let (data, failed) = in_time(read(response.into_body())).await;
        assert!(data.is_empty());
        assert!(failed);
    }
}

#[tokio::test]
async fn a_stalled_body_stops_after_its_half() {
    for on_port in OnPort::both().await {
        let reply = Reply::status(200).with_body("0123456789").stalled();
        on_port.auth.next_once(reply);

        let mut body = in_time(on_port.send()).await.unwrap().into_body();

        let first = in_time(body.frame()).await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "01234");
        assert!(timeout(A_WHILE, body.frame()).await.is_err());
    }
}

#[tokio::test]
async fn a_delay_delays_the_reply_and_not_the_next_one() {
    let on_port = OnPort::start(false).await;
    on_port.auth.next_once(Reply::normal().delayed(A_WHILE));

    let start = Instant::now();
    let response = in_time(on_port.send()).await.unwrap();

    assert!(start.elapsed() >= A_WHILE);
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_delay_in_the_process_is_exact() {
    let hour = Duration::from_secs(3600);
    let auth = auth_server().next_once(TokenReply::new().delayed(hour));

    let start = Instant::now();
    in_process(&auth).await.unwrap();
    assert_eq!(start.elapsed(), hour);
    in_process(&auth).await.unwrap();
    assert_eq!(start.elapsed(), hour);
}

#[tokio::test]
async fn garbage_is_neither_json_nor_text() {
    for on_port in OnPort::both().await {
        on_port.auth.next_once(Reply::garbage());

        let response = in_time(on_port.send()).await.unwrap();

        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/json");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(std::str::from_utf8(&body).is_err());
    }
}

#[tokio::test]
async fn a_redirect_names_its_location() {
    for on_port in OnPort::both().await {
        on_port
            .auth
            .next_once(Reply::redirect("https://elsewhere.example/token"));

        let response = in_time(on_port.send()).await.unwrap();

        assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT);
        assert_eq!(
            response.headers()["location"],
            "https://elsewhere.example/token"
        );
    }
}

#[tokio::test]
async fn oauth_errors_have_their_status_and_members() {
    for (code, status) in [
        ("invalid_client", 401),
        ("invalid_scope", 400),
        ("slow_down", 400),
    ] {
        let on_port = OnPort::start(false).await;
        let error = Reply::oauth_error_with_description(code, "because");
        on_port.auth.next_once(error);

        let (found, body) = json(in_time(on_port.send()).await.unwrap()).await;

        assert_eq!(found, status);
        assert_eq!(
            body,
            serde_json::json!({ "error": code, "error_description": "because" })
        );
    }
}

#[tokio::test]
async fn the_same_token_comes_again_with_the_rest_of_its_lifetime() {
    tokio::time::pause();
    let auth = auth_server().lifetime(Duration::from_secs(100));
    let (_, first) = json(in_process(&auth).await.unwrap()).await;
    tokio::time::advance(Duration::from_secs(30)).await;
    auth.next_once(TokenReply::same_again());

    let (_, second) = json(in_process(&auth).await.unwrap()).await;
    let (_, third) = json(in_process(&auth).await.unwrap()).await;

    assert_eq!(first["access_token"], second["access_token"]);
    assert_eq!(second["expires_in"], 70);
    assert_ne!(first["access_token"], third["access_token"]);
    assert_eq!(auth.issued_tokens(), 2);
}

#[tokio::test]
async fn replies_once_come_in_order_and_before_the_one_that_is_always() {
    let auth = auth_server()
        .always(Reply::status(500))
        .next_once(Reply::status(501))
        .next_once(Reply::status(502));

    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(in_process(&auth).await.unwrap().status().as_u16());
    }
    auth.always(Reply::normal());
    statuses.push(in_process(&auth).await.unwrap().status().as_u16());

    assert_eq!(statuses, [501, 502, 500, 500, 200]);
}

#[tokio::test]
async fn a_function_chooses_replies_by_what_a_request_contains() {
    let auth = auth_server().always_by(|request| match request.parameter("resource") {
        Some("https://broken.example/") => Reply::status(500),
        _ => Reply::normal(),
    });
    let form = "grant_type=client_credentials&client_id=my-client&client_secret=s3cret";
    let broken = format!("{form}&resource=https%3A%2F%2Fbroken.example%2F");

    for (form, expected) in [(&broken[..], 500), (form, 200)] {
        let response = auth.clone().oneshot(form_request("/token", form)).await;
        assert_eq!(response.unwrap().status(), expected);
    }
}

#[tokio::test]
async fn a_reply_before_the_body_does_not_wait_for_the_body() {
    let auth = auth_server().next_once(Reply::status(413).before_body());
    let api = Api::new(&auth).next_once(Reply::status(401).before_body());

    let never = || Request::post("/").body(NeverEnding).unwrap();
    let response = in_time(auth.clone().oneshot(never())).await.unwrap();
    assert_eq!(response.status(), 413);
    let response = in_time(api.clone().oneshot(never())).await.unwrap();
    assert_eq!(response.status(), 401);
    assert!(api.requests()[0].body().is_none());

    // Any other reply does.
    auth.next_once(Reply::status(413));
    let mut response = pin!(auth.clone().oneshot(never()));
    assert!(timeout(A_WHILE, &mut response).await.is_err());
}

#[tokio::test]
async fn a_personality_and_an_api_can_fail_in_every_way() {
    // What an API refuses can be delivered in any way as well.
    let auth = auth_server();
    let api = Api::new(&auth).refusal(Reply::status(401).with_body("0123456789").cut_off());
    let server = api.serve().await.unwrap();

    let request = Request::get(server.url("/"))
        .body(Full::<Bytes>::default())
        .unwrap();
    let response = in_time(hyper_client(false).request(request)).await.unwrap();

    let (data, failed) = in_time(read(response.into_body())).await;
    assert_eq!(data, "01234");
    assert!(failed);
}

/// Reads a body as far as it goes. Returns whether it failed.
async fn read<B>(mut body: B) -> (Bytes, bool)
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let mut data = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => data.extend(frame.into_data().unwrap_or_default()),
            Err(_) => return (data.into(), true),
        }
    }
    (data.into(), false)
}

struct NeverEnding;

impl http_body::Body for NeverEnding {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }
}

/// hyper would panic.
#[test]
#[should_panic(expected = "content-length is the length of the body")]
fn a_reply_has_the_length_of_its_body() {
    drop(TokenReply::new().with_header("Content-Length", "7"));
}
