//! Which token is current, who may use it, and what is under way to get another.
//!
//! Every decision of the cache, without its locks and tasks: each method is one transition. What a
//! transition leaves behind is returned, so that the caller drops it after unlocking: dropping the
//! last handle of a flight wakes its task.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    AccessToken,
    flight::{Completer, Flight},
    schedule::{Freshness, Schedule},
    settings::Settings,
};
use crate::{Error, clock::Moment, telemetry::Cause};

/// How long a stale token is used before a refresh that was lost is started again.
const LOST_REFRESH_PAUSE: Duration = Duration::from_secs(1);

/// What all waiters of a flight are told.
pub(crate) type FlightResult = Result<Arc<CachedToken>, Error>;

/// A token with its schedule.
#[derive(Clone)]
pub(crate) struct CachedToken {
    token: AccessToken,
    generation: Generation,
    /// The flight that brought the token first; those since then were refreshes that brought it again.
    first_generation: Generation,
    schedule: Schedule,
    /// The token's time was over when it came: it serves those who waited for it, no others.
    expired_on_arrival: bool,
}

/// Counts flights; a token has the number of the flight that brought it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Generation(u64);

impl CachedToken {
    pub(crate) fn token(&self) -> &AccessToken {
        &self.token
    }

    /// What to name when the API rejects the token.
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

    /// Whether the token may go to a call whose last token was of generation `rejected`.
    pub(super) fn may_serve(&self, rejected: Option<Generation>, now: &Moment) -> bool {
        let is_rejected = rejected.is_some_and(|rejected| self.came_with(rejected));
        !is_rejected && self.freshness(now) != Freshness::Expired
    }

    /// Whether this flight brought the token, the first time or again.
    fn came_with(&self, flight: Generation) -> bool {
        (self.first_generation..=self.generation).contains(&flight)
    }

    /// The token as it is given to one who did not wait for its landing.
    ///
    /// One that had ended on landing only gets here when a clock was set back: it then may be used, but
    /// not past its end.
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

/// What a call finds that needs a token.
pub(super) enum Join {
    /// A token that may be used.
    Token(Arc<CachedToken>),
    /// Somebody asked for a token already.
    Wait(Flight<FlightResult>),
    /// This call has to ask.
    Start(NewFlight),
    /// The last flight failed a moment ago.
    Failing(Error),
    /// There is only the rejected token, and a renewal was tried so lately that another would not help.
    CoolingDown,
}

/// A flight that has been entered and has to be started.
pub(super) struct NewFlight {
    pub(super) flight: Flight<FlightResult>,
    pub(super) completer: Completer<FlightResult>,
    pub(super) generation: Generation,
    pub(super) cause: Cause,
    /// The token that the API rejected, if that is the reason.
    pub(super) rejected: Option<AccessToken>,
    _replaced: Option<Flight<FlightResult>>,
}

/// What a transition leaves behind, to be dropped without the lock.
#[must_use = "to be dropped after unlocking"]
#[derive(Default)]
pub(super) struct DropAfterUnlock {
    _flight: Option<Flight<FlightResult>>,
    _failure: Option<Failure>,
}

/// What becomes of a token that the API rejected; see [`TokenCache::reject`](crate::TokenCache::reject).
///
/// # Examples
///
/// ```
/// use tower_client_credentials::Rejection;
///
/// /// Whether it makes sense to try again with the next token.
/// fn may_try_again(rejection: &Rejection) -> bool {
///     matches!(rejection, Rejection::Withheld | Rejection::Replaced)
/// }
/// # assert!(!may_try_again(&Rejection::CoolingDown));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Rejection {
    /// The token is given to nobody from now on; whoever asks for a token next waits for its renewal.
    Withheld,
    /// A newer token is there already.
    Replaced,
    /// A renewal was tried so lately that another would not help; the token stays in use.
    CoolingDown,
    /// The token service failed so lately that it is not asked yet; the token stays in use.
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

/// Current token and flight.
#[derive(Default)]
pub(super) struct Entry {
    held: Option<Arc<CachedToken>>,
    availability: Availability,
    flight: Option<ActiveFlight>,
    last_flight: Generation,
    renewed_at: Option<Instant>,
    failure: Option<Failure>,
}

/// A flight that has not landed.
struct ActiveFlight {
    generation: Generation,
    flight: Flight<FlightResult>,
    purpose: Purpose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Refresh,
    /// The token service was told which token the API rejected.
    Renewal,
}

/// What the API thinks of the token that is held.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Availability {
    #[default]
    Available,
    /// Rejected: nobody is given the token until its renewal has landed.
    Withheld,
}

/// The last flight's failure, and until when it answers for the token service.
struct Failure {
    error: Error,
    in_a_row: u32,
    until: Instant,
}

impl Entry {
    /// The token that may be given out until it expires.
    pub(super) fn current(&self) -> Option<&Arc<CachedToken>> {
        self.held
            .as_ref()
            .filter(|_| self.availability == Availability::Available)
    }

    /// The token that came last, whatever has become of it.
    pub(super) fn last_token(&self) -> Option<Arc<CachedToken>> {
        self.held.clone()
    }

    /// A call needs a token and the snapshot had none, or the one that the API `rejected`.
    pub(super) fn join(
        &mut self,
        rejected: Option<Generation>,
        now: &Moment,
        settings: &Settings,
    ) -> Join {
        // Looked at again under the lock: a flight may have landed in between.
        if let Some(held) = self.current().filter(|held| held.may_serve(rejected, now)) {
            return Join::Token(held.for_later_calls());
        }
        // A token that may be used is there, so it is the rejected one: it is in use again, as nobody
        // could renew it. The rejection counts as if it came now.
        if let Some(issue) = rejected.filter(|_| self.has_usable(now)) {
            match self.reject(issue, now, settings) {
                Rejection::CoolingDown => return Join::CoolingDown,
                Rejection::Failing(error) => return Join::Failing(error),
                Rejection::Withheld => {}
                // The token that is there is the rejected one.
                Rejection::Replaced => {}
            }
        }
        if let Some(flight) = self.active_flight(now) {
            return Join::Wait(flight.clone());
        }
        if let Some(error) = self.recent_failure(now) {
            return Join::Failing(error);
        }
        let cause = match self.held {
            None => Cause::First,
            Some(_) => Cause::Expired,
        };
        Join::Start(self.start_flight(cause, now, settings))
    }

    /// A call found the current token stale.
    pub(super) fn refresh(&mut self, now: &Moment, settings: &Settings) -> Option<NewFlight> {
        let held = self.current()?;
        // Not stale any more if somebody was faster: a flight puts the next refresh off.
        let is_stale = held.freshness(now) == Freshness::DueForRefresh;
        is_stale.then(|| self.start_flight(Cause::DueForRefresh, now, settings))
    }

    /// When a token that is kept warm has to be refreshed; `None` if a later flight sees to that.
    pub(super) fn keep_warm_refresh_at(&self, landed: Generation, now: &Moment) -> Option<Instant> {
        if self.last_flight != landed {
            return None;
        }
        Some(match (&self.failure, &self.held) {
            (Some(failure), _) => failure.until,
            (None, Some(held)) if held.freshness(now) != Freshness::Expired => {
                held.schedule.refresh_at()
            }
            // It ended early, by the wall clock, or the flight ended without a word.
            (None, _) => now.monotonic,
        })
    }

    /// The time has come to refresh a token that is kept warm.
    pub(super) fn keep_warm_refresh(
        &mut self,
        landed: Generation,
        now: &Moment,
        settings: &Settings,
    ) -> Option<NewFlight> {
        (self.last_flight == landed).then(|| self.start_flight(Cause::KeepWarm, now, settings))
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

    /// The generation of the token that is held, if it is this one.
    pub(super) fn generation_of(&self, token: &AccessToken) -> Option<Generation> {
        let held = self.held.as_ref()?;
        held.token.is_same(token).then_some(held.generation)
    }

    /// A flight brought a token or an error; returns what its waiters are told, if anything.
    pub(super) fn complete(
        &mut self,
        generation: Generation,
        result: Result<(AccessToken, Moment), Error>,
        now: &Moment,
        settings: &Settings,
    ) -> (Option<FlightResult>, DropAfterUnlock) {
        let Some(ActiveFlight {
            flight, purpose, ..
        }) = self.remove_flight(generation)
        else {
            // Overdue, and another flight took its place: this one must not overwrite what that
            // one brings. Its own waiters have left.
            let outcome = result.map(|(token, asked_at)| {
                Arc::new(self.cached_token(generation, token, &asked_at, now, settings))
            });
            return (Some(outcome), DropAfterUnlock::default());
        };
        if result.is_err() && now.monotonic >= flight.overdue_at() {
            // Nobody drove the flight's runtime meanwhile: that says nothing of the token service.
            self.retry_refresh_later(now);
            let to_drop = DropAfterUnlock {
                _flight: Some(flight),
                ..DropAfterUnlock::default()
            };
            return (None, to_drop);
        }
        if purpose == Purpose::Renewal {
            self.renewed_at = Some(now.monotonic);
        }
        // A refresh that began before the rejection may bring the rejected token once more: then its
        // renewal is still due.
        let is_unchanged = matches!(&result, Ok((token, _)) if self.is_cached(token));
        if purpose == Purpose::Renewal || !is_unchanged {
            self.availability = Availability::Available;
        }

        match result {
            Ok((token, asked_at)) => {
                let first_generation = match &self.held {
                    Some(last) if is_unchanged && purpose == Purpose::Refresh => {
                        last.first_generation
                    }
                    _ => generation,
                };
                let held = Arc::new(CachedToken {
                    first_generation,
                    ..self.cached_token(generation, token, &asked_at, now, settings)
                });
                self.held = Some(Arc::clone(&held));
                let to_drop = DropAfterUnlock {
                    _flight: Some(flight),
                    _failure: self.failure.take(),
                };
                (Some(Ok(held)), to_drop)
            }
            Err(error) => {
                let (error, failure) = self.record_failure(error, now, settings);
                let to_drop = DropAfterUnlock {
                    _flight: Some(flight),
                    _failure: failure,
                };
                (Some(Err(error)), to_drop)
            }
        }
    }

    /// A flight went away without landing; whoever needs a token starts another.
    pub(super) fn flight_lost(&mut self, generation: Generation, now: &Moment) -> DropAfterUnlock {
        let lost = self.remove_flight(generation);
        if lost.is_some() {
            self.retry_refresh_later(now);
        }
        DropAfterUnlock {
            _flight: lost.map(|active| active.flight),
            ..DropAfterUnlock::default()
        }
    }

    /// A stale token cannot be refreshed here and now; a flight that is under way will.
    pub(super) fn retry_refresh_later(&mut self, now: &Moment) {
        if self.active_flight(now).is_none() {
            self.postpone_refresh(now.after(LOST_REFRESH_PAUSE).monotonic);
        }
    }

    /// Nobody can renew the rejected token: it is used again rather than nothing.
    pub(super) fn make_available(&mut self, now: &Moment) {
        if self.active_flight(now).is_none() {
            self.availability = Availability::Available;
        }
    }

    /// Whether a token that ended on landing may be given to one who waited for it.
    pub(super) fn may_serve_waiter(&self, landed: &CachedToken) -> bool {
        // A server may have handed it out again since, which makes it the same token.
        let is_withheld =
            self.availability == Availability::Withheld && self.is_cached(&landed.token);
        landed.expired_on_arrival && !is_withheld
    }

    fn active_flight(&self, now: &Moment) -> Option<&Flight<FlightResult>> {
        let flight = &self.flight.as_ref()?.flight;
        (now.monotonic < flight.overdue_at()).then_some(flight)
    }

    fn has_usable(&self, now: &Moment) -> bool {
        self.current().is_some_and(|held| held.may_serve(None, now))
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

    fn start_flight(&mut self, cause: Cause, now: &Moment, settings: &Settings) -> NewFlight {
        let generation = Generation(self.last_flight.0 + 1);
        self.last_flight = generation;
        let (flight, completer) = Flight::prepare(now, settings.limits.deadline);
        // Until then the flight answers for the refresh: calls need not look for it.
        self.postpone_refresh(flight.overdue_at());
        let rejected = match self.availability {
            Availability::Available => None,
            Availability::Withheld => self.held.as_ref().map(|held| held.token.clone()),
        };
        let replaced = self.flight.replace(ActiveFlight {
            generation,
            flight: flight.clone(),
            purpose: match rejected {
                None => Purpose::Refresh,
                Some(_) => Purpose::Renewal,
            },
        });
        NewFlight {
            flight,
            completer,
            generation,
            cause: match rejected {
                None => cause,
                Some(_) => Cause::Rejected,
            },
            rejected,
            _replaced: replaced.map(|active| active.flight),
        }
    }

    fn remove_flight(&mut self, generation: Generation) -> Option<ActiveFlight> {
        self.flight
            .take_if(|active| active.generation == generation)
    }

    /// Whether the token that is held is what this flight brought.
    fn is_cached_generation(&self, generation: Generation) -> bool {
        let held = self.held.as_ref();
        held.is_some_and(|held| held.came_with(generation))
    }

    fn is_cached(&self, token: &AccessToken) -> bool {
        let held = self.held.as_ref();
        held.is_some_and(|held| held.token.is_same(token))
    }

    fn cached_token(
        &self,
        generation: Generation,
        token: AccessToken,
        asked_at: &Moment,
        now: &Moment,
        settings: &Settings,
    ) -> CachedToken {
        let is_unchanged = self.is_cached(&token);
        let mut schedule = settings
            .timing
            .schedule(*asked_at, token.lifetime(), fastrand::f64());
        if is_unchanged {
            schedule = schedule.unchanged(now);
        }
        CachedToken {
            token,
            generation,
            first_generation: generation,
            schedule,
            expired_on_arrival: schedule.freshness(now) == Freshness::Expired,
        }
    }

    /// Notes a failure; returns it with when the token service is asked again, and the last one.
    fn record_failure(
        &mut self,
        error: Error,
        now: &Moment,
        settings: &Settings,
    ) -> (Error, Option<Failure>) {
        let in_a_row = self
            .failure
            .as_ref()
            .map_or(1, |last| last.in_a_row.saturating_add(1));
        let pause = settings
            .backoff
            .pause(in_a_row, error.retry_after(), fastrand::f64());
        let error = error.with_retry_after(Some(pause));
        let until = now.after(pause).monotonic;
        self.postpone_refresh(until);
        let last = self.failure.replace(Failure {
            error: error.clone(),
            in_a_row,
            until,
        });
        (error, last)
    }

    fn postpone_refresh(&mut self, refresh_at: Instant) {
        if let Some(held) = &mut self.held {
            *held = held.refresh_not_before(refresh_at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const SECOND: Duration = Duration::from_secs(1);
    const NANOSECOND: Duration = Duration::from_nanos(1);

    /// A entry with a token that gets stale after 1490 s, and the moment it was asked for.
    fn entry() -> (Entry, Moment, Settings) {
        let mut settings = Settings::default();
        settings.timing.jitter = 0.0;
        let (mut entry, start) = (Entry::default(), Clock::default().now());
        let Join::Start(new_flight) = entry.join(None, &start, &settings) else {
            panic!("an empty entry has to ask");
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
        let token = AccessToken::new(token).map(|token| token.with_lifetime(1800 * SECOND));
        let landed = token.map(|token| (token, *now));
        drop(entry.complete(new_flight.generation, landed, now, settings));
    }

    #[test]
    fn one_refresh_is_under_way_until_it_is_overdue() {
        let (mut entry, start, settings) = entry();
        let stale = start.after(1490 * SECOND);
        let before = start.after(1490 * SECOND - NANOSECOND);
        assert!(entry.refresh(&before, &settings).is_none());

        let first = entry.refresh(&stale, &settings).expect("it is stale");

        // The deadline of a flight is 30 s, and it counts as lost a second later.
        let almost_overdue = stale.after(31 * SECOND - NANOSECOND);
        let freshness = entry.current().unwrap().freshness(&almost_overdue);
        assert_eq!(
            freshness,
            Freshness::Fresh,
            "calls look for it all the time"
        );
        assert!(entry.refresh(&stale, &settings).is_none());
        assert!(entry.refresh(&almost_overdue, &settings).is_none());
        let second = entry.refresh(&stale.after(31 * SECOND), &settings);
        assert!(second.expect("it is overdue").generation > first.generation);
    }

    /// Somebody outside a runtime found the token stale a moment before another began its refresh.
    #[test]
    fn refresh_that_is_under_way_is_not_begun_again_by_one_who_cannot() {
        let (mut entry, start, settings) = entry();
        let stale = start.after(1490 * SECOND);
        let _under_way = entry.refresh(&stale, &settings).expect("it is stale");

        entry.retry_refresh_later(&stale);

        assert!(entry.refresh(&stale.after(2 * SECOND), &settings).is_none());
    }

    #[test]
    fn refresh_that_was_lost_is_started_again_after_a_second() {
        let (mut entry, start, settings) = entry();
        let stale = start.after(1490 * SECOND);
        let new_flight = entry.refresh(&stale, &settings).expect("it is stale");

        drop(entry.flight_lost(new_flight.generation, &stale));

        let almost = stale.after(SECOND - NANOSECOND);
        assert!(entry.refresh(&almost, &settings).is_none());
        assert!(entry.refresh(&stale.after(SECOND), &settings).is_some());
    }

    #[test]
    fn flight_that_was_replaced_loses_nothing_of_the_one_that_took_its_place() {
        let (mut entry, start, settings) = entry();
        let stale = start.after(1490 * SECOND);
        let overdue = stale.after(31 * SECOND);
        let first = entry.refresh(&stale, &settings).expect("it is stale");
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
    fn refresh_that_brings_the_rejected_token_leaves_its_renewal_due() {
        let (mut entry, start, settings) = entry();
        let stale = start.after(1490 * SECOND);
        let refresh = entry.refresh(&stale, &settings).expect("it is stale");
        let rejected = entry.current().unwrap().generation;
        entry.reject(rejected, &stale, &settings);

        complete(&mut entry, &refresh, "token-1", &stale, &settings);

        assert!(entry.current().is_none());
        let Join::Start(renewal) = entry.join(Some(rejected), &stale, &settings) else {
            panic!("the renewal is due");
        };
        assert_eq!(renewal.rejected.as_ref().unwrap().expose(), "token-1");
    }

    /// It would be sent again otherwise, as if it were newer than itself.
    #[test]
    fn token_that_was_handed_out_again_is_withheld_by_a_rejection_of_its_earlier_issue() {
        let (mut entry, start, settings) = entry();
        let stale = start.after(1490 * SECOND);
        let sent_with = entry.current().unwrap().generation;
        let refresh = entry.refresh(&stale, &settings).expect("it is stale");
        complete(&mut entry, &refresh, "token-1", &stale, &settings);

        let rejection = entry.reject(sent_with, &stale, &settings);

        assert!(matches!(rejection, Rejection::Withheld), "{rejection:?}");
        assert!(entry.current().is_none());
    }

    /// A call whose renewal was lost is polled after another's renewal has failed.
    #[test]
    fn rejected_token_that_is_in_use_again_is_renewed_once_in_a_cool_down() {
        let (mut entry, start, settings) = entry();
        let rejected = entry.current().unwrap().generation;
        entry.reject(rejected, &start, &settings);
        let Join::Start(renewal) = entry.join(Some(rejected), &start, &settings) else {
            panic!("its renewal is due");
        };
        let failure = Err(Error::permanent("no"));
        drop(entry.complete(renewal.generation, failure, &start, &settings));

        let almost = start.after(settings.cool_down - NANOSECOND);
        let join = entry.join(Some(rejected), &almost, &settings);
        assert!(matches!(join, Join::CoolingDown));
        assert!(entry.current().is_some(), "it stays in use");

        let later = start.after(settings.cool_down);
        let Join::Start(renewal) = entry.join(Some(rejected), &later, &settings) else {
            panic!("the cool-down is over");
        };
        assert_eq!(renewal.rejected.as_ref().unwrap().expose(), "token-1");
        assert!(entry.current().is_none());
    }

    /// Whatever is said of its rejections, an expired token has to be replaced.
    #[test]
    fn rejected_token_that_has_expired_is_asked_for_in_a_cool_down() {
        let (mut entry, start, settings) = entry();
        let rejected = entry.current().unwrap().generation;
        let end = start.after(1790 * SECOND);
        entry.reject(rejected, &end, &settings);
        let Join::Start(renewal) = entry.join(Some(rejected), &end, &settings) else {
            panic!("its renewal is due");
        };
        let failure = Err(Error::permanent("no"));
        drop(entry.complete(renewal.generation, failure, &end, &settings));

        let join = entry.join(Some(rejected), &end.after(2 * SECOND), &settings);

        assert!(matches!(join, Join::Start(_)));
    }

    /// A server that hands out a token again until it ends gives it no new life.
    #[test]
    fn token_that_ended_on_landing_is_rejected_under_each_of_its_issues() {
        let (mut entry, settings) = (Entry::default(), Settings::default());
        let now = Clock::default().now();
        let mut issues = Vec::new();
        for _ in 0..2 {
            let Join::Start(new_flight) = entry.join(None, &now, &settings) else {
                panic!("a token without life is asked for each time");
            };
            let token =
                AccessToken::new("the-same").map(|token| token.with_lifetime(Duration::ZERO));
            let landed = token.map(|token| (token, now));
            let (outcome, _) = entry.complete(new_flight.generation, landed, &now, &settings);
            issues.push(outcome.unwrap().unwrap());
        }
        assert!(issues.iter().all(|issue| entry.may_serve_waiter(issue)));

        entry.reject(issues[1].generation, &now, &settings);

        assert!(!issues.iter().any(|issue| entry.may_serve_waiter(issue)));
    }
}
