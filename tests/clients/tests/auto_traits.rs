//! With real clients, the service and its future are `Send` and `Sync` if their parts are.

use std::{
    cell::Cell,
    marker::PhantomPinned,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use support::{Protocol, Servers, hyper_client, in_time};
use tonic::transport::{Channel, Endpoint};
use tower::{Layer, Service, ServiceExt, buffer::Buffer, util::BoxService};
use tower_client_credentials::{
    AccessToken, BoxError, ClientCredentials, ClientCredentialsLayer, TokenRequest,
    replay::{Buffered, CloneBody, CloneWith, Map, NoReplay, ReplayBody, ReplayPolicy},
};

type Hyper<B> = Client<HttpConnector, B>;
/// A body that is not `Sync`.
type Unsync = UnsyncBoxBody<Bytes, BoxError>;
/// A request and response body that is neither `Sync` nor `Unpin`.
#[derive(Clone, Default)]
struct Awkward {
    _unsync: Cell<()>,
    _pinned: PhantomPinned,
}

impl http_body::Body for Awkward {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(None)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(0)
    }
}

type KubeBody = kube::client::Body;
type KubeService = BoxService<Request<KubeBody>, Response<Box<kube::client::DynBody>>, BoxError>;
type KubeBuffer = Buffer<Request<KubeBody>, <KubeService as Service<Request<KubeBody>>>::Future>;

fn clone_send_sync<T: Clone + Send + Sync + 'static>() {}

#[test]
fn services_are_clone_send_and_sync() {
    clone_send_sync::<ClientCredentials<Hyper<Full<Bytes>>, CloneBody>>();
    clone_send_sync::<ClientCredentials<Hyper<ReplayBody<Incoming>>, Buffered>>();
    clone_send_sync::<ClientCredentials<Hyper<ReplayBody<Unsync>>, Buffered>>();
    clone_send_sync::<ClientCredentials<Hyper<Unsync>, NoReplay>>();
    clone_send_sync::<ClientCredentials<reqwest::Client>>();
    clone_send_sync::<ClientCredentials<Channel, Map<fn(ReplayBody<Unsync>) -> Unsync>>>();
    type CopyKubeBody = fn(&KubeBody) -> Option<KubeBody>;
    clone_send_sync::<ClientCredentials<KubeBuffer, CloneWith<CopyKubeBody>>>();
    clone_send_sync::<ClientCredentialsLayer<Buffered>>();
}

fn is_clone_send_sync<T: Clone + Send + Sync + 'static>(_: &T) {}

fn send<T: Send>(_: &T) {}

/// With each policy, such a body is sent, rejected and replayed in a spawned task.
#[tokio::test]
async fn bodies_need_neither_sync_nor_unpin() {
    async fn assert_spawned<R>(replay: R, sends: usize)
    where
        R: ReplayPolicy<Awkward, Body: Send, Kept: Send> + Clone + Send + Sync + 'static,
    {
        let count = Arc::new(AtomicUsize::new(0));
        let counting = Arc::clone(&count);
        // A token that is issued again after its rejection isn't sent again.
        let tokens = tower::service_fn(|request: TokenRequest| async move {
            AccessToken::new(if request.rejected.is_some() {
                "token-2"
            } else {
                "token-1"
            })
        });
        let http = tower::service_fn(move |_: Request<R::Body>| {
            counting.fetch_add(1, Relaxed);
            let mut response = Response::new(Awkward::default());
            *response.status_mut() = StatusCode::UNAUTHORIZED;
            async { Ok::<_, BoxError>(response) }
        });
        let service = ClientCredentialsLayer::new(tokens)
            .replay(replay)
            .layer(http);
        is_clone_send_sync(&service);

        let future = service.oneshot(Request::new(Awkward::default()));
        send(&future);
        let response: Response<Awkward> = in_time(tokio::spawn(future)).await.unwrap().unwrap();

        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(count.load(Relaxed), sends);
    }
    assert_spawned(CloneBody, 2).await;
    assert_spawned(CloneWith(|body: &Awkward| Some(body.clone())), 2).await;
    assert_spawned(Buffered::new(1), 2).await;
    assert_spawned(Buffered::new(1).map(BodyExt::boxed_unsync), 2).await;
    assert_spawned(NoReplay, 1).await;
}

/// Sends nothing: the futures only have to be `Send`, as `tokio::spawn` requires.
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
