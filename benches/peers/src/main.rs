//! The layer beside what people would use instead: the same work for each.
//!
//! Prints what was measured, draws `docs/peers.svg`, and ends with an exit code other than zero where
//! this crate has to be ahead of every peer and is not. Needs no network but loopback, and less than
//! a minute:
//!
//! ```text
//! cargo run --release --manifest-path benches/peers/Cargo.toml
//! ```
//!
//! Instructions are counted by valgrind; without it, the hot path is judged by time.

mod api;
mod contest;
mod crowd;
mod endpoint;
mod hot;
mod peer;
mod peers;
mod picture;
mod report;

use std::{env, path::Path, process::ExitCode};

use tower::BoxError;

use self::{crowd::Work, report::Results};

fn main() -> Result<ExitCode, BoxError> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => compare(),
        // What this program starts under valgrind.
        [count, name, calls] if count == "count" => {
            hot::count(&peers::all(), name, calls.parse()?)?;
            Ok(ExitCode::SUCCESS)
        }
        _ => Err("takes no arguments".into()),
    }
}

fn compare() -> Result<ExitCode, BoxError> {
    let contestants = peers::all();
    let results = Results {
        times: hot::times(&contestants),
        instructions: hot::instructions(&contestants),
        crowds: Work::ALL.map(|work| contestants.iter().map(|one| one.run(work)).collect()),
        contestants,
    };

    report::print(&results);
    let all_hold = report::check(&results);
    let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/peers.svg");
    picture::draw(&picture, &results)?;
    println!("\nDrawn: docs/peers.svg");

    if all_hold {
        println!("All of it held.");
        Ok(ExitCode::SUCCESS)
    } else {
        eprintln!("Not all of it held.");
        Ok(ExitCode::FAILURE)
    }
}
