//! 10,000 calls whose token is revoked while they are in flight; the token endpoint takes 50 ms.

use std::time::Duration;

use benches::{Burst, TOKEN_DELAY, burst_runtime, interleaved, milliseconds};
use criterion::{Criterion, SamplingMode};
use tower::BoxError;

const ROUNDS: usize = 11;

fn main() -> Result<(), BoxError> {
    let mut criterion = Criterion::default().configure_from_args();
    let runtime = burst_runtime()?;
    let storm = || {
        let burst = runtime.block_on(Burst::rejected(Duration::ZERO));
        burst.expect("the first token is issued")
    };

    let mut group = criterion.benchmark_group("10,000 calls in flight");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.bench_function("all rejected", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| storm().elapsed).sum());
    });
    group.finish();

    let [elapsed] = interleaved(ROUNDS, [&mut || storm().elapsed]);
    let burst = storm();
    println!(
        "last of 10,000 rejected calls: {}, of which the token endpoint takes {}\n\
         renewals: {} (budget 1); sends of a call, at most: {} (budget 2); calls without a response: {} \
         (budget 0)",
        milliseconds(elapsed),
        milliseconds(TOKEN_DELAY),
        burst.token_requests - 1,
        burst.max_sends,
        burst.unanswered,
    );
    criterion.final_summary();
    Ok(())
}
