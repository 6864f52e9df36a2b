//! The budgets that do not depend on the machine. Prints each figure next to its budget and exits
//! non-zero when one is exceeded.
//!
//! ```text
//! cargo bench --manifest-path benches/Cargo.toml --bench budgets
//! ```
//!
//! Instructions are counted by valgrind; `-- --without-instructions` skips them.

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
        println!("\nInstructions: skipped because of {WITHOUT_INSTRUCTIONS}.");
    } else if instructions::has_valgrind() {
        instructions::measure(&mut table)?;
    } else {
        table.fail(&format!(
            "instructions: valgrind is not installed; {WITHOUT_INSTRUCTIONS} skips them"
        ));
    }
    Ok(table.exit_code())
}
