//! The way of a request to a send that cannot be made at once: get a token, read a rejection to its
//! end, get the service ready.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::Body;
use tower::{BoxError, Service};

use crate::{
    NotReplayed, TokenOutcome,
    drain::Drain,
    lease::Lease,
    replay::ReplayPolicy,
    send::{Sent, Unsent},
    telemetry,
    token::{Acquired, Acquiring, CachedToken},
};

/// A request that waits, and what it waits for.
pub(crate) struct Wait<S, R, B>
where
    S: Service<Request<R::Body>>,
    R: ReplayPolicy<B>,
{
    unsent: Unsent<S, R, B>,
    stage: Stage<S::Response>,
}

enum Stage<Res> {
    // The request waits for a token.
    AwaitingToken {
        token: Acquiring,
    },
    // The API rejected the token; its response is kept until there is another token.
    Renewing {
        token: Acquiring,
        rejection: Option<Res>,
    },
    // There is another token; the API's response is read, for the sake of its connection.
    Draining {
        rejection: Pin<Box<Res>>,
        drain: Drain,
        granted: Arc<CachedToken>,
    },
    // The token is there; the service has to be polled ready.
    Readying {
        granted: Arc<CachedToken>,
    },
}

/// What a wait ends with.
pub(crate) enum Waited<Res> {
    /// The service is ready, and the token may be used now.
    Granted(Arc<CachedToken>),
    /// There is no other token: the caller gets the rejection.
    Returned(Res),
}

impl<S, R, B> Wait<S, R, B>
where
    S: Service<Request<R::Body>>,
    R: ReplayPolicy<B>,
{
    /// There is no token yet.
    pub(crate) fn for_token(unsent: Unsent<S, R, B>) -> Self {
        let token = unsent.anchor.cache.clone().acquire(None);
        let stage = Stage::AwaitingToken { token };
        Self { unsent, stage }
    }

    pub(crate) fn into_unsent(self) -> Unsent<S, R, B> {
        self.unsent
    }
}

impl<S, R, B, ResBody> Wait<S, R, B>
where
    S: Service<Request<R::Body>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    R: ReplayPolicy<B>,
    ResBody: Body,
{
    /// Reads the verdict off a response: the request waits for another token, if that may help, or the
    /// caller gets the response.
    pub(crate) fn after(
        lease: &Lease<S, R>,
        response: S::Response,
        sent: Sent<R::Kept>,
        outcome: Option<Box<TokenOutcome>>,
    ) -> Result<Self, S::Response> {
        let Some(sent) = sent else {
            return Err(TokenOutcome::attach(outcome, response));
        };
        let (rejected, _) = sent;
        let (response, unsent) = lease.judge(response, sent, outcome);
        let Some(unsent) = unsent else {
            return Err(response);
        };
        let stage = Stage::Renewing {
            token: unsent.anchor.cache.clone().acquire(Some(rejected)),
            rejection: Some(response),
        };
        Ok(Self { unsent, stage })
    }

    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Waited<S::Response>, BoxError>> {
        loop {
            self.stage = match &mut self.stage {
                Stage::AwaitingToken { token } => {
                    let Acquired { landed, waited } = ready!(token.as_mut().poll(cx));
                    self.unsent.outcome.note_wait(waited);
                    let granted =
                        landed.map_err(|error| error.after(self.unsent.outcome.waited()))?;
                    Stage::Readying { granted }
                }
                Stage::Renewing { token, rejection } => {
                    let renewal = ready!(token.as_mut().poll(cx));
                    let rejection = rejection.take().expect("a renewal ends once");
                    match after_renewal(&mut self.unsent.outcome, renewal, rejection) {
                        Ok(draining) => draining,
                        Err(rejection) => return Poll::Ready(Ok(Waited::Returned(rejection))),
                    }
                }
                Stage::Draining {
                    rejection,
                    drain,
                    granted,
                } => {
                    ready!(drain.poll(rejection.as_mut(), cx));
                    let granted = Arc::clone(granted);
                    Stage::Readying { granted }
                }
                Stage::Readying { granted } => {
                    ready!(self.unsent.inner.poll_ready(cx)).map_err(Into::into)?;
                    match self.unsent.anchor.cache.still_usable(granted) {
                        Some(granted) => return Poll::Ready(Ok(Waited::Granted(granted))),
                        // It expired, or was rejected, while the service became ready.
                        None => {
                            let waited = self.unsent.outcome.waited();
                            self.unsent
                                .wait_again()
                                .map_err(|error| error.after(waited))?;
                            let token = self.unsent.anchor.cache.clone().acquire(None);
                            Stage::AwaitingToken { token }
                        }
                    }
                }
            };
        }
    }
}

/// Goes on with the other token, or gives the caller the rejection and the reason.
fn after_renewal<B>(
    outcome: &mut Box<TokenOutcome>,
    Acquired { landed, waited }: Acquired,
    rejection: Response<B>,
) -> Result<Stage<Response<B>>, Response<B>> {
    outcome.note_wait(waited);
    match landed {
        Ok(granted) => {
            outcome.note_replay(waited.is_some());
            telemetry::replayed(waited.is_some());
            Ok(Stage::Draining {
                rejection: Box::pin(rejection),
                drain: Drain::new(),
                granted,
            })
        }
        Err(error) => {
            let reason = NotReplayed::without_token(error);
            Err(mem::take(outcome).explain(reason, rejection))
        }
    }
}
