//! What a replay repeats, and the reason when there is none.

mod support;

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, mpsc},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version,
    header::AUTHORIZATION,
};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Either, Empty, Full, StreamBody};
use support::{Issuer, rejection};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    ClientCredentialsLayer, Error, NotReplayed, TokenCache, TokenOutcome,
    replay::{Buffered, CloneBody, CloneWith, ReplayPolicy},
};

#[derive(Clone, Debug, PartialEq)]
struct Mark(u32);

/// The requests that reached an API.
type Seen = Arc<Mutex<Vec<(http::request::Parts, Bytes)>>>;

/// An API that reads each request body to its end and accepts only "token-2".
fn reading_api<B>(
    seen: Seen,
) -> impl Service<Request<B>, Response = Response<String>, Error = BoxError> + Clone
where
    B: Body<Error: Into<BoxError>>,
{
    service_fn(move |request: Request<B>| {
        let seen = seen.clone();
        async move {
            let (head, body) = request.into_parts();
            let is_accepted = head.headers[AUTHORIZATION] == "Bearer token-2";
            let body = body.collect().await.map_err(Into::into)?.to_bytes();
            seen.lock().unwrap().push((head, body));
            Ok(if is_accepted {
                Response::new(String::new())
            } else {
                rejection()
            })
        }
    })
}

/// Sends a request whose first token is rejected. Returns the response and the requests that
/// reached the API.
async fn send<R, B>(policy: R, body: B) -> (Response<String>, Vec<(http::request::Parts, Bytes)>)
where
    R: ReplayPolicy<B> + Clone,
    R::Body: Body<Error: Into<BoxError>>,
{
    let seen = Seen::default();
    let service = ClientCredentialsLayer::new(Issuer::new().service())
        .replay(policy)
        .layer(reading_api(seen.clone()));
    let mut request = Request::put("https://api.example/items/7?part=2")
        .body(body)
        .unwrap();
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().append("x-a", "1".parse().unwrap());
    request.headers_mut().append("x-a", "2".parse().unwrap());
    request.extensions_mut().insert(Mark(7));
    let response = service.oneshot(request).await.unwrap();
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    (response, seen)
}

#[tokio::test(start_paused = true)]
async fn replay_repeats_the_first_send_with_another_token() {
    let (response, seen) = send(CloneBody, Full::new(Bytes::from("name=Ada"))).await;

    assert_eq!(response.status(), StatusCode::OK);
    let [(first, first_body), (second, second_body)] = &seen[..] else {
        panic!("{} sends", seen.len());
    };
    assert_eq!(first_body, "name=Ada");
    assert_eq!(first_body, second_body);
    assert_eq!(first.method, second.method);
    assert_eq!(first.uri, second.uri);
    assert_eq!(first.version, second.version);
    assert_eq!(second.extensions.get(), Some(&Mark(7)));
    assert_eq!(second.headers.get_all("x-a").iter().count(), 2);
    assert_eq!(first.headers.len(), second.headers.len());
    assert_eq!(second.headers.get_all(AUTHORIZATION).iter().count(), 1);
    assert!(second.headers[AUTHORIZATION].is_sensitive());
}

/// A policy that never keeps a body, and sends a body of another type than it gets.
#[derive(Clone)]
struct UpperCase;

impl ReplayPolicy<&'static str> for UpperCase {
    type Body = String;
    type Kept = Infallible;

    fn split(&self, body: &'static str) -> (String, Option<Infallible>) {
        (body.to_uppercase(), None)
    }

    fn restore(&self, kept: &mut Infallible) -> Option<String> {
        match *kept {}
    }
}

#[tokio::test(start_paused = true)]
async fn custom_policy_that_keeps_nothing_can_change_the_body() {
    for is_warm in [false, true] {
        let cache = Issuer::new().cache();
        if is_warm {
            cache.token().await.unwrap();
        }
        let seen = Seen::default();
        let service = ClientCredentialsLayer::with_cache(cache)
            .replay(UpperCase)
            .layer(reading_api(seen.clone()));

        let response = service.oneshot(Request::new("name=ada")).await.unwrap();

        let outcome = response.extensions().get::<TokenOutcome>().unwrap();
        assert!(matches!(
            outcome.not_replayed(),
            Some(NotReplayed::BodyNotKept)
        ));
        let seen = seen.lock().unwrap();
        let [(head, body)] = &seen[..] else {
            panic!("{} sends", seen.len());
        };
        assert_eq!(head.headers[AUTHORIZATION], "Bearer token-1");
        assert_eq!(body, "NAME=ADA");
    }
}

fn listed(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
    let headers = headers.iter();
    headers
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect()
}

/// With and without a wait for the first token.
#[tokio::test(start_paused = true)]
async fn replay_repeats_all_headers_however_many() {
    for (is_warm, count) in (0..8).flat_map(|count| [(false, count), (true, count)]) {
        let cache = TokenCache::new(Issuer::new().service());
        if is_warm {
            cache.token().await.unwrap();
        }
        let seen = Seen::default();
        let service = ClientCredentialsLayer::with_cache(cache).layer(reading_api(seen.clone()));
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = "https://api.example/items".parse().unwrap();
        for n in 0..count {
            // Two values for each name, or one for the last.
            let name: HeaderName = format!("x-{}", n / 2).parse().unwrap();
            request.headers_mut().append(name, n.into());
        }
        let own = listed(request.headers());

        let response = service.oneshot(request).await.unwrap();

        assert_eq!(response.status(), StatusCode::OK);
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(seen.len(), 2);
        for ((head, _), token) in seen.iter().zip(["Bearer token-1", "Bearer token-2"]) {
            let mut expected = own.clone();
            expected.push(("authorization".to_owned(), token.to_owned()));
            assert_eq!(listed(&head.headers), expected, "warm: {is_warm}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn empty_bodies_are_replayed() {
    let (response, seen) = send(CloneBody, Empty::<Bytes>::new()).await;

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(seen.len(), 2);
}

/// A body that isn't `Clone`. Streams can't be copied at all, as with kube and reqwest.
struct ClientBody {
    data: Option<Bytes>,
    is_stream: bool,
}

impl ClientBody {
    fn try_clone(&self) -> Option<Self> {
        let copy = Self {
            data: self.data.clone(),
            is_stream: false,
        };
        (!self.is_stream).then_some(copy)
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.data.take().map(|data| Ok(Frame::data(data))))
    }
}

#[tokio::test(start_paused = true)]
async fn clone_with_replays_what_its_function_copies() {
    let body = ClientBody {
        data: Some("name=Ada".into()),
        is_stream: false,
    };

    let (response, seen) = send(CloneWith(ClientBody::try_clone), body).await;

    assert_eq!(response.status(), StatusCode::OK);
    assert!(seen.iter().all(|(_, body)| body == "name=Ada"));
    assert_eq!(seen.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn body_that_cannot_be_copied_is_sent_once() {
    let body = ClientBody {
        data: Some("name=Ada".into()),
        is_stream: true,
    };

    let (response, seen) = send(CloneWith(ClientBody::try_clone), body).await;

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(response.body(), rejection().body());
    assert!(matches!(
        response
            .extensions()
            .get::<TokenOutcome>()
            .and_then(TokenOutcome::not_replayed),
        Some(NotReplayed::BodyNotKept)
    ));
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].1, "name=Ada");
}

/// A body whose clones share a source, as with octocrab. It reports the size of what is left.
#[derive(Clone)]
struct Shallow(Arc<Mutex<Option<Bytes>>>);

impl Body for Shallow {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(
            self.0
                .lock()
                .unwrap()
                .take()
                .map(|data| Ok(Frame::data(data))),
        )
    }

    fn size_hint(&self) -> SizeHint {
        let data = self.0.lock().unwrap();
        SizeHint::with_exact(data.as_ref().map_or(0, |data| data.len() as u64))
    }
}

#[tokio::test(start_paused = true)]
async fn clone_that_shares_its_source_is_not_replayed() {
    let body = Shallow(Arc::new(Mutex::new(Some("name=Ada".into()))));

    let (response, seen) = send(CloneBody, body).await;

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(matches!(
        response
            .extensions()
            .get::<TokenOutcome>()
            .and_then(TokenOutcome::not_replayed),
        Some(NotReplayed::BodyShared)
    ));
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].1, "name=Ada");
}

/// The reason why the request with this body was sent only once.
fn reason<ResBody>(response: &Response<ResBody>) -> &NotReplayed {
    let outcome = response.extensions().get::<TokenOutcome>();
    let reason = outcome.and_then(TokenOutcome::not_replayed);
    reason.expect("the response says why the request was sent once")
}

/// As [`Shallow`], but it reports the size of the whole body, however much is left.
#[derive(Clone)]
struct ShallowOfFixedSize(Shallow);

impl Body for ShallowOfFixedSize {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.0.lock().unwrap().is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(8)
    }
}

#[tokio::test(start_paused = true)]
async fn clone_that_reports_another_end_than_before_is_not_replayed() {
    let shallow = Shallow(Arc::new(Mutex::new(Some("name=Ada".into()))));

    let (response, seen) = send(CloneBody, ShallowOfFixedSize(shallow)).await;

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(matches!(reason(&response), NotReplayed::BodyShared));
    assert_eq!(seen.len(), 1);
}

/// A stream over a receiver that all clones share. It reports the given size of what is left, and
/// its end if it has ended from the start.
#[derive(Clone)]
struct SharedStream {
    frames: Arc<Mutex<mpsc::Receiver<Bytes>>>,
    size: Bounds,
    has_ended: bool,
}

impl SharedStream {
    fn of<const N: usize>(frames: [&'static str; N], size: Bounds) -> Self {
        let (sender, receiver) = mpsc::channel();
        for frame in frames {
            sender.send(Bytes::from(frame)).unwrap();
        }
        Self {
            frames: Arc::new(Mutex::new(receiver)),
            size,
            has_ended: N == 0,
        }
    }
}

impl Body for SharedStream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = self.frames.lock().unwrap().try_recv().ok();
        Poll::Ready(frame.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }

    fn size_hint(&self) -> SizeHint {
        let (lower, upper) = self.size;
        let mut size = SizeHint::new();
        size.set_lower(lower);
        if let Some(upper) = upper {
            size.set_upper(upper);
        }
        size
    }
}

/// The least and the most bytes that a body may have.
type Bounds = (u64, Option<u64>);

const UNKNOWN: Bounds = (0, None);

/// An API that reads one frame of the first body before it rejects the token, and the second body
/// to its end.
fn api_reading_one_frame(
    seen: Seen,
) -> impl Service<Request<SharedStream>, Response = Response<String>, Error = BoxError> + Clone {
    let reading = reading_api(seen.clone());
    service_fn(move |request: Request<SharedStream>| {
        let (reading, seen) = (reading.clone(), seen.clone());
        async move {
            if request.headers()[AUTHORIZATION] == "Bearer token-2" {
                return reading.oneshot(request).await;
            }
            let (head, mut body) = request.into_parts();
            let frame = body.frame().await.unwrap()?.into_data().unwrap();
            seen.lock().unwrap().push((head, frame));
            Ok(rejection())
        }
    })
}

#[tokio::test(start_paused = true)]
async fn clone_of_unknown_size_is_not_replayed() {
    for size in [UNKNOWN, (2, None), (0, Some(8)), (2, Some(8))] {
        let body = || SharedStream::of(["name", "=Ada"], size);

        let (response, seen) = send(CloneBody, body()).await;

        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert!(matches!(reason(&response), NotReplayed::BodySizeUnknown));
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].1, "name=Ada");

        let seen = Seen::default();
        let service = ClientCredentialsLayer::new(Issuer::new().service())
            .layer(api_reading_one_frame(seen.clone()));
        let response = service.oneshot(support::request().map(|_| body())).await;

        assert!(matches!(
            reason(&response.unwrap()),
            NotReplayed::BodySizeUnknown
        ));
        assert_eq!(seen.lock().unwrap().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn rejected_token_of_a_body_of_unknown_size_is_renewed_for_the_next_call() {
    let issuer = Issuer::new();
    let service = ClientCredentialsLayer::new(issuer.service()).layer(reading_api(Seen::default()));
    let request = || support::request().map(|_| SharedStream::of(["a"], UNKNOWN));

    let first = service.clone().oneshot(request()).await.unwrap();
    let second = service.oneshot(request()).await.unwrap();

    assert_eq!(first.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(second.status(), StatusCode::OK);
    assert_eq!(issuer.requests(), 2);
}

/// Sends a body whose first token is rejected, and expects that all of it arrives twice.
async fn assert_replayed<B>(body: B, data: &str)
where
    B: Body<Error: Into<BoxError>> + Clone,
{
    let (response, seen) = send(CloneBody, body).await;

    assert_eq!(response.status(), StatusCode::OK, "{data}");
    assert_eq!(seen.len(), 2, "{data}");
    assert!(seen.iter().all(|(_, body)| body == data), "{data}");
}

#[tokio::test(start_paused = true)]
async fn clone_of_exact_size_is_replayed_and_so_is_a_body_that_has_ended() {
    let full = || Full::new(Bytes::from("name=Ada"));
    assert_replayed(full(), "name=Ada").await;
    assert_replayed(Full::new(Bytes::new()), "").await;
    assert_replayed(Either::<_, Empty<Bytes>>::Left(full()), "name=Ada").await;
    assert_replayed(full().map_err(BoxError::from), "name=Ada").await;
    assert_replayed(Empty::<Bytes>::new(), "").await;
    assert_replayed("name=Ada".to_owned(), "name=Ada").await;
    assert_replayed(String::new(), "").await;
    // Nothing can be lost of a body that reports its end, whatever it says about its size.
    assert_replayed(SharedStream::of([], UNKNOWN), "").await;
}

/// Reads a body to its end.
async fn read<B: Body<Data = Bytes, Error: std::fmt::Debug>>(body: B) -> Bytes {
    body.collect().await.unwrap().to_bytes()
}

#[tokio::test]
async fn cloned_body_can_be_replayed_twice() {
    let (first, kept) = CloneBody.split(Full::new(Bytes::from("name=Ada")));
    assert_eq!(read(first).await, "name=Ada");
    let mut kept = kept.unwrap();

    for _ in 0..2 {
        let replay = CloneBody.restore(&mut kept).unwrap();
        assert_eq!(read(replay).await, "name=Ada");
    }
}

#[tokio::test]
async fn copied_body_can_be_replayed_twice() {
    let policy = CloneWith(ClientBody::try_clone);
    let (first, kept) = policy.split(ClientBody {
        data: Some("name=Ada".into()),
        is_stream: false,
    });
    assert_eq!(read(first).await, "name=Ada");
    let mut kept = kept.unwrap();

    for _ in 0..2 {
        let replay = policy.restore(&mut kept).unwrap();
        assert_eq!(read(replay).await, "name=Ada");
    }
}

/// The first replay, sent before the first body was read, empties the source of the kept clone.
#[tokio::test]
async fn clone_that_shares_its_source_with_the_first_replay_is_not_replayed_again() {
    let body = Shallow(Arc::new(Mutex::new(Some("name=Ada".into()))));
    let (_first, kept) = CloneBody.split(body);
    let mut kept = kept.unwrap();

    let replay = CloneBody.restore(&mut kept).unwrap();
    assert_eq!(read(replay).await, "name=Ada");

    assert!(CloneBody.restore(&mut kept).is_none());
}

/// An HTTP client may read the first body until long after the API has answered.
#[tokio::test(start_paused = true)]
async fn clone_whose_source_is_read_during_the_renewal_is_not_replayed() {
    for size in ["live", "fixed"] {
        let (seen, reading) = (Seen::default(), reading_api(Seen::default()));
        let api = service_fn({
            let seen = seen.clone();
            move |request: Request<Sizes>| {
                let (head, body) = request.into_parts();
                seen.lock().unwrap().push((head.clone(), Bytes::new()));
                let reading = reading.clone();
                async move {
                    if head.headers[AUTHORIZATION] == "Bearer token-1" {
                        tokio::spawn(async move {
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            assert_eq!(read(body).await, "name=Ada");
                        });
                        return Ok(rejection());
                    }
                    reading.oneshot(Request::from_parts(head, body)).await
                }
            }
        });
        let issuer = Issuer::new().latency(Duration::from_millis(200));
        let service = ClientCredentialsLayer::new(issuer.service()).layer(api);
        let shallow = Shallow(Arc::new(Mutex::new(Some("name=Ada".into()))));
        let body = match size {
            "live" => Sizes::Left(shallow),
            _ => Sizes::Right(ShallowOfFixedSize(shallow)),
        };

        let error = service.oneshot(support::request().map(|_| body)).await;

        let error = error.unwrap_err().downcast::<Error>().unwrap();
        assert!(error.is_body_changed(), "{error}");
        assert_eq!(error.rejected_status(), Some(StatusCode::UNAUTHORIZED));
        assert_eq!(error.waited(), Some(Duration::from_millis(400)));
        assert_eq!(seen.lock().unwrap().len(), 1, "{size}");
    }
}

/// A shallow body that reports what is left, or the size of the whole.
type Sizes = Either<Shallow, ShallowOfFixedSize>;

/// A body whose `Debug` shows its data.
type Shown = Full<Bytes>;

#[test]
fn debug_of_what_is_kept_shows_no_body() {
    let body = Shown::new(Bytes::from("BODY-MARK"));
    assert!(format!("{body:?}").contains("BODY-MARK"));
    let longer = StreamBody::new(futures_util::stream::iter(
        ["BODY-MARK", "BODY-MARK"].map(|data| Ok::<_, BoxError>(Frame::data(Bytes::from(data)))),
    ));

    let kept = [
        format!("{:#?}", CloneBody.split(body.clone()).1.unwrap()),
        format!(
            "{:#?}",
            CloneWith(|body: &Shown| Some(body.clone()))
                .split(body.clone())
                .1
                .unwrap()
        ),
        format!("{:#?}", Buffered::new(1024).split(body).1.unwrap()),
        format!("{:#?}", Buffered::new(1024).split(longer).1.unwrap()),
    ];

    for shown in kept {
        assert!(!shown.contains("BODY-MARK"), "{shown}");
    }
}

/// A response body without an end, which counts the bytes that are read.
struct Endless(Arc<Mutex<usize>>);

impl Body for Endless {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        *self.0.lock().unwrap() += 1024;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 1024])))))
    }
}

/// An API that rejects the first token with an endless body, and takes a while to accept another.
fn endless_api(
    version: Version,
    latency: Duration,
    read: &Arc<Mutex<usize>>,
) -> impl Service<Request<String>, Response = Response<Endless>, Error = BoxError> + Clone + use<> {
    let read = read.clone();
    service_fn(move |request: Request<String>| {
        let mut response = Response::new(Endless(read.clone()));
        *response.version_mut() = version;
        let is_rejected = request.headers()[AUTHORIZATION] != "Bearer token-2";
        if is_rejected {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
        }
        async move {
            if !is_rejected && !latency.is_zero() {
                tokio::time::sleep(latency).await;
            }
            Ok::<_, BoxError>(response)
        }
    })
}

const KIB: usize = 1024;

/// The rest of it is read while the second send waits, because it may wait for the connection of the
/// rejection. With HTTP/2, it does not.
#[tokio::test(start_paused = true)]
async fn endless_rejection_is_dropped() {
    let long = Duration::from_secs(60);
    for (version, latency, most) in [
        (Version::HTTP_2, Duration::ZERO, 64 * KIB),
        (Version::HTTP_2, long, 64 * KIB),
        (Version::HTTP_11, Duration::ZERO, 4 * 64 * KIB),
        (Version::HTTP_11, long, 16 * 1024 * KIB),
    ] {
        let read = Arc::default();
        let api = endless_api(version, latency, &read);
        let service = ClientCredentialsLayer::new(Issuer::new().service()).layer(api);

        let response = service.oneshot(support::request()).await.unwrap();

        assert_eq!(response.status(), StatusCode::OK);
        let read = *read.lock().unwrap();
        assert!(
            (64 * KIB..=most).contains(&read),
            "{version:?}, {latency:?}: {read}"
        );
    }
}

/// An inner service that is not ready until the rejection was read or dropped, and then fails if it
/// was dropped.
#[derive(Clone)]
struct OnlyConnection {
    state: Arc<Mutex<ConnectionState>>,
}

#[derive(Default)]
struct ConnectionState {
    is_busy: bool,
    is_closed: bool,
    waiting: Option<Waker>,
    frames: VecDeque<Bytes>,
}

/// The response body of the only connection.
struct OnlyBody {
    connection: OnlyConnection,
    /// One frame arrives in each interval.
    arrivals: Pin<Box<tokio::time::Interval>>,
    has_ended: bool,
}

impl OnlyConnection {
    fn free(&self, is_closed: bool) {
        let waiting = {
            let mut state = self.state.lock().unwrap();
            state.is_busy = false;
            state.is_closed |= is_closed;
            state.waiting.take()
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Body for OnlyBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        ready!(self.arrivals.poll_tick(cx));
        let frame = self.connection.state.lock().unwrap().frames.pop_front();
        if frame.is_none() {
            self.has_ended = true;
            self.connection.free(false);
        }
        Poll::Ready(frame.map(|frame| Ok(Frame::data(frame))))
    }
}

impl Drop for OnlyBody {
    fn drop(&mut self) {
        if !self.has_ended {
            self.connection.free(true);
        }
    }
}

impl Service<Request<String>> for OnlyConnection {
    type Response = Response<OnlyBody>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Response<OnlyBody>, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let mut state = self.state.lock().unwrap();
        if state.is_closed {
            return Poll::Ready(Err("connection closed".into()));
        }
        if state.is_busy {
            state.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<String>) -> Self::Future {
        self.state.lock().unwrap().is_busy = true;
        let mut response = Response::new(OnlyBody {
            connection: self.clone(),
            arrivals: Box::pin(tokio::time::interval(Duration::from_millis(10))),
            has_ended: false,
        });
        if request.headers()[AUTHORIZATION] == "Bearer token-1" {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
        }
        std::future::ready(Ok(response))
    }
}

/// Name, frames of 1 KiB that arrive every 10 ms, duration of the renewal, and whether the request can
/// be sent again.
#[tokio::test(start_paused = true)]
async fn rejection_is_read_to_its_end_if_the_service_waits_for_that() {
    for (name, frames, renewal, is_replayed) in [
        ("empty", 0, 100, true),
        ("short", 3, 100, true),
        ("4 s long", 400, 100, true),
        ("4 s long, slow renewal", 400, 2000, true),
        ("10 s long", 1000, 100, false),
    ] {
        let frame = Bytes::from_static(&[0; KIB]);
        let connection = OnlyConnection {
            state: Arc::new(Mutex::new(ConnectionState {
                frames: vec![frame; frames].into(),
                ..ConnectionState::default()
            })),
        };
        let issuer = Issuer::new().latency(Duration::from_millis(renewal));
        let service = ClientCredentialsLayer::new(issuer.service()).layer(connection);

        let result = service.oneshot(support::request()).await;

        match result {
            Ok(response) => {
                assert!(is_replayed, "{name}");
                assert_eq!(response.status(), StatusCode::OK, "{name}");
            }
            Err(error) => {
                assert!(!is_replayed, "{name}");
                assert_eq!(error.to_string(), "connection closed", "{name}");
            }
        }
    }
}

/// A response body whose frames another task sends one by one, as HTTP clients do.
struct Received(tokio::sync::mpsc::Receiver<Bytes>);

impl Body for Received {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0
            .poll_recv(cx)
            .map(|data| data.map(|data| Ok(Frame::data(data))))
    }
}

/// An API that rejects "token-1" with the given body, and accepts all other tokens.
fn api_rejecting_with(
    body: Received,
) -> impl Service<Request<String>, Response = Response<Received>, Error = BoxError> + Clone {
    let body = Arc::new(Mutex::new(Some(body)));
    service_fn(move |request: Request<String>| {
        let mut response = Response::new(Received(tokio::sync::mpsc::channel(1).1));
        if request.headers()[AUTHORIZATION] == "Bearer token-1" {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
            *response.body_mut() = body.lock().unwrap().take().unwrap();
        }
        async move { Ok::<_, BoxError>(response) }
    })
}

#[tokio::test(start_paused = true)]
async fn rejection_is_read_to_its_end_while_another_task_sends_it() {
    let (frames, body) = tokio::sync::mpsc::channel(1);
    let sending = tokio::spawn(async move {
        for _ in 0..5 {
            frames.send(Bytes::from("frame")).await.unwrap();
        }
    });
    let api = api_rejecting_with(Received(body));
    let service = ClientCredentialsLayer::new(Issuer::new().service()).layer(api);

    let response = service.oneshot(support::request()).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    sending.await.expect("the body was dropped half-read");
}

#[tokio::test(start_paused = true)]
async fn rejection_without_an_end_does_not_delay_the_replay() {
    let (_frames, body) = tokio::sync::mpsc::channel(1);
    let api = api_rejecting_with(Received(body));
    let service = ClientCredentialsLayer::new(Issuer::new().service()).layer(api);

    let response = service.oneshot(support::request()).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
}
