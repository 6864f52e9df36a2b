//! What was measured as plain tables, and whether this crate is ahead.

use std::array;

use tower::BoxError;

use crate::{
    contest::Contestant,
    crowd::{Cannot, Tally, Work},
};

/// In the order of the contestants.
pub(crate) struct Results {
    pub(crate) contestants: Vec<Contestant>,
    /// Nanoseconds for each call with a token at hand, less the bare leaf.
    pub(crate) times: Vec<f64>,
    /// Instructions, likewise.
    pub(crate) instructions: Result<Vec<f64>, BoxError>,
    /// In the order of [`Work::ALL`].
    pub(crate) crowds: [Vec<Result<Tally, Cannot>>; Work::ALL.len()],
}

impl Results {
    /// What the hot path is judged by: instructions do not depend on the machine.
    fn costs(&self) -> (&'static str, &[f64]) {
        match &self.instructions {
            Ok(instructions) => ("instructions", instructions),
            Err(_) => ("time", &self.times),
        }
    }

    /// Where this crate stands that keeps requests, or not, as the peer does.
    pub(crate) fn counterpart(&self, keeps_requests: bool) -> usize {
        self.contestants
            .iter()
            .position(|one| one.ours && one.keeps_requests == keeps_requests)
            .expect("this crate takes part with and without a second send")
    }

    /// Those that take part in a work, and how they did.
    fn tallies(&self, work: Work) -> impl Iterator<Item = (&Contestant, &Tally)> {
        let tallies = &self.crowds[work as usize];
        let all = self.contestants.iter().zip(tallies);
        all.filter_map(|(one, tally)| Some((one, tally.as_ref().ok()?)))
    }
}

pub(crate) fn print(results: &Results) {
    print_hot_path(results);
    for work in Work::ALL {
        print_crowd(results, work);
    }
}

fn print_hot_path(results: &Results) {
    println!(
        "Hot path\n\n\
         A token of 800 bytes that is there, put on a request with 4 headers and a body,\n\
         less what the bare leaf takes. Medians; ratios are to this crate with `NoReplay`.\n"
    );
    let own = results.counterpart(false);
    let columns = |costs: &[f64], index: usize| {
        [
            format!("{:.0}", costs[index]),
            format!("{:.2}", costs[index] / costs[own]),
        ]
    };
    row("", &["ns", "ratio", "instructions", "ratio"]);
    for (index, one) in results.contestants.iter().enumerate() {
        let [time, slower] = columns(&results.times, index);
        let [count, more] = match &results.instructions {
            Ok(instructions) => columns(instructions, index),
            Err(_) => array::from_fn(|_| "-".to_owned()),
        };
        row(one.name, &[time, slower, count, more]);
    }
    if let Err(why) = &results.instructions {
        println!("\n   Instructions are not counted: {why}");
    }
}

fn print_crowd(results: &Results, work: Work) {
    println!("\n\n{}\n\n{}\n", work.name(), work.words());
    row("", &["token requests", "served", "last done"]);
    for (one, tally) in results
        .contestants
        .iter()
        .zip(&results.crowds[work as usize])
    {
        match tally {
            Ok(tally) => {
                let requests = tally.token_requests.to_string();
                let [served, callers] = [tally.served, tally.callers].map(thousands);
                let served = format!("{served} of {callers}");
                let last = format!("{} ms", tally.last.as_millis());
                row(one.name, &[requests, served, last]);
            }
            Err(why) => println!("   {:<23} cannot: {why}", one.name),
        }
    }
}

/// With commas; there are no millions here.
pub(crate) fn thousands(number: usize) -> String {
    match (number / 1_000, number % 1_000) {
        (0, rest) => rest.to_string(),
        (thousands, rest) => format!("{thousands},{rest:03}"),
    }
}

fn row(name: &str, cells: &[impl AsRef<str>]) {
    let cells = cells.iter().map(|cell| format!("{:>15}", cell.as_ref()));
    println!("   {name:<23}{}", cells.collect::<String>());
}

/// Says where this crate is ahead; `false` if it has to be somewhere and is not.
pub(crate) fn check(results: &Results) -> bool {
    println!("\n\nIn words\n");
    let hot_path = check_hot_path(results);
    let crowds = Work::ALL.map(|work| check_crowd(results, work));
    hot_path && crowds.iter().all(|holds| *holds)
}

fn check_hot_path(results: &Results) -> bool {
    let (unit, costs) = results.costs();
    let mut all_hold = true;
    for (index, peer) in results.contestants.iter().enumerate() {
        if peer.ours {
            continue;
        }
        let own = results.counterpart(peer.keeps_requests);
        let words = |costs: &[f64], unit| {
            format!(
                "Hot path: {} takes {:.2} times the {unit} of {}.",
                results.contestants[own].name,
                costs[own] / costs[index],
                peer.name,
            )
        };
        all_hold &= claim(costs[own] < costs[index], &words(costs, unit));
        // Instructions do not tell what an atomic operation or a look at the clock takes; time does,
        // on this machine.
        if results.instructions.is_ok() && results.times[own] >= results.times[index] {
            remark(&words(&results.times, "time"));
        }
    }
    all_hold
}

fn check_crowd(results: &Results, work: Work) -> bool {
    let requests = |ours: bool| {
        let tallies = results.tallies(work);
        let side = tallies.filter(move |(one, _)| one.ours == ours);
        side.map(|(_, tally)| tally.token_requests)
    };
    let most = requests(true).max().unwrap_or(0);
    let fewest = requests(false).min().unwrap_or(0);
    let words = format!(
        "{}: token requests of this crate: {most}; of the best peer: {fewest}.",
        work.name()
    );
    if work == Work::Outage {
        // Whether to try again after a failure is a choice, and each peer has its own.
        remark(&words);
        return true;
    }
    let mut ours = results.tallies(work).filter(|(one, _)| one.ours);
    let all_served = ours.all(|(_, tally)| tally.served == tally.callers);
    claim(all_served && most <= fewest, &words)
}

fn claim(holds: bool, words: &str) -> bool {
    println!("   {}  {words}", if holds { "ok" } else { "!!" });
    holds
}

/// Worth knowing, and nothing to be judged by.
fn remark(words: &str) {
    println!("   --  {words}");
}
