//! What a service shares with its calls: the config, and a service to send replays with.

use std::{
    mem,
    ops::Deref,
    sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError},
};

use http::{Response, request};

use crate::{
    TokenOutcome,
    anchor::Anchor,
    config::Config,
    replay::ReplayPolicy,
    send::{self, NotKept, Retained, Unsent, WAITS},
    token::Generation,
};

/// The config, and a spare service, as a service holds them and hands them to its calls.
///
/// It does not keep the cache: calls that may need another token do.
///
/// Calls count references to the lease. Threads that count on the same one slow each other down, so a
/// service that lasts has a lease of its own.
pub(crate) struct Lease<S, R>(Arc<Leased<S, R>>);

struct Leased<S, R> {
    config: Config<R>,
    /// What the services of replays are clones of; never polled. One for all calls instead of one in
    /// each: it makes their futures smaller by a service, and counts no references for each call.
    ///
    /// Behind a lock, because a service need not be `Sync`. Nothing but a service's `clone` runs under it,
    /// and for a replay only.
    spare: OnceLock<Mutex<S>>,
}

impl<S, R> Lease<S, R> {
    pub(crate) fn new(config: Config<R>) -> Self {
        Self(Arc::new(Leased {
            config,
            spare: OnceLock::new(),
        }))
    }

    /// Another lease of the same config, without a spare service yet.
    pub(crate) fn another(&self) -> Self {
        Self::new(self.0.config.clone())
    }

    #[cfg(test)]
    pub(crate) fn counts_apart_from(&self, other: &Self) -> bool {
        !Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<S: Clone, R> Lease<S, R> {
    /// Makes the body to send, and what is kept of the request for a second send with a clone of
    /// `inner`. The request has `own_headers` headers other than the token, if that is on it already.
    #[inline]
    pub(crate) fn split<B>(
        &self,
        inner: &S,
        head: &request::Parts,
        own_headers: usize,
        body: B,
        anchor: &Arc<Anchor>,
    ) -> (R::Body, Retained<R::Kept>)
    where
        R: ReplayPolicy<B>,
    {
        let (body, kept) = self.replay.split(body);
        let retained = send::retain(kept, head, own_headers, anchor);
        if retained.is_ok() && self.0.spare.get().is_none() {
            self.keep_spare(inner.clone());
        }
        (body, retained)
    }

    #[cold]
    fn keep_spare(&self, spare: S) {
        // Another call may have been faster; then this one is dropped.
        let _ = self.0.spare.set(Mutex::new(spare));
    }

    /// Takes the service as it is now for the spare one, if there is one.
    ///
    /// What a service changes in itself, such as a connection that it replaces, is kept no longer, and
    /// replays do not go by what it was long ago.
    #[cold]
    pub(crate) fn renew_spare(&self, inner: &S) {
        let Some(spare) = self.0.spare.get() else {
            return;
        };
        let fresh = inner.clone();
        // A call does not wait: whoever has the lock renews the spare service, too, or replays.
        let replaced = match spare.try_lock() {
            Ok(mut spare) => mem::replace(&mut *spare, fresh),
            Err(TryLockError::Poisoned(spare)) => mem::replace(&mut *spare.into_inner(), fresh),
            Err(TryLockError::WouldBlock) => fresh,
        };
        // Not dropped under the lock: that is code of somebody else's, too.
        drop(replaced);
    }

    /// Reads the verdict off a response; also gives what to send again, if that may help.
    pub(crate) fn judge<B, ResBody>(
        &self,
        response: Response<ResBody>,
        sent: (Generation, Retained<R::Kept>),
        outcome: Option<Box<TokenOutcome>>,
    ) -> (Response<ResBody>, Option<Unsent<S, R, B>>)
    where
        R: ReplayPolicy<B>,
    {
        let (response, replay) = self.0.config.decide(response, sent, outcome);
        let unsent = replay.map(|second| Unsent {
            inner: self.spare(),
            request: second.request,
            retained: Err(NotKept::SentTwice),
            anchor: second.anchor,
            waits_left: WAITS,
            outcome: second.outcome,
        });
        (response, unsent)
    }

    fn spare(&self) -> S {
        let spare = self.0.spare.get();
        let spare = spare.expect("a spare service is kept with the first request that is");
        // A panic of `clone` leaves the service as it was.
        spare.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<S, R> Clone for Lease<S, R> {
    #[inline]
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S, R> Deref for Lease<S, R> {
    type Target = Config<R>;

    #[inline]
    fn deref(&self) -> &Config<R> {
        &self.0.config
    }
}
