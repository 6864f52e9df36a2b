//! The complete programs of README.md and of the guide's first chapter.
//!
//! Each is built as a reader would build it: in a package of its own, with the dependencies that
//! stand next to it, and with its two URLs replaced by those of servers on loopback.

use std::{collections::BTreeMap, path::Path};

#[path = "support/programs.rs"]
mod programs;

use programs::{added_dependencies, fenced, run};

const README: &str = include_str!("../README.md");
const GETTING_STARTED: &str = include_str!("../docs/guide/getting-started.md");

#[test]
fn program_for_hyper_is_the_example_readme() {
    assert_eq!(
        fenced(for_hyper(), "rust,no_run"),
        include_str!("../examples/readme.rs")
    );
}

#[test]
fn program_for_hyper_runs_with_the_dependencies_it_names() {
    let dependencies = added_dependencies(fenced(for_hyper(), "console"));

    let (output, received) = run(
        root(),
        "readme",
        &dependencies,
        fenced(for_hyper(), "rust,no_run"),
    );

    assert_eq!(output, "200 OK\nno orders\n");
    assert_eq!(
        received,
        [
            "POST /oauth/token Basic bXktY2xpZW50OnMzY3JldA==: grant_type=client_credentials",
            "GET /orders Bearer token-1: ",
        ]
    );
}

#[test]
fn program_of_the_guide_runs_with_the_dependencies_it_names() {
    let manifest = fenced(GETTING_STARTED, "toml");
    let dependencies = manifest
        .strip_prefix("[dependencies]\n")
        .expect("the block lists dependencies");

    let (output, received) = run(
        root(),
        "getting-started",
        dependencies,
        fenced(GETTING_STARTED, "rust,no_run"),
    );

    assert_eq!(output, "200 OK: no orders\n200 OK: no orders\n");
    assert_eq!(
        received,
        [
            "POST /oauth/token Basic bXktY2xpZW50OnMzY3JldA==: \
             grant_type=client_credentials&scope=orders.read",
            "GET /orders Bearer token-1: ",
            "GET /orders Bearer token-1: ",
        ]
    );
}

#[test]
fn both_programs_name_the_same_dependencies() {
    let names = |dependencies: &str| {
        let lines = dependencies.lines();
        let features = lines.map(|line| {
            let (name, requirement) = line.split_once(" = ").expect("name and requirement");
            let (_version, features) = requirement.split_once(", ").unwrap_or_default();
            (name.to_owned(), features.to_owned())
        });
        features.collect::<BTreeMap<_, _>>()
    };
    let manifest = fenced(GETTING_STARTED, "toml").replacen("[dependencies]\n", "", 1);

    assert_eq!(
        names(&added_dependencies(fenced(for_hyper(), "console"))),
        names(&manifest)
    );
}

/// The part of the README that follows the program for reqwest, which `crates/reqwest` tests.
fn for_hyper() -> &'static str {
    let heading = "\n## With hyper";
    let (_, rest) = README
        .split_once(heading)
        .expect("the README has this heading");
    rest
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
