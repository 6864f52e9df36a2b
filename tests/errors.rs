//! What errors say, what programs can ask of them, and what nothing ever shows.

mod support;

use std::{convert::Infallible, error::Error as StdError, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use support::request;
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, Buffered, ClientAuth, ClientCredentialsLayer, ClientSecret, CloneWith, Error,
    NotReplayed, Replay, TokenCache, TokenEndpoint, TokenRequest,
};

/// What must not be seen: a token, a secret, a body, the Base64 of the credentials.
const MARKS: [&str; 4] = [
    "TOKEN-MARK",
    "SECRET-MARK",
    "BODY-MARK",
    "aWQ6U0VDUkVULU1BUks",
];

/// Where a mark is seen, if it is.
#[track_caller]
fn assert_unmarked(what: &str, shown: &str) {
    for mark in MARKS {
        assert!(!shown.contains(mark), "{what} shows {mark}: {shown}");
    }
}

#[track_caller]
fn assert_error_is_unmarked(what: &str, error: &Error) {
    let mut level: Option<&dyn StdError> = Some(error);
    while let Some(shown) = level {
        assert_unmarked(what, &format!("{shown} {shown:?} {shown:#?}"));
        level = shown.source();
    }
    let details = [
        error.code(),
        error.description(),
        error.error_uri(),
        error.advice(),
    ];
    assert_unmarked(what, &format!("{details:?}"));
}

/// A token endpoint that answers with the given status and body, over an HTTP client of one line.
fn endpoint(status: u16, body: &'static str) -> TokenEndpoint {
    let http = service_fn(move |_: Request<Full<Bytes>>| async move {
        let mut reply = Response::new(Full::new(Bytes::from(body)));
        *reply.status_mut() = StatusCode::from_u16(status).unwrap();
        Ok::<_, Infallible>(reply)
    });
    let auth = ClientAuth::basic("id", "SECRET-MARK");
    TokenEndpoint::new(http, "https://auth.example/token", auth).unwrap()
}

async fn error_of<T>(token_service: T) -> Error
where
    T: Service<TokenRequest, Response = AccessToken, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
{
    TokenCache::new(token_service).token().await.unwrap_err()
}

/// One error of each kind, each made with marked secrets, tokens and bodies.
async fn every_error() -> Vec<(&'static str, Error)> {
    let unreachable = service_fn(|_: Request<Full<Bytes>>| async {
        Err::<Response<Full<Bytes>>, BoxError>("connection refused".into())
    });
    let secret = || ClientAuth::request_body("id", "SECRET-MARK");
    let transport = TokenEndpoint::new(unreachable, "https://auth.example/token", secret());
    let plain_http = endpoint(200, "{}")
        .url("http://auth.example/token")
        .unwrap();
    let no_secret = endpoint(200, "{}").url("https://id:SECRET-MARK@auth.example/");
    let failing = ClientAuth::from_fn(|| async { Err::<ClientAuth, _>("no file") });
    let failing = TokenEndpoint::new(
        service_fn(|_: Request<Full<Bytes>>| async {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }),
        "https://auth.example/token",
        failing,
    );
    let line_break = TokenEndpoint::new(
        service_fn(|_: Request<Full<Bytes>>| async {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }),
        "https://auth.example/token",
        ClientAuth::request_body("id", "SECRET-MARK\n"),
    );
    let silent = service_fn(|_: TokenRequest| std::future::pending::<Result<_, BoxError>>());
    let panicking = service_fn(|_: TokenRequest| async {
        if true {
            std::panic::panic_any("SECRET-MARK".to_owned());
        }
        Ok::<AccessToken, BoxError>(AccessToken::new("TOKEN-MARK")?)
    });
    let foreign =
        service_fn(|_: TokenRequest| async { Err::<AccessToken, BoxError>("out of order".into()) });

    vec![
        ("a token that is none", AccessToken::new("TOKEN-MARK \u{0}").unwrap_err()),
        ("plain http", error_of(plain_http).await),
        ("user information", no_secret.unwrap_err()),
        ("secret with a line break", line_break.unwrap_err()),
        ("failing credentials", error_of(failing.unwrap()).await),
        (
            "refused, with an echo",
            error_of(endpoint(
                401,
                r#"{"error":"invalid_client","error_description":"SECRET-MARK is wrong","error_uri":"https://x/SECRET-MARK"}"#,
            ))
            .await,
        ),
        ("HTML with 500", error_of(endpoint(500, "<html>BODY-MARK</html>")).await),
        ("HTML with 200", error_of(endpoint(200, "<html>BODY-MARK</html>")).await),
        (
            "odd fields beside a token",
            error_of(endpoint(200, r#"{"access_token":"TOKEN-MARK","expires_in":"TOKEN-MARK"}"#))
                .await,
        ),
        (
            "token with a space",
            error_of(endpoint(200, r#"{"access_token":"TOKEN-MARK TOKEN-MARK"}"#)).await,
        ),
        ("transport", error_of(transport.unwrap()).await),
        ("timeout", error_of(silent).await),
        ("panic", error_of(panicking).await),
        ("foreign", error_of(foreign).await),
        ("permanent", error_of(service_fn(|_: TokenRequest| async {
            Err::<AccessToken, _>(Error::permanent("disabled"))
        })).await),
        (
            "no runtime",
            std::thread::spawn(|| {
                TokenCache::new(endpoint(200, "{}")).token().now_or_never().unwrap().unwrap_err()
            })
            .join()
            .unwrap(),
        ),
    ]
}

#[tokio::test(start_paused = true)]
async fn no_error_shows_a_secret_a_token_or_a_body() {
    for (name, error) in every_error().await {
        assert_error_is_unmarked(name, &error);
        let reason = NotReplayed::RenewalFailed(error);
        assert_unmarked(name, &format!("{reason} {reason:?}"));
    }
}

#[tokio::test(start_paused = true)]
async fn every_error_answers_to_one_question() {
    let mut answers = Vec::new();
    for (name, error) in every_error().await {
        let questions = [
            ("configuration", error.is_configuration()),
            ("invalid token", error.is_invalid_token()),
            ("refused", error.is_refused()),
            ("invalid reply", error.is_invalid_reply()),
            ("transport", error.is_transport()),
            ("client auth", error.is_client_auth()),
            ("token service", error.is_token_service()),
            ("timeout", error.is_timeout()),
            ("no runtime", error.is_no_runtime()),
        ];
        let mut yes = questions
            .iter()
            .filter(|(_, yes)| *yes)
            .map(|(question, _)| *question);
        answers.push((name, yes.next().unwrap(), error.is_transient()));
        assert_eq!(yes.next(), None, "{name}");
    }
    assert_eq!(
        answers,
        [
            ("a token that is none", "invalid token", false),
            ("plain http", "configuration", false),
            ("user information", "configuration", false),
            ("secret with a line break", "configuration", false),
            ("failing credentials", "client auth", true),
            ("refused, with an echo", "refused", false),
            ("HTML with 500", "refused", true),
            ("HTML with 200", "invalid reply", false),
            ("odd fields beside a token", "invalid reply", false),
            ("token with a space", "invalid token", false),
            ("transport", "transport", true),
            ("timeout", "timeout", true),
            ("panic", "token service", true),
            ("foreign", "token service", true),
            ("permanent", "token service", false),
            ("no runtime", "no runtime", true),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn messages_name_the_party_in_lower_case_without_a_full_stop() {
    for (name, error) in every_error().await {
        let message = error.to_string();
        let first = message.chars().next().unwrap();
        assert!(
            !first.is_uppercase() || message.starts_with("HTTP"),
            "{name}: {message}"
        );
        assert!(!message.ends_with('.'), "{name}: {message}");
        let names_the_party = ["token", "client", "HTTP client", "runtime"]
            .iter()
            .any(|party| message.contains(party));
        assert!(names_the_party, "{name}: {message}");
        if let Some(source) = error.source() {
            assert!(
                !message.contains(&source.to_string()),
                "{name} repeats its source"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_debug_output_shows_a_secret_a_token_or_a_body() {
    let endpoint = endpoint(
        200,
        r#"{"access_token":"TOKEN-MARK","expires_in":60,"scope":"TOKEN-MARK"}"#,
    );
    let auths = [
        ClientAuth::basic("id", "SECRET-MARK"),
        ClientAuth::basic_raw("id", "SECRET-MARK"),
        ClientAuth::request_body("id", "SECRET-MARK"),
        ClientAuth::assertion("id", |_| async { Ok::<_, Infallible>("SECRET-MARK") }),
    ];
    let secret = ClientSecret::from("SECRET-MARK");
    let cache = TokenCache::new(endpoint.clone());
    let token = cache.token().await.unwrap();
    let mut asked = TokenRequest::default();
    asked.rejected = Some(token.clone());
    let layer = ClientCredentialsLayer::with_cache(cache.clone());
    let http = tower::util::BoxCloneSyncService::new(service_fn(|_: Request<String>| async {
        Ok::<_, BoxError>(Response::new("BODY-MARK".to_owned()))
    }));
    let mut service = layer.layer(http);
    let mut with_body = request();
    *with_body.body_mut() = "BODY-MARK".to_owned();
    let response = service.ready().await.unwrap().call(with_body);
    let (body, kept) = Buffered::new(10).split(Full::new(Bytes::from("BODY-MARK")));
    let pending = format!("{response:?}");
    response.await.unwrap();

    for (what, shown) in [
        ("TokenEndpoint", format!("{endpoint:?} {endpoint:#?}")),
        ("ClientAuth", format!("{auths:?} {auths:#?}")),
        ("ClientSecret", format!("{secret:?} {secret:#?}")),
        ("TokenCache", format!("{cache:?} {cache:#?}")),
        (
            "AccessToken",
            format!("{token:?} {token:#?} {:?}", token.header_value()),
        ),
        ("TokenRequest", format!("{asked:?} {asked:#?}")),
        ("ClientCredentialsLayer", format!("{layer:?} {layer:#?}")),
        ("ClientCredentials", format!("{service:?} {service:#?}")),
        ("ResponseFuture", pending),
        ("ReplayBody", format!("{body:?} {kept:?}")),
        (
            "policies",
            format!("{:?}", CloneWith(|body: &String| Some(body.clone()))),
        ),
    ] {
        assert_unmarked(what, &shown);
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_can_be_matched_by_a_program() {
    let refused = endpoint(
        429,
        r#"{"error":"slow_down","error_description":"too many","error_uri":"https://x.example/e"}"#,
    );

    let error = error_of(refused).await;

    assert_eq!(error.status(), Some(StatusCode::TOO_MANY_REQUESTS));
    assert_eq!(error.code(), Some("slow_down"));
    assert_eq!(error.description(), Some("too many"));
    assert_eq!(error.error_uri(), Some("https://x.example/e"));
    assert!(error.is_transient());
    assert!(
        error
            .retry_after()
            .is_some_and(|wait| wait < Duration::from_secs(2))
    );
}
