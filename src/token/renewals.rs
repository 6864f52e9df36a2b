//! When a rejected token may be renewed. Decided by evidence: whether the API has accepted the token,
//! and when earlier renewals ended.

use std::time::Duration;

use tokio::time::Instant;

/// The first pause between renewals of accepted tokens. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// After how long without a rejection the pauses start over.
const STARTS_OVER_AFTER: Duration = Duration::from_secs(60);

/// Whether the API has accepted a token since it landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// The token was good, so that its rejection is news. A renewal helps.
    Accepted,
    /// The API may reject every token, or tokens that are only seconds old. Renewals may not help.
    None,
}

/// The renewals that succeeded so far.
#[derive(Debug, Default)]
pub(super) struct Renewals {
    last_ended_at: Option<Instant>,
    last_rejection_at: Option<Instant>,
    /// How many accepted tokens were renewed, without 60 s that had no rejection in between.
    in_a_row: u32,
}

impl Renewals {
    /// The API rejected the current token.
    pub(super) fn note_rejection(&mut self, now: Instant) {
        let quiet_since = self.last_rejection_at.replace(now);
        let starts_over = quiet_since
            .is_some_and(|last| now.saturating_duration_since(last) >= STARTS_OVER_AFTER);
        if starts_over {
            self.in_a_row = 0;
        }
    }

    /// Whether a token that was rejected just now may be renewed.
    pub(super) fn may_renew(&self, evidence: Evidence, now: Instant, cool_down: Duration) -> bool {
        let Some(last) = self.last_ended_at else {
            return true;
        };
        let pause = match evidence {
            Evidence::Accepted => self.pause().min(cool_down),
            Evidence::None => cool_down,
        };
        now.saturating_duration_since(last) >= pause
    }

    /// A renewal returned a token. `evidence` is about the token that it replaced.
    pub(super) fn note_renewal(&mut self, evidence: Evidence, now: Instant) {
        self.last_ended_at = Some(now);
        if evidence == Evidence::Accepted {
            self.in_a_row = self.in_a_row.saturating_add(1);
        }
    }

    fn pause(&self) -> Duration {
        match self.in_a_row.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => FIRST_PAUSE * (1 << doublings.min(16)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const COOL_DOWN: Duration = Duration::from_secs(30);

    fn start() -> (Renewals, Instant) {
        (Renewals::default(), Clock::monotonic())
    }

    /// Rejects an accepted token again and again, renews it as soon as that is allowed, and returns
    /// the pauses in seconds.
    fn pauses(renewals: &mut Renewals, start: Instant, count: usize) -> Vec<u64> {
        let second = Duration::from_secs(1);
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..count {
            let before = now;
            renewals.note_rejection(now);
            while !renewals.may_renew(Evidence::Accepted, now, COOL_DOWN) {
                now += second;
                renewals.note_rejection(now);
            }
            pauses.push((now - before).as_secs());
            renewals.note_renewal(Evidence::Accepted, now);
        }
        pauses
    }

    #[test]
    fn accepted_tokens_are_renewed_with_pauses_that_double_up_to_the_cool_down() {
        let (mut renewals, start) = start();

        let pauses = pauses(&mut renewals, start, 9);

        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn pauses_start_over_after_a_minute_without_a_rejection() {
        let (mut renewals, start) = start();
        pauses(&mut renewals, start, 4);
        let last_rejection = start + Duration::from_secs(1 + 2 + 4);

        let almost = last_rejection + STARTS_OVER_AFTER - Duration::from_nanos(1);
        renewals.note_rejection(almost);
        assert_eq!(renewals.pause(), Duration::from_secs(8));

        renewals.note_rejection(almost + STARTS_OVER_AFTER);
        assert_eq!(renewals.pause(), Duration::ZERO);
    }

    #[test]
    fn token_that_was_never_accepted_is_renewed_once_per_cool_down() {
        let (mut renewals, start) = start();
        assert!(renewals.may_renew(Evidence::None, start, COOL_DOWN));
        renewals.note_renewal(Evidence::None, start);

        let almost = start + COOL_DOWN - Duration::from_nanos(1);
        assert!(!renewals.may_renew(Evidence::None, almost, COOL_DOWN));
        assert!(renewals.may_renew(Evidence::Accepted, start, COOL_DOWN));
        assert!(renewals.may_renew(Evidence::None, start + COOL_DOWN, COOL_DOWN));
    }

    #[test]
    fn cool_down_of_zero_allows_every_renewal() {
        let (mut renewals, start) = start();
        pauses(&mut renewals, start, 5);

        for evidence in [Evidence::Accepted, Evidence::None] {
            assert!(renewals.may_renew(evidence, start, Duration::ZERO));
        }
    }

    #[test]
    fn any_number_of_renewals_leaves_the_pause_representable() {
        let in_a_row = u32::MAX;
        let renewals = Renewals {
            in_a_row,
            ..Renewals::default()
        };

        assert_eq!(renewals.pause(), Duration::from_secs(1 << 16));
    }
}
