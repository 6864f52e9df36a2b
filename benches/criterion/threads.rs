//! The throughput of two threads beside that of one, on clones of one service.
//!
//! Needs two cores that are free; the bare leaf says how free they were.

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use benches::{Api, OpaqueAnswer, Stacks, repeat};
use criterion::{Criterion, SamplingMode, Throughput};
use tower::BoxError;

/// How many times the throughput of one thread.
const BUDGET: f64 = 1.8;

const HEADERS: usize = 4;
const CALLS: u64 = 5_000;
const ROUNDS: usize = 1000;

fn main() -> Result<(), BoxError> {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let stacks = Stacks::new()?;
    run(
        &mut criterion,
        "bare leaf",
        "",
        &stacks.leaf::<OpaqueAnswer>(),
    );
    let add = stacks.add_authorization::<OpaqueAnswer>();
    run(&mut criterion, "AddAuthorization", "", &add);
    let budget = format!(" (budget {BUDGET})");
    run(
        &mut criterion,
        "Never",
        &budget,
        &stacks.never::<OpaqueAnswer>(),
    );
    let clone_body = stacks.clone_body::<OpaqueAnswer>();
    run(&mut criterion, "CloneBody", &budget, &clone_body);
    criterion.final_summary();
    Ok(())
}

fn run<S: Api + Clone + Send>(criterion: &mut Criterion, name: &str, budget: &str, service: &S) {
    let mut group = criterion.benchmark_group(format!("threads, {name}"));
    group.sampling_mode(SamplingMode::Flat).sample_size(20);
    for threads in [1, 2] {
        group.throughput(Throughput::Elements(threads as u64));
        group.bench_function(threads.to_string(), |bencher| {
            bencher.iter_custom(|calls| time(service, threads, calls));
        });
    }
    group.finish();

    let [one, two] = fastest(&[1, 2].map(|threads| move || time(service, threads, CALLS)));
    let ratio = 2.0 * one.as_secs_f64() / two.as_secs_f64();
    println!("{name}: two threads have {ratio:.2} times the throughput of one{budget}");
}

/// Runs the two in turn and gives the fastest of each: that is when the cores were free.
fn fastest(candidates: &[impl Fn() -> Duration; 2]) -> [Duration; 2] {
    let mut fastest = [Duration::MAX; 2];
    for _ in 0..ROUNDS {
        for (fastest, candidate) in fastest.iter_mut().zip(candidates) {
            *fastest = candidate().min(*fastest);
        }
    }
    fastest
}

/// From the first call of either thread to the last; each makes so many on a clone of its own.
fn time<S: Api + Clone + Send>(service: &S, threads: usize, calls: u64) -> Duration {
    let ready = Barrier::new(threads);
    let run = |mut service: S| {
        ready.wait();
        let started = Instant::now();
        repeat(&mut service, HEADERS, calls);
        (started, Instant::now())
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|_| {
                let service = service.clone();
                scope.spawn(|| run(service))
            })
            .collect();
        let times = running
            .into_iter()
            .map(|thread| thread.join().expect("no call fails"));
        let (started, ended): (Vec<_>, Vec<_>) = times.unzip();
        let first = started.into_iter().min();
        let last = ended.into_iter().max();
        first
            .zip(last)
            .map(|(first, last)| last - first)
            .unwrap_or_default()
    })
}
