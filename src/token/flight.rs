//! A flight: one token request and everyone waiting for it.
//!
//! A flight runs in its own task and belongs to no caller: dropping a waiter changes nothing. It
//! ends early only when nobody is left who could use its result.

use std::{
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{Either, select},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tower::{BoxError, Service, ServiceExt, util::BoxCloneService};

use super::{AccessToken, TokenRequest, schedule};
use crate::{
    Error,
    clock::{Clock, Moment},
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
    deadline: Instant,
}

/// A flight, as seen by the task that runs it.
#[derive(Debug)]
pub(super) struct Completer<T> {
    result: watch::Sender<Option<T>>,
}

impl<T: Clone> Flight<T> {
    /// Prepares a flight that has to end within `deadline` from `now`.
    pub(super) fn prepare(now: &Moment, deadline: Duration) -> (Self, Completer<T>) {
        let (sender, receiver) = watch::channel(None);
        let flight = Self {
            result: receiver,
            deadline: now.after(deadline).monotonic,
        };
        (flight, Completer { result: sender })
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// When the flight counts as lost if it has no result.
    pub(super) fn overdue_at(&self) -> Instant {
        self.deadline + OVERDUE_AFTER
    }

    /// Waits for the result. Returns `None` if the flight is lost, so that there will be none.
    pub(super) async fn result(mut self) -> Option<T> {
        match timeout_at(self.overdue_at(), self.result.wait_for(Option::is_some)).await {
            Ok(Ok(result)) => result.clone(),
            // The task is gone: its runtime was shut down.
            Ok(Err(_)) => None,
            Err(_overdue) => None,
        }
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
}

/// What one flight may cost. The builder documents each option.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) deadline: Duration,
    pub(super) max_attempts: u32,
    pub(super) retry_backoff: Duration,
}

/// The attempts of one flight.
pub(super) struct Attempts {
    pub(super) token_service: SharedTokenService,
    pub(super) request: TokenRequest,
    pub(super) limits: Limits,
    pub(super) deadline: Instant,
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
                    });
                }
                Err(error) => error,
            };
            failed_attempts += 1;
            let Some(pause) = self.pause_before_retry(failed_attempts, &error) else {
                return Err(error);
            };
            sleep(pause).await;
            if self.clock.now().monotonic >= self.deadline {
                // The process stood still during the pause: a reply would come too late.
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
        let answer = self.token_service.call(&self.request, self.deadline).await;
        let answer = answer.unwrap_or_else(|| Err(self.timed_out(last_error)));
        self.telemetry
            .attempted(started_at.monotonic, answer.as_ref().err());
        answer
    }

    /// How long to wait before the next attempt; `None` if there is no time or use for one.
    fn pause_before_retry(&self, failed_attempts: u32, error: &Error) -> Option<Duration> {
        if !error.may_retry_within_request() || failed_attempts >= self.limits.max_attempts {
            return None;
        }
        let draw = fastrand::f64();
        let backoff = schedule::retry_pause(self.limits.retry_backoff, failed_attempts, draw);
        let pause = backoff.max(schedule::retry_after_pause(error.retry_after(), draw));
        let ends_at = self.clock.now().after(pause).monotonic;
        (ends_at < self.deadline).then_some(pause)
    }

    fn timed_out(&self, last_error: Option<Error>) -> Error {
        Error::timed_out(self.limits.deadline, last_error)
    }
}

/// The token service of a cache. Its type is erased, because it is used on cold paths only.
///
/// The lock makes up for a service that isn't `Sync`. It is held only to clone the service.
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

    /// Calls the service once; returns `None` if it doesn't answer by `deadline`.
    ///
    /// A panic of the service is an error like any other.
    async fn call(
        &self,
        request: &TokenRequest,
        deadline: Instant,
    ) -> Option<Result<AccessToken, Error>> {
        // Nothing of a service that panicked is used again: each call gets its own clone. The
        // service's future is dropped inside as well, because its `drop` may panic, too.
        let call = async {
            let answer = self.clone_service().oneshot(request.clone());
            timeout_at(deadline, answer).await.ok()
        };
        match AssertUnwindSafe(call).catch_unwind().await {
            Ok(answer) => answer,
            // The payload is not shown: it may contain anything, including a secret.
            Err(_payload) => Some(Err(Error::new(Kind::Panicked))),
        }
    }

    fn clone_service(&self) -> BoxTokenService {
        // Cloning doesn't change the service, so a panic while cloning leaves it as it was.
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
