//! 10,000 concurrent calls while the cache has no token; the token endpoint takes 50 ms.

use std::time::Duration;

use benches::{Burst, TOKEN_DELAY, burst_runtime, interleaved, milliseconds};
use criterion::{Criterion, SamplingMode};
use tower::BoxError;

/// Relative to the time of the token request plus that of the same calls with a fresh token.
const BUDGET: f64 = 1.2;

const ROUNDS: usize = 31;

fn main() -> Result<(), BoxError> {
    let mut criterion = Criterion::default().configure_from_args();
    let runtime = burst_runtime()?;
    let cold = || elapsed(runtime.block_on(Burst::cold()));
    let warm = || elapsed(runtime.block_on(Burst::warm()));

    let mut group = criterion.benchmark_group("10,000 concurrent calls");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.bench_function("cold cache", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| cold()).sum());
    });
    group.bench_function("warm cache", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| warm()).sum());
    });
    group.finish();

    let [cold, warm] = interleaved(ROUNDS, [&mut || cold(), &mut || warm()]);
    let ratio = cold.as_secs_f64() / (TOKEN_DELAY + warm).as_secs_f64();
    println!(
        "last of 10,000 calls: cold {}, warm {}, token endpoint {}: ratio {ratio:.2} (budget {BUDGET})",
        milliseconds(cold),
        milliseconds(warm),
        milliseconds(TOKEN_DELAY),
    );
    criterion.final_summary();
    Ok(())
}

fn elapsed(result: Result<Burst, BoxError>) -> Duration {
    result.expect("a token is issued").elapsed
}
