//! The days in figures and in words, and whether the words hold.

use std::{fmt::Display, time::Duration};

use crate::{
    day::Day,
    endpoint::{LIMIT, REFUSED_FOR, TOKEN_LIFE},
    fleet::{DAY, PACE, PROCESSES},
};

/// The end of the day, when each fleet has settled.
const EVENING: Duration = Duration::from_secs(6 * 60 * 60);

type Figure = fn(&Day) -> String;

const START: &[(&str, Figure)] = &[
    ("token requests", |day| thousands(day.start().requests)),
    ("refused", |day| thousands(day.start().refused)),
    ("in the busiest second", |day| thousands(day.start().peak)),
    ("half of the processes have one", |day| {
        seconds(day.served(0.5))
    }),
    ("all of them have one", |day| seconds(day.served(1.0))),
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
    ("in a second, on average", |day| {
        format!("{:.1}", day.after_start().mean)
    }),
    ("in the busiest second", |day| {
        thousands(day.after_start().peak)
    }),
    ("the same, in the last six hours", |day| {
        thousands(day.last(EVENING).peak)
    }),
    ("calls that waited", |day| thousands(day.calls_after.waited)),
    ("calls that failed", |day| thousands(day.calls_after.failed)),
    ("oldest token used", |day| seconds(day.oldest_token_used)),
];

pub(crate) fn print(jittered: &Day, in_step: &Day) {
    println!(
        "{} processes start within a second. Each makes a call every {PACE:?} for {} hours.\n\
         Tokens live {} minutes. The token endpoint answers {LIMIT} requests in a second and refuses\n\
         the others: 429, with Retry-After: {REFUSED_FOR}.",
        thousands(PROCESSES),
        DAY.as_secs() / 3600,
        TOKEN_LIFE.as_secs() / 60,
    );
    let row = |label, [left, right]: [String; 2]| println!("   {label:<36} {left:>12} {right:>12}");
    for (part, figures) in [
        ("Until every process has had a token", START),
        ("After that", REST),
    ] {
        println!("\n{part}\n");
        row("", ["with jitter".to_owned(), "without".to_owned()]);
        for (label, figure) in figures {
            row(label, [jittered, in_step].map(figure));
        }
    }
}

/// With commas.
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

/// Says what the figures mean; `false` if something of it does not hold.
pub(crate) fn check(jittered: &Day, in_step: &Day) -> bool {
    let mut all_hold = true;
    let mut claim = |holds: bool, words: &str| {
        println!("   {}  {words}", if holds { "ok" } else { "!!" });
        all_hold &= holds;
    };

    println!("\nIn words\n");
    for (day, fleet) in [(jittered, "With"), (in_step, "Without")] {
        let calls = &day.calls_after;
        claim(
            day.first_tokens.len() == PROCESSES,
            &format!("{fleet} jitter, every process gets a token."),
        );
        claim(
            calls.waited == 0 && calls.failed == 0,
            &format!("{fleet} jitter, no call waits or fails once its process has had a token."),
        );
        claim(
            day.oldest_token_used < TOKEN_LIFE,
            &format!("{fleet} jitter, no expired token is used."),
        );
    }
    claim(
        jittered.after_start().refused == 0,
        "With jitter, no refresh is refused all day.",
    );
    claim(
        jittered.last(EVENING).peak < LIMIT / 2,
        "With jitter, the fleet ends up far below the limit, with room for others.",
    );
    claim(
        in_step.after_start().refused > 1000,
        "Without jitter, thousands of refreshes are refused and made again.",
    );
    claim(
        in_step.last(EVENING).peak >= LIMIT,
        "Without jitter, the fleet still comes in waves as high as the limit when the day ends.",
    );
    all_hold
}
