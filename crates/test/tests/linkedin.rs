//! LinkedIn's documented and observed replies.

mod support;

use std::time::Duration;

use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use support::{basic_request, form_request, json, reply, with_token};
use tower::ServiceExt;
use tower_client_credentials_test::{
    Api, AuthServer, Client, Personality,
    personality::{self, LinkedIn},
};

const PATH: &str = "/oauth/v2/accessToken";
const SECRET: &str = "not/a+real=secret==";

fn linkedin() -> AuthServer {
    AuthServer::new()
        .personality(LinkedIn)
        .with_client("77tt5zexample", SECRET)
        .register(Client::new("77uu6yexample", "secret").without_grant())
}

async fn post(auth: &AuthServer, parameters: &[(&str, &str)]) -> (u16, Value) {
    let form = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(parameters)
        .finish();
    reply(auth, form_request(PATH, &form)).await
}

#[tokio::test]
async fn a_token_has_500_characters_and_its_lifetime_is_a_string() {
    let auth = linkedin();
    let parameters = [
        ("grant_type", "client_credentials"),
        ("client_id", "77tt5zexample"),
        ("client_secret", SECRET),
    ];

    let (status, body) = post(&auth, &parameters).await;

    let token = auth.last_token().unwrap();
    assert_eq!(status, 200);
    assert_eq!(
        body,
        json!({ "access_token": token.expose(), "expires_in": "1800" })
    );
    assert_eq!(token.expose().len(), 500);
    assert_eq!(token.lifetime(), Some(Duration::from_secs(1800)));
}

#[tokio::test]
async fn documented_errors() {
    let grant = ("grant_type", "client_credentials");
    let id = ("client_id", "77tt5zexample");
    let secret = ("client_secret", SECRET);
    let missing = |name: &str| format!("A required parameter \"{name}\" is missing");
    let cases = [
        (
            vec![id, secret],
            400,
            "invalid_request",
            missing("grant_type"),
        ),
        (
            vec![grant, secret],
            400,
            "invalid_request",
            missing("client_id"),
        ),
        (
            vec![grant, id],
            400,
            "invalid_request",
            missing("client_secret"),
        ),
        (
            vec![grant, ("client_id", "abcdefghijk"), secret],
            400,
            "invalid_client_id",
            "The passed in client_id is invalid \"abcdefghijk\"".to_owned(),
        ),
        (
            vec![grant, id, ("client_secret", "wrong")],
            401,
            "invalid_client_id",
            "Client authentication failed".to_owned(),
        ),
        (
            vec![
                grant,
                ("client_id", "77uu6yexample"),
                ("client_secret", "secret"),
            ],
            401,
            "access_denied",
            "This application is not allowed to create application tokens".to_owned(),
        ),
    ];
    for (parameters, status, error, description) in cases {
        let (found, body) = post(&linkedin(), &parameters).await;
        let expected = json!({ "error": error, "error_description": description });
        assert_eq!((found, body), (status, expected));
    }
}

/// A provider that is chosen at run time differs in nothing.
#[tokio::test]
async fn the_name_selects_the_same_behavior() {
    let by_name = personality::by_name("linkedin").unwrap();
    let auth = AuthServer::new()
        .personality(by_name.clone())
        .with_client("id", "secret");
    let api = Api::new(&auth);

    let (status, body) = post(&auth, &[("client_id", "id"), ("client_secret", "secret")]).await;
    assert_eq!((status, &body["error"]), (400, &json!("invalid_request")));
    let basic = basic_request("id:secret", "grant_type=client_credentials");
    assert_eq!(reply(&auth, basic).await.0, 400);
    let parameters = [
        ("grant_type", "client_credentials"),
        ("client_id", "id"),
        ("client_secret", "secret"),
    ];
    let (_, body) = post(&auth, &parameters).await;
    assert_eq!(body["expires_in"], "1800");
    assert_eq!(body["access_token"].as_str().unwrap().len(), 500);
    let response = api
        .oneshot(Request::new(Full::<bytes::Bytes>::default()))
        .await
        .unwrap();
    assert!(!response.headers().contains_key("www-authenticate"));
    assert_eq!(by_name.token_path(), PATH);
    assert!(personality::by_name("unknown").is_none());
}

#[tokio::test]
async fn basic_is_not_supported() {
    let auth = linkedin();
    let header = basic_request(
        "77tt5zexample:not%2Fa%2Breal%3Dsecret%3D%3D",
        "grant_type=client_credentials",
    );

    let (status, body) = reply(&auth, header).await;

    assert_eq!(status, 400);
    assert_eq!(
        body["error_description"],
        "A required parameter \"client_id\" is missing"
    );
}

#[tokio::test]
async fn the_api_answers_401_without_a_challenge() {
    let auth = linkedin();
    let api = Api::new(&auth);
    let parameters = [
        ("grant_type", "client_credentials"),
        ("client_id", "77tt5zexample"),
        ("client_secret", SECRET),
    ];
    post(&auth, &parameters).await;
    auth.revoke_all();
    let revoked = auth.last_token().unwrap();

    let cases = [
        (
            Request::new(Full::default()),
            401,
            "Empty oauth2_access_token",
        ),
        (with_token("unknown"), 65600, "Invalid access token"),
        (
            with_token(revoked.expose()),
            65601,
            "The token used in the request has been revoked by the user",
        ),
    ];
    for (request, code, message) in cases {
        let response = api.clone().oneshot(request).await.unwrap();
        assert!(!response.headers().contains_key("www-authenticate"));
        let (status, body) = json(response).await;
        assert_eq!((status, &body["status"]), (401, &json!(401)));
        assert_eq!(body["serviceErrorCode"], code);
        assert_eq!(body["message"], message);
    }
}
