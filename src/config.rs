//! What all clones of a service share, and what is decided by it alone.

use std::sync::Arc;

use http::{Request, Response, response::Parts};

use crate::{
    NoReplay, NotReplayed, Rejection, Replay, TokenCache,
    send::{Original, Retained, Spare, Unsent, WAITS},
    token::Generation,
    verdict::Verdict,
};

/// Decides which responses reject the token.
pub(crate) type RejectWhen = Arc<dyn Fn(&Parts) -> bool + Send + Sync>;

/// What all clones of a service share.
pub(crate) struct Config<R> {
    pub(crate) cache: TokenCache,
    pub(crate) replay: R,
    pub(crate) reject_when: Option<RejectWhen>,
}

/// What becomes of a response.
pub(crate) enum Judged<S, R, B, ResBody>
where
    R: Replay<B>,
{
    /// The caller gets it.
    Returned(Response<ResBody>),
    /// It rejects the token, and the request can be sent again with another.
    Rejected(Response<ResBody>, Box<Unsent<S, R, B>>),
}

impl<R> Config<R> {
    /// Makes the request to send, and what is kept of it for a second send.
    pub(crate) fn split<B>(&self, request: Request<B>) -> (Request<R::Body>, Retained<R::Kept>)
    where
        R: Replay<B>,
    {
        let may_replay = request.extensions().get::<NoReplay>().is_none();
        let (head, body) = request.into_parts();
        let (body, kept) = self.replay.split(body);
        let retained = match kept {
            Some(body) if may_replay => Ok(Original {
                head: head.clone(),
                body,
            }),
            Some(_) => Err(NotReplayed::OptedOut),
            None => Err(NotReplayed::BodyNotKept),
        };
        (Request::from_parts(head, body), retained)
    }

    /// Reads the verdict off a response, and prepares the second send if that may help.
    pub(crate) fn judge<S, B, ResBody>(
        &self,
        response: Response<ResBody>,
        generation: Generation,
        spare: Result<Spare<S, R::Kept>, NotReplayed>,
    ) -> Judged<S, R, B, ResBody>
    where
        R: Replay<B>,
    {
        let (verdict, response) = self.verdict(response);
        if verdict == Verdict::Accepted {
            return Judged::Returned(response);
        }
        match self.prepare_replay(generation, spare) {
            Ok(unsent) => Judged::Rejected(response, unsent),
            Err(reason) => Judged::Returned(reason.explain(response)),
        }
    }

    fn verdict<B>(&self, response: Response<B>) -> (Verdict, Response<B>) {
        let Some(reject_when) = &self.reject_when else {
            return (Verdict::of(&response), response);
        };
        let (head, body) = response.into_parts();
        let verdict = if reject_when(&head) {
            Verdict::Rejected
        } else {
            Verdict::Accepted
        };
        (verdict, Response::from_parts(head, body))
    }

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
            waits_left: WAITS,
        }))
    }
}
