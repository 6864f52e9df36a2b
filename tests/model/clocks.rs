//! The monotonic clock and the wall clock of the model.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// The monotonic clock is tokio's, which is paused. The wall clock follows it until it is set.
#[derive(Clone)]
pub(crate) struct Clocks {
    start: Instant,
    /// The seconds by which the wall clock was moved forward.
    ahead: Arc<AtomicI64>,
}

/// A moment by both clocks: since the start of the history, and since 1970.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) monotonic: Duration,
    pub(crate) wall: Duration,
}

impl Clocks {
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
            ahead: Arc::default(),
        }
    }

    pub(crate) fn now(&self) -> Moment {
        // Far enough after 1970 for any number of jumps back.
        const YEARS: Duration = Duration::from_secs(50 * 365 * 24 * 60 * 60);
        let monotonic = self.start.elapsed();
        let ahead = self.ahead.load(Ordering::Relaxed);
        let jump = Duration::from_secs(ahead.unsigned_abs());
        let wall = YEARS + monotonic;
        let wall = if ahead < 0 { wall - jump } else { wall + jump };
        Moment { monotonic, wall }
    }

    pub(crate) fn system_time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.now().wall
    }

    pub(crate) fn move_wall(&self, seconds: i64) {
        self.ahead.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Moment {
    pub(crate) fn after(self, duration: Duration) -> Self {
        Self {
            monotonic: self.monotonic + duration,
            wall: self.wall + duration,
        }
    }

    /// How long ago `earlier` was, by the clock that says more.
    pub(crate) fn longest_since(self, earlier: &Self) -> Duration {
        let monotonic = self.monotonic.saturating_sub(earlier.monotonic);
        monotonic.max(self.wall.saturating_sub(earlier.wall))
    }

    /// Whether either clock has reached `other`.
    pub(crate) fn has_reached(&self, other: &Self) -> bool {
        self.monotonic >= other.monotonic || self.wall >= other.wall
    }
}
