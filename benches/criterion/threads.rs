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
/// Some 20 ms: services of the layer share what their clones have in the first of them only.
const CALLS: u64 = 50_000;
const ROUNDS: usize = 100;

fn main() -> Result<(), BoxError> {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let stacks = Stacks::new()?;
    let leaf = stacks.leaf::<OpaqueAnswer>();
    let add = stacks.add_authorization::<OpaqueAnswer>();
    let never = stacks.never::<OpaqueAnswer>();
    let clone_body = stacks.clone_body::<OpaqueAnswer>();
    let candidates: [(&str, &Candidate<'_>); 4] = [
        ("bare leaf", &|threads, calls| time(&leaf, threads, calls)),
        ("AddAuthorization", &|threads, calls| {
            time(&add, threads, calls)
        }),
        ("Never", &|threads, calls| time(&never, threads, calls)),
        ("CloneBody", &|threads, calls| {
            time(&clone_body, threads, calls)
        }),
    ];
    for (name, candidate) in candidates {
        let mut group = criterion.benchmark_group(format!("threads, {name}"));
        group.sampling_mode(SamplingMode::Flat).sample_size(20);
        for threads in [1, 2] {
            group.throughput(Throughput::Elements(threads as u64));
            group.bench_function(threads.to_string(), |bencher| {
                bencher.iter_custom(|calls| candidate(threads, calls));
            });
        }
        group.finish();
    }
    print_scaling(candidates);
    criterion.final_summary();
    Ok(())
}

/// Makes so many calls on each of so many threads, and says how long that took.
type Candidate<'a> = dyn Fn(usize, u64) -> Duration + 'a;

/// Runs all in turn, in rounds, and compares the fastest of each: that is when both cores were
/// free, if they ever were.
fn print_scaling<const N: usize>(candidates: [(&str, &Candidate<'_>); N]) {
    let mut fastest = [[Duration::MAX; 2]; N];
    for _ in 0..ROUNDS {
        for (fastest, (_, candidate)) in fastest.iter_mut().zip(candidates) {
            fastest[0] = fastest[0].min(candidate(1, CALLS));
            fastest[1] = fastest[1].min(candidate(2, CALLS));
        }
    }
    println!("Two threads have so many times the throughput of one (budget {BUDGET}):");
    for ([one, two], (name, _)) in fastest.into_iter().zip(candidates) {
        let ratio = 2.0 * one.as_secs_f64() / two.as_secs_f64();
        println!("   {name:<18} {ratio:.2}");
    }
    println!("The bare leaf shares nothing: where it is far below 2, the cores were not free.");
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
