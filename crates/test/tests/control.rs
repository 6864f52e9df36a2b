//! The control API.

mod support;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};
use support::{auth_server, hyper_client, in_time, io_kind, json, token_request, with_token};
use tower::ServiceExt;
use tower_client_credentials_test::{Api, AuthServer, Body, Server, control::Control};

struct Program {
    auth: AuthServer,
    control: Control,
}

impl Program {
    fn new() -> Self {
        let auth = auth_server();
        let control = Control::new(&auth, &Api::new(&auth));
        Self { auth, control }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> std::io::Result<Response<Body>> {
        self.control.clone().oneshot(request).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let request = Request::get(path).body(Full::default()).unwrap();
        json(self.send(request).await.unwrap()).await
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = Request::post(path).body(Full::from(body)).unwrap();
        json(self.send(request).await.unwrap()).await
    }

    /// The status and the body of the next token request.
    async fn token(&self) -> (u16, Value) {
        json(self.send(token_request("/token")).await.unwrap()).await
    }

    async fn status_of(&self, token: &str) -> u16 {
        self.send(with_token(token))
            .await
            .unwrap()
            .status()
            .as_u16()
    }
}

#[tokio::test]
async fn paths_lead_to_both_servers_and_the_control_api() {
    let program = Program::new();

    let (status, body) = program.token().await;
    assert_eq!(status, 200);
    let token = body["access_token"].as_str().unwrap();
    assert_eq!(program.status_of(token).await, 200);
    assert_eq!(program.status_of("unknown").await, 401);

    let counters = json!({
        "token_requests": 1,
        "issued_tokens": 1,
        "refused_token_requests": 0,
        "sends": 2,
        "accepted_sends": 1,
        "refused_sends": 1,
    });
    assert_eq!(program.get("/control/counters").await, (200, counters));
    // Only whole path segments count.
    let (status, _) = program.get("/controls").await;
    assert_eq!(status, 401);
}

#[tokio::test(start_paused = true)]
async fn every_reply_can_be_scripted() {
    let program = Program::new();
    let cases = [
        (json!({ "reply": { "status": 503 } }), 503, Value::Null),
        (
            json!({ "reply": "normal", "code": 201, "body": "{}" }),
            201,
            json!({}),
        ),
        (
            json!({ "reply": { "oauth_error": { "error": "invalid_client" } } }),
            401,
            json!({ "error": "invalid_client" }),
        ),
        (
            json!({ "reply": { "oauth_error": { "error": "invalid_scope", "description": "d" } } }),
            400,
            json!({ "error": "invalid_scope", "error_description": "d" }),
        ),
        (
            json!({ "reply": { "unauthorized": "Bearer" } }),
            401,
            Value::Null,
        ),
        (
            json!({ "reply": { "redirect": "https://example.com/" } }),
            307,
            Value::Null,
        ),
        (
            json!({ "reply": "garbage", "before_body": true }),
            200,
            Value::Null,
        ),
        (
            json!({ "reply": { "token": {
                "text": "t",
                "lifetime": 60.5,
                "members": { "scope": ["a"] },
                "omit": ["token_type"],
            } } }),
            200,
            json!({ "access_token": "t", "expires_in": 60, "scope": ["a"] }),
        ),
        (
            json!({ "reply": { "token": { "text": "u", "lifetime": null } } }),
            200,
            json!({ "access_token": "u", "token_type": "Bearer" }),
        ),
        (
            json!({ "reply": "same_token" }),
            200,
            json!({ "access_token": "u", "token_type": "Bearer" }),
        ),
    ];
    for (reply, status, expected) in cases {
        let (accepted, answer) = program.post("/control/auth/next_once", reply.clone()).await;
        assert_eq!((accepted, answer), (200, json!({})), "{reply}");
        assert_eq!(program.token().await, (status, expected), "{reply}");
        let request = program.auth.requests().pop().unwrap();
        let is_body_read = request.parameter("grant_type").is_some();
        assert_ne!(is_body_read, reply.get("before_body").is_some(), "{reply}");
    }

    program
        .post("/control/auth/next_once", json!({ "reply": "reset" }))
        .await;
    let error = program.send(token_request("/token")).await.unwrap_err();
    assert_eq!(io_kind(error), Some(std::io::ErrorKind::ConnectionReset));

    let slow = json!({ "reply": "normal", "delay_ms": 5000, "headers": { "x-key": "value" } });
    program.post("/control/auth/next_once", slow).await;
    let start = tokio::time::Instant::now();
    let response = program.send(token_request("/token")).await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    assert_eq!(response.headers()["x-key"], "value");
    program.auth.assert_script_used();

    program
        .post("/control/auth/always", json!({ "reply": "hang" }))
        .await;
    let response = program.send(token_request("/token"));
    assert!(
        tokio::time::timeout(Duration::from_secs(3600), response)
            .await
            .is_err()
    );
    program.post("/control/clear_script", Value::Null).await;
    assert_eq!(program.token().await.0, 200);
}

#[tokio::test]
async fn tokens_clients_and_lifetimes_can_be_changed() {
    let program = Program::new();
    let mut tokens = Vec::new();
    for _ in 0..3 {
        let (_, body) = program.token().await;
        tokens.push(body["access_token"].as_str().unwrap().to_owned());
    }

    let by_text = program
        .post("/control/revoke", json!({ "token": tokens[0] }))
        .await;
    assert_eq!(by_text, (200, json!({ "revoked": true })));
    let by_number = program
        .post("/control/revoke", json!({ "number": 2 }))
        .await;
    assert_eq!(by_number, (200, json!({ "revoked": true })));
    let unknown = program
        .post("/control/revoke", json!({ "number": 4 }))
        .await;
    assert_eq!(unknown, (200, json!({ "revoked": false })));
    assert_eq!(program.status_of(&tokens[0]).await, 401);
    assert_eq!(program.status_of(&tokens[1]).await, 401);
    assert_eq!(program.status_of(&tokens[2]).await, 200);

    program
        .post("/control/accept_from", json!({ "seconds": 3600 }))
        .await;
    assert_eq!(program.status_of(&tokens[2]).await, 401);
    program
        .post("/control/accept_from", json!({ "seconds": 0 }))
        .await;
    program.post("/control/revoke_all", Value::Null).await;
    assert_eq!(program.status_of(&tokens[2]).await, 401);

    program
        .post("/control/lifetime", json!({ "seconds": 60 }))
        .await;
    assert_eq!(program.token().await.1["expires_in"], 60);
    program
        .post("/control/lifetime", json!({ "seconds": null }))
        .await;
    assert!(program.token().await.1.get("expires_in").is_none());

    let client = json!({ "id": "my-client", "secret": "rotated", "scopes": ["a"] });
    program.post("/control/clients", client).await;
    assert_eq!(program.token().await.0, 401);
}

#[tokio::test]
async fn requests_are_listed_without_secrets_and_tokens() {
    let program = Program::new();
    let (_, body) = program.token().await;
    let token = body["access_token"].as_str().unwrap();
    program.status_of(token).await;

    let (_, seen) = program.get("/control/requests").await;

    assert_eq!(seen["auth"][0]["client_id"], "my-client");
    assert_eq!(seen["auth"][0]["auth_method"], "client_secret_post");
    assert_eq!(seen["auth"][0]["status"], 200);
    assert_eq!(seen["auth"][0]["token_number"], 1);
    assert_eq!(seen["api"][0]["token_state"], "live");
    assert!(
        seen["description"]
            .as_str()
            .unwrap()
            .contains("received 1 request")
    );
    let text = seen.to_string();
    assert!(
        !text.contains(support::SECRET) && !text.contains(token),
        "{text}"
    );
}

#[tokio::test]
async fn requests_that_the_control_api_refuses_have_no_effect() {
    let program = Program::new();
    let cases = [
        ("/control/auth/next_once", json!(null), 400),
        ("/control/auth/next_once", json!({}), 400),
        (
            "/control/auth/next_once",
            json!({ "reply": "unknown" }),
            400,
        ),
        (
            "/control/auth/next_once",
            json!({ "reply": "normal", "unknown": 1 }),
            400,
        ),
        (
            "/control/auth/next_once",
            json!({ "reply": { "status": 100 } }),
            400,
        ),
        (
            "/control/auth/next_once",
            json!({ "reply": { "status": 70000 } }),
            400,
        ),
        (
            "/control/auth/next_once",
            json!({ "reply": "normal", "code": 199 }),
            400,
        ),
        (
            "/control/auth/next_once",
            json!({ "reply": "normal", "headers": { "a b": "" } }),
            400,
        ),
        (
            "/control/auth/next_once",
            json!({ "reply": "normal", "headers": { "a": "\n" } }),
            400,
        ),
        (
            "/control/api/always",
            json!({ "reply": "normal", "headers": { "Content-Length": "7" } }),
            400,
        ),
        (
            "/control/auth/next_once",
            json!({ "reply": { "redirect": "\n" } }),
            400,
        ),
        (
            "/control/auth/next_once",
            json!({ "reply": { "token": { "lifetime": -1 } } }),
            400,
        ),
        (
            "/control/auth/next_once",
            json!({ "reply": "same_token", "before_body": true }),
            400,
        ),
        (
            "/control/api/next_once",
            json!({ "reply": "same_token" }),
            400,
        ),
        (
            "/control/api/always",
            json!({ "reply": { "token": {} } }),
            400,
        ),
        ("/control/lifetime", json!({}), 400),
        ("/control/lifetime", json!({ "seconds": 1e300 }), 400),
        ("/control/accept_from", json!({ "seconds": -1 }), 400),
        ("/control/revoke", json!({}), 400),
        ("/control/clients", json!({ "id": "a" }), 400),
        ("/control/unknown", json!({}), 404),
        ("/control", json!({}), 405),
        ("/control/counters", json!({}), 405),
    ];
    for (path, body, expected) in cases {
        let (status, reply) = program.post(path, body.clone()).await;
        assert_eq!(status, expected, "{path} {body}");
        assert!(reply["error"].is_string(), "{path} {body}");
    }
    assert_eq!(program.token().await.0, 200);
    program.auth.assert_script_used();
}

#[tokio::test]
async fn an_api_is_scripted_on_a_port_as_well() {
    let program = Program::new();
    let server = Server::start(program.control.clone()).await.unwrap();
    let body = json!({ "reply": { "status": 429 }, "headers": { "retry-after": "9" } });
    let script = Request::post(server.url("/control/api/next_once"));
    let script = script.body(Full::from(body.to_string())).unwrap();
    let client = hyper_client(true);

    in_time(client.request(script)).await.unwrap();
    let request = Request::get(server.url("/orders"))
        .body(Full::default())
        .unwrap();
    let response = in_time(client.request(request)).await.unwrap();

    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "9");
}

#[tokio::test]
async fn the_index_lists_every_request() {
    let program = Program::new();

    let (status, index) = program.get("/control").await;

    assert_eq!(status, 200);
    let documented = include_str!("../src/control.rs");
    let requests = index["requests"].as_array().unwrap();
    assert_eq!(requests.len(), 13);
    for request in requests {
        let path = request["path"].as_str().unwrap();
        assert!(documented.contains(&format!("{path}`")), "{path}");
        assert!(request["description"].is_string());
        // Each path exists, and another method is refused with the right one.
        let wrong = Request::delete(path).body(Full::default()).unwrap();
        let response = program.send(wrong).await.unwrap();
        assert_eq!(response.status(), 405, "{path}");
        assert_eq!(
            response.headers()["allow"],
            request["method"].as_str().unwrap()
        );
        let (status, _) = match request["method"].as_str().unwrap() {
            "GET" => program.get(path).await,
            _ => program.post(path, json!(null)).await,
        };
        assert!([200, 400].contains(&status), "{path}: {status}");
    }
}
