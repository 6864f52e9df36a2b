//! With real clients, the service and its future have the auto traits of their parts.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use support::{Protocol, Servers, hyper_client};
use tonic::transport::{Channel, Endpoint};
use tower::{Layer, Service, ServiceExt, buffer::Buffer, util::BoxService};
use tower_client_credentials::{
    BoxError, Buffered, ClientCredentials, ClientCredentialsLayer, CloneBody, CloneWith, Never,
    ReplayBody, replay::Map,
};

type Hyper<B> = Client<HttpConnector, B>;
/// A body that is not `Sync`.
type Unsync = UnsyncBoxBody<Bytes, BoxError>;
type KubeBody = kube::client::Body;
type KubeService = BoxService<Request<KubeBody>, Response<Box<kube::client::DynBody>>, BoxError>;
type KubeBuffer = Buffer<Request<KubeBody>, <KubeService as Service<Request<KubeBody>>>::Future>;

fn clone_send_sync<T: Clone + Send + Sync + 'static>() {}

#[test]
fn services_are_clone_send_and_sync() {
    clone_send_sync::<ClientCredentials<Hyper<Full<Bytes>>, CloneBody>>();
    clone_send_sync::<ClientCredentials<Hyper<ReplayBody<Incoming>>, Buffered>>();
    clone_send_sync::<ClientCredentials<Hyper<ReplayBody<Unsync>>, Buffered>>();
    clone_send_sync::<ClientCredentials<Hyper<Unsync>, Never>>();
    clone_send_sync::<ClientCredentials<reqwest::Client>>();
    clone_send_sync::<ClientCredentials<Channel, Map<fn(ReplayBody<Unsync>) -> Unsync>>>();
    type CopyKubeBody = fn(&KubeBody) -> Option<KubeBody>;
    clone_send_sync::<ClientCredentials<KubeBuffer, CloneWith<CopyKubeBody>>>();
    clone_send_sync::<ClientCredentialsLayer<Buffered>>();
}

fn send<T: Send>(_: &T) {}

/// Sends nothing: what counts is that each future is `Send`, as `tokio::spawn` wants it.
#[tokio::test]
async fn futures_are_send() {
    let servers = Servers::start().await;
    let tokens = servers.tokens(hyper_client::<Full<Bytes>>(Protocol::Http1));
    let layer = ClientCredentialsLayer::new(tokens);

    let service = layer.layer(hyper_client(Protocol::Http1));
    send(&service.oneshot(Request::new(Full::<Bytes>::default())));

    let service = layer
        .clone()
        .replay(Buffered::new(1))
        .layer(hyper_client(Protocol::Http1));
    send(&service.oneshot(Request::new(Unsync::default())));

    let channel: Channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
    let policy = Buffered::new(1).map(tonic::body::Body::new);
    let service = layer.clone().replay(policy).layer(channel);
    send(&service.oneshot(Request::new(tonic::body::Body::empty())));

    let service = layer
        .replay(CloneWith(KubeBody::try_clone))
        .layer(kube_service());
    send(&service.oneshot(Request::new(KubeBody::empty())));
}

fn kube_service() -> KubeBuffer {
    let service = tower::service_fn(|_: Request<KubeBody>| async {
        let body: Box<kube::client::DynBody> = Box::new(KubeBody::empty().map_err(Into::into));
        Ok::<_, BoxError>(Response::new(body))
    });
    Buffer::new(BoxService::new(service), 1)
}
