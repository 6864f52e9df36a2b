//! The way of one request: it is sent and answered, or goes on by a detour.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::{BoxError, Service};

use crate::{
    TokenOmitted, TokenOutcome,
    detour::Detour,
    lease::Lease,
    replay::ReplayPolicy,
    send::{Sent, Underway, Unsent},
    telemetry,
    wait::Wait,
};

pin_project! {
    /// The response of [`ClientCredentials`](crate::ClientCredentials).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_client_credentials::{AccessToken, TokenRequest};
    /// # use tower::{BoxError, service_fn};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// # let token_service = service_fn(|_: TokenRequest| async {
    /// #     Ok::<_, BoxError>(AccessToken::new("token-1")?)
    /// # });
    /// # let http = service_fn(|_: http::Request<String>| async {
    /// #     Ok::<_, BoxError>(http::Response::new(String::new()))
    /// # });
    /// use std::time::Duration;
    /// use tower::{Layer, Service, ServiceExt};
    /// use tower_client_credentials::ClientCredentialsLayer;
    ///
    /// let mut api = ClientCredentialsLayer::new(token_service).layer(http);
    /// let response = api.ready().await?.call(http::Request::new(String::new()));
    ///
    /// // A call that is given up leaves its token to the next.
    /// let response = tokio::time::timeout(Duration::from_secs(5), response).await??;
    /// # assert_eq!(response.status(), 200);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the request, as with any service. A token that it waited for is still
    /// fetched, for others.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, R, B>
    where
        S: Service<Request<R::Body>>,
        R: ReplayPolicy<B>,
    {
        #[pin]
        state: State<S, R, B>,
        sent: Sent<R::Kept>,
        lease: Lease<S, R>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, R, B>
    where
        S: Service<Request<R::Body>>,
        R: ReplayPolicy<B>,
    {
        // The API has the request.
        Calling { #[pin] response: S::Future },
        // It has to wait, or there is something to tell with the response.
        Detour { detour: Pin<Box<Detour<S, R, B>>> },
    }
}

impl<S, R, B> ResponseFuture<S, R, B>
where
    S: Service<Request<R::Body>>,
    R: ReplayPolicy<B>,
{
    #[inline]
    pub(crate) fn calling(response: S::Future, sent: Sent<R::Kept>, lease: Lease<S, R>) -> Self {
        Self {
            state: State::Calling { response },
            sent,
            lease,
        }
    }

    /// A request that must not carry the token.
    #[cold]
    pub(crate) fn withheld(response: S::Future, reason: TokenOmitted, lease: Lease<S, R>) -> Self {
        telemetry::withheld(reason);
        let underway = Underway {
            response,
            sent: None,
            outcome: Some(Box::new(TokenOutcome::without_token(reason))),
        };
        Self::on(Detour::calling(underway), lease)
    }

    /// A request that has to wait for a token.
    pub(crate) fn waiting(unsent: Unsent<S, R, B>, lease: Lease<S, R>) -> Self {
        let wait = Wait::for_token(unsent);
        Self::on(Detour::waiting(wait), lease)
    }

    fn on(detour: Pin<Box<Detour<S, R, B>>>, lease: Lease<S, R>) -> Self {
        Self {
            state: State::Detour { detour },
            sent: None,
            lease,
        }
    }
}

impl<S, R, B, ResBody> Future for ResponseFuture<S, R, B>
where
    S: Service<Request<R::Body>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    R: ReplayPolicy<B>,
    ResBody: Body,
{
    type Output = Result<Response<ResBody>, BoxError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.as_mut().project();
        match this.state.project() {
            StateProj::Calling { response } => match response.poll(cx) {
                Poll::Ready(Ok(response)) if this.lease.may_reject(&response) => {
                    self.judge(response, cx)
                }
                output => output.map_err(Into::into),
            },
            StateProj::Detour { detour } => detour.as_mut().poll(this.lease, cx),
        }
    }
}

impl<S, R, B, ResBody> ResponseFuture<S, R, B>
where
    S: Service<Request<R::Body>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    R: ReplayPolicy<B>,
    ResBody: Body,
{
    /// Gives the response to the caller, or begins to wait for another token.
    #[cold]
    #[inline(never)]
    fn judge(
        mut self: Pin<&mut Self>,
        response: Response<ResBody>,
        cx: &mut Context<'_>,
    ) -> Poll<<Self as Future>::Output> {
        let mut this = self.as_mut().project();
        let wait = match Wait::after(this.lease, response, this.sent.take(), None) {
            Ok(wait) => wait,
            Err(response) => return Poll::Ready(Ok(response)),
        };
        let detour = Detour::waiting(wait);
        this.state.set(State::Detour { detour });
        self.poll(cx)
    }
}

impl<S, R, B> fmt::Debug for ResponseFuture<S, R, B>
where
    S: Service<Request<R::Body>>,
    R: ReplayPolicy<B>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Calling { .. } => "Calling",
            State::Detour { detour } => detour.state(),
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
