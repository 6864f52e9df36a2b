//! Error messages, the methods that tell errors apart, and output that must not show a secret.

mod support;

use std::{
    convert::Infallible,
    error::Error as StdError,
    io, iter,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
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

/// What must not be shown: tokens, secrets, bodies, the Base64 of the credentials, and what the user
/// put into a header or the query of the token URL.
const MARKS: [&str; 7] = [
    "TOKEN-MARK",
    "REFRESH-MARK",
    "SECRET-MARK",
    "BODY-MARK",
    "HEADER-MARK",
    "QUERY-MARK",
    "aWQ6U0VDUkVULU1BUks",
];

const URL: &str = "https://auth.example/PATH-MARK?key=QUERY-MARK";

#[track_caller]
fn assert_unmarked(what: &str, shown: &str) {
    for mark in MARKS {
        assert!(!shown.contains(mark), "{what} shows {mark}: {shown}");
    }
}

/// Checks the error and those of its sources that are this crate's: other texts are the user's own.
#[track_caller]
fn assert_error_is_unmarked(what: &str, error: &Error) {
    let mut level = Some(error);
    while let Some(shown) = level {
        let text = format!("{shown} {shown:?} {shown:#?}");
        assert_unmarked(what, &text);
        // Unlike `Debug` of an endpoint, no error shows the path of its URL.
        assert!(!text.contains("PATH-MARK"), "{what}: {text}");
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

/// A token endpoint that answers with the given status and body.
fn endpoint(status: u16, body: &'static str) -> TokenEndpoint {
    answering(status, "TOKEN-MARK:TOKEN-MARK", body)
}

/// A token endpoint that answers with the given status, `Location` and body.
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

/// A token endpoint that never gets a request.
fn unused(auth: ClientAuth) -> Result<TokenEndpoint, Error> {
    let http = service_fn(|_: Request<Full<Bytes>>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    TokenEndpoint::new(http, URL, auth)
}

/// A token endpoint whose URL function returns `url`.
fn without_url(url: Result<&'static str, &'static str>) -> TokenEndpoint {
    let http = service_fn(|_: Request<Full<Bytes>>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let url = move |_| std::future::ready(url);
    TokenEndpoint::with_url_fn(
        http,
        url,
        ClientAuth::client_secret_post("id", "SECRET-MARK"),
    )
    .unwrap()
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

/// The HTTP client takes longer to become ready than a token lives.
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
    panic!("the call is still waiting");
}

/// A token service that takes two seconds and returns the given tokens.
fn issuing<const N: usize>(
    tokens: [&'static str; N],
) -> impl Service<TokenRequest, Response = AccessToken, Error = Error, Future: Send>
+ Clone
+ Send
+ 'static {
    let issued = Arc::new(AtomicUsize::new(0));
    service_fn(move |_: TokenRequest| {
        let token = tokens[issued.fetch_add(1, Ordering::SeqCst)];
        async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            AccessToken::new(token)
        }
    })
}

fn unauthorized() -> Response<String> {
    let mut response = Response::new("BODY-MARK".to_owned());
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    response
}

/// The renewal takes so long that the API's response has been dropped.
async fn same_token() -> Error {
    let layer = ClientCredentialsLayer::new(issuing(["TOKEN-MARK"; 2]));
    let api = layer.layer(service_fn(|_: Request<String>| async {
        Ok::<_, BoxError>(unauthorized())
    }));
    *api.oneshot(request())
        .await
        .unwrap_err()
        .downcast()
        .unwrap()
}

/// The token that the API rejected comes back while the HTTP client becomes ready.
async fn cooling_down() -> Error {
    let tokens = issuing(["TOKEN-MARK-1", "TOKEN-MARK-2", "TOKEN-MARK-1"]);
    let cache = TokenCache::new(tokens);
    cache.token().await.unwrap();
    let (inner, mut api) = tower_test::mock::pair::<Request<String>, Response<String>>();
    let service = ClientCredentialsLayer::with_cache(cache.clone()).layer(inner);
    api.allow(1);
    let mut call = tokio_test::task::spawn(service.oneshot(request()));
    assert!(call.poll().is_pending());
    let (_, respond) = api.next_request().await.unwrap();
    respond.send_response(unauthorized());
    assert!(call.poll().is_pending());
    let renewed = cache.refresh().await.unwrap();
    assert!(call.poll().is_pending());
    cache.accept(&renewed);
    cache.reject(&renewed);
    cache.refresh().await.unwrap();
    api.allow(1);
    *call.await.unwrap_err().downcast().unwrap()
}

/// Each token request is spawned on a runtime that has shut down.
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

/// One error of each kind, each with a marked secret, token or body within reach.
async fn every_error() -> Vec<(&'static str, Error)> {
    let unreachable = service_fn(|request: Request<Full<Bytes>>| async move {
        let url = request.uri();
        Err::<Response<Full<Bytes>>, BoxError>(format!("no connection to {url}").into())
    });
    let secret = || ClientAuth::client_secret_post("id", "SECRET-MARK");
    let unreachable = TokenEndpoint::new(unreachable, URL, secret()).unwrap();
    let refusing = service_fn(|_: Request<Full<Bytes>>| async {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        Err::<Response<Full<Bytes>>, _>(refused)
    });
    let refusing = TokenEndpoint::new(refusing, URL, secret()).unwrap();
    let echoing = service_fn(|request: Request<Full<Bytes>>| async move {
        let path = request.uri().path();
        Err::<Response<Full<Bytes>>, BoxError>(format!("no page {path}: SECRET-MARK").into())
    });
    let echoing = TokenEndpoint::new(echoing, URL, secret()).unwrap();
    let misrouted = service_fn(|request: Request<Full<Bytes>>| async move {
        let (host, path) = (request.uri().host().unwrap(), request.uri().path());
        Err::<Response<Full<Bytes>>, BoxError>(format!("{host} has no {path}").into())
    });
    let misrouted = TokenEndpoint::new(misrouted, URL, secret()).unwrap();
    let plain_http = endpoint(200, "{}")
        .url("http://auth.example/PATH-MARK?key=QUERY-MARK")
        .unwrap();
    let no_secret = endpoint(200, "{}").url("https://id:SECRET-MARK@auth.example/");
    let failing = ClientAuth::from_fn(|_| async { Err::<ClientAuth, _>("no file: SECRET-MARK") });
    let half_written =
        ClientAuth::jwt_assertion("id", |_, _| async { Ok::<_, Infallible>("SECRET-MARK\n") });
    let disabled = ClientAuth::from_fn(|_| async {
        Err::<ClientAuth, _>(Error::permanent("SECRET-MARK is disabled"))
    });
    let line_break = unused(ClientAuth::client_secret_post("id", "SECRET-MARK\n"));
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
        Err::<AccessToken, BoxError>("TOKEN-MARK is broken".into())
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
            "unsendable token",
            AccessToken::new("TOKEN-MARK \u{0}").unwrap_err(),
        ),
        ("plain http", error_of(plain_http).await),
        ("user information", no_secret.unwrap_err()),
        ("secret with a line break", line_break.unwrap_err()),
        ("parameter twice", error_of(twice).await),
        (
            "failing credentials",
            error_of(unused(failing).unwrap()).await,
        ),
        (
            "failing URL function",
            error_of(without_url(Err("no URL: SECRET-MARK"))).await,
        ),
        (
            "URL of a function with user information",
            error_of(without_url(Ok("https://id:SECRET-MARK@auth.example/"))).await,
        ),
        (
            "plain http URL of a function",
            error_of(without_url(Ok(
                "http://auth.example/PATH-MARK?key=QUERY-MARK",
            )))
            .await,
        ),
        (
            "assertion with a line break",
            error_of(unused(half_written).unwrap()).await,
        ),
        (
            "disabled credentials",
            error_of(unused(disabled).unwrap()).await,
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
            "odd lifetime with a token",
            error_of(endpoint(200, odd_lifetime)).await,
        ),
        (
            "odd type with a token",
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
        ("connection refused", error_of(refusing).await),
        ("cause with the URL", error_of(unreachable).await),
        ("cause with the path", error_of(misrouted).await),
        ("cause with a secret", error_of(echoing).await),
        ("timeout", error_of(silent).await),
        ("panic", error_of(panicking).await),
        ("foreign", error_of(foreign).await),
        ("permanent", error_of(permanent).await),
        ("expired", expired().await),
        ("the same token", same_token().await),
        ("cooling down", cooling_down().await),
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
async fn exactly_one_question_is_true_of_each_error() {
    let mut answers = Vec::new();
    for (name, error) in every_error().await {
        let questions = [
            ("configuration", error.is_configuration()),
            ("invalid token", error.is_invalid_token()),
            ("refused", error.is_refused()),
            ("invalid reply", error.is_invalid_reply()),
            ("transport", error.is_transport()),
            ("client auth", error.is_client_auth()),
            ("token URL", error.is_token_url()),
            ("token service", error.is_token_service()),
            ("timeout", error.is_timeout()),
            ("no runtime", error.is_no_runtime()),
            ("expired", error.is_expired()),
            ("too many headers", error.is_too_many_headers()),
            ("body changed", error.is_body_changed()),
            ("token rejected", error.is_token_rejected()),
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
            ("unsendable token", "invalid token", false),
            ("plain http", "configuration", false),
            ("user information", "configuration", false),
            ("secret with a line break", "configuration", false),
            ("parameter twice", "configuration", false),
            ("failing credentials", "client auth", true),
            ("failing URL function", "token URL", true),
            (
                "URL of a function with user information",
                "token URL",
                false,
            ),
            ("plain http URL of a function", "token URL", false),
            ("assertion with a line break", "client auth", true),
            ("disabled credentials", "client auth", false),
            ("refused, with an echo", "refused", false),
            ("success with an error, with an echo", "refused", false),
            ("HTML with 500", "refused", true),
            ("HTML with 404", "refused", false),
            ("HTML with 200", "invalid reply", true),
            ("odd lifetime with a token", "invalid reply", false),
            ("odd type with a token", "invalid reply", false),
            ("token with a space", "invalid reply", false),
            ("redirect", "invalid reply", false),
            ("too long", "invalid reply", false),
            ("connection refused", "transport", true),
            ("cause with the URL", "transport", true),
            ("cause with the path", "transport", true),
            ("cause with a secret", "transport", true),
            ("timeout", "timeout", true),
            ("panic", "token service", true),
            ("foreign", "token service", true),
            ("permanent", "token service", false),
            ("expired", "expired", true),
            ("the same token", "token rejected", true),
            ("cooling down", "token rejected", true),
            ("lost runtime", "no runtime", true),
            ("no runtime", "no runtime", true),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn messages_name_the_party_the_fact_and_what_to_do() {
    let messages: Vec<_> = every_error()
        .await
        .into_iter()
        .map(|(name, error)| (name, error.to_string()))
        .collect();
    let expected = [
        (
            "unsendable token",
            "access token contains a character that a header cannot carry",
        ),
        (
            "plain http",
            "token URL is plain http to a host other than loopback, where others may read the \
             client's credentials; use https, or call allow_http if the network is safe",
        ),
        (
            "user information",
            "token URL contains user information; pass the credentials to ClientAuth instead",
        ),
        (
            "secret with a line break",
            "client secret starts or ends with whitespace or an invisible character; trim values \
             read from files",
        ),
        (
            "parameter twice",
            "token request already has a parameter \"grant_type\", from the grant, the client \
             authentication, a scope or another parameter; remove one of them",
        ),
        (
            "failing credentials",
            "function given to ClientAuth for token endpoint auth.example failed",
        ),
        (
            "failing URL function",
            "function given to TokenEndpoint::with_url_fn failed",
        ),
        (
            "URL of a function with user information",
            "function given to TokenEndpoint::with_url_fn failed",
        ),
        (
            "plain http URL of a function",
            "function given to TokenEndpoint::with_url_fn failed",
        ),
        (
            "assertion with a line break",
            "function given to ClientAuth for token endpoint auth.example failed",
        ),
        (
            "disabled credentials",
            "function given to ClientAuth for token endpoint auth.example failed",
        ),
        (
            "refused, with an echo",
            "token endpoint auth.example refused client \"id\": 401 [redacted] ([redacted] \
             [redacted] [redacted] [redacted] [redacted] [redacted]); check the client id and \
             secret; the request used client_secret_basic, but the server may expect \
             client_secret_post, private_key_jwt or, if it does not decode the header, \
             client_secret_basic_unencoded",
        ),
        (
            "success with an error, with an echo",
            "token endpoint auth.example refused client \"id\": 200 [redacted] ([redacted] \
             [redacted] [redacted] [redacted] [redacted] [redacted])",
        ),
        (
            "HTML with 500",
            "token endpoint auth.example could not serve client \"id\": 500",
        ),
        (
            "HTML with 404",
            "token endpoint auth.example answered 404 without an OAuth error (body is an HTML page); \
             check the token URL: the server has nothing at its path",
        ),
        (
            "HTML with 200",
            "token endpoint auth.example answered 200 without a token: body is an HTML page",
        ),
        (
            "odd lifetime with a token",
            "token endpoint auth.example answered 200 without a token: expires_in is \
             \"[redacted]\", not a number of seconds",
        ),
        (
            "odd type with a token",
            "token endpoint auth.example answered 200 without a token: token_type is an object, \
             only Bearer is supported",
        ),
        (
            "token with a space",
            "token endpoint auth.example answered 200 without a token: access_token contains a \
             character that a header cannot carry",
        ),
        (
            "redirect",
            "token endpoint auth.example answered 301 without a token: endpoint moved to \
             https://auth.example/[redacted]; make that the token URL",
        ),
        (
            "too long",
            "token endpoint auth.example answered 200 without a token: body is longer than 15 bytes",
        ),
        (
            "connection refused",
            "request to token endpoint auth.example failed: connection refused",
        ),
        (
            "cause with the URL",
            "request to token endpoint auth.example failed",
        ),
        (
            "cause with the path",
            "request to token endpoint auth.example failed: auth.example has no [URL]",
        ),
        (
            "cause with a secret",
            "request to token endpoint auth.example failed",
        ),
        ("timeout", "token service did not answer within 10s"),
        ("panic", "token service panicked"),
        ("foreign", "token service failed"),
        ("permanent", "token service failed"),
        (
            "expired",
            "access token expired or was rejected before the HTTP client was ready to send the \
             request",
        ),
        (
            "the same token",
            "API answered 401, and no other token is available: renewal returned the access token \
             that the API had rejected",
        ),
        (
            "cooling down",
            "API answered 401, and no other token is available: access token was \
             rejected, and the last renewal is too recent for another one",
        ),
        (
            "lost runtime",
            "token requests were lost because their Tokio runtimes shut down, several times in a \
             row",
        ),
        (
            "no runtime",
            "no Tokio runtime for the token request; make calls inside a running runtime that has \
             timers enabled",
        ),
    ];
    for (message, expected) in iter::zip(&messages, expected) {
        assert_eq!((message.0, &*message.1), expected);
    }
    assert_eq!(messages.len(), expected.len());
}

#[tokio::test(start_paused = true)]
async fn no_text_occurs_twice_in_a_chain_of_sources() {
    for (name, error) in every_error().await {
        let chain: Vec<_> =
            iter::successors(Some(&error as &dyn StdError), |&error| error.source())
                .map(ToString::to_string)
                .collect();
        for (level, message) in chain.iter().enumerate() {
            let first = message.chars().next().unwrap();
            let may_be_upper_case = message.contains("-MARK") || message.starts_with("API ");
            assert!(
                !first.is_uppercase() || may_be_upper_case,
                "{name}: {message}"
            );
            assert!(!message.ends_with('.'), "{name}: {message}");
            let deeper = chain[level + 1..].iter();
            for source in deeper {
                assert!(!message.contains(source), "{name}: {chain:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn programs_can_look_at_the_error_of_the_http_client() {
    for (name, error) in every_error().await {
        assert_eq!(
            error.transport_error().is_some(),
            error.is_transport(),
            "{name}"
        );
        let io = error
            .transport_error()
            .and_then(|error| error.downcast_ref());
        assert_eq!(
            io.map(io::Error::kind),
            (name == "connection refused").then_some(io::ErrorKind::ConnectionRefused),
            "{name}"
        );
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
        ClientAuth::jwt_assertion("id", |_, _| async { Ok::<_, Infallible>("SECRET-MARK") }),
        ClientAuth::from_fn(|_| async {
            Ok::<_, Infallible>(ClientAuth::client_secret_basic("id", "SECRET-MARK"))
        }),
    ];
    let secret = ClientSecret::from("SECRET-MARK");
    let cache = TokenCache::new(endpoint.clone());
    let token = cache.token().await.unwrap();
    let mut requested = TokenRequest::default();
    requested.rejected = Some(token.clone());
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
        ("TokenRequest", format!("{requested:?} {requested:#?}")),
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
async fn programs_can_match_refusals() {
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

#[tokio::test(start_paused = true)]
async fn token_service_that_waits_for_its_own_token_fails_at_once() {
    use std::sync::OnceLock;

    /// Sends requests through the layer that uses its tokens.
    type Http =
        tower::util::BoxCloneSyncService<Request<Full<Bytes>>, Response<Full<Bytes>>, BoxError>;
    let behind_the_layer: Arc<OnceLock<Http>> = Arc::default();
    let http = behind_the_layer.clone();
    let http = service_fn(move |request: Request<Full<Bytes>>| {
        http.get().unwrap().clone().oneshot(request)
    });
    let auth = ClientAuth::client_secret_post("id", "SECRET-MARK");
    let cache = TokenCache::new(TokenEndpoint::new(http, URL, auth).unwrap());
    let internet = service_fn(|_: Request<Full<Bytes>>| async {
        Ok::<_, BoxError>(Response::new(Full::<Bytes>::default()))
    });
    let layer = ClientCredentialsLayer::with_cache(cache.clone());
    let stack = Http::new(layer.layer(internet));
    assert!(behind_the_layer.set(stack.clone()).is_ok());
    let start = tokio::time::Instant::now();

    let of_the_cache = cache.token().await.unwrap_err();
    let request = Request::get("https://api.example/").body(Full::default());
    let of_a_call = stack.oneshot(request.unwrap()).await.unwrap_err();

    let of_a_call = *of_a_call.downcast::<Error>().unwrap();
    for error in [of_the_cache, of_a_call] {
        assert!(error.is_configuration() && !error.is_transient());
        assert_eq!(
            error.to_string(),
            "token request waits for the token that it requests; use an HTTP client without the \
             layer that uses its tokens"
        );
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
}

/// A reset must not let the token service start a token request of its own, which would do the same.
#[tokio::test(start_paused = true)]
async fn token_service_that_resets_its_cache_and_waits_for_its_own_token_fails_at_once() {
    for forces in [false, true] {
        let cache: Arc<std::sync::OnceLock<TokenCache>> = Arc::default();
        let calls = Arc::new(AtomicUsize::new(0));
        let (own, counted) = (Arc::clone(&cache), Arc::clone(&calls));
        let tokens = service_fn(move |_: TokenRequest| {
            let is_first = counted.fetch_add(1, Ordering::SeqCst) == 0;
            let own = own.get().unwrap().clone();
            async move {
                if !is_first {
                    return Err(Error::permanent("called again"));
                }
                own.reset();
                match forces {
                    true => own.refresh().await,
                    false => own.token().await,
                }
            }
        });
        assert!(cache.set(TokenCache::new(tokens)).is_ok());
        let start = tokio::time::Instant::now();

        let error = cache.get().unwrap().token().await.unwrap_err();
        support::settle().await;

        assert!(error.is_configuration(), "{error}");
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn function_that_waits_for_its_own_token_fails_at_once() {
    let cache: Arc<std::sync::OnceLock<TokenCache>> = Arc::default();
    let own = cache.clone();
    let auth = ClientAuth::jwt_assertion("id", move |_, _| {
        let own = own.get().unwrap().clone();
        async move { Ok::<_, Error>(own.token().await?.expose().to_owned()) }
    });
    assert!(cache.set(TokenCache::new(unused(auth).unwrap())).is_ok());
    let start = tokio::time::Instant::now();

    let error = cache.get().unwrap().token().await.unwrap_err();

    assert!(error.is_client_auth() && !error.is_transient());
    let source = error.source().unwrap().downcast_ref::<Error>().unwrap();
    assert!(source.is_configuration());
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn token_service_may_wait_for_the_token_of_another_cache() {
    let gateway = TokenCache::new(service_fn(|_: TokenRequest| async {
        Ok::<_, Infallible>(AccessToken::new("gateway").unwrap())
    }));
    let http = service_fn(|request: Request<Full<Bytes>>| async move {
        assert_eq!(request.headers()[header::AUTHORIZATION], "Bearer gateway");
        let reply = r#"{"access_token":"token-1"}"#;
        Ok::<_, BoxError>(Response::new(Full::new(Bytes::from(reply))))
    });
    let http = ClientCredentialsLayer::with_cache(gateway).layer(http);
    let auth = ClientAuth::client_secret_post("id", "SECRET-MARK");

    let token = TokenCache::new(TokenEndpoint::new(http, URL, auth).unwrap())
        .token()
        .await;

    assert_eq!(token.unwrap().expose(), "token-1");
}

/// A cache whose token endpoint refuses the client.
fn named_and_refused(name: &str) -> TokenCache {
    let http = service_fn(|_: Request<Full<Bytes>>| async {
        let body = Full::new(Bytes::from_static(br#"{"error":"server_error"}"#));
        Response::builder()
            .status(503)
            .body(body)
            .map_err(BoxError::from)
    });
    let auth = ClientAuth::client_secret_post("my-client", "SECRET-MARK");
    let tokens = TokenEndpoint::new(http, URL, auth).unwrap();
    TokenCache::builder().name(name).build(tokens)
}

#[tokio::test(start_paused = true)]
async fn errors_name_the_cache_that_has_a_name() {
    let cache = named_and_refused("orders");
    let api =
        service_fn(|_: Request<String>| async { Ok::<_, BoxError>(Response::new(String::new())) });
    let service = ClientCredentialsLayer::with_cache(cache.clone()).layer(api);
    let text = "cache \"orders\": token endpoint auth.example could not serve client \"my-client\": \
                503 server_error";

    let first = cache.token().await.unwrap_err();
    let shared = cache.token().await.unwrap_err();
    let of_a_call = service.oneshot(request()).await.unwrap_err();
    let of_a_call = of_a_call.downcast_ref::<Error>().unwrap().clone();

    for error in [first, shared, of_a_call] {
        assert_eq!(error.to_string(), text);
        assert_eq!(error.cache_name(), Some("orders"));
        assert_eq!(error.endpoint_host(), Some("auth.example"));
        assert_eq!(error.client_id(), Some("my-client"));
        assert_error_is_unmarked("an error of a named cache", &error);
    }
}

#[test]
fn errors_that_no_token_request_caused_name_the_cache() {
    let cache = named_and_refused("orders");

    let error = cache.token().now_or_never().unwrap().unwrap_err();

    assert!(error.is_no_runtime());
    assert_eq!(error.cache_name(), Some("orders"));
    let text = error.to_string();
    assert!(
        text.starts_with("cache \"orders\": no Tokio runtime"),
        "{text}"
    );
}

/// A token service may be shared by several caches, and its errors by several callers.
#[tokio::test(start_paused = true)]
async fn errors_name_the_cache_that_returned_them() {
    let shared = Error::permanent("disabled");
    let error = shared.clone();
    let tokens = service_fn(move |_: TokenRequest| {
        let error = error.clone();
        async { Err::<AccessToken, BoxError>(error.into()) }
    });
    let orders = TokenCache::builder().name("orders").build(tokens.clone());
    let unnamed = TokenCache::new(tokens.clone());
    let invoices = TokenCache::builder().name("invoices").build(tokens);

    for (cache, name, text) in [
        (
            orders,
            Some("orders"),
            "cache \"orders\": token service failed",
        ),
        (unnamed, None, "token service failed"),
        (
            invoices,
            Some("invoices"),
            "cache \"invoices\": token service failed",
        ),
    ] {
        let error = cache.token().await.unwrap_err();
        assert_eq!(error.cache_name(), name);
        assert_eq!(error.to_string(), text);
    }
    assert_eq!(shared.cache_name(), None);
}

/// A rejected call's error begins with what the API said.
#[tokio::test(start_paused = true)]
async fn errors_after_a_rejection_name_the_cache() {
    let is_first = Arc::new(AtomicBool::new(true));
    let tokens = service_fn(move |_: TokenRequest| {
        let is_first = is_first.swap(false, Ordering::SeqCst);
        async move {
            if is_first {
                return Ok(AccessToken::new("token-1")?);
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
            Err::<_, BoxError>(Error::permanent("disabled").into())
        }
    });
    let cache = TokenCache::builder().name("orders").build(tokens);
    let api = service_fn(|_: Request<String>| async {
        let response = Response::builder().status(401).body(String::new());
        response.map_err(BoxError::from)
    });
    let service = ClientCredentialsLayer::with_cache(cache.clone()).layer(api);

    let error = service.clone().oneshot(request()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "API answered 401, and no other token is available: cache \"orders\": token service failed"
    );

    // The reason that is attached to a response names the cache, too.
    let response = service.oneshot(request()).await.unwrap();
    let outcome = response
        .extensions()
        .get::<tower_client_credentials::TokenOutcome>()
        .unwrap();
    let Some(NotReplayed::RenewalFailed(error)) = outcome.not_replayed() else {
        panic!("{outcome}");
    };
    assert_eq!(error.cache_name(), Some("orders"));
    let token = cache.token().await.unwrap();
    let Rejection::Failing(error) = cache.reject(&token) else {
        panic!("the back-off is not over");
    };
    assert_eq!(error.cache_name(), Some("orders"));
}

#[test]
fn name_of_a_cache_is_shown_in_one_line() {
    let cache = named_and_refused("orders\n\u{1b}[31m\"EU\"");

    let error = cache.token().now_or_never().unwrap().unwrap_err();

    assert_eq!(error.cache_name(), Some("orders\n\u{1b}[31m\"EU\""));
    let text = error.to_string();
    let shown = r#"cache "orders\n\u{1b}[31m\"EU\"": "#;
    assert!(text.starts_with(shown), "{text}");
}
