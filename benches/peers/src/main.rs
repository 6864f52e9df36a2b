//! Compares the layer with what people would use instead, in the same situations.
//!
//! Prints the figures and draws `docs/peers.svg`. Exits non-zero if a peer needs fewer instructions per
//! call, or makes fewer token requests except in the outage. Takes less than a minute and needs valgrind,
//! but no network except loopback:
//!
//! ```text
//! cargo run --release --manifest-path benches/peers/Cargo.toml
//! ```

mod api;
mod candidate;
mod endpoint;
mod hot;
mod peer;
mod peers;
mod picture;
mod report;
mod scenario;

use std::{env, path::Path, process::ExitCode};

use tower::BoxError;

use self::{report::Results, scenario::Scenario};

fn main() -> Result<ExitCode, BoxError> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => compare(),
        // The program starts itself like this under valgrind.
        [count, name, calls] if count == "count" => {
            hot::count(&peers::all(), name, calls.parse()?)?;
            Ok(ExitCode::SUCCESS)
        }
        _ => Err("takes no arguments".into()),
    }
}

fn compare() -> Result<ExitCode, BoxError> {
    let candidates = peers::all();
    let results = Results {
        times: hot::times(&candidates),
        instructions: hot::instructions(&candidates)?,
        outcomes: Scenario::ALL
            .map(|scenario| candidates.iter().map(|it| it.run(scenario)).collect()),
        candidates,
    };

    report::print(&results);
    let all_hold = report::check(&results);
    let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/peers.svg");
    picture::draw(&picture, &results)?;
    println!("\nSaved docs/peers.svg");

    if all_hold {
        println!("No peer is ahead.");
        Ok(ExitCode::SUCCESS)
    } else {
        eprintln!("A peer is ahead.");
        Ok(ExitCode::FAILURE)
    }
}
