//! Which requests an API accepts, and what it remembers of them.

mod support;

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use support::{auth_server, hyper_client, in_time, token, with_token};
use tower::ServiceExt;
use tower_client_credentials_test::{
    Api, AuthServer, Body, Reply, TestClock, TokenReply, TokenState,
};

async fn send(api: &Api, request: Request<Full<Bytes>>) -> Response<Body> {
    api.clone().oneshot(request).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn only_live_tokens_are_accepted() {
    let auth = auth_server().lifetime(Duration::from_secs(60));
    let api = Api::new(&auth);
    let stranger = token(&auth_server()).await;
    let expired = token(&auth).await;
    tokio::time::advance(Duration::from_secs(59)).await;
    assert_eq!(send(&api, with_token(&expired)).await.status(), 200);
    tokio::time::advance(Duration::from_secs(1)).await;
    let [live, revoked] = [token(&auth).await, token(&auth).await];
    assert!(auth.revoke(&revoked));
    assert!(!auth.revoke(&stranger));

    let cases = [
        (&live, StatusCode::OK, TokenState::Live, Some(2)),
        (
            &expired,
            StatusCode::UNAUTHORIZED,
            TokenState::Expired,
            Some(1),
        ),
        (
            &revoked,
            StatusCode::UNAUTHORIZED,
            TokenState::Revoked,
            Some(3),
        ),
        (
            &stranger,
            StatusCode::UNAUTHORIZED,
            TokenState::Unknown,
            None,
        ),
    ];
    for (token, status, state, number) in cases {
        let response = send(&api, with_token(token)).await;
        assert_eq!(response.status(), status, "{state}");
        let request = api.requests().pop().unwrap();
        assert_eq!(
            (request.token_state(), request.token_number()),
            (state, number)
        );
    }
    let response = send(&api, Request::new(Full::default())).await;
    assert_eq!(
        response.headers()["www-authenticate"],
        "Bearer realm=\"api\""
    );

    auth.revoke_all();
    let response = send(&api, with_token(&live)).await;
    let challenge = response.headers()["www-authenticate"].to_str().unwrap();
    assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    assert_eq!(response.headers()["x-token-number"], "2");
    assert_eq!(
        (api.sends(), api.accepted_requests(), api.refused_requests()),
        (7, 2, 5)
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_can_be_too_young() {
    let auth = auth_server().accept_from(Duration::from_secs(2));
    let api = Api::new(&auth);
    let token = token(&auth).await;

    assert_eq!(send(&api, with_token(&token)).await.status(), 401);
    assert_eq!(api.requests()[0].token_state(), TokenState::TooYoung);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(send(&api, with_token(&token)).await.status(), 200);
}

#[tokio::test]
async fn a_test_clock_can_measure_the_age_of_tokens() {
    let clock = TestClock::new(std::time::SystemTime::UNIX_EPOCH);
    let auth = auth_server()
        .clock(&clock)
        .lifetime(Duration::from_secs(60));
    let api = Api::new(&auth);
    let token = token(&auth).await;

    clock.advance(Duration::from_secs(59));
    assert_eq!(send(&api, with_token(&token)).await.status(), 200);
    clock.advance(Duration::from_secs(1));
    assert_eq!(send(&api, with_token(&token)).await.status(), 401);
    clock.set(std::time::SystemTime::UNIX_EPOCH);
    assert_eq!(send(&api, with_token(&token)).await.status(), 200);
}

#[tokio::test]
async fn a_token_can_be_in_any_header() {
    let cases = [
        ("authorization", "Bearer", "Bearer {}", 200),
        ("authorization", "Bearer", "bearer {}", 200),
        ("authorization", "Bearer", "Basic {}", 401),
        ("authorization", "Bearer", "{}", 401),
        ("authorization", "GenieKey", "GenieKey {}", 200),
        ("x-amz-access-token", "", "{}", 200),
        ("x-amz-access-token", "", "Bearer {}", 401),
        ("x-token", "Key", "Key {}", 200),
        ("x-token", "Key", "key {}", 401),
    ];
    for (name, prefix, value, expected) in cases {
        let auth = auth_server();
        let api = Api::new(&auth).token_header(name, prefix);
        let value = value.replace("{}", &token(&auth).await);

        let request = Request::get("/")
            .header(name, &value)
            .body(Full::default())
            .unwrap();
        assert_eq!(
            send(&api, request).await.status(),
            expected,
            "{name}: {value}"
        );

        let twice = Request::get("/").header(name, &value).header(name, &value);
        let response = send(&api, twice.body(Full::default()).unwrap()).await;
        assert_eq!(response.status(), 401, "{name} twice");
    }
}

#[tokio::test]
async fn a_request_is_echoed_or_answered_by_a_function() {
    let auth = auth_server();
    let api = Api::new(&auth);
    let token = token(&auth).await;
    let request = || {
        Request::post("https://api.example.com/orders?page=2")
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "text/plain")
            .body(Full::from("two chairs"))
            .unwrap()
    };

    let response = send(&api, request()).await;
    assert_eq!(response.headers()["content-type"], "text/plain");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "two chairs");
    assert_eq!(api.requests()[0].body().unwrap(), "two chairs");
    assert_eq!(api.requests()[0].uri().query(), Some("page=2"));

    api.answer(|request| async move {
        let (head, body) = request.into_parts();
        assert_eq!(head.uri.path(), "/orders");
        Response::builder()
            .status(201)
            .body(Full::new(body.slice(..3)))
            .unwrap()
    });
    let response = send(&api, request()).await;
    assert_eq!(response.status(), 201);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "two");
}

#[tokio::test]
async fn any_challenge_can_refuse_a_live_token() {
    let auth = auth_server();
    let api = Api::new(&auth);
    let token = token(&auth).await;
    let challenge = r#"Negotiate YII=, Bearer error="invalid_token""#;
    api.next_once(Reply::unauthorized(challenge));

    let response = send(&api, with_token(&token)).await;

    assert_eq!(response.headers()["www-authenticate"], challenge);
    assert!(api.requests()[0].is_refused());
    assert_eq!(send(&api, with_token(&token)).await.status(), 200);
}

#[tokio::test]
async fn a_token_of_a_reply_in_the_script_is_accepted() {
    let auth = auth_server().next_once(TokenReply::text("token-1"));
    let api = Api::new(&auth);

    assert_eq!(token(&auth).await, "token-1");

    assert_eq!(send(&api, with_token("token-1")).await.status(), 200);
}

#[tokio::test]
async fn a_body_is_read_up_to_64_mib() {
    let auth = auth_server();
    let token = token(&auth).await;
    for (megabytes, expected) in [(64, 200), (65, 413)] {
        let api = Api::new(&auth);
        let request = Request::put("/")
            .header("authorization", format!("Bearer {token}"))
            .body(Megabytes(megabytes))
            .unwrap();

        let response = api.clone().oneshot(request).await.unwrap();

        assert_eq!(response.status(), expected);
        assert_eq!(api.requests()[0].body().is_some(), expected == 200);
    }
}

/// A body of this many megabytes.
struct Megabytes(usize);

impl http_body::Body for Megabytes {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let left = self.0.checked_sub(1);
        self.0 = left.unwrap_or_default();
        Poll::Ready(left.map(|_| Ok(Frame::data(Bytes::from(vec![0; 1024 * 1024])))))
    }
}

#[tokio::test]
async fn waiting_for_requests_ends_when_they_arrive() {
    let auth = auth_server();
    let api = Api::new(&auth);
    let waiting = tokio::spawn({
        let (auth, api) = (auth.clone(), api.clone());
        async move {
            auth.wait_for_token_requests(2).await;
            api.wait_for_sends(1).await;
        }
    });

    token(&auth).await;
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    let token = token(&auth).await;
    send(&api, with_token(&token)).await;

    in_time(waiting).await.unwrap();
}

#[tokio::test]
async fn a_server_stops_when_it_is_dropped() {
    let api = Api::new(&AuthServer::new());
    let server = api.serve().await.unwrap();
    let request = Request::get(server.url("/")).body(Full::default()).unwrap();
    let client = hyper_client(false);
    in_time(client.request(request.clone())).await.unwrap();

    drop(server);
    tokio::task::yield_now().await;

    in_time(client.request(request)).await.unwrap_err();
}

/// A body that must not be read.
struct Untouched;

impl http_body::Body for Untouched {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("the body is read");
    }
}

#[tokio::test]
async fn a_function_chooses_a_reply_before_the_body() {
    let auth = auth_server();
    let api = Api::new(&auth);
    let token = token(&auth).await;
    auth.always_by_head(|request| match request.uri().path() {
        "/busy" => Reply::status(503).before_body(),
        _ => Reply::normal(),
    });
    api.always_by_head(|request| match request.number() {
        1 => Reply::status(502).before_body(),
        _ => Reply::normal(),
    });
    let request = || Request::post("/busy").body(Untouched).unwrap();

    let response = auth.clone().oneshot(request()).await.unwrap();
    assert_eq!(response.status(), 503);
    let response = api.clone().oneshot(request()).await.unwrap();
    assert_eq!(response.status(), 502);
    assert_eq!(api.requests()[0].body(), None);

    // A normal reply still depends on the body.
    assert_eq!(send(&api, with_token(&token)).await.status(), 200);
    assert_eq!(api.requests()[1].body(), Some(&Bytes::new()));
}

#[tokio::test(start_paused = true)]
async fn a_delayed_reply_looks_at_the_token_after_the_delay() {
    let auth = auth_server().lifetime(Duration::from_secs(60));
    let token = token(&auth).await;
    let slow = || Reply::normal().delayed(Duration::from_secs(10));
    let api = Api::new(&auth).always(slow());
    let expiring = async {
        tokio::time::advance(Duration::from_secs(49)).await;
        assert_eq!(send(&api, with_token(&token)).await.status(), 200);
        tokio::time::advance(Duration::from_millis(500)).await;
        send(&api, with_token(&token)).await
    };

    assert_eq!(expiring.await.status(), 401);
    let request = &api.requests()[1];
    assert_eq!(request.token_state(), TokenState::Expired);

    // A token becomes old enough during the delay, and the body is read then.
    let auth = auth_server().accept_from(Duration::from_secs(5));
    let refusal = Reply::status(401).before_body();
    let api = Api::new(&auth).refusal(refusal).always(slow());
    let mut request = with_token(&support::token(&auth).await);
    *request.body_mut() = Full::from("two chairs");
    assert_eq!(send(&api, request).await.status(), 200);
    assert_eq!(api.requests()[0].body(), Some(&Bytes::from("two chairs")));
}
