//! The chapter of the guide shows the programs that are tests here.

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

/// The methods that the chapter's tables name.
#[test]
fn the_chapter_names_only_what_exists() {
    let sources = [
        include_str!("../src/api.rs"),
        include_str!("../src/auth_server.rs"),
        include_str!("../src/reply.rs"),
        include_str!("../src/clock.rs"),
        include_str!("../src/tls.rs"),
    ]
    .concat();
    let code = CHAPTER
        .lines()
        .filter(|line| line.starts_with("| "))
        .collect::<String>();
    let names = code.split('`').skip(1).step_by(2).flat_map(called);
    let mut count = 0;
    for name in names.filter(|name| !["from_secs", "personality"].contains(name)) {
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
