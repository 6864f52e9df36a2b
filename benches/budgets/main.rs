//! The budgets that do not depend on the machine: prints each figure beside its budget, and ends
//! non-zero when one is broken.
//!
//! ```text
//! cargo bench --manifest-path benches/Cargo.toml --bench budgets
//! ```
//!
//! Instructions are counted by valgrind; `-- --without-instructions` leaves them out.

mod allocations;
mod crates;
mod instructions;
mod requests;
mod sizes;
mod table;

use std::{env, process::ExitCode};

use tower::BoxError;

use self::table::Table;

const WITHOUT_INSTRUCTIONS: &str = "--without-instructions";

fn main() -> Result<ExitCode, BoxError> {
    let without_instructions = env::args().any(|argument| argument == WITHOUT_INSTRUCTIONS);
    let mut table = Table::default();
    allocations::measure(&mut table)?;
    sizes::measure(&mut table);
    requests::measure(&mut table)?;
    crates::measure(&mut table)?;
    if without_instructions {
        println!("\nInstructions: left out, as {WITHOUT_INSTRUCTIONS} says.");
    } else if instructions::can_be_counted() {
        instructions::measure(&mut table)?;
    } else {
        table.cannot_measure(&format!(
            "instructions: valgrind is not installed; {WITHOUT_INSTRUCTIONS} leaves them out"
        ));
    }
    Ok(table.verdict())
}
