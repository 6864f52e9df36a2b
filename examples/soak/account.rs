//! What all calls came to, and whether it adds up.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::servers::{Deed, Party};

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    Answered,
    /// The API did this to it.
    Api(Deed),
    /// There was no token, because the token endpoint did this.
    TokenEndpoint(Deed),
    /// By a caller without patience.
    GivenUp,
    Hung,
    Unexplained(String),
}

#[derive(Default)]
pub(crate) struct Account {
    ends: BTreeMap<End, u64>,
    longest: Duration,
    injected: BTreeMap<(Party, Deed), u64>,
}

impl Account {
    pub(crate) fn note(&mut self, end: End, took: Duration) {
        *self.ends.entry(end).or_default() += 1;
        self.longest = self.longest.max(took);
    }

    pub(crate) fn add(&mut self, other: Self) {
        for (end, calls) in other.ends {
            *self.ends.entry(end).or_default() += calls;
        }
        self.longest = self.longest.max(other.longest);
    }

    pub(crate) fn note_injected(&mut self, injected: BTreeMap<(Party, Deed), u64>) {
        self.injected = injected;
    }

    /// What does not add up.
    pub(crate) fn complaints(&self) -> Option<String> {
        let is_wrong = |end: &&End| matches!(end, End::Hung | End::Unexplained(_));
        let wrong: Vec<_> = self.ends.keys().filter(is_wrong).take(10).collect();
        if !wrong.is_empty() {
            return Some(format!("{wrong:?}"));
        }
        // Faults are the exception on both servers.
        let calls: u64 = self.ends.values().sum();
        let answered = self.ends.get(&End::Answered).copied().unwrap_or_default();
        (answered * 2 < calls).then(|| format!("{answered} of {calls} calls were answered"))
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls: u64 = self.ends.values().sum();
        writeln!(
            f,
            "\n{calls:>8}  calls, the longest took {:?}",
            self.longest
        )?;
        for (end, calls) in &self.ends {
            writeln!(f, "{calls:>8}  {end}")?;
        }
        writeln!(f)?;
        for ((party, deed), times) in &self.injected {
            writeln!(f, "{times:>8}  drawn by the {party}: {deed}")?;
        }
        Ok(())
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered => f.write_str("answered, whole"),
            Self::Api(deed) => write!(f, "failed by the {}: {deed}", Party::Api),
            Self::TokenEndpoint(deed) => {
                write!(f, "failed by the {}: {deed}", Party::TokenEndpoint)
            }
            Self::GivenUp => f.write_str("given up by an impatient caller"),
            Self::Hung => f.write_str("HUNG"),
            Self::Unexplained(what) => write!(f, "UNEXPLAINED: {what}"),
        }
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TokenEndpoint => "token endpoint",
            Self::Api => "API",
        })
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answer => "an answer",
            Self::Unavailable => "503",
            Self::Refuse => "401",
            Self::Close => "connection closed without an answer",
            Self::Reset => "connection reset without an answer",
            Self::CloseHalfway => "connection closed in mid-answer",
            Self::ResetHalfway => "connection reset in mid-answer",
        })
    }
}
