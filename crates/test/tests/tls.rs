//! Servers with TLS.
#![cfg(feature = "tls")]

mod support;

use std::sync::Arc;

use bytes::Bytes;
use http::Version;
use http_body_util::Full;
use hyper_rustls::{ConfigBuilderExt, HttpsConnectorBuilder};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use support::{auth_server, in_time, io_kind, token_request};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
use tower_client_credentials_test::Reply;

type HttpsClient = Client<
    hyper_rustls::HttpsConnector<hyper_util::client::legacy::connect::HttpConnector>,
    Full<Bytes>,
>;

fn client(config: ClientConfig) -> HttpsClient {
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_only()
        .enable_all_versions()
        .build();
    Client::builder(TokioExecutor::new()).build(connector)
}

#[tokio::test]
async fn a_client_that_trusts_the_certificate_is_served() {
    let auth = auth_server();
    let server = auth.serve_tls().await.unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(server.certificate_der().to_vec().into()).unwrap();
    let builder = || {
        ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
    };
    let trusting = client(
        builder()
            .with_root_certificates(roots)
            .with_no_client_auth(),
    );
    let public = client(builder().with_webpki_roots().with_no_client_auth());

    let by_name = server.url("/token").replace("127.0.0.1", "localhost");
    for url in [server.url("/token"), by_name] {
        let response = in_time(trusting.request(token_request(url))).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.version(), Version::HTTP_2);
    }
    in_time(public.request(token_request(server.url("/token"))))
        .await
        .unwrap_err();
    auth.assert_token_requests(2);
    assert!(
        server
            .certificate_pem()
            .starts_with("-----BEGIN CERTIFICATE-----")
    );

    // The connection below TLS is reset.
    auth.next_once(Reply::reset());
    let error = in_time(trusting.request(token_request(server.url("/token"))))
        .await
        .unwrap_err();
    assert_eq!(io_kind(error), Some(std::io::ErrorKind::ConnectionReset));
}
