//! Two runtimes whose paused clocks go together, of which the second can go away.
//!
//! Driven in turn on the thread of the test. Only one of them has something to do at a time, as there
//! is one flight at most; so it does not matter that the first has seen all of a wait before the
//! second begins with it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::{Builder, EnterGuard, Handle, Runtime},
    time::{Instant, advance, sleep_until},
};

use crate::support::settle_briefly;

/// Where a call is polled, and with it where the flight runs that it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    First,
    Second,
}

pub(crate) struct Runtimes {
    first: Runtime,
    second: Runtime,
    driven: Driven,
}

/// Which of the runtimes is driven, for those who run on it.
#[derive(Clone, Default)]
pub(crate) struct Driven(Arc<AtomicBool>);

impl Driven {
    pub(crate) fn home(&self) -> Home {
        if self.0.load(Ordering::Relaxed) {
            Home::Second
        } else {
            Home::First
        }
    }

    fn set(&self, home: Home) {
        self.0.store(home == Home::Second, Ordering::Relaxed);
    }
}

impl Runtimes {
    pub(crate) fn start() -> Self {
        // So far ahead that the clock of a runtime that is made later can always be set to it.
        const AHEAD: Duration = Duration::from_secs(24 * 60 * 60);
        let first = paused();
        first.block_on(advance(AHEAD));
        let runtimes = Self {
            first,
            second: paused(),
            driven: Driven::default(),
        };
        runtimes.align();
        runtimes
    }

    pub(crate) fn driven(&self) -> Driven {
        self.driven.clone()
    }

    pub(crate) fn handle(&self, home: Home) -> Handle {
        self.runtime(home).handle().clone()
    }

    /// Lets every task run until it waits for something.
    pub(crate) fn settle(&self) {
        self.drive(settle_briefly);
    }

    /// Lets time pass; every timer goes off in its time.
    pub(crate) fn wait(&self, time: Duration) {
        let until = self.now() + time;
        self.drive(|| sleep_until(until));
        self.align();
    }

    /// Lets time pass at once, as for a process that stands still.
    pub(crate) fn freeze(&self, time: Duration) {
        self.drive(|| advance(time));
        self.align();
    }

    /// The second runtime is shut down, with all that runs on it; another takes its place.
    pub(crate) fn lose_second(&mut self) {
        self.second = paused();
        self.align();
    }

    pub(crate) fn alive_tasks(&self) -> usize {
        let tasks = |home| self.runtime(home).metrics().num_alive_tasks();
        tasks(Home::First) + tasks(Home::Second)
    }

    fn runtime(&self, home: Home) -> &Runtime {
        match home {
            Home::First => &self.first,
            Home::Second => &self.second,
        }
    }

    fn drive<F: Future>(&self, what: impl Fn() -> F) {
        for home in [Home::First, Home::Second] {
            self.block_on(home, &what);
        }
    }

    fn block_on<F: Future>(&self, home: Home, what: impl Fn() -> F) {
        self.driven.set(home);
        // Made in there, because a timer belongs to the runtime that it is made on.
        self.runtime(home).block_on(async { what().await });
        self.driven.set(Home::First);
    }

    /// Sets the clock forth that is behind: each is as fine as its runtime's timers.
    fn align(&self) {
        let [first, second] = [&self.first, &self.second].map(now);
        let behind = if first < second {
            Home::First
        } else {
            Home::Second
        };
        self.block_on(behind, || advance(first.max(second) - first.min(second)));
    }

    fn now(&self) -> Instant {
        now(&self.first)
    }
}

fn now(runtime: &Runtime) -> Instant {
    let _context: EnterGuard<'_> = runtime.enter();
    Instant::now()
}

fn paused() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}
