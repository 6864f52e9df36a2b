//! Both clocks, as the model reads them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// The monotonic clock is tokio's, which is paused; the wall clock goes with it until it is set.
#[derive(Clone)]
pub(crate) struct Clocks {
    start: Instant,
    /// By how many seconds the wall clock was set forth.
    set_forth: Arc<AtomicI64>,
}

/// One moment: since the start of the history, and since 1970.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) monotonic: Duration,
    pub(crate) wall: Duration,
}

impl Clocks {
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
            set_forth: Arc::default(),
        }
    }

    pub(crate) fn now(&self) -> Moment {
        // Far enough from 1970 for any number of jumps back.
        const YEARS: Duration = Duration::from_secs(50 * 365 * 24 * 60 * 60);
        let monotonic = self.start.elapsed();
        let set_forth = self.set_forth.load(Ordering::Relaxed);
        let jump = Duration::from_secs(set_forth.unsigned_abs());
        let wall = YEARS + monotonic;
        let wall = if set_forth < 0 {
            wall - jump
        } else {
            wall + jump
        };
        Moment { monotonic, wall }
    }

    pub(crate) fn system_time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.now().wall
    }

    pub(crate) fn set_wall(&self, seconds: i64) {
        self.set_forth.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Moment {
    pub(crate) fn after(self, duration: Duration) -> Self {
        Self {
            monotonic: self.monotonic + duration,
            wall: self.wall + duration,
        }
    }

    /// Whether either clock says so.
    pub(crate) fn has_reached(&self, other: &Self) -> bool {
        self.monotonic >= other.monotonic || self.wall >= other.wall
    }
}
