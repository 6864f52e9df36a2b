//! What `TokenOutcome` and `Error::waited` report about a call.

mod support;

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use support::{Api, Failure, Issuer, call, rejection, request, stack};
use tokio::time::{Sleep, sleep};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    ClientCredentialsLayer, Error, NotReplayed, TokenOutcome,
    replay::{Buffered, CloneWith, NoReplay, ReplayPolicy},
};

const LATENCY: Duration = Duration::from_millis(80);

#[tokio::test(start_paused = true)]
async fn call_with_a_fresh_token_has_no_outcome() {
    let service = stack(&Issuer::new(), Api::accepting_all().service());
    service.cache().token().await.unwrap();

    let response = call(&service).await.unwrap();

    assert!(response.extensions().is_empty());
}

#[tokio::test(start_paused = true)]
async fn call_that_waited_reports_how_long() {
    let issuer = Issuer::new().latency(LATENCY);
    let service = stack(&issuer, Api::accepting_all().service());
    let late = async {
        sleep(LATENCY / 4).await;
        call(&service).await
    };

    let (first, second) = tokio::join!(call(&service), late);

    for (response, waited) in [(first, LATENCY), (second, LATENCY * 3 / 4)] {
        let outcome = outcome(&response.unwrap());
        assert_eq!(outcome.waited(), Some(waited));
        assert_eq!(
            outcome.to_string(),
            format!("waited {waited:?} for a token")
        );
        assert!(!outcome.token_renewed() && !outcome.replayed());
        assert!(outcome.not_replayed().is_none() && outcome.omitted().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn failed_call_reports_how_long_it_waited() {
    let issuer = Issuer::new().latency(LATENCY);
    issuer.fail(Failure::Permanent);
    let service = stack(&issuer, Api::accepting_all().service());
    let failure = async || {
        let error = call(&service).await.unwrap_err();
        error.downcast::<Error>().unwrap()
    };

    assert_eq!(failure().await.waited(), Some(LATENCY));
    // The second call shares the failure and does not wait.
    assert_eq!(failure().await.waited(), None);
}

#[tokio::test(start_paused = true)]
async fn replay_reports_whether_it_waited_for_a_renewal() {
    let issuer = Issuer::new().latency(LATENCY);
    let api = Api::accepting(|token| token == "token-2").latency(LATENCY / 2);
    let service = stack(&issuer, api.service());
    service.cache().token().await.unwrap();
    // Also sends the first token, and sees the rejection when the second token is already there.
    let late_api = Api::accepting(|token| token == "token-2").latency(LATENCY * 2);
    let late =
        ClientCredentialsLayer::with_cache(service.cache().clone()).layer(late_api.service());

    let (renewed, replaced) = tokio::join!(call(&service), call(&late));

    let renewed = outcome(&renewed.unwrap());
    assert!(renewed.replayed() && renewed.token_renewed());
    assert_eq!(renewed.waited(), Some(LATENCY));
    assert_eq!(
        renewed.to_string(),
        "waited 80ms for a token; the token was renewed; sent twice"
    );
    let replaced = outcome(&replaced.unwrap());
    assert!(replaced.replayed() && !replaced.token_renewed());
    assert_eq!(replaced.waited(), None);
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn returned_rejection_reports_the_reason_and_what_was_tried() {
    let issuer = Issuer::new().latency(LATENCY);
    let service = stack(&issuer, Api::accepting_none().service());

    let again = outcome(&call(&service).await.unwrap());
    assert!(matches!(
        again.not_replayed(),
        Some(NotReplayed::RejectedAgain)
    ));
    assert!(again.replayed() && again.token_renewed());
    assert_eq!(
        again.waited(),
        Some(2 * LATENCY),
        "for the first token and for the renewal"
    );

    let cooling = outcome(&call(&service).await.unwrap());
    assert!(matches!(
        cooling.not_replayed(),
        Some(NotReplayed::CoolingDown)
    ));
    assert!(!cooling.replayed() && !cooling.token_renewed());
    assert_eq!(cooling.waited(), None);
}

#[tokio::test(start_paused = true)]
async fn returned_rejection_reports_the_wait_for_a_failed_renewal() {
    let issuer = Issuer::new().latency(LATENCY);
    let service = stack(&issuer, Api::accepting_none().service());
    service.cache().token().await.unwrap();
    issuer.fail(Failure::Permanent);

    let outcome = outcome(&call(&service).await.unwrap());

    assert!(matches!(
        outcome.not_replayed(),
        Some(NotReplayed::RenewalFailed(_))
    ));
    assert_eq!(outcome.waited(), Some(LATENCY));
    assert!(!outcome.replayed() && !outcome.token_renewed());
}

#[tokio::test(start_paused = true)]
async fn returned_rejection_reports_why_the_body_was_not_sent_again() {
    let mut opted_out = request();
    opted_out.extensions_mut().insert(NoReplay);
    let layer = || ClientCredentialsLayer::new(Issuer::new().service());

    let reason = why_not(layer(), opted_out).await;
    assert!(matches!(reason, NotReplayed::OptedOut));
    let reason = why_not(layer().no_replay(), request()).await;
    assert!(matches!(reason, NotReplayed::BodyNotKept));
    let reason = why_not(layer().replay(CloneWith(|_: &String| None)), request()).await;
    assert!(matches!(reason, NotReplayed::BodyNotKept));
    let reason = why_not(layer().replay(Buffered::new(4)), request()).await;
    assert!(
        matches!(reason, NotReplayed::BodyOverLimit),
        "known from the size hint"
    );
    let frames = ["na", "me=", "Ada"].map(|data| Ok::<_, BoxError>(Frame::data(Bytes::from(data))));
    let streamed = StreamBody::new(futures_util::stream::iter(frames));
    let reason = why_not(layer().replay(Buffered::new(4)), Request::new(streamed)).await;
    assert!(
        matches!(reason, NotReplayed::BodyOverLimit),
        "found while the body was sent"
    );
}

#[tokio::test(start_paused = true)]
async fn custom_policy_reports_its_own_reasons() {
    #[derive(Clone)]
    struct Once;
    impl ReplayPolicy<String> for Once {
        type Body = String;
        type Kept = ();
        fn split(&self, body: String) -> (String, Option<()>) {
            let is_kept = body.len() < 10;
            (body, is_kept.then_some(()))
        }
        fn restore(&self, _: &mut ()) -> Option<String> {
            None
        }
        fn not_kept(&self) -> NotReplayed {
            NotReplayed::BodyOverLimit
        }
    }
    let issuer = Issuer::new();
    let layer = || ClientCredentialsLayer::new(issuer.service()).replay(Once);

    let restored = layer();
    let cache = restored.cache().clone();
    let reason = why_not(restored, request()).await;
    assert!(matches!(reason, NotReplayed::BodyNotRestored));
    // The rejected token is renewed nevertheless, for the calls that follow.
    support::settle().await;
    assert_eq!(issuer.requests(), 2);
    drop(cache);
    let reason = why_not(layer(), request().map(|body| body + " Lovelace")).await;
    assert!(matches!(reason, NotReplayed::BodyOverLimit));
}

#[tokio::test(start_paused = true)]
async fn call_whose_token_expires_every_time_reports_its_total_wait() {
    let issuer = Issuer::new()
        .lifetime(Duration::from_secs(1))
        .latency(LATENCY);
    let api = SlowToBecomeReady::new(Api::accepting_all().service());
    let service = stack(&issuer, api);

    let error = service.oneshot(request()).await.unwrap_err();

    let error = error.downcast::<Error>().unwrap();
    assert!(error.is_expired());
    // The first wait, and ten more.
    assert_eq!(issuer.requests(), 11);
    assert_eq!(error.waited(), Some(LATENCY * 11));
}

/// The token arrives between `call` and the first poll.
#[tokio::test(start_paused = true)]
async fn call_that_misses_but_does_not_wait_has_no_outcome() {
    let mut service = stack(&Issuer::new(), Api::accepting_all().service());
    let missed = service.ready().await.unwrap().call(request());
    service.cache().token().await.unwrap();

    let response = missed.await.unwrap();

    assert!(response.extensions().is_empty());
}

/// A service that takes three seconds to become ready. Each clone starts over.
struct SlowToBecomeReady<S> {
    inner: S,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> SlowToBecomeReady<S> {
    fn new(inner: S) -> Self {
        Self { inner, timer: None }
    }
}

impl<S: Clone> Clone for SlowToBecomeReady<S> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone())
    }
}

impl<S: Service<Request<String>>> Service<Request<String>> for SlowToBecomeReady<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep(Duration::from_secs(3))));
        ready!(timer.as_mut().poll(cx));
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<String>) -> S::Future {
        self.inner.call(request)
    }
}

fn outcome<B>(response: &Response<B>) -> TokenOutcome {
    let outcome = response.extensions().get::<TokenOutcome>();
    outcome.expect("the response has an outcome").clone()
}

/// Sends one request to an API that reads the whole body and rejects every token.
async fn why_not<R, B>(layer: ClientCredentialsLayer<R>, request: Request<B>) -> NotReplayed
where
    R: ReplayPolicy<B> + Clone,
    R::Body: http_body::Body<Error: Into<BoxError>>,
{
    let api = service_fn(async |request: Request<R::Body>| {
        let read = http_body_util::BodyExt::collect(request.into_body()).await;
        read.map_err(Into::<BoxError>::into)?;
        Ok::<_, BoxError>(rejection())
    });
    let response = layer.layer(api).oneshot(request).await.unwrap();
    outcome(&response).not_replayed().unwrap().clone()
}
