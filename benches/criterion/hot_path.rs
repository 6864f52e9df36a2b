//! The time of a call that finds a fresh token, compared with the alternatives.
//!
//! The budgets count instructions, see the bench `budgets`. This bench reports the times.

use std::time::Duration;

use benches::{Api, HEADERS, OpaqueFuture, Stacks, interleaved, time_calls};
use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};

const CALLS: u64 = 2000;
const ROUNDS: usize = 100;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let stacks = Stacks::new().expect("the tokens are issued");
    for headers in HEADERS {
        let mut group = criterion.benchmark_group(format!("hot path, {headers} headers"));
        let mut bench = Bench(&mut group, headers);
        bench.run("bare leaf", stacks.leaf::<OpaqueFuture>());
        bench.run(
            "AddAuthorization",
            stacks.add_authorization::<OpaqueFuture>(),
        );
        bench.run("NoReplay", stacks.no_replay::<OpaqueFuture>());
        bench.run("Retry, AddAuthorization", stacks.retry::<OpaqueFuture>());
        bench.run("CloneBody", stacks.clone_body::<OpaqueFuture>());
        group.finish();
    }
    for headers in HEADERS {
        print_comparison(&stacks, headers);
    }
    criterion.final_summary();
}

struct Bench<'a, 'b>(&'a mut BenchmarkGroup<'b, WallTime>, usize);

impl Bench<'_, '_> {
    /// Times calls, including the time to build their requests.
    fn run<S: Api>(&mut self, name: &str, mut service: S) {
        let headers = self.1;
        self.0.bench_function(name, |bencher| {
            bencher.iter_custom(|calls| time_calls(&mut service, headers, calls));
        });
    }
}

fn print_comparison(stacks: &Stacks, headers: usize) {
    let mut leaf = stacks.leaf::<OpaqueFuture>();
    let mut add = stacks.add_authorization::<OpaqueFuture>();
    let mut no_replay = stacks.no_replay::<OpaqueFuture>();
    let mut retry = stacks.retry::<OpaqueFuture>();
    let mut clone_body = stacks.clone_body::<OpaqueFuture>();
    let [leaf, add, no_replay, retry, clone_body] = interleaved(
        ROUNDS,
        [
            &mut || time_calls(&mut leaf, headers, CALLS),
            &mut || time_calls(&mut add, headers, CALLS),
            &mut || time_calls(&mut no_replay, headers, CALLS),
            &mut || time_calls(&mut retry, headers, CALLS),
            &mut || time_calls(&mut clone_body, headers, CALLS),
        ],
    )
    .map(|time| time.as_secs_f64() / CALLS as f64 * 1e9);
    let [add, no_replay, retry, clone_body] =
        [add, no_replay, retry, clone_body].map(|time| time - leaf);
    println!(
        "{headers:>2} headers, less the bare leaf: NoReplay {no_replay:.0} ns, AddAuthorization {add:.0} ns\n            \
         CloneBody {clone_body:.0} ns, Retry and AddAuthorization {retry:.0} ns, ratio {:.2}",
        clone_body / retry,
    );
}
