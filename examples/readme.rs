//! Prints the response of an API that requires an access token.

use std::env;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tower::ServiceBuilder;
use tower_client_credentials::{ClientAuth, ServiceBuilderExt, TokenEndpoint};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Any HTTP client that is a tower service works. This is hyper-util's, with TLS.
    let connector = HttpsConnectorBuilder::new()
        .with_webpki_roots()
        .https_or_http()
        .enable_http1()
        .build();
    let http = Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(connector);

    // The token endpoint, and how your client authenticates there.
    let tokens = TokenEndpoint::new(
        http.clone(),
        "https://auth.example.com/oauth/token",
        ClientAuth::client_secret_basic(env::var("CLIENT_ID")?, env::var("CLIENT_SECRET")?),
    )?;

    // Every request sent through `api` carries an access token.
    let api = ServiceBuilder::new()
        .client_credentials(tokens)
        .service(http);

    let request = Request::get("https://api.example.com/orders").body(Full::default())?;
    let response = api.send(request).await?;
    println!("{}", response.status());

    let body = response.into_body().collect().await?.to_bytes();
    println!("{}", String::from_utf8_lossy(&body));
    Ok(())
}
