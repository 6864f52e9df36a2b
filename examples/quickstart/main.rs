//! Shows the main features over real sockets: tokens are requested once, refreshed before they
//! expire, and renewed when the API rejects them.
//!
//! Starts an authorization server and an API on loopback that respond like LinkedIn's, and calls
//! the API through the layer and hyper-util's client. Needs no network and no credentials:
//!
//! ```text
//! cargo run --example quickstart
//! ```
//!
//! Every step checks its results. The example exits non-zero if a check fails.

mod report;
mod stack;
mod steps;

use std::{process::ExitCode, time::Duration};

use tokio::{runtime::Runtime, spawn, time::timeout};
use tower_client_credentials::BoxError;

/// Many times the duration of a step.
const STEP_DEADLINE: Duration = Duration::from_secs(15);

fn main() -> Result<ExitCode, BoxError> {
    let runtime = Runtime::new()?;
    let outcome = runtime.block_on(run());
    // Does not wait for tasks: one that never yields must not keep the example from ending.
    runtime.shutdown_background();

    match outcome {
        Ok(()) => {
            println!("\nAll checks passed.");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("\nquickstart failed in {error}");
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn run() -> Result<(), BoxError> {
    step("1. The first call requests a token", steps::first_call()).await?;
    step(
        "2. 1,000 concurrent calls, no token yet",
        steps::cold_cache(),
    )
    .await?;
    step(
        "3. Steady traffic across three expiries",
        steps::steady_traffic(),
    )
    .await?;
    step("4. A POST whose token was revoked", steps::revoked_token()).await?;
    step(
        "5. Credentials that LinkedIn does not accept",
        steps::refused_credentials(),
    )
    .await?;
    step(
        "6. An API that rejects every token",
        steps::rejected_tokens(),
    )
    .await
}

async fn step<F>(title: &str, step: F) -> Result<(), BoxError>
where
    F: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    println!("\n{title}\n");
    let outcome = match timeout(STEP_DEADLINE, spawn(step)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => Err(panic.into()),
        Err(_elapsed) => Err(format!("not finished within {STEP_DEADLINE:?}").into()),
    };
    outcome.map_err(|error| format!("step {title}: {error}").into())
}
