//! The number of requests that 10,000 concurrent calls make.

use benches::{Burst, TOKEN_DELAY, burst_runtime};
use tower::BoxError;

use crate::table::Table;

pub(crate) fn measure(table: &mut Table) -> Result<(), BoxError> {
    let runtime = burst_runtime()?;
    table.section("Requests of 10,000 concurrent calls");

    let cold = runtime.block_on(Burst::cold())?;
    let name = "cold cache: token requests";
    table.row(name, cold.token_requests as f64, 1.0, "");

    // Half of the rejections arrive after the renewal: they must not cause another one.
    let rejected = runtime.block_on(Burst::rejected(2 * TOKEN_DELAY))?;
    let renewals = rejected.token_requests - 1;
    table.row("all rejected: renewals", renewals as f64, 1.0, "");
    let max_sends = f64::from(rejected.max_sends);
    table.row("all rejected: sends of a call, at most", max_sends, 2.0, "");
    let unanswered = rejected.unanswered as f64;
    table.row(
        "all rejected: calls without a response",
        unanswered,
        0.0,
        "",
    );
    Ok(())
}
