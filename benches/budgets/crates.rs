//! The number of crates in the dependency tree.

use std::{collections::BTreeSet, env, process::Command};

use tower::BoxError;

use crate::table::Table;

const BUDGET: f64 = 40.0;

pub(crate) fn measure(table: &mut Table) -> Result<(), BoxError> {
    table.section("Crates");
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["tree", "--locked", "-e", "normal", "--prefix", "none"])
        .args(["--manifest-path", root])
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let list = String::from_utf8(output.stdout)?;
    // cargo marks repeated crates; name and version stay the same.
    let crates: BTreeSet<_> = list
        .lines()
        .map(|line| line.split(' ').take(2).collect::<Vec<_>>())
        .filter(|words| words.len() == 2)
        .collect();
    let name = "`cargo tree -e normal`, this crate included";
    table.row(name, crates.len() as f64, BUDGET, "");
    Ok(())
}
