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
///
/// At the deadline, a timer of reqwest may end first. The error doesn't depend on which one does.
pub(crate) async fn in_time<T>(
    deadline: Option<Deadline>,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let Some(Deadline {
        timeout,
        end: Some(end),
    }) = deadline
    else {
        return call.await;
    };
    match timeout_at(end, call).await {
        Ok(Err(error)) if error.is_timeout() && Instant::now() >= end => {
            Err(Error::timed_out(timeout))
        }
        Ok(result) => result,
        Err(_) => Err(Error::timed_out(timeout)),
    }
}

/// Waits for a call as [`in_time`] does, but returns reqwest's own error if that ends a send.
#[cfg(feature = "middleware")]
pub(crate) async fn in_time_or_reqwests<T>(
    deadline: Option<Deadline>,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let Some((timeout, end)) = deadline.and_then(|it| {
        let end = it.end?.checked_add(REQWESTS_DELAY)?;
        Some((it.timeout, end))
    }) else {
        return call.await;
    };
    let ended = timeout_at(end, call).await;
    ended.unwrap_or_else(|_| Err(Error::timed_out(timeout)))
}

/// reqwest's timer starts later and is as coarse as a millisecond.
#[cfg(feature = "middleware")]
const REQWESTS_DELAY: Duration = Duration::from_millis(10);

#[cfg(all(test, feature = "middleware"))]
mod tests {
    use std::future::pending;

    use http::HeaderName;
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn error_of_a_timer_that_ends_a_little_later_is_returned() {
        let timeout = Duration::from_millis(100);
        let failed_send = async {
            sleep(timeout + Duration::from_millis(1)).await;
            let header = HeaderName::from_static("x-token");
            Err::<(), _>(Error::redirects_may_expose(header))
        };
        let error = in_time_or_reqwests(Some(Deadline::after(timeout)), failed_send).await;
        assert!(error.unwrap_err().is_unsafe_redirect());

        let hangs = pending::<Result<(), Error>>();
        let error = in_time_or_reqwests(Some(Deadline::after(timeout)), hangs).await;
        assert!(error.unwrap_err().is_timeout());
    }
}
