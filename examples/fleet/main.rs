//! Shows why refreshes are jittered: 10,000 processes that started together share a token endpoint
//! with a rate limit for a day.
//!
//! Every process is a real `TokenCache` around a real `TokenEndpoint`; only the HTTP client and the
//! time are simulated. The day is run twice, with all defaults and with `.jitter(0.0)`. Prints what
//! came to the token endpoint and to the calls, and draws `docs/fleet.svg`. Needs no network, and
//! about half a minute:
//!
//! ```text
//! cargo run --release --example fleet
//! ```
//!
//! The random numbers are the same every time. What the example says it checks: if something does
//! not hold, it says so and ends with an exit code other than zero.

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
    println!("\nDrawn: {}", picture.display());

    if all_hold {
        println!("All of it held.");
        Ok(ExitCode::SUCCESS)
    } else {
        eprintln!("Not all of it held.");
        Ok(ExitCode::FAILURE)
    }
}

fn simulate(refreshes: Refreshes) -> Result<Day, BoxError> {
    // The library draws from the same source, so that every run is the same.
    fastrand::seed(1);
    let runtime = runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    runtime.block_on(fleet::run(refreshes))
}
