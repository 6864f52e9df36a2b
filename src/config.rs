//! What all clones of a service share, and what is decided by it alone.

use std::{ops::Deref, sync::Arc};

use http::{Response, StatusCode, request, response};

use crate::{
    NoReplay, NotReplayed, Outcome, Rejection, Replay, TokenCache,
    origin::Destinations,
    send::{Head, NotKept, Original, Retained, Sent, Spare, Unsent, WAITS},
    telemetry,
    verdict::Verdict,
};

/// Decides which responses reject the token.
pub(crate) type RejectWhen = Arc<dyn Fn(&response::Parts) -> bool + Send + Sync>;

/// What all clones of a service share.
pub(crate) struct Config<R> {
    pub(crate) cache: TokenCache,
    pub(crate) replay: R,
    pub(crate) reject_when: Option<RejectWhen>,
    pub(crate) destinations: Destinations,
}

/// The config, as a service holds it and hands it to its calls.
///
/// Calls count references to the lease. Threads that count on the same one slow each other down, so a
/// service that lasts has a lease of its own.
pub(crate) struct Lease<R>(Arc<Leased<R>>);

struct Leased<R> {
    config: Arc<Config<R>>,
}

impl<R> Lease<R> {
    pub(crate) fn new(config: Config<R>) -> Self {
        Self::of(Arc::new(config))
    }

    /// Another lease of the same config.
    pub(crate) fn another(&self) -> Self {
        Self::of(Arc::clone(&self.0.config))
    }

    fn of(config: Arc<Config<R>>) -> Self {
        Self(Arc::new(Leased { config }))
    }

    #[cfg(test)]
    pub(crate) fn counts_apart_from(&self, other: &Self) -> bool {
        !Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<R> Clone for Lease<R> {
    #[inline]
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R> Deref for Lease<R> {
    type Target = Config<R>;

    #[inline]
    fn deref(&self) -> &Config<R> {
        &self.0.config
    }
}

impl<R> Config<R> {
    /// Makes the body to send, and what is kept of the request for a second send.
    #[inline]
    pub(crate) fn split<B>(&self, head: &request::Parts, body: B) -> (R::Body, Retained<R::Kept>)
    where
        R: Replay<B>,
    {
        let (body, kept) = self.replay.split(body);
        let retained = match kept {
            Some(_) if head.extensions.get::<NoReplay>().is_some() => Err(NotKept::OptedOut),
            Some(body) => Ok(Original {
                head: Head::of(head),
                body,
            }),
            None => Err(NotKept::Body),
        };
        (body, retained)
    }

    /// Whether a response may reject the token: what can be said at a glance.
    #[inline]
    pub(crate) fn may_reject<B>(&self, response: &Response<B>) -> bool {
        self.reject_when.is_some() || response.status() == StatusCode::UNAUTHORIZED
    }

    /// Reads the verdict off a response; also gives what to send again, if that may help.
    pub(crate) fn judge<S, B, ResBody>(
        &self,
        response: Response<ResBody>,
        sent: Sent<S, R::Kept>,
        outcome: Option<Box<Outcome>>,
    ) -> (Response<ResBody>, Option<Unsent<S, R, B>>)
    where
        R: Replay<B>,
    {
        let (verdict, response) = self.verdict(response);
        if verdict == Verdict::Accepted {
            return (Outcome::attach(outcome, response), None);
        }
        let outcome = outcome.unwrap_or_default();
        match self.prepare_replay(sent) {
            Ok(unsent) => (response, Some(Unsent { outcome, ..unsent })),
            Err(reason) => (outcome.explain(reason, response), None),
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
    fn prepare_replay<S, B>(&self, sent: Sent<S, R::Kept>) -> Result<Unsent<S, R, B>, NotReplayed>
    where
        R: Replay<B>,
    {
        let rejection = self.cache.reject_generation(sent.generation);
        let spare = sent.reserve.map_err(|reason| match reason {
            NotKept::Body => self.replay.not_kept(),
            NotKept::OptedOut => NotReplayed::OptedOut,
            NotKept::SentTwice => {
                telemetry::rejected_again();
                NotReplayed::RejectedAgain
            }
        });
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

    fn restore<S, B>(&self, spare: Spare<S, R::Kept>) -> Result<Unsent<S, R, B>, NotReplayed>
    where
        R: Replay<B>,
    {
        let Original { head, body } = spare.original;
        let body = self
            .replay
            .restore(body)
            .ok_or_else(|| self.replay.not_restored())?;
        Ok(Unsent {
            inner: spare.inner,
            request: head.with_body(body),
            retained: Err(NotKept::SentTwice),
            waits_left: WAITS,
            outcome: Box::default(),
        })
    }
}
