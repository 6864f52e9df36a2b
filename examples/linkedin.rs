//! Gets a token from LinkedIn and calls its API once, over TLS.
//!
//! Needs the credentials of an application with access to 2-legged OAuth:
//!
//! ```text
//! LINKEDIN_CLIENT_ID=... LINKEDIN_CLIENT_SECRET=... cargo run --example linkedin
//! ```
//!
//! Calls the LinkedIn Learning catalogue. To call another API that the application has access to,
//! pass its path: `cargo run --example linkedin -- "/v2/..."`. Neither the secret nor the token is
//! printed.

use std::{env, error::Error as StdError, process::ExitCode, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::time::timeout;
use tower::{ServiceBuilder, ServiceExt};
use tower_client_credentials::{
    BoxError, ClientCredentialsLayer, TokenCache, TokenOutcome, provider,
};

/// Requests one course of the catalogue.
const DEFAULT_PATH: &str = "/v2/learningAssets?q=localeAndType&assetType=COURSE\
                            &sourceLocale.language=en&sourceLocale.country=US&count=1";

/// Enough for a token request, a renewal and a replay.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&*error);
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), BoxError> {
    let client_id = credential("LINKEDIN_CLIENT_ID")?;
    let client_secret = credential("LINKEDIN_CLIENT_SECRET")?;
    let path = env::args().nth(1).unwrap_or(DEFAULT_PATH.to_owned());
    let request = api_request(&path)?;
    let http = https_client();

    let tokens = provider::linkedin(http.clone(), client_id, client_secret)?;
    let cache = TokenCache::new(tokens);
    // The layer would do this on its own; the example shows what LinkedIn issued.
    let token = cache.token().await?;
    match token.lifetime() {
        Some(lifetime) => println!("token: expires in {lifetime:?}"),
        None => println!("token: LinkedIn names no lifetime"),
    }
    println!("scope: {}", token.scope().unwrap_or("none named"));

    let api = ServiceBuilder::new()
        .layer(ClientCredentialsLayer::with_cache(cache))
        .service(http);
    let response = timeout(CALL_DEADLINE, api.oneshot(request))
        .await
        .map_err(|_elapsed| format!("the API did not respond within {CALL_DEADLINE:?}"))??;
    println!("call: GET {path}");
    report(&response)
}

fn credential(name: &str) -> Result<String, BoxError> {
    match env::var(name) {
        Ok(value) if !value.is_empty() => Ok(value),
        Ok(_) | Err(env::VarError::NotPresent) => Err(format!(
            "{name} is not set; set LINKEDIN_CLIENT_ID and LINKEDIN_CLIENT_SECRET to the \
             credentials of an application with access to 2-legged OAuth"
        )
        .into()),
        // The error's own message contains the value.
        Err(env::VarError::NotUnicode(_)) => Err(format!("{name} is not UTF-8").into()),
    }
}

/// The host is fixed, so that no argument can send the token elsewhere.
fn api_request(path: &str) -> Result<Request<Full<Bytes>>, BoxError> {
    let uri = Uri::builder()
        .scheme("https")
        .authority("api.linkedin.com")
        .path_and_query(path)
        .build()
        .map_err(|error| format!("{path:?} is not a path such as /v2/me: {error}"))?;
    Ok(Request::get(uri).body(Full::default())?)
}

fn https_client() -> HttpClient {
    let connector = HttpsConnectorBuilder::new()
        .with_webpki_roots()
        .https_only()
        .enable_http1()
        .build();
    Client::builder(TokioExecutor::new()).build(connector)
}

fn report(response: &Response<Incoming>) -> Result<(), BoxError> {
    let status = response.status();
    println!("response: {status}");
    if let Some(reason) = response
        .extensions()
        .get::<TokenOutcome>()
        .and_then(TokenOutcome::not_replayed)
    {
        println!("not replayed: {reason}");
    }
    match status {
        StatusCode::UNAUTHORIZED => Err(
            "the API rejected the token: it may have been revoked, or be too new \
             to be accepted everywhere; try again in a minute"
                .into(),
        ),
        StatusCode::FORBIDDEN => Err(
            "the API accepted the token, but the application has no access to this resource; \
             request access from LinkedIn, or pass the path of another API"
                .into(),
        ),
        _ if status.is_success() => Ok(()),
        _ => Err("the API did not serve the call; see the status".into()),
    }
}

/// Prints an error with its causes. Errors of this crate end with a hint where LinkedIn documents
/// one.
fn print_error(error: &(dyn StdError + 'static)) {
    eprintln!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  caused by: {error}");
        cause = error.source();
    }
}
