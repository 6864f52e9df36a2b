//! The figures of one simulated day.

use std::time::Duration;

use crate::endpoint::Second;

#[derive(Default)]
pub(crate) struct Day {
    /// The load on the token endpoint in each second.
    pub(crate) seconds: Vec<Second>,
    /// The moments at which the processes got their first token, in order.
    pub(crate) first_tokens: Vec<Duration>,
    /// Calls of processes that never had a token.
    pub(crate) calls_before: Calls,
    /// Calls of processes that had a token before.
    pub(crate) calls_after: Calls,
    pub(crate) oldest_token_used: Duration,
}

/// Calls that did not find a token at once.
#[derive(Default)]
pub(crate) struct Calls {
    pub(crate) waited: usize,
    pub(crate) longest_wait: Duration,
    /// Calls that failed, at once or after a wait.
    pub(crate) failed: usize,
}

/// The load on the token endpoint over a period.
pub(crate) struct Load {
    pub(crate) requests: u32,
    pub(crate) refused: u32,
    /// Requests in the busiest second.
    pub(crate) peak: u32,
    /// Average requests per second.
    pub(crate) mean: f64,
}

impl Day {
    pub(crate) fn calls(&mut self, has_token: bool) -> &mut Calls {
        if has_token {
            &mut self.calls_after
        } else {
            &mut self.calls_before
        }
    }

    pub(crate) fn record_token_age(&mut self, age: Duration) {
        self.oldest_token_used = self.oldest_token_used.max(age);
    }

    /// The moment at which the given share of the processes had a token.
    pub(crate) fn served(&self, share: f64) -> Duration {
        let processes = (self.first_tokens.len() as f64 * share).ceil() as usize;
        let last = processes.saturating_sub(1);
        self.first_tokens.get(last).copied().unwrap_or_default()
    }

    /// The load until the last process had a token.
    pub(crate) fn start(&self) -> Load {
        Load::of(&self.seconds[..self.start_seconds()])
    }

    pub(crate) fn after_start(&self) -> Load {
        Load::of(&self.seconds[self.start_seconds()..])
    }

    pub(crate) fn last(&self, time: Duration) -> Load {
        let rest = self.seconds.len().saturating_sub(whole_seconds(time));
        Load::of(&self.seconds[rest..])
    }

    fn start_seconds(&self) -> usize {
        (whole_seconds(self.served(1.0)) + 1).min(self.seconds.len())
    }
}

impl Calls {
    pub(crate) fn record_wait(&mut self, elapsed: Duration, failed: bool) {
        self.waited += 1;
        self.longest_wait = self.longest_wait.max(elapsed);
        self.failed += usize::from(failed);
    }
}

impl Load {
    pub(crate) fn of(seconds: &[Second]) -> Self {
        let requests = seconds.iter().map(|second| second.requests).sum();
        let peak = seconds.iter().map(|second| second.requests).max();
        Self {
            requests,
            refused: seconds.iter().map(|second| second.refused).sum(),
            peak: peak.unwrap_or_default(),
            mean: f64::from(requests) / seconds.len() as f64,
        }
    }
}

pub(crate) fn whole_seconds(time: Duration) -> usize {
    time.as_secs().try_into().expect("a day has few seconds")
}
