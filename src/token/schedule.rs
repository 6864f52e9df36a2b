//! When a token is fresh, due for refresh or expired, and how long to pause after a failure. Only
//! calculates: no clocks, locks or tasks.

use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Moment;

/// The longest lifetime believed. Some servers say 9223372036854775 seconds.
const LONGEST_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The shortest time before the next refresh after one that returned the same token.
const SHORTEST_RECHECK: Duration = Duration::from_secs(1);

/// The options for schedules. The builder documents each of them.
#[derive(Clone, Debug)]
pub(super) struct Timing {
    pub(super) refresh_window: Duration,
    pub(super) expiry_margin: Duration,
    pub(super) jitter: f64,
    pub(super) default_lifetime: Duration,
}

impl Timing {
    /// Returns the schedule of a token that was requested at `requested_at`.
    ///
    /// `draw` is a random number between 0 and 1. It keeps clients that started together from
    /// refreshing together.
    pub(super) fn schedule(
        &self,
        requested_at: Moment,
        lifetime: Option<Duration>,
        draw: f64,
    ) -> Schedule {
        let lifetime = lifetime
            .unwrap_or(self.default_lifetime)
            .min(LONGEST_LIFETIME);
        // Limited to shares of the lifetime, so that short-lived tokens can be used.
        let margin = self.expiry_margin.min(lifetime / 10);
        let window = self.refresh_window.min(lifetime / 5);
        let jitter = window.mul_f64(draw * self.jitter);

        let expires_after = lifetime - margin;
        Schedule {
            refresh_at: requested_at
                .after(expires_after - window + jitter)
                .monotonic,
            expires_at: requested_at.after(expires_after),
            ends_at: requested_at.after(lifetime).monotonic,
        }
    }
}

/// The longest pause, so that moments can be calculated.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What to do with a token at a given moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Use it.
    Fresh,
    /// Use it, and refresh it in the background.
    DueForRefresh,
    /// Wait for another.
    Expired,
}

/// When a token is due for refresh, and when it expires.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    refresh_at: Instant,
    expires_at: Moment,
    /// The end that the server stated, or that is assumed, without a margin.
    ends_at: Instant,
}

impl Schedule {
    pub(super) fn freshness(&self, now: &Moment) -> Freshness {
        if now.has_reached(&self.expires_at) {
            Freshness::Expired
        } else if now.monotonic >= self.refresh_at {
            Freshness::DueForRefresh
        } else {
            Freshness::Fresh
        }
    }

    pub(super) fn refresh_at(&self) -> Instant {
        self.refresh_at
    }

    pub(super) fn expires_at(&self) -> &Moment {
        &self.expires_at
    }

    /// Whether the API may still accept the token, by the monotonic clock alone.
    pub(super) fn has_ended(&self, now: Instant) -> bool {
        now >= self.ends_at
    }

    /// When a fresh token stops being fresh, by the monotonic clock.
    ///
    /// A refresh may be postponed beyond the expiry.
    pub(super) fn fresh_until(&self) -> Instant {
        self.refresh_at.min(self.expires_at.monotonic)
    }

    /// Returns a schedule with the same expiry and a refresh at `refresh_at`.
    pub(super) fn refresh_not_before(self, refresh_at: Instant) -> Self {
        Self { refresh_at, ..self }
    }

    /// Returns the schedule of a token that a refresh returned again.
    ///
    /// Some servers return the same token until it expires. Asking them again immediately would loop.
    pub(super) fn for_unchanged_token(self, now: &Moment) -> Self {
        let left = self
            .expires_at
            .monotonic
            .saturating_duration_since(now.monotonic);
        let recheck_at = now.after((left / 2).max(SHORTEST_RECHECK)).monotonic;
        self.refresh_not_before(recheck_at)
    }
}

/// The pause before the next attempt of a flight: up to `first`, then twice as long each time, with
/// full jitter.
pub(super) fn retry_pause(first: Duration, failed_attempts: u32, draw: f64) -> Duration {
    doubled(first, failed_attempts).mul_f64(draw)
}

/// The pause that a server asks for with `Retry-After`: at least as long as it says, up to a day.
///
/// Up to half as long again is added at random, so that clients that were refused together don't
/// return together.
pub(super) fn retry_after_pause(retry_after: Option<Duration>, draw: f64) -> Duration {
    let asked_for = retry_after.unwrap_or_default().min(DAY);
    asked_for.mul_f64(1.0 + draw / 2.0)
}

/// How long all callers get the error of a failed flight.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    pub(super) first: Duration,
    pub(super) longest: Duration,
}

impl Backoff {
    /// The pause after `failures` failed flights in a row: doubling, ±20 %, and at least as long as
    /// the server asked for.
    pub(super) fn pause(
        &self,
        failures: u32,
        retry_after: Option<Duration>,
        draw: f64,
    ) -> Duration {
        let pause = doubled(self.first, failures)
            .min(self.longest)
            .mul_f64(0.8 + 0.4 * draw);
        pause.max(retry_after_pause(retry_after, draw))
    }
}

/// `first` after the first failure, then twice as long each time, up to a day.
fn doubled(first: Duration, failures: u32) -> Duration {
    // Durations are multiplied by a `u32`.
    first
        .saturating_mul(1 << failures.saturating_sub(1).min(31))
        .min(DAY)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NANOSECOND: Duration = Duration::from_nanos(1);

    fn timing() -> Timing {
        Timing {
            refresh_window: 300 * SECOND,
            expiry_margin: 10 * SECOND,
            jitter: 0.5,
            default_lifetime: 300 * SECOND,
        }
    }

    fn start() -> Moment {
        crate::clock::Clock::default().now()
    }

    /// Name, lifetime, draw, and when the token is due for refresh and expired, in ms after the request.
    const SCHEDULES: &[(&str, Option<u64>, f64, u64, u64)] = &[
        (
            "LinkedIn's half an hour",
            Some(1_800_000),
            0.0,
            1_490_000,
            1_790_000,
        ),
        (
            "the same, all jitter",
            Some(1_800_000),
            1.0,
            1_640_000,
            1_790_000,
        ),
        ("an hour", Some(3_600_000), 0.0, 3_290_000, 3_590_000),
        (
            "a minute, limited to shares",
            Some(60_000),
            0.0,
            42_000,
            54_000,
        ),
        ("two seconds", Some(2_000), 0.0, 1_400, 1_800),
        ("two seconds, all jitter", Some(2_000), 1.0, 1_600, 1_800),
        ("ten milliseconds", Some(10), 0.0, 7, 9),
        ("zero", Some(0), 0.5, 0, 0),
        ("not stated", None, 0.0, 230_000, 290_000),
        (
            "longer than a year",
            Some(u64::MAX),
            0.0,
            31_535_690_000,
            31_535_990_000,
        ),
    ];

    #[test]
    fn schedules_follow_the_table() {
        for &(name, lifetime, draw, due_at, expires_at) in SCHEDULES {
            let start = start();
            let lifetime = lifetime.map(Duration::from_millis);
            let schedule = timing().schedule(start, lifetime, draw);
            let freshness = |after| schedule.freshness(&start.after(after));
            let (due_at, expires_at) = (
                Duration::from_millis(due_at),
                Duration::from_millis(expires_at),
            );

            assert_eq!(freshness(expires_at), Freshness::Expired, "{name}");
            if due_at < expires_at {
                assert_eq!(freshness(due_at - NANOSECOND), Freshness::Fresh, "{name}");
                assert_eq!(freshness(due_at), Freshness::DueForRefresh, "{name}");
                assert_eq!(
                    freshness(expires_at - NANOSECOND),
                    Freshness::DueForRefresh,
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn extreme_settings_leave_a_token_usable() {
        for extreme in [Duration::ZERO, Duration::MAX] {
            let timing = Timing {
                refresh_window: extreme,
                expiry_margin: extreme,
                jitter: 1.0,
                default_lifetime: extreme,
            };
            for lifetime in [
                None,
                Some(Duration::ZERO),
                Some(SECOND),
                Some(Duration::MAX),
            ] {
                let start = start();
                let schedule = timing.schedule(start, lifetime, 1.0);
                let is_used = schedule.freshness(&start) == Freshness::Fresh;
                let has_time = lifetime.unwrap_or(extreme) > Duration::ZERO;
                assert_eq!(is_used, has_time, "{extreme:?}, {lifetime:?}");
            }
        }
    }

    /// The monotonic clock stands still while a machine is suspended.
    #[test]
    fn an_expired_token_is_not_sent_whichever_clock_says_so() {
        let start = start();
        let schedule = timing().schedule(start, Some(1800 * SECOND), 0.0);
        let at = |monotonic: u32, wall: u32| Moment {
            monotonic: start.monotonic + monotonic * SECOND,
            wall: start.wall + wall * SECOND,
        };

        assert_eq!(schedule.freshness(&at(0, 1790)), Freshness::Expired);
        assert_eq!(schedule.freshness(&at(1790, 0)), Freshness::Expired);
        assert_eq!(schedule.freshness(&at(1489, 1789)), Freshness::Fresh);
        let set_back = Moment {
            monotonic: start.monotonic + 1790 * SECOND,
            wall: SystemTime::UNIX_EPOCH,
        };
        assert_eq!(schedule.freshness(&set_back), Freshness::Expired);
    }

    #[test]
    fn unchanged_token_is_refreshed_after_half_of_its_remaining_lifetime_but_at_least_a_second() {
        let start = start();
        for (left, pause) in [(100_000, 50_000), (1_500, 1_000), (0, 1_000)] {
            let timing = Timing {
                expiry_margin: Duration::ZERO,
                ..timing()
            };
            let lifetime = Duration::from_millis(left);
            let schedule = timing
                .schedule(start, Some(lifetime), 0.0)
                .for_unchanged_token(&start);

            let pause = Duration::from_millis(pause);
            assert_eq!(schedule.refresh_at, start.after(pause).monotonic);
        }
    }

    #[test]
    fn retry_pauses_double_with_full_jitter() {
        let first = Duration::from_millis(200);
        for (failed, longest) in [(1, 200), (2, 400), (3, 800)] {
            let longest = Duration::from_millis(longest);
            assert_eq!(retry_pause(first, failed, 0.0), Duration::ZERO);
            assert_eq!(retry_pause(first, failed, 0.5), longest / 2);
            assert_eq!(retry_pause(first, failed, 1.0), longest);
        }
        assert!(retry_pause(Duration::MAX, u32::MAX, 1.0) <= 86_400 * SECOND);
    }

    #[test]
    fn back_off_doubles_from_a_second_to_a_minute_and_obeys_the_server() {
        let backoff = Backoff {
            first: SECOND,
            longest: 60 * SECOND,
        };
        let pause = |failures, draw| backoff.pause(failures, None, draw);

        assert_eq!(
            [1, 2, 3].map(|failures| pause(failures, 0.5)),
            [1, 2, 4].map(|s| s * SECOND)
        );
        assert_eq!(pause(7, 0.5), 60 * SECOND);
        assert_eq!(pause(u32::MAX, 0.5), 60 * SECOND);
        assert_eq!(pause(1, 0.0), Duration::from_millis(800));
        assert_eq!(pause(1, 1.0), Duration::from_millis(1200));
        assert_eq!(backoff.pause(1, Some(90 * SECOND), 0.0), 90 * SECOND);
        assert_eq!(backoff.pause(1, Some(90 * SECOND), 1.0), 135 * SECOND);
        assert_eq!(backoff.pause(9, Some(SECOND), 0.5), 60 * SECOND);
        assert_eq!(backoff.pause(1, Some(Duration::MAX), 0.0), DAY);
    }
}
