//! A peer without its types, so that all of them fit into one list.

use tokio::runtime::Runtime;

use crate::{
    hot::{self, HotLoop},
    peer::Peer,
    scenario::{self, Outcome, Scenario, Unsupported},
};

pub(crate) struct Candidate {
    pub(crate) name: &'static str,
    pub(crate) ours: bool,
    pub(crate) replays: bool,
    warm: fn(&Runtime) -> Box<dyn HotLoop>,
    run: fn(Scenario) -> Result<Outcome, Unsupported>,
}

impl Candidate {
    pub(crate) fn of<P: Peer>() -> Self {
        Self {
            name: P::NAME,
            ours: P::OURS,
            replays: P::REPLAYS,
            warm: hot::warm::<P>,
            run: scenario::run::<P>,
        }
    }

    /// A client with a fresh token around a leaf that does nothing.
    pub(crate) fn warm(&self, runtime: &Runtime) -> Box<dyn HotLoop> {
        (self.warm)(runtime)
    }

    pub(crate) fn run(&self, scenario: Scenario) -> Result<Outcome, Unsupported> {
        (self.run)(scenario)
    }
}
