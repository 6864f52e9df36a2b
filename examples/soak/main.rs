//! A long run with many callers, real sockets, and two servers that inject all kinds of faults.
//! Every failed call must be explained by a fault.
//!
//! ```text
//! cargo run --release --example soak -- [seconds] [seed]
//! ```
//!
//! Exits non-zero if a call hung or failed for another reason, if tasks or memory leaked, or if two
//! token requests were under way at the same time.

mod callers;
mod outcomes;
mod servers;

use std::{process::ExitCode, sync::Arc, time::Duration};

use callers::Caller;
use outcomes::Outcomes;
use servers::Servers;
use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tower_client_credentials::BoxError;

const CALLERS: u64 = 256;

/// The memory that allocators and pools may add after the warm-up.
const MEMORY_ALLOWANCE: u64 = 32 * 1024 * 1024;

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().map_or(Ok(60), |text| text.parse())?;
    let seed = arguments
        .next()
        .map_or(Ok(fastrand::u64(..)), |text| text.parse())?;
    println!("{CALLERS} callers for {seconds} s, seed {seed}\n");

    let servers = Arc::new(Servers::start(seed).await?);
    let (outcomes, memory) = soak(&servers, Duration::from_secs(seconds), seed).await?;
    let actions = servers.actions();
    let token_requests = servers.token_requests();
    let concurrent_token_requests = servers.max_concurrent_token_requests();
    let without_token = servers.without_valid_token();
    drop(servers);
    let tasks = tasks_left().await;

    println!("{outcomes}");
    for ((server, action), times) in actions {
        println!("{times:>8}  by the {server}: {action}");
    }
    println!("\n{without_token:>8}  requests without a valid token");
    println!("{tasks:>8}  tasks left");
    println!("{memory}");
    let problems = [
        outcomes.problem(),
        (tasks > 0).then(|| format!("{tasks} tasks are left")),
        memory.problem(),
        servers::too_many_token_requests(token_requests, seconds),
        servers::concurrent_token_requests(concurrent_token_requests),
        servers::late_refreshes(without_token, token_requests, seconds),
    ];
    let mut exit_code = ExitCode::SUCCESS;
    for problem in problems.into_iter().flatten() {
        println!("FAILED: {problem}");
        exit_code = ExitCode::FAILURE;
    }
    Ok(exit_code)
}

/// Runs all callers for the given time and collects the outcomes of their calls.
async fn soak(
    servers: &Arc<Servers>,
    time: Duration,
    seed: u64,
) -> Result<(Outcomes, Memory), BoxError> {
    let first = Caller::new(Arc::clone(servers))?;
    let ends_at = Instant::now() + time;
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let caller = first.clone();
        callers.spawn(caller.call_until(ends_at, seed.wrapping_add(number)));
    }

    // Connections, buffers and tables have reached their size by then.
    sleep(time / 4).await;
    let warmed_up = resident_memory();
    let mut outcomes = Outcomes::default();
    while let Some(calls) = callers.join_next().await {
        outcomes.add(calls?);
    }
    let ended = resident_memory();
    Ok((outcomes, Memory { warmed_up, ended }))
}

/// Returns the number of tasks that do not end within a few seconds.
async fn tasks_left() -> usize {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let all_end = async {
        while tasks() > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let _ = timeout(Duration::from_secs(5), all_end).await;
    tasks()
}

/// Resident memory in bytes, if the system reports it.
struct Memory {
    warmed_up: Option<u64>,
    ended: Option<u64>,
}

impl Memory {
    fn problem(&self) -> Option<String> {
        let (warmed_up, ended) = (self.warmed_up?, self.ended?);
        (ended > warmed_up + warmed_up / 2 + MEMORY_ALLOWANCE)
            .then(|| format!("memory grew from {warmed_up} to {ended} bytes"))
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Some(warmed_up), Some(ended)) = (self.warmed_up, self.ended) else {
            return f.write_str("          memory is not reported on this system");
        };
        let mebibytes = |bytes| bytes / 1024 / 1024;
        write!(f, "{:>8}  MiB after the warm-up", mebibytes(warmed_up))?;
        write!(f, "\n{:>8}  MiB at the end", mebibytes(ended))
    }
}

fn resident_memory() -> Option<u64> {
    // Linux counts pages of 4 KiB on nearly every machine. The check compares two counts.
    const PAGE: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * PAGE)
}
