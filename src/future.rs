//! The way of one request: send, judge, and wait where one has to.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::{BoxError, Service};

use crate::{
    Outcome, Replay, Withheld,
    lease::Lease,
    send::{Sent, Underway, Unsent},
    telemetry,
    wait::{Wait, Waited},
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
        R: Replay<B>,
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
        R: Replay<B>,
    {
        // The API has the request.
        Calling { #[pin] response: S::Future },
        // The same, and there is something to tell with the response.
        Reporting {
            #[pin]
            response: S::Future,
            outcome: Option<Box<Outcome>>,
        },
        // The request has to wait before it is sent, the first time or the second.
        Waiting { wait: Option<Box<Wait<S, R, B>>> },
    }
}

impl<S, R, B> ResponseFuture<S, R, B>
where
    S: Service<Request<R::Body>>,
    R: Replay<B>,
{
    #[inline]
    pub(crate) fn calling(lease: Lease<S, R>, sent: Sent<R::Kept>, response: S::Future) -> Self {
        Self {
            state: State::Calling { response },
            sent,
            lease,
        }
    }

    /// A request that must not carry the token.
    #[cold]
    pub(crate) fn withheld(lease: Lease<S, R>, reason: Withheld, response: S::Future) -> Self {
        telemetry::withheld(reason);
        let outcome = Some(Box::new(Outcome::without_token(reason)));
        Self {
            state: State::Reporting { response, outcome },
            sent: None,
            lease,
        }
    }

    pub(crate) fn waiting(lease: Lease<S, R>, unsent: Unsent<S, R, B>) -> Self {
        let wait = Some(Wait::for_token(&lease, unsent));
        Self {
            state: State::Waiting { wait },
            sent: None,
            lease,
        }
    }
}

impl<S, R, B, ResBody> Future for ResponseFuture<S, R, B>
where
    S: Service<Request<R::Body>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    R: Replay<B>,
    ResBody: Body,
{
    type Output = Result<Response<ResBody>, BoxError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.as_mut().project();
        let StateProj::Calling { response } = this.state.project() else {
            return self.poll_on(cx);
        };
        match response.poll(cx) {
            Poll::Ready(Ok(response)) if this.lease.may_reject(&response) => {
                self.judge(response, None, cx)
            }
            output => output.map_err(Into::into),
        }
    }
}

impl<S, R, B, ResBody> ResponseFuture<S, R, B>
where
    S: Service<Request<R::Body>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    R: Replay<B>,
    ResBody: Body,
{
    /// Gives the response to the caller, or begins to wait for another token.
    #[cold]
    fn judge(
        mut self: Pin<&mut Self>,
        response: Response<ResBody>,
        outcome: Option<Box<Outcome>>,
        cx: &mut Context<'_>,
    ) -> Poll<<Self as Future>::Output> {
        let mut this = self.as_mut().project();
        let Some(sent) = this.sent.take() else {
            return Poll::Ready(Ok(Outcome::attach(outcome, response)));
        };
        let (rejected, _) = sent;
        let (response, unsent) = this.lease.judge(response, sent, outcome);
        let Some(unsent) = unsent else {
            return Poll::Ready(Ok(response));
        };
        let wait = Wait::for_renewal(this.lease, unsent, rejected, response);
        this.state.set(State::Waiting { wait: Some(wait) });
        self.poll_on(cx)
    }

    /// Goes on with a call that had to wait, or still has to.
    #[cold]
    fn poll_on(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<<Self as Future>::Output> {
        loop {
            let mut this = self.as_mut().project();
            match this.state.as_mut().project() {
                StateProj::Waiting { wait } => {
                    let waiting = wait.as_mut().expect(POLLED_AFTER_READY);
                    let granted = match ready!(waiting.poll(this.lease, cx))? {
                        Waited::Granted(granted) => granted,
                        Waited::Returned(rejection) => return Poll::Ready(Ok(rejection)),
                    };
                    let unsent = wait.take().expect(POLLED_AFTER_READY).into_unsent();
                    let Underway {
                        response,
                        sent,
                        outcome,
                    } = unsent.send(&granted)?;
                    *this.sent = sent;
                    let outcome = Some(outcome);
                    this.state.set(State::Reporting { response, outcome });
                }
                StateProj::Reporting { response, outcome } => {
                    let response = ready!(response.poll(cx)).map_err(Into::into)?;
                    let outcome = outcome.take();
                    return self.judge(response, outcome, cx);
                }
                StateProj::Calling { .. } => return self.poll(cx),
            }
        }
    }
}

const POLLED_AFTER_READY: &str = "`ResponseFuture` is not polled after it returned `Ready`";

impl<S, R, B> fmt::Debug for ResponseFuture<S, R, B>
where
    S: Service<Request<R::Body>>,
    R: Replay<B>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Calling { .. } => "Calling",
            State::Reporting { .. } => "Reporting",
            State::Waiting { .. } => "Waiting",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
