//! Prints the figures of both days and checks the statements about them.

use std::{fmt::Display, time::Duration};

use crate::{
    day::Day,
    endpoint::{LIMIT, RETRY_AFTER_SECONDS, TOKEN_LIFETIME},
    fleet::{DAY, INTERVAL, PROCESSES},
};

/// The end of the day, when both fleets have settled.
const EVENING: Duration = Duration::from_secs(6 * 60 * 60);

type Figure = fn(&Day) -> String;

const START: &[(&str, Figure)] = &[
    ("token requests", |day| thousands(day.start().requests)),
    ("refused", |day| thousands(day.start().refused)),
    ("in the busiest second", |day| thousands(day.start().peak)),
    ("half of the processes have a token", |day| {
        seconds(day.served(0.5))
    }),
    ("all processes have a token", |day| seconds(day.served(1.0))),
    ("calls that waited", |day| {
        thousands(day.calls_before.waited)
    }),
    ("longest wait", |day| seconds(day.calls_before.longest_wait)),
    ("calls that failed", |day| {
        thousands(day.calls_before.failed)
    }),
];

const REST: &[(&str, Figure)] = &[
    ("token requests", |day| {
        thousands(day.after_start().requests)
    }),
    ("refused", |day| thousands(day.after_start().refused)),
    ("per second, on average", |day| {
        format!("{:.1}", day.after_start().mean)
    }),
    ("in the busiest second", |day| {
        thousands(day.after_start().peak)
    }),
    ("same, in the last six hours", |day| {
        thousands(day.last(EVENING).peak)
    }),
    ("calls that waited", |day| thousands(day.calls_after.waited)),
    ("calls that failed", |day| thousands(day.calls_after.failed)),
    ("oldest token used", |day| seconds(day.oldest_token_used)),
];

pub(crate) fn print(jittered: &Day, in_step: &Day) {
    println!(
        "{} processes start within a second. Each makes a call every {INTERVAL:?} for {} hours.\n\
         Tokens expire after {} minutes. The token endpoint issues {LIMIT} tokens per second; further\n\
         requests get a 429 with Retry-After: {RETRY_AFTER_SECONDS}.",
        thousands(PROCESSES),
        DAY.as_secs() / 3600,
        TOKEN_LIFETIME.as_secs() / 60,
    );
    let row = |label, [left, right]: [String; 2]| println!("   {label:<36} {left:>12} {right:>12}");
    for (part, figures) in [("Until every process has a token", START), ("Later", REST)] {
        println!("\n{part}\n");
        row("", ["with jitter".to_owned(), "without".to_owned()]);
        for (label, figure) in figures {
            row(label, [jittered, in_step].map(figure));
        }
    }
}

/// Formats a number with commas.
pub(crate) fn thousands(number: impl Display + Copy) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Checks the statements about the figures. Returns `false` if one does not hold.
pub(crate) fn check(jittered: &Day, in_step: &Day) -> bool {
    let mut all_hold = true;
    let mut check = |holds: bool, statement: &str| {
        println!("   {}  {statement}", if holds { "ok" } else { "!!" });
        all_hold &= holds;
    };

    println!("\nChecks\n");
    for (day, fleet) in [(jittered, "With"), (in_step, "Without")] {
        let calls = &day.calls_after;
        check(
            day.first_tokens.len() == PROCESSES,
            &format!("{fleet} jitter, every process gets a token."),
        );
        check(
            calls.waited == 0 && calls.failed == 0,
            &format!("{fleet} jitter, no call waits or fails once its process has a token."),
        );
        check(
            day.oldest_token_used < TOKEN_LIFETIME,
            &format!("{fleet} jitter, no expired token is used."),
        );
    }
    check(
        jittered.after_start().refused == 0,
        "With jitter, the endpoint refuses no refresh all day.",
    );
    check(
        jittered.last(EVENING).peak < LIMIT / 2,
        "With jitter, the fleet ends the day far below the limit.",
    );
    check(
        in_step.after_start().refused > 1000,
        "Without jitter, the endpoint refuses thousands of refreshes, which are retried.",
    );
    check(
        in_step.last(EVENING).peak >= LIMIT,
        "Without jitter, waves as high as the limit continue until the end of the day.",
    );
    all_hold
}
