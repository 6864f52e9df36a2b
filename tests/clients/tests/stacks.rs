//! Other layers above and below this one, with a real client.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode, header::AUTHORIZATION};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioIo,
};
use support::{Loopback, Protocol, Servers, hash, hyper_client, in_time, text};
use tokio::net::TcpStream;
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt,
    buffer::{Buffer, BufferLayer},
    limit::ConcurrencyLimitLayer,
    retry::{Policy, RetryLayer},
    timeout::TimeoutLayer,
    util::BoxCloneSyncService,
};
use tower_client_credentials::{
    BoxError, ClientAuth, ClientCredentialsLayer, TokenEndpoint, TokenOmitted, TokenOutcome,
};
use tower_http::{
    decompression::DecompressionLayer,
    follow_redirect::{FollowRedirectLayer, policy::SameOrigin},
    trace::TraceLayer,
};

type Http = Client<HttpConnector, Full<Bytes>>;

fn http() -> Http {
    hyper_client(Protocol::Http1)
}

fn credentials(servers: &Servers) -> ClientCredentialsLayer {
    ClientCredentialsLayer::new(servers.tokens(http()))
}

/// Tests a layer above this one. It sees one call with up to two sends.
async fn above<L>(layer: L)
where
    L: Layer<tower_client_credentials::ClientCredentials<Http>, Service: SendsFull>,
{
    let servers = Servers::start().await;
    let service = ServiceBuilder::new()
        .layer(layer)
        .layer(credentials(&servers))
        .service(http());
    assert_replayed(service, &servers).await;
}

/// Tests a layer below this one. It sees each send as a call.
async fn below<L>(layer: L)
where
    L: Layer<Http, Service: SendsFull + Clone>,
    <L::Service as Service<Request<Full<Bytes>>>>::Error: Into<BoxError>,
{
    let servers = Servers::start().await;
    let service = ServiceBuilder::new()
        .layer(credentials(&servers))
        .layer(layer)
        .service(http());
    assert_replayed(service, &servers).await;
}

/// The bounds of a service that sends requests with `Full` bodies.
trait SendsFull:
    Service<Request<Full<Bytes>>, Response = Response<Self::ResBody>, Error: Into<BoxError>>
{
    type ResBody: http_body::Body<Error: fmt::Debug>;
}

impl<S, B> SendsFull for S
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error: Into<BoxError>>,
    B: http_body::Body<Error: fmt::Debug>,
{
    type ResBody = B;
}

async fn assert_replayed<S: SendsFull>(service: S, servers: &Servers) {
    let request = Request::post(servers.url("/late/1"))
        .body(Full::from("name=Ada"))
        .unwrap();

    let response = in_time(service.oneshot(request))
        .await
        .map_err(Into::into)
        .unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, hash("name=Ada"));
    assert_eq!(servers.received().len(), 2);
}

#[tokio::test]
async fn buffer() {
    above(BufferLayer::new(8)).await;
    below(BufferLayer::new(8)).await;
}

#[tokio::test]
async fn concurrency_limit() {
    above(ConcurrencyLimitLayer::new(1)).await;
    below(ConcurrencyLimitLayer::new(1)).await;
}

/// They have the same `Service` and `Layer` traits.
#[tokio::test]
async fn layers_of_tower_0_4() {
    above(tower_0_4::buffer::BufferLayer::new(8)).await;
    below(tower_0_4::buffer::BufferLayer::new(8)).await;
    above(tower_0_4::limit::ConcurrencyLimitLayer::new(1)).await;
    below(tower_0_4::limit::ConcurrencyLimitLayer::new(1)).await;
    below(tower_0_4::timeout::TimeoutLayer::new(Duration::from_secs(
        30,
    )))
    .await;
}

#[tokio::test]
async fn timeout() {
    above(TimeoutLayer::new(Duration::from_secs(30))).await;
    below(TimeoutLayer::new(Duration::from_secs(30))).await;
}

#[tokio::test]
async fn follow_redirect() {
    above(FollowRedirectLayer::new()).await;
    below(FollowRedirectLayer::new()).await;
}

#[tokio::test]
async fn trace() {
    above(TraceLayer::new_for_http()).await;
    below(TraceLayer::new_for_http()).await;
}

#[tokio::test]
async fn decompression() {
    above(DecompressionLayer::new()).await;
    below(DecompressionLayer::new()).await;
}

#[tokio::test]
async fn optional_layer() {
    for with_tokens in [true, false] {
        let servers = Servers::start().await;
        let layer = with_tokens.then(|| credentials(&servers));
        let service = ServiceBuilder::new()
            .option_layer(layer)
            .map_err(BoxError::from)
            .service(http());

        let request = Request::get(servers.url("/late/1")).body(Full::default());
        let response = in_time(service.oneshot(request.unwrap())).await.unwrap();

        assert_eq!(response.status() == StatusCode::OK, with_tokens);
        assert_eq!(servers.issued(), if with_tokens { 2 } else { 0 });
    }
}

#[tokio::test]
async fn boxed_stack_in_a_struct() {
    type Api = BoxCloneSyncService<Request<Full<Bytes>>, Response<Incoming>, BoxError>;

    let servers = Servers::start().await;
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(Duration::from_secs(60)))
        .layer(credentials(&servers))
        .service(http());
    let api: Api = BoxCloneSyncService::new(service);

    let calls = (0..100).map(|number| {
        let url = servers.url(&format!("/late/{number}"));
        let api = api.clone();
        tokio::spawn(async move {
            let request = Request::get(url).body(Full::default())?;
            Ok::<_, BoxError>(api.oneshot(request).await?.status())
        })
    });
    for status in in_time(futures_util::future::join_all(calls)).await {
        assert_eq!(status.unwrap().unwrap(), StatusCode::OK);
    }
    assert_eq!(servers.issued(), 2);
}

#[tokio::test]
async fn all_layers_in_the_recommended_order() {
    let servers = Servers::start().await;

    let service = ServiceBuilder::new()
        .layer(BufferLayer::new(8))
        .layer(TraceLayer::new_for_http())
        .layer(TimeoutLayer::new(Duration::from_secs(30)))
        .layer(credentials(&servers))
        .layer(RetryLayer::new(WhileBusy { retries_left: 2 }))
        .layer(FollowRedirectLayer::new())
        .layer(DecompressionLayer::new())
        .layer(ConcurrencyLimitLayer::new(8))
        .service(http());

    assert_replayed(service, &servers).await;
}

/// Retries after a 503.
#[derive(Clone)]
struct WhileBusy {
    retries_left: usize,
}

impl<B: Clone, ResBody, E> Policy<Request<B>, Response<ResBody>, E> for WhileBusy {
    type Future = std::future::Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<B>,
        outcome: &mut Result<Response<ResBody>, E>,
    ) -> Option<Self::Future> {
        let is_busy =
            matches!(outcome, Ok(response) if response.status() == StatusCode::SERVICE_UNAVAILABLE);
        let may_retry = is_busy && self.retries_left > 0;
        self.retries_left = self.retries_left.saturating_sub(1);
        may_retry.then(|| std::future::ready(()))
    }

    fn clone_request(&mut self, request: &Request<B>) -> Option<Request<B>> {
        Some(request.clone())
    }
}

#[tokio::test]
async fn retry() {
    let busy = RetryLayer::new(WhileBusy { retries_left: 2 });
    above(busy.clone()).await;
    below(busy.clone()).await;

    for is_above in [true, false] {
        let statuses = [401, 503, 200].map(|status| status.try_into().unwrap());
        let (servers, seen) = responding_with(statuses).await;
        let request = Request::get(servers.url("/"))
            .body(Full::default())
            .unwrap();

        let builder = ServiceBuilder::new();
        let response = if is_above {
            let service = builder
                .layer(busy.clone())
                .layer(credentials(&servers))
                .service(http());
            in_time(service.oneshot(request)).await.unwrap()
        } else {
            let service = builder
                .layer(credentials(&servers))
                .layer(busy.clone())
                .service(http());
            in_time(service.oneshot(request)).await.unwrap()
        };

        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(
            tokens(&seen),
            ["Bearer token-1", "Bearer token-2", "Bearer token-2"]
        );
    }
}

/// The headers of the requests that a server received.
type Seen = Arc<Mutex<Vec<HeaderMap>>>;

/// Starts an API that responds with one status after the other.
async fn responding_with(statuses: impl IntoIterator<Item = StatusCode>) -> (Servers, Seen) {
    let statuses = statuses.into_iter().collect::<VecDeque<_>>();
    let statuses = Arc::new(Mutex::new(statuses));
    let seen = Seen::default();
    let api = Loopback::start({
        let seen = Arc::clone(&seen);
        move |request: Request<Incoming>| {
            seen.lock().unwrap().push(request.headers().clone());
            let mut response = Response::new(text(""));
            *response.status_mut() = statuses.lock().unwrap().pop_front().unwrap();
            async { response }
        }
    })
    .await;
    (Servers::with_api(api).await, seen)
}

/// Returns the token of each request, or an empty string for requests without one.
fn tokens(seen: &Seen) -> Vec<String> {
    let seen = seen.lock().unwrap();
    let token =
        |headers: &HeaderMap| Some(headers.get(AUTHORIZATION)?.to_str().unwrap().to_owned());
    seen.iter()
        .map(|headers| token(headers).unwrap_or_default())
        .collect()
}

/// Starts an API that redirects to another host.
async fn redirecting_to(other: &Loopback) -> Servers {
    let location = other.url("/");
    let api = Loopback::start(move |_| {
        let response = Response::builder().status(StatusCode::TEMPORARY_REDIRECT);
        let response = response
            .header("location", &location)
            .body(text(""))
            .unwrap();
        async { response }
    })
    .await;
    Servers::with_api(api).await
}

/// Starts another host, which must not receive a token.
async fn other_host() -> (Loopback, Seen) {
    let seen = Seen::default();
    let server = Loopback::start({
        let seen = Arc::clone(&seen);
        move |request: Request<Incoming>| {
            seen.lock().unwrap().push(request.headers().clone());
            async { Response::new(text("")) }
        }
    })
    .await;
    (server, seen)
}

#[tokio::test]
async fn redirect_follower_below_keeps_the_token_from_another_host() {
    let (other, seen) = other_host().await;
    let servers = redirecting_to(&other).await;
    let request = Request::get(servers.url("/"))
        .body(Full::default())
        .unwrap();

    let service = ServiceBuilder::new()
        .layer(credentials(&servers))
        .layer(FollowRedirectLayer::new())
        .service(http());
    in_time(service.oneshot(request)).await.unwrap();

    assert_eq!(tokens(&seen), [""]);
}

/// This is why the follower belongs below: it removes the header, and the layer adds it again.
#[tokio::test]
async fn redirect_follower_above_carries_the_token_to_another_host() {
    let (other, seen) = other_host().await;
    let servers = redirecting_to(&other).await;
    let request = Request::get(servers.url("/"))
        .body(Full::default())
        .unwrap();

    let service = ServiceBuilder::new()
        .layer(FollowRedirectLayer::new())
        .layer(credentials(&servers))
        .service(http());
    in_time(service.oneshot(request)).await.unwrap();

    assert_eq!(tokens(&seen), ["Bearer token-1"]);
}

/// A redirect to a login page is a rejection, which a follower of all redirects would hide.
#[tokio::test]
async fn redirect_follower_below_that_stays_at_its_origin_shows_rejections() {
    let (login, _) = other_host().await;
    let location = login.url("/login");
    let api = Loopback::start(move |request: Request<Incoming>| {
        let mut response = Response::new(text("accepted"));
        if request.headers()[AUTHORIZATION] == "Bearer token-1" {
            *response.status_mut() = StatusCode::FOUND;
            let location = location.parse().unwrap();
            response.headers_mut().insert("location", location);
        }
        async { response }
    })
    .await;
    let servers = Servers::with_api(api).await;
    let request = Request::get(servers.url("/"))
        .body(Full::default())
        .unwrap();

    let service = ServiceBuilder::new()
        .layer(credentials(&servers).rejected_when(|response| response.status.is_redirection()))
        .layer(FollowRedirectLayer::with_policy(SameOrigin::new()))
        .service(http());
    let response = in_time(service.oneshot(request)).await.unwrap();

    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "accepted");
}

/// With `allowed_origins`, the follower may be above.
#[tokio::test]
async fn allowed_origins_keep_the_token_from_another_host_below_a_redirect_follower() {
    let (other, seen) = other_host().await;
    let servers = redirecting_to(&other).await;
    let request = Request::get(servers.url("/"))
        .body(Full::default())
        .unwrap();

    let service = ServiceBuilder::new()
        .layer(FollowRedirectLayer::new())
        .layer(
            credentials(&servers)
                .allowed_origins([servers.url("/")])
                .unwrap(),
        )
        .service(http());
    let response = in_time(service.oneshot(request)).await.unwrap();

    assert_eq!(tokens(&seen), [""]);
    let outcome = response.extensions().get::<TokenOutcome>().unwrap();
    assert_eq!(outcome.omitted(), Some(TokenOmitted::OtherOrigin));
}

/// "compressed", compressed with gzip.
const GZIP: &[u8] = &[
    0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0x4b, 0xce, 0xcf, 0x2d, 0x28, 0x4a,
    0x2d, 0x2e, 0x4e, 0x4d, 0x01, 0x00, 0x1e, 0x4b, 0x56, 0x97, 0x0a, 0x00, 0x00, 0x00,
];

#[tokio::test]
async fn decompression_above_and_below_gives_plain_text() {
    let api = Loopback::start(|request: Request<Incoming>| async move {
        assert_eq!(request.headers()["accept-encoding"], "gzip");
        let response = Response::builder().header("content-encoding", "gzip");
        response.body(text(GZIP)).unwrap()
    })
    .await;
    let servers = Servers::with_api(api).await;
    let request = || {
        Request::get(servers.url("/"))
            .body(Full::<Bytes>::default())
            .unwrap()
    };

    let builder = ServiceBuilder::new();
    let above = builder
        .layer(DecompressionLayer::new())
        .layer(credentials(&servers))
        .service(http());
    let builder = ServiceBuilder::new();
    let below = builder
        .layer(credentials(&servers))
        .layer(DecompressionLayer::new())
        .service(http());

    let response = in_time(above.oneshot(request())).await.unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "compressed"
    );
    let response = in_time(below.oneshot(request())).await.unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "compressed"
    );
}

/// A client with a single HTTP/1.1 connection, which isn't ready until its last response was read.
struct OnlyConnection(SendRequest<Full<Bytes>>);

impl OnlyConnection {
    async fn open(url: &str) -> Self {
        let address = url.trim_start_matches("http://").trim_end_matches('/');
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }
}

impl Service<Request<Full<Bytes>>> for OnlyConnection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, hyper::Result<Response<Incoming>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// A 401 with a body of this length.
fn rejection_of(len: usize, is_chunked: bool) -> Response<Bytes> {
    let mut rejection = Response::builder().status(StatusCode::UNAUTHORIZED);
    if is_chunked {
        rejection = rejection.header("transfer-encoding", "chunked");
    }
    rejection.body(Bytes::from(vec![b'x'; len])).unwrap()
}

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn rejection_leaves_the_only_connection_to_the_replay() {
    for len in [0, 70, 64 * 1024, MIB, 10 * MIB] {
        for is_chunked in [false, true] {
            let servers = Servers::with_rejection(rejection_of(len, is_chunked)).await;
            let connection = OnlyConnection::open(&servers.url("/")).await;

            let service = ServiceBuilder::new()
                .layer(credentials(&servers))
                .layer(BufferLayer::new(1))
                .layer(ConcurrencyLimitLayer::new(1))
                .service(connection);
            assert_replayed(service, &servers).await;

            assert_eq!(servers.connections().accepted(), 1, "{len}, {is_chunked}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejection_leaves_the_only_connection_to_the_replay_on_many_threads() {
    for is_chunked in [false, true] {
        let servers = Servers::with_rejection(rejection_of(MIB, is_chunked)).await;
        let connection = OnlyConnection::open(&servers.url("/")).await;

        let service = ServiceBuilder::new()
            .layer(credentials(&servers))
            .layer(BufferLayer::new(8))
            .service(connection);
        assert_replayed(service, &servers).await;
    }
}

/// A pool that lends its only connection to one call at a time, until the response was read.
#[derive(Clone)]
struct PoolOfOne(Arc<tokio::sync::Mutex<OnlyConnection>>);

impl Service<Request<Full<Bytes>>> for PoolOfOne {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, hyper::Result<Response<Incoming>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        let pool = Arc::clone(&self.0);
        Box::pin(async move {
            let mut connection = pool.lock_owned().await;
            connection.ready().await?.call(request).await
        })
    }
}

#[tokio::test]
async fn rejection_leaves_the_connection_of_a_pool_of_one_to_the_replay() {
    for len in [70, MIB] {
        let servers = Servers::with_rejection(rejection_of(len, false)).await;
        let connection = OnlyConnection::open(&servers.url("/")).await;
        let pool = PoolOfOne(Arc::new(tokio::sync::Mutex::new(connection)));

        let service = ServiceBuilder::new()
            .layer(credentials(&servers))
            .service(pool);
        assert_replayed(service, &servers).await;
    }
}

/// The API and the token endpoint share a connection, on which the rejection is in the way of the
/// token request.
#[tokio::test]
async fn rejection_leaves_the_only_connection_to_the_token_request() {
    for len in [0, 70, MIB] {
        let issued = Arc::new(Mutex::new(0));
        let rejection = rejection_of(len, false);
        let server = Loopback::start(move |request: Request<Incoming>| {
            let response = if request.uri().path() == "/token" {
                let mut issued = issued.lock().unwrap();
                *issued += 1;
                let reply = format!(r#"{{"access_token":"token-{issued}","expires_in":1800}}"#);
                Response::new(text(reply))
            } else if request.headers()[AUTHORIZATION] == "Bearer token-1" {
                rejection.clone().map(text)
            } else {
                Response::new(text("accepted"))
            };
            async { response }
        })
        .await;
        let http = Buffer::new(OnlyConnection::open(&server.url("/")).await, 8);
        let auth = ClientAuth::client_secret_post("id", "secret");
        let tokens = TokenEndpoint::new(http.clone(), server.url("/token"), auth).unwrap();
        let service = ClientCredentialsLayer::new(tokens).layer(http);
        let request = Request::get(server.url("/")).body(Full::default()).unwrap();

        let started_at = Instant::now();
        let response = in_time(service.oneshot(request)).await.unwrap();

        assert_eq!(response.status(), StatusCode::OK, "{len} bytes");
        assert!(
            started_at.elapsed() < Duration::from_secs(10),
            "{len} bytes"
        );
    }
}
