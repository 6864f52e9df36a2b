//! The task of a flight, and what keeps a token warm between flights.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{Either, select},
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, sleep_until},
};

use super::{
    TokenCache, TokenRequest,
    cache::Keys,
    entry::{FlightResult, Generation, NewFlight},
    flight::{Attempts, Completer, IssuedToken, Queue},
    key::Key,
    settings::RefreshMode,
};
use crate::{
    Error,
    clock::{Clock, Moment},
    error::Kind,
    telemetry::{self, Cause},
};

tokio::task_local! {
    /// The key whose flight the current task is.
    static REQUESTING: usize;
}

/// Whether the token service is being called for this key, and would wait for itself.
pub(super) fn is_requesting(key: &Arc<Key>) -> bool {
    REQUESTING.try_with(|requesting| *requesting == address(key)) == Ok(true)
}

/// Identifies a key. The task of a flight keeps the memory, so that no other key gets it.
fn address(key: &Arc<Key>) -> usize {
    Arc::as_ptr(key).addr()
}

/// Spawns the task of a flight. Not under the lock: a runtime that is shutting down drops the task
/// immediately, which locks the entry.
pub(super) fn spawn(cache: &TokenCache, new_flight: Box<NewFlight>, runtime: &Handle) {
    let new_flight = *new_flight;
    let key = cache.key();
    let common = &key.common;
    let flight = &new_flight.awaited.flight;
    flight.starts_on(runtime.id());
    let queue = flight.queue();
    let mut request = TokenRequest::new(key.parameters.clone());
    request.rejected = new_flight.rejected;
    let attempts = Attempts {
        token_service: common.token_service.clone(),
        request,
        limits: common.settings.limits.clone(),
        deadline: flight.deadline(),
        clock: common.settings.clock.clone(),
        telemetry: telemetry::Flight::start(new_flight.cause, common.settings.name.clone()),
    };
    let task = FlightTask {
        key: Arc::clone(key),
        keys: Arc::downgrade(cache.keys()),
        handles: cache.keys().handles(),
        generation: new_flight.generation,
        cause: new_flight.cause,
        completer: Some(new_flight.completer),
    };
    runtime.spawn(REQUESTING.scope(address(key), task.run(attempts, queue)));
}

/// How long a token request waits until it is one of those that may be under way, in deadlines.
const MOST_DEADLINES_IN_QUEUE: u32 = 2;

/// The task of a flight. Holds no handle of the cache, so that it ends with the last one. Holds the
/// key, so that the key stays in the cache until the flight has ended.
struct FlightTask {
    key: Arc<Key>,
    keys: Weak<Keys>,
    /// Closed when the last handle is dropped.
    handles: watch::Receiver<()>,
    generation: Generation,
    cause: Cause,
    /// `None` once the flight has a result.
    completer: Option<Completer<FlightResult>>,
}

impl FlightTask {
    async fn run(mut self, mut attempts: Attempts, queue: Queue) {
        // Without a result, nobody is left who waits for one.
        if let Some(result) = self.result(&mut attempts, &queue).await {
            self.complete(result, attempts);
        }
        let refresh_mode = self.key.settings().refresh_mode;
        let warm = Warm {
            key: Arc::downgrade(&self.key),
            keys: Weak::clone(&self.keys),
            handles: self.handles.clone(),
            generation: self.generation,
        };
        // The sweep doesn't evict the token that has just arrived. A refresh that no call asked for,
        // however, is not a use of the key.
        let in_use = (self.cause != Cause::KeepWarm).then(|| Arc::clone(&self.key));
        drop(self);
        let Some(keys) = warm.keys.upgrade() else {
            return;
        };
        keys.sweep();
        drop((keys, in_use));
        if refresh_mode == RefreshMode::KeepWarm {
            warm.refresh_when_due().await;
        }
    }

    /// Returns `None` if nobody is left who could use the result.
    async fn result(
        &mut self,
        attempts: &mut Attempts,
        queue: &Queue,
    ) -> Option<Result<IssuedToken, Error>> {
        let completer = self.completer.as_ref()?;
        let span = attempts.telemetry.span();
        let request = request(&self.key, attempts, queue);
        // Panics of the token service are caught where it is called, so a panic here is the clock's.
        let request = AssertUnwindSafe(span.instrument(request)).catch_unwind();
        let request = completer.run(request);
        // The last handle may have gone since the task was spawned.
        let last_handle_dropped = self.handles.wait_for(|()| false);
        let result = match select(pin!(last_handle_dropped), pin!(request)).await {
            Either::Left(_) => return None,
            Either::Right((result, _)) => result?,
        };
        Some(result.unwrap_or_else(|_payload| Err(Error::clock_panicked())))
    }

    fn complete(&mut self, result: Result<IssuedToken, Error>, attempts: Attempts) {
        let settings = self.key.settings();
        let result = result.map_err(|error| error.in_cache(settings.name.as_ref()));
        let now = Clock::monotonic();
        let completed = self
            .key
            .update(|entry| entry.complete(self.generation, result, now, settings));
        drop(completed.to_drop);
        // Without a result, the completer is dropped later, and waiters find the flight lost.
        if let (Some(result), Some(completer)) = (completed.result, self.completer.take()) {
            let expires_at = result.as_ref().map(|token| token.expires_at());
            let waiters = completer.waiters();
            attempts.telemetry.completed(expires_at, waiters);
            completer.complete(result);
        }
    }
}

impl Drop for FlightTask {
    /// Lets waiters start another flight if the runtime shut down before this one had a result.
    fn drop(&mut self) {
        if self.completer.is_some() {
            let to_drop = self.key.update(|entry| entry.flight_lost(self.generation));
            drop(to_drop);
        }
    }
}

/// Waits for a place among the token requests that may be under way, and requests a token.
async fn request(key: &Key, attempts: &mut Attempts, queue: &Queue) -> Result<IssuedToken, Error> {
    // Not before the task runs: a runtime that nobody drives must not take a place.
    let _place = match Arc::clone(&key.common.places).try_acquire_owned() {
        Ok(place) => place,
        Err(_) => {
            let limit = attempts
                .limits
                .deadline
                .saturating_mul(MOST_DEADLINES_IN_QUEUE);
            queue.waits_for_up_to(limit);
            let place = wait_for_place(key, limit, attempts.clock.now()).await?;
            let now = attempts.clock.now();
            attempts.deadline = now.after(attempts.limits.deadline);
            place
        }
    };
    attempts.run().await
}

async fn wait_for_place(
    key: &Key,
    limit: Duration,
    now: Moment,
) -> Result<OwnedSemaphorePermit, Error> {
    let place = Arc::clone(&key.common.places).acquire_owned();
    let ends_at = now.after(limit).monotonic;
    let time_is_up = catch_unwind(|| sleep_until(ends_at));
    let time_is_up = time_is_up.map_err(|_| Error::new(Kind::NoTimers))?;
    match select(pin!(place), pin!(time_is_up)).await {
        Either::Left((place, _)) => Ok(place.expect("the semaphore is never closed")),
        Either::Right(_) => Err(Error::new(Kind::Queued(limit))),
    }
}

/// Refreshes a token that is kept warm. Doesn't hold the key, so that an unused key can be evicted.
struct Warm {
    key: Weak<Key>,
    keys: Weak<Keys>,
    handles: watch::Receiver<()>,
    /// The flight that brought the token.
    generation: Generation,
}

impl Warm {
    /// Waits until the token is due for refresh, and starts the flight that carries on from there.
    async fn refresh_when_due(mut self) {
        let earliest = Clock::monotonic() + SHORTEST_KEEP_WARM_PAUSE;
        while let Some(check_at) = self.check_with_any_clock(earliest) {
            let last_handle_dropped = self.handles.changed();
            select(pin!(sleep_until(check_at)), pin!(last_handle_dropped)).await;
        }
    }

    /// Checks again later if the wall clock panics.
    fn check_with_any_clock(&self, earliest: Instant) -> Option<Instant> {
        let check = AssertUnwindSafe(|| self.check(earliest));
        catch_unwind(check)
            .unwrap_or_else(|_payload| Some(Clock::monotonic() + CLOCK_CHECK_INTERVAL))
    }

    /// Starts the refresh if it is due. Otherwise, returns when to check again.
    fn check(&self, earliest: Instant) -> Option<Instant> {
        let (key, keys) = (self.key.upgrade()?, self.keys.upgrade()?);
        let runtime = Handle::try_current().ok()?;
        let now = key.now();
        let due = key.lock().keep_warm_refresh_at(self.generation, &now)?;
        let due = due.max(earliest);
        if now.monotonic < due {
            return Some(due.min(now.after(CLOCK_CHECK_INTERVAL).monotonic));
        }
        let new_flight =
            key.update(|entry| entry.keep_warm_refresh(self.generation, &now, key.settings()));
        let cache = TokenCache::of(key, keys);
        spawn(&cache, new_flight?, &runtime);
        None
    }
}

/// How long a token that is kept warm isn't refreshed, at least. Otherwise, tokens that expire
/// immediately would be requested without a pause.
const SHORTEST_KEEP_WARM_PAUSE: Duration = Duration::from_secs(1);

/// How often both clocks are checked while a token is kept warm: timers stand still while the machine
/// is suspended, and don't follow the wall clock when it is set.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(60);
