//! How many requests are made when 10,000 calls come at once.

use benches::{Crowd, ENDPOINT, crowd_runtime};
use tower::BoxError;

use crate::table::Table;

pub(crate) fn measure(table: &mut Table) -> Result<(), BoxError> {
    let runtime = crowd_runtime()?;
    table.part("Requests of 10,000 calls at once");

    let stampede = runtime.block_on(Crowd::stampede())?;
    let what = "cold cache: token requests";
    table.row(what, stampede.token_requests as f64, 1.0, "");

    // Half of the rejections come when the renewal is over: they must not lead to another.
    let storm = runtime.block_on(Crowd::storm(2 * ENDPOINT))?;
    let renewals = storm.token_requests - 1;
    table.row("all rejected: renewals", renewals as f64, 1.0, "");
    let most = f64::from(storm.most_sends);
    table.row("all rejected: sends of a call, at most", most, 2.0, "");
    let unanswered = storm.unanswered as f64;
    table.row("all rejected: calls without an answer", unanswered, 0.0, "");
    Ok(())
}
