//! kube's client: it has a stack of its own, and its body has a copying function.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Config,
    api::PostParams,
    client::{Body, ClientBuilder},
};
use support::{Loopback, Protocol, Servers, hyper_client, in_time};
use tower::{
    Layer, buffer::BufferLayer, limit::GlobalConcurrencyLimitLayer, timeout::TimeoutLayer,
};
use tower_client_credentials::{ClientCredentialsLayer, replay::CloneWith};
use tower_http::{decompression::DecompressionLayer, trace::TraceLayer};

/// A cluster with one object. It returns created objects and rejects "token-1".
async fn cluster() -> Servers {
    let api = Loopback::start(|request: Request<Incoming>| async {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let is_accepted = head
            .headers
            .get(AUTHORIZATION)
            .is_some_and(|token| token != "Bearer token-1");
        let (status, json) = match (is_accepted, head.method.as_str()) {
            (true, "GET") => (StatusCode::OK, Bytes::from(OBJECT)),
            (true, _) => (StatusCode::CREATED, body),
            (false, _) => (StatusCode::UNAUTHORIZED, Bytes::from(REJECTION)),
        };
        let mut response = Response::new(Full::new(json));
        *response.status_mut() = status;
        response
    })
    .await;
    Servers::with_api(api).await
}

const OBJECT: &str =
    r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"one"},"data":{"name":"Ada"}}"#;

const REJECTION: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
    "message":"Unauthorized","reason":"Unauthorized","code":401}"#;

/// Builds the client as a user would.
fn client(servers: &Servers) -> Client {
    let config = Config::new(servers.url("").parse().unwrap());
    let tokens = servers.tokens(hyper_client::<Full<Bytes>>(Protocol::Http1));
    ClientBuilder::try_from(config)
        .unwrap()
        // kube's service is not `Clone`; a buffer around it is.
        .with_layer(&BufferLayer::new(16))
        .with_layer(&ClientCredentialsLayer::new(tokens).replay(CloneWith(Body::try_clone)))
        .build()
}

#[tokio::test]
async fn request_without_a_body_is_replayed() {
    let cluster = cluster().await;
    let objects = Api::<ConfigMap>::default_namespaced(client(&cluster));

    let object = in_time(objects.get("one")).await.unwrap();

    assert_eq!(object.data.unwrap()["name"], "Ada");
    assert_eq!(cluster.issued(), 2);
    assert_eq!(cluster.connections().accepted(), 1);
}

/// All except `FollowRedirect`, which requires a body with a `Default`. kube's own stack has a
/// `Retry`.
#[tokio::test]
async fn other_layers_work_above_and_below() {
    let cluster = cluster().await;
    let config = Config::new(cluster.url("").parse().unwrap());
    let timeout = TimeoutLayer::new(Duration::from_secs(30));
    let shared_limit = GlobalConcurrencyLimitLayer::new(1);
    let tokens = shared_limit.layer(hyper_client::<Full<Bytes>>(Protocol::Http1));
    let tokens = cluster.tokens(tokens);
    let client = ClientBuilder::try_from(config)
        .unwrap()
        .with_layer(&BufferLayer::new(1))
        .with_layer(&shared_limit)
        .with_layer(&DecompressionLayer::new())
        .with_layer(&timeout)
        .with_layer(&TraceLayer::new_for_http())
        .with_layer(&ClientCredentialsLayer::new(tokens).replay(CloneWith(Body::try_clone)))
        .with_layer(&GlobalConcurrencyLimitLayer::new(1))
        .with_layer(&DecompressionLayer::new())
        .with_layer(&timeout)
        .with_layer(&TraceLayer::new_for_http())
        .with_layer(&BufferLayer::new(1))
        .build();
    let objects = Api::<ConfigMap>::default_namespaced(client);
    let object = serde_json::from_str::<ConfigMap>(OBJECT).unwrap();

    let created = in_time(objects.create(&PostParams::default(), &object))
        .await
        .unwrap();

    assert_eq!(created, object);
    assert_eq!(in_time(objects.get("one")).await.unwrap(), object);
    assert_eq!(cluster.issued(), 2);
}

#[tokio::test]
async fn object_is_replayed() {
    let cluster = cluster().await;
    let objects = Api::<ConfigMap>::default_namespaced(client(&cluster));
    let object = serde_json::from_str::<ConfigMap>(OBJECT).unwrap();

    let created = in_time(objects.create(&PostParams::default(), &object))
        .await
        .unwrap();

    assert_eq!(created, object);
    assert_eq!(cluster.issued(), 2);
}
