//! The only module that reads the time.
//!
//! There are two clocks because each has a flaw: the monotonic clock stands still while the machine
//! is suspended, and the wall clock jumps when it is set.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use tokio::{
    runtime::Handle,
    task::{JoinSet, yield_now},
    time::{Instant, Sleep, sleep_until},
};

use crate::Error;

/// How long the system's wall clock is assumed to advance with the monotonic clock.
///
/// Before a machine is suspended, freezing its processes takes longer than this, and the monotonic
/// clock still runs then.
const IN_STEP: Duration = Duration::from_millis(1);

/// The source of the time. The monotonic clock is tokio's, and the wall clock can be replaced.
#[derive(Clone)]
pub(crate) struct Clock {
    wall: Option<Arc<dyn Fn() -> SystemTime + Send + Sync>>,
    in_step: Duration,
}

#[allow(
    clippy::disallowed_methods,
    reason = "the lint refers everyone to this module"
)]
impl Clock {
    /// Returns a clock whose wall clock is a function that is called each time.
    pub(crate) fn with_wall(wall: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self {
            wall: Some(Arc::new(wall)),
            in_step: Duration::ZERO,
        }
    }

    /// Returns the clock with a wall clock that is read as rarely as the system's.
    #[cfg(test)]
    pub(crate) fn asked_seldom(self) -> Self {
        let in_step = IN_STEP;
        Self { in_step, ..self }
    }

    /// Returns the clock with a wall clock that is read at most once per `in_step`.
    #[cfg(all(test, interleavings))]
    pub(crate) fn read_every(self, in_step: Duration) -> Self {
        Self { in_step, ..self }
    }

    pub(crate) fn now(&self) -> Moment {
        Moment {
            monotonic: Instant::now(),
            wall: match &self.wall {
                None => SystemTime::now(),
                Some(wall) => wall(),
            },
        }
    }

    /// Reads the monotonic clock only, which is cheaper than [`now`](Self::now).
    #[inline]
    pub(crate) fn monotonic() -> Instant {
        Instant::now()
    }

    /// Until when the monotonic clock suffices after both clocks were read at `now`.
    pub(crate) fn in_step_until(&self, now: &Moment) -> Instant {
        now.monotonic + self.in_step
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            wall: None,
            in_step: IN_STEP,
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// A pause that starts when it is first polled.
///
/// The timer is in a task of its own, because a timer panics where its runtime has none, or was shut
/// down. Without a runtime, the pause never ends.
#[derive(Debug)]
pub(crate) struct Timer {
    ends: End,
    runtime: Option<Handle>,
    /// Aborted when the timer is dropped.
    task: Option<JoinSet<()>>,
}

#[derive(Clone, Copy, Debug)]
enum End {
    After(Duration),
    At(Instant),
}

impl Timer {
    pub(crate) fn new(duration: Duration, runtime: Option<Handle>) -> Self {
        Self::that(End::After(duration), runtime)
    }

    /// Creates a timer that ends at a moment of the monotonic clock.
    pub(crate) fn until(ends_at: Instant, runtime: Option<Handle>) -> Self {
        Self::that(End::At(ends_at), runtime)
    }

    fn that(ends: End, runtime: Option<Handle>) -> Self {
        Self {
            ends,
            runtime,
            task: None,
        }
    }

    /// Waits until the pause has ended. Polled again after that, it stays pending.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let runtime = self.runtime.as_ref();
        let task = self
            .task
            .get_or_insert_with(|| Self::start(self.ends, runtime));
        match ready!(task.poll_join_next(cx)) {
            Some(Ok(())) => Poll::Ready(()),
            Some(Err(_)) | None => Poll::Pending,
        }
    }

    fn start(ends: End, runtime: Option<&Handle>) -> JoinSet<()> {
        let mut task = JoinSet::new();
        let ends_at = match ends {
            End::After(duration) => Clock::monotonic() + duration,
            End::At(ends_at) => ends_at,
        };
        if let Some(runtime) = runtime {
            let timer = async move {
                // On a runtime without timers, the token request that the call waits for fails
                // meanwhile: it was spawned before. On a runtime with one thread, this task is
                // therefore gone before it panics as well.
                yield_now().await;
                sleep_until(ends_at).await;
            };
            task.spawn_on(timer, runtime);
        }
        task
    }
}

/// How often a [`Deadline`] checks both clocks.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A wait until either clock reaches a moment.
///
/// Timers follow the monotonic clock, which stands still while the machine is suspended. So the wait
/// checks both clocks once a second.
pub(crate) struct Deadline {
    clock: Clock,
    ends_at: Moment,
    next_check: Pin<Box<Sleep>>,
}

impl Deadline {
    /// Creates a deadline. Must be called on a runtime.
    ///
    /// # Panics
    ///
    /// Panics with tokio's message if the runtime has no timers.
    pub(crate) fn new(clock: &Clock, ends_at: Moment) -> Self {
        let first_check = ends_at.monotonic.min(Clock::monotonic() + CHECK_INTERVAL);
        Self {
            clock: clock.clone(),
            ends_at,
            next_check: Box::pin(sleep_until(first_check)),
        }
    }
}

impl Future for Deadline {
    /// An error if the wall clock panics.
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            ready!(self.next_check.as_mut().poll(cx));
            let now = catch_unwind(AssertUnwindSafe(|| self.clock.now()));
            let now = now.map_err(|_payload| Error::clock_panicked())?;
            if now.has_reached(&self.ends_at) {
                return Poll::Ready(Ok(()));
            }
            let next = now.after(CHECK_INTERVAL).monotonic;
            let next = next.min(self.ends_at.monotonic);
            self.next_check.as_mut().reset(next);
        }
    }
}

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) monotonic: Instant,
    pub(crate) wall: SystemTime,
}

impl Moment {
    /// Returns the moment `duration` later, up to 30 years, which the monotonic clock can represent.
    pub(crate) fn after(self, duration: Duration) -> Self {
        const FARTHEST: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
        let duration = duration.min(FARTHEST);
        Self {
            monotonic: self.monotonic + duration,
            // A wall clock may be set to any time.
            wall: self.wall.checked_add(duration).unwrap_or(self.wall),
        }
    }

    /// The earlier of two moments, on each clock.
    pub(crate) fn earliest(self, other: Self) -> Self {
        Self {
            monotonic: self.monotonic.min(other.monotonic),
            wall: self.wall.min(other.wall),
        }
    }

    /// Whether either clock has reached `other`.
    pub(crate) fn has_reached(&self, other: &Self) -> bool {
        self.monotonic >= other.monotonic || self.wall >= other.wall
    }
}
