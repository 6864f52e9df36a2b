//! Token requests and client authentication: one test per method.

use std::{
    collections::VecDeque,
    convert::Infallible,
    error::Error as _,
    fmt,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, Uri, header};
use http_body_util::Full;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, ClientAuth, ClientSecret, Error, TokenCache, TokenEndpoint, TokenParameters,
    TokenRequest, provider,
};

const URL: &str = "https://auth.example/token?tenant=7";
const TOKEN: &str = r#"{"access_token":"token-1"}"#;
const INVALID_CLIENT: &str = r#"{"error":"invalid_client"}"#;

// --- The methods ---

#[tokio::test]
async fn basic_sends_percent_encoded_credentials_in_a_sensitive_header() {
    let server = Server::default();

    server
        .request_token(ClientAuth::client_secret_basic("my id", "a/b=c+d-._"))
        .await
        .unwrap();

    let sent = server.only_request();
    assert_eq!(sent.form, [("grant_type", "client_credentials")]);
    assert_eq!(sent.basic().unwrap(), "my%20id:a%2Fb%3Dc%2Bd-._");
    assert!(sent.head.headers[header::AUTHORIZATION].is_sensitive());
}

#[tokio::test]
async fn basic_encodes_the_example_of_rfc_6749_with_a_space_as_percent_20() {
    let server = Server::default();

    // RFC 6749 Appendix B, after a letter: secrets that start with a space are refused.
    let auth = ClientAuth::client_secret_basic("id", "a %&+£€");
    server.request_token(auth).await.unwrap();

    assert_eq!(
        server.only_request().basic().unwrap(),
        "id:a%20%25%26%2B%C2%A3%E2%82%AC"
    );
}

#[tokio::test]
async fn post_encodes_the_example_of_rfc_6749() {
    let server = Server::default();

    let auth = ClientAuth::client_secret_post("id", "a %&+£€");
    server.request_token(auth).await.unwrap();

    let sent = server.only_request();
    assert_eq!(sent.form[2], ("client_secret", "a %&+£€"));
    assert!(
        sent.text
            .ends_with("&client_secret=a+%25%26%2B%C2%A3%E2%82%AC")
    );
}

#[tokio::test]
async fn basic_sends_every_printable_character() {
    let server = Server::default();
    let every = every_printable();

    server
        .request_token(ClientAuth::client_secret_basic(&every, every.as_str()))
        .await
        .unwrap();

    let basic = server.only_request().basic().unwrap();
    let (id, secret) = basic.split_once(':').unwrap();
    assert_eq!(
        (form_decoded(id), form_decoded(secret)),
        (every.clone(), every)
    );
}

#[tokio::test]
async fn basic_unencoded_sends_credentials_as_they_are() {
    let server = Server::default();
    let every = every_printable();

    server
        .request_token(ClientAuth::client_secret_basic_unencoded(
            "my id",
            every.as_str(),
        ))
        .await
        .unwrap();

    let sent = server.only_request();
    assert_eq!(sent.basic().unwrap(), format!("my id:{every}"));
    assert!(sent.head.headers[header::AUTHORIZATION].is_sensitive());
}

#[tokio::test]
async fn post_sends_id_and_secret_only_in_the_form() {
    let server = Server::default();

    server
        .request_token(ClientAuth::client_secret_post("my-client", "/+="))
        .await
        .unwrap();

    let sent = server.only_request();
    assert_eq!(
        sent.form,
        [
            ("grant_type", "client_credentials"),
            ("client_id", "my-client"),
            ("client_secret", "/+="),
        ]
    );
    assert!(sent.head.headers.get(header::AUTHORIZATION).is_none());
}

#[tokio::test]
async fn post_sends_every_printable_character() {
    let server = Server::default();
    let every = every_printable() + "£€";

    server
        .request_token(ClientAuth::client_secret_post(&every, every.as_str()))
        .await
        .unwrap();

    let sent = server.only_request();
    assert_eq!(
        sent.form[1..],
        [("client_id", every.as_str()), ("client_secret", &every)]
    );
}

#[tokio::test]
async fn none_sends_only_the_client_id() {
    let server = Server::default();

    server
        .request_token(ClientAuth::none("my-client"))
        .await
        .unwrap();

    let sent = server.only_request();
    assert_eq!(
        sent.form,
        [
            ("grant_type", "client_credentials"),
            ("client_id", "my-client")
        ]
    );
    assert!(sent.head.headers.get(header::AUTHORIZATION).is_none());
}

#[tokio::test]
async fn each_attempt_gets_a_new_assertion_for_the_token_url() {
    let server = Server::default();
    let made = Arc::new(AtomicUsize::new(0));
    let auth = ClientAuth::jwt_assertion("my-client", move |url: Uri, _| {
        let jti = made.fetch_add(1, Ordering::Relaxed);
        async move { Ok::<_, Infallible>(format!("jwt-{jti} for {url}")) }
    });
    let mut tokens = server.endpoint(auth);

    for _ in 0..2 {
        tokens.call(TokenRequest::default()).await.unwrap();
    }

    for (jti, sent) in server.requests().iter().enumerate() {
        assert_eq!(
            sent.form,
            [
                ("grant_type", "client_credentials"),
                ("client_id", "my-client"),
                (
                    "client_assertion_type",
                    "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
                ),
                ("client_assertion", &format!("jwt-{jti} for {URL}")),
            ]
        );
    }
}

#[tokio::test]
async fn assertion_function_may_use_the_permit_of_the_http_client() {
    let server = Server::default();
    let http = ServiceBuilder::new()
        .concurrency_limit(1)
        .service(server.http());
    let signer = http.clone();
    // Signs with a request of its own.
    let auth = ClientAuth::jwt_assertion("my-client", move |_, _| {
        let request = Request::get("https://signer.example/")
            .body(Full::default())
            .unwrap();
        let signed = signer.clone().oneshot(request);
        async { signed.await.map(|_| "jwt") }
    });
    let mut tokens = TokenEndpoint::new(http, URL, auth).unwrap();

    let ready = tokens.ready().await.unwrap();
    let token = ready.call(TokenRequest::default()).await.unwrap();

    assert_eq!(token.expose(), "token-1");
}

// --- Rotation ---

#[tokio::test]
async fn rotated_credentials_are_tried_once_more_after_any_refusal() {
    for (name, status, refusal) in [
        ("RFC 6749", 401, INVALID_CLIENT),
        ("Authlib", 400, INVALID_CLIENT),
        ("LinkedIn", 401, r#"{"error":"invalid_client_id"}"#),
        ("Keycloak", 401, r#"{"error":"unauthorized_client"}"#),
        (
            "Auth0",
            401,
            r#"{"error":"access_denied","error_description":"Unauthorized"}"#,
        ),
        ("bare 401", 401, ""),
        ("page", 401, "<html>"),
        ("GitHub", 200, r#"{"error":"incorrect_client_credentials"}"#),
        ("Okta's members", 401, r#"{"errorCode":"invalid_client"}"#),
        (
            "Okta's members in a success",
            200,
            r#"{"errorCode":"invalid_client"}"#,
        ),
        ("X", 403, r#"{"errors":[{"code":99}]}"#),
        (
            "an assertion of another time",
            400,
            r#"{"error":"invalid_grant"}"#,
        ),
        (
            "a client without this scope",
            400,
            r#"{"error":"invalid_scope"}"#,
        ),
        ("unknown", 400, r#"{"error":"odd"}"#),
        ("not found", 404, ""),
    ] {
        let server = Server::answering([(status, refusal), (200, TOKEN)]);

        let token = server.request_token(rotating(["old", "new"])).await;

        assert_eq!(token.unwrap().expose(), "token-1", "{name}");
        assert_eq!(server.secrets(), ["old", "new"], "{name}");
    }
}

#[tokio::test]
async fn rotated_credentials_are_not_tried_a_third_time() {
    let server = Server::answering([(401, INVALID_CLIENT), (401, INVALID_CLIENT)]);

    let error = server
        .request_token(rotating(["one", "two", "three"]))
        .await
        .unwrap_err();

    assert_eq!(error.code(), Some("invalid_client"));
    assert_eq!(server.secrets(), ["one", "two"]);
}

#[tokio::test]
async fn unchanged_credentials_are_not_tried_again() {
    let server = Server::answering([(401, INVALID_CLIENT)]);

    let error = server
        .request_token(rotating(["same", "same"]))
        .await
        .unwrap_err();

    assert_eq!(error.code(), Some("invalid_client"));
    assert_eq!(server.secrets(), ["same"]);
}

#[tokio::test]
async fn failures_that_are_no_refusals_do_not_try_rotated_credentials() {
    for (status, reply) in [
        (429, ""),
        (503, INVALID_CLIENT),
        (400, r#"{"error":"temporarily_unavailable"}"#),
        (200, "<html>"),
        (200, "{}"),
        (302, ""),
    ] {
        let server = Server::answering([(status, reply)]);

        let error = server
            .request_token(rotating(["old", "new"]))
            .await
            .unwrap_err();

        assert_eq!(error.status().unwrap(), status);
        assert_eq!(server.secrets(), ["old"], "{status} {reply}");
    }
}

#[tokio::test]
async fn refusal_is_returned_if_the_function_fails_afterwards() {
    let server = Server::answering([(401, INVALID_CLIENT)]);

    let error = server.request_token(rotating(["only"])).await.unwrap_err();

    assert_eq!(error.code(), Some("invalid_client"));
}

#[tokio::test]
async fn another_client_id_counts_as_rotated_credentials() {
    let assertion =
        |id: &'static str| ClientAuth::jwt_assertion(id, |_, _| async { infallible("jwt") });
    for auths in [
        ["old", "new"].map(|id| ClientAuth::client_secret_post(id, "same")),
        ["old", "new"].map(ClientAuth::none),
        ["old", "new"].map(assertion),
    ] {
        let server = Server::answering([(401, INVALID_CLIENT), (200, TOKEN)]);

        let token = server.request_token(from_list(auths)).await.unwrap();

        assert_eq!(token.expose(), "token-1");
        let ids: Vec<_> = server
            .requests()
            .iter()
            .map(|sent| sent.form[1].1.clone())
            .collect();
        assert_eq!(ids, ["old", "new"]);
    }
}

#[tokio::test]
async fn another_method_counts_as_rotated_credentials() {
    let server = Server::answering([(401, INVALID_CLIENT), (200, TOKEN)]);
    let auth = from_list([
        ClientAuth::client_secret_basic("id", "s"),
        ClientAuth::client_secret_post("id", "s"),
    ]);

    server.request_token(auth).await.unwrap();

    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn another_assertion_of_the_same_client_does_not_count_as_rotated() {
    let server = Server::answering([(401, INVALID_CLIENT)]);
    let assertion = |jwt: &'static str| {
        ClientAuth::jwt_assertion("id", move |_, _| async move { infallible(jwt) })
    };

    let error = server
        .request_token(from_list([assertion("a"), assertion("b")]))
        .await
        .unwrap_err();

    assert_eq!(error.code(), Some("invalid_client"));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn fixed_credentials_are_sent_once() {
    let server = Server::answering([(401, INVALID_CLIENT)]);

    let error = server
        .request_token(ClientAuth::client_secret_post("id", "wrong"))
        .await
        .unwrap_err();

    assert_eq!(error.code(), Some("invalid_client"));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn failure_of_a_function_is_transient_unless_its_error_is_permanent() {
    let server = Server::default();
    let broken = || Err::<&str, _>(BoxError::from("signer is away"));
    let revoked = || Err::<&str, _>(Error::permanent("key was revoked"));

    let transient = server.request_token(ClientAuth::jwt_assertion("id", move |_, _| async move {
        broken()
    }));
    let permanent = server.request_token(ClientAuth::jwt_assertion("id", move |_, _| async move {
        revoked()
    }));
    let (transient, permanent) = (transient.await.unwrap_err(), permanent.await.unwrap_err());

    assert!(transient.is_client_auth() && transient.is_transient());
    assert_eq!(
        chain(&transient),
        [
            "function given to ClientAuth for token endpoint auth.example failed",
            "signer is away",
        ]
    );
    assert!(permanent.is_client_auth() && !permanent.is_transient());
    assert!(!permanent.is_token_service());
    assert_eq!(
        chain(&permanent),
        [
            "function given to ClientAuth for token endpoint auth.example failed",
            "token service failed",
            "key was revoked",
        ]
    );
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn refusal_inside_a_function_is_not_a_refusal_of_the_token_endpoint() {
    let other = Server::answering([(429, INVALID_CLIENT)]);
    let server = Server::default();
    let auth = ClientAuth::jwt_assertion("id", move |_, _| {
        let identity = other.request_token(ClientAuth::none("other"));
        async { Ok::<_, Error>(identity.await?.expose().to_owned()) }
    });

    let error = server.request_token(auth).await.unwrap_err();

    assert!(error.is_client_auth() && error.is_transient());
    assert!(!error.is_refused());
    assert_eq!((error.status(), error.code()), (None, None));
    let source = error.source().unwrap().downcast_ref::<Error>().unwrap();
    assert_eq!(source.status().unwrap(), 429);
}

#[tokio::test]
async fn function_may_return_a_retry_after() {
    let wait = Some(Duration::from_secs(5));
    let busy = move || Err::<ClientAuth, _>(Error::transient("busy", wait));

    let error = Server::default()
        .request_token(ClientAuth::from_fn(move |_| async move { busy() }))
        .await
        .unwrap_err();

    assert!(error.is_client_auth() && error.is_transient());
    assert_eq!(error.retry_after(), wait);
}

#[tokio::test(start_paused = true)]
async fn each_retry_of_the_cache_gets_a_new_assertion() {
    let server = Server::answering([(503, ""), (503, ""), (200, TOKEN)]);
    let made = Arc::new(AtomicUsize::new(0));
    let auth = ClientAuth::jwt_assertion("id", move |_, _| {
        let jti = made.fetch_add(1, Ordering::Relaxed);
        async move { infallible(format!("jwt-{jti}")) }
    });

    let token = TokenCache::new(server.endpoint(auth)).token().await;

    assert_eq!(token.unwrap().expose(), "token-1");
    let sent: Vec<_> = server
        .requests()
        .iter()
        .map(|sent| sent.form[3].1.clone())
        .collect();
    assert_eq!(sent, ["jwt-0", "jwt-1", "jwt-2"]);
}

#[tokio::test(start_paused = true)]
async fn file_that_is_being_rewritten_is_read_again() {
    let server = Server::default();
    let reads = Arc::new(AtomicUsize::new(0));
    let auth = ClientAuth::jwt_assertion("id", move |_, _| {
        let is_first = reads.fetch_add(1, Ordering::Relaxed) == 0;
        async move { infallible(if is_first { "" } else { "jwt" }) }
    });

    let token = TokenCache::new(server.endpoint(auth)).token().await;

    assert_eq!(token.unwrap().expose(), "token-1");
    assert_eq!(server.requests().len(), 1);
}

// --- Settings that cannot work ---

#[test]
fn unusable_ids_and_secrets_are_refused_and_not_shown() {
    for (auth, message) in [
        (ClientAuth::none(""), "client id is empty"),
        (
            ClientAuth::client_secret_basic("", "MARK"),
            "client id is empty",
        ),
        (
            ClientAuth::jwt_assertion("", |_, _| async { infallible("MARK") }),
            "client id is empty",
        ),
        (ClientAuth::none("MARK\n"), untrimmed("client id").as_str()),
        (
            ClientAuth::client_secret_basic(" MARK", "s"),
            &untrimmed("client id"),
        ),
        (
            ClientAuth::client_secret_post("id", "MARK\r\n"),
            &untrimmed("client secret"),
        ),
        (
            ClientAuth::client_secret_post("id", "MARK "),
            &untrimmed("client secret"),
        ),
        (
            ClientAuth::client_secret_basic_unencoded("id", "\u{a0}MARK"),
            &untrimmed("client secret"),
        ),
        (
            ClientAuth::client_secret_basic("id", "\u{feff}MARK"),
            &untrimmed("client secret"),
        ),
        (
            ClientAuth::client_secret_basic("id", "MARK\u{200b}"),
            &untrimmed("client secret"),
        ),
        (
            ClientAuth::client_secret_basic("id", "MA\0RK"),
            "client secret contains a control character or an invisible character",
        ),
        (
            ClientAuth::client_secret_basic("MA\u{200d}RK", "s"),
            "client id contains a control character or an invisible character",
        ),
        (
            ClientAuth::client_secret_basic_unencoded("MA:RK", "s"),
            "client id contains a colon, which client_secret_basic_unencoded cannot send; use client_secret_basic",
        ),
    ] {
        let error = TokenEndpoint::new(Server::default().http(), URL, auth).unwrap_err();

        assert!(error.is_configuration() && !error.is_transient());
        assert_eq!(error.to_string(), message);
        assert!(!format!("{error:?}").contains("MA"), "{error:?}");
    }
}

#[tokio::test]
async fn credentials_of_a_function_are_checked_when_they_are_used() {
    for (auth, fact) in [
        (
            from_list([ClientAuth::none("")]),
            "client id is empty".to_owned(),
        ),
        (
            ClientAuth::jwt_assertion("id", |_, _| async { infallible("") }),
            "client assertion is empty".to_owned(),
        ),
        (
            ClientAuth::jwt_assertion("id", |_, _| async { infallible("MARK\n") }),
            untrimmed("client assertion"),
        ),
    ] {
        let server = Server::default();

        let error = server.request_token(auth).await.unwrap_err();

        assert!(error.is_client_auth() && error.is_transient());
        let function = "function given to ClientAuth for token endpoint auth.example failed";
        assert_eq!(chain(&error), [function, &fact]);
        assert!(server.requests().is_empty());
    }
}

#[tokio::test]
async fn from_fn_inside_from_fn_is_a_configuration_error() {
    let nested = ClientAuth::from_fn(|_| async { infallible(ClientAuth::none("id")) });

    let error = Server::default()
        .request_token(from_list([nested]))
        .await
        .unwrap_err();

    assert!(error.is_configuration() && !error.is_transient());
    assert_eq!(
        error.to_string(),
        "function given to ClientAuth::from_fn returned another from_fn; return the credentials"
    );
}

#[test]
fn linkedin_refuses_an_empty_secret() {
    let http = Server::default().http();

    let error = provider::linkedin(http, "id", "").unwrap_err();

    assert!(error.is_configuration());
    assert_eq!(error.to_string(), "client secret is empty");
}

#[test]
fn unusable_token_urls_are_refused_and_not_shown() {
    for (url, message) in [
        ("", "token URL is not a valid URL"),
        ("https://exa mple/MARK", "token URL is not a valid URL"),
        (
            "/MARK",
            "token URL must be absolute, such as https://auth.example/oauth/token",
        ),
        (
            "auth.example",
            "token URL must be absolute, such as https://auth.example/oauth/token",
        ),
        (
            "ftp://MARK/",
            "token URL must be absolute, such as https://auth.example/oauth/token",
        ),
        ("https://:80/MARK", "token URL has no host"),
        (
            "https://auth.example:99999/MARK",
            "token URL has an invalid port",
        ),
        (
            "https://auth.example/MARK#top",
            "token URL has a fragment; remove it",
        ),
        (
            "https://me:MARK@auth.example/",
            "token URL contains user information; pass the credentials to ClientAuth instead",
        ),
    ] {
        let auth = ClientAuth::none("id");
        let error = TokenEndpoint::new(Server::default().http(), url, auth).unwrap_err();

        assert!(error.is_configuration());
        assert_eq!(error.to_string(), message, "{url}");
        assert!(!format!("{error:?}").contains("MARK"));
    }
}

#[test]
fn token_url_may_be_a_text_or_a_uri() {
    let http = || Server::default().http();
    let auth = || ClientAuth::none("id");
    let uri = Uri::from_static("https://auth.example");

    assert!(TokenEndpoint::new(http(), "HTTPS://auth.example:443/t?tenant=7", auth()).is_ok());
    assert!(TokenEndpoint::new(http(), String::from("https://[::1]/"), auth()).is_ok());
    assert!(TokenEndpoint::new(http(), &uri, auth()).is_ok());
    assert!(TokenEndpoint::new(http(), uri, auth()).is_ok());
}

#[tokio::test]
async fn credentials_are_not_sent_over_plain_http_unless_allowed() {
    for host in [
        "auth.example",
        "AUTH.EXAMPLE:80",
        "localhost.example",
        "10.0.0.1",
        "[::2]",
    ] {
        let server = Server::default();
        let url = format!("HTTP://{host}/token");
        let tokens = server
            .endpoint(ClientAuth::client_secret_basic("id", "s"))
            .url(url)
            .unwrap();

        let error = tokens
            .clone()
            .oneshot(TokenRequest::default())
            .await
            .unwrap_err();
        assert!(error.is_configuration() && !error.is_transient());
        assert_eq!(
            error.to_string(),
            "token URL is plain http to a host other than loopback, where others may read the \
             client's credentials; use https, or call allow_http if the network is safe"
        );
        assert!(server.requests().is_empty(), "{host}");

        tokens
            .allow_http()
            .oneshot(TokenRequest::default())
            .await
            .unwrap();
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn plain_http_to_loopback_is_always_allowed() {
    for host in [
        "localhost:8080",
        "LOCALHOST.",
        "127.0.0.1",
        "127.1.2.3:1",
        "[::1]:8080",
    ] {
        let server = Server::default();
        let url: Uri = format!("http://{host}/token").parse().unwrap();
        let tokens = server.endpoint(ClientAuth::none("id")).url(url).unwrap();

        tokens.oneshot(TokenRequest::default()).await.unwrap();

        assert_eq!(server.requests().len(), 1, "{host}");
    }
}

// --- The request ---

#[tokio::test]
async fn credentials_are_never_sent_in_the_url() {
    for auth in [
        ClientAuth::client_secret_basic("MARK", "MARK"),
        ClientAuth::client_secret_basic_unencoded("MARK", "MARK"),
        ClientAuth::client_secret_post("MARK", "MARK"),
        ClientAuth::none("MARK"),
        ClientAuth::jwt_assertion("MARK", |_, _| async { infallible("MARK") }),
        rotating(["MARK"]),
    ] {
        let server = Server::default();

        server.request_token(auth).await.unwrap();

        let sent = server.only_request();
        assert_eq!(sent.head.method, "POST");
        assert_eq!(sent.head.uri, URL);
    }
}

#[tokio::test]
async fn scopes_are_joined_and_other_parameters_repeat() {
    let server = Server::default();
    let tokens = server
        .endpoint(ClientAuth::none("id"))
        .scope("a b")
        .resource("https://r/1")
        .audience("one")
        .parameter("x", "1")
        .parameter("x", "2");
    let requested = TokenParameters::default()
        .with_scope("b c a")
        .with_resource("https://r/2")
        .with_audience("two")
        .with_parameter("x", "1");

    tokens.oneshot(TokenRequest::new(requested)).await.unwrap();

    assert_eq!(
        server.only_request().form[2..],
        [
            ("scope", "a b c"),
            ("resource", "https://r/1"),
            ("resource", "https://r/2"),
            ("audience", "one"),
            ("audience", "two"),
            ("x", "1"),
            ("x", "2"),
            ("x", "1"),
        ]
    );
}

#[tokio::test]
async fn built_in_parameters_cannot_be_overridden() {
    for (name, auth, refused) in [
        (
            "grant_type",
            ClientAuth::client_secret_basic("id", "s"),
            true,
        ),
        ("client_id", ClientAuth::client_secret_post("id", "s"), true),
        (
            "client_secret",
            ClientAuth::client_secret_post("id", "s"),
            true,
        ),
        (
            "client_id",
            ClientAuth::client_secret_basic("id", "s"),
            false,
        ),
        ("scope", ClientAuth::client_secret_basic("id", "s"), true),
        (
            "audience",
            ClientAuth::client_secret_basic("id", "s"),
            false,
        ),
    ] {
        let server = Server::default();
        let tokens = server.endpoint(auth).scope("a").parameter(name, "MARK");

        let outcome = tokens.oneshot(TokenRequest::default()).await;

        assert_eq!(
            outcome.is_err_and(|error| error.is_configuration()),
            refused,
            "{name}"
        );
        assert_eq!(server.requests().is_empty(), refused, "{name}");
    }
}

#[tokio::test]
async fn parameters_of_rfc_6749_are_not_sent_twice() {
    for (name, refused) in [
        ("scope", true),
        ("client_id", true),
        ("grant", false),
        ("x", false),
    ] {
        let server = Server::default();
        let tokens = server.endpoint(ClientAuth::client_secret_basic("id", "s"));
        let requested = TokenParameters::default().with_parameter(name, "2");

        let outcome = tokens
            .parameter(name, "1")
            .oneshot(TokenRequest::new(requested))
            .await;

        assert_eq!(
            outcome.is_err_and(|error| error.is_configuration()),
            refused,
            "{name}"
        );
    }
}

#[tokio::test]
async fn headers_derived_from_form_and_url_cannot_be_set() {
    let server = Server::default();
    let mut tokens = server.endpoint(ClientAuth::client_secret_basic("id", "s"));
    let names = [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::HOST,
    ];
    for name in &names {
        tokens = tokens.header(name.clone(), HeaderValue::from_static("5"));
    }

    tokens.oneshot(TokenRequest::default()).await.unwrap();

    let headers = server.only_request().head.headers;
    assert!(names.iter().all(|name| !headers.contains_key(name)));
}

#[tokio::test]
async fn other_headers_can_be_set() {
    let server = Server::default();
    let api_key = HeaderName::from_static("x-api-key");
    let tokens = server
        .endpoint(ClientAuth::client_secret_basic("id", "s"))
        .header(api_key.clone(), HeaderValue::from_static("1"))
        .header(api_key.clone(), HeaderValue::from_static("2"))
        .header(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))
        .header(header::AUTHORIZATION, HeaderValue::from_static("mine"));

    tokens.oneshot(TokenRequest::default()).await.unwrap();

    let headers = server.only_request().head.headers;
    assert_eq!(
        headers.get_all(api_key).iter().collect::<Vec<_>>(),
        ["1", "2"]
    );
    assert_eq!(
        headers[header::CONTENT_TYPE],
        "application/x-www-form-urlencoded"
    );
    assert_eq!(headers.get_all(header::AUTHORIZATION).iter().count(), 1);
    assert_eq!(headers[header::AUTHORIZATION], "Basic aWQ6cw==");
}

#[tokio::test]
async fn headers_that_servers_expect_are_sent_unless_they_are_set() {
    let user_agent = format!("tower-client-credentials/{}", env!("CARGO_PKG_VERSION"));
    for (name, default) in [
        (header::ACCEPT, "application/json"),
        (header::ACCEPT_ENCODING, "identity"),
        (header::USER_AGENT, &user_agent),
    ] {
        let server = Server::default();
        let tokens = server.endpoint(ClientAuth::none("id"));
        let own = HeaderValue::from_static("orders/1.0");

        let with_own = tokens.clone().header(name.clone(), own);
        tokens.oneshot(TokenRequest::default()).await.unwrap();
        with_own.oneshot(TokenRequest::default()).await.unwrap();

        let sent = server.requests();
        let values = |index: usize| sent[index].head.headers.get_all(&name).iter();
        assert_eq!(values(0).collect::<Vec<_>>(), [default]);
        assert_eq!(values(1).collect::<Vec<_>>(), ["orders/1.0"]);
    }
}

// --- Parameters that cannot work ---

#[tokio::test]
async fn scopes_outside_the_grammar_of_rfc_6749_are_refused_wherever_they_are_set() {
    for (scope, message) in [
        (
            "a\"b",
            r#"scope "a\"b" contains '"', which RFC 6749 §3.3 does not allow"#,
        ),
        (
            "a\\b",
            r#"scope "a\\b" contains '\\', which RFC 6749 §3.3 does not allow"#,
        ),
        (
            "a\nb",
            r#"scope "a\nb" contains '\n', which RFC 6749 §3.3 does not allow"#,
        ),
        (
            "a\tb",
            r#"scope "a\tb" contains '\t', which RFC 6749 §3.3 does not allow"#,
        ),
        (
            "ok a\r\n",
            r#"scope "a\r\n" contains '\r', which RFC 6749 §3.3 does not allow"#,
        ),
        (
            "a\0",
            r#"scope "a\0" contains '\0', which RFC 6749 §3.3 does not allow"#,
        ),
        (
            "a\u{7f}",
            r#"scope "a\u{7f}" contains '\u{7f}', which RFC 6749 §3.3 does not allow"#,
        ),
        (
            "\u{200b}",
            r#"scope "\u{200b}" contains '\u{200b}', which RFC 6749 §3.3 does not allow"#,
        ),
        (
            "é",
            r#"scope "é" contains 'é', which RFC 6749 §3.3 does not allow"#,
        ),
        (
            "a\u{a0}b",
            r#"scope "a\u{a0}b" contains '\u{a0}', which RFC 6749 §3.3 does not allow"#,
        ),
    ] {
        refused_wherever_it_is_set(
            |tokens| tokens.scope(scope),
            TokenParameters::default().with_scope(scope),
            message,
        )
        .await;
    }
    let long = "\"".repeat(1000);
    let message = format!(
        "scope \"{}\"… contains '\"', which RFC 6749 §3.3 does not allow",
        "\\\"".repeat(100)
    );
    refused_wherever_it_is_set(
        |tokens| tokens.scope(&long),
        TokenParameters::default().with_scope(&long),
        &message,
    )
    .await;
}

#[tokio::test]
async fn resources_that_are_no_absolute_uri_are_refused_wherever_they_are_set() {
    for (resource, fact) in [
        ("not a uri", r#""not a uri" contains ' '"#),
        ("", r#""" has no scheme"#),
        (
            "api.example/orders",
            r#""api.example/orders" has no scheme"#,
        ),
        ("//api.example", r#""//api.example" has no scheme"#),
        ("/orders", r#""/orders" has no scheme"#),
        (
            "1http://api.example",
            r#""1http://api.example" has no scheme"#,
        ),
        ("my api:x", r#""my api:x" contains ' '"#),
        ("my_api:x", r#""my_api:x" has no scheme"#),
        (":x", r#"":x" has no scheme"#),
        ("urn:", r#""urn:" has nothing but a scheme"#),
        ("https:", r#""https:" has no host"#),
        ("https:///orders", r#""https:///orders" has no host"#),
        ("http:orders", r#""http:orders" has no host"#),
        ("HTTPS://:443/", r#""HTTPS://:443/" has no host"#),
        (
            "https://api.example/#orders",
            r#""https://api.example/#orders" has a fragment"#,
        ),
        (
            "https://api.example#",
            r#""https://api.example#" has a fragment"#,
        ),
        (
            "https://api.example/\n",
            r#""https://api.example/\n" contains '\n'"#,
        ),
        (
            "https://api.example/\0",
            r#""https://api.example/\0" contains '\0'"#,
        ),
        (
            "https://api.example/ä",
            r#""https://api.example/ä" contains 'ä'"#,
        ),
        (
            "https://api.example/<a>",
            r#""https://api.example/<a>" contains '<'"#,
        ),
        (
            "https://api.example/a\"b",
            r#""https://api.example/a\"b" contains '"'"#,
        ),
        (
            "https://api.example/%2",
            r#""https://api.example/%2" contains a % that begins no percent-encoding"#,
        ),
        (
            "https://api.example/%zz",
            r#""https://api.example/%zz" contains a % that begins no percent-encoding"#,
        ),
        (
            "00000003-0000-0000-c000-000000000000",
            r#""00000003-0000-0000-c000-000000000000" has no scheme"#,
        ),
    ] {
        let message = format!(
            "resource {fact}; RFC 8707 §2 requires an absolute URI without a fragment; for servers \
             that expect something else, use parameter(\"resource\", ..)"
        );
        refused_wherever_it_is_set(
            |tokens| tokens.resource(resource),
            TokenParameters::default().with_resource(resource),
            &message,
        )
        .await;
    }
}

#[tokio::test]
async fn texts_with_control_characters_are_refused_wherever_they_are_set() {
    for (text, fact) in [
        ("", " is empty"),
        ("a\nb", r#" "a\nb" contains '\n'"#),
        ("a\0", r#" "a\0" contains '\0'"#),
        ("\u{feff}a", r#" "\u{feff}a" contains '\u{feff}'"#),
    ] {
        refused_wherever_it_is_set(
            |tokens| tokens.audience(text),
            TokenParameters::default().with_audience(text),
            &format!("audience{fact}"),
        )
        .await;
        refused_wherever_it_is_set(
            |tokens| tokens.parameter(text, "x"),
            TokenParameters::default().with_parameter(text, "x"),
            &format!("parameter name{fact}"),
        )
        .await;
    }
}

#[tokio::test]
async fn parameters_that_real_servers_need_are_sent() {
    let server = Server::default();
    let scopes =
        "https://graph.microsoft.com/.default orders:read resource-server/scope !#$[]^~`{|}";
    let resources = [
        "https://api.example",
        "https://api.example:8443/orders?tenant=1",
        "https://[::1]/a%2Fb",
        "api://7b1d0f3e-22f5",
        "urn:example:orders",
        "spn:orders",
        "X+a-b.c:d",
    ];
    let mut tokens = server
        .endpoint(ClientAuth::none("id"))
        .scope(scopes)
        .scope("")
        .scope("  ");
    for resource in resources {
        tokens = tokens.resource(resource);
    }
    // For everything that the options refuse.
    let tokens = tokens
        .audience("any name, é")
        .parameter("resource", "00000003-0000-0000-c000-000000000000")
        .parameter("claims[a]", "{\n}");

    tokens.oneshot(TokenRequest::default()).await.unwrap();

    let sent = server.only_request();
    assert_eq!(sent.form[2], ("scope", scopes));
    let sent_resources: Vec<_> = sent.form[3..10]
        .iter()
        .map(|Pair(_, value)| &**value)
        .collect();
    assert_eq!(sent_resources, resources);
    assert_eq!(
        sent.form[10..],
        [
            ("audience", "any name, é"),
            ("resource", "00000003-0000-0000-c000-000000000000"),
            ("claims[a]", "{\n}"),
        ]
    );
}

/// Checks that a setting is a configuration error, and that nothing is sent or called before.
async fn refused_wherever_it_is_set(
    set: impl FnOnce(TokenEndpoint) -> TokenEndpoint,
    parameters: TokenParameters,
    message: &str,
) {
    let server = Server::default();
    let auth = || ClientAuth::from_fn(|_| async { Err::<ClientAuth, BoxError>("called".into()) });
    let of_the_endpoint = set(server.endpoint(auth())).oneshot(TokenRequest::default());
    let of_the_request = server
        .endpoint(auth())
        .oneshot(TokenRequest::new(parameters));

    for outcome in [of_the_endpoint.await, of_the_request.await] {
        let error = outcome.unwrap_err();

        assert_eq!(error.to_string(), message);
        assert!(error.is_configuration() && !error.is_transient());
    }
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn linkedin_gets_the_credentials_in_the_form() {
    let server = Server::default();
    let tokens = provider::linkedin(server.http(), "77tt5z", "WPL_AP1.x/y+z==").unwrap();

    tokens.oneshot(TokenRequest::default()).await.unwrap();

    let sent = server.only_request();
    assert_eq!(
        sent.head.uri,
        "https://www.linkedin.com/oauth/v2/accessToken"
    );
    assert_eq!(
        sent.form,
        [
            ("grant_type", "client_credentials"),
            ("client_id", "77tt5z"),
            ("client_secret", "WPL_AP1.x/y+z=="),
        ]
    );
}

#[tokio::test]
async fn body_of_the_http_client_need_not_be_sync_or_unpin() {
    // Neither `Sync` nor `Unpin`, as the bodies of tonic and of async blocks.
    struct Body(std::cell::Cell<Option<Bytes>>, std::marker::PhantomPinned);

    impl http_body::Body for Body {
        type Data = VecDeque<u8>;
        type Error = fmt::Error;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
            let data = self.0.take().map(|data| data.to_vec().into());
            std::task::Poll::Ready(data.map(|data| Ok(http_body::Frame::data(data))))
        }
    }

    let http = service_fn(|_: Request<Vec<u8>>| async {
        let body = std::cell::Cell::new(Some(Bytes::from_static(TOKEN.as_bytes())));
        Ok::<_, fmt::Error>(Response::new(Body(body, std::marker::PhantomPinned)))
    });
    let tokens = TokenEndpoint::new(http, URL.to_owned(), ClientAuth::none("id")).unwrap();

    let token = tokens.oneshot(TokenRequest::default()).await.unwrap();

    assert_eq!(token.expose(), "token-1");
}

// --- Secrets ---

#[test]
fn debug_shows_no_secret() {
    let secret = ClientSecret::from("MARK");
    let auths = [
        ClientAuth::client_secret_basic("my-id", "MARK"),
        ClientAuth::client_secret_basic_unencoded("my-id", "MARK"),
        ClientAuth::client_secret_post("my-id", secret.clone()),
        ClientAuth::jwt_assertion("my-id", |_, _| async { infallible("MARK") }),
        rotating(["MARK"]),
    ];

    assert_eq!(format!("{secret:?}"), "ClientSecret([redacted])");
    for auth in auths {
        let header = HeaderValue::from_static("MARK");
        let tokens = Server::default()
            .endpoint(auth.clone())
            .url("https://auth.example/token?key=MARK")
            .unwrap()
            .header(HeaderName::from_static("x-api-key"), header);
        let shown = format!("{auth:?} {tokens:?} {tokens:#?}");

        assert!(!shown.contains("MARK"), "{shown}");
        assert!(shown.contains("https://auth.example/token"));
        assert!(shown.contains("x-api-key"));
    }
}

#[test]
fn debug_shows_the_iana_name_of_the_method_and_the_client_id() {
    for (auth, shown) in [
        (
            ClientAuth::client_secret_basic("my-id", "MARK"),
            r#"method: "client_secret_basic", id: Some("my-id")"#,
        ),
        (
            ClientAuth::client_secret_basic_unencoded("my-id", "MARK"),
            r#"method: "client_secret_basic_unencoded", id: Some("my-id")"#,
        ),
        (
            ClientAuth::client_secret_post("my-id", "MARK"),
            r#"method: "client_secret_post", id: Some("my-id")"#,
        ),
        (
            ClientAuth::none("my-id"),
            r#"method: "none", id: Some("my-id")"#,
        ),
        (
            ClientAuth::jwt_assertion("my-id", |_, _| async { infallible("MARK") }),
            r#"method: "jwt_assertion", id: Some("my-id")"#,
        ),
        (rotating(["MARK"]), r#"method: "from_fn", id: None"#),
    ] {
        assert_eq!(format!("{auth:?}"), format!("ClientAuth {{ {shown}, .. }}"));
    }
}

// --- Helpers ---

/// An HTTP server that records requests. It sends the given answers, then tokens.
#[derive(Clone, Default)]
struct Server {
    answers: Arc<Mutex<VecDeque<(u16, &'static str)>>>,
    requests: Arc<Mutex<Vec<Sent>>>,
}

#[derive(Clone, Debug)]
struct Sent {
    head: http::request::Parts,
    text: String,
    form: Vec<Pair>,
}

/// A parameter that compares with literals.
#[derive(Clone, Debug)]
struct Pair(String, String);

impl Server {
    fn answering<const N: usize>(answers: [(u16, &'static str); N]) -> Self {
        let server = Self::default();
        server.answers.lock().unwrap().extend(answers);
        server
    }

    fn http(
        &self,
    ) -> impl Service<
        Request<Full<Bytes>>,
        Response = Response<String>,
        Error = BoxError,
        Future: Send + 'static,
    >
    + Clone
    + Send
    + Sync
    + 'static
    + use<> {
        let server = self.clone();
        service_fn(move |request: Request<Full<Bytes>>| {
            let server = server.clone();
            async move { server.answer(request).await }
        })
    }

    async fn answer(&self, request: Request<Full<Bytes>>) -> Result<Response<String>, BoxError> {
        let (head, body) = request.into_parts();
        let body = http_body_util::BodyExt::collect(body).await?.to_bytes();
        let text = String::from_utf8(body.to_vec())?;
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let form = pairs
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(name, value)| Pair(form_decoded(name), form_decoded(value)))
            .collect();
        self.requests
            .lock()
            .unwrap()
            .push(Sent { head, text, form });

        let answer = self.answers.lock().unwrap().pop_front();
        let (status, body) = answer.unwrap_or((200, TOKEN));
        Ok(Response::builder().status(status).body(body.to_owned())?)
    }

    fn endpoint(&self, auth: ClientAuth) -> TokenEndpoint {
        TokenEndpoint::new(self.http(), URL, auth).unwrap()
    }

    fn request_token(
        &self,
        auth: ClientAuth,
    ) -> impl Future<Output = Result<AccessToken, Error>> + use<> {
        self.endpoint(auth).oneshot(TokenRequest::default())
    }

    fn requests(&self) -> Vec<Sent> {
        self.requests.lock().unwrap().clone()
    }

    fn only_request(&self) -> Sent {
        let [request] = self.requests().try_into().unwrap();
        request
    }

    /// Returns the client secrets in the order in which they were sent.
    fn secrets(&self) -> Vec<String> {
        let requests = self.requests();
        let pairs = requests.into_iter().flat_map(|request| request.form);
        pairs
            .filter(|Pair(name, _)| name == "client_secret")
            .map(|Pair(_, secret)| secret)
            .collect()
    }
}

impl Sent {
    /// Returns the decoded Base64 text of the `Basic` header.
    fn basic(&self) -> Option<String> {
        let value = self
            .head
            .headers
            .get(header::AUTHORIZATION)?
            .to_str()
            .ok()?;
        Some(base64_decoded(value.strip_prefix("Basic ")?))
    }
}

impl PartialEq<(&str, &str)> for Pair {
    fn eq(&self, (name, value): &(&str, &str)) -> bool {
        self.0 == *name && self.1 == *value
    }
}

/// Returns other credentials for each call, then an error.
fn rotating<const N: usize>(secrets: [&'static str; N]) -> ClientAuth {
    from_list(secrets.map(|secret| ClientAuth::client_secret_post("my-client", secret)))
}

fn from_list<const N: usize>(auths: [ClientAuth; N]) -> ClientAuth {
    let auths = Mutex::new(VecDeque::from(auths));
    ClientAuth::from_fn(move |_| {
        let next = auths.lock().unwrap().pop_front();
        async { next.ok_or("no more credentials") }
    })
}

/// Returns the message about a text that was not trimmed.
fn untrimmed(what: &str) -> String {
    format!(
        "{what} starts or ends with whitespace or an invisible character; trim values read from \
         files"
    )
}

fn infallible<T>(value: T) -> Result<T, Infallible> {
    Ok(value)
}

fn every_printable() -> String {
    // The space is inside, because whitespace at either end is refused.
    ('!'..='~').chain(" !".chars()).collect()
}

fn chain(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |&error| error.source())
        .map(ToString::to_string)
        .collect()
}

/// Decodes as the HTML standard says, independently of the crates that encode.
fn form_decoded(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).unwrap()
}

/// Decodes RFC 4648 §4, independently of the crate that encodes.
fn base64_decoded(text: &str) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    assert_eq!(text.len() % 4, 0, "padded");

    let mut decoded = Vec::new();
    let (mut bits, mut held) = (0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let digit = ALPHABET.iter().position(|&letter| letter == byte).unwrap();
        bits = bits << 6 | digit as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            decoded.push((bits >> held) as u8);
        }
    }
    String::from_utf8(decoded).unwrap()
}
