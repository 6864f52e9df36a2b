//! The state of one key: its entry behind a lock, and the snapshot that calls read without the lock.

use std::sync::{Arc, PoisonError};
#[cfg(not(all(test, interleavings)))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};

#[cfg(not(all(test, interleavings)))]
use arc_swap::ArcSwapOption;
#[cfg(all(test, interleavings))]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};
use tokio::{runtime::Handle, sync::Semaphore};

#[cfg(all(test, interleavings))]
use super::interleavings::ArcSwapOption;
use super::{
    TokenParameters,
    entry::{CachedToken, Entry, Join},
    flight::SharedTokenService,
    settings::Settings,
};
use crate::{clock::Moment, telemetry};

/// What all keys of a cache share.
pub(super) struct Common {
    pub(super) token_service: SharedTokenService,
    pub(super) settings: Settings,
    /// One permit per token request that may be under way.
    pub(super) places: Arc<Semaphore>,
}

/// A key of a cache with its token.
///
/// Handles and the tasks of flights hold references. A key without any is unused.
pub(super) struct Key {
    pub(super) parameters: TokenParameters,
    pub(super) common: Arc<Common>,
    /// The entry's current token, which calls read without the lock.
    snapshot: ArcSwapOption<CachedToken>,
    /// Counts changes of the snapshot, so that a service can cheaply check whether there was one.
    edition: AtomicU64,
    /// Locked for one transition at a time. Meanwhile, nothing is polled, woken, spawned or dropped
    /// that could call the cache.
    entry: Mutex<Entry>,
}

/// The result of a transition.
pub(super) struct Update<T> {
    pub(super) result: T,
    /// The transition withheld the token that was in use.
    pub(super) newly_withheld: bool,
}

impl Key {
    pub(super) fn new(parameters: TokenParameters, common: Arc<Common>) -> Self {
        Self {
            parameters,
            common,
            snapshot: ArcSwapOption::empty(),
            edition: AtomicU64::new(0),
            entry: Mutex::default(),
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.common.settings
    }

    /// The runtime that token requests run on: the named one, otherwise the caller's.
    pub(super) fn runtime(&self) -> Option<Handle> {
        let named = self.settings().runtime.clone();
        named.or_else(|| Handle::try_current().ok())
    }

    /// The token that calls may use until it expires.
    pub(super) fn current(&self) -> Option<Arc<CachedToken>> {
        self.snapshot.load_full()
    }

    /// How often the current token has changed, to or from none included.
    #[inline]
    pub(super) fn edition(&self) -> u64 {
        // A reader that sees an edition has to find its snapshot, or a later one.
        self.edition.load(Ordering::Acquire)
    }

    /// Makes one transition and publishes the token that is current after it.
    pub(super) fn update<T>(&self, transition: impl FnOnce(&mut Entry) -> T) -> T {
        let mut entry = self.lock();
        let result = transition(&mut entry);
        self.publish(entry.current());
        result
    }

    pub(super) fn update_watching_withheld<T>(
        &self,
        transition: impl FnOnce(&mut Entry) -> T,
    ) -> Update<T> {
        self.update(|entry| {
            let was_in_use = entry.current().is_some();
            let result = transition(entry);
            Update {
                result,
                newly_withheld: was_in_use && entry.current().is_none(),
            }
        })
    }

    pub(super) fn now(&self) -> Moment {
        self.settings().clock.now()
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.settings().name.as_deref()
    }

    pub(super) fn join(&self, rejected: Option<&CachedToken>) -> Join {
        let now = self.now();
        let update =
            self.update_watching_withheld(|entry| entry.join(rejected, &now, self.settings()));
        if update.newly_withheld {
            telemetry::token_withheld(self.name());
        }
        update.result
    }

    /// The token that a call got a while ago, if the call may still send it.
    pub(super) fn still_usable(
        &self,
        token: &Arc<CachedToken>,
        now: &Moment,
    ) -> Option<Arc<CachedToken>> {
        let may_serve = self.lock().may_still_serve(token, now);
        may_serve.then(|| Arc::clone(token))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Entry> {
        // Transitions don't panic, so a poisoned entry is consistent.
        self.entry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, current: Option<&Arc<CachedToken>>) {
        let published = self.snapshot.load();
        let is_published = match (published.as_ref(), current) {
            (Some(published), Some(current)) => Arc::ptr_eq(published, current),
            (None, None) => true,
            _ => false,
        };
        if !is_published {
            self.snapshot.store(current.cloned());
            // After the store: a reader that sees this edition finds this snapshot, or a later one.
            self.edition.fetch_add(1, Ordering::Release);
        }
    }
}
