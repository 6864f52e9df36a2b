//! Exports the metrics to Prometheus and prints one scrape.
//!
//! ```text
//! cargo run --manifest-path tests/clients/Cargo.toml --example prometheus
//! ```
//!
//! Starts a token endpoint and an API on 127.0.0.1. The API rejects the first token. Panics if the
//! scrape does not contain the expected metrics.

use http::Request;
use http_body_util::{BodyExt, Full};
use metrics_exporter_prometheus::PrometheusBuilder;
use support::{Protocol, Servers, hyper_client};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_client_credentials::{BoxError, ClientCredentialsLayer};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // A free port. A real service uses the port that Prometheus is configured with.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    // Install the recorder before the first cache, which describes the metrics.
    PrometheusBuilder::new()
        .with_http_listener(([127, 0, 0, 1], port))
        .install()?;

    let servers = Servers::start().await;
    let http = hyper_client::<Full<bytes::Bytes>>(Protocol::Http1);
    let tokens = servers.tokens(http.clone());
    let mut api = ServiceBuilder::new()
        .layer(ClientCredentialsLayer::new(tokens))
        .service(http.clone());
    for path in ["/reports", "/late/reports", "/reports"] {
        let request = Request::put(servers.url(path)).body(Full::from("line"))?;
        let response = api.ready().await?.call(request).await?;
        println!("PUT {path}: {}", response.status());
    }

    let scrape = Request::get(format!("http://127.0.0.1:{port}/metrics")).body(Full::default())?;
    let body = http.oneshot(scrape).await?.into_body().collect().await?;
    let text = String::from_utf8(body.to_bytes().to_vec())?;
    println!("\nGET /metrics\n{text}");
    for expected in [
        r#"client_credentials_token_requests_total{cause="first",outcome="token"} 1"#,
        r#"client_credentials_token_requests_total{cause="rejected",outcome="token"} 1"#,
        "client_credentials_replays_total 1",
        "# TYPE client_credentials_wait_duration_seconds",
    ] {
        assert!(text.contains(expected), "{expected} is not in the scrape");
    }
    Ok(())
}
