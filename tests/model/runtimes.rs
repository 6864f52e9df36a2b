//! Two runtimes whose paused clocks advance together. The second one can be shut down.
//!
//! The thread of the test drives them in turn. Only one of them has work for a key at a time, because
//! there is one token request per key at most. It therefore does not matter that the first runtime
//! sees a whole wait before the second one does.

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

/// The runtime that a call is polled on. A token request that the call starts runs there, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RuntimeId {
    First,
    Second,
}

pub(crate) struct Runtimes {
    first: Runtime,
    second: Runtime,
    current: CurrentRuntime,
}

/// Tells code that runs on a runtime which runtime that is.
#[derive(Clone, Default)]
pub(crate) struct CurrentRuntime(Arc<AtomicBool>);

impl CurrentRuntime {
    pub(crate) fn id(&self) -> RuntimeId {
        if self.0.load(Ordering::Relaxed) {
            RuntimeId::Second
        } else {
            RuntimeId::First
        }
    }

    fn set(&self, id: RuntimeId) {
        self.0.store(id == RuntimeId::Second, Ordering::Relaxed);
    }
}

impl Runtimes {
    pub(crate) fn start() -> Self {
        // Ahead of real time, so that the clock of a runtime made later only has to move forward.
        const AHEAD: Duration = Duration::from_secs(24 * 60 * 60);
        let first = paused();
        first.block_on(advance(AHEAD));
        let runtimes = Self {
            first,
            second: paused(),
            current: CurrentRuntime::default(),
        };
        runtimes.align();
        runtimes
    }

    pub(crate) fn current(&self) -> CurrentRuntime {
        self.current.clone()
    }

    pub(crate) fn handle(&self, id: RuntimeId) -> Handle {
        self.runtime(id).handle().clone()
    }

    /// Runs every task until it waits for something.
    pub(crate) fn settle(&self) {
        self.drive(settle_briefly);
    }

    /// Lets time pass. Every timer fires on time.
    pub(crate) fn wait(&self, time: Duration) {
        let until = self.now() + time;
        self.drive(|| sleep_until(until));
        self.align();
    }

    /// Lets time pass at once, as if the process stood still.
    pub(crate) fn stand_still(&self, time: Duration) {
        self.drive(|| advance(time));
        self.align();
    }

    /// Shuts down the second runtime with its tasks, and starts a new one in its place.
    pub(crate) fn shut_down_second(&mut self) {
        self.second = paused();
        self.align();
    }

    pub(crate) fn alive_tasks(&self) -> usize {
        let tasks = |id| self.runtime(id).metrics().num_alive_tasks();
        tasks(RuntimeId::First) + tasks(RuntimeId::Second)
    }

    fn runtime(&self, id: RuntimeId) -> &Runtime {
        match id {
            RuntimeId::First => &self.first,
            RuntimeId::Second => &self.second,
        }
    }

    fn drive<F: Future>(&self, what: impl Fn() -> F) {
        for id in [RuntimeId::First, RuntimeId::Second] {
            self.block_on(id, &what);
        }
    }

    fn block_on<F: Future>(&self, id: RuntimeId, what: impl Fn() -> F) {
        self.current.set(id);
        // Called inside, because a timer belongs to the runtime that it is created on.
        self.runtime(id).block_on(async { what().await });
        self.current.set(RuntimeId::First);
    }

    /// Moves the clock that is behind forward: a wait ends at a whole millisecond of each clock.
    fn align(&self) {
        let [first, second] = [&self.first, &self.second].map(now);
        let behind = if first < second {
            RuntimeId::First
        } else {
            RuntimeId::Second
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
