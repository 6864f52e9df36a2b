//! The first program of the repository's README, which is also this crate's. Not part of the package.

use std::path::Path;

#[path = "../../../tests/support/programs.rs"]
mod programs;

use programs::{added_dependencies, fenced, run};

const README: &str = include_str!("../../../README.md");
const README_OF_THIS_CRATE: &str = include_str!("../README.md");

#[test]
fn first_program_of_the_readme_runs_with_the_dependencies_it_names() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize().unwrap();
    let dependencies = added_dependencies(fenced(README, "console"));

    let (output, received) = run(
        &root,
        "reqwest",
        &dependencies,
        fenced(README, "rust,no_run"),
    );

    assert_eq!(output, "no orders\n");
    assert_eq!(
        received,
        [
            "POST /oauth/token Basic bXktY2xpZW50OnMzY3JldA==: grant_type=client_credentials",
            "GET /orders Bearer token-1: ",
        ]
    );
}

#[test]
fn both_readmes_have_the_same_program() {
    let programs = [README, README_OF_THIS_CRATE].map(|page| fenced(page, "rust,no_run"));
    assert_eq!(programs[0], programs[1]);
    let dependencies = [README, README_OF_THIS_CRATE].map(|page| {
        let commands = fenced(page, "console");
        added_dependencies(commands)
    });
    assert_eq!(dependencies[0], dependencies[1]);
}
