//! Latency across token expiries: a steady load with the layer, and with a token that is fetched on
//! demand. Draws `docs/expiry.svg`; takes about a minute.
//!
//! ```text
//! cargo bench --manifest-path benches/Cargo.toml --bench expiry
//! ```

mod load;
mod picture;

use std::{path::Path, thread, time::Duration};

use benches::{TOKEN_DELAY, milliseconds};
use tokio::runtime::{self, Runtime};
use tower::BoxError;

use self::load::{LIFETIME, Run};

/// The 99.9th percentile around an expiry, relative to that away from it.
const BUDGET: f64 = 1.2;

fn main() -> Result<(), BoxError> {
    let with_layer = thread::spawn(|| runtime()?.block_on(load::with_layer()));
    let on_demand = thread::spawn(|| runtime()?.block_on(load::on_demand()));
    let [layer, constant] = with_layer.join().map_err(|_| "a call panicked")??;
    let on_demand = on_demand.join().map_err(|_| "a call panicked")??;

    println!(
        "One call per millisecond. The API takes {}, the token endpoint {}; a token lives {LIFETIME:?}.\n\
         Around an expiry: half a second before and after.\n",
        milliseconds(load::API_DELAY),
        milliseconds(TOKEN_DELAY),
    );
    let with_layer = print("the layer", &layer);
    let machine = print("a token that never expires, at the same moments", &constant);
    print("a token fetched on demand", &on_demand);
    println!(
        "\nRatio of the layer, relative to a token that never expires: {:.2} (budget {BUDGET}).\n\
         Calls that waited: budget 1, the first.",
        with_layer / machine
    );

    let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/expiry.svg");
    picture::draw(&picture, &layer, &on_demand)?;
    println!("\nSaved docs/expiry.svg");
    Ok(())
}

fn runtime() -> std::io::Result<Runtime> {
    runtime::Builder::new_current_thread().enable_time().build()
}

/// Prints a run and returns its ratio.
fn print(name: &str, run: &Run) -> f64 {
    let (around, away) = run.around_and_away();
    let [around, away] = [around, away].map(|latencies| percentile(latencies, 0.999));
    let ratio = around.as_secs_f64() / away.as_secs_f64();
    println!(
        "{name}: {} calls, {} expiries\n   \
         99.9th percentile around an expiry {}, away from it {}: ratio {ratio:.2}\n   \
         calls that waited for a token: {}",
        run.samples.len(),
        run.expiries.len(),
        milliseconds(around),
        milliseconds(away),
        run.samples.iter().filter(|sample| sample.waited).count(),
    );
    ratio
}

fn percentile(mut latencies: Vec<Duration>, share: f64) -> Duration {
    latencies.sort_unstable();
    let rank = (latencies.len() as f64 * share) as usize;
    latencies.get(rank).copied().unwrap_or_default()
}
