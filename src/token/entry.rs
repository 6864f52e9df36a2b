//! Which token is current, who may use it, and what is under way to replace it.
//!
//! Contains every decision of the cache, but no locks and no tasks: each method is one transition,
//! made under the cache's lock. What must not be dropped under that lock is returned to the caller.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{runtime::Handle, time::Instant};

use super::{
    AccessToken,
    flight::{Completer, Flight, IssuedToken, Waited},
    renewals::{Evidence, Renewals},
    schedule::{Freshness, Schedule},
    settings::Settings,
};
use crate::{Error, clock::Moment, telemetry::Cause};

/// How long after its start a lost refresh is started again, at the earliest.
const LOST_REFRESH_PAUSE: Duration = Duration::from_secs(1);

/// How long calls wait for the renewal of a rejected token, instead of using the token.
const WITHHELD_FOR: Duration = Duration::from_secs(1);

/// What all waiters of a flight get.
pub(crate) type FlightResult = Result<Arc<CachedToken>, Error>;

/// The number of a flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Generation(u64);

/// A token with its schedule.
#[derive(Clone)]
pub(crate) struct CachedToken {
    token: AccessToken,
    schedule: Schedule,
    /// Whether the API has accepted the token since it landed. All copies share this.
    accepted: Arc<AtomicBool>,
    exception: Exception,
}

/// Why a call that got a token may use it although the cache doesn't offer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exception {
    None,
    /// The call waited for a token that had expired on arrival.
    ExpiredOnArrival,
    /// The call waited for a flight whose token wasn't kept. It may use the token until that expires.
    NotKept,
    /// The call could get no other token. It may use this one until its stated end.
    LastResort,
}

impl CachedToken {
    pub(crate) fn token(&self) -> &AccessToken {
        &self.token
    }

    /// Whether the API has accepted a request with this token.
    #[inline]
    pub(crate) fn is_accepted(&self) -> bool {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Notes that the API accepted a request with this token. All calls share the flag, so check
    /// [`is_accepted`](Self::is_accepted) before.
    pub(crate) fn note_accepted(&self) {
        self.accepted.store(true, Ordering::Relaxed);
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

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.token.is_same(&other.token)
    }

    /// Whether the token may go to a call whose token `rejected` was rejected.
    pub(super) fn may_serve(&self, rejected: Option<&Self>, now: &Moment) -> bool {
        let is_rejected = rejected.is_some_and(|rejected| self.is_same(rejected));
        !is_rejected && self.freshness(now) != Freshness::Expired
    }

    /// Whether a call that got this token may send it although the cache doesn't offer it.
    fn is_exception(&self, now: &Moment) -> bool {
        match self.exception {
            Exception::None => false,
            Exception::ExpiredOnArrival => true,
            Exception::NotKept => self.freshness(now) != Freshness::Expired,
            Exception::LastResort => !self.schedule.has_ended(now.monotonic),
        }
    }

    /// Whether a call got the token because there was no other one.
    pub(super) fn is_last_resort(&self) -> bool {
        self.exception == Exception::LastResort
    }

    /// Returns the token for a call that didn't wait for its flight.
    ///
    /// A token that was expired on arrival gets here only if a clock was set back. Such a call may
    /// use it, but not past its expiry.
    pub(super) fn for_later_calls(self: &Arc<Self>) -> Arc<Self> {
        match self.exception {
            Exception::None => Arc::clone(self),
            _ => Arc::new(Self::clone(self).with_exception(Exception::None)),
        }
    }

    fn with_exception(self, exception: Exception) -> Self {
        Self { exception, ..self }
    }

    fn refresh_not_before(&self, refresh_at: Instant) -> Arc<Self> {
        Arc::new(Self {
            schedule: self.schedule.refresh_not_before(refresh_at),
            ..self.clone()
        })
    }

    fn evidence(&self) -> Evidence {
        if self.is_accepted() {
            Evidence::Accepted
        } else {
            Evidence::None
        }
    }
}

impl fmt::Debug for CachedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedToken")
            .field("token", &self.token)
            .field("schedule", &self.schedule)
            .finish_non_exhaustive()
    }
}

/// What a call that needs a token has to do.
pub(super) enum Join {
    /// Use this token.
    Token(Arc<CachedToken>),
    /// Wait for the flight that is under way.
    Wait(Awaited),
    /// Start this flight and wait for it.
    Start(Box<NewFlight>),
    /// Fail with the error of the last flight, which ended moments ago.
    Failing(Error),
    /// Give up: only the rejected token is there, and it was renewed too recently to renew it again.
    CoolingDown,
}

/// The flight that a call waits for.
#[derive(Clone)]
pub(super) struct Awaited {
    pub(super) flight: Flight<FlightResult>,
    /// When the call stops waiting, because a token that was withheld from it is used again.
    until: Option<Instant>,
}

impl Awaited {
    pub(super) async fn result(self, runtime: &Handle) -> Waited<FlightResult> {
        self.flight.result(runtime, self.until).await
    }
}

/// A flight that is registered as active and still has to be spawned.
pub(super) struct NewFlight {
    pub(super) awaited: Awaited,
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
    _error: Option<Error>,
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
/// use tower_client_credentials::{AccessToken, Error, TokenCache};
///
/// /// Returns a token to try again with after the API has rejected `token`, if there is one.
/// async fn next_token(
///     cache: &TokenCache,
///     token: &AccessToken,
/// ) -> Result<Option<AccessToken>, Error> {
///     match cache.reject(token) {
///         Rejection::Replaced => cache.token().await.map(Some),
///         Rejection::Withheld | Rejection::Renewing => cache.refresh().await.map(Some),
///         Rejection::Failing(error) => Err(error),
///         _ => Ok(None),
///     }
/// }
/// # drop(next_token);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Rejection {
    /// The token will be renewed. The next caller starts a token request, unless one is under way, and
    /// callers wait for it, for at most one second. After that, they get the rejected token until the
    /// token request ends. [`TokenCache::refresh`](crate::TokenCache::refresh) waits for its end.
    Withheld,
    /// A token request is under way, but it takes longer than a second. Until it ends, callers get the
    /// rejected token. [`TokenCache::refresh`](crate::TokenCache::refresh) waits for its end.
    Renewing,
    /// The cache already holds another token.
    Replaced,
    /// The token stays in use, because the last renewal is too recent. See
    /// [`TokenCacheBuilder::cool_down`](crate::TokenCacheBuilder::cool_down).
    CoolingDown,
    /// The token stays in use, because the last token request failed and its back-off hasn't ended.
    Failing(Error),
}

impl Rejection {
    /// The variant's name in metrics and events.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Withheld => "withheld",
            Self::Renewing => "renewing",
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
    standing: Standing,
    flight: Option<ActiveFlight>,
    last_flight: Generation,
    renewals: Renewals,
    failure: Option<Failure>,
}

/// What rejections mean for the cached token. Until it expires, it is used unless it is withheld.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Standing {
    /// The API hasn't rejected the token.
    #[default]
    Unrejected,
    /// The API rejected the token. Calls wait for its renewal until `until`, which is set as soon as
    /// there is a flight to wait for.
    Withheld { until: Option<Instant> },
    /// The API rejected the token. It is in use again, because its renewal takes long.
    Released,
    /// The API rejected the token, but it is used: its renewal failed, or may not start.
    InUseAgain,
}

/// A flight without a result.
struct ActiveFlight {
    generation: Generation,
    flight: Flight<FlightResult>,
    started_at: Instant,
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
        let is_withheld = matches!(self.standing, Standing::Withheld { .. });
        self.cached.as_ref().filter(|_| !is_withheld)
    }

    /// The token that came last, whatever has become of it.
    pub(super) fn last_token(&self) -> Option<Arc<CachedToken>> {
        self.cached.clone()
    }

    /// Decides what a call does that found no token, or only the one that the API `rejected`.
    pub(super) fn join(
        &mut self,
        rejected: Option<&CachedToken>,
        now: &Moment,
        settings: &Settings,
    ) -> Join {
        self.release(now.monotonic);
        // Checked again under the lock: a flight may have completed in the meantime.
        if let Some(cached) = self
            .current()
            .filter(|token| token.may_serve(rejected, now))
        {
            return Join::Token(cached.for_later_calls());
        }
        // The usable token is the rejected one, which is in use again.
        if let Some(usable) = self.usable(now) {
            match self.withhold(usable.evidence(), now.monotonic, settings) {
                Rejection::CoolingDown => return Join::CoolingDown,
                Rejection::Failing(error) => return Join::Failing(error),
                Rejection::Withheld | Rejection::Renewing | Rejection::Replaced => {}
            }
        }
        if let Some(flight) = self.active_flight(now.monotonic) {
            let flight = flight.clone();
            let until = self.withheld_until(rejected, now);
            return Join::Wait(Awaited { flight, until });
        }
        if let Some(error) = self.recent_failure(now.monotonic) {
            return match self.last_resort(rejected, now.monotonic) {
                Some(token) => Join::Token(token),
                None => Join::Failing(error),
            };
        }
        let cause = match self.cached {
            None => Cause::First,
            Some(_) => Cause::Expired,
        };
        let mut new_flight = self.start_flight(cause, now, settings);
        new_flight.awaited.until = self.withheld_until(rejected, now);
        Join::Start(new_flight)
    }

    /// Starts the refresh of a token that a call found due, unless another call already has.
    pub(super) fn refresh(&mut self, now: &Moment, settings: &Settings) -> Option<Box<NewFlight>> {
        let cached = self.current()?;
        let is_due = cached.freshness(now) == Freshness::DueForRefresh;
        // An active flight postpones the next refresh, but not if it has to wait before it starts.
        let may_start = is_due && self.active_flight(now.monotonic).is_none();
        may_start.then(|| self.start_flight(Cause::DueForRefresh, now, settings))
    }

    /// Joins the active flight, or starts one, whatever the token, a failure or the cool-down says.
    pub(super) fn refresh_now(&mut self, now: &Moment, settings: &Settings) -> Join {
        if let Some(flight) = self.active_flight(now.monotonic) {
            let flight = flight.clone();
            return Join::Wait(Awaited {
                flight,
                until: None,
            });
        }
        Join::Start(self.start_flight(Cause::Requested, now, settings))
    }

    /// Makes `token` the current one, as if a token request had returned it now.
    pub(super) fn seed(&mut self, token: AccessToken, now: &Moment, settings: &Settings) {
        let issued = IssuedToken {
            token,
            requested_at: *now,
            received_at: *now,
        };
        let token = self.cached_token(issued, settings);
        self.standing = Standing::Unrejected;
        self.cached = Some(Arc::new(token.with_exception(Exception::None)));
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
    ) -> Option<Box<NewFlight>> {
        (self.last_flight == last).then(|| self.start_flight(Cause::KeepWarm, now, settings))
    }

    /// The API rejected this token.
    pub(super) fn reject(
        &mut self,
        token: &AccessToken,
        now: &Moment,
        settings: &Settings,
    ) -> Rejection {
        let Some(cached) = self.cached.as_ref().filter(|c| c.token.is_same(token)) else {
            return Rejection::Replaced;
        };
        let evidence = cached.evidence();
        self.renewals.note_rejection(now.monotonic);
        self.withhold(evidence, now.monotonic, settings)
    }

    /// Withholds the cached token, which was rejected, unless a token request takes long already, or
    /// none may start now.
    fn withhold(&mut self, evidence: Evidence, now: Instant, settings: &Settings) -> Rejection {
        self.release(now);
        let may_renew = self.renewals.may_renew(evidence, now, settings.cool_down);
        match (self.standing, self.active_flight(now)) {
            (Standing::Withheld { .. }, _) => Rejection::Withheld,
            (Standing::Released, Some(_)) => Rejection::Renewing,
            (_, flight) => {
                // Whatever a flight was started for, it may bring another token.
                let until = flight.map(|_| now + WITHHELD_FOR);
                self.standing = Standing::InUseAgain;
                if let Some(error) = self.recent_failure(now) {
                    return Rejection::Failing(error);
                }
                if !may_renew {
                    return Rejection::CoolingDown;
                }
                self.standing = Standing::Withheld { until };
                Rejection::Withheld
            }
        }
    }

    /// A flight ended with a token or an error.
    pub(super) fn complete(
        &mut self,
        generation: Generation,
        result: Result<IssuedToken, Error>,
        now: Instant,
        settings: &Settings,
    ) -> Completed {
        let Some(active) = self.remove_flight(generation) else {
            return self.complete_replaced(result, settings);
        };
        match result {
            Ok(issued) => self.complete_with_token(active, issued, now, settings),
            // Nobody drove the flight's runtime, so the error says nothing about the token service.
            Err(error) if now >= active.flight.overdue_at() => Completed {
                result: None,
                to_drop: DropAfterUnlock {
                    _error: Some(error),
                    ..self.lose(active)
                },
            },
            Err(error) => self.complete_with_error(active, error, now, settings),
        }
    }

    /// A flight was dropped before it had a result. Whoever needs a token starts another.
    pub(super) fn flight_lost(&mut self, generation: Generation) -> DropAfterUnlock {
        match self.remove_flight(generation) {
            Some(active) => self.lose(active),
            None => DropAfterUnlock::default(),
        }
    }

    /// Postpones a refresh that can't start here and now. An active flight is not postponed.
    pub(super) fn retry_refresh_later(&mut self, now: &Moment) {
        if self.active_flight(now.monotonic).is_none() {
            self.postpone_refresh(now.monotonic + LOST_REFRESH_PAUSE);
        }
    }

    /// Lets calls use a rejected token again because nobody can renew it.
    pub(super) fn make_available(&mut self, now: &Moment) {
        if self.active_flight(now.monotonic).is_none() {
            self.use_again();
        }
    }

    /// Forgets the token, the failure and the renewals. An active flight serves its waiters only.
    pub(super) fn reset(&mut self) -> DropAfterUnlock {
        let last_flight = self.last_flight;
        let forgotten = std::mem::replace(
            self,
            Self {
                last_flight,
                ..Self::default()
            },
        );
        DropAfterUnlock {
            _flight: forgotten.flight.map(|active| active.flight),
            _failure: forgotten.failure,
            _error: None,
        }
    }

    /// Whether a call that got `token` a while ago may still send it.
    ///
    /// Called if no token is current. `token` need not be the cached one: its flight may have been
    /// replaced, or the entry reset.
    pub(super) fn may_still_serve(&self, token: &CachedToken, now: &Moment) -> bool {
        let is_cached = self.cached.as_ref().is_some_and(|c| c.is_same(token));
        let may_serve = match token.exception {
            Exception::None => false,
            // If the token is cached, the cached copy is the newer one.
            Exception::NotKept => !is_cached,
            Exception::ExpiredOnArrival => !is_cached || self.standing == Standing::Unrejected,
            // Otherwise, a newer token came in the meantime, and the next one may be better.
            Exception::LastResort => is_cached && self.standing == Standing::Unrejected,
        };
        may_serve && token.is_exception(now)
    }

    /// The token for a call that gets no other because the token request failed.
    ///
    /// The API may still accept a token that it hasn't rejected: the margin before its stated end is
    /// for clocks that differ, and a wall clock may be wrong.
    pub(super) fn last_resort(
        &self,
        rejected: Option<&CachedToken>,
        now: Instant,
    ) -> Option<Arc<CachedToken>> {
        let cached = self.cached.as_ref()?;
        let is_unrejected =
            self.standing == Standing::Unrejected && !rejected.is_some_and(|r| cached.is_same(r));
        let may_serve = is_unrejected && !cached.schedule.has_ended(now);
        may_serve
            .then(|| Arc::new(CachedToken::clone(cached).with_exception(Exception::LastResort)))
    }

    fn complete_with_token(
        &mut self,
        active: ActiveFlight,
        issued: IssuedToken,
        now: Instant,
        settings: &Settings,
    ) -> Completed {
        let _failure = self.failure.take();
        let token = self.store(&active, issued, now, settings);
        Completed {
            result: Some(Ok(token)),
            to_drop: DropAfterUnlock {
                _flight: Some(active.flight),
                _failure,
                _error: None,
            },
        }
    }

    fn complete_with_error(
        &mut self,
        active: ActiveFlight,
        error: Error,
        now: Instant,
        settings: &Settings,
    ) -> Completed {
        let last_failure = self.failure.take();
        self.use_again();
        let error = self.record_failure(error, last_failure.as_ref(), now, settings);
        Completed {
            result: Some(Err(error)),
            to_drop: DropAfterUnlock {
                _flight: Some(active.flight),
                _failure: last_failure,
                _error: None,
            },
        }
    }

    /// Another flight has taken this one's place, and its token must not replace the other's.
    fn complete_replaced(
        &self,
        result: Result<IssuedToken, Error>,
        settings: &Settings,
    ) -> Completed {
        let result = result.map(|issued| {
            let token = self.cached_token(issued, settings);
            Arc::new(match token.exception {
                Exception::None => token.with_exception(Exception::NotKept),
                _ => token,
            })
        });
        // No pause follows this failure, so its error names none.
        let result = result.map_err(|error| error.with_retry_after(None));
        Completed {
            result: Some(result),
            to_drop: DropAfterUnlock::default(),
        }
    }

    fn lose(&mut self, active: ActiveFlight) -> DropAfterUnlock {
        self.postpone_refresh(active.started_at + LOST_REFRESH_PAUSE);
        DropAfterUnlock {
            _flight: Some(active.flight),
            ..DropAfterUnlock::default()
        }
    }

    /// Makes the token of an active flight the current one.
    fn store(
        &mut self,
        active: &ActiveFlight,
        issued: IssuedToken,
        now: Instant,
        settings: &Settings,
    ) -> Arc<CachedToken> {
        let mut token = self.cached_token(issued, settings);
        let last = self.cached.take();
        let is_renewal = active.flight.is_renewal();
        if let Some(last) = last.as_ref().filter(|_| is_renewal) {
            self.renewals.note_renewal(last.evidence(), now);
        }
        match last {
            // A refresh doesn't settle a rejection of the token that it returned again.
            Some(last) if last.is_same(&token) && !is_renewal => {
                token.accepted = last.accepted.clone();
            }
            Some(_) | None => self.standing = Standing::Unrejected,
        }
        let token = Arc::new(token);
        self.cached = Some(Arc::clone(&token));
        token
    }

    /// Lets calls use a rejected token after they have waited for long enough.
    fn release(&mut self, now: Instant) {
        let Standing::Withheld { until } = self.standing else {
            return;
        };
        if until.is_some_and(|until| now >= until) {
            self.standing = Standing::Released;
        }
    }

    /// Lets calls use a rejected token although it was not renewed.
    fn use_again(&mut self) {
        if self.standing != Standing::Unrejected {
            self.standing = Standing::InUseAgain;
        }
    }

    /// When a call stops waiting because it may use the withheld token; `None` if it never may.
    fn withheld_until(&self, rejected: Option<&CachedToken>, now: &Moment) -> Option<Instant> {
        let Standing::Withheld { until } = self.standing else {
            return None;
        };
        let may_serve = |cached: &Arc<CachedToken>| cached.may_serve(rejected, now);
        until.filter(|_| self.cached.as_ref().is_some_and(may_serve))
    }

    fn active_flight(&self, now: Instant) -> Option<&Flight<FlightResult>> {
        let flight = &self.flight.as_ref()?.flight;
        (now < flight.overdue_at()).then_some(flight)
    }

    fn usable(&self, now: &Moment) -> Option<&Arc<CachedToken>> {
        self.current().filter(|cached| cached.may_serve(None, now))
    }

    fn recent_failure(&self, now: Instant) -> Option<Error> {
        let failure = self.failure.as_ref()?;
        let left = failure.until.checked_duration_since(now)?;
        (!left.is_zero()).then(|| failure.error.clone().with_retry_after(Some(left)))
    }

    /// Registers a flight, which renews the cached token if that is withheld.
    fn start_flight(&mut self, cause: Cause, now: &Moment, settings: &Settings) -> Box<NewFlight> {
        let generation = Generation(self.last_flight.0 + 1);
        self.last_flight = generation;
        let rejected = self.token_to_renew();
        let cause = match rejected {
            None => cause,
            Some(_) => Cause::Rejected,
        };
        let (flight, completer) =
            Flight::prepare(now, settings.limits.deadline, rejected.is_some());
        // Calls need not check for a refresh while this flight may bring a token.
        self.postpone_refresh(flight.overdue_at());
        if let Standing::Withheld { until } = &mut self.standing {
            until.get_or_insert(now.monotonic + WITHHELD_FOR);
        }
        let replaced = self.flight.replace(ActiveFlight {
            generation,
            flight: flight.clone(),
            started_at: now.monotonic,
        });
        Box::new(NewFlight {
            awaited: Awaited {
                flight,
                until: None,
            },
            completer,
            generation,
            cause,
            rejected,
            _replaced: replaced.map(|active| active.flight),
        })
    }

    fn token_to_renew(&self) -> Option<AccessToken> {
        match self.standing {
            Standing::Withheld { .. } => self.cached.as_ref().map(|cached| cached.token.clone()),
            Standing::Unrejected | Standing::Released | Standing::InUseAgain => None,
        }
    }

    fn remove_flight(&mut self, generation: Generation) -> Option<ActiveFlight> {
        self.flight
            .take_if(|active| active.generation == generation)
    }

    fn cached_token(&self, issued: IssuedToken, settings: &Settings) -> CachedToken {
        let IssuedToken {
            token,
            requested_at,
            received_at,
        } = issued;
        let (token, lifetime) = token.received(&requested_at);
        let mut schedule = settings
            .timing
            .schedule(requested_at, lifetime, fastrand::f64());
        if self
            .cached
            .as_ref()
            .is_some_and(|c| c.token.is_same(&token))
        {
            schedule = schedule.for_unchanged_token(&received_at);
        }
        let exception = match schedule.freshness(&received_at) {
            Freshness::Expired => Exception::ExpiredOnArrival,
            Freshness::Fresh | Freshness::DueForRefresh => Exception::None,
        };
        CachedToken {
            token,
            schedule,
            accepted: Arc::default(),
            exception,
        }
    }

    /// Records a failure and returns its error, which says when the next token request may follow.
    fn record_failure(
        &mut self,
        error: Error,
        last: Option<&Failure>,
        now: Instant,
        settings: &Settings,
    ) -> Error {
        let in_a_row = last.map_or(1, |last| last.in_a_row.saturating_add(1));
        let asked_for = settings.limits.plausible_retry_after(&error);
        let pause = settings.backoff.pause(in_a_row, asked_for, fastrand::f64());
        let error = error.with_retry_after(Some(pause));
        let until = now + pause;
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
        let issued = issued(token, 1800 * SECOND, now);
        let _ = entry.complete(new_flight.generation, issued, now.monotonic, settings);
    }

    fn issued(token: &str, lifetime: Duration, now: &Moment) -> Result<IssuedToken, Error> {
        Ok(IssuedToken {
            token: AccessToken::new(token)?.with_lifetime(lifetime),
            requested_at: *now,
            received_at: *now,
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

        drop(entry.flight_lost(new_flight.generation));

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

        drop(entry.flight_lost(first.generation));
        complete(&mut entry, &first, "token-2", &overdue, &settings);
        assert_eq!(entry.current().unwrap().token().expose(), "token-1");

        complete(&mut entry, &second, "token-3", &overdue, &settings);
        assert_eq!(entry.current().unwrap().token().expose(), "token-3");
    }

    fn current(entry: &Entry) -> Arc<CachedToken> {
        Arc::clone(entry.current().expect("a token is in use"))
    }

    fn fail(entry: &mut Entry, new_flight: &NewFlight, now: &Moment, settings: &Settings) {
        let error = Err(Error::permanent("no"));
        let _ = entry.complete(new_flight.generation, error, now.monotonic, settings);
    }

    /// Rejects the current token and starts its renewal.
    fn renew(
        entry: &mut Entry,
        now: &Moment,
        settings: &Settings,
    ) -> (Arc<CachedToken>, Box<NewFlight>) {
        let rejected = current(entry);
        let rejection = entry.reject(rejected.token(), now, settings);
        assert!(matches!(rejection, Rejection::Withheld), "{rejection:?}");
        let Join::Start(renewal) = entry.join(Some(&rejected), now, settings) else {
            panic!("the renewal is due");
        };
        (rejected, renewal)
    }

    #[test]
    fn refresh_that_returns_the_rejected_token_leaves_its_renewal_due() {
        let (mut entry, start, settings) = entry();
        let due = start.after(1490 * SECOND);
        let refresh = entry.refresh(&due, &settings).expect("the refresh is due");
        let rejected = current(&entry);
        entry.reject(rejected.token(), &due, &settings);

        complete(&mut entry, &refresh, "token-1", &due, &settings);

        assert!(entry.current().is_none());
        let Join::Start(renewal) = entry.join(Some(&rejected), &due, &settings) else {
            panic!("the renewal is due");
        };
        assert_eq!(renewal.rejected.as_ref().unwrap().expose(), "token-1");
    }

    #[test]
    fn token_returned_by_its_own_renewal_is_not_given_to_the_rejected_call() {
        let (mut entry, start, settings) = entry();
        let (rejected, renewal) = renew(&mut entry, &start, &settings);

        complete(&mut entry, &renewal, "token-1", &start, &settings);

        let join = entry.join(Some(&rejected), &start, &settings);
        assert!(matches!(join, Join::CoolingDown));
        let other = entry.join(None, &start, &settings);
        assert!(matches!(other, Join::Token(_)), "other calls may use it");
    }

    #[test]
    fn rejection_of_a_token_that_a_refresh_returned_again_withholds_it() {
        let (mut entry, start, settings) = entry();
        let due = start.after(1490 * SECOND);
        let sent = current(&entry);
        let refresh = entry.refresh(&due, &settings).expect("the refresh is due");
        complete(&mut entry, &refresh, "token-1", &due, &settings);

        let rejection = entry.reject(sent.token(), &due, &settings);

        assert!(matches!(rejection, Rejection::Withheld), "{rejection:?}");
        assert!(entry.current().is_none());
    }

    #[test]
    fn acceptance_outlives_a_refresh_that_returned_the_same_token() {
        let (mut entry, start, settings) = entry();
        let (_, renewal) = renew(&mut entry, &start, &settings);
        complete(&mut entry, &renewal, "token-2", &start, &settings);
        current(&entry).note_accepted();
        let due = start.after(1490 * SECOND);
        let refresh = entry.refresh(&due, &settings).expect("the refresh is due");
        complete(&mut entry, &refresh, "token-2", &due, &settings);

        assert_eq!(current(&entry).evidence(), Evidence::Accepted);
    }

    #[test]
    fn renewal_that_returns_the_same_token_ends_the_evidence_of_its_acceptance() {
        let (mut entry, start, settings) = entry();
        current(&entry).note_accepted();
        let (_, renewal) = renew(&mut entry, &start, &settings);

        complete(&mut entry, &renewal, "token-1", &start, &settings);

        assert_eq!(current(&entry).evidence(), Evidence::None);
    }

    /// A call whose renewal was lost is polled after the renewal of another call has failed.
    #[test]
    fn rejected_token_that_is_in_use_again_is_renewed_after_the_back_off() {
        let (mut entry, start, settings) = entry();
        let (rejected, renewal) = renew(&mut entry, &start, &settings);
        fail(&mut entry, &renewal, &start, &settings);

        let join = entry.join(Some(&rejected), &start.after(SECOND / 2), &settings);
        assert!(matches!(join, Join::Failing(_)), "the back-off lasts 0.8 s");
        assert!(entry.current().is_some(), "the token stays in use");

        let later = start.after(2 * SECOND);
        let Join::Start(renewal) = entry.join(Some(&rejected), &later, &settings) else {
            panic!("the back-off is over");
        };
        assert_eq!(renewal.rejected.as_ref().unwrap().expose(), "token-1");
        assert!(entry.current().is_none());
    }

    #[test]
    fn expired_token_is_replaced_despite_the_cool_down() {
        let (mut entry, start, settings) = entry();
        let end = start.after(1790 * SECOND);
        let (rejected, renewal) = renew(&mut entry, &end, &settings);
        fail(&mut entry, &renewal, &end, &settings);

        let join = entry.join(Some(&rejected), &end.after(2 * SECOND), &settings);

        assert!(matches!(join, Join::Start(_)));
    }

    #[test]
    fn rejected_token_is_withheld_for_a_second_after_its_renewal_has_started() {
        let (mut entry, start, settings) = entry();
        let (rejected, _renewal) = renew(&mut entry, &start, &settings);

        let almost = start.after(SECOND - NANOSECOND);
        let Join::Wait(awaited) = entry.join(None, &almost, &settings) else {
            panic!("the token is withheld");
        };
        assert_eq!(awaited.until, Some(start.after(SECOND).monotonic));
        let Join::Wait(awaited) = entry.join(Some(&rejected), &almost, &settings) else {
            panic!("the renewal is under way");
        };
        assert_eq!(awaited.until, None, "the rejected call waits for its end");

        let released = start.after(SECOND);
        let join = entry.join(None, &released, &settings);
        assert!(matches!(join, Join::Token(_)));
        assert!(entry.current().is_some());
        let join = entry.join(Some(&rejected), &released, &settings);
        assert!(matches!(join, Join::Wait(_)));
        let again = entry.reject(rejected.token(), &released, &settings);
        assert!(matches!(again, Rejection::Renewing), "{again:?}");
        assert!(entry.current().is_some(), "it is not withheld twice");
    }

    /// The second counts from the rejection if there is something to wait for already.
    #[test]
    fn token_rejected_during_a_refresh_is_withheld_for_a_second() {
        let (mut entry, start, settings) = entry();
        let due = start.after(1490 * SECOND);
        let _refresh = entry.refresh(&due, &settings).expect("the refresh is due");
        let later = due.after(5 * SECOND);
        entry.reject(current(&entry).token(), &later, &settings);

        let almost = later.after(SECOND - NANOSECOND);
        assert!(matches!(
            entry.join(None, &almost, &settings),
            Join::Wait(_)
        ));
        let released = later.after(SECOND);
        assert!(matches!(
            entry.join(None, &released, &settings),
            Join::Token(_)
        ));
    }

    #[test]
    fn lost_renewal_does_not_extend_the_second() {
        let (mut entry, start, settings) = entry();
        let (_, renewal) = renew(&mut entry, &start, &settings);
        let later = start.after(SECOND / 2);
        drop(entry.flight_lost(renewal.generation));

        let Join::Start(next) = entry.join(None, &later, &settings) else {
            panic!("the renewal is still due");
        };

        assert_eq!(next.awaited.until, Some(start.after(SECOND).monotonic));
    }

    #[test]
    fn last_resort_is_an_unrejected_token_until_its_stated_end() {
        let (mut entry, start, settings) = entry();
        let expired = start.after(1790 * SECOND);
        let Join::Start(flight) = entry.join(None, &expired, &settings) else {
            panic!("the token has expired");
        };
        assert!(entry.last_resort(None, expired.monotonic).is_some());
        fail(&mut entry, &flight, &expired, &settings);

        let during_back_off = expired.after(SECOND / 2);
        let Join::Token(token) = entry.join(None, &during_back_off, &settings) else {
            panic!("the API may still accept the token");
        };

        let stated_end = start.after(1800 * SECOND);
        let almost = start.after(1800 * SECOND - NANOSECOND);
        assert!(entry.may_still_serve(&token, &almost));
        assert!(!entry.may_still_serve(&token, &stated_end));
        assert!(entry.last_resort(None, almost.monotonic).is_some());
        assert!(entry.last_resort(None, stated_end.monotonic).is_none());
        entry.reject(token.token(), &almost, &settings);
        assert!(entry.last_resort(None, almost.monotonic).is_none());
        assert!(!entry.may_still_serve(&token, &almost));
    }

    #[test]
    fn token_request_from_before_a_reset_serves_its_waiters_and_is_not_kept() {
        let (mut entry, start, settings) = entry();
        let (_, renewal) = renew(&mut entry, &start, &settings);

        drop(entry.reset());
        let issued = issued("token-2", 1800 * SECOND, &start);
        let completed = entry.complete(renewal.generation, issued, start.monotonic, &settings);

        let token = completed.result.unwrap().unwrap();
        assert!(entry.may_still_serve(&token, &start));
        assert!(entry.current().is_none() && entry.last_token().is_none());
        assert!(matches!(
            entry.join(None, &start, &settings),
            Join::Start(_)
        ));
    }

    #[test]
    fn reset_ends_the_back_off_and_the_cool_down() {
        let (mut entry, start, settings) = entry();
        let (_, renewal) = renew(&mut entry, &start, &settings);
        complete(&mut entry, &renewal, "token-2", &start, &settings);
        let refresh = entry.keep_warm_refresh(renewal.generation, &start, &settings);
        fail(&mut entry, &refresh.unwrap(), &start, &settings);

        drop(entry.reset());

        let Join::Start(new_flight) = entry.join(None, &start, &settings) else {
            panic!("the back-off has ended");
        };
        complete(&mut entry, &new_flight, "token-3", &start, &settings);
        renew(&mut entry, &start, &settings);
    }

    /// A server may return the same token until it expires.
    #[test]
    fn token_expired_on_arrival_is_rejected_whichever_flight_returned_it() {
        let (mut entry, settings) = (Entry::default(), Settings::default());
        let now = Clock::default().now();
        let mut tokens = Vec::new();
        for _ in 0..2 {
            let Join::Start(new_flight) = entry.join(None, &now, &settings) else {
                panic!("a token with a lifetime of zero serves one flight");
            };
            let issued = issued("the-same", Duration::ZERO, &now);
            let completed = entry.complete(new_flight.generation, issued, now.monotonic, &settings);
            tokens.push(completed.result.unwrap().unwrap());
        }
        assert!(
            tokens
                .iter()
                .all(|token| entry.may_still_serve(token, &now))
        );

        entry.reject(tokens[1].token(), &now, &settings);

        assert!(
            !tokens
                .iter()
                .any(|token| entry.may_still_serve(token, &now))
        );
        let released = now.after(2 * SECOND);
        let _renewal = entry.join(None, &now, &settings);
        entry.reject(tokens[1].token(), &released, &settings);
        assert!(
            !tokens
                .iter()
                .any(|token| entry.may_still_serve(token, &released))
        );
    }
}
