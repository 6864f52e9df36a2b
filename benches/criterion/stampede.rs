//! 10,000 calls at once on a cold cache, whose token endpoint takes 50 ms.

use std::time::Duration;

use benches::{Crowd, ENDPOINT, crowd_runtime, interleaved, milliseconds};
use criterion::{Criterion, SamplingMode};
use tower::BoxError;

/// Of the endpoint's time and that of the same calls on a warm cache.
const BUDGET: f64 = 1.2;

const ROUNDS: usize = 31;

fn main() -> Result<(), BoxError> {
    let mut criterion = Criterion::default().configure_from_args();
    let runtime = crowd_runtime()?;
    let cold = || runtime.block_on(Crowd::stampede()).map(|crowd| crowd.took);
    let warm = || runtime.block_on(Crowd::warm()).map(|crowd| crowd.took);

    let mut group = criterion.benchmark_group("10,000 calls at once");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.bench_function("cold cache", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| took(cold())).sum());
    });
    group.bench_function("warm cache", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| took(warm())).sum());
    });
    group.finish();

    let [cold, warm] = interleaved(ROUNDS, [&mut || took(cold()), &mut || took(warm())]);
    let ratio = cold.as_secs_f64() / (ENDPOINT + warm).as_secs_f64();
    println!(
        "last of 10,000 calls: cold {}, warm {}, token endpoint {}: ratio {ratio:.2} (budget {BUDGET})",
        milliseconds(cold),
        milliseconds(warm),
        milliseconds(ENDPOINT),
    );
    criterion.final_summary();
    Ok(())
}

fn took(result: Result<Duration, BoxError>) -> Duration {
    result.expect("every call is answered")
}
