//! The chapter of the guide shows the programs that are tests here.

use std::{env, fs, path::Path, process::Command};

const CHAPTER: &str = include_str!("../../../docs/guide/testing.md");

#[test]
fn the_chapter_contains_the_programs_that_are_tested() {
    let programs = [
        include_str!("guide_unit.rs"),
        include_str!("guide_port.rs"),
        include_str!("guide_chaos.rs"),
    ];
    for program in programs {
        let (_title, code) = program.split_once("\n\n").expect("a title above the code");
        let block = format!("```rust\n{code}```\n");
        assert!(CHAPTER.contains(&block), "the chapter lacks:\n{block}");
    }
}

/// In a package of its own, as a reader would build them.
#[test]
fn the_programs_run_with_the_dependencies_that_the_chapter_names() {
    let kit = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = kit.join("../..");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let package = target.join("chapter");
    let added = CHAPTER.lines();
    let added = added.filter_map(|line| line.strip_prefix("cargo add --dev "));
    let mut manifest = format!(
        "[package]\nname = \"chapter\"\nedition = \"2024\"\n\n[workspace]\n\n\
         [dependencies]\ntower-client-credentials = {{ path = {root:?} }}\n\n\
         [dev-dependencies]\n"
    );
    for line in added {
        let (names, features) = line.split_once(" --features ").unwrap_or((line, ""));
        let features: Vec<_> = features.split(',').filter(|it| !it.is_empty()).collect();
        for name in names.split(' ') {
            let source = match name {
                "tower-client-credentials-test" => format!("path = {kit:?}"),
                _ => "version = \"*\"".to_owned(),
            };
            manifest += &format!("{name} = {{ {source}, features = {features:?} }}\n");
        }
    }
    fs::create_dir_all(package.join("tests")).unwrap();
    fs::create_dir_all(package.join("src")).unwrap();
    fs::write(package.join("src/lib.rs"), "").unwrap();
    fs::write(package.join("Cargo.toml"), manifest).unwrap();
    // The versions that this package is tested with.
    fs::copy(root.join("Cargo.lock"), package.join("Cargo.lock")).unwrap();
    let programs = CHAPTER.split("```rust\n").skip(1);
    let programs = programs.map(|rest| rest.split_once("```").expect("the block ends").0);
    for (number, program) in programs.enumerate() {
        let file = format!("tests/program_{number}.rs");
        fs::write(package.join(file), program).unwrap();
    }

    let output = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["test", "--offline", "--tests", "--manifest-path"])
        .arg(package.join("Cargo.toml"))
        // What the dependencies have in common with this build isn't built again.
        .env("CARGO_TARGET_DIR", target.parent().unwrap_or(target))
        .output()
        .unwrap();

    let (printed, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{printed}\n{errors}");
    assert_eq!(printed.matches("... ok").count(), 4, "{printed}");
}

/// The methods that the chapter's tables name.
#[test]
fn the_chapter_names_only_what_exists() {
    let sources = [
        include_str!("../src/api.rs"),
        include_str!("../src/auth_server.rs"),
        include_str!("../src/reply.rs"),
        include_str!("../src/clock.rs"),
        include_str!("../src/serve.rs"),
        include_str!("../src/tls.rs"),
    ]
    .concat();
    let code = CHAPTER
        .lines()
        .filter(|line| line.starts_with("| "))
        .collect::<String>();
    let names = code.split('`').skip(1).step_by(2).flat_map(called);
    let mut count = 0;
    for name in names.filter(|name| !["clone", "from_secs", "personality"].contains(name)) {
        assert!(sources.contains(&format!("fn {name}")), "{name}");
        count += 1;
    }
    assert!(count > 20, "{count}");
}

/// The names of the functions that an expression calls.
fn called(expression: &str) -> Vec<&str> {
    let before = expression.split('(').rev().skip(1);
    before
        .map(|text| {
            text.rsplit(|it: char| !it.is_alphanumeric() && it != '_')
                .next()
                .unwrap()
        })
        .collect()
}
