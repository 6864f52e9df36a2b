//! A peer without its types, so that all can stand in one list.

use tokio::runtime::Runtime;

use crate::{
    crowd::{self, Cannot, Tally, Work},
    hot::{self, HotLoop},
    peer::Peer,
};

pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    pub(crate) ours: bool,
    pub(crate) keeps_requests: bool,
    warm: fn(&Runtime) -> Box<dyn HotLoop>,
    crowd: fn(Work) -> Result<Tally, Cannot>,
}

impl Contestant {
    pub(crate) fn of<P: Peer>() -> Self {
        Self {
            name: P::NAME,
            ours: P::OURS,
            keeps_requests: P::KEEPS_REQUESTS,
            warm: hot::warm::<P>,
            crowd: crowd::run::<P>,
        }
    }

    /// With a token at hand, around a leaf that does nothing.
    pub(crate) fn warm(&self, runtime: &Runtime) -> Box<dyn HotLoop> {
        (self.warm)(runtime)
    }

    pub(crate) fn run(&self, work: Work) -> Result<Tally, Cannot> {
        (self.crowd)(work)
    }
}
