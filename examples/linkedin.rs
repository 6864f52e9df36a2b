//! Fetches a token from LinkedIn and makes one call of its API, over TLS.
//!
//! Needs an application that may use 2-legged OAuth, and its credentials:
//!
//! ```text
//! LINKEDIN_CLIENT_ID=... LINKEDIN_CLIENT_SECRET=... cargo run --example linkedin
//! ```
//!
//! Calls the catalogue of LinkedIn Learning. For another API that the application may use, give its
//! path: `cargo run --example linkedin -- "/v2/..."`. Neither the secret nor the token is printed.

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

/// One course of the catalogue.
const DEFAULT_PATH: &str = "/v2/learningAssets?q=localeAndType&assetType=COURSE\
                            &sourceLocale.language=en&sourceLocale.country=US&count=1";

/// A call waits for a renewal and a replay at most, so this is generous.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            explain(&*error);
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
    // Not needed before a call: shows what LinkedIn issued.
    let token = cache.token().await?;
    match token.lifetime() {
        Some(lifetime) => println!("token: lives {lifetime:?}"),
        None => println!("token: LinkedIn does not say how long it lives"),
    }
    println!("scope: {}", token.scope().unwrap_or("not named"));

    let api = ServiceBuilder::new()
        .layer(ClientCredentialsLayer::with_cache(cache))
        .service(http);
    let response = timeout(CALL_DEADLINE, api.oneshot(request))
        .await
        .map_err(|_elapsed| format!("the API did not answer within {CALL_DEADLINE:?}"))??;
    println!("call:  GET {path}");
    report(&response)
}

fn credential(name: &str) -> Result<String, BoxError> {
    match env::var(name) {
        Ok(value) if !value.is_empty() => Ok(value),
        Ok(_) | Err(env::VarError::NotPresent) => Err(format!(
            "{name} is not set; set LINKEDIN_CLIENT_ID and LINKEDIN_CLIENT_SECRET to the \
             credentials of an application that may use 2-legged OAuth"
        )
        .into()),
        // Its own message would show the value.
        Err(env::VarError::NotUnicode(_)) => Err(format!("{name} is not UTF-8").into()),
    }
}

/// The host stands fixed, so that no argument can send the token elsewhere.
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
    println!("reply: {status}");
    if let Some(reason) = response
        .extensions()
        .get::<TokenOutcome>()
        .and_then(TokenOutcome::not_replayed)
    {
        println!("why not sent again: {reason}");
    }
    match status {
        StatusCode::UNAUTHORIZED => {
            Err("the API refused the token: it may be too new to be known \
             everywhere, or have been revoked; try again in a minute"
                .into())
        }
        StatusCode::FORBIDDEN => Err(
            "the API accepted the token, but the application may not use \
             this resource; ask LinkedIn for access, or give the path of an API that it may use"
                .into(),
        ),
        _ if status.is_success() => Ok(()),
        _ => Err("the API took the token but did not serve the call; see the status".into()),
    }
}

/// Prints an error with its causes. Where LinkedIn documents what to do about it, one of this crate's
/// ends with that.
fn explain(error: &(dyn StdError + 'static)) {
    eprintln!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  caused by: {error}");
        cause = error.source();
    }
}
