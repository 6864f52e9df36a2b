//! Which token is current, who may use it, and what is under way to replace it.
//!
//! Contains every decision of the cache, but no locks and no tasks: each method is one transition,
//! made under the cache's lock. What must not be dropped under that lock is returned to the caller.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    AccessToken,
    flight::{Completer, Flight, IssuedToken},
    schedule::{Freshness, Schedule},
    settings::Settings,
};
use crate::{Error, clock::Moment, telemetry::Cause};

/// How long a token is used before a lost refresh is started again.
const LOST_REFRESH_PAUSE: Duration = Duration::from_secs(1);

/// What all waiters of a flight get.
pub(crate) type FlightResult = Result<Arc<CachedToken>, Error>;

/// Counts flights. A token has the number of the flight that returned it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Generation(u64);

/// A token with its schedule.
#[derive(Clone)]
pub(crate) struct CachedToken {
    token: AccessToken,
    generation: Generation,
    /// The flight that returned this token first. Those from it to `generation` were refreshes that
    /// returned the same token again.
    first_generation: Generation,
    schedule: Schedule,
    /// The token may only serve the calls that waited for its flight.
    expired_on_arrival: bool,
}

impl CachedToken {
    pub(crate) fn token(&self) -> &AccessToken {
        &self.token
    }

    /// Identifies the token when the API rejects it.
    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    pub(super) fn fresh_until(&self) -> Instant {
        self.schedule.fresh_until()
    }

    pub(super) fn expires_at(&self) -> &Moment {
        self.schedule.expires_at()
    }

    pub(super) fn freshness(&self, now: &Moment) -> Freshness {
        self.schedule.freshness(now)
    }

    /// Whether the token may go to a call whose previous token had the generation `rejected`.
    pub(super) fn may_serve(&self, rejected: Option<Generation>, now: &Moment) -> bool {
        let is_rejected = rejected.is_some_and(|rejected| self.came_with(rejected));
        !is_rejected && self.freshness(now) != Freshness::Expired
    }

    /// Whether the flight `generation` returned this token, for the first time or again.
    fn came_with(&self, generation: Generation) -> bool {
        (self.first_generation..=self.generation).contains(&generation)
    }

    /// Returns the token for a call that didn't wait for its flight.
    ///
    /// A token that was expired on arrival gets here only if a clock was set back. Such a call may
    /// use it, but not past its expiry.
    pub(super) fn for_later_calls(self: &Arc<Self>) -> Arc<Self> {
        if !self.expired_on_arrival {
            return Arc::clone(self);
        }
        Arc::new(Self {
            expired_on_arrival: false,
            ..Self::clone(self)
        })
    }

    fn refresh_not_before(&self, refresh_at: Instant) -> Arc<Self> {
        Arc::new(Self {
            schedule: self.schedule.refresh_not_before(refresh_at),
            ..self.clone()
        })
    }
}

impl fmt::Debug for CachedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedToken")
            .field("token", &self.token)
            .field("generation", &self.generation)
            .field("schedule", &self.schedule)
            .finish_non_exhaustive()
    }
}

/// What a call that needs a token has to do.
pub(super) enum Join {
    /// Use this token.
    Token(Arc<CachedToken>),
    /// Wait for the flight that is under way.
    Wait(Flight<FlightResult>),
    /// Start this flight and wait for it.
    Start(NewFlight),
    /// Fail with the error of the last flight, which ended moments ago.
    Failing(Error),
    /// Give up: only the rejected token is there, and it was renewed too recently to renew it again.
    CoolingDown,
}

/// A flight that is registered as active and still has to be spawned.
pub(super) struct NewFlight {
    pub(super) flight: Flight<FlightResult>,
    pub(super) completer: Completer<FlightResult>,
    pub(super) generation: Generation,
    pub(super) cause: Cause,
    /// The token that the API rejected, if the flight renews it.
    pub(super) rejected: Option<AccessToken>,
    /// Must not be dropped under the lock.
    _replaced: Option<Flight<FlightResult>>,
}

/// The outcome of a completed flight.
#[must_use = "waiters have to be told the result"]
pub(super) struct Completed {
    /// What the waiters get; `None` if the flight counts as lost.
    pub(super) result: Option<FlightResult>,
    pub(super) to_drop: DropAfterUnlock,
}

/// What a transition replaced. Dropping the last handle to a flight wakes the flight's task, and
/// dropping an error may run any code.
#[must_use = "has to be dropped after unlocking"]
#[derive(Default)]
pub(super) struct DropAfterUnlock {
    _flight: Option<Flight<FlightResult>>,
    _failure: Option<Failure>,
}

/// What happens to a token that the API rejected.
///
/// Returned by [`TokenCache::reject`](crate::TokenCache::reject).
///
/// # Examples
///
/// ```
/// use tower_client_credentials::Rejection;
///
/// /// Returns whether to try again with the next token.
/// fn may_try_again(rejection: &Rejection) -> bool {
///     matches!(rejection, Rejection::Withheld | Rejection::Replaced)
/// }
/// # assert!(!may_try_again(&Rejection::CoolingDown));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Rejection {
    /// The cache no longer returns this token. The next caller waits for its renewal.
    Withheld,
    /// The cache already holds a newer token.
    Replaced,
    /// The token stays in use, because the cool-down after the last renewal hasn't ended.
    CoolingDown,
    /// The token stays in use, because the last token request failed and its back-off hasn't ended.
    Failing(Error),
}

impl Rejection {
    /// The variant's name in metrics and events.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Withheld => "withheld",
            Self::Replaced => "replaced",
            Self::CoolingDown => "cooling_down",
            Self::Failing(_) => "failing",
        }
    }
}

/// The newest token and the flight that will replace it.
#[derive(Default)]
pub(super) struct Entry {
    cached: Option<Arc<CachedToken>>,
    availability: Availability,
    flight: Option<ActiveFlight>,
    last_flight: Generation,
    /// When the last renewal ended, for the cool-down.
    renewed_at: Option<Instant>,
    failure: Option<Failure>,
}

/// Whether the cached token may be used until it expires.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Availability {
    #[default]
    Available,
    /// The API rejected the token, and its renewal hasn't ended.
    Withheld,
}

/// A flight without a result.
struct ActiveFlight {
    generation: Generation,
    flight: Flight<FlightResult>,
    purpose: Purpose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Refresh,
    /// The token request names the token that the API rejected.
    Renewal,
}

/// The failure of the last flight, which all callers get until `until`.
struct Failure {
    error: Error,
    in_a_row: u32,
    until: Instant,
}

impl Entry {
    /// The token that calls may use until it expires.
    pub(super) fn current(&self) -> Option<&Arc<CachedToken>> {
        self.cached
            .as_ref()
            .filter(|_| self.availability == Availability::Available)
    }

    /// The token that came last, whatever has become of it.
    pub(super) fn last_token(&self) -> Option<Arc<CachedToken>> {
        self.cached.clone()
    }

    /// Decides what a call does that found no token, or only the one that the API `rejected`.
    pub(super) fn join(
        &mut self,
        rejected: Option<Generation>,
        now: &Moment,
        settings: &Settings,
    ) -> Join {
        // Checked again under the lock: a flight may have completed in the meantime.
        if let Some(cached) = self
            .current()
            .filter(|token| token.may_serve(rejected, now))
        {
            return Join::Token(cached.for_later_calls());
        }
        // A usable token is current, so it is the rejected one, which is in use again because its
        // renewal failed. Treat the rejection as a new one.
        if let Some(generation) = rejected.filter(|_| self.has_usable(now)) {
            match self.reject(generation, now, settings) {
                Rejection::CoolingDown => return Join::CoolingDown,
                Rejection::Failing(error) => return Join::Failing(error),
                Rejection::Withheld | Rejection::Replaced => {}
            }
        }
        if let Some(flight) = self.active_flight(now) {
            return Join::Wait(flight.clone());
        }
        if let Some(error) = self.recent_failure(now) {
            return Join::Failing(error);
        }
        let cause = match self.cached {
            None => Cause::First,
            Some(_) => Cause::Expired,
        };
        Join::Start(self.start_flight(cause, now, settings))
    }

    /// Starts the refresh of a token that a call found due, unless another call already has.
    pub(super) fn refresh(&mut self, now: &Moment, settings: &Settings) -> Option<NewFlight> {
        let cached = self.current()?;
        // An active flight postpones the next refresh, so the token isn't due while one is active.
        let is_due = cached.freshness(now) == Freshness::DueForRefresh;
        is_due.then(|| self.start_flight(Cause::DueForRefresh, now, settings))
    }

    /// When to refresh a token that is kept warm; `None` if a flight after `last` takes care of it.
    pub(super) fn keep_warm_refresh_at(&self, last: Generation, now: &Moment) -> Option<Instant> {
        if self.last_flight != last {
            return None;
        }
        Some(match (&self.failure, &self.cached) {
            (Some(failure), _) => failure.until,
            (None, Some(cached)) if cached.freshness(now) != Freshness::Expired => {
                cached.schedule.refresh_at()
            }
            // The wall clock ended the token early, or the flight was lost.
            (None, _) => now.monotonic,
        })
    }

    /// Starts the refresh of a token that is kept warm, unless there was a flight after `last`.
    pub(super) fn keep_warm_refresh(
        &mut self,
        last: Generation,
        now: &Moment,
        settings: &Settings,
    ) -> Option<NewFlight> {
        (self.last_flight == last).then(|| self.start_flight(Cause::KeepWarm, now, settings))
    }

    /// The API rejected the token of this generation.
    pub(super) fn reject(
        &mut self,
        generation: Generation,
        now: &Moment,
        settings: &Settings,
    ) -> Rejection {
        if !self.is_cached_generation(generation) {
            return Rejection::Replaced;
        }
        if self.availability == Availability::Withheld {
            return Rejection::Withheld;
        }
        if self.is_cooling_down(now, settings) {
            return Rejection::CoolingDown;
        }
        if let Some(error) = self.recent_failure(now) {
            return Rejection::Failing(error);
        }
        self.availability = Availability::Withheld;
        Rejection::Withheld
    }

    /// The generation of the cached token, if `token` is the same.
    pub(super) fn generation_of(&self, token: &AccessToken) -> Option<Generation> {
        let cached = self.cached.as_ref()?;
        cached.token.is_same(token).then_some(cached.generation)
    }

    /// A flight ended with a token or an error.
    pub(super) fn complete(
        &mut self,
        generation: Generation,
        result: Result<IssuedToken, Error>,
        now: &Moment,
        settings: &Settings,
    ) -> Completed {
        let Some(active) = self.remove_flight(generation) else {
            return self.complete_replaced(generation, result, now, settings);
        };
        if result.is_err() && now.monotonic >= active.flight.overdue_at() {
            // Nobody drove the flight's runtime, so the error says nothing about the token service.
            return Completed {
                result: None,
                to_drop: self.lose(active, now),
            };
        }
        if active.purpose == Purpose::Renewal {
            self.renewed_at = Some(now.monotonic);
        }
        let last_failure = self.failure.take();
        let result = match result {
            Ok(issued) => Ok(self.store(&active, issued, now, settings)),
            Err(error) => {
                self.availability = Availability::Available;
                Err(self.record_failure(error, last_failure.as_ref(), now, settings))
            }
        };
        Completed {
            result: Some(result),
            to_drop: DropAfterUnlock {
                _flight: Some(active.flight),
                _failure: last_failure,
            },
        }
    }

    /// A flight was dropped before it had a result. Whoever needs a token starts another.
    pub(super) fn flight_lost(&mut self, generation: Generation, now: &Moment) -> DropAfterUnlock {
        match self.remove_flight(generation) {
            Some(active) => self.lose(active, now),
            None => DropAfterUnlock::default(),
        }
    }

    /// Postpones a refresh that can't start here and now. An active flight is not postponed.
    pub(super) fn retry_refresh_later(&mut self, now: &Moment) {
        if self.active_flight(now).is_none() {
            self.postpone_refresh(now.after(LOST_REFRESH_PAUSE).monotonic);
        }
    }

    /// Lets calls use a rejected token again because nobody can renew it.
    pub(super) fn make_available(&mut self, now: &Moment) {
        if self.active_flight(now).is_none() {
            self.availability = Availability::Available;
        }
    }

    /// Whether a token that has expired may still serve a call that waited for its flight.
    pub(super) fn may_serve_waiter(&self, token: &CachedToken) -> bool {
        // Compared by text: a later flight may have returned the same token, which was then rejected.
        let is_withheld =
            self.availability == Availability::Withheld && self.is_cached(&token.token);
        token.expired_on_arrival && !is_withheld
    }

    /// Another flight has taken this one's place, and its token must not replace the other's.
    fn complete_replaced(
        &self,
        generation: Generation,
        result: Result<IssuedToken, Error>,
        now: &Moment,
        settings: &Settings,
    ) -> Completed {
        let result =
            result.map(|issued| Arc::new(self.cached_token(generation, issued, now, settings)));
        Completed {
            result: Some(result),
            to_drop: DropAfterUnlock::default(),
        }
    }

    fn lose(&mut self, active: ActiveFlight, now: &Moment) -> DropAfterUnlock {
        self.retry_refresh_later(now);
        DropAfterUnlock {
            _flight: Some(active.flight),
            _failure: None,
        }
    }

    /// Makes the token of an active flight the current one.
    fn store(
        &mut self,
        active: &ActiveFlight,
        issued: IssuedToken,
        now: &Moment,
        settings: &Settings,
    ) -> Arc<CachedToken> {
        let is_refresh = active.purpose == Purpose::Refresh;
        let same = self.cached.as_ref();
        let same = same.filter(|cached| is_refresh && cached.token.is_same(&issued.token));
        let first_generation = same.map(|cached| cached.first_generation);

        let mut token = self.cached_token(active.generation, issued, now, settings);
        match first_generation {
            // A rejection under an earlier generation concerns this token. If there was one while
            // the refresh was under way, the renewal is still due.
            Some(first_generation) => token.first_generation = first_generation,
            None => self.availability = Availability::Available,
        }
        let token = Arc::new(token);
        self.cached = Some(Arc::clone(&token));
        token
    }

    fn active_flight(&self, now: &Moment) -> Option<&Flight<FlightResult>> {
        let flight = &self.flight.as_ref()?.flight;
        (now.monotonic < flight.overdue_at()).then_some(flight)
    }

    fn has_usable(&self, now: &Moment) -> bool {
        self.current()
            .is_some_and(|cached| cached.may_serve(None, now))
    }

    fn recent_failure(&self, now: &Moment) -> Option<Error> {
        let failure = self.failure.as_ref()?;
        let left = failure.until.checked_duration_since(now.monotonic)?;
        (!left.is_zero()).then(|| failure.error.clone().with_retry_after(Some(left)))
    }

    fn is_cooling_down(&self, now: &Moment, settings: &Settings) -> bool {
        self.renewed_at.is_some_and(|renewed_at| {
            now.monotonic.saturating_duration_since(renewed_at) < settings.cool_down
        })
    }

    /// Registers a flight, which renews the cached token if that is withheld.
    fn start_flight(&mut self, cause: Cause, now: &Moment, settings: &Settings) -> NewFlight {
        let generation = Generation(self.last_flight.0 + 1);
        self.last_flight = generation;
        let (flight, completer) = Flight::prepare(now, settings.limits.deadline);
        // Calls need not check for a refresh while this flight may bring a token.
        self.postpone_refresh(flight.overdue_at());
        let rejected = self.withheld_token();
        let (purpose, cause) = match rejected {
            None => (Purpose::Refresh, cause),
            Some(_) => (Purpose::Renewal, Cause::Rejected),
        };
        let replaced = self.flight.replace(ActiveFlight {
            generation,
            flight: flight.clone(),
            purpose,
        });
        NewFlight {
            flight,
            completer,
            generation,
            cause,
            rejected,
            _replaced: replaced.map(|active| active.flight),
        }
    }

    fn withheld_token(&self) -> Option<AccessToken> {
        match self.availability {
            Availability::Available => None,
            Availability::Withheld => self.cached.as_ref().map(|cached| cached.token.clone()),
        }
    }

    fn remove_flight(&mut self, generation: Generation) -> Option<ActiveFlight> {
        self.flight
            .take_if(|active| active.generation == generation)
    }

    fn is_cached_generation(&self, generation: Generation) -> bool {
        let cached = self.cached.as_ref();
        cached.is_some_and(|cached| cached.came_with(generation))
    }

    fn is_cached(&self, token: &AccessToken) -> bool {
        let cached = self.cached.as_ref();
        cached.is_some_and(|cached| cached.token.is_same(token))
    }

    fn cached_token(
        &self,
        generation: Generation,
        issued: IssuedToken,
        now: &Moment,
        settings: &Settings,
    ) -> CachedToken {
        let IssuedToken {
            token,
            requested_at,
        } = issued;
        let mut schedule =
            settings
                .timing
                .schedule(requested_at, token.lifetime(), fastrand::f64());
        if self.is_cached(&token) {
            schedule = schedule.for_unchanged_token(now);
        }
        CachedToken {
            token,
            generation,
            first_generation: generation,
            schedule,
            expired_on_arrival: schedule.freshness(now) == Freshness::Expired,
        }
    }

    /// Records a failure and returns its error, which says when the next token request may follow.
    fn record_failure(
        &mut self,
        error: Error,
        last: Option<&Failure>,
        now: &Moment,
        settings: &Settings,
    ) -> Error {
        let in_a_row = last.map_or(1, |last| last.in_a_row.saturating_add(1));
        let pause = settings
            .backoff
            .pause(in_a_row, error.retry_after(), fastrand::f64());
        let error = error.with_retry_after(Some(pause));
        let until = now.after(pause).monotonic;
        self.postpone_refresh(until);
        self.failure = Some(Failure {
            error: error.clone(),
            in_a_row,
            until,
        });
        error
    }

    fn postpone_refresh(&mut self, refresh_at: Instant) {
        if let Some(cached) = &mut self.cached {
            *cached = cached.refresh_not_before(refresh_at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const SECOND: Duration = Duration::from_secs(1);
    const NANOSECOND: Duration = Duration::from_nanos(1);

    /// An entry with a token that is due for refresh 1490 s after the returned moment.
    fn entry() -> (Entry, Moment, Settings) {
        let mut settings = Settings::default();
        settings.timing.jitter = 0.0;
        let (mut entry, start) = (Entry::default(), Clock::default().now());
        let Join::Start(new_flight) = entry.join(None, &start, &settings) else {
            panic!("an empty entry starts a flight");
        };
        complete(&mut entry, &new_flight, "token-1", &start, &settings);
        (entry, start, settings)
    }

    fn complete(
        entry: &mut Entry,
        new_flight: &NewFlight,
        token: &str,
        now: &Moment,
        settings: &Settings,
    ) {
        let _ = entry.complete(
            new_flight.generation,
            issued(token, 1800 * SECOND, now),
            now,
            settings,
        );
    }

    fn issued(token: &str, lifetime: Duration, now: &Moment) -> Result<IssuedToken, Error> {
        Ok(IssuedToken {
            token: AccessToken::new(token)?.with_lifetime(lifetime),
            requested_at: *now,
        })
    }

    #[test]
    fn only_one_refresh_is_active_until_it_is_overdue() {
        let (mut entry, start, settings) = entry();
        let due = start.after(1490 * SECOND);
        let before = start.after(1490 * SECOND - NANOSECOND);
        assert!(entry.refresh(&before, &settings).is_none());

        let first = entry.refresh(&due, &settings).expect("the refresh is due");

        // The deadline of a flight is 30 s. A second later, the flight counts as lost.
        let almost_overdue = due.after(31 * SECOND - NANOSECOND);
        let freshness = entry.current().unwrap().freshness(&almost_overdue);
        assert_eq!(
            freshness,
            Freshness::Fresh,
            "calls would check for a refresh all the time"
        );
        assert!(entry.refresh(&due, &settings).is_none());
        assert!(entry.refresh(&almost_overdue, &settings).is_none());
        let second = entry.refresh(&due.after(31 * SECOND), &settings);
        assert!(second.expect("the first is overdue").generation > first.generation);
    }

    /// A call outside a runtime finds the token due just before another call starts the refresh.
    #[test]
    fn call_that_cannot_refresh_does_not_postpone_an_active_refresh() {
        let (mut entry, start, settings) = entry();
        let due = start.after(1490 * SECOND);
        let _active = entry.refresh(&due, &settings).expect("the refresh is due");

        entry.retry_refresh_later(&due);

        assert!(entry.refresh(&due.after(2 * SECOND), &settings).is_none());
    }

    #[test]
    fn lost_refresh_is_started_again_after_a_second() {
        let (mut entry, start, settings) = entry();
        let due = start.after(1490 * SECOND);
        let new_flight = entry.refresh(&due, &settings).expect("the refresh is due");

        drop(entry.flight_lost(new_flight.generation, &due));

        let almost = due.after(SECOND - NANOSECOND);
        assert!(entry.refresh(&almost, &settings).is_none());
        assert!(entry.refresh(&due.after(SECOND), &settings).is_some());
    }

    #[test]
    fn replaced_flight_does_not_affect_its_successor() {
        let (mut entry, start, settings) = entry();
        let due = start.after(1490 * SECOND);
        let overdue = due.after(31 * SECOND);
        let first = entry.refresh(&due, &settings).expect("the refresh is due");
        let second = entry
            .refresh(&overdue, &settings)
            .expect("the first is overdue");

        drop(entry.flight_lost(first.generation, &overdue));
        complete(&mut entry, &first, "token-2", &overdue, &settings);
        assert_eq!(entry.current().unwrap().token().expose(), "token-1");

        complete(&mut entry, &second, "token-3", &overdue, &settings);
        assert_eq!(entry.current().unwrap().token().expose(), "token-3");
    }

    #[test]
    fn refresh_that_returns_the_rejected_token_leaves_its_renewal_due() {
        let (mut entry, start, settings) = entry();
        let due = start.after(1490 * SECOND);
        let refresh = entry.refresh(&due, &settings).expect("the refresh is due");
        let rejected = entry.current().unwrap().generation;
        entry.reject(rejected, &due, &settings);

        complete(&mut entry, &refresh, "token-1", &due, &settings);

        assert!(entry.current().is_none());
        let Join::Start(renewal) = entry.join(Some(rejected), &due, &settings) else {
            panic!("the renewal is due");
        };
        assert_eq!(renewal.rejected.as_ref().unwrap().expose(), "token-1");
    }

    /// Calls that waited for the renewal try the token again.
    #[test]
    fn token_returned_by_its_own_renewal_counts_as_new() {
        let (mut entry, start, settings) = entry();
        let rejected = entry.current().unwrap().generation;
        entry.reject(rejected, &start, &settings);
        let Join::Start(renewal) = entry.join(Some(rejected), &start, &settings) else {
            panic!("the renewal is due");
        };

        complete(&mut entry, &renewal, "token-1", &start, &settings);

        let join = entry.join(Some(rejected), &start, &settings);
        assert!(matches!(join, Join::Token(_)));
        let rejection = entry.reject(rejected, &start, &settings);
        assert!(matches!(rejection, Rejection::Replaced), "{rejection:?}");
    }

    /// Otherwise, the token would be sent again as if it were a newer one.
    #[test]
    fn rejection_under_an_earlier_generation_withholds_a_token_that_was_returned_again() {
        let (mut entry, start, settings) = entry();
        let due = start.after(1490 * SECOND);
        let sent_with = entry.current().unwrap().generation;
        let refresh = entry.refresh(&due, &settings).expect("the refresh is due");
        complete(&mut entry, &refresh, "token-1", &due, &settings);

        let rejection = entry.reject(sent_with, &due, &settings);

        assert!(matches!(rejection, Rejection::Withheld), "{rejection:?}");
        assert!(entry.current().is_none());
    }

    /// A call whose renewal was lost is polled after the renewal of another call has failed.
    #[test]
    fn rejected_token_that_is_in_use_again_is_renewed_once_per_cool_down() {
        let (mut entry, start, settings) = entry();
        let rejected = entry.current().unwrap().generation;
        entry.reject(rejected, &start, &settings);
        let Join::Start(renewal) = entry.join(Some(rejected), &start, &settings) else {
            panic!("the renewal is due");
        };
        let failure = Err(Error::permanent("no"));
        let _ = entry.complete(renewal.generation, failure, &start, &settings);

        let almost = start.after(settings.cool_down - NANOSECOND);
        let join = entry.join(Some(rejected), &almost, &settings);
        assert!(matches!(join, Join::CoolingDown));
        assert!(entry.current().is_some(), "the token stays in use");

        let later = start.after(settings.cool_down);
        let Join::Start(renewal) = entry.join(Some(rejected), &later, &settings) else {
            panic!("the cool-down is over");
        };
        assert_eq!(renewal.rejected.as_ref().unwrap().expose(), "token-1");
        assert!(entry.current().is_none());
    }

    #[test]
    fn expired_token_is_replaced_despite_the_cool_down() {
        let (mut entry, start, settings) = entry();
        let rejected = entry.current().unwrap().generation;
        let end = start.after(1790 * SECOND);
        entry.reject(rejected, &end, &settings);
        let Join::Start(renewal) = entry.join(Some(rejected), &end, &settings) else {
            panic!("the renewal is due");
        };
        let failure = Err(Error::permanent("no"));
        let _ = entry.complete(renewal.generation, failure, &end, &settings);

        let join = entry.join(Some(rejected), &end.after(2 * SECOND), &settings);

        assert!(matches!(join, Join::Start(_)));
    }

    /// A server may return the same token until it expires.
    #[test]
    fn token_expired_on_arrival_is_rejected_under_each_of_its_generations() {
        let (mut entry, settings) = (Entry::default(), Settings::default());
        let now = Clock::default().now();
        let mut tokens = Vec::new();
        for _ in 0..2 {
            let Join::Start(new_flight) = entry.join(None, &now, &settings) else {
                panic!("a token with a lifetime of zero serves one flight");
            };
            let issued = issued("the-same", Duration::ZERO, &now);
            let completed = entry.complete(new_flight.generation, issued, &now, &settings);
            tokens.push(completed.result.unwrap().unwrap());
        }
        assert!(tokens.iter().all(|token| entry.may_serve_waiter(token)));

        entry.reject(tokens[1].generation, &now, &settings);

        assert!(!tokens.iter().any(|token| entry.may_serve_waiter(token)));
    }
}
