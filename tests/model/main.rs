//! Random histories of calls, replies, faults and clocks, and what must hold after every step.
//!
//! `PROPTEST_CASES` sets how many histories are run. One that fails is shrunk and printed, seed
//! included; kept, it is a test of its own with a name that says what went wrong.

mod action;
mod bodies;
mod clocks;
mod observer;
mod promises;
mod runtimes;
#[path = "../support/mod.rs"]
mod support;
mod world;

use action::{
    Action::{self, *},
    Answer::Rejected,
    Reply::*,
    any_history,
};
use bodies::Policy::*;
use proptest::{prelude::*, test_runner::RngSeed};
use runtimes::Home::*;
use world::{Setup, World};

/// The lifetime of the tokens that the calls which are left at the end get, in milliseconds.
const LASTING: u64 = 1_800_000;

fn run(setup: Setup, seed: u64, last_lifetime: u64, history: &[Action]) -> Result<(), String> {
    // All chance is on this thread: the same seed gives the same history.
    fastrand::seed(seed);
    let mut world = World::new(setup);
    for (number, action) in history.iter().enumerate() {
        let step = world.step(*action);
        step.map_err(|broken| format!("step {number}, {action:?}: {broken}"))?;
    }
    let end = world.finish(last_lifetime);
    end.map_err(|broken| format!("at the end: {broken}"))
}

/// So many cases, always the same ones, unless the environment says how many: then others each time.
///
/// What a change has to pass depends on the change alone; the longer run, with other histories each
/// time, is for those who look for what nobody has thought of.
fn cases(default: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    let is_set = std::env::var_os("PROPTEST_CASES").is_some();
    ProptestConfig {
        cases: if is_set { config.cases } else { default },
        rng_seed: if is_set {
            config.rng_seed
        } else {
            RngSeed::Fixed(1)
        },
        failure_persistence: None,
        max_shrink_iters: match std::env::var_os("PROPTEST_MAX_SHRINK_ITERS") {
            Some(_) => config.max_shrink_iters,
            None => 20_000,
        },
        ..config
    }
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn promises_hold_after_every_step(seed: u64, history in any_history()) {
        run(Setup::Plain, seed, LASTING, &history).map_err(TestCaseError::fail)?;
    }

    /// The last tokens live for no time: they serve those who waited for them.
    #[test]
    fn promises_hold_when_tokens_end_on_landing(seed: u64, history in any_history()) {
        run(Setup::Plain, seed, 0, &history).map_err(TestCaseError::fail)?;
    }
}

proptest! {
    #![proptest_config(cases(700))]

    #[test]
    fn promises_hold_while_the_token_is_kept_warm(seed: u64, history in any_history()) {
        run(Setup::KeptWarm, seed, LASTING, &history).map_err(TestCaseError::fail)?;
    }

    /// Most of whose calls do not look at the cache.
    #[test]
    fn promises_hold_for_services_that_last(seed: u64, history in any_history()) {
        run(Setup::ServicesThatLast, seed, LASTING, &history).map_err(TestCaseError::fail)?;
    }
}

/// What a random history found once.
fn history(history: &[Action]) {
    run(Setup::Plain, 0, LASTING, history).unwrap();
}

/// The same, with last tokens that live for no time.
fn history_without_life(history: &[Action]) {
    run(Setup::Plain, 0, 0, history).unwrap();
}

#[test]
fn waiter_that_is_polled_late_is_not_given_a_token_that_was_rejected_since() {
    history(&[Ask, Token(New(LASTING)), Reject, Call, PollWoken]);
}

#[test]
fn waiter_that_is_polled_late_is_not_given_a_token_that_expired_since() {
    history(&[Ask, Token(New(9)), Wait(60_000), PollWoken]);
}

#[test]
fn token_that_ended_on_landing_serves_no_waiter_once_it_was_rejected() {
    history(&[Ask, Call, Token(New(0)), Reject, Call, PollWoken]);
}

#[test]
fn token_that_ended_on_landing_is_rejected_under_each_of_its_issues() {
    history(&[Call, Token(New(0)), Call, Token(Same(0)), Reject, Call]);
}

#[test]
fn flight_that_stood_still_past_its_deadline_asks_no_more() {
    history(&[Call, Token(Transient), Freeze(60_000)]);
}

/// The wall clock was set forth while the token was on its way, and back when it was there.
#[test]
fn token_that_seemed_to_end_on_landing_is_not_sent_once_it_has_expired() {
    history(&[
        Call,
        SetWall(100),
        Token(New(3000)),
        Call,
        Token(Permanent),
        SetWall(-36_000),
        Unready,
        PollWoken,
        Wait(2740),
    ]);
}

/// The newest token is stale and rejected; the token without life is older, and was never refused.
#[test]
fn waiter_that_is_polled_late_is_sent_with_the_token_without_life_that_it_waited_for() {
    history_without_life(&[
        Call,
        PollWoken,
        Drop(0),
        Call,
        Call,
        Token(New(0)),
        Call,
        Drop(0),
        Wait(101),
        Token(New(1000)),
        Wait(699),
        Reject,
        Drop(1),
        PollWoken,
    ]);
}

/// The process stood still, so that the refresh was lost; who comes right after uses the stale token.
#[test]
fn refresh_that_was_lost_is_not_started_again_at_once() {
    history(&[
        Call,
        Token(New(LASTING)),
        Wait(1_640_000),
        Call,
        Freeze(60_000),
        Call,
    ]);
}

/// The call waits since the wall clock said that the token has expired; being polled once more, as
/// the upload that its replay took over is told so, says nothing of the token.
#[test]
fn call_that_began_to_wait_before_a_clock_was_set_back_says_nothing_of_the_token() {
    history(&[
        Call,
        CallWith(Buffered, First),
        Token(New(LASTING)),
        PollWoken,
        Api(1, Rejected),
        PollWoken,
        Token(Same(LASTING)),
        SetWall(36_000),
        Api(0, Rejected),
        PollWoken,
        SetWall(-36_000),
        PollWoken,
        Ask,
    ]);
}

/// The call was sent with an earlier issue of the newest token, which the server handed out again.
#[test]
fn rejection_of_an_earlier_issue_renews_the_token() {
    history(&[
        CallWith(Never, First),
        Token(New(0)),
        Call,
        Wait(9),
        Token(Same(9)),
        PollWoken,
        Api(1, Rejected),
    ]);
}

/// A timer goes off on the runtime that it was made on, at its time.
#[test]
fn flight_on_either_runtime_fails_at_its_deadline() {
    for home in [First, Second] {
        history(&[CallWith(Cloned, home), Wait(31_500)]);
    }
}

/// The replay had its token, which expired before the service was ready; the rejection is gone then.
#[test]
fn replay_that_is_without_a_token_after_four_lost_flights_says_so() {
    let mut steps = vec![
        Call,
        Token(New(LASTING)),
        PollWoken,
        Unready,
        Api(0, Rejected),
        PollWoken,
        Token(New(3000)),
        PollWoken,
        Wait(2740),
        Ready,
    ];
    for _ in 0..4 {
        steps.extend([PollWoken, Freeze(31_015)]);
    }
    steps.push(PollWoken);
    history(&steps);
}

/// Its renewal failed; what a refresh brings then is not asked for once more.
#[test]
fn token_that_is_handed_out_again_goes_to_those_who_wait_for_its_renewal() {
    let history = [
        Call,
        Token(New(LASTING)),
        CallWith(Cloned, Second),
        Api(0, Rejected),
        PollWoken,
        Wait(31_015),
        Call,
        Wait(31_015),
        Token(Same(LASTING)),
        Call,
    ];
    run(Setup::KeptWarm, 0, LASTING, &history).unwrap();
}

/// The renewal failed, and a refresh brought the rejected token again: there is none to send instead.
#[test]
fn call_whose_rejected_token_is_handed_out_again_asks_no_more() {
    history(&[
        Call,
        Wait(7),
        Call,
        Token(New(9)),
        Call,
        Call,
        Call,
        Call,
        Api(0, Rejected),
        PollWoken,
        Call,
        Token(Same(3000)),
        Call,
        Wait(30_841),
        Call,
        Token(Same(LASTING)),
        Call,
    ]);
}

/// The renewal that the call waited for was lost, and another failed before the call was polled.
#[test]
fn call_that_missed_a_failed_renewal_asks_no_more() {
    let mut steps = vec![Call; 18];
    steps.extend([
        Token(New(LASTING)),
        Call,
        Api(0, Rejected),
        PollWoken,
        Freeze(31_015),
        Call,
        Token(Transient),
        Wait(13_267),
        Wait(17_617),
        Ask,
        Token(Same(3000)),
    ]);
    history(&steps);
}
