//! The way of one request: get a token, send, judge, renew, send again.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http::{Request, Response, header::AUTHORIZATION, request::Parts};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::{BoxError, Service};

use crate::{
    Error, NotReplayed, Rejection, Replay,
    error::Kind,
    service::Config,
    token::{Acquiring, Generation, Held, Lease},
    verdict::Verdict,
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

/// A request that has not been sent, and the service to send it with, which is not ready.
///
/// Boxed, because only calls that wait have one: it does not make the future larger.
pub(crate) struct Unsent<S, R, B>
where
    R: Replay<B>,
{
    pub(crate) inner: S,
    pub(crate) request: Request<R::Body>,
    pub(crate) retained: Retained<R::Kept>,
    /// How often the request may wait for another token if it cannot be sent with the first.
    ///
    /// A service that takes longer to become ready than tokens live would else ask for ever.
    pub(crate) waits_left: u8,
}

/// What is kept for a second send, or why there will be none.
pub(crate) type Retained<K> = Result<Original<K>, NotReplayed>;

/// What is kept of a request until the verdict.
pub(crate) struct Original<K> {
    pub(crate) head: Parts,
    pub(crate) body: K,
}

/// What a replay is made of.
pub(crate) struct Spare<S, K> {
    pub(crate) inner: S,
    pub(crate) original: Original<K>,
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
                    let (verdict, response) = this.config.judge(response);
                    if verdict == Verdict::Accepted {
                        return Poll::Ready(Ok(response));
                    }
                    let spare = spare.take().expect(POLLED_AFTER_READY);
                    let rejected = *generation;
                    match this.config.prepare_replay(rejected, spare) {
                        Ok(unsent) => State::renewing(this.config, rejected, response, unsent),
                        Err(reason) => return Poll::Ready(Ok(reason.explain(response))),
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
                        Ok(granted) => State::Draining {
                            rejection,
                            drain: Drain::new(),
                            granted,
                            unsent: unsent.take(),
                        },
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

    fn calling(unsent: Unsent<S, R, B>, lease: Lease) -> Self {
        let Unsent {
            mut inner,
            mut request,
            retained,
            ..
        } = unsent;
        request
            .headers_mut()
            .insert(AUTHORIZATION, lease.header_value);
        Self::Calling {
            response: inner.call(request),
            generation: lease.generation,
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

impl<S, R, B> Unsent<S, R, B>
where
    S: Clone,
    R: Replay<B>,
{
    /// Gives up the readiness of the service, which may be what the next token request waits for.
    fn wait_again(mut self: Box<Self>) -> Result<Box<Self>, Error> {
        let waits_left = self.waits_left.checked_sub(1);
        self.waits_left = waits_left.ok_or_else(|| Error::new(Kind::Expired))?;
        self.inner = self.inner.clone();
        Ok(self)
    }
}

impl<R> Config<R> {
    /// Makes the second request, if its body can be sent again and another token may help.
    fn prepare_replay<S, B>(
        &self,
        generation: Generation,
        spare: Result<Spare<S, R::Kept>, NotReplayed>,
    ) -> Result<Box<Unsent<S, R, B>>, NotReplayed>
    where
        R: Replay<B>,
    {
        let rejection = self.cache.reject_generation(generation);
        let replay = spare.and_then(|spare| match rejection {
            Rejection::CoolingDown => Err(NotReplayed::CoolingDown),
            Rejection::Failing(ref error) => Err(NotReplayed::RenewalFailed(error.clone())),
            Rejection::Withheld | Rejection::Replaced => self.restore(spare),
        });
        if replay.is_err() && matches!(rejection, Rejection::Withheld) {
            // This request has no use for another token, but the next one has.
            self.cache.renew_behind();
        }
        replay
    }

    fn restore<S, B>(&self, spare: Spare<S, R::Kept>) -> Result<Box<Unsent<S, R, B>>, NotReplayed>
    where
        R: Replay<B>,
    {
        let Original { head, body } = spare.original;
        let body = self
            .replay
            .restore(body)
            .ok_or(NotReplayed::BodyNotRestored)?;
        Ok(Box::new(Unsent {
            inner: spare.inner,
            request: Request::from_parts(head, body),
            retained: Err(NotReplayed::RejectedAgain),
            // It has waited for a renewal already.
            waits_left: 0,
        }))
    }
}

/// Reads what is already there of a body, so that its HTTP/1.1 connection can be used again.
///
/// Waits for nothing: a body that has more to come costs its connection. But a client hands over one
/// frame at a time and often reads the next, or takes the connection back, in a task of its own; so
/// other tasks are let run a few times in between.
struct Drain {
    bytes_left: usize,
    turns_left: u8,
    has_ended: bool,
}

impl Drain {
    fn new() -> Self {
        Self {
            bytes_left: 64 * 1024,
            // hyper reads 8 KiB at a time, and need not have its turn each time.
            turns_left: 16,
            has_ended: false,
        }
    }

    fn poll<B: Body>(&mut self, mut body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<()> {
        while !self.has_ended && self.bytes_left > 0 {
            let Poll::Ready(frame) = body.as_mut().poll_frame(cx) else {
                return self.give_way(cx);
            };
            match frame {
                Some(Ok(frame)) => {
                    // An empty frame counts, too: they may never end.
                    let read = frame.data_ref().map_or(0, Buf::remaining).max(1);
                    self.bytes_left = self.bytes_left.saturating_sub(read);
                    self.has_ended = body.is_end_stream();
                }
                Some(Err(_)) | None => self.has_ended = true,
            }
        }
        Poll::Ready(())
    }

    /// Lets other tasks run, unless they have had their turns.
    fn give_way(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.turns_left == 0 {
            return Poll::Ready(());
        }
        self.turns_left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
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
