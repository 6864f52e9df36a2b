//! What all clones of a service share, and what is decided by it alone.

use std::sync::Arc;

use http::{Request, Response, StatusCode, response};

use crate::{
    NotReplayed, Rejection, TokenOutcome,
    anchor::Anchor,
    replay::ReplayPolicy,
    send::{NotKept, Original, Retained},
    telemetry,
    token::{Generation, WeakTokenCache},
    verdict::Verdict,
};

/// Decides which responses reject the token.
pub(crate) type RejectedWhen = Arc<dyn Fn(&response::Parts) -> bool + Send + Sync>;

/// A second request, what its response will tell, and where its token comes from.
pub(crate) struct Second<B> {
    pub(crate) request: Request<B>,
    pub(crate) outcome: Box<TokenOutcome>,
    pub(crate) anchor: Arc<Anchor>,
}

/// What all clones of a service share. A clone counts references.
pub(crate) struct Config<R> {
    /// Does not keep the cache: whoever needs another token does.
    pub(crate) cache: WeakTokenCache,
    pub(crate) replay: Arc<R>,
    pub(crate) rejected_when: Option<RejectedWhen>,
}

impl<R> Clone for Config<R> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            replay: Arc::clone(&self.replay),
            rejected_when: self.rejected_when.clone(),
        }
    }
}

impl<R> Config<R> {
    /// Whether a response may reject the token: what can be said at a glance.
    #[inline]
    pub(crate) fn may_reject<B>(&self, response: &Response<B>) -> bool {
        response.status() == StatusCode::UNAUTHORIZED || self.rejected_when.is_some()
    }

    /// Reads the verdict off a response; also gives what to send again, if that may help.
    pub(crate) fn decide<B, ResBody>(
        &self,
        response: Response<ResBody>,
        (generation, retained): (Generation, Retained<R::Kept>),
        outcome: Option<Box<TokenOutcome>>,
    ) -> (Response<ResBody>, Option<Second<R::Body>>)
    where
        R: ReplayPolicy<B>,
    {
        let (verdict, response) = self.verdict(response);
        if verdict == Verdict::Accepted {
            return (TokenOutcome::attach(outcome, response), None);
        }
        let outcome = outcome.unwrap_or_default();
        match self.prepare_replay(generation, retained) {
            Ok((request, anchor)) => {
                let second = Second {
                    request,
                    outcome,
                    anchor,
                };
                (response, Some(second))
            }
            Err(reason) => (outcome.explain(reason, response), None),
        }
    }

    fn verdict<B>(&self, response: Response<B>) -> (Verdict, Response<B>) {
        let Some(rejected_when) = &self.rejected_when else {
            return (Verdict::of(&response), response);
        };
        let (head, body) = response.into_parts();
        let verdict = if rejected_when(&head) {
            Verdict::Rejected
        } else {
            Verdict::Accepted
        };
        (verdict, Response::from_parts(head, body))
    }

    /// Makes the second request, if its body can be sent again and another token may help.
    fn prepare_replay<B>(
        &self,
        generation: Generation,
        retained: Retained<R::Kept>,
    ) -> Result<(Request<R::Body>, Arc<Anchor>), NotReplayed>
    where
        R: ReplayPolicy<B>,
    {
        let Original { head, body } = match retained {
            Ok(original) => original,
            Err(reason) => {
                self.reject_for_others(generation);
                return Err(self.reason(reason));
            }
        };
        let anchor = Arc::clone(&head.anchor);
        let restore = || {
            let body = self.replay.restore(body);
            let body = body.ok_or_else(|| self.replay.not_restored())?;
            Ok(head.with_body(body))
        };
        let request = match anchor.cache.reject_generation(generation) {
            Rejection::CoolingDown => Err(NotReplayed::CoolingDown),
            Rejection::Failing(error) => Err(NotReplayed::RenewalFailed(error)),
            Rejection::Replaced => restore(),
            Rejection::Withheld => restore().inspect_err(|_| anchor.cache.renew_in_background()),
        };
        Ok((request?, anchor))
    }

    /// The request has no use for another token, but the next one has, if the cache has other handles.
    fn reject_for_others(&self, generation: Generation) {
        let Some(cache) = self.cache.upgrade() else {
            return;
        };
        if matches!(cache.reject_generation(generation), Rejection::Withheld) {
            cache.renew_in_background();
        }
    }

    fn reason<B>(&self, reason: NotKept) -> NotReplayed
    where
        R: ReplayPolicy<B>,
    {
        match reason {
            NotKept::Body => self.replay.not_kept(),
            NotKept::OptedOut => NotReplayed::OptedOut,
            NotKept::SentTwice => {
                telemetry::rejected_again();
                NotReplayed::RejectedAgain
            }
        }
    }
}
