//! The outcomes of all calls, and whether the injected faults explain them.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::servers::{Action, Server};

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Success,
    /// The API caused the failure.
    Api(Action),
    /// There was no token, because of the token endpoint.
    TokenEndpoint(Action),
    /// The caller gave up.
    Cancelled,
    Hung,
    Unexplained(String),
}

#[derive(Default)]
pub(crate) struct Outcomes {
    calls: BTreeMap<Outcome, u64>,
    longest: Duration,
}

impl Outcomes {
    pub(crate) fn record(&mut self, outcome: Outcome, elapsed: Duration) {
        *self.calls.entry(outcome).or_default() += 1;
        self.longest = self.longest.max(elapsed);
    }

    pub(crate) fn add(&mut self, other: Self) {
        for (outcome, calls) in other.calls {
            *self.calls.entry(outcome).or_default() += calls;
        }
        self.longest = self.longest.max(other.longest);
    }

    /// Describes outcomes that must not occur.
    pub(crate) fn problem(&self) -> Option<String> {
        let is_wrong =
            |outcome: &&Outcome| matches!(outcome, Outcome::Hung | Outcome::Unexplained(_));
        let wrong: Vec<_> = self.calls.keys().filter(is_wrong).take(10).collect();
        if !wrong.is_empty() {
            return Some(format!("{wrong:?}"));
        }
        // Both servers inject faults into a minority of the calls.
        let calls: u64 = self.calls.values().sum();
        let successes = self.calls.get(&Outcome::Success).copied();
        let successes = successes.unwrap_or_default();
        (successes * 2 < calls).then(|| format!("only {successes} of {calls} calls succeeded"))
    }
}

impl fmt::Display for Outcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls: u64 = self.calls.values().sum();
        writeln!(f, "{calls:>8}  calls, the longest took {:?}", self.longest)?;
        for (outcome, calls) in &self.calls {
            writeln!(f, "{calls:>8}  {outcome}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("succeeded"),
            Self::Api(action) => write!(f, "failed because of the {}: {action}", Server::Api),
            Self::TokenEndpoint(action) => {
                write!(
                    f,
                    "failed because of the {}: {action}",
                    Server::TokenEndpoint
                )
            }
            Self::Cancelled => f.write_str("cancelled by an impatient caller"),
            Self::Hung => f.write_str("HUNG"),
            Self::Unexplained(details) => write!(f, "UNEXPLAINED: {details}"),
        }
    }
}
