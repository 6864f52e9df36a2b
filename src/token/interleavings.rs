//! Every way in which transitions of the entry and readers of the snapshot can come in between each
//! other; see `replay/interleavings.rs` for how to run it.
//!
//! What it shows is that the snapshot follows the entry: the token that the last transition left is
//! the one that calls are given, and no call sees an older one once it was replaced. Flights, waiters
//! and wakers are not part of it: they meet in `tokio::sync::watch`.

use std::sync::Arc;

use loom::{model::Builder, sync::Mutex, thread};
use tower::{BoxError, service_fn};

use super::{
    AccessToken, Generation, Rejection, TokenCache, TokenRequest,
    entry::{Join, NewFlight},
    flight::IssuedToken,
    last_seen::LastSeen,
};

/// What the snapshot is made of here: one atomic cell, as `arc_swap` promises to be.
pub(super) struct ArcSwapOption<T>(Mutex<Option<Arc<T>>>);

impl<T> ArcSwapOption<T> {
    pub(super) fn empty() -> Self {
        Self(Mutex::new(None))
    }

    pub(super) fn load(&self) -> Option<Arc<T>> {
        self.load_full()
    }

    pub(super) fn load_full(&self) -> Option<Arc<T>> {
        self.0
            .lock()
            .expect("nothing panics with this lock")
            .clone()
    }

    pub(super) fn store(&self, value: Option<Arc<T>>) {
        // What was there is dropped after unlocking.
        let _replaced = {
            let mut cell = self.0.lock().expect("nothing panics with this lock");
            std::mem::replace(&mut *cell, value)
        };
    }
}

/// A cache with "token-1", and a refresh that is about to land.
fn refreshing() -> (TokenCache, Generation, NewFlight) {
    let never_asked =
        service_fn(|_: TokenRequest| async { Err::<AccessToken, BoxError>("".into()) });
    let cache = TokenCache::new(never_asked);
    let Join::Start(new_flight) =
        cache.transition(|entry, now, settings| entry.join(None, now, settings))
    else {
        unreachable!("an empty entry has to ask");
    };
    let first = new_flight.generation;
    complete(&cache, new_flight, "token-1");
    let refresh =
        cache.transition(|entry, now, settings| entry.keep_warm_refresh(first, now, settings));
    (cache, first, refresh.expect("no other flight has departed"))
}

fn complete(cache: &TokenCache, new_flight: NewFlight, text: &'static str) {
    let landed = cache.transition(|entry, now, settings| {
        let requested_at = *now;
        let token = AccessToken::new(text).map(|token| IssuedToken {
            token,
            requested_at,
        });
        entry.complete(new_flight.generation, token, now, settings)
    });
    drop((landed, new_flight));
}

/// A service that makes one call after the other.
struct Caller<'a>(&'a TokenCache, LastSeen);

impl<'a> Caller<'a> {
    /// One that has seen the token that is there.
    fn of(cache: &'a TokenCache) -> Self {
        let mut caller = Self(cache, LastSeen::new());
        caller.token();
        caller
    }

    /// The generation of the token that a call would be sent with now.
    fn token(&mut self) -> Option<Generation> {
        let Self(cache, view) = self;
        let _ = view.see(cache);
        Some(view.token()?.generation())
    }
}

fn in_every_interleaving(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

#[test]
fn token_that_lands_while_the_last_one_is_rejected_is_used() {
    in_every_interleaving(|| {
        let (cache, first, refresh) = refreshing();
        let second = refresh.generation;
        let mut caller = Caller::of(&cache);
        let landing = {
            let cache = cache.clone();
            thread::spawn(move || complete(&cache, refresh, "token-2"))
        };

        let rejection = cache.reject_generation(first);

        if matches!(rejection, Rejection::Withheld) {
            assert_ne!(caller.token(), Some(first), "it is given to nobody");
        }
        landing.join().expect("nothing panics");
        assert_eq!(caller.token(), Some(second));
    });
}

#[test]
fn token_that_is_rejected_while_its_refresh_is_lost_stays_withheld() {
    in_every_interleaving(|| {
        let (cache, first, refresh) = refreshing();
        let mut caller = Caller::of(&cache);
        let losing = {
            let cache = cache.clone();
            thread::spawn(move || {
                let lost =
                    cache.transition(|entry, now, _| entry.flight_lost(refresh.generation, now));
                drop((lost, refresh));
            })
        };

        let rejection = cache.reject_generation(first);

        assert!(matches!(rejection, Rejection::Withheld));
        assert_eq!(caller.token(), None);
        losing.join().expect("nothing panics");
        assert_eq!(caller.token(), None);
    });
}

#[test]
fn call_is_not_given_an_older_token_than_the_call_before_it() {
    in_every_interleaving(|| {
        let (cache, first, refresh) = refreshing();
        let second = refresh.generation;
        let mut caller = Caller::of(&cache);
        let landing = {
            let cache = cache.clone();
            thread::spawn(move || complete(&cache, refresh, "token-2"))
        };

        let before = caller.token();
        let after = caller.token();

        assert!(before >= Some(first) && after >= before);
        landing.join().expect("nothing panics");
        assert_eq!(caller.token(), Some(second));
    });
}
