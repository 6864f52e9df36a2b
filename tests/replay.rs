//! The second send is the first one again, or there is none and a reason.

mod support;

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header::AUTHORIZATION,
};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use support::{Issuer, rejection};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    ClientCredentialsLayer, NotReplayed, TokenCache, TokenOutcome,
    replay::{CloneBody, CloneWith, ReplayPolicy},
};

#[derive(Clone, Debug, PartialEq)]
struct Mark(u32);

/// What an API saw of a request.
type Seen = Arc<Mutex<Vec<(http::request::Parts, Bytes)>>>;

/// An API that reads each request to its end and accepts "token-2" only.
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

/// Sends one request whose first token is refused; returns the response and what the API saw.
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
    *request.version_mut() = http::Version::HTTP_2;
    request.headers_mut().append("x-a", "1".parse().unwrap());
    request.headers_mut().append("x-a", "2".parse().unwrap());
    request.extensions_mut().insert(Mark(7));
    let response = service.oneshot(request).await.unwrap();
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    (response, seen)
}

#[tokio::test(start_paused = true)]
async fn replay_is_the_first_send_again_but_for_the_token() {
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

/// A policy of which nothing can be kept, and that sends another type of body than it is given.
#[derive(Clone)]
struct Shouting;

impl ReplayPolicy<&'static str> for Shouting {
    type Body = String;
    type Kept = Infallible;

    fn split(&self, body: &'static str) -> (String, Option<Infallible>) {
        (body.to_uppercase(), None)
    }

    fn restore(&self, kept: &mut Infallible) -> Option<String> {
        match *kept {}
    }
}

/// As with `NoReplay`, and what it makes of the body is sent.
#[tokio::test(start_paused = true)]
async fn policy_of_ones_own_that_can_keep_nothing_makes_the_body() {
    for is_warm in [false, true] {
        let cache = Issuer::new().cache();
        if is_warm {
            cache.token().await.unwrap();
        }
        let seen = Seen::default();
        let service = ClientCredentialsLayer::with_cache(cache)
            .replay(Shouting)
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

/// Whether the first send had to wait for a token or found one.
#[tokio::test(start_paused = true)]
async fn replay_has_the_headers_of_the_first_send_however_many() {
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
            // Two values for each name, as far as they go.
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

/// A body that is not `Clone`; some of it cannot be copied at all, like kube's and reqwest's.
struct Own {
    data: Option<Bytes>,
    is_stream: bool,
}

impl Own {
    fn try_clone(&self) -> Option<Self> {
        let copy = Self {
            data: self.data.clone(),
            is_stream: false,
        };
        (!self.is_stream).then_some(copy)
    }
}

impl Body for Own {
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
async fn clone_with_copies_by_the_bodys_own_function() {
    let body = Own {
        data: Some("name=Ada".into()),
        is_stream: false,
    };

    let (response, seen) = send(CloneWith(Own::try_clone), body).await;

    assert_eq!(response.status(), StatusCode::OK);
    assert!(seen.iter().all(|(_, body)| body == "name=Ada"));
    assert_eq!(seen.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn body_that_cannot_be_copied_is_sent_once_and_whole() {
    let body = Own {
        data: Some("name=Ada".into()),
        is_stream: true,
    };

    let (response, seen) = send(CloneWith(Own::try_clone), body).await;

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

/// A body whose clones read from the same place, like octocrab's.
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
async fn shallow_clone_is_not_sent() {
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

/// A response body that counts how much of it is read, and has no end.
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

#[tokio::test(start_paused = true)]
async fn rejection_is_read_up_to_64_kib_before_it_is_dropped() {
    let read = Arc::new(Mutex::new(0));
    let counter = read.clone();
    let api = service_fn(move |request: Request<String>| {
        let mut response = Response::new(Endless(counter.clone()));
        if request.headers()[AUTHORIZATION] != "Bearer token-2" {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
        }
        async move { Ok::<_, BoxError>(response) }
    });
    let service = ClientCredentialsLayer::new(Issuer::new().service()).layer(api);

    let response = service.oneshot(support::request()).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(*read.lock().unwrap(), 64 * 1024);
}

/// A response body whose frames another task hands over one by one, as HTTP clients do.
struct HandedOver(tokio::sync::mpsc::Receiver<Bytes>);

impl Body for HandedOver {
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

/// An API that refuses "token-1" with the body that it is given, and accepts all others.
fn api_refusing_with(
    refusal: HandedOver,
) -> impl Service<Request<String>, Response = Response<HandedOver>, Error = BoxError> + Clone {
    let refusal = Arc::new(Mutex::new(Some(refusal)));
    service_fn(move |request: Request<String>| {
        let mut response = Response::new(HandedOver(tokio::sync::mpsc::channel(1).1));
        if request.headers()[AUTHORIZATION] == "Bearer token-1" {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
            *response.body_mut() = refusal.lock().unwrap().take().unwrap();
        }
        async move { Ok::<_, BoxError>(response) }
    })
}

#[tokio::test(start_paused = true)]
async fn rejection_is_read_to_its_end_while_another_task_hands_it_over() {
    let (frames, refusal) = tokio::sync::mpsc::channel(1);
    let handing_over = tokio::spawn(async move {
        for _ in 0..5 {
            frames.send(Bytes::from("frame")).await.unwrap();
        }
    });
    let api = api_refusing_with(HandedOver(refusal));
    let service = ClientCredentialsLayer::new(Issuer::new().service()).layer(api);

    let response = service.oneshot(support::request()).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    handing_over.await.expect("the body was dropped half-read");
}

#[tokio::test(start_paused = true)]
async fn rejection_that_does_not_end_keeps_nobody_waiting() {
    let (_frames, refusal) = tokio::sync::mpsc::channel(1);
    let api = api_refusing_with(HandedOver(refusal));
    let service = ClientCredentialsLayer::new(Issuer::new().service()).layer(api);

    let response = service.oneshot(support::request()).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
}
