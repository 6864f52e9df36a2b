//! The only place that asks what time it is.
//!
//! Two clocks, because each misses something: the monotonic one stands still while a machine is
//! suspended, the wall clock jumps when somebody sets it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// How long the system's wall clock is believed to go along with the monotonic one.
///
/// A machine takes longer than that to freeze its processes before it is suspended, and the
/// monotonic clock runs meanwhile.
const IN_STEP: Duration = Duration::from_millis(1);

/// Where the time comes from: the monotonic clock is tokio's, the wall clock may be replaced.
#[derive(Clone)]
pub(crate) struct Clock {
    wall: Option<Arc<dyn Fn() -> SystemTime + Send + Sync>>,
    in_step: Duration,
}

#[allow(
    clippy::disallowed_methods,
    reason = "this is the place that the lint sends everybody to"
)]
impl Clock {
    /// A clock whose wall clock is a function, which is asked each time.
    pub(crate) fn with_wall(wall: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self {
            wall: Some(Arc::new(wall)),
            in_step: Duration::ZERO,
        }
    }

    /// The same clock, whose wall clock is asked as seldom as the system's.
    #[cfg(test)]
    pub(crate) fn asked_seldom(self) -> Self {
        let in_step = IN_STEP;
        Self { in_step, ..self }
    }

    /// The same clock, whose wall clock is asked once for each span of `in_step`.
    #[cfg(all(test, interleavings))]
    pub(crate) fn asked_every(self, in_step: Duration) -> Self {
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

    /// What [`now`](Self::now) has beside the wall clock, for less.
    #[inline]
    pub(crate) fn monotonic() -> Instant {
        Instant::now()
    }

    /// Until when the monotonic clock alone will do, both having been read at `now`.
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

/// One moment, as both clocks show it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) monotonic: Instant,
    pub(crate) wall: SystemTime,
}

impl Moment {
    /// The moment `duration` later; decades at most, which every clock can show.
    pub(crate) fn after(self, duration: Duration) -> Self {
        const FARTHEST: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
        let duration = duration.min(FARTHEST);
        Self {
            monotonic: self.monotonic + duration,
            wall: self.wall + duration,
        }
    }

    /// Whether either clock has come as far as it shows at `other`.
    pub(crate) fn has_reached(&self, other: &Self) -> bool {
        self.monotonic >= other.monotonic || self.wall >= other.wall
    }
}
