//! The steps of a history, and how often each occurs in a random one.

use std::time::Duration;

use proptest::{collection, prelude::*};

use crate::{bodies::Policy, runtimes::RuntimeId};

/// One step of a history. `Debug` prints it as Rust source, so that a failed history can be kept as
/// a test. Indexes count pending calls and sends from the oldest, modulo their number.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    /// Makes a call with the default policy on the first runtime and polls it once.
    Call,
    /// Makes a call with this policy on this runtime and polls it once.
    CallWith(Policy, RuntimeId),
    /// Makes the next frame of a streaming request body available.
    Frame(usize),
    /// Calls `TokenCache::token` on the first runtime and polls it once.
    GetToken,
    /// Calls `TokenCache::token` on this runtime and polls it once.
    GetTokenOn(RuntimeId),
    /// Polls every call that was woken.
    PollWoken,
    /// Polls one call, woken or not.
    Poll(usize),
    /// Drops one call.
    Drop(usize),
    /// Answers the attempt in progress. Attempts are answered only by this step.
    TokenReply(Reply),
    /// Answers one send in progress.
    ApiAnswer(usize, Answer),
    /// Rejects the newest token through `TokenCache::reject`.
    Reject,
    /// Lets milliseconds pass. Every timer fires on time.
    Wait(u64),
    /// Lets milliseconds pass at once, as if the process stood still.
    StandStill(u64),
    /// Moves the wall clock forward or back by seconds.
    SetWallClock(i64),
    /// Shuts down the second runtime with its calls and its token request.
    ShutDownSecond,
    /// Makes the inner service not ready.
    Unready,
    Ready,
}

/// A reply of the token service.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reply {
    /// A new token with this lifetime in milliseconds.
    New(u64),
    /// The last token once more, with this lifetime in milliseconds.
    Same(u64),
    Transient,
    Permanent,
    /// A transient error with a `Retry-After` in seconds.
    RetryAfter(u64),
    Panic,
}

impl Reply {
    /// Raises a lifetime to a minute, which no test takes by the system's wall clock.
    pub(crate) fn outlives_the_test(self) -> Self {
        let longer = |lifetime: u64| match lifetime {
            0 => 0,
            _ => lifetime.max(60_000),
        };
        match self {
            Self::New(lifetime) => Self::New(longer(lifetime)),
            Self::Same(lifetime) => Self::Same(longer(lifetime)),
            other => other,
        }
    }
}

/// An answer of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Accepted,
    Rejected,
    /// A rejection before the API has read the whole request body, which it goes on reading.
    RejectedEarly,
    Failed,
}

impl Answer {
    pub(crate) fn is_rejection(self) -> bool {
        matches!(self, Self::Rejected | Self::RejectedEarly)
    }
}

/// Up to 400 steps, most of them ordinary.
pub(crate) fn any_history() -> impl Strategy<Value = Vec<Action>> {
    // Two numbers make a step. One strategy per kind of step would take longer than the test
    // itself.
    let step = (0_u8..STEPS, 0_u16..1000);
    collection::vec(step, 1..400).prop_map(|steps| {
        let steps = steps.into_iter();
        steps.map(|(step, detail)| action(step, detail)).collect()
    })
}

/// Up to 400 steps, each of one of two keys. Steps that let time pass are steps of both.
pub(crate) fn any_history_of_two_keys() -> impl Strategy<Value = Vec<(usize, Action)>> {
    let step = (0_usize..2, 0_u8..STEPS, 0_u16..1000);
    collection::vec(step, 1..400).prop_map(|steps| {
        let steps = steps.into_iter();
        steps
            .map(|(key, step, detail)| (key, action(step, detail)))
            .collect()
    })
}

/// The number of step codes.
const STEPS: u8 = 100;

/// Smaller numbers give simpler steps, because proptest shrinks towards zero.
fn action(step: u8, detail: u16) -> Action {
    let index = usize::from(detail % 8);
    match step {
        0..8 => Action::Call,
        8..18 => Action::CallWith(policy(detail), home(detail)),
        18..34 => Action::PollWoken,
        34..49 => Action::TokenReply(reply(detail)),
        49..65 => Action::ApiAnswer(index, answer(detail)),
        65..77 => Action::Wait(pause(detail)),
        77..80 => Action::GetTokenOn(home(detail)),
        80..84 => Action::Frame(index),
        84..87 => Action::Poll(index),
        87..90 => Action::Drop(index),
        90..93 => Action::Ready,
        93 => Action::Unready,
        94 => Action::Reject,
        95 => Action::SetWallClock(jump(detail)),
        96 | 97 => Action::ShutDownSecond,
        _ => Action::StandStill(pause(detail)),
    }
}

fn policy(detail: u16) -> Policy {
    match detail % 8 {
        0..2 => Policy::Cloned,
        2..5 => Policy::Buffered,
        5 => Policy::Overflowing,
        6 => Policy::NoReplay,
        _ => Policy::OptedOut,
    }
}

fn home(detail: u16) -> RuntimeId {
    if detail < 600 {
        RuntimeId::First
    } else {
        RuntimeId::Second
    }
}

fn reply(detail: u16) -> Reply {
    let lifetime = [1_800_000, 60_000, 3000, 1000, 9, 0][usize::from(detail % 6)];
    match detail / 50 {
        0..10 => Reply::New(lifetime),
        10..12 => Reply::Same(lifetime),
        12..16 => Reply::Transient,
        16 => Reply::Permanent,
        17 | 18 => Reply::RetryAfter([0, 5, 40, 7200][usize::from(detail % 4)]),
        _ => Reply::Panic,
    }
}

fn answer(detail: u16) -> Answer {
    match detail / 100 {
        0..4 => Answer::Accepted,
        4..7 => Answer::Rejected,
        7..9 => Answer::RejectedEarly,
        _ => Answer::Failed,
    }
}

/// Milliseconds, from less than any timer of the cache to more than most of them.
fn pause(detail: u16) -> u64 {
    let number = u64::from(detail);
    match detail {
        0..500 => 1 + 2 * number,
        500..900 => 1000 + 87 * (number - 500),
        900..940 => 30_000,
        _ => [60_000, 300_000, 1_500_000, 1_800_000, 4_000_000][usize::from(detail % 5)],
    }
}

/// Seconds.
fn jump(detail: u16) -> i64 {
    [1, -1, 100, -100, 36_000, -36_000][usize::from(detail % 6)]
}

pub(crate) fn milliseconds(number: u64) -> Duration {
    Duration::from_millis(number)
}
