//! Shows the main job on real sockets: tokens are fetched once, renewed in time, and replaced when
//! the API refuses them.
//!
//! Starts an authorization server and an API on loopback that answer as LinkedIn does, and calls the
//! API through the layer and hyper-util's client. Needs no network and no credentials:
//!
//! ```text
//! cargo run --example quickstart
//! ```
//!
//! Every step checks what it shows. If something does not hold, the example says so and ends with an
//! exit code other than zero.

mod report;
mod servers;
mod stack;
mod steps;

use std::{process::ExitCode, time::Duration};

use tokio::{runtime::Runtime, spawn, time::timeout};
use tower_client_credentials::BoxError;

/// Many times what a step takes.
const STEP_DEADLINE: Duration = Duration::from_secs(15);

fn main() -> Result<ExitCode, BoxError> {
    let runtime = Runtime::new()?;
    let outcome = runtime.block_on(show());
    // Waits for nothing: a task that never yields must not keep the example from ending.
    runtime.shutdown_background();

    match outcome {
        Ok(()) => {
            println!("\nAll of it held.");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("\nquickstart failed in {error}");
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn show() -> Result<(), BoxError> {
    step("1. The first call gets a token", steps::first_call()).await?;
    step(
        "2. 1,000 calls at once, and no token yet",
        steps::cold_cache(),
    )
    .await?;
    step(
        "3. Steady traffic across three expiries",
        steps::steady_traffic(),
    )
    .await?;
    step(
        "4. A revoked token, noticed by a POST",
        steps::revoked_token(),
    )
    .await?;
    step(
        "5. Credentials that LinkedIn refuses",
        steps::refused_credentials(),
    )
    .await?;
    step(
        "6. An API that refuses every token",
        steps::refused_tokens(),
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
        Err(_elapsed) => Err(format!("not done after {STEP_DEADLINE:?}").into()),
    };
    outcome.map_err(|error| format!("step {title}: {error}").into())
}
