//! What can happen to a cache, and how often it does in a random history.

use std::time::Duration;

use proptest::{collection, prelude::*};

use crate::{bodies::Policy, runtimes::Home};

/// One step of a history. Printed as it is written, so that a history which failed can be kept as a
/// test. Calls and sends are numbered from the oldest one that is left, and round again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    /// A new call, polled once; its request is one of the plain ones.
    Call,
    /// A call with another request, or on another runtime.
    CallWith(Policy, Home),
    /// The body of one call streams, and its next frame is there.
    Frame(usize),
    /// Somebody asks the cache for a token, without the layer.
    Ask,
    /// The same, on a runtime that need not be the first.
    AskOn(Home),
    /// Every call is polled that was woken.
    PollWoken,
    /// One call is polled, woken or not.
    Poll(usize),
    /// One call is given up.
    Drop(usize),
    /// The token request in progress is answered; without this, its answer never comes.
    Token(Reply),
    /// One send in progress is answered.
    Api(usize, Answer),
    /// Somebody who uses the newest token without the layer says that it was refused.
    Reject,
    /// So many milliseconds pass, and every timer goes off in its time.
    Wait(u64),
    /// So many milliseconds pass while the process stands still.
    Freeze(u64),
    /// The wall clock is set forth or back, by seconds.
    SetWall(i64),
    /// The second runtime goes away, with the calls and the flight that are on it.
    Lose,
    /// The inner service has no room for another call.
    Unready,
    Ready,
}

/// What a token service answers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reply {
    /// A token that was not there before, with its lifetime in milliseconds.
    New(u64),
    /// The token of the last reply once more, with the lifetime that it has now.
    Same(u64),
    Transient,
    Permanent,
    /// A transient error that says in how many seconds to ask again.
    RetryAfter(u64),
    Panic,
}

impl Reply {
    /// The same, if need be with a lifetime that no test takes by the system's clock.
    pub(crate) fn lasting_longer_than_a_test(self) -> Self {
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

/// What an API answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Accepted,
    Rejected,
    /// The same, and what is left of the request's body is read on.
    RejectedEarly,
    Failed,
}

impl Answer {
    pub(crate) fn is_rejection(self) -> bool {
        matches!(self, Self::Rejected | Self::RejectedEarly)
    }
}

/// Hundreds of steps, most of them ordinary.
pub(crate) fn any_history() -> impl Strategy<Value = Vec<Action>> {
    // Two numbers for a step: a strategy for each kind of step takes longer than the test itself.
    let step = (0_u8..STEPS, 0_u16..1000);
    collection::vec(step, 1..400).prop_map(|steps| {
        let steps = steps.into_iter();
        steps.map(|(step, detail)| action(step, detail)).collect()
    })
}

/// One more than the last number that stands for a step.
const STEPS: u8 = 100;

/// The smaller the numbers, the plainer the step, because that is where shrinking goes.
fn action(step: u8, detail: u16) -> Action {
    let index = usize::from(detail % 8);
    match step {
        0..8 => Action::Call,
        8..18 => Action::CallWith(policy(detail), home(detail)),
        18..34 => Action::PollWoken,
        34..49 => Action::Token(reply(detail)),
        49..65 => Action::Api(index, answer(detail)),
        65..77 => Action::Wait(pause(detail)),
        77..80 => Action::AskOn(home(detail)),
        80..84 => Action::Frame(index),
        84..87 => Action::Poll(index),
        87..90 => Action::Drop(index),
        90..93 => Action::Ready,
        93 => Action::Unready,
        94 => Action::Reject,
        95 => Action::SetWall(jump(detail)),
        96 | 97 => Action::Lose,
        _ => Action::Freeze(pause(detail)),
    }
}

fn policy(detail: u16) -> Policy {
    match detail % 8 {
        0..2 => Policy::Cloned,
        2..5 => Policy::Buffered,
        5 => Policy::Overflowing,
        6 => Policy::Never,
        _ => Policy::OptedOut,
    }
}

fn home(detail: u16) -> Home {
    if detail < 600 {
        Home::First
    } else {
        Home::Second
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

/// From less than any timer of the cache to more than most, in milliseconds.
fn pause(detail: u16) -> u64 {
    let number = u64::from(detail);
    match detail {
        0..500 => 1 + 2 * number,
        500..900 => 1000 + 87 * (number - 500),
        900..940 => 30_000,
        _ => [60_000, 300_000, 1_500_000, 1_800_000, 4_000_000][usize::from(detail % 5)],
    }
}

/// In seconds.
fn jump(detail: u16) -> i64 {
    [1, -1, 100, -100, 36_000, -36_000][usize::from(detail % 6)]
}

pub(crate) fn milliseconds(number: u64) -> Duration {
    Duration::from_millis(number)
}
