//! The way of a request that is not simply sent and answered: it has to wait before a send, the first or
//! the second, or there is something to tell with its response.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::{BoxError, Service};

use crate::{
    lease::Lease,
    replay::ReplayPolicy,
    send::Underway,
    wait::{Wait, Waited},
};

pin_project! {
    /// Boxed, because few calls make one: it does not make the future of the others larger.
    #[project = DetourProj]
    pub(crate) enum Detour<S, R, B>
    where
        S: Service<Request<R::Body>>,
        R: ReplayPolicy<B>,
    {
        // The request has to wait before it is sent, the first time or the second.
        Waiting { wait: Option<Wait<S, R, B>> },
        // The API has the request.
        Calling {
            #[pin]
            underway: Underway<S, R, B>,
        },
    }
}

impl<S, R, B> Detour<S, R, B>
where
    S: Service<Request<R::Body>>,
    R: ReplayPolicy<B>,
{
    pub(crate) fn waiting(wait: Wait<S, R, B>) -> Pin<Box<Self>> {
        let wait = Some(wait);
        Box::pin(Self::Waiting { wait })
    }

    pub(crate) fn calling(underway: Underway<S, R, B>) -> Pin<Box<Self>> {
        Box::pin(Self::Calling { underway })
    }

    pub(crate) fn state(&self) -> &'static str {
        match self {
            Self::Waiting { .. } => "Waiting",
            Self::Calling { .. } => "Calling",
        }
    }
}

impl<S, R, B, ResBody> Detour<S, R, B>
where
    S: Service<Request<R::Body>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    R: ReplayPolicy<B>,
    ResBody: Body,
{
    #[cold]
    #[inline(never)]
    pub(crate) fn poll(
        mut self: Pin<&mut Self>,
        lease: &Lease<S, R>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<S::Response, BoxError>> {
        loop {
            let next = match self.as_mut().project() {
                DetourProj::Waiting { wait } => {
                    let waiting = wait.as_mut().expect(POLLED_AFTER_READY);
                    let granted = match ready!(waiting.poll(cx))? {
                        Waited::Granted(granted) => granted,
                        Waited::Returned(rejection) => return Poll::Ready(Ok(rejection)),
                    };
                    let unsent = wait.take().expect(POLLED_AFTER_READY).into_unsent();
                    let underway = unsent.send(&granted)?;
                    Self::Calling { underway }
                }
                DetourProj::Calling { underway } => {
                    let underway = underway.project();
                    let response = ready!(underway.response.poll(cx)).map_err(Into::into)?;
                    let (sent, outcome) = (underway.sent.take(), underway.outcome.take());
                    let wait = match Wait::after(lease, response, sent, outcome) {
                        Ok(wait) => Some(wait),
                        Err(response) => return Poll::Ready(Ok(response)),
                    };
                    Self::Waiting { wait }
                }
            };
            self.set(next);
        }
    }
}

const POLLED_AFTER_READY: &str = "`ResponseFuture` is not polled after it returned `Ready`";
