//! How long a call takes on the hot path, beside what it is compared with.
//!
//! The budgets are of instructions, see the bench `budgets`; here the times are set beside them.

use std::time::Duration;

use benches::{Api, HEADERS, OpaqueAnswer, Stacks, interleaved, time_calls};
use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};

const CALLS: u64 = 2000;
const ROUNDS: usize = 100;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let stacks = Stacks::new().expect("the tokens are there");
    for headers in HEADERS {
        let mut group = criterion.benchmark_group(format!("hot path, {headers} headers"));
        let mut bench = Bench(&mut group, headers);
        bench.run("bare leaf", stacks.leaf::<OpaqueAnswer>());
        bench.run(
            "AddAuthorization",
            stacks.add_authorization::<OpaqueAnswer>(),
        );
        bench.run("Never", stacks.never::<OpaqueAnswer>());
        bench.run("Retry, AddAuthorization", stacks.retry::<OpaqueAnswer>());
        bench.run("CloneBody", stacks.clone_body::<OpaqueAnswer>());
        group.finish();
    }
    for headers in HEADERS {
        print_ratios(&stacks, headers);
    }
    criterion.final_summary();
}

struct Bench<'a, 'b>(&'a mut BenchmarkGroup<'b, WallTime>, usize);

impl Bench<'_, '_> {
    /// Times calls, the making of their requests included.
    fn run<S: Api>(&mut self, name: &str, mut service: S) {
        let headers = self.1;
        self.0.bench_function(name, |bencher| {
            bencher.iter_custom(|calls| time_calls(&mut service, headers, calls));
        });
    }
}

fn print_ratios(stacks: &Stacks, headers: usize) {
    let mut leaf = stacks.leaf::<OpaqueAnswer>();
    let mut add = stacks.add_authorization::<OpaqueAnswer>();
    let mut never = stacks.never::<OpaqueAnswer>();
    let mut retry = stacks.retry::<OpaqueAnswer>();
    let mut clone_body = stacks.clone_body::<OpaqueAnswer>();
    let [leaf, add, never, retry, clone_body] = interleaved(
        ROUNDS,
        [
            &mut || time_calls(&mut leaf, headers, CALLS),
            &mut || time_calls(&mut add, headers, CALLS),
            &mut || time_calls(&mut never, headers, CALLS),
            &mut || time_calls(&mut retry, headers, CALLS),
            &mut || time_calls(&mut clone_body, headers, CALLS),
        ],
    )
    .map(|time| time.as_secs_f64() / CALLS as f64 * 1e9);
    let [add, never, retry, clone_body] = [add, never, retry, clone_body].map(|time| time - leaf);
    println!(
        "{headers:>2} headers, less the bare leaf: NoReplay {never:.0} ns to {add:.0} ns, ratio {:.2} (budget, \
         of instructions: 1.25)\n            CloneBody {clone_body:.0} ns to {retry:.0} ns, ratio {:.2} (budget, \
         of instructions: 1.00)",
        never / add,
        clone_body / retry,
    );
}
