//! Which token requests an authorization server accepts, and what it says to the others.

mod support;

use std::time::Duration;

use http::{Method, Request};
use http_body_util::Full;
use serde_json::json;
use support::{auth_server, basic_request, form_request, reply, token_request};
use tower_client_credentials_test::{
    AuthMethod, AuthServer, Client, Personality, Refusal, Reply, TokenReply, TokenState,
    personality::Standard,
};

const GRANT: &str = "grant_type=client_credentials";

#[tokio::test]
async fn the_standard_reply_has_the_members_of_the_rfc() {
    let auth = auth_server().lifetime(Duration::from_millis(1_800_900));
    let form = format!("{GRANT}&client_id=my-client&client_secret=s3cret&scope=a+b");

    let (status, reply) = reply(&auth, form_request("/token", &form)).await;

    assert_eq!(status, 200);
    let token = auth.last_token().unwrap();
    assert_eq!(
        reply,
        json!({
            "access_token": token.expose(),
            "token_type": "Bearer",
            "expires_in": 1800,
            "scope": "a b",
        })
    );
    assert_eq!(token.expose().len(), 43);
    assert_eq!(token.client_id(), "my-client");
}

#[tokio::test]
async fn basic_credentials_are_form_encoded_before_base64() {
    let secret = "a+b c:d/%=é";
    let auth = AuthServer::new().with_client("my:client", secret);
    // The same text, escaped by different clients.
    let encoded = [
        "my%3Aclient:a%2Bb+c%3Ad%2F%25%3D%C3%A9",
        "my%3aclient:a%2bb%20c%3ad%2f%25%3d%c3%a9",
    ];

    for credentials in encoded {
        let (status, reply) = reply(&auth, basic_request(credentials, GRANT)).await;
        assert_eq!(status, 200, "{reply}");
    }

    let request = &auth.requests()[0];
    assert_eq!(request.auth_method(), Some(AuthMethod::ClientSecretBasic));
    assert_eq!(request.client_id(), Some("my:client"));
}

#[tokio::test]
async fn a_secret_that_was_not_encoded_is_refused_with_the_reason() {
    let auth = AuthServer::new().with_client("my-client", "a+b");

    let (status, reply) = reply(&auth, basic_request("my-client:a+b", GRANT)).await;

    assert_eq!(status, 401);
    let description = reply["error_description"].as_str().unwrap();
    assert!(description.contains("not form-encoded"), "{description}");
}

#[tokio::test]
async fn requests_that_break_the_rules_get_the_standard_error() {
    let form = |parameters: &str| form_request("/token", &format!("{GRANT}&{parameters}"));
    let credentials = "client_id=my-client&client_secret=s3cret";
    let both = basic_request("my-client:s3cret", &format!("{GRANT}&{credentials}"));
    let mut bearer = form(credentials);
    let headers = bearer.headers_mut();
    headers.insert("authorization", "Bearer abc".parse().unwrap());
    let mut twice = basic_request("my-client:s3cret", GRANT);
    let headers = twice.headers_mut();
    headers.append("authorization", "Basic YTpi".parse().unwrap());
    let mut put = token_request("/token");
    *put.method_mut() = Method::PUT;
    let mut json = token_request("/token");
    let headers = json.headers_mut();
    headers.insert("content-type", "application/json".parse().unwrap());
    let in_url = form_request("/token?client_secret=s3cret", GRANT);
    let without_grant = form_request("/token", credentials);
    let other_grant = format!("grant_type=password&{credentials}");
    let large = format!("{credentials}&x={}", "a".repeat(1024 * 1024));
    let cases = [
        ("no authentication", form("a=b"), 401, "invalid_client"),
        (
            "no secret",
            form("client_id=my-client"),
            401,
            "invalid_client",
        ),
        (
            "wrong secret",
            form("client_id=my-client&client_secret=x"),
            401,
            "invalid_client",
        ),
        (
            "unknown client",
            form("client_id=x&client_secret=s3cret"),
            401,
            "invalid_client",
        ),
        (
            "wrong Basic",
            basic_request("my-client:x", GRANT),
            401,
            "invalid_client",
        ),
        (
            "Basic without colon",
            basic_request("my-client", GRANT),
            401,
            "invalid_client",
        ),
        ("another scheme", bearer, 401, "invalid_client"),
        ("two Basic headers", twice, 401, "invalid_client"),
        ("two methods", both, 400, "invalid_request"),
        (
            "repeated",
            form(&format!("{credentials}&scope=a&scope=b")),
            400,
            "invalid_request",
        ),
        ("no grant type", without_grant, 400, "invalid_request"),
        ("secret in the URL", in_url, 400, "invalid_request"),
        ("JSON", json, 400, "invalid_request"),
        ("PUT", put, 405, "invalid_request"),
        ("large", form(&large), 413, "invalid_request"),
        (
            "password",
            form_request("/token", &other_grant),
            400,
            "unsupported_grant_type",
        ),
    ];

    let auth = auth_server();
    let count = cases.len();
    for (name, request, status, code) in cases {
        let (found, body) = reply(&auth, request).await;
        assert_eq!(
            (found, body["error"].as_str()),
            (status, Some(code)),
            "{name}: {body}"
        );
        // RFC 6749 §5.2 allows neither in a description.
        let description = body["error_description"].as_str().unwrap();
        assert!(!description.contains(['"', '\\']), "{name}: {description}");
    }
    assert_eq!(auth.refused_requests(), count);
    assert_eq!(auth.issued_tokens(), 0);
}

#[tokio::test]
async fn several_resources_are_allowed() {
    let form = format!("{GRANT}&client_id=my-client&client_secret=s3cret&resource=a&resource=b");

    let (status, _) = reply(&auth_server(), form_request("/token", &form)).await;

    assert_eq!(status, 200);
}

#[tokio::test]
async fn the_client_id_may_accompany_a_basic_header_if_it_is_the_same() {
    let auth = auth_server();
    for (id, expected) in [("my-client", 200), ("another", 400)] {
        let form = format!("{GRANT}&client_id={id}");
        let (status, _) = reply(&auth, basic_request("my-client:s3cret", &form)).await;
        assert_eq!(status, expected, "{id}");
    }
}

#[tokio::test]
async fn a_refused_client_gets_a_challenge() {
    use tower::ServiceExt;

    let response = auth_server()
        .oneshot(basic_request("my-client:x", GRANT))
        .await
        .unwrap();

    let challenge = response.headers()["www-authenticate"].to_str().unwrap();
    assert!(challenge.starts_with("Basic "), "{challenge}");
}

#[tokio::test]
async fn scopes_are_limited_to_those_of_the_client() {
    let auth =
        AuthServer::new().register(Client::new("my-client", "s3cret").with_scopes(["a", "b"]));
    let request = |scope: &str| {
        let form = format!("{GRANT}&client_id=my-client&client_secret=s3cret{scope}");
        form_request("/token", &form)
    };

    let cases = [("", "a b"), ("&scope=b", "b"), ("&scope=b+a", "b a")];
    for (scope, granted) in cases {
        let (status, body) = reply(&auth, request(scope)).await;
        assert_eq!(
            (status, body["scope"].as_str()),
            (200, Some(granted)),
            "{scope}"
        );
    }
    let (status, body) = reply(&auth, request("&scope=a+c")).await;
    assert_eq!(
        (status, body["error"].as_str()),
        (400, Some("invalid_scope"))
    );
}

#[tokio::test]
async fn a_client_may_be_restricted_to_a_method_and_kept_from_the_grant() {
    let auth = AuthServer::new()
        .register(
            Client::new("my-client", "s3cret").with_auth_methods([AuthMethod::ClientSecretBasic]),
        )
        .register(Client::new("other", "s3cret").without_grant());

    let (status, body) = reply(&auth, token_request("/token")).await;
    assert_eq!(
        (status, body["error"].as_str()),
        (401, Some("invalid_client"))
    );
    let (status, _) = reply(&auth, basic_request("my-client:s3cret", GRANT)).await;
    assert_eq!(status, 200);
    let (status, body) = reply(&auth, basic_request("other:s3cret", GRANT)).await;
    assert_eq!(
        (status, body["error"].as_str()),
        (400, Some("unauthorized_client"))
    );
}

#[tokio::test]
async fn a_secret_can_change_while_the_server_runs() {
    let auth = auth_server();
    auth.with_client("my-client", "rotated");

    let (status, _) = reply(&auth, token_request("/token")).await;
    assert_eq!(status, 401);
    let (status, _) = reply(&auth, basic_request("my-client:rotated", GRANT)).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn only_the_token_path_answers_if_one_is_set() {
    let auth = auth_server();
    let (status, _) = reply(&auth, token_request("/anything")).await;
    assert_eq!(status, 200);

    auth.token_path("/oauth/token");
    let (status, _) = reply(&auth, token_request("https://auth.example.com/oauth/token")).await;
    assert_eq!(status, 200);
    let (status, _) = reply(&auth, token_request("/anything")).await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn a_token_reply_waits_for_a_request_that_is_accepted() {
    let auth = auth_server().next_once(TokenReply::text("token-1"));

    let refused = form_request("/token", GRANT);
    assert_eq!(reply(&auth, refused).await.0, 401);
    let (_, body) = reply(&auth, token_request("/token")).await;

    assert_eq!(body["access_token"], "token-1");
    auth.assert_script_used();
}

#[tokio::test]
async fn members_of_a_token_reply_can_be_set_and_removed() {
    let auth = auth_server().next_once(
        TokenReply::new()
            .with_lifetime(Duration::from_secs(60))
            .with_member("expires_in", "3600")
            .with_member("scope", vec!["a", "b"])
            .without_member("token_type"),
    );

    let (_, body) = reply(&auth, token_request("/token")).await;

    let token = auth.last_token().unwrap();
    let expected =
        json!({ "access_token": token.expose(), "expires_in": "3600", "scope": ["a", "b"] });
    assert_eq!(body, expected);
    assert_eq!(token.lifetime(), Some(Duration::from_secs(60)));
}

#[tokio::test]
async fn a_header_of_a_reply_replaces_the_servers_own() {
    use tower::ServiceExt;

    let auth = auth_server().next_once(
        TokenReply::new()
            .with_header("content-type", "text/html")
            .with_header("x-key", "1")
            .with_header("x-key", "2"),
    );

    let response = auth.oneshot(token_request("/token")).await.unwrap();

    let values = |name| response.headers().get_all(name).iter().collect::<Vec<_>>();
    assert_eq!(values("content-type"), ["text/html"]);
    assert_eq!(values("x-key"), ["1", "2"]);
    assert_eq!(values("cache-control"), ["no-store"]);
}

#[tokio::test]
async fn a_lifetime_may_be_unstated() {
    let auth = auth_server().without_lifetime();

    let (_, body) = reply(&auth, token_request("/token")).await;

    assert!(body.get("expires_in").is_none());
    assert_eq!(auth.last_token().unwrap().lifetime(), None);
}

#[tokio::test]
async fn a_body_that_fails_is_refused() {
    use tower::ServiceExt;

    let auth = auth_server();
    let broken = tower_client_credentials_test::Body::wrap(Full::from(GRANT));
    let interrupted = Request::post("/token").body(Interrupted(broken)).unwrap();

    let response = auth.clone().oneshot(interrupted).await.unwrap();

    assert_eq!(response.status(), 400);
    assert_eq!(auth.requests()[0].refusal(), Some(&Refusal::IncompleteBody));
}

/// A body that fails at its end.
struct Interrupted(tower_client_credentials_test::Body);

impl http_body::Body for Interrupted {
    type Data = bytes::Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<std::io::Result<http_body::Frame<bytes::Bytes>>>> {
        let frame = std::pin::Pin::new(&mut self.0).poll_frame(cx);
        frame.map(|frame| Some(frame.unwrap_or_else(|| Err(std::io::ErrorKind::BrokenPipe.into()))))
    }
}

#[tokio::test]
async fn a_custom_personality_changes_only_what_it_overrides() {
    #[derive(Debug)]
    struct Odd;

    impl Personality for Odd {
        fn name(&self) -> &'static str {
            "odd"
        }

        fn grant_type(&self) -> &'static str {
            "account_credentials"
        }

        fn refusal(&self, refusal: &Refusal) -> Reply {
            match refusal {
                Refusal::UnsupportedGrantType(_) => Reply::status(418),
                refusal => Standard.refusal(refusal),
            }
        }
    }
    let auth = auth_server().personality(Odd);

    assert_eq!(reply(&auth, token_request("/token")).await.0, 418);
    let form = "grant_type=account_credentials";
    assert_eq!(
        reply(&auth, basic_request("my-client:s3cret", form))
            .await
            .0,
        200
    );
    assert_eq!(
        reply(&auth, basic_request("my-client:x", form)).await.0,
        401
    );
}

/// A form of 1 MiB took half a minute when each parameter was compared with all others.
#[tokio::test]
async fn a_form_has_at_most_1000_parameters() {
    let auth = auth_server();
    let credentials = format!("{GRANT}&client_id=my-client&client_secret=s3cret");
    let more = |number: usize| {
        (0..number).fold(credentials.clone(), |form, it| form + &format!("&{it:x}="))
    };

    let (status, _) = reply(&auth, form_request("/token", &more(997))).await;
    assert_eq!(status, 200);
    for number in [998, 150_000] {
        let (status, reply) = reply(&auth, form_request("/token", &more(number))).await;
        assert_eq!((status, &reply["error"]), (413, &json!("invalid_request")));
        let request = auth.requests().pop().unwrap();
        assert_eq!(request.refusal(), Some(&Refusal::TooManyParameters));
        assert_eq!(request.parameters().count(), 1001);
    }
}

/// A token reply that doesn't apply to its request returns to its place, whatever happened to the
/// others in the meantime.
#[tokio::test(start_paused = true)]
async fn token_replies_stay_in_order() {
    let auth = auth_server();
    let delayed =
        |text: &str, seconds| TokenReply::text(text).delayed(Duration::from_secs(seconds));
    auth.next_once(delayed("first", 1))
        .next_once(delayed("second", 2));
    let refused = || reply(&auth, form_request("/token", "client_id=unknown"));
    // The second one is put back last.
    tokio::join!(refused(), refused());

    for expected in ["first", "second"] {
        let (_, reply) = reply(&auth, token_request("/token")).await;
        assert_eq!(reply["access_token"], expected);
    }

    // A script that is removed doesn't come back.
    auth.next_once(delayed("third", 1));
    let cleared = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        auth.clear_script().next_once(TokenReply::text("fourth"));
    };
    tokio::join!(refused(), cleared);
    let (_, reply) = reply(&auth, token_request("/token")).await;
    assert_eq!(reply["access_token"], "fourth");
}

/// RFC 6749 §3.2.
#[tokio::test]
async fn parameters_without_a_value_count_as_omitted() {
    let auth = auth_server().register(Client::new("reports", "s3cret").with_scopes(["a", "b"]));
    let accepted = [
        "client_id=reports&client_secret=s3cret&scope=",
        "client_id=&client_id=reports&client_secret=&client_secret=s3cret&scope=&scope=a+b",
    ];
    for form in accepted {
        let form = form_request("/token", &format!("{GRANT}&{form}"));
        let (status, reply) = reply(&auth, form).await;
        assert_eq!((status, &reply["scope"]), (200, &json!("a b")), "{reply}");
    }
    let basic = format!("{GRANT}&client_id=&client_secret=&client_assertion=");
    let (status, body) = reply(&auth, basic_request("my-client:s3cret", &basic)).await;
    assert_eq!(status, 200, "{body}");

    let refused = [
        (
            "grant_type=&client_id=my-client&client_secret=s3cret",
            "invalid_request",
        ),
        (
            "grant_type=client_credentials&client_id=my-client&client_secret=",
            "invalid_client",
        ),
        (
            "grant_type=client_credentials&client_id=&client_secret=s3cret",
            "invalid_client",
        ),
    ];
    for (form, error) in refused {
        let (_, reply) = reply(&auth, form_request("/token", form)).await;
        assert_eq!(reply["error"], error, "{form}");
    }
}

/// RFC 6749 §2.3.
#[tokio::test]
async fn a_client_authenticates_in_one_way() {
    let auth = auth_server();
    let assertion = "client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&client_assertion=a.b.c";
    let in_form = format!("{GRANT}&client_id=my-client&client_secret=s3cret&{assertion}");
    let requests = [
        basic_request("my-client:s3cret", &format!("{GRANT}&client_secret=s3cret")),
        basic_request("my-client:s3cret", &format!("{GRANT}&{assertion}")),
        form_request("/token", &in_form),
    ];
    for request in requests {
        let (status, reply) = reply(&auth, request).await;
        assert_eq!((status, &reply["error"]), (400, &json!("invalid_request")));
        let refusal = auth.requests().pop().unwrap().refusal().cloned();
        assert_eq!(refusal, Some(Refusal::SeveralAuthentications));
    }
}

/// RFC 6749 §3.3.
#[tokio::test]
async fn scopes_have_the_characters_of_the_rfc() {
    let auth = auth_server();
    let form = |scope: &str| {
        form_request(
            "/token",
            &format!("{GRANT}&client_id=my-client&client_secret=s3cret&scope={scope}"),
        )
    };
    for scope in [
        "a",
        "a+b",
        "%21%23+%5B%5D%7E",
        "https%3A%2F%2Fexample.com%2F.default",
    ] {
        assert_eq!(reply(&auth, form(scope)).await.0, 200, "{scope}");
    }
    for scope in [
        "+", "a++b", "+a", "a+", "a%0Ab", "%22", "a%5Cb", "%C3%A9", "%7F", "a%09b",
    ] {
        let (status, reply) = reply(&auth, form(scope)).await;
        assert_eq!(
            (status, &reply["error"]),
            (400, &json!("invalid_scope")),
            "{scope}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_test_can_wait_for_a_token() {
    let auth = auth_server();
    auth.next_once(TokenReply::new().delayed(Duration::from_secs(5)));
    let start = tokio::time::Instant::now();
    let waits = async {
        auth.wait_for_token_requests(1).await;
        assert_eq!((auth.issued_tokens(), start.elapsed()), (0, Duration::ZERO));
        auth.wait_for_issued_tokens(1).await;
        assert_eq!(
            (auth.issued_tokens(), start.elapsed()),
            (1, Duration::from_secs(5))
        );
    };
    tokio::join!(waits, reply(&auth, token_request("/token")));
}

#[tokio::test]
async fn a_client_without_any_method_is_told_so() {
    let client = Client::new("reports", "s3cret").with_auth_methods([]);
    let auth = AuthServer::new().register(client);

    let (_, reply) = reply(&auth, basic_request("reports:s3cret", GRANT)).await;

    let description = &reply["error_description"];
    assert_eq!(description, "client_secret_basic is not accepted");
}

#[tokio::test(start_paused = true)]
async fn the_same_token_can_get_another_lifetime() {
    let auth = auth_server().lifetime(Duration::from_secs(60));
    let (_, first) = reply(&auth, token_request("/token")).await;
    let token = first["access_token"].as_str().unwrap();
    tokio::time::advance(Duration::from_secs(50)).await;
    auth.next_once(TokenReply::same_again().with_lifetime(Duration::from_secs(30)));

    let (_, again) = reply(&auth, token_request("/token")).await;

    assert_eq!(
        (&again["access_token"], &again["expires_in"]),
        (&json!(token), &json!(30))
    );
    tokio::time::advance(Duration::from_secs(29)).await;
    assert_eq!(auth.token_state(token), TokenState::Live);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(auth.token_state(token), TokenState::Expired);
    // The token still expires by its own lifetime without one.
    auth.next_once(TokenReply::same_again());
    let (_, again) = reply(&auth, token_request("/token")).await;
    assert_eq!(again["expires_in"], 0);
}
