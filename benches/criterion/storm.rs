//! 10,000 calls in flight whose token is revoked; the token endpoint takes 50 ms.

use std::time::Duration;

use benches::{Crowd, ENDPOINT, crowd_runtime, interleaved, milliseconds};
use criterion::{Criterion, SamplingMode};
use tower::BoxError;

const ROUNDS: usize = 11;

fn main() -> Result<(), BoxError> {
    let mut criterion = Criterion::default().configure_from_args();
    let runtime = crowd_runtime()?;
    let storm = || {
        let crowd = runtime.block_on(Crowd::storm(Duration::ZERO));
        crowd.expect("the storm begins")
    };

    let mut group = criterion.benchmark_group("10,000 calls in flight");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.bench_function("all rejected", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| storm().took).sum());
    });
    group.finish();

    let [took] = interleaved(ROUNDS, [&mut || storm().took]);
    let crowd = storm();
    println!(
        "last of 10,000 rejected calls: {}, of which the token endpoint {}\n\
         renewals {} (budget 1), sends of a call at most {} (budget 2), without an answer {} (budget 0)",
        milliseconds(took),
        milliseconds(ENDPOINT),
        crowd.token_requests - 1,
        crowd.most_sends,
        crowd.unanswered,
    );
    criterion.final_summary();
    Ok(())
}
