use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::Error;

/// When the total timeout of a request ends, however often it is sent. A request extension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    timeout: Duration,
    /// `None` if it is too far in the future to be represented.
    end: Option<Instant>,
}

impl Deadline {
    /// Starts the timeout.
    pub(crate) fn after(timeout: Duration) -> Self {
        Self {
            timeout,
            end: Instant::now().checked_add(timeout),
        }
    }

    /// What is left for the next send.
    pub(crate) fn remaining(self) -> Duration {
        self.end.map_or(self.timeout, |end| {
            end.saturating_duration_since(Instant::now())
        })
    }
}

/// Waits for a call until its deadline, if it has one.
pub(crate) async fn in_time<T>(
    deadline: Option<Deadline>,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match deadline {
        Some(Deadline {
            timeout,
            end: Some(end),
        }) => timeout_at(end, call)
            .await
            .unwrap_or_else(|_| Err(Error::timed_out(timeout))),
        _ => call.await,
    }
}
