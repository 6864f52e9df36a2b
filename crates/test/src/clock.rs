use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// A wall clock that a test sets.
///
/// A client that takes its wall clock as a function, such as `TokenCacheBuilder::wall_clock` of
/// `tower-client-credentials`, gets [`reader`](Self::reader). Clones share the time.
///
/// [`new`](Self::new) creates a clock that stands still until the test moves it.
/// [`following_tokio`](Self::following_tokio) creates one that moves with Tokio's clock, also while
/// that clock is paused, so that both clocks of a client stay in step.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use tower_client_credentials_test::TestClock;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// tokio::time::pause();
/// let clock = TestClock::following_tokio();
/// let start = clock.now();
///
/// tokio::time::advance(Duration::from_secs(60)).await;
/// assert_eq!(clock.now(), start + Duration::from_secs(60));
///
/// // The machine was suspended: only the wall clock went on.
/// clock.advance(Duration::from_secs(3600));
/// assert_eq!(clock.now(), start + Duration::from_secs(3660));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TestClock(Arc<Mutex<Time>>);

#[derive(Debug)]
struct Time {
    base: SystemTime,
    /// When the base was set, if the clock follows Tokio's.
    since: Option<Instant>,
}

impl TestClock {
    /// Creates a clock that stands still at `time`.
    pub fn new(time: SystemTime) -> Self {
        Self::with(time, None)
    }

    /// Creates a clock that starts at the system's time and moves with Tokio's clock.
    pub fn following_tokio() -> Self {
        Self::with(SystemTime::now(), Some(Instant::now()))
    }

    fn with(base: SystemTime, since: Option<Instant>) -> Self {
        Self(Arc::new(Mutex::new(Time { base, since })))
    }

    /// Returns the time of this clock.
    pub fn now(&self) -> SystemTime {
        let time = self.lock();
        time.base + time.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Moves this clock forward, in addition to what it follows.
    ///
    /// # Panics
    ///
    /// Panics if [`SystemTime`] can't represent the new time. The clock stays as it was.
    #[track_caller]
    pub fn advance(&self, duration: Duration) {
        let mut time = self.lock();
        let advanced = time.base.checked_add(duration);
        if let Some(base) = advanced {
            time.base = base;
        }
        drop(time);
        assert!(advanced.is_some(), "the clock can't advance so far");
    }

    /// Sets this clock, also to an earlier time. A clock that follows Tokio's continues from there.
    pub fn set(&self, time: SystemTime) {
        let mut current = self.lock();
        current.base = time;
        current.since = current.since.map(|_| Instant::now());
    }

    /// Returns a function that reads this clock.
    pub fn reader(&self) -> impl Fn() -> SystemTime + Clone + Send + Sync + 'static {
        let clock = self.clone();
        move || clock.now()
    }

    fn lock(&self) -> MutexGuard<'_, Time> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
