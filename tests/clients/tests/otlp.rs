//! Exporters of OpenTelemetry: they run on threads of their own, outside the runtime.

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use opentelemetry_http::{HttpClient, HttpError};
use support::{Protocol, Servers, hash, hyper_client, in_time};
use tokio::runtime::Handle;
use tower_client_credentials::{ClientCredentials, ClientCredentialsLayer};

/// The HTTP client of an exporter.
#[derive(Debug)]
struct Authorized {
    api: ClientCredentials<Client<HttpConnector, Full<Bytes>>>,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Authorized {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let response = self.api.send(request.map(Full::new));
        let call = self.runtime.spawn(async {
            let (head, body) = response.await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        });
        call.await?
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn export_from_a_thread_without_a_runtime_is_replayed() {
    let servers = Servers::start().await;
    let tokens = servers.tokens(hyper_client::<Full<Bytes>>(Protocol::Http1));
    let layer = ClientCredentialsLayer::new(tokens);
    let exporter = Authorized {
        api: tower::Layer::layer(&layer, hyper_client(Protocol::Http1)),
        runtime: Handle::current(),
    };

    let request = Request::post(servers.url("/late/v1/traces")).body(Bytes::from("spans"));
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let response = futures_executor::block_on(exporter.send_bytes(request.unwrap()));
        sender.send(response).unwrap();
    });
    let response = in_time(receiver).await.unwrap().unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(*response.body(), hash("spans"));
    assert_eq!((servers.received().len(), servers.issued()), (2, 2));
    let heads = servers.heads();
    assert_eq!(heads[0], heads[1]);
}
