//! A flight: one token request and everyone waiting for it.
//!
//! A flight runs in its own task and belongs to no caller: dropping a waiter changes nothing. It
//! ends early only when nobody is left who could use its result.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, OnceLock},
    task::Poll,
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{Either, select},
};
use tokio::{
    runtime::{self, Handle},
    sync::{Mutex, watch},
    time::{Instant, sleep},
};
use tower::{BoxError, Service, ServiceExt, util::BoxCloneService};

use super::{AccessToken, TokenRequest, schedule};
use crate::{
    Error,
    clock::{Clock, Deadline, Moment, Timer},
    error::Kind,
    telemetry,
};

/// How long after its deadline a flight without a result counts as lost.
///
/// A flight ends itself at its deadline. One that doesn't is on a runtime that nobody drives.
const OVERDUE_AFTER: Duration = Duration::from_secs(1);

/// A flight, as seen by those who wait for its result.
#[derive(Clone, Debug)]
pub(super) struct Flight<T> {
    result: watch::Receiver<Option<T>>,
    deadline: Moment,
    /// The token request names the token that the API rejected.
    is_renewal: bool,
    /// Set before the task is spawned.
    task: Arc<Task>,
}

/// What is known of a flight's task.
#[derive(Debug, Default)]
struct Task {
    runtime: OnceLock<runtime::Id>,
    /// How long the flight may wait before its deadline starts.
    queue: OnceLock<Duration>,
}

/// Tells the waiters of a flight that it is queued. Not a waiter itself.
pub(super) struct Queue(Arc<Task>);

impl Queue {
    /// The flight waits, for up to `limit`, before its deadline starts.
    pub(super) fn waits_for_up_to(&self, limit: Duration) {
        let _ = self.0.queue.set(limit);
    }
}

/// A flight, as seen by the task that runs it.
#[derive(Debug)]
pub(super) struct Completer<T> {
    result: watch::Sender<Option<T>>,
}

/// How a wait for a flight ended.
pub(super) enum Waited<T> {
    Result(T),
    /// The flight is lost: its runtime was shut down.
    Lost,
    /// The flight has no result yet, but the waiter has something else to do.
    TimeIsUp,
}

impl<T: Clone> Flight<T> {
    /// Prepares a flight that has to end within `deadline` from `now`.
    pub(super) fn prepare(
        now: &Moment,
        deadline: Duration,
        is_renewal: bool,
    ) -> (Self, Completer<T>) {
        let (sender, receiver) = watch::channel(None);
        let flight = Self {
            result: receiver,
            deadline: now.after(deadline),
            is_renewal,
            task: Arc::default(),
        };
        (flight, Completer { result: sender })
    }

    pub(super) fn deadline(&self) -> Moment {
        self.deadline
    }

    pub(super) fn is_renewal(&self) -> bool {
        self.is_renewal
    }

    /// Says that the task of the flight is spawned on this runtime.
    pub(super) fn starts_on(&self, runtime: runtime::Id) {
        let _ = self.task.runtime.set(runtime);
    }

    /// Where the flight's task says that it has to wait before it may start.
    pub(super) fn queue(&self) -> Queue {
        Queue(Arc::clone(&self.task))
    }

    /// When the flight counts as lost if it has no result.
    pub(super) fn overdue_at(&self) -> Instant {
        let queued = self.task.queue.get().copied().unwrap_or_default();
        self.deadline.after(queued).monotonic + OVERDUE_AFTER
    }

    /// Waits for the result on `runtime`, until `until` at the latest.
    pub(super) async fn result(mut self, runtime: &Handle, until: Option<Instant>) -> Waited<T> {
        let timer = |ends_at| Timer::until(ends_at, Some(runtime.clone()));
        let mut timer = self.time_limit(runtime.id(), until).map(timer);
        let time_limit = poll_fn(|cx| match &mut timer {
            Some(timer) => timer.poll(cx),
            None => Poll::Pending,
        });
        match select(pin!(self.result.wait_for(Option::is_some)), time_limit).await {
            Either::Left((Ok(result), _)) => result.clone().map_or(Waited::Lost, Waited::Result),
            Either::Left((Err(_), _)) => Waited::Lost,
            Either::Right(_) => Waited::TimeIsUp,
        }
    }

    /// When a waiter on `runtime` stops waiting.
    ///
    /// A flight on the waiter's own runtime ends itself while that runtime can poll the waiter.
    fn time_limit(&self, runtime: runtime::Id, until: Option<Instant>) -> Option<Instant> {
        let is_local = self.task.runtime.get() == Some(&runtime);
        let overdue_at = (!is_local).then(|| self.overdue_at());
        until.into_iter().chain(overdue_at).min()
    }
}

impl<T> Completer<T> {
    /// Runs `future` for as long as somebody could use the result; returns `None` if nobody can.
    pub(super) async fn run<F: Future>(&self, future: F) -> Option<F::Output> {
        match select(pin!(future), pin!(self.result.closed())).await {
            Either::Left((output, _)) => Some(output),
            Either::Right(_) => None,
        }
    }

    pub(super) fn waiters(&self) -> usize {
        self.result.receiver_count()
    }

    /// Gives the result to all waiters.
    pub(super) fn complete(self, result: T) {
        self.result.send_replace(Some(result));
    }
}

/// A token as the token service returned it.
pub(super) struct IssuedToken {
    pub(super) token: AccessToken,
    /// When the successful attempt started: the token's lifetime counts from then.
    pub(super) requested_at: Moment,
    pub(super) received_at: Moment,
}

/// What one flight may cost. The builder documents each option.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) deadline: Duration,
    pub(super) attempt_timeout: Duration,
    pub(super) max_attempts: u32,
    pub(super) retry_backoff: Duration,
    pub(super) max_retry_after: Duration,
}

impl Limits {
    /// How long the server asks to wait, if it makes sense to obey.
    ///
    /// Longer times are mostly Unix times or milliseconds, and zero says nothing. A permanent error
    /// doesn't go away by waiting, but by a correction, which should take effect soon.
    pub(super) fn plausible_retry_after(&self, error: &Error) -> Option<Duration> {
        let asked_for = error.retry_after().filter(|_| error.is_transient());
        asked_for.filter(|asked_for| !asked_for.is_zero() && *asked_for <= self.max_retry_after)
    }

    /// Whether an error may be followed by another attempt of the same token request.
    ///
    /// A server that refuses too many requests without saying when to come back gets no further ones
    /// within a second.
    fn may_retry(&self, error: &Error) -> bool {
        let is_left_open = self.plausible_retry_after(error).is_none();
        error.is_transient() && !(error.is_too_many_requests() && is_left_open)
    }
}

/// The attempts of one flight.
pub(super) struct Attempts {
    pub(super) token_service: SharedTokenService,
    pub(super) request: TokenRequest,
    pub(super) limits: Limits,
    pub(super) deadline: Moment,
    pub(super) clock: Clock,
    pub(super) telemetry: telemetry::Flight,
}

impl Attempts {
    /// Asks the token service until it returns a token or a permanent error, or until the attempts
    /// or the time are used up.
    pub(super) async fn run(&mut self) -> Result<IssuedToken, Error> {
        let mut failed_attempts = 0;
        let mut last_error = None;
        loop {
            let requested_at = self.clock.now();
            let error = match self.attempt(requested_at, last_error.take()).await {
                Ok(token) => {
                    return Ok(IssuedToken {
                        token,
                        requested_at,
                        received_at: self.clock.now(),
                    });
                }
                Err(error) => error,
            };
            failed_attempts += 1;
            let Some(pause) = self.pause_before_retry(failed_attempts, &error) else {
                return Err(error);
            };
            // The process may stand still during the pause, and a reply would come too late.
            let deadline = Deadline::new(&self.clock, self.deadline);
            if let Either::Right((ended, _)) = select(pin!(sleep(pause)), deadline).await {
                return Err(ended.err().unwrap_or_else(|| self.timed_out(Some(error))));
            }
            if self.clock.now().has_reached(&self.deadline) {
                return Err(self.timed_out(Some(error)));
            }
            last_error = Some(error);
        }
    }

    async fn attempt(
        &mut self,
        started_at: Moment,
        last_error: Option<Error>,
    ) -> Result<AccessToken, Error> {
        let result = self.answer(started_at, last_error).await;
        self.telemetry
            .attempted(started_at.monotonic, result.as_ref().err());
        result
    }

    /// Calls the token service once, until either clock ends the attempt or the flight.
    async fn answer(
        &self,
        started_at: Moment,
        last_error: Option<Error>,
    ) -> Result<AccessToken, Error> {
        let attempt_ends_at = started_at.after(self.limits.attempt_timeout);
        let ends_at = self.deadline.earliest(attempt_ends_at);
        let deadline = || Deadline::new(&self.clock, ends_at);
        let deadline = catch_unwind(AssertUnwindSafe(deadline));
        let deadline = deadline.map_err(|_| Error::new(Kind::NoTimers))?;
        match self.token_service.call(&self.request, deadline).await {
            Some(answer) => answer,
            None if self.clock.now().has_reached(&self.deadline) => Err(self.timed_out(last_error)),
            None => Err(Error::timed_out(self.limits.attempt_timeout, last_error)),
        }
    }

    /// How long to wait before the next attempt; `None` if there is no time or use for one.
    fn pause_before_retry(&self, failed_attempts: u32, error: &Error) -> Option<Duration> {
        if !self.limits.may_retry(error) || failed_attempts >= self.limits.max_attempts {
            return None;
        }
        let draw = fastrand::f64();
        let backoff = schedule::retry_pause(self.limits.retry_backoff, failed_attempts, draw);
        let asked_for = self.limits.plausible_retry_after(error);
        let pause = backoff.max(schedule::retry_after_pause(asked_for, draw));
        let next = self.clock.now().after(pause);
        (!next.has_reached(&self.deadline)).then_some(pause)
    }

    fn timed_out(&self, last_error: Option<Error>) -> Error {
        Error::timed_out(self.limits.deadline, last_error)
    }
}

/// The token service of a cache. Its type is erased, because it is used on cold paths only.
///
/// The lock makes up for a service that isn't `Sync`. Only flights wait for it, and no thread does, so
/// that the service may use the cache while it is cloned.
#[derive(Clone)]
pub(super) struct SharedTokenService(Arc<Mutex<BoxTokenService>>);

type BoxTokenService = BoxCloneService<TokenRequest, AccessToken, Error>;

impl SharedTokenService {
    pub(super) fn new<T>(token_service: T) -> Self
    where
        T: Service<TokenRequest, Response = AccessToken> + Clone + Send + 'static,
        T::Error: Into<BoxError>,
        T::Future: Send + 'static,
    {
        let token_service = token_service.map_err(|error| Error::from_token_service(error.into()));
        Self(Arc::new(Mutex::new(BoxCloneService::new(token_service))))
    }

    /// Calls the service once; returns `None` if it doesn't answer in time.
    ///
    /// A panic of the service is an error like any other.
    async fn call(
        &self,
        request: &TokenRequest,
        deadline: Deadline,
    ) -> Option<Result<AccessToken, Error>> {
        // Nothing of a service that panicked is used again: each call gets its own clone. The
        // service's future is dropped inside as well, because its `drop` may panic, too.
        let call = async {
            let answer = async {
                let service = self.0.lock().await.clone();
                service.oneshot(request.clone()).await
            };
            match select(pin!(answer), deadline).await {
                Either::Left((answer, _)) => Some(answer),
                Either::Right((Ok(()), _)) => None,
                Either::Right((Err(error), _)) => Some(Err(error)),
            }
        };
        match AssertUnwindSafe(call).catch_unwind().await {
            Ok(answer) => answer,
            // The payload is not shown: it may contain anything, including a secret.
            Err(_payload) => Some(Err(Error::new(Kind::Panicked))),
        }
    }
}
