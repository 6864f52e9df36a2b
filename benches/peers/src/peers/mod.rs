//! The peers, one file each: how it is set up, how a call is made with it, and what it cannot do.

mod aliri;
mod aws_smithy;
mod cf_gears;
mod google_cloud;
mod home_made;
mod huskarl;
mod middle;
mod ours;
mod plain_fetch;
mod tower_mcp;

use crate::contest::Contestant;

/// All of them, this crate first.
pub(crate) fn all() -> Vec<Contestant> {
    vec![
        Contestant::of::<ours::WithNever>(),
        Contestant::of::<ours::WithCloneBody>(),
        Contestant::of::<ours::Cache>(),
        Contestant::of::<middle::Middle>(),
        Contestant::of::<huskarl::Huskarl>(),
        Contestant::of::<tower_mcp::TowerMcp>(),
        Contestant::of::<cf_gears::Plain>(),
        Contestant::of::<cf_gears::AutoRefresh>(),
        Contestant::of::<aws_smithy::AwsSmithy>(),
        Contestant::of::<google_cloud::GoogleCloud>(),
        Contestant::of::<aliri::Aliri>(),
        Contestant::of::<home_made::HomeMade>(),
    ]
}
