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

/// Where the time comes from: the monotonic clock is tokio's, the wall clock may be replaced.
#[derive(Clone, Default)]
pub(crate) struct Clock {
    wall: Option<Arc<dyn Fn() -> SystemTime + Send + Sync>>,
}

impl Clock {
    pub(crate) fn with_wall(wall: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self {
            wall: Some(Arc::new(wall)),
        }
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "this is the place that the lint sends everybody to"
    )]
    pub(crate) fn now(&self) -> Moment {
        Moment {
            monotonic: Instant::now(),
            wall: match &self.wall {
                None => SystemTime::now(),
                Some(wall) => wall(),
            },
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
