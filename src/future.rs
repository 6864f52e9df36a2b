//! The way of one request: get a token, send, judge, renew, send again.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::{BoxError, Service};

use crate::{
    NotReplayed, Replay,
    config::{Config, Judged},
    drain::Drain,
    send::{Spare, Unsent},
    token::{Acquiring, Generation, Held, Lease},
};

pin_project! {
    /// The response of [`ClientCredentials`](crate::ClientCredentials).
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
        config: Arc<Config<R>>,
        #[pin]
        state: State<S, R, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, R, B>
    where
        S: Service<Request<R::Body>>,
        R: Replay<B>,
    {
        // The request waits for a token.
        AwaitingToken { token: Acquiring, unsent: Option<Box<Unsent<S, R, B>>> },
        // The token is there; the service has to be polled ready.
        Readying { granted: Arc<Held>, unsent: Option<Box<Unsent<S, R, B>>> },
        // The API has the request.
        Calling {
            #[pin]
            response: S::Future,
            generation: Generation,
            spare: Option<Result<Spare<S, R::Kept>, NotReplayed>>,
        },
        // The API rejected the token; its response is kept until there is another token.
        Renewing {
            token: Acquiring,
            rejection: Option<S::Response>,
            unsent: Option<Box<Unsent<S, R, B>>>,
        },
        // There is another token; the API's response is read, for the sake of its connection.
        Draining {
            #[pin]
            rejection: S::Response,
            drain: Drain,
            granted: Arc<Held>,
            unsent: Option<Box<Unsent<S, R, B>>>,
        },
        // The request went out as it came, and so does the response.
        Forwarding { #[pin] response: S::Future },
    }
}

impl<S, R, B> ResponseFuture<S, R, B>
where
    S: Service<Request<R::Body>>,
    R: Replay<B>,
{
    pub(crate) fn forwarding(config: Arc<Config<R>>, response: S::Future) -> Self {
        let state = State::Forwarding { response };
        Self { config, state }
    }

    pub(crate) fn calling(
        config: Arc<Config<R>>,
        response: S::Future,
        generation: Generation,
        spare: Result<Spare<S, R::Kept>, NotReplayed>,
    ) -> Self {
        let state = State::Calling {
            response,
            generation,
            spare: Some(spare),
        };
        Self { config, state }
    }

    pub(crate) fn awaiting_token(config: Arc<Config<R>>, unsent: Box<Unsent<S, R, B>>) -> Self {
        let state = State::awaiting_token(&config, unsent);
        Self { config, state }
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

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::AwaitingToken { token, unsent } => {
                    let granted = ready!(token.as_mut().poll(cx))?;
                    State::Readying {
                        granted,
                        unsent: unsent.take(),
                    }
                }
                StateProj::Readying { granted, unsent } => {
                    let waiting = unsent.as_mut().expect(POLLED_AFTER_READY);
                    ready!(waiting.inner.poll_ready(cx)).map_err(Into::into)?;
                    let unsent = unsent.take().expect(POLLED_AFTER_READY);
                    match this.config.cache.lease_of(granted) {
                        Some(lease) => State::calling(*unsent, lease),
                        // It expired, or was rejected, while the service became ready.
                        None => State::awaiting_token(this.config, unsent.wait_again()?),
                    }
                }
                StateProj::Calling {
                    response,
                    generation,
                    spare,
                } => {
                    let response = ready!(response.poll(cx)).map_err(Into::into)?;
                    let spare = spare.take().expect(POLLED_AFTER_READY);
                    match this.config.judge(response, *generation, spare) {
                        Judged::Returned(response) => return Poll::Ready(Ok(response)),
                        Judged::Rejected(rejection, unsent) => {
                            State::renewing(this.config, *generation, rejection, unsent)
                        }
                    }
                }
                StateProj::Renewing {
                    token,
                    rejection,
                    unsent,
                } => {
                    let outcome = ready!(token.as_mut().poll(cx));
                    let rejection = rejection.take().expect(POLLED_AFTER_READY);
                    match outcome {
                        Ok(granted) => State::draining(rejection, granted, unsent.take()),
                        Err(error) => {
                            let reason = NotReplayed::RenewalFailed(error);
                            return Poll::Ready(Ok(reason.explain(rejection)));
                        }
                    }
                }
                StateProj::Draining {
                    rejection,
                    drain,
                    granted,
                    unsent,
                } => {
                    ready!(drain.poll(rejection, cx));
                    State::Readying {
                        granted: Arc::clone(granted),
                        unsent: unsent.take(),
                    }
                }
                StateProj::Forwarding { response } => {
                    return response.poll(cx).map_err(Into::into);
                }
            };
            this.state.set(next);
        }
    }
}

const POLLED_AFTER_READY: &str = "`ResponseFuture` is not polled after it returned `Ready`";

impl<S, R, B> State<S, R, B>
where
    S: Service<Request<R::Body>>,
    R: Replay<B>,
{
    fn awaiting_token(config: &Config<R>, unsent: Box<Unsent<S, R, B>>) -> Self {
        Self::AwaitingToken {
            token: config.cache.clone().acquire(None),
            unsent: Some(unsent),
        }
    }

    fn draining(
        rejection: S::Response,
        granted: Arc<Held>,
        unsent: Option<Box<Unsent<S, R, B>>>,
    ) -> Self {
        Self::Draining {
            rejection,
            drain: Drain::new(),
            granted,
            unsent,
        }
    }

    fn calling(unsent: Unsent<S, R, B>, lease: Lease) -> Self {
        let Unsent {
            mut inner,
            mut request,
            retained,
            ..
        } = unsent;
        let generation = lease.authorize(&mut request);
        Self::Calling {
            response: inner.call(request),
            generation,
            spare: Some(retained.map(|original| Spare { inner, original })),
        }
    }

    fn renewing(
        config: &Config<R>,
        rejected: Generation,
        rejection: S::Response,
        unsent: Box<Unsent<S, R, B>>,
    ) -> Self {
        Self::Renewing {
            token: config.cache.clone().acquire(Some(rejected)),
            rejection: Some(rejection),
            unsent: Some(unsent),
        }
    }
}

impl<S, R, B> fmt::Debug for ResponseFuture<S, R, B>
where
    S: Service<Request<R::Body>>,
    R: Replay<B>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::AwaitingToken { .. } => "AwaitingToken",
            State::Readying { .. } => "Readying",
            State::Calling { .. } => "Calling",
            State::Renewing { .. } => "Renewing",
            State::Draining { .. } => "Draining",
            State::Forwarding { .. } => "Forwarding",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
