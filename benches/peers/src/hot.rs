//! The cost of a call with a fresh token, in time and in instructions.

use std::{
    env,
    hint::black_box,
    process::Command,
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;
use tower::BoxError;

use crate::{
    api::{Api, Nothing, request},
    candidate::Candidate,
    endpoint::{Endpoint, runtime},
    peer::{Bare, Client, Peer},
    scenario::is_served,
};

/// Each candidate takes one turn per round. Turns are short and many, so that a disturbance of the
/// machine affects few of them.
const ROUNDS: usize = 301;
const CALLS_PER_TURN: u32 = 1_000;

/// The difference between the two excludes the instructions before and after the calls.
const COUNTED_CALLS: [u32; 2] = [500, 2_500];

/// The name of the leaf alone on the command line.
const BARE: &str = "bare leaf";

/// Makes calls one after the other.
pub(crate) trait HotLoop {
    fn run(&mut self, runtime: &Runtime, calls: u32);
}

/// A client with a fresh token, and the values that must outlive it.
struct Warm<C, K> {
    client: C,
    _keep_alive: K,
}

impl<C: Client, K> HotLoop for Warm<C, K> {
    fn run(&mut self, runtime: &Runtime, calls: u32) {
        runtime.block_on(async {
            for _ in 0..calls {
                let response = self.client.send(request()).await;
                black_box(response.expect("the token is fresh"));
            }
        });
    }
}

pub(crate) fn warm<P: Peer>(runtime: &Runtime) -> Box<dyn HotLoop> {
    let endpoint = Endpoint::issuing_after(Duration::ZERO);
    let peer = runtime.block_on(P::start(&endpoint));
    let peer = peer.expect("the configuration is valid");

    // A client that sends no token would look fast.
    let mut checked = peer.client(Api::new(0, Duration::ZERO));
    let response = runtime.block_on(checked.send(request()));
    assert!(is_served(&response), "{} sends its token", P::NAME);

    let client = peer.client(Nothing);
    let mut warm = Warm {
        client,
        _keep_alive: (peer, endpoint),
    };
    warm.run(runtime, 100);
    Box::new(warm)
}

fn bare() -> Box<dyn HotLoop> {
    Box::new(Warm {
        client: Bare(Nothing),
        _keep_alive: (),
    })
}

/// Returns the nanoseconds per call, less those of the bare leaf: the median of all rounds.
pub(crate) fn times(candidates: &[Candidate]) -> Vec<f64> {
    let runtime = runtime();
    let mut bare = bare();
    let mut loops: Vec<_> = candidates.iter().map(|it| it.warm(&runtime)).collect();
    let mut turns = vec![Vec::with_capacity(ROUNDS); loops.len()];
    for _ in 0..ROUNDS {
        let bare = turn(bare.as_mut(), &runtime);
        for (hot, turns) in loops.iter_mut().zip(&mut turns) {
            turns.push(turn(hot.as_mut(), &runtime) - bare);
        }
    }
    turns.iter_mut().map(|turns| median(turns)).collect()
}

fn turn(hot: &mut dyn HotLoop, runtime: &Runtime) -> f64 {
    let began = Instant::now();
    hot.run(runtime, CALLS_PER_TURN);
    began.elapsed().as_nanos() as f64 / f64::from(CALLS_PER_TURN)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns the instructions per call, less those of the bare leaf.
///
/// # Errors
///
/// Fails if valgrind is not installed.
pub(crate) fn instructions(candidates: &[Candidate]) -> Result<Vec<f64>, BoxError> {
    let bare = instructions_of(BARE)?;
    candidates
        .iter()
        .map(|it| Ok(instructions_of(it.name)? - bare))
        .collect()
}

fn instructions_of(name: &str) -> Result<f64, BoxError> {
    let [few, many] = COUNTED_CALLS;
    let difference = callgrind(name, many)? - callgrind(name, few)?;
    Ok(difference / f64::from(many - few))
}

/// Runs this program under callgrind for one candidate and returns the instructions of its calls.
fn callgrind(name: &str, calls: u32) -> Result<f64, BoxError> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*hot*counted*")
        .arg(env::current_exe()?)
        .args(["count", name, &calls.to_string()])
        .output()
        .map_err(|error| format!("cannot start valgrind: {error}"))?;
    let report = String::from_utf8_lossy(&output.stderr);
    let collected = report
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .ok_or_else(|| format!("callgrind counted nothing for {name}:\n{report}"))?;
    Ok(collected.1.trim().parse()?)
}

/// Makes the calls that callgrind counts.
pub(crate) fn count(candidates: &[Candidate], name: &str, calls: u32) -> Result<(), BoxError> {
    let runtime = runtime();
    let mut hot = if name == BARE {
        bare()
    } else {
        let candidate = candidates.iter().find(|it| it.name == name);
        candidate.ok_or("no such peer")?.warm(&runtime)
    };
    counted(hot.as_mut(), &runtime, calls);
    Ok(())
}

/// Callgrind counts the instructions of the function with this name.
#[inline(never)]
fn counted(hot: &mut dyn HotLoop, runtime: &Runtime, calls: u32) {
    hot.run(runtime, calls);
    // Prevents a tail call, with which callgrind would not see the function end.
    black_box(calls);
}
