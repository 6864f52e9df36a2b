//! Runs random histories of calls, replies, faults and clock changes, and checks every promise
//! after every step.
//!
//! `PROPTEST_CASES` sets the number of histories. A history that fails is shrunk and printed with
//! its seed. Keep it as a test of its own, named after the correct behaviour.

mod action;
mod bodies;
mod clocks;
mod observer;
mod promises;
mod rejections;
mod runtimes;
#[path = "../support/mod.rs"]
mod support;
mod world;

use action::{
    Action::{self, *},
    Answer::Rejected,
    Reply::*,
    any_history, any_history_of_two_keys,
};
use bodies::Policy::*;
use proptest::{prelude::*, test_runner::RngSeed};
use runtimes::RuntimeId::*;
use world::{Setup, World};

/// A token lifetime that no history reaches by accident, in milliseconds.
const LASTING: u64 = 1_800_000;

fn run(setup: Setup, seed: u64, last_lifetime: u64, history: &[Action]) -> Result<(), String> {
    // Everything runs on this thread, so the same seed gives the same history.
    fastrand::seed(seed);
    let mut world = World::new(setup);
    for (number, action) in history.iter().enumerate() {
        let step = world.step(*action);
        step.map_err(|broken| format!("step {number}, {action:?}: {broken}"))?;
    }
    let end = world.finish(last_lifetime);
    end.map_err(|broken| format!("at the end: {broken}"))
}

/// Runs a history of two keys of a cache. Each has to keep every promise, whatever the other does.
fn run_with_two_keys(setup: Setup, seed: u64, history: &[(usize, Action)]) -> Result<(), String> {
    fastrand::seed(seed);
    let mut world = World::with_keys(setup, 2);
    for (number, (key, action)) in history.iter().enumerate() {
        let step = world.step_of(*key, *action);
        step.map_err(|broken| format!("step {number}, {action:?} of key {key}: {broken}"))?;
    }
    let end = world.finish(LASTING);
    end.map_err(|broken| format!("at the end: {broken}"))
}

/// Runs `default` histories, the same ones each time, so that the gate depends on the change alone.
///
/// With `PROPTEST_CASES`, that many histories run, and different ones each time.
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

    /// The tokens at the end have a lifetime of zero and serve only the calls that waited for them.
    #[test]
    fn promises_hold_when_tokens_expire_on_arrival(seed: u64, history in any_history()) {
        run(Setup::Plain, seed, 0, &history).map_err(TestCaseError::fail)?;
    }
}

proptest! {
    #![proptest_config(cases(700))]

    #[test]
    fn promises_hold_while_the_token_is_kept_warm(seed: u64, history in any_history()) {
        run(Setup::KeptWarm, seed, LASTING, &history).map_err(TestCaseError::fail)?;
    }

    /// Most calls of a reused service do not look at the cache.
    #[test]
    fn promises_hold_for_reused_services(seed: u64, history in any_history()) {
        run(Setup::ReusedServices, seed, LASTING, &history).map_err(TestCaseError::fail)?;
    }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn promises_hold_for_each_of_two_keys(seed: u64, history in any_history_of_two_keys()) {
        run_with_two_keys(Setup::Plain, seed, &history).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn promises_hold_for_each_of_two_keys_that_are_kept_warm(
        seed: u64,
        history in any_history_of_two_keys(),
    ) {
        run_with_two_keys(Setup::KeptWarm, seed, &history).map_err(TestCaseError::fail)?;
    }
}

/// Runs a history that once broke a promise.
fn history(history: &[Action]) {
    run(Setup::Plain, 0, LASTING, history).unwrap();
}

/// Runs a history whose tokens at the end have a lifetime of zero.
fn history_with_zero_lifetime(history: &[Action]) {
    run(Setup::Plain, 0, 0, history).unwrap();
}

#[test]
fn waiter_that_is_polled_late_does_not_get_a_token_rejected_meanwhile() {
    history(&[GetToken, TokenReply(New(LASTING)), Reject, Call, PollWoken]);
}

#[test]
fn waiter_that_is_polled_late_does_not_get_a_token_expired_meanwhile() {
    history(&[GetToken, TokenReply(New(9)), Wait(60_000), PollWoken]);
}

#[test]
fn token_that_expired_on_arrival_serves_no_waiter_after_its_rejection() {
    history(&[GetToken, Call, TokenReply(New(0)), Reject, Call, PollWoken]);
}

#[test]
fn rejection_covers_every_issue_of_a_token_that_expired_on_arrival() {
    history(&[
        Call,
        TokenReply(New(0)),
        Call,
        TokenReply(Same(0)),
        Reject,
        Call,
    ]);
}

#[test]
fn token_request_makes_no_attempt_after_its_deadline() {
    history(&[Call, TokenReply(Transient), StandStill(60_000)]);
}

/// The wall clock moves forward during the token request and back after the token has arrived.
#[test]
fn token_that_seemed_expired_on_arrival_is_not_sent_after_it_expires() {
    history(&[
        Call,
        SetWallClock(100),
        TokenReply(New(3000)),
        Call,
        TokenReply(Permanent),
        SetWallClock(-36_000),
        Unready,
        PollWoken,
        Wait(2740),
    ]);
}

/// The newest token is due for refresh and rejected. The zero-lifetime token is older and was never
/// rejected.
#[test]
fn waiter_that_is_polled_late_uses_the_zero_lifetime_token_that_it_waited_for() {
    history_with_zero_lifetime(&[
        Call,
        PollWoken,
        Drop(0),
        Call,
        Call,
        TokenReply(New(0)),
        Call,
        Drop(0),
        Wait(101),
        TokenReply(New(1000)),
        Wait(699),
        Reject,
        Drop(1),
        PollWoken,
    ]);
}

/// The refresh is lost because the process stands still. The next call uses the token that is
/// there.
#[test]
fn lost_refresh_is_not_restarted_at_once() {
    history(&[
        Call,
        TokenReply(New(LASTING)),
        Wait(1_640_000),
        Call,
        StandStill(60_000),
        Call,
    ]);
}

/// A call waits because the token has expired by the wall clock. When the clock is set back and the
/// call is polled for another reason, the token is usable and not withheld.
#[test]
fn token_is_usable_again_after_the_wall_clock_is_set_back() {
    history(&[
        Call,
        CallWith(Buffered, First),
        TokenReply(New(LASTING)),
        PollWoken,
        ApiAnswer(1, Rejected),
        PollWoken,
        TokenReply(Same(LASTING)),
        SetWallClock(36_000),
        ApiAnswer(0, Rejected),
        PollWoken,
        SetWallClock(-36_000),
        PollWoken,
        GetToken,
    ]);
}

/// The server has issued the token twice, and the call was sent with the first issue.
#[test]
fn rejection_of_an_earlier_issue_renews_the_token() {
    history(&[
        CallWith(NoReplay, First),
        TokenReply(New(0)),
        Call,
        Wait(9),
        TokenReply(Same(9)),
        PollWoken,
        ApiAnswer(1, Rejected),
    ]);
}

#[test]
fn token_request_fails_at_its_deadline_on_either_runtime() {
    for runtime in [First, Second] {
        history(&[CallWith(Cloned, runtime), Wait(31_500)]);
    }
}

/// The token of the replay expires before the service is ready. The rejection is dropped by then.
#[test]
fn replay_reports_that_four_token_requests_were_lost() {
    let mut steps = vec![
        Call,
        TokenReply(New(LASTING)),
        PollWoken,
        Unready,
        ApiAnswer(0, Rejected),
        PollWoken,
        TokenReply(New(3000)),
        PollWoken,
        Wait(2740),
        Ready,
    ];
    for _ in 0..4 {
        steps.extend([PollWoken, StandStill(31_015)]);
    }
    steps.push(PollWoken);
    history(&steps);
}

/// The renewal fails, and a refresh brings the rejected token again, which nothing renews once
/// more.
#[test]
fn waiters_for_a_renewal_get_a_token_that_is_issued_again() {
    let history = [
        Call,
        TokenReply(New(LASTING)),
        CallWith(Cloned, Second),
        ApiAnswer(0, Rejected),
        PollWoken,
        Wait(31_015),
        Call,
        Wait(31_015),
        TokenReply(Same(LASTING)),
        Call,
    ];
    run(Setup::KeptWarm, 0, LASTING, &history).unwrap();
}

/// The renewal fails, and a refresh brings the rejected token again, so there is no other to send.
#[test]
fn call_whose_rejected_token_is_issued_again_makes_no_further_request() {
    history(&[
        Call,
        Wait(7),
        Call,
        TokenReply(New(9)),
        Call,
        Call,
        Call,
        Call,
        ApiAnswer(0, Rejected),
        PollWoken,
        Call,
        TokenReply(Same(3000)),
        Call,
        Wait(30_841),
        Call,
        TokenReply(Same(LASTING)),
        Call,
    ]);
}

/// The renewal that the call waits for is lost, and another one fails before the call is polled.
#[test]
fn call_that_missed_a_failed_renewal_makes_no_further_request() {
    let mut steps = vec![Call; 18];
    steps.extend([
        TokenReply(New(LASTING)),
        Call,
        ApiAnswer(0, Rejected),
        PollWoken,
        StandStill(31_015),
        Call,
        TokenReply(Transient),
        Wait(13_267),
        Wait(17_617),
        GetToken,
        TokenReply(Same(3000)),
    ]);
    history(&steps);
}

/// The call is granted a token that lives for 3 s. Before the call is polled, a refresh returns the
/// same token again, which now lives for 9 ms.
#[test]
fn granted_token_is_not_sent_after_the_server_has_shortened_its_life() {
    history(&[
        Call,
        Call,
        TokenReply(New(0)),
        PollWoken,
        Call,
        ApiAnswer(0, Rejected),
        PollWoken,
        TokenReply(Same(3000)),
        Call,
        TokenReply(Same(9)),
        Wait(9),
        Call,
    ]);
}

/// The call is granted a token that is replaced twice before the service is ready.
#[test]
fn granted_token_is_not_sent_after_its_successor_has_expired() {
    history_with_zero_lifetime(&[
        Call,
        TokenReply(New(LASTING)),
        Unready,
        PollWoken,
        Reject,
        GetTokenOn(First),
        TokenReply(Same(1000)),
        Call,
        Wait(899),
        Poll(7),
        Call,
        TokenReply(New(3000)),
        Wait(2740),
        Call,
    ]);
}

/// A refresh in a cool-down returns the rejected token, and its renewal is still due.
#[test]
fn rejection_during_a_refresh_in_the_cool_down_is_answered_like_the_next_one() {
    history(&[
        Call,
        TokenReply(New(LASTING)),
        PollWoken,
        ApiAnswer(0, Rejected),
        PollWoken,
        TokenReply(Same(60_000)),
        Wait(25_012),
        Wait(23_000),
        Call,
        Reject,
        Reject,
        Call,
    ]);
}
