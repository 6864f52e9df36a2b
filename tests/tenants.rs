//! Tenants of one token endpoint: client ids, secrets and token URLs of their own.

use std::{
    convert::Infallible,
    error::Error as _,
    future::{pending, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use tower::{BoxError, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    ClientAuth, Error, TokenCache, TokenEndpoint, TokenParameters, TokenRequest,
};

#[tokio::test]
async fn one_endpoint_serves_tenants_with_their_own_url_client_id_and_secret() {
    let server = Server::default();
    let url = |request: TokenRequest| {
        let tenant = request.parameters.tenant().unwrap().to_owned();
        async move { Ok::<_, Infallible>(format!("https://{tenant}.example/token?for={tenant}")) }
    };
    let auth = ClientAuth::from_fn(|request| async move {
        let tenant = request.parameters.tenant().unwrap();
        let (id, secret) = (format!("id-{tenant}"), format!("secret-{tenant}"));
        Ok::<_, Infallible>(ClientAuth::client_secret_post(id, secret))
    });
    let endpoint = TokenEndpoint::with_url_fn(server.http(), url, auth).unwrap();

    for tenant in ["a", "b"] {
        endpoint.clone().oneshot(of(tenant)).await.unwrap();
    }

    let sent = |tenant: &str| {
        (
            format!("https://{tenant}.example/token?for={tenant}"),
            format!(
                "grant_type=client_credentials&client_id=id-{tenant}&client_secret=secret-{tenant}"
            ),
        )
    };
    assert_eq!(server.sent(), [sent("a"), sent("b")]);
}

#[tokio::test]
async fn functions_see_all_parameters_of_the_token_request() {
    let server = Server::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = |what: &'static str| {
        let seen = Arc::clone(&seen);
        move |request: &TokenRequest| {
            let parameters = &request.parameters;
            let tenant = parameters.tenant().map(str::to_owned);
            seen.lock()
                .unwrap()
                .push((what, tenant, parameters.scopes().to_vec()));
        }
    };
    let (url, credentials, assertion) = (note("url"), note("credentials"), note("assertion"));
    let assertion = Arc::new(assertion);
    let auth = ClientAuth::from_fn(move |request| {
        credentials(&request);
        let assertion = Arc::clone(&assertion);
        ready(Ok::<_, Infallible>(ClientAuth::jwt_assertion(
            "id",
            move |url: Uri, request| {
                assert_eq!(url.host(), Some("auth.example"));
                assertion(&request);
                ready(Ok::<_, Infallible>("jwt"))
            },
        )))
    });
    let url = move |request: TokenRequest| {
        url(&request);
        ready(Ok::<_, Infallible>("https://auth.example/token"))
    };
    let endpoint = TokenEndpoint::with_url_fn(server.http(), url, auth).unwrap();

    let parameters = TokenParameters::default()
        .with_scope("orders.read")
        .with_tenant("a");
    endpoint
        .oneshot(TokenRequest::new(parameters))
        .await
        .unwrap();

    let seen = seen.lock().unwrap();
    let expected = |what| (what, Some("a".to_owned()), vec!["orders.read".to_owned()]);
    assert_eq!(
        *seen,
        [
            expected("url"),
            expected("credentials"),
            expected("assertion")
        ]
    );
}

#[tokio::test]
async fn an_unknown_tenant_is_a_permanent_error_for_its_key_alone() {
    let server = Server::default();
    let known = |request: &TokenRequest| match request.parameters.tenant() {
        Some("a") => Ok(()),
        _ => Err(Error::permanent("unknown tenant")),
    };
    let url = move |request: TokenRequest| ready(known(&request).map(|()| URL));
    let auth = move |request: TokenRequest| ready(known(&request).map(|()| secret()));
    let by_url = TokenEndpoint::with_url_fn(server.http(), url, secret()).unwrap();
    let by_auth = TokenEndpoint::new(server.http(), URL, ClientAuth::from_fn(auth)).unwrap();

    for (endpoint, message) in [
        (
            by_url,
            "function given to TokenEndpoint::with_url_fn for tenant \"b\" failed",
        ),
        (
            by_auth,
            "function given to ClientAuth for tenant \"b\" at token endpoint auth.example failed",
        ),
    ] {
        let error = cache(&endpoint, "b").token().await.unwrap_err();
        assert_eq!(error.to_string(), message);
        assert!(!error.is_transient());
        let sources: Vec<_> = chain(&error);
        assert_eq!(sources.last().unwrap(), "unknown tenant");

        cache(&endpoint, "a").token().await.unwrap();
    }
    assert_eq!(
        server.sent().len(),
        2,
        "nothing is sent for unknown tenants"
    );
}

#[tokio::test]
async fn label_of_a_tenant_is_shown_on_one_line_and_cut() {
    let server = Server::default();
    let url = |_| ready(Err::<&str, _>(Error::permanent("unknown tenant")));
    let endpoint = TokenEndpoint::with_url_fn(server.http(), url, secret()).unwrap();
    let label = format!("x\n\u{202e}{}", "y".repeat(5000));

    let error = endpoint.oneshot(of(&label)).await.unwrap_err();

    let message = error.to_string();
    assert!(
        message.len() < 300 && message.contains("x yyy"),
        "{message}"
    );
    let is_shown = |c: char| c == '…' || (' '..='~').contains(&c);
    assert!(message.contains('…') && message.chars().all(is_shown));
}

#[tokio::test]
async fn url_of_a_function_is_checked_like_a_fixed_one_and_not_shown() {
    let server = Server::default();
    for (url, fact) in [
        ("/token?PATH-MARK", "must be absolute"),
        ("https://u:PATH-MARK@auth.example/", "user information"),
        ("https://auth.example/PATH-MARK#x", "fragment"),
        ("https://auth.example:0x50/PATH-MARK", "invalid port"),
        ("ftp://auth.example/PATH-MARK", "must be absolute"),
        ("http://auth.example/PATH-MARK?PATH-MARK", "plain http"),
        ("PATH-MARK\n", "not a valid URL"),
    ] {
        let of_tenant = move |_| ready(Ok::<_, Infallible>(url));
        let endpoint = TokenEndpoint::with_url_fn(server.http(), of_tenant, secret()).unwrap();

        let error = endpoint.oneshot(of("a")).await.unwrap_err();

        assert!(error.is_token_url() && !error.is_transient(), "{url}");
        let texts = chain(&error).join(": ");
        assert!(texts.contains(fact), "{texts}");
        let shown = format!("{texts} {error:?}");
        assert!(!shown.contains("PATH-MARK"), "{shown}");
    }
    assert!(server.sent().is_empty());

    let loopback = |_| ready(Ok::<_, Infallible>("http://127.0.0.1:1/token"));
    let endpoint = TokenEndpoint::with_url_fn(server.http(), loopback, secret()).unwrap();
    endpoint.oneshot(of("a")).await.unwrap();
    let plain = |_| ready(Ok::<_, Infallible>("http://auth.example/token"));
    let endpoint = TokenEndpoint::with_url_fn(server.http(), plain, secret()).unwrap();
    endpoint.allow_http().oneshot(of("a")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn function_that_fails_panics_or_never_answers_is_an_error_of_its_key_alone() {
    let server = Server::default();
    let act = |request: TokenRequest| async move {
        match request.parameters.tenant().unwrap() {
            "fails" => Err(BoxError::from("the directory is down")),
            "panics" => panic!("PANIC-MARK"),
            "never answers" => pending().await,
            _ => Ok(()),
        }
    };
    let url = move |request| async move { act(request).await.map(|()| URL) };
    let by_url = TokenEndpoint::with_url_fn(server.http(), url, secret()).unwrap();
    let auth =
        ClientAuth::from_fn(move |request| async move { act(request).await.map(|()| secret()) });
    let by_auth = TokenEndpoint::new(server.http(), URL, auth).unwrap();

    for endpoint in [by_url, by_auth] {
        let error = async |tenant| {
            let error = cache(&endpoint, tenant).token().await.unwrap_err();
            assert!(error.is_transient(), "{error}");
            chain(&error).join(": ")
        };
        let failed = error("fails").await;
        assert!(failed.starts_with("function given to "), "{failed}");
        assert!(failed.ends_with(": the directory is down"), "{failed}");
        assert_eq!(error("panics").await, "token service panicked");
        assert_eq!(
            error("never answers").await,
            "token service did not answer within 30s"
        );
        cache(&endpoint, "other").token().await.unwrap();
    }
    assert_eq!(server.sent().len(), 2);
}

#[tokio::test]
async fn functions_that_answer_differently_each_time_are_asked_once_per_attempt() {
    let server = Server::default();
    let calls = Arc::new(AtomicUsize::new(0));
    let url = move |_| {
        let number = calls.fetch_add(1, Ordering::Relaxed);
        ready(Ok::<_, Infallible>(format!(
            "https://{number}.example/token"
        )))
    };
    let ids = Arc::new(AtomicUsize::new(0));
    let auth = ClientAuth::from_fn(move |_| {
        let number = ids.fetch_add(1, Ordering::Relaxed);
        let assertion = move |url: Uri, _| ready(Ok::<_, Infallible>(format!("for {url}")));
        ready(Ok::<_, Infallible>(ClientAuth::jwt_assertion(
            format!("id-{number}"),
            assertion,
        )))
    });
    let endpoint = TokenEndpoint::with_url_fn(server.http(), url, auth).unwrap();

    for number in 0..3 {
        endpoint.clone().oneshot(of("a")).await.unwrap();

        let (url, form) = server.sent().pop().unwrap();
        assert_eq!(url, format!("https://{number}.example/token"));
        assert!(form.contains(&format!("client_id=id-{number}&")), "{form}");
        assert!(form.contains(&format!("{number}.example")), "{form}");
    }
}

#[tokio::test]
async fn url_option_replaces_a_function() {
    let server = Server::default();
    let url = |_| ready(Err::<&str, _>(Error::permanent("unknown tenant")));
    let endpoint = TokenEndpoint::with_url_fn(server.http(), url, secret()).unwrap();

    assert!(format!("{endpoint:?}").contains("with_url_fn"));
    endpoint.url(URL).unwrap().oneshot(of("a")).await.unwrap();
}

// --- The server ---

const URL: &str = "https://auth.example/token";

fn secret() -> ClientAuth {
    ClientAuth::client_secret_post("id", "s3cret")
}

fn of(tenant: &str) -> TokenRequest {
    TokenRequest::new(TokenParameters::default().with_tenant(tenant))
}

fn cache(endpoint: &TokenEndpoint, tenant: &str) -> TokenCache {
    TokenCache::builder()
        .parameters(TokenParameters::default().with_tenant(tenant))
        .build(endpoint.clone())
}

fn chain(error: &Error) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(error) = source {
        texts.push(error.to_string());
        source = error.source();
    }
    texts
}

/// Issues tokens and records the URLs and forms of the token requests.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<Vec<(String, String)>>>);

impl Server {
    fn http(
        &self,
    ) -> impl Service<
        Request<Full<Bytes>>,
        Response = Response<String>,
        Error = BoxError,
        Future: Send + 'static,
    > + Clone
    + Send
    + use<> {
        let sent = Arc::clone(&self.0);
        service_fn(move |request: Request<Full<Bytes>>| {
            let sent = Arc::clone(&sent);
            async move {
                let url = request.uri().to_string();
                let form = request.into_body().collect().await?.to_bytes();
                let form = String::from_utf8(form.to_vec())?;
                sent.lock().unwrap().push((url, form));
                Ok(Response::new(r#"{"access_token":"token-1"}"#.to_owned()))
            }
        })
    }

    fn sent(&self) -> Vec<(String, String)> {
        self.0.lock().unwrap().clone()
    }
}
