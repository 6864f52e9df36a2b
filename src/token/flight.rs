//! One acquisition, shared by everybody who waits for it; its deadline and its retries.
//!
//! A flight is a task of its own. Nobody owns it: a waiter that goes away changes nothing. It ends
//! early only when nobody is left to whom its outcome could matter.

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

/// The token service of a cache: erased once, because every use of it is on a cold path.
///
/// Behind a lock because it need not be `Sync`; the lock is held to clone it, no longer.
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

    /// One request to the token service, whose panics are errors like any other; `None` if it does
    /// not answer in time.
    async fn attempt(
        &self,
        request: &TokenRequest,
        deadline: Instant,
    ) -> Option<Result<AccessToken, Error>> {
        // Each attempt has a clone of its own: nothing of a service that panicked is used again. The
        // request is dropped in here as well, for that may panic, too.
        let attempt = async {
            let answer = self.clone_service().oneshot(request.clone());
            timeout_at(deadline, answer).await.ok()
        };
        match AssertUnwindSafe(attempt).catch_unwind().await {
            Ok(answer) => answer,
            // The payload may hold anything, a secret too.
            Err(_payload) => Some(Err(Error::new(Kind::Panicked))),
        }
    }

    fn clone_service(&self) -> BoxTokenService {
        // Cloning does not change the service, so one that panicked has left it as it was.
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// How much later than its deadline a flight that has not landed counts as lost.
///
/// A flight ends itself at its deadline; one that does not is on a runtime that nobody drives.
const OVERDUE_AFTER: Duration = Duration::from_secs(1);

/// A flight, as those see it who wait for it.
#[derive(Clone, Debug)]
pub(super) struct Flight<T> {
    result: watch::Receiver<Option<T>>,
    deadline: Instant,
}

/// A flight, as the task sees it that carries it out.
#[derive(Debug)]
pub(super) struct Completer<T> {
    result: watch::Sender<Option<T>>,
}

impl<T: Clone> Flight<T> {
    /// Prepares a flight that has to land within `deadline` from `now`.
    pub(super) fn prepare(now: &Moment, deadline: Duration) -> (Self, Completer<T>) {
        let (sender, receiver) = watch::channel(None);
        let flight = Self {
            result: receiver,
            deadline: now.after(deadline).monotonic,
        };
        (flight, Completer { result: sender })
    }

    /// When the flight has to have an outcome.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// When the flight counts as lost if it has not landed.
    pub(super) fn overdue_at(&self) -> Instant {
        self.deadline + OVERDUE_AFTER
    }

    /// Waits for the outcome; `None` if there will be none, because the flight was lost.
    pub(super) async fn result(mut self) -> Option<T> {
        match timeout_at(self.overdue_at(), self.result.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone(),
            // The task is gone: its runtime was shut down.
            Ok(Err(_)) => None,
            Err(_overdue) => None,
        }
    }
}

impl<T> Completer<T> {
    /// Carries out the acquisition; `None` if nobody is left who could use its outcome.
    pub(super) async fn run<F: Future>(&self, acquisition: F) -> Option<F::Output> {
        match select(pin!(acquisition), pin!(self.result.closed())).await {
            Either::Left((outcome, _)) => Some(outcome),
            Either::Right(_) => None,
        }
    }

    /// How many wait.
    pub(super) fn waiters(&self) -> usize {
        self.result.receiver_count()
    }

    /// Tells all waiters.
    pub(super) fn complete(self, outcome: T) {
        self.result.send_replace(Some(outcome));
    }
}

/// What one flight may cost; each number is documented where it is set, at the builder.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) deadline: Duration,
    pub(super) attempts: u32,
    pub(super) first_pause: Duration,
}

impl Limits {
    /// Asks the token service until it answers with a token or a permanent error, or until the
    /// attempts or the time are used up. Also says when the token was asked for.
    pub(super) async fn request_token(
        &self,
        service: &SharedTokenService,
        request: &TokenRequest,
        deadline: Instant,
        clock: &Clock,
        telemetry: &mut telemetry::Flight,
    ) -> Result<(AccessToken, Moment), Error> {
        let mut failed_attempts = 0;
        let mut last_error = None;
        loop {
            let asked_at = clock.now();
            let (is_late, answer) = match service.attempt(request, deadline).await {
                Some(answer) => (false, answer),
                None => (
                    true,
                    Err(Error::timed_out(self.deadline, last_error.take())),
                ),
            };
            telemetry.attempted(asked_at.monotonic, answer.as_ref().err());
            let error = match answer {
                Ok(token) => return Ok((token, asked_at)),
                Err(error) => error,
            };
            if is_late {
                return Err(error);
            }

            failed_attempts += 1;
            let pause = self.pause_before_retry(failed_attempts, &error);
            match pause.filter(|pause| clock.now().after(*pause).monotonic < deadline) {
                Some(pause) => sleep(pause).await,
                None => return Err(error),
            }
            if clock.now().monotonic >= deadline {
                // The process stood still meanwhile; an answer would come too late.
                return Err(Error::timed_out(self.deadline, Some(error)));
            }
            last_error = Some(error);
        }
    }

    fn pause_before_retry(&self, failed_attempts: u32, error: &Error) -> Option<Duration> {
        if !error.is_transient() || failed_attempts >= self.attempts {
            return None;
        }
        let draw = fastrand::f64();
        let pause = schedule::retry_pause(self.first_pause, failed_attempts, draw);
        Some(pause.max(schedule::obeyed(error.retry_after(), draw)))
    }
}
