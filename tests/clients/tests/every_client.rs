//! The same stacks around each client, with the client's own bodies.
//!
//! The clients that send token requests follow no redirects: a redirect would send the client
//! secret to another URL.

use std::{
    collections::VecDeque,
    marker::PhantomData,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, Response, StatusCode, header::AUTHORIZATION};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use kube::client::ClientBuilder;
use support::{
    Body, Loopback, Protocol, Servers, cache_without_cool_down, hash, hyper_client, in_time, text,
};
use tonic::transport::Endpoint;
use tower::{
    Service, ServiceBuilder, ServiceExt,
    buffer::{Buffer, BufferLayer},
    limit::{ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer},
    retry::{Policy, RetryLayer},
    timeout::TimeoutLayer,
    util::BoxCloneSyncService,
};
use tower_client_credentials::{
    BoxError, ClientCredentialsLayer, TokenEndpoint,
    replay::{Buffered, CloneBody, CloneWith, Map, ReplayBody, ReplayPolicy},
};
use tower_http::{
    decompression::DecompressionLayer, follow_redirect::FollowRedirectLayer, trace::TraceLayer,
};
use tower_reqwest::HttpClientLayer;

/// A client, as a service for requests with its own body.
type Http<B> = BoxCloneSyncService<Request<B>, Response<Body>, BoxError>;

/// A client under test.
trait Subject: Copy + Send + Sync + 'static {
    /// The request body. `FollowRedirect` requires a `Default`.
    type Body: http_body::Body<Data = Bytes, Error: Into<BoxError>>
        + Default
        + Send
        + Unpin
        + 'static;
    /// The replay policy for this body.
    type Replay: ReplayPolicy<Self::Body, Body = Self::Body, Kept: Send>
        + Clone
        + Send
        + Sync
        + 'static;

    /// Builds the client. It sends requests to `/token` to the token endpoint.
    fn connect(self, servers: &Servers) -> Http<Self::Body>;

    fn replay(self) -> Self::Replay;

    fn body(bytes: Bytes) -> Self::Body;

    /// Copies a body for `Retry`, if possible.
    fn copy(body: &Self::Body) -> Option<Self::Body>;
}

/// hyper-util's client.
#[derive(Clone, Copy)]
struct Hyper(Protocol);

impl Subject for Hyper {
    type Body = Full<Bytes>;
    type Replay = CloneBody;

    fn connect(self, _: &Servers) -> Http<Full<Bytes>> {
        boxed(hyper_client(self.0))
    }

    fn replay(self) -> CloneBody {
        CloneBody
    }

    fn body(bytes: Bytes) -> Full<Bytes> {
        bytes.into()
    }

    fn copy(body: &Full<Bytes>) -> Option<Full<Bytes>> {
        Some(body.clone())
    }
}

/// reqwest's client without redirects.
#[derive(Clone, Copy)]
struct Reqwest(Protocol);

impl Subject for Reqwest {
    type Body = reqwest::Body;
    /// `Buffered` would work too, but a `Retry` below could not copy its bodies.
    type Replay = CloneWith<fn(&reqwest::Body) -> Option<reqwest::Body>>;

    fn connect(self, _: &Servers) -> Http<reqwest::Body> {
        let builder = reqwest::Client::builder()
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none());
        let builder = match self.0 {
            Protocol::Http1 => builder.http1_only(),
            Protocol::Http2 => builder.http2_prior_knowledge(),
        };
        let client = ServiceBuilder::new()
            .layer(HttpClientLayer)
            .service(builder.build().unwrap());
        boxed(client)
    }

    fn replay(self) -> Self::Replay {
        CloneWith(Self::copy)
    }

    fn body(bytes: Bytes) -> reqwest::Body {
        bytes.into()
    }

    fn copy(body: &reqwest::Body) -> Option<reqwest::Body> {
        let bytes = body.as_bytes()?;
        Some(Bytes::copy_from_slice(bytes).into())
    }
}

/// tonic's channel. It connects to one host, so token requests have another client.
#[derive(Clone, Copy)]
struct Tonic;

impl Subject for Tonic {
    type Body = tonic::body::Body;
    type Replay = Map<fn(ReplayBody<tonic::body::Body>) -> tonic::body::Body>;

    fn connect(self, servers: &Servers) -> Http<tonic::body::Body> {
        let channel = Endpoint::from_shared(servers.url("")).unwrap();
        by_path(channel.connect_lazy(), hyper_client(Protocol::Http2))
    }

    fn replay(self) -> Self::Replay {
        Buffered::new(64 * 1024).map(tonic::body::Body::new)
    }

    fn body(bytes: Bytes) -> tonic::body::Body {
        tonic::body::Body::new(Full::new(bytes))
    }

    /// Only an empty body can be copied.
    fn copy(body: &tonic::body::Body) -> Option<tonic::body::Body> {
        body.is_end_stream().then(tonic::body::Body::empty)
    }
}

/// kube's client. It connects to one cluster, so token requests have another client.
#[derive(Clone, Copy)]
struct Kube;

impl Subject for Kube {
    type Body = KubeBody;
    type Replay = CloneWith<fn(&KubeBody) -> Option<KubeBody>>;

    fn connect(self, servers: &Servers) -> Http<KubeBody> {
        let config = kube::Config::new(servers.url("").parse().unwrap());
        let client = ClientBuilder::try_from(config).unwrap().build();
        let client = tower::service_fn(move |request: Request<KubeBody>| {
            let client = client.clone();
            async move { client.send(request.map(|KubeBody(body)| body)).await }
        });
        by_path(client, hyper_client(Protocol::Http1))
    }

    fn replay(self) -> Self::Replay {
        CloneWith(Self::copy)
    }

    fn body(bytes: Bytes) -> KubeBody {
        KubeBody(bytes.into())
    }

    fn copy(body: &KubeBody) -> Option<KubeBody> {
        body.0.try_clone().map(KubeBody)
    }
}

/// kube's body with a `Default`.
struct KubeBody(kube::client::Body);

impl Default for KubeBody {
    fn default() -> Self {
        Self(kube::client::Body::empty())
    }
}

impl http_body::Body for KubeBody {
    type Data = Bytes;
    type Error = <kube::client::Body as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

fn boxed<C, B, ResBody>(client: C) -> Http<B>
where
    C: Service<Request<B>, Response = Response<ResBody>> + Clone + Send + Sync + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
    B: 'static,
    ResBody: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let client = client
        .map_response(|response| response.map(|body| body.map_err(Into::into).boxed_unsync()))
        .map_err(Into::into);
    BoxCloneSyncService::new(client)
}

/// Combines a client for the API with one for the token endpoint.
fn by_path<Api, ApiBody, Issuer, IssuerBody, B>(api: Api, issuer: Issuer) -> Http<B>
where
    Api: Service<Request<B>, Response = Response<ApiBody>> + Clone + Send + Sync + 'static,
    Api::Error: Into<BoxError>,
    Api::Future: Send + 'static,
    ApiBody: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    Issuer: Service<Request<B>, Response = Response<IssuerBody>> + Clone + Send + Sync + 'static,
    Issuer::Error: Into<BoxError>,
    Issuer::Future: Send + 'static,
    IssuerBody: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    B: Send + 'static,
{
    let clients = (boxed(api), boxed(issuer));
    BoxCloneSyncService::new(tower::service_fn(move |request: Request<B>| {
        let (api, issuer) = clients.clone();
        let is_for_token = request.uri().path() == "/token";
        let client = if is_for_token { issuer } else { api };
        client.oneshot(request)
    }))
}

/// Builds the token service with the client under test.
fn tokens<S: Subject, C>(servers: &Servers, client: C) -> TokenEndpoint
where
    C: Service<Request<S::Body>, Response = Response<Body>> + Clone + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    let client = client.map_request(|request: Request<AsBytes>| {
        let AsBytes(bytes) = request.body();
        let bytes = bytes.clone();
        request.map(|_| S::body(bytes))
    });
    servers.tokens(client)
}

/// The body of a token request before it is converted to the client's body.
struct AsBytes(Bytes);

impl From<Bytes> for AsBytes {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

fn credentials<S: Subject, C>(
    subject: S,
    servers: &Servers,
    client: C,
) -> ClientCredentialsLayer<S::Replay>
where
    C: Service<Request<S::Body>, Response = Response<Body>> + Clone + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    let cache = cache_without_cool_down(tokens::<S, _>(servers, client));
    ClientCredentialsLayer::with_cache(cache).replay(subject.replay())
}

/// Retries after a 503 if the client's body can be copied.
struct WhileBusy<S> {
    retries_left: usize,
    subject: PhantomData<S>,
}

impl<S: Copy> Clone for WhileBusy<S> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<S: Subject, ResBody, E> Policy<Request<S::Body>, Response<ResBody>, E> for WhileBusy<S> {
    type Future = std::future::Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<S::Body>,
        outcome: &mut Result<Response<ResBody>, E>,
    ) -> Option<Self::Future> {
        let is_busy = matches!(outcome, Ok(it) if it.status() == StatusCode::SERVICE_UNAVAILABLE);
        let may_retry = is_busy && self.retries_left > 0;
        self.retries_left = self.retries_left.saturating_sub(1);
        may_retry.then(|| std::future::ready(()))
    }

    fn clone_request(&mut self, request: &Request<S::Body>) -> Option<Request<S::Body>> {
        let mut copy = Request::new(S::copy(request.body())?);
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        *copy.extensions_mut() = request.extensions().clone();
        Some(copy)
    }
}

fn retry<S: Subject>(_: S) -> RetryLayer<WhileBusy<S>> {
    RetryLayer::new(WhileBusy {
        retries_left: 2,
        subject: PhantomData,
    })
}

/// "compressed", compressed with gzip.
const GZIP: &[u8] = &[
    0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0x4b, 0xce, 0xcf, 0x2d, 0x28, 0x4a,
    0x2d, 0x2e, 0x4e, 0x4d, 0x01, 0x00, 0x1e, 0x4b, 0x56, 0x97, 0x0a, 0x00, 0x00, 0x00,
];

/// An API that responds with given statuses and records the requests.
struct Api {
    servers: Servers,
    statuses: Arc<Mutex<VecDeque<u16>>>,
    sent: Arc<Mutex<Vec<(String, String)>>>,
}

impl Api {
    async fn start() -> Self {
        let statuses = Arc::<Mutex<VecDeque<u16>>>::default();
        let sent = Arc::<Mutex<Vec<_>>>::default();
        let api = Loopback::start({
            let (statuses, sent) = (Arc::clone(&statuses), Arc::clone(&sent));
            move |request: Request<Incoming>| {
                let (statuses, sent) = (Arc::clone(&statuses), Arc::clone(&sent));
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    let token = head.headers[AUTHORIZATION].to_str().unwrap();
                    let body = String::from_utf8(body.into()).unwrap();
                    sent.lock().unwrap().push((token.to_owned(), body));
                    let status = statuses.lock().unwrap().pop_front().unwrap();
                    respond(status)
                }
            }
        })
        .await;
        Self {
            servers: Servers::with_api(api).await,
            statuses,
            sent,
        }
    }

    /// Makes a call and returns the tokens of its requests.
    async fn call<S, C, ResBody>(&self, service: &C, body: &'static str, statuses: &[u16]) -> String
    where
        S: Subject,
        C: Service<Request<S::Body>, Response = Response<ResBody>> + Clone,
        C::Error: Into<BoxError>,
        ResBody: http_body::Body<Error: Into<BoxError>>,
    {
        self.statuses.lock().unwrap().extend(statuses);
        let method = if body.is_empty() {
            Method::GET
        } else {
            Method::POST
        };
        let request = Request::builder()
            .method(method)
            .uri(self.servers.url("/"))
            .body(S::body(Bytes::from(body)))
            .unwrap();

        let response = in_time(service.clone().oneshot(request)).await;
        let response = response.map_err(Into::into).unwrap();

        assert_eq!(response.status(), StatusCode::OK);
        let body_received = in_time(response.into_body().collect()).await;
        let body_received = body_received.map_err(Into::into).unwrap().to_bytes();
        assert_eq!(body_received, "compressed");
        let sent = std::mem::take(&mut *self.sent.lock().unwrap());
        assert!(sent.iter().all(|(_, sent)| sent == body), "{sent:?}");
        let tokens = sent
            .iter()
            .map(|(token, _)| token.replace("Bearer token-", ""));
        tokens.collect::<Vec<_>>().join(" ")
    }
}

fn respond(status: u16) -> Response<Body> {
    let response = Response::builder().status(status);
    match status {
        200 => response.header("content-encoding", "gzip").body(text(GZIP)),
        307 => response.header("location", "/").body(text("")),
        _ => response.body(text("error")),
    }
    .unwrap()
}

/// Makes a first call, a call with a revoked token, another call, and calls with several failures
/// each.
async fn assert_works<S, C, ResBody>(service: C, api: &Api)
where
    S: Subject,
    C: Service<Request<S::Body>, Response = Response<ResBody>> + Clone,
    C::Error: Into<BoxError>,
    ResBody: http_body::Body<Error: Into<BoxError>>,
{
    assert_eq!(api.call::<S, _, _>(&service, "name=Ada", &[200]).await, "1");
    let revoked = api.call::<S, _, _>(&service, "name=Ada", &[401, 200]);
    assert_eq!(revoked.await, "1 2");
    assert_eq!(api.call::<S, _, _>(&service, "name=Ada", &[200]).await, "2");
    // Without a body, because `FollowRedirect` does not resend bodies.
    let redirected_and_busy = api.call::<S, _, _>(&service, "", &[401, 307, 503, 200]);
    assert_eq!(redirected_and_busy.await, "2 3 3 3");
    if S::copy(&S::body(Bytes::from("name=Ada"))).is_some() {
        let busy = api.call::<S, _, _>(&service, "name=Ada", &[401, 503, 200]);
        assert_eq!(busy.await, "3 4 4");
    }
}

/// The order that the guide recommends. Token and API requests share one permit.
async fn recommended_order<S: Subject>(subject: S) {
    let api = Api::start().await;
    let http = ServiceBuilder::new()
        .layer(GlobalConcurrencyLimitLayer::new(1))
        .service(subject.connect(&api.servers));

    let service = ServiceBuilder::new()
        .layer(BufferLayer::new(8))
        .layer(TraceLayer::new_for_http())
        .layer(TimeoutLayer::new(Duration::from_secs(30)))
        .layer(credentials(subject, &api.servers, http.clone()))
        .layer(retry(subject))
        .layer(FollowRedirectLayer::new())
        .layer(DecompressionLayer::new())
        .service(http);

    assert_works::<S, _, _>(service, &api).await;
}

async fn all_above<S: Subject>(subject: S) {
    let api = Api::start().await;
    let http = subject.connect(&api.servers);

    let service = ServiceBuilder::new()
        .layer(BufferLayer::new(8))
        .layer(TraceLayer::new_for_http())
        .layer(TimeoutLayer::new(Duration::from_secs(30)))
        .layer(retry(subject))
        .layer(FollowRedirectLayer::new())
        .layer(DecompressionLayer::new())
        .layer(ConcurrencyLimitLayer::new(1))
        .layer(credentials(subject, &api.servers, http.clone()))
        .service(http);

    assert_works::<S, _, _>(service, &api).await;
}

async fn all_below<S: Subject>(subject: S) {
    let api = Api::start().await;
    let http = subject.connect(&api.servers);

    let service = ServiceBuilder::new()
        .layer(credentials(subject, &api.servers, http.clone()))
        .layer(BufferLayer::new(8))
        .layer(TraceLayer::new_for_http())
        .layer(TimeoutLayer::new(Duration::from_secs(30)))
        .layer(retry(subject))
        .layer(FollowRedirectLayer::new())
        .layer(DecompressionLayer::new())
        .layer(ConcurrencyLimitLayer::new(1))
        .service(http);

    assert_works::<S, _, _>(service, &api).await;
}

/// An API that accepts one token at a time.
struct Revoking {
    servers: Servers,
    accepted: Arc<AtomicUsize>,
}

impl Revoking {
    async fn start() -> Self {
        let accepted = Arc::new(AtomicUsize::new(1));
        let api = Loopback::start({
            let accepted = Arc::clone(&accepted);
            move |request: Request<Incoming>| {
                let accepted = Arc::clone(&accepted);
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    let token = format!("Bearer token-{}", accepted.load(Relaxed));
                    let mut response = Response::new(text(hash(body)));
                    if head.headers[AUTHORIZATION] != token {
                        *response.status_mut() = StatusCode::UNAUTHORIZED;
                    }
                    response
                }
            }
        })
        .await;
        Self {
            servers: Servers::with_api(api).await,
            accepted,
        }
    }
}

/// A call that waits for a token must not hold the permit that the token request needs: neither the
/// first call of each round, nor calls whose token is no longer accepted.
async fn assert_no_deadlock<S: Subject, C>(service: C, api: &Revoking)
where
    C: Service<Request<S::Body>, Response = Response<Body>, Error = BoxError> + Clone,
{
    for accepted in 1..=5 {
        api.accepted.store(accepted, Relaxed);
        let calls = (0..20).map(|number| {
            let body = format!("number={number}");
            let expected = hash(&body);
            let request = Request::post(api.servers.url("/"));
            let request = request.body(S::body(Bytes::from(body))).unwrap();
            let response = service.clone().oneshot(request);
            async move {
                let response = response.await.unwrap();
                assert_eq!(response.status(), StatusCode::OK);
                let body = response.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, expected);
            }
        });
        in_time(join_all(calls)).await;
        assert_eq!(api.servers.issued(), accepted);
    }
}

async fn shared_permit<S: Subject>(subject: S) {
    let api = Revoking::start().await;
    let shared = ServiceBuilder::new()
        .layer(GlobalConcurrencyLimitLayer::new(1))
        .service(subject.connect(&api.servers));
    let service = ServiceBuilder::new()
        .layer(credentials(subject, &api.servers, shared.clone()))
        .service(shared);
    assert_no_deadlock::<S, _>(service, &api).await;
}

async fn shared_buffer<S: Subject>(subject: S) {
    let api = Revoking::start().await;
    let shared = Buffer::new(subject.connect(&api.servers), 1);
    let service = ServiceBuilder::new()
        .layer(credentials(subject, &api.servers, shared.clone()))
        .service(shared);
    assert_no_deadlock::<S, _>(service, &api).await;
}

/// The tests of one client.
macro_rules! client {
    ($name:ident, $subject:expr) => {
        mod $name {
            use super::*;

            #[tokio::test]
            async fn layers_in_the_recommended_order() {
                recommended_order($subject).await;
            }

            #[tokio::test]
            async fn all_layers_above() {
                super::all_above($subject).await;
            }

            #[tokio::test]
            async fn all_layers_below() {
                super::all_below($subject).await;
            }

            #[tokio::test]
            async fn token_and_api_requests_can_share_one_permit() {
                shared_permit($subject).await;
            }

            #[tokio::test]
            async fn token_and_api_requests_can_share_one_buffer() {
                shared_buffer($subject).await;
            }
        }
    };
}

client!(hyper_over_http1, Hyper(Protocol::Http1));
client!(hyper_over_http2, Hyper(Protocol::Http2));
client!(reqwest_over_http1, Reqwest(Protocol::Http1));
client!(reqwest_over_http2, Reqwest(Protocol::Http2));
client!(tonic_over_http2, Tonic);
client!(kube_over_http1, Kube);
