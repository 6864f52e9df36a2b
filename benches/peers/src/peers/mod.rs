//! The peers, one file each: setup, calls, and limits.

mod aliri;
mod aws_smithy;
mod cf_gears;
mod google_cloud;
mod hand_written;
mod huskarl;
mod middle;
mod ours;
mod plain_fetch;
mod tower_mcp;

use crate::candidate::Candidate;

/// Returns all peers, this crate first.
pub(crate) fn all() -> Vec<Candidate> {
    vec![
        Candidate::of::<ours::WithNoReplay>(),
        Candidate::of::<ours::WithCloneBody>(),
        Candidate::of::<ours::Cache>(),
        Candidate::of::<middle::Middle>(),
        Candidate::of::<huskarl::Huskarl>(),
        Candidate::of::<tower_mcp::TowerMcp>(),
        Candidate::of::<cf_gears::Plain>(),
        Candidate::of::<cf_gears::AutoRefresh>(),
        Candidate::of::<aws_smithy::AwsSmithy>(),
        Candidate::of::<google_cloud::GoogleCloud>(),
        Candidate::of::<aliri::Aliri>(),
        Candidate::of::<hand_written::HandWritten>(),
    ]
}
