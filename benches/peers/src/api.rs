//! Mocks of the HTTP client and the API.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{
    Request, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE},
};
use http_body_util::Full;
use tokio::{sync::watch, time::sleep};
use tower::Service;

use crate::{
    endpoint::token_number,
    peer::{ApiRequest, ApiResponse},
};

/// Builds a request with four headers and a body.
pub(crate) fn request() -> ApiRequest {
    const VERSION: HeaderName = HeaderName::from_static("linkedin-version");
    const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

    Request::post("/rest/posts")
        .header(ACCEPT, HeaderValue::from_static("application/json"))
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header(VERSION, HeaderValue::from_static("202506"))
        .header(REQUEST_ID, HeaderValue::from_static("5d1f0a7c"))
        .body(Full::from(r#"{"commentary":"hello"}"#))
        .expect("the parts are valid")
}

/// Responds at once with an empty success.
#[derive(Clone)]
pub(crate) struct Nothing;

impl Service<ApiRequest> for Nothing {
    type Response = ApiResponse;
    type Error = Infallible;
    type Future = Ready<Result<ApiResponse, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: ApiRequest) -> Self::Future {
        black_box(&request);
        ready(Ok(Response::new(Full::default())))
    }
}

/// Accepts all tokens that are not revoked.
#[derive(Clone)]
pub(crate) struct Api(Arc<State>);

struct State {
    /// Tokens up to this number are revoked.
    revoked: AtomicUsize,
    /// The number of calls with a revoked token so far.
    arrived: AtomicUsize,
    /// The first response waits until this many calls have arrived.
    awaited: usize,
    /// The time from the first of these responses to the last.
    spread: Duration,
    all_arrived: watch::Sender<bool>,
}

impl Api {
    pub(crate) fn new(awaited: usize, spread: Duration) -> Self {
        Self(Arc::new(State {
            revoked: AtomicUsize::new(0),
            arrived: AtomicUsize::new(0),
            awaited,
            spread,
            all_arrived: watch::Sender::new(false),
        }))
    }

    pub(crate) fn revoke(&self, up_to: usize) {
        self.0.revoked.store(up_to, Ordering::SeqCst);
    }
}

impl State {
    async fn respond(&self, request: ApiRequest) -> ApiResponse {
        let token = request.headers().get(AUTHORIZATION);
        let token = token.and_then(|value| token_number(value.as_bytes()));
        if token.is_some_and(|number| number > self.revoked.load(Ordering::SeqCst)) {
            return Response::new(Full::default());
        }
        self.hold().await;
        Response::builder()
            .status(StatusCode::UNAUTHORIZED)
            .header(WWW_AUTHENTICATE, r#"Bearer error="invalid_token""#)
            .body(Full::default())
            .expect("the parts are valid")
    }

    /// Waits until all awaited calls have arrived, then for this call's turn. Later calls do not
    /// wait.
    async fn hold(&self) {
        let position = self.arrived.fetch_add(1, Ordering::SeqCst);
        if position + 1 == self.awaited {
            self.all_arrived.send_replace(true);
        }
        if position < self.awaited {
            let mut all_arrived = self.all_arrived.subscribe();
            let result = all_arrived.wait_for(|all_arrived| *all_arrived).await;
            result.expect("the sender lives as long as this state");
            if !self.spread.is_zero() {
                sleep(self.spread.mul_f64(position as f64 / self.awaited as f64)).await;
            }
        }
    }
}

impl Service<ApiRequest> for Api {
    type Response = ApiResponse;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<ApiResponse, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: ApiRequest) -> Self::Future {
        let state = Arc::clone(&self.0);
        Box::pin(async move { Ok(state.respond(request).await) })
    }
}
