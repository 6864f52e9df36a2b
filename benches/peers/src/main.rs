//! Compares the layer with what people would use instead, in the same situations.
//!
//! Prints the figures and draws `docs/peers.svg`. Exits non-zero if a peer needs fewer instructions
//! per call, or makes fewer token requests except in the outage. Takes less than a minute and needs
//! valgrind, but no network except loopback:
//!
//! ```text
//! cargo run --release --manifest-path benches/peers/Cargo.toml
//! ```
//!
//! With `-- check`, it leaves the picture as it is.

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
        [] => {
            let results = measure()?;
            draw(&results)?;
            Ok(exit_code(&results))
        }
        [check] if check == "check" => Ok(exit_code(&measure()?)),
        // The program starts itself like this under valgrind.
        [count, name, calls] if count == "count" => {
            hot::count(&peers::all(), name, calls.parse()?)?;
            Ok(ExitCode::SUCCESS)
        }
        _ => Err("usage: peers [check]".into()),
    }
}

fn measure() -> Result<Results, BoxError> {
    let candidates = peers::all();
    Ok(Results {
        times: hot::times(&candidates),
        instructions: hot::instructions(&candidates)?,
        outcomes: Scenario::ALL
            .map(|scenario| candidates.iter().map(|it| it.run(scenario)).collect()),
        candidates,
    })
}

fn draw(results: &Results) -> Result<(), BoxError> {
    let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/peers.svg");
    picture::draw(&picture, results)?;
    println!("Saved docs/peers.svg\n");
    Ok(())
}

/// Prints the results and checks them.
fn exit_code(results: &Results) -> ExitCode {
    report::print(results);
    if report::check(results) {
        println!("\nNo peer is ahead.");
        ExitCode::SUCCESS
    } else {
        eprintln!("\nA peer is ahead.");
        ExitCode::FAILURE
    }
}
