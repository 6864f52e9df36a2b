//! Instructions of a call, and to read a reply, counted by callgrind: the difference between a long and
//! a short loop.

use std::process::Command;

use benches::HEADERS;
use tower::BoxError;

use crate::table::Table;

/// Instructions that `NoReplay` may need on top of a constant header.
const NO_REPLAY: f64 = 220.0;

/// Instructions of `CloneBody`, relative to tower's `Retry` around a constant header.
const CLONE_BODY: f64 = 1.0;

/// The function in which a service looks up the cache. Services do so when their last lookup is a
/// millisecond old, so the number of lookups depends on the machine.
const LOOKUP: &str = "*LastSeen*look*";

/// A lookup takes at least this many instructions.
const MIN_LOOKUP: f64 = 50.0;

const HOT_LOOP: &str = env!("CARGO_BIN_EXE_hot_loop");
const CALLERS: &str = env!("CARGO_BIN_EXE_callers");
const REPLAY_CALLERS: &str = env!("CARGO_BIN_EXE_replay_callers");
const ERROR_REPLIES: &str = env!("CARGO_BIN_EXE_error_replies");

/// How much faster than their size the instructions to read error replies may grow.
const GROWTH: f64 = 1.5;

const SHORT: i64 = 500;
const LONG: i64 = 3500;

pub(crate) fn has_valgrind() -> bool {
    Command::new("valgrind").arg("--version").output().is_ok()
}

pub(crate) fn measure(table: &mut Table) -> Result<(), BoxError> {
    let mut rows = Vec::new();
    for leaf in ["boxed", "opaque", "inlined"] {
        for headers in HEADERS {
            let name = format!("{headers} headers, {leaf} leaf");
            rows.push(Row::measure(name, |stack| {
                let arguments = [stack, leaf, &headers.to_string()];
                per_call(HOT_LOOP, arguments, Lookups::Skipped)
            })?);
        }
    }
    for (style, name) in [("async", "async fn"), ("cloned", "clone per call")] {
        for headers in HEADERS {
            let name = format!("{headers} headers, {name}");
            rows.push(Row::measure(name, |stack| {
                let program = match stack {
                    "retry" | "clone_body" => REPLAY_CALLERS,
                    _ => CALLERS,
                };
                let arguments = [style, stack, &headers.to_string()];
                per_call(program, arguments, Lookups::Skipped)
            })?);
        }
    }

    table.section(
        "Instructions of a call. The leaf's future is on the heap, like that of hyper-util's client\n\
         (boxed), or holds the response, and its `poll` is called (opaque) or inlined. Where the calls\n\
         are made in an `async fn`, or with a clone of the service each, the leaf is boxed.\n\n\
         `NoReplay`, less `AddAuthorization`:",
    );
    for row in &rows {
        let (figure, details) = row.difference();
        table.row(&row.name, figure, NO_REPLAY, &details);
    }
    table.section("`CloneBody`, relative to `Retry` and `AddAuthorization`, less the bare leaf:");
    for row in &rows {
        let (figure, details) = row.ratio();
        table.row(&row.name, figure, CLONE_BODY, &details);
    }
    report_lookups(table)?;
    measure_error_replies(table)
}

/// A server must not be able to keep a processor busy, so the reading takes linear time.
fn measure_error_replies(table: &mut Table) -> Result<(), BoxError> {
    const SIZES: [(&str, usize); 3] = [
        ("64 KiB", 64 * 1024),
        ("256 KiB", 256 * 1024),
        ("1 MiB", 1024 * 1024),
    ];
    let per_reply = |bytes: usize| -> Result<f64, BoxError> {
        let count = |replies| {
            let arguments = [&bytes.to_string()];
            count(
                ERROR_REPLIES,
                &arguments.map(String::as_str),
                replies,
                Lookups::Counted,
            )
        };
        Ok((count(3)? - count(1)?) as f64 / 2.0)
    };
    let [small, medium, large] = SIZES.map(|(_, bytes)| per_reply(bytes));
    let figures = [small?, medium?, large?];

    table.section(
        "Instructions to read an error reply of a token endpoint whose texts resemble its tokens: their\n\
         growth from one size to the next, relative to that of the size:",
    );
    for (sizes, counts) in SIZES.windows(2).zip(figures.windows(2)) {
        let name = format!("{} to {}", sizes[0].0, sizes[1].0);
        let growth = (counts[1] / counts[0]) / (sizes[1].1 as f64 / sizes[0].1 as f64);
        let details = format!("{:.0} to {:.0}", counts[0], counts[1]);
        table.row(&name, growth, GROWTH, &details);
    }
    Ok(())
}

/// The budgets exclude lookups, because their number depends on the machine.
fn report_lookups(table: &mut Table) -> Result<(), BoxError> {
    let arguments = ["lookup_each_call", "opaque", "4"];
    let counted = per_call(HOT_LOOP, arguments, Lookups::Counted)?;
    let skipped = per_call(HOT_LOOP, arguments, Lookups::Skipped)?;
    let [no_replay, add] = ["no_replay", "add_authorization"]
        .map(|stack| per_call(CALLERS, ["cloned", stack, "4"], Lookups::Counted));
    table.section(
        "Not included above: the lookup in the cache, which reads both clocks. A service makes one when\n\
         its last lookup is a millisecond old. A clone knows the last lookup of the service that it was\n\
         cloned from.",
    );
    table.report("lookup", counted - skipped, "instructions");
    let name = "4 headers, clone per call, with lookups";
    table.report(name, no_replay? - add?, "more than `AddAuthorization`");
    if counted - skipped < MIN_LOOKUP {
        table.fail(&format!("instructions: no function matches {LOOKUP}"));
    }
    Ok(())
}

/// Instructions of a call through each of the stacks.
struct Row {
    name: String,
    leaf: f64,
    add_authorization: f64,
    no_replay: f64,
    retry: f64,
    clone_body: f64,
}

impl Row {
    fn measure(
        name: String,
        per_call: impl Fn(&str) -> Result<f64, BoxError>,
    ) -> Result<Self, BoxError> {
        Ok(Self {
            name,
            leaf: per_call("leaf")?,
            add_authorization: per_call("add_authorization")?,
            no_replay: per_call("no_replay")?,
            retry: per_call("retry")?,
            clone_body: per_call("clone_body")?,
        })
    }

    /// How many more instructions `NoReplay` needs than a constant header.
    fn difference(&self) -> (f64, String) {
        let [ours, theirs] = [self.no_replay, self.add_authorization].map(|it| it - self.leaf);
        ((ours - theirs).round(), format!("{ours:.0} to {theirs:.0}"))
    }

    /// How many times the instructions of `Retry` `CloneBody` needs.
    fn ratio(&self) -> (f64, String) {
        let [ours, theirs] = [self.clone_body, self.retry].map(|it| it - self.leaf);
        (ours / theirs, format!("{ours:.0} to {theirs:.0}"))
    }
}

#[derive(Clone, Copy)]
enum Lookups {
    Counted,
    Skipped,
}

/// The fraction stems from instructions that only some of the calls need.
fn per_call(program: &str, arguments: [&str; 3], lookups: Lookups) -> Result<f64, BoxError> {
    let count = |calls| count(program, &arguments, calls, lookups);
    Ok((count(LONG)? - count(SHORT)?) as f64 / (LONG - SHORT) as f64)
}

fn count(program: &str, arguments: &[&str], calls: i64, lookups: Lookups) -> Result<i64, BoxError> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    if let Lookups::Skipped = lookups {
        valgrind.arg(format!("--toggle-collect={LOOKUP}"));
        valgrind.arg("--collect-atstart=yes");
    }
    let output = valgrind
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
        _ => Err(format!("callgrind counted nothing for {arguments:?}: {report}").into()),
    }
}
