//! Shows why refreshes have jitter: for a day, 10,000 processes that started at the same time share
//! a token endpoint with a rate limit.
//!
//! Every process is a real `TokenCache` around a real `TokenEndpoint`; only the HTTP client and the
//! time are simulated. The day runs twice, with all defaults and with `.jitter(0.0)`. The example
//! prints the load on the token endpoint and the effect on calls, and draws `docs/fleet.svg`. It
//! needs no network and takes about half a minute:
//!
//! ```text
//! cargo run --release --example fleet
//! ```
//!
//! The random numbers are the same in each run. The example checks its statements and exits
//! non-zero if one does not hold.

mod day;
mod endpoint;
mod fleet;
mod picture;
mod report;

use std::{path::Path, process::ExitCode, thread};

use tokio::runtime;
use tower::BoxError;

use self::{day::Day, fleet::Refreshes};

fn main() -> Result<ExitCode, BoxError> {
    let jittered = thread::spawn(|| simulate(Refreshes::Jittered));
    let in_step = thread::spawn(|| simulate(Refreshes::InStep));
    let jittered = jittered.join().map_err(|_| "a fleet panicked")??;
    let in_step = in_step.join().map_err(|_| "a fleet panicked")??;

    let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/fleet.svg");
    picture::draw(&picture, &jittered, &in_step)?;
    report::print(&jittered, &in_step);
    let all_hold = report::check(&jittered, &in_step);
    println!("\nSaved {}", picture.display());

    if all_hold {
        println!("All checks passed.");
        Ok(ExitCode::SUCCESS)
    } else {
        eprintln!("Some checks failed.");
        Ok(ExitCode::FAILURE)
    }
}

fn simulate(refreshes: Refreshes) -> Result<Day, BoxError> {
    // The library draws its jitter from the same generator.
    fastrand::seed(1);
    let runtime = runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    runtime.block_on(fleet::run(refreshes))
}
