//! What errors say, what programs can ask of them, and what nothing ever shows.

mod support;

use std::{
    convert::Infallible,
    error::Error as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use support::request;
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, ClientAuth, ClientCredentialsLayer, ClientSecret, Error, NotReplayed, Rejection,
    TokenCache, TokenEndpoint, TokenParameters, TokenRequest,
    replay::{Buffered, CloneWith, ReplayPolicy},
};

/// What must not be seen: a token, a secret, a body, the Base64 of the credentials, what the user
/// put into a header or the token URL's query.
const MARKS: [&str; 7] = [
    "TOKEN-MARK",
    "REFRESH-MARK",
    "SECRET-MARK",
    "BODY-MARK",
    "HEADER-MARK",
    "QUERY-MARK",
    "aWQ6U0VDUkVULU1BUks",
];

const URL: &str = "https://auth.example/token?key=QUERY-MARK";

/// Where a mark is seen, if it is.
#[track_caller]
fn assert_unmarked(what: &str, shown: &str) {
    for mark in MARKS {
        assert!(!shown.contains(mark), "{what} shows {mark}: {shown}");
    }
}

/// Follows the sources as far as they are ours: the text of others is the user's own.
#[track_caller]
fn assert_error_is_unmarked(what: &str, error: &Error) {
    let mut level = Some(error);
    while let Some(shown) = level {
        assert_unmarked(what, &format!("{shown} {shown:?} {shown:#?}"));
        level = shown.source().and_then(|source| source.downcast_ref());
    }
    let details = [
        error.code(),
        error.description(),
        error.error_uri(),
        error.hint(),
    ];
    assert_unmarked(what, &format!("{details:?}"));
}

/// A token endpoint that answers with the given status and body, over an HTTP client of one line.
fn endpoint(status: u16, body: &'static str) -> TokenEndpoint {
    answering(status, "TOKEN-MARK:TOKEN-MARK", body)
}

/// The same, with a `Location`.
fn answering(status: u16, location: &'static str, body: &'static str) -> TokenEndpoint {
    let http = service_fn(move |_: Request<Full<Bytes>>| async move {
        let mut reply = Response::new(Full::new(Bytes::from(body)));
        *reply.status_mut() = StatusCode::from_u16(status).unwrap();
        let location = HeaderValue::from_static(location);
        reply.headers_mut().insert(header::LOCATION, location);
        Ok::<_, Infallible>(reply)
    });
    let auth = ClientAuth::client_secret_basic("id", "SECRET-MARK");
    TokenEndpoint::new(http, URL, auth).unwrap().header(
        HeaderName::from_static("x-api-key"),
        HeaderValue::from_static("HEADER-MARK"),
    )
}

/// A token endpoint that is never asked.
fn unasked(auth: ClientAuth) -> Result<TokenEndpoint, Error> {
    let http = service_fn(|_: Request<Full<Bytes>>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    TokenEndpoint::new(http, URL, auth)
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

/// The HTTP client takes longer to become ready than the tokens live.
async fn expired() -> Error {
    let issuer = support::Issuer::new().lifetime(Duration::from_secs(1));
    let (inner, mut api) = tower_test::mock::pair::<Request<String>, Response<String>>();
    api.allow(1);
    let mut service = support::stack(&issuer, inner);
    let mut call = tokio_test::task::spawn(service.ready().await.unwrap().call(request()));
    for _ in 0..12 {
        api.allow(0);
        assert!(call.poll().is_pending());
        support::settle().await;
        assert!(call.poll().is_pending());
        tokio::time::advance(Duration::from_secs(2)).await;
        api.allow(1);
        if let std::task::Poll::Ready(outcome) = call.poll() {
            return *outcome.unwrap_err().downcast().unwrap();
        }
    }
    panic!("the call goes on waiting");
}

/// Each flight is started on a runtime that is gone already.
fn runtime_lost() -> Error {
    let lost = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let handle = lost.handle().clone();
    std::thread::spawn(move || {
        drop(lost);
        let _entered = handle.enter();
        let cache = TokenCache::new(endpoint(200, "{}"));
        cache.token().now_or_never().unwrap().unwrap_err()
    })
    .join()
    .unwrap()
}

/// One error of each kind, each made with a marked secret, token or body at hand.
async fn every_error() -> Vec<(&'static str, Error)> {
    let unreachable = service_fn(|request: Request<Full<Bytes>>| async move {
        let url = request.uri();
        Err::<Response<Full<Bytes>>, BoxError>(format!("no connection to {url}").into())
    });
    let secret = ClientAuth::client_secret_post("id", "SECRET-MARK");
    let transport = TokenEndpoint::new(unreachable, URL, secret).unwrap();
    let plain_http = endpoint(200, "{}")
        .url("http://auth.example/token?key=QUERY-MARK")
        .unwrap();
    let no_secret = endpoint(200, "{}").url("https://id:SECRET-MARK@auth.example/");
    let failing = ClientAuth::from_fn(|| async { Err::<ClientAuth, _>("no map: SECRET-MARK") });
    let half_written =
        ClientAuth::jwt_assertion("id", |_| async { Ok::<_, Infallible>("SECRET-MARK\n") });
    let disabled = ClientAuth::from_fn(|| async {
        Err::<ClientAuth, _>(Error::permanent("SECRET-MARK is disabled"))
    });
    let line_break = unasked(ClientAuth::client_secret_post("id", "SECRET-MARK\n"));
    let twice = endpoint(200, "{}").parameter("grant_type", "SECRET-MARK");
    let has_failed = Arc::new(AtomicBool::new(false));
    let silent = service_fn(move |_: TokenRequest| {
        let is_first = !has_failed.swap(true, Ordering::Relaxed);
        async move {
            if is_first {
                return Err::<AccessToken, BoxError>("no token but TOKEN-MARK".into());
            }
            std::future::pending().await
        }
    });
    let panicking = service_fn(|_: TokenRequest| async {
        if true {
            std::panic::panic_any("SECRET-MARK".to_owned());
        }
        Ok::<AccessToken, BoxError>(AccessToken::new("TOKEN-MARK")?)
    });
    let foreign = service_fn(|_: TokenRequest| async {
        Err::<AccessToken, BoxError>("TOKEN-MARK is out of order".into())
    });
    let permanent = service_fn(|_: TokenRequest| async {
        Err::<AccessToken, _>(Error::permanent("TOKEN-MARK is disabled"))
    });
    let echo = r#"{
        "error":"SECRET-MARK",
        "error_description":"SECRET-MARK HEADER-MARK QUERY-MARK REFRESH-MARK TOKEN-MARK aWQ6U0VDUkVULU1BUks=",
        "error_uri":"https://x/SECRET-MARK?QUERY-MARK",
        "access_token":"TOKEN-MARK",
        "refresh_token":"REFRESH-MARK",
        "id_token":"BODY-MARK"
    }"#;
    let odd_lifetime = r#"{"access_token":"TOKEN-MARK","expires_in":"TOKEN-MARK"}"#;
    let odd_type = r#"{"access_token":"TOKEN-MARK","token_type":{"x":"BODY-MARK"}}"#;
    let unsendable = r#"{"access_token":"TOKEN-MARK TOKEN-MARK"}"#;
    let location = "https://id:SECRET-MARK@auth.example/SECRET-MARK;BODY-MARK?QUERY-MARK#BODY-MARK";

    vec![
        (
            "a token that is none",
            AccessToken::new("TOKEN-MARK \u{0}").unwrap_err(),
        ),
        ("plain http", error_of(plain_http).await),
        ("user information", no_secret.unwrap_err()),
        ("secret with a line break", line_break.unwrap_err()),
        ("parameter twice", error_of(twice).await),
        (
            "failing credentials",
            error_of(unasked(failing).unwrap()).await,
        ),
        (
            "assertion with a line break",
            error_of(unasked(half_written).unwrap()).await,
        ),
        (
            "disabled credentials",
            error_of(unasked(disabled).unwrap()).await,
        ),
        ("refused, with an echo", error_of(endpoint(401, echo)).await),
        (
            "success with an error, with an echo",
            error_of(endpoint(200, echo)).await,
        ),
        (
            "HTML with 500",
            error_of(endpoint(500, "<html>BODY-MARK</html>")).await,
        ),
        (
            "HTML with 404",
            error_of(endpoint(404, "<html>BODY-MARK</html>")).await,
        ),
        (
            "HTML with 200",
            error_of(endpoint(200, "<html>BODY-MARK</html>")).await,
        ),
        (
            "odd lifetime beside a token",
            error_of(endpoint(200, odd_lifetime)).await,
        ),
        (
            "odd type beside a token",
            error_of(endpoint(200, odd_type)).await,
        ),
        (
            "token with a space",
            error_of(endpoint(200, unsendable)).await,
        ),
        (
            "redirect",
            error_of(answering(301, location, "BODY-MARK")).await,
        ),
        (
            "too long",
            error_of(endpoint(200, "{BODY-MARK BODY-MARK}").reply_limit(15)).await,
        ),
        ("transport", error_of(transport).await),
        ("timeout", error_of(silent).await),
        ("panic", error_of(panicking).await),
        ("foreign", error_of(foreign).await),
        ("permanent", error_of(permanent).await),
        ("expired", expired().await),
        ("lost runtime", runtime_lost()),
        (
            "no runtime",
            std::thread::spawn(|| {
                TokenCache::new(endpoint(200, "{}"))
                    .token()
                    .now_or_never()
                    .unwrap()
                    .unwrap_err()
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
            ("expired", error.is_expired()),
            ("too many headers", error.is_too_many_headers()),
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
            ("parameter twice", "configuration", false),
            ("failing credentials", "client auth", true),
            ("assertion with a line break", "client auth", true),
            ("disabled credentials", "client auth", false),
            ("refused, with an echo", "refused", false),
            ("success with an error, with an echo", "refused", false),
            ("HTML with 500", "refused", true),
            ("HTML with 404", "refused", false),
            ("HTML with 200", "invalid reply", false),
            ("odd lifetime beside a token", "invalid reply", false),
            ("odd type beside a token", "invalid reply", false),
            ("token with a space", "invalid reply", false),
            ("redirect", "invalid reply", false),
            ("too long", "invalid reply", false),
            ("transport", "transport", true),
            ("timeout", "timeout", true),
            ("panic", "token service", true),
            ("foreign", "token service", true),
            ("permanent", "token service", false),
            ("expired", "expired", true),
            ("lost runtime", "no runtime", true),
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
        ClientAuth::client_secret_basic("id", "SECRET-MARK"),
        ClientAuth::client_secret_basic_unencoded("id", "SECRET-MARK"),
        ClientAuth::client_secret_post("id", "SECRET-MARK"),
        ClientAuth::jwt_assertion("id", |_| async { Ok::<_, Infallible>("SECRET-MARK") }),
        ClientAuth::from_fn(|| async {
            Ok::<_, Infallible>(ClientAuth::client_secret_basic("id", "SECRET-MARK"))
        }),
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
    let permanent = error_of(service_fn(|_: TokenRequest| async {
        Err::<AccessToken, _>(Error::permanent("TOKEN-MARK is disabled"))
    }));
    let rejection = Rejection::Failing(permanent.await);
    let (body, kept) = Buffered::new(10).split(Full::new(Bytes::from("BODY-MARK")));
    let pending = format!("{response:?}");
    response.await.unwrap();

    for (what, shown) in [
        ("TokenEndpoint", format!("{endpoint:?} {endpoint:#?}")),
        ("ClientAuth", format!("{auths:?} {auths:#?}")),
        ("ClientSecret", format!("{secret:?} {secret:#?}")),
        ("TokenCache", format!("{cache:?} {cache:#?}")),
        (
            "TokenCacheBuilder",
            format!("{:?}", TokenCache::builder().refresh_window(Duration::ZERO)),
        ),
        (
            "TokenParameters",
            format!("{:?}", TokenParameters::default().with_scope("a")),
        ),
        ("Rejection", format!("{rejection:?} {rejection:#?}")),
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
