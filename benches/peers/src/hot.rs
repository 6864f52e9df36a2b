//! What a call costs when the token is there: in time, and in instructions.

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
    contest::Contestant,
    crowd::is_served,
    endpoint::{Endpoint, runtime},
    peer::{Bare, Client, Peer},
};

/// Every contestant has one turn in each round. Many short ones: where the machine is busy with
/// something else, that hits few of them.
const ROUNDS: usize = 301;
const CALLS_PER_TURN: u32 = 1_000;

/// Two lengths, as their difference leaves out what comes before and after the calls.
const COUNTED_CALLS: [u32; 2] = [500, 2_500];

/// How the leaf by itself is called on the command line.
const BARE: &str = "bare leaf";

/// Calls on a current-thread runtime, one after the other.
pub(crate) trait HotLoop {
    fn run(&mut self, runtime: &Runtime, calls: u32);
}

/// A client with a token, and what keeps it alive.
struct Warm<C, K> {
    client: C,
    _kept: K,
}

impl<C: Client, K> HotLoop for Warm<C, K> {
    fn run(&mut self, runtime: &Runtime, calls: u32) {
        runtime.block_on(async {
            for _ in 0..calls {
                let response = self.client.send(request()).await;
                black_box(response.expect("the token is there"));
            }
        });
    }
}

pub(crate) fn warm<P: Peer>(runtime: &Runtime) -> Box<dyn HotLoop> {
    let endpoint = Endpoint::issuing_after(Duration::ZERO);
    let peer = runtime.block_on(P::start(&endpoint));
    let peer = peer.expect("the peer is set up right");

    // What sends no token is fast.
    let mut checked = peer.client(Api::new(0, Duration::ZERO));
    let answer = runtime.block_on(checked.send(request()));
    assert!(is_served(&answer), "{} sends its token", P::NAME);

    let client = peer.client(Nothing);
    let mut warm = Warm {
        client,
        _kept: (peer, endpoint),
    };
    warm.run(runtime, 100);
    Box::new(warm)
}

fn bare() -> Box<dyn HotLoop> {
    Box::new(Warm {
        client: Bare(Nothing),
        _kept: (),
    })
}

/// Nanoseconds for each call, less those of the bare leaf: the median of all rounds.
pub(crate) fn times(contestants: &[Contestant]) -> Vec<f64> {
    let runtime = runtime();
    let mut bare = bare();
    let mut loops: Vec<_> = contestants.iter().map(|one| one.warm(&runtime)).collect();
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

/// Instructions for each call, less those of the bare leaf.
///
/// # Errors
///
/// Fails where there is no valgrind.
pub(crate) fn instructions(contestants: &[Contestant]) -> Result<Vec<f64>, BoxError> {
    let bare = instructions_of(BARE)?;
    contestants
        .iter()
        .map(|one| Ok(instructions_of(one.name)? - bare))
        .collect()
}

fn instructions_of(name: &str) -> Result<f64, BoxError> {
    let [few, many] = COUNTED_CALLS;
    let difference = callgrind(name, many)? - callgrind(name, few)?;
    Ok(difference / f64::from(many - few))
}

/// Runs this program under callgrind, for the calls of one contestant.
fn callgrind(name: &str, calls: u32) -> Result<f64, BoxError> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*hot*counted*")
        .arg(env::current_exe()?)
        .args(["count", name, &calls.to_string()])
        .output()
        .map_err(|error| format!("valgrind cannot be started: {error}"))?;
    let report = String::from_utf8_lossy(&output.stderr);
    let collected = report
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .ok_or_else(|| format!("callgrind says nothing of {name}:\n{report}"))?;
    Ok(collected.1.trim().parse()?)
}

/// What callgrind looks at.
pub(crate) fn count(contestants: &[Contestant], name: &str, calls: u32) -> Result<(), BoxError> {
    let runtime = runtime();
    let mut hot = if name == BARE {
        bare()
    } else {
        let contestant = contestants.iter().find(|one| one.name == name);
        contestant.ok_or("no such peer")?.warm(&runtime)
    };
    counted(hot.as_mut(), &runtime, calls);
    Ok(())
}

/// Callgrind knows it by its name: it counts from where this begins to where it ends.
#[inline(never)]
fn counted(hot: &mut dyn HotLoop, runtime: &Runtime, calls: u32) {
    hot.run(runtime, calls);
    // Something after the call, or it becomes a jump and the count has no end.
    black_box(calls);
}
