//! Prints the figures as tables and checks that no peer is ahead.

use crate::{
    candidate::Candidate,
    scenario::{Outcome, Scenario, Unsupported},
};

/// All lists have the order of the candidates.
pub(crate) struct Results {
    pub(crate) candidates: Vec<Candidate>,
    /// Nanoseconds per call with a fresh token, less those of the bare leaf.
    pub(crate) times: Vec<f64>,
    /// Instructions per call with a fresh token, less those of the bare leaf.
    pub(crate) instructions: Vec<f64>,
    /// In the order of [`Scenario::ALL`].
    pub(crate) outcomes: [Vec<Result<Outcome, Unsupported>>; Scenario::ALL.len()],
}

impl Results {
    /// The place of this crate's layer with or without replays.
    pub(crate) fn counterpart(&self, replays: bool) -> usize {
        self.candidates
            .iter()
            .position(|it| it.ours && it.replays == replays)
            .expect("this crate takes part with and without replays")
    }

    /// The outcomes of all candidates that support the scenario.
    fn outcomes(&self, scenario: Scenario) -> impl Iterator<Item = (&Candidate, &Outcome)> {
        let outcomes = &self.outcomes[scenario as usize];
        let all = self.candidates.iter().zip(outcomes);
        all.filter_map(|(candidate, outcome)| Some((candidate, outcome.as_ref().ok()?)))
    }
}

pub(crate) fn print(results: &Results) {
    print_hot_path(results);
    for scenario in Scenario::ALL {
        print_scenario(results, scenario);
    }
}

fn print_hot_path(results: &Results) {
    println!(
        "Hot path\n\n\
         A fresh token of 800 bytes is added to a request with 4 headers and a body; less the bare leaf.\n\
         Times are medians; ratios are relative to this crate with `NoReplay`.\n"
    );
    let own = results.counterpart(false);
    let columns = |costs: &[f64], index: usize| {
        [
            format!("{:.0}", costs[index]),
            format!("{:.2}", costs[index] / costs[own]),
        ]
    };
    row("", &["ns", "ratio", "instructions", "ratio"]);
    for (index, candidate) in results.candidates.iter().enumerate() {
        let [time, time_ratio] = columns(&results.times, index);
        let [count, count_ratio] = columns(&results.instructions, index);
        row(candidate.name, &[time, time_ratio, count, count_ratio]);
    }
}

fn print_scenario(results: &Results, scenario: Scenario) {
    println!("\n\n{}\n\n{}\n", scenario.name(), scenario.description());
    row("", &["token requests", "served", "last done"]);
    for (candidate, outcome) in results
        .candidates
        .iter()
        .zip(&results.outcomes[scenario as usize])
    {
        match outcome {
            Ok(outcome) => {
                let requests = outcome.token_requests.to_string();
                let [served, callers] = [outcome.served, outcome.callers].map(thousands);
                let served = format!("{served} of {callers}");
                let elapsed = format!("{} ms", outcome.elapsed.as_millis());
                row(candidate.name, &[requests, served, elapsed]);
            }
            Err(reason) => println!("   {:<23} not measured: {reason}", candidate.name),
        }
    }
}

/// Formats a number below one million with a comma.
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

/// Compares this crate with each peer. Returns `false` if a peer is ahead where none may be.
pub(crate) fn check(results: &Results) -> bool {
    println!("\n\nChecks\n");
    let hot_path = check_hot_path(results);
    let scenarios = Scenario::ALL.map(|scenario| check_scenario(results, scenario));
    hot_path && scenarios.iter().all(|holds| *holds)
}

/// Compares layers that replay with each other, and all other candidates with each other.
fn check_hot_path(results: &Results) -> bool {
    let mut all_hold = true;
    for (index, peer) in results.candidates.iter().enumerate() {
        if peer.ours {
            continue;
        }
        let own = results.counterpart(peer.replays);
        let describe = |costs: &[f64], unit| {
            format!(
                "Hot path: {} takes {:.2} times the {unit} of {}.",
                results.candidates[own].name,
                costs[own] / costs[index],
                peer.name,
            )
        };
        let [ours, theirs] = [own, index].map(|index| results.instructions[index]);
        all_hold &= check_that(
            ours < theirs,
            &describe(&results.instructions, "instructions"),
        );
        // Times depend on the machine, but show the cost of atomic operations and of reading a
        // clock.
        if results.times[own] >= results.times[index] {
            note(&describe(&results.times, "time"));
        }
    }
    all_hold
}

fn check_scenario(results: &Results, scenario: Scenario) -> bool {
    let requests = |ours: bool| {
        let outcomes = results.outcomes(scenario);
        let side = outcomes.filter(move |(candidate, _)| candidate.ours == ours);
        side.map(|(_, outcome)| outcome.token_requests)
    };
    let most = requests(true).max().unwrap_or(0);
    let fewest = requests(false).min().unwrap_or(0);
    let description = format!(
        "{}: token requests of this crate: {most}; of the best peer: {fewest}.",
        scenario.name()
    );
    if scenario == Scenario::Outage {
        // The number of attempts after a failure is a design choice.
        note(&description);
        return true;
    }
    let mut ours = results
        .outcomes(scenario)
        .filter(|(candidate, _)| candidate.ours);
    let all_served = ours.all(|(_, outcome)| outcome.served == outcome.callers);
    check_that(all_served && most <= fewest, &description)
}

fn check_that(holds: bool, description: &str) -> bool {
    println!("   {}  {description}", if holds { "ok" } else { "!!" });
    holds
}

/// Prints something that is worth knowing but not checked.
fn note(description: &str) {
    println!("   --  {description}");
}
