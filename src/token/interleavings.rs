//! Every interleaving of transitions of the entry with readers of the snapshot, under a weak memory
//! model. `replay/interleavings.rs` says how to run these tests.
//!
//! They show that the snapshot follows the entry: calls get the token that the last transition made
//! current, and once a call has seen a token, no later call gets an older one. Flights and wakers are
//! not covered: waiters meet in `tokio::sync::watch`.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use loom::{
    model::Builder,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};
use tower::{BoxError, service_fn};

use super::{
    AccessToken, Rejection, TokenCache, TokenRequest,
    entry::{Join, NewFlight},
    flight::IssuedToken,
    last_seen::LastSeen,
    settings::Settings,
};
use crate::clock::Clock;

/// Replaces `arc_swap::ArcSwapOption`: an atomic index in place of its atomic pointer.
///
/// The orderings are those that `arc_swap` documents for the pointer: an `AcqRel` swap and `Acquire`
/// loads. The `SeqCst` that it uses serves its own bookkeeping; loom would answer such a load with the
/// newest store, whether or not anything orders the two.
pub(super) struct ArcSwapOption<T> {
    index: AtomicUsize,
    /// Every value stored so far. Not loom's mutex, which would order the loads and stores around it.
    values: Mutex<Vec<Option<Arc<T>>>>,
}

impl<T> ArcSwapOption<T> {
    /// More values than any test here stores.
    const MOST_VALUES: usize = 8;

    pub(super) fn empty() -> Self {
        Self {
            index: AtomicUsize::new(0),
            values: Mutex::new(vec![None]),
        }
    }

    pub(super) fn load(&self) -> Option<Arc<T>> {
        self.load_full()
    }

    pub(super) fn load_full(&self) -> Option<Arc<T>> {
        let index = self.index.load(Ordering::Acquire);
        self.values.lock().unwrap_or_else(PoisonError::into_inner)[index].clone()
    }

    pub(super) fn store(&self, value: Option<Arc<T>>) {
        let index = {
            let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
            assert!(values.len() < Self::MOST_VALUES, "a test stores too often");
            values.push(value);
            values.len() - 1
        };
        self.index.swap(index, Ordering::AcqRel);
    }
}

/// A cache that holds "token-1", and a refresh that is about to complete.
fn refreshing() -> (TokenCache, Box<NewFlight>) {
    let never_called =
        service_fn(|_: TokenRequest| async { Err::<AccessToken, BoxError>("".into()) });
    let settings = Settings {
        // So that callers look again only if the edition has changed.
        clock: Clock::default().read_every(Duration::from_secs(3600)),
        ..Settings::default()
    };
    let cache = TokenCache::with_settings(never_called, settings);
    let Join::Start(new_flight) =
        cache.transition(|entry, now, settings| entry.join(None, now, settings))
    else {
        unreachable!("an empty entry starts a flight");
    };
    let first = new_flight.generation;
    complete(&cache, new_flight, "token-1");
    let refresh =
        cache.transition(|entry, now, settings| entry.keep_warm_refresh(first, now, settings));
    (cache, refresh.expect("there is no later flight"))
}

fn complete(cache: &TokenCache, new_flight: Box<NewFlight>, text: &'static str) {
    let completed = cache.transition(|entry, now, settings| {
        let issued = AccessToken::new(text).map(|token| IssuedToken {
            token,
            requested_at: *now,
            received_at: *now,
        });
        entry.complete(new_flight.generation, issued, now.monotonic, settings)
    });
    drop((completed, new_flight));
}

/// A service that makes one call after the other.
struct Caller<'a>(&'a TokenCache, LastSeen);

impl<'a> Caller<'a> {
    /// Returns a caller that has seen the current token.
    fn of(cache: &'a TokenCache) -> Self {
        let mut caller = Self(cache, LastSeen::nothing());
        caller.token();
        caller
    }

    /// The text of the token that a call would send now.
    fn token(&mut self) -> Option<String> {
        let Self(cache, last_seen) = self;
        Some(last_seen.token(cache)?.token().expose().to_owned())
    }
}

fn token(text: &str) -> AccessToken {
    AccessToken::new(text).expect("the text can be sent")
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn in_every_interleaving(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

#[test]
fn token_that_arrives_while_the_last_one_is_rejected_is_used() {
    in_every_interleaving(|| {
        let (cache, refresh) = refreshing();
        let mut caller = Caller::of(&cache);
        let completing = {
            let cache = cache.clone();
            thread::spawn(move || complete(&cache, refresh, "token-2"))
        };

        let rejection = cache.reject(&token("token-1"));

        if matches!(rejection, Rejection::Withheld) {
            assert_ne!(caller.token(), text("token-1"), "a withheld token is used");
        }
        completing.join().expect("nothing panics");
        assert_eq!(caller.token(), text("token-2"));
    });
}

#[test]
fn token_that_is_rejected_while_its_refresh_is_lost_stays_withheld() {
    in_every_interleaving(|| {
        let (cache, refresh) = refreshing();
        let mut caller = Caller::of(&cache);
        let losing = {
            let cache = cache.clone();
            thread::spawn(move || {
                let lost = cache.transition(|entry, _, _| entry.flight_lost(refresh.generation));
                drop((lost, refresh));
            })
        };

        let rejection = cache.reject(&token("token-1"));

        assert!(matches!(rejection, Rejection::Withheld));
        assert_eq!(caller.token(), None);
        losing.join().expect("nothing panics");
        assert_eq!(caller.token(), None);
    });
}

#[test]
fn call_does_not_get_an_older_token_than_the_call_before() {
    in_every_interleaving(|| {
        let (cache, refresh) = refreshing();
        let mut caller = Caller::of(&cache);
        let completing = {
            let cache = cache.clone();
            thread::spawn(move || complete(&cache, refresh, "token-2"))
        };

        let before = caller.token();
        let after = caller.token();

        assert!(before >= text("token-1") && after >= before);
        completing.join().expect("nothing panics");
        assert_eq!(caller.token(), text("token-2"));
    });
}

#[test]
fn token_that_arrives_during_the_first_look_of_a_service_is_used() {
    in_every_interleaving(|| {
        let (cache, refresh) = refreshing();
        let completing = {
            let cache = cache.clone();
            thread::spawn(move || complete(&cache, refresh, "token-2"))
        };
        let mut caller = Caller(&cache, LastSeen::nothing());

        assert!(caller.token() >= text("token-1"));

        completing.join().expect("nothing panics");
        assert_eq!(caller.token(), text("token-2"));
    });
}
