//! Instructions of a call, counted by callgrind: a loop of two lengths, and the difference.

use std::process::Command;

use benches::HEADERS;
use tower::BoxError;

use crate::table::Table;

/// What a call through tower-http's constant header, or tower's second sends, may be exceeded by.
const NEVER: f64 = 1.25;
const CLONE_BODY: f64 = 1.0;

/// A service looks at the cache when its view is a millisecond old, so how many calls do depends on
/// the machine. They are not counted; the row of calls that all look has them.
const WITHOUT_LOOKS: [&str; 2] = ["--toggle-collect=*LastSeen*look*", "--collect-atstart=yes"];

/// The programs whose calls are counted.
const HOT_LOOP: &str = env!("CARGO_BIN_EXE_hot_loop");
const CALLERS: &str = env!("CARGO_BIN_EXE_callers");

const SHORT: i64 = 500;
const LONG: i64 = 3500;

pub(crate) fn can_be_counted() -> bool {
    Command::new("valgrind").arg("--version").output().is_ok()
}

pub(crate) fn measure(table: &mut Table) -> Result<(), BoxError> {
    table.part(
        "Instructions of a call less those of the bare leaf, as a ratio. The leaf's future is on the heap,\n\
         as that of hyper-util's client (boxed), or it holds the response, and its `poll` is called\n\
         (opaque) or not (inlined).",
    );
    for leaf in ["boxed", "opaque", "inlined"] {
        for headers in HEADERS {
            ratios(table, leaf, headers)?;
        }
    }
    let [bare, looking] = [["leaf", "opaque", "4"], ["watchful", "opaque", "4"]]
        .map(|arguments| per_call(HOT_LOOP, arguments, &[]));
    println!(
        "\nFor your information: with `NoReplay` and 4 headers, a call that looks at the cache and at both\n\
         clocks takes {:.0} instructions. Each service does so once in a millisecond at most.",
        looking? - bare?
    );
    println!(
        "\nThe same rows, boxed leaf, where the code around the call is compiled otherwise:\n"
    );
    callers("async", "in an `async` function")?;
    callers("cloned", "a clone for each call")
}

fn callers(caller: &str, what: &str) -> Result<(), BoxError> {
    for headers in HEADERS {
        let [bare, theirs, ours] = ["leaf", "add_authorization", "never"].map(|stack| {
            let arguments = [caller, stack, &headers.to_string()];
            per_call(CALLERS, arguments, &WITHOUT_LOOKS)
        });
        let bare = bare?;
        let (ours, theirs) = (ours? - bare, theirs? - bare);
        println!(
            "NoReplay, {headers} headers, {what:<22} {:10.3}   {ours:.0} to {theirs:.0}",
            ours / theirs
        );
    }
    Ok(())
}

fn ratios(table: &mut Table, leaf: &str, headers: usize) -> Result<(), BoxError> {
    let per_call = |stack| {
        per_call(
            HOT_LOOP,
            [stack, leaf, &headers.to_string()],
            &WITHOUT_LOOKS,
        )
    };
    let bare = per_call("leaf")?;
    for (policy, stack, peer, budget) in [
        ("Never", "never", "add_authorization", NEVER),
        ("CloneBody", "clone_body", "retry", CLONE_BODY),
    ] {
        let ours = per_call(stack)? - bare;
        let theirs = per_call(peer)? - bare;
        table.row(
            &format!("{policy}, {headers} headers, {leaf} leaf"),
            ours / theirs,
            budget,
            &format!("{ours:.0} to {theirs:.0}"),
        );
    }
    Ok(())
}

/// A part of an instruction is what some calls take and others do not.
fn per_call(program: &str, arguments: [&str; 3], options: &[&str]) -> Result<f64, BoxError> {
    let count = |calls| count(program, arguments, calls, options);
    Ok((count(LONG)? - count(SHORT)?) as f64 / (LONG - SHORT) as f64)
}

fn count(
    program: &str,
    arguments: [&str; 3],
    calls: i64,
    options: &[&str],
) -> Result<i64, BoxError> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(options)
        .arg(program)
        .args(arguments)
        .arg(calls.to_string())
        .output()?;
    let report = String::from_utf8_lossy(&output.stderr);
    let collected = report
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    match collected {
        Some((_, count)) if output.status.success() => Ok(count.trim().parse()?),
        _ => Err(format!("valgrind counted nothing of {arguments:?}: {report}").into()),
    }
}
