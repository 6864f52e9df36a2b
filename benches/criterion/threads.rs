//! The throughput of two threads relative to that of one. Each thread has its own clone of a
//! service.
//!
//! Needs two idle cores; the ratio of the bare leaf shows how idle they were.

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use benches::{Api, OpaqueFuture, Stacks, median, repeat};
use criterion::{Criterion, SamplingMode, Throughput};
use tower::BoxError;

const HEADERS: usize = 4;
const CALLS: u64 = 50_000;
const RUNS: usize = 5;
const ROUNDS_PER_RUN: usize = 20;

fn main() -> Result<(), BoxError> {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let stacks = Stacks::new()?;
    let leaf = stacks.leaf::<OpaqueFuture>();
    let add = stacks.add_authorization::<OpaqueFuture>();
    let no_replay = stacks.no_replay::<OpaqueFuture>();
    let clone_body = stacks.clone_body::<OpaqueFuture>();
    let candidates: [(&str, &Candidate<'_>); 4] = [
        ("bare leaf", &|threads, calls| time(&leaf, threads, calls)),
        ("AddAuthorization", &|threads, calls| {
            time(&add, threads, calls)
        }),
        ("NoReplay", &|threads, calls| {
            time(&no_replay, threads, calls)
        }),
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

/// Makes a number of calls on each of a number of threads and returns the time that they take.
type Candidate<'a> = dyn Fn(usize, u64) -> Duration + 'a;

fn print_scaling<const N: usize>(candidates: [(&str, &Candidate<'_>); N]) {
    let runs: Vec<_> = (0..RUNS).map(|_| scaling(candidates)).collect();
    println!(
        "Throughput of two threads relative to one; median of {RUNS} runs, lowest and highest:"
    );
    for (index, (name, _)) in candidates.iter().enumerate() {
        let mut ratios: Vec<_> = runs.iter().map(|ratios| ratios[index]).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        let (lowest, highest) = (ratios[0], ratios[RUNS - 1]);
        let median = median(ratios);
        println!("   {name:<18} {median:.2}   ({lowest:.2} to {highest:.2})");
    }
    println!("The bare leaf shares nothing: far below 2, the cores were not idle.");
}

/// Runs the candidates in turn and compares the fastest round of each: the one in which both cores
/// were idle, if there was one.
fn scaling<const N: usize>(candidates: [(&str, &Candidate<'_>); N]) -> [f64; N] {
    let mut fastest = [[Duration::MAX; 2]; N];
    for _ in 0..ROUNDS_PER_RUN {
        for (fastest, (_, candidate)) in fastest.iter_mut().zip(candidates) {
            fastest[0] = fastest[0].min(candidate(1, CALLS));
            fastest[1] = fastest[1].min(candidate(2, CALLS));
        }
    }
    fastest.map(|[one, two]| 2.0 * one.as_secs_f64() / two.as_secs_f64())
}

/// Returns the time from the first call of any thread to the last.
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
