//! Many callers, real sockets, and two servers that fail in every way they can; nothing may be lost.
//!
//! ```text
//! cargo run --release --example soak -- [seconds] [seed]
//! ```
//!
//! Ends with a non-zero status if a call hung, came to something that was not injected, left a task
//! or memory behind, or if the token endpoint was asked twice at a time.

mod account;
mod callers;
mod servers;

use std::{process::ExitCode, sync::Arc, time::Duration};

use account::Account;
use callers::Caller;
use servers::Servers;
use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tower_client_credentials::BoxError;

const CALLERS: u64 = 256;

/// What allocators and pools may keep, beyond what is there when all of it has run for a while.
const SPARE_MEMORY: u64 = 32 * 1024 * 1024;

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().map_or(Ok(60), |text| text.parse())?;
    let seed = arguments
        .next()
        .map_or(Ok(fastrand::u64(..)), |text| text.parse())?;
    println!("{CALLERS} callers for {seconds} s, seed {seed}");

    let servers = Arc::new(Servers::start(seed).await?);
    let (account, memory) = soak(&servers, Duration::from_secs(seconds), seed).await?;
    let token_requests = servers.token_requests();
    let most_at_a_time = servers.most_token_requests();
    let without_token = servers.without_token();
    drop(servers);
    let tasks = tasks_left().await;

    let complaints = [
        account.complaints(),
        (tasks > 0).then(|| format!("{tasks} tasks are left")),
        memory.complaint(),
        servers::storm(token_requests, seconds),
        servers::crowd(most_at_a_time),
        servers::neglect(without_token, token_requests, seconds),
    ];
    println!("{account}");
    println!("{without_token:>8}  requests with a token that had ended");
    println!("{:>8}  tasks left", tasks);
    println!("{memory}");
    let mut exit = ExitCode::SUCCESS;
    for complaint in complaints.into_iter().flatten() {
        println!("does not add up: {complaint}");
        exit = ExitCode::FAILURE;
    }
    Ok(exit)
}

/// Lets all callers call until the time is over, and adds up what their calls came to.
async fn soak(
    servers: &Arc<Servers>,
    time: Duration,
    seed: u64,
) -> Result<(Account, Memory), BoxError> {
    let first = Caller::new(Arc::clone(servers))?;
    let ends_at = Instant::now() + time;
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let caller = first.clone();
        callers.spawn(caller.call_until(ends_at, seed.wrapping_add(number)));
    }

    // Connections, buffers and tables have the size that they need by then.
    sleep(time / 4).await;
    let warmed_up = resident_memory();
    let mut account = Account::default();
    while let Some(calls) = callers.join_next().await {
        account.add(calls?);
    }
    account.note_injected(servers.injected());
    let ended = resident_memory();
    Ok((account, Memory { warmed_up, ended }))
}

/// How many tasks are there once everything was dropped and had a moment to notice.
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

/// Resident memory in bytes, where the system tells.
struct Memory {
    warmed_up: Option<u64>,
    ended: Option<u64>,
}

impl Memory {
    fn complaint(&self) -> Option<String> {
        let (warmed_up, ended) = (self.warmed_up?, self.ended?);
        (ended > warmed_up + warmed_up / 2 + SPARE_MEMORY)
            .then(|| format!("memory grew from {warmed_up} to {ended} bytes"))
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Some(warmed_up), Some(ended)) = (self.warmed_up, self.ended) else {
            return f.write_str("          memory is not known on this system");
        };
        let mebibytes = |bytes| bytes / 1024 / 1024;
        write!(f, "{:>8}  MiB after warm-up", mebibytes(warmed_up))?;
        write!(f, "\n{:>8}  MiB at the end", mebibytes(ended))
    }
}

fn resident_memory() -> Option<u64> {
    // Linux counts in pages, of 4 KiB nearly everywhere; the bound is a comparison of two counts.
    const PAGE: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * PAGE)
}
