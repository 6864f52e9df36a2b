//! Each assertion fails when it should, and prints what the server saw, but no secret.

mod support;

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use support::{
    SECRET, auth_server, basic_request, form_request, reply, token, token_request, with_token,
};
use tower::ServiceExt;
use tower_client_credentials_test::{
    Api, AuthServer, Client, Refusal, Reply, TokenReply, control::Control,
};

/// The message with which an assertion fails, or `None` if it holds.
fn failure(assertion: impl FnOnce()) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(assertion)).err()?;
    Some(
        *panic
            .downcast::<String>()
            .expect("an assertion fails with a text"),
    )
}

async fn send(api: &Api, request: Request<Full<Bytes>>) -> u16 {
    api.clone()
        .oneshot(request)
        .await
        .unwrap()
        .status()
        .as_u16()
}

/// A request with a body and a token.
fn put(uri: &str, token: &str, body: &'static str) -> Request<Full<Bytes>> {
    Request::put(uri)
        .header("authorization", format!("Bearer {token}"))
        .body(Full::from(body))
        .unwrap()
}

#[tokio::test]
async fn the_number_of_token_requests() {
    let auth = auth_server();
    token(&auth).await;

    assert_eq!(failure(|| auth.assert_token_requests(1)), None);
    for wrong in [0, 2] {
        let message = failure(|| auth.assert_token_requests(wrong)).expect("a failure");
        assert!(message.contains(&format!("token requests: expected {wrong}, got 1")));
        assert!(message.contains("POST /token client \"my-client\" by client_secret_post"));
        assert!(message.contains("→ 200, token #1"), "{message}");
    }
}

#[tokio::test]
async fn no_refusals_of_the_authorization_server() {
    let auth = auth_server();
    token(&auth).await;
    // A scripted error is no refusal.
    auth.next_once(Reply::oauth_error("invalid_client"));
    reply(&auth, token_request("/token")).await;
    assert_eq!(failure(|| auth.assert_no_refusals()), None);

    reply(
        &auth,
        basic_request("my-client:wrong", "grant_type=client_credentials"),
    )
    .await;

    let message = failure(|| auth.assert_no_refusals()).expect("a failure");
    assert!(message.contains("expected 0, got 1"), "{message}");
    assert!(
        message.contains("→ 401 invalid_client: the secret is wrong"),
        "{message}"
    );
}

#[tokio::test]
async fn scripts_that_are_used() {
    let auth = auth_server();
    let api = Api::new(&auth);
    assert_eq!(failure(|| auth.assert_script_used()), None);
    assert_eq!(failure(|| api.assert_script_used()), None);

    auth.next_once(Reply::status(500))
        .next_once(TokenReply::new());
    api.next_once(Reply::status(500));

    let message = failure(|| auth.assert_script_used()).expect("a failure");
    assert!(message.contains("left: expected 0, got 2"), "{message}");
    let message = failure(|| api.assert_script_used()).expect("a failure");
    assert!(message.contains("left: expected 0, got 1"), "{message}");
}

#[tokio::test]
async fn the_number_of_sends() {
    let auth = auth_server();
    let api = Api::new(&auth);
    let token = token(&auth).await;
    send(&api, with_token(&token)).await;

    assert_eq!(failure(|| api.assert_sends(1)), None);
    let message = failure(|| api.assert_sends(2)).expect("a failure");
    assert!(message.contains("number of requests to the API: expected 2, got 1"));
    assert!(
        message.contains("GET /orders token #1 (live), 0 bytes → 200"),
        "{message}"
    );
    assert!(
        message.contains("the authorization server received 1 request:"),
        "{message}"
    );
}

#[tokio::test]
async fn no_refusals_of_the_api() {
    let auth = auth_server();
    let token = token(&auth).await;
    let refusals = [
        ("no live token", None),
        ("a scripted 401", Some(Reply::unauthorized("Bearer"))),
        ("a scripted 403", Some(Reply::status(403))),
    ];
    for (name, scripted) in refusals {
        let api = Api::new(&auth);
        api.next_once(Reply::status(500));
        send(&api, with_token(&token)).await;
        send(&api, with_token(&token)).await;
        assert_eq!(failure(|| api.assert_no_refusals()), None, "{name}");

        match scripted {
            Some(reply) => {
                api.next_once(reply);
                send(&api, with_token(&token)).await;
            }
            None => drop(send(&api, with_token("unknown")).await),
        }

        let message = failure(|| api.assert_no_refusals()).expect(name);
        assert!(message.contains("expected 0, got 1"), "{message}");
    }
}

#[tokio::test]
async fn replays_with_the_same_body() {
    let auth = auth_server();
    let token = token(&auth).await;
    let refuse = || Reply::unauthorized("Bearer");
    let same = Api::new(&auth).next_once(refuse());
    send(&same, put("/1", &token, "two chairs")).await;
    send(&same, put("/1", &token, "two chairs")).await;
    // Not a replay: the first send was accepted.
    send(&same, put("/1", &token, "a table")).await;
    assert_eq!(failure(|| same.assert_replays_match()), None);

    for (replayed, name) in [
        ("two chair", "cut off"),
        ("", "empty"),
        ("two tables", "different"),
    ] {
        let api = Api::new(&auth).next_once(refuse());
        send(&api, put("/1", &token, "two chairs")).await;
        send(&api, put("/2", &token, "something else")).await;
        send(&api, put("/1", &token, replayed)).await;

        let message = failure(|| api.assert_replays_match()).expect(name);
        assert!(
            message.contains("request 3 repeats request 1, but has another body"),
            "{message}"
        );
        assert!(!message.contains("chairs"), "{message}");
    }
}

/// Sends a request that may get no response.
async fn try_send(api: &Api, request: Request<Full<Bytes>>) {
    drop(api.clone().oneshot(request).await);
}

#[tokio::test]
async fn replays_after_every_failure_are_compared() {
    let auth = auth_server();
    let token = token(&auth).await;
    let refuses = |_| async { Response::builder().status(401).body(String::new()).unwrap() };
    let by_function = Api::new(&auth).answer(refuses);
    let scripted = |reply| Api::new(&auth).next_once(reply);
    let apis = [
        ("a reset", scripted(Reply::reset())),
        ("a status 503", scripted(Reply::status(503))),
        ("a status 429", scripted(Reply::status(429))),
        ("half a response", scripted(Reply::normal().cut_off())),
        (
            "a changed status",
            scripted(Reply::normal().with_status(401)),
        ),
        ("a function", by_function),
        (
            "a chain",
            scripted(Reply::status(503))
                .next_once(Reply::status(502).before_body())
                .next_once(Reply::reset()),
        ),
    ];
    for (name, api) in apis {
        let again = if name == "a chain" { 3 } else { 1 };
        for _ in 0..again {
            try_send(&api, put("/1", &token, "two chairs")).await;
        }
        assert_eq!(failure(|| api.assert_replays_match()), None, "{name}");
        try_send(&api, put("/1", &token, "a table")).await;

        let message = failure(|| api.assert_replays_match()).expect(name);
        let expected = format!("request {} repeats request 1,", again + 1);
        assert!(message.contains(&expected), "{name}: {message}");
    }
}

#[tokio::test]
async fn requests_after_a_final_answer_are_not_replays() {
    let auth = auth_server();
    let token = token(&auth).await;
    for reply in [Reply::normal(), Reply::status(404), Reply::status(422)] {
        let api = Api::new(&auth).next_once(reply);
        send(&api, put("/1", &token, "two chairs")).await;
        send(&api, put("/1", &token, "a table")).await;
        assert_eq!(failure(|| api.assert_replays_match()), None);
    }
}

#[tokio::test]
async fn refusals_of_any_origin_are_counted() {
    let auth = auth_server();
    let token = token(&auth).await;
    let refuses = |_| async { Response::builder().status(403).body(String::new()).unwrap() };
    let apis = [
        Api::new(&auth).answer(refuses),
        Api::new(&auth).next_once(Reply::normal().with_status(401)),
        Api::new(&auth).always_by(|_| Reply::unauthorized("Bearer")),
    ];
    for api in apis {
        send(&api, with_token(&token)).await;
        assert_eq!((api.refused_requests(), api.accepted_requests()), (1, 0));
        assert!(failure(|| api.assert_no_refusals()).is_some());
    }
}

#[tokio::test]
async fn replays_differ_by_their_id() {
    let auth = auth_server();
    let token = token(&auth).await;
    let api = Api::new(&auth)
        .next_once(Reply::status(401))
        .next_once(Reply::status(401));
    for (id, body) in [("a", "1"), ("b", "2"), ("a", "1"), ("b", "2")] {
        let mut request = put("/orders", &token, body);
        request
            .headers_mut()
            .insert("x-request-id", id.parse().unwrap());
        send(&api, request).await;
    }

    assert_eq!(failure(|| api.assert_replays_match()), None);
}

/// The test runs itself in another process, in which it panics.
#[tokio::test]
async fn a_test_that_panics_prints_what_both_servers_saw() {
    const PANICS: &str = "TEST_KIT_PANICS";
    let auth = auth_server();
    let api = Api::new(&auth);
    let _report = api.report_on_failure();
    let token = token(&auth).await;
    send(&api, with_token(&token)).await;
    if env::var_os(PANICS).is_some() {
        panic!("an assertion of the user's own");
    }

    let name = "a_test_that_panics_prints_what_both_servers_saw";
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(PANICS, "1")
        .output()
        .unwrap();

    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(printed.contains("GET /orders token #1 (live)"), "{printed}");
    assert!(printed.contains("POST /token client"), "{printed}");
}

#[tokio::test]
async fn no_output_contains_a_secret_or_a_token() {
    let auth = auth_server().next_once(TokenReply::text("the-token"));
    let api = Api::new(&auth).token_header("x-token", "");
    let token = token(&auth).await;
    reply(
        &auth,
        basic_request(
            "my-client:another-secret",
            "grant_type=a&client_assertion=b.c.d",
        ),
    )
    .await;
    // A client that swaps its id and its secret.
    let swapped = basic_request("s3cret:my-client", "grant_type=client_credentials");
    reply(&auth, swapped).await;
    let refusal = auth.requests()[2].refusal().cloned();
    assert_eq!(refusal, Some(Refusal::SwappedCredentials));
    auth.next_once(TokenReply::text("scripted-token"));
    auth.next_once(
        Reply::status(200)
            .with_body("scripted-body")
            .with_header("x-key", "h3ader"),
    );
    let request = Request::put("/orders?access_token=in-the-url")
        .header("x-token", &token)
        .body(Full::from("the-body"))
        .unwrap();
    send(&api, request).await;

    let shown = [
        format!("{auth:?} {api:?} {} {}", auth.describe(), api.describe()),
        format!(
            "{:?} {:?} {:?}",
            auth.requests(),
            auth.tokens(),
            api.requests()
        ),
        failure(|| api.assert_sends(0)).expect("a failure"),
        failure(|| auth.assert_token_requests(0)).expect("a failure"),
    ]
    .join("\n");
    let secrets = [
        SECRET,
        "another-secret",
        "YW5vdGhlci1zZWNyZXQ",
        "b.c.d",
        "the-token",
        "scripted-token",
        "scripted-body",
        "h3ader",
        "the-body",
        "in-the-url",
    ];
    for secret in secrets {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}

/// Misconfigured clients send secrets and tokens in unexpected places.
#[tokio::test]
async fn secrets_and_tokens_in_the_wrong_place_are_not_shown() {
    let auth = auth_server()
        .with_client("rotated", "f0rmer")
        .with_client("rotated", "n/w s3c")
        .register(Client::new("id-s3cret-id", "s3cret").with_scopes(["a"]));
    let api = Api::new(&auth);
    let token = token(&auth).await;
    let forms = [
        "grant_type=s3cret&scope=f0rmer",
        "client_id=pre-f0rmer-post&client_secret=typ0ed&grant_type=typ0ed",
        "client_id=n%2Fw+s3c&client_secret=a",
        "client_id=n%252Fw%2Bs3c&client_secret=a",
        "s3cret&s3cret&f0rmer=1",
        "grant_type=client_credentials&client_id=my-client&client_secret=s3cret&scope=s3cret+x",
        "grant_type=client_credentials&client_id=id-s3cret-id&client_secret=s3cret&scope=a+s3cret",
    ];
    let mut replies = Vec::new();
    for form in forms {
        let request = form_request("/quer1ed/s3cret?client_secret=quer1ed", form);
        replies.push(reply(&auth, request).await.1.to_string());
        let mut request = form_request(format!("/{token}/f0rmer/%733cret"), form);
        replies.push(reply(&auth, request.clone()).await.1.to_string());
        *request.method_mut() = "f0rmer".parse().unwrap();
        reply(&auth, request).await;
    }
    let in_path = form_request(format!("/{token}/orders"), "");
    replies.push(reply(&auth, in_path).await.1.to_string());
    // Neither decoded nor encoded.
    let basic = basic_request(
        "n%2Fw+s3c:my-client%2Bund3coded",
        "grant_type=my-client+und3coded",
    );
    replies.push(reply(&auth, basic).await.1.to_string());
    let mut request = with_token("unkn0wn");
    *request.uri_mut() = format!("/unkn0wn/{token}/%733cret/f0rmer").parse().unwrap();
    send(&api, request.clone()).await;
    *request.method_mut() = "unkn0wn".parse().unwrap();
    send(&api, request).await;

    let control = Request::get("/control/requests").body(Full::<Bytes>::default());
    let control = Control::new(&auth, &api).oneshot(control.unwrap()).await;
    let (status, requests) = support::json(control.unwrap()).await;
    assert_eq!(status, 200);
    // Issued tokens are in the replies that issue them.
    replies.retain(|reply| !reply.contains("access_token"));
    let refusals = auth
        .requests()
        .into_iter()
        .filter_map(|it| it.refusal().cloned());
    let shown = [
        format!("{auth:?} {api:?} {} {}", auth.describe(), api.describe()),
        format!(
            "{:?} {:?} {:?}",
            auth.requests(),
            auth.tokens(),
            api.requests()
        ),
        format!("{:?}", refusals.collect::<Vec<_>>()),
        format!(
            "{:?}",
            Client::new("id-s3cret-id", "s3cret").with_scopes(["s3cret"])
        ),
        failure(|| api.assert_sends(0)).expect("a failure"),
        requests.to_string(),
        replies.join("\n"),
    ]
    .join("\n");
    let secrets = [
        "s3cret",
        "f0rmer",
        "typ0ed",
        "s3c",
        "quer1ed",
        "und3coded",
        "unkn0wn",
        &token,
        "%733",
    ];
    for secret in secrets {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    assert!(shown.contains("/[redacted]/[redacted]?…"), "{shown}");
}

#[tokio::test]
async fn a_long_log_shows_the_latest_requests() {
    let auth = auth_server();
    for _ in 0..60 {
        token(&auth).await;
    }

    let text = auth.describe();

    assert!(
        text.contains("received 60 requests:\n      … 10 earlier requests\n  11. "),
        "{text}"
    );
    assert!(text.ends_with("token #60"), "{text}");
}

#[test]
fn a_server_without_requests_says_so() {
    assert_eq!(
        AuthServer::new().describe(),
        "the authorization server received no request"
    );
}
