//! The links of the Markdown pages, which lead somewhere on GitHub, on crates.io and on docs.rs.
//!
//! On docs.rs, the definitions in `src/guide/links.md` replace those of the chapters; rustdoc checks
//! them. These tests check that both lead to the same place.

use std::{collections::BTreeMap, fs, path::Path};

const DOCS_RS: &str = "https://docs.rs/tower-client-credentials/latest/tower_client_credentials/";

/// The pages that are not part of the guide, and its chapters.
const PAGES: &[&str] = &[
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/performance.md",
    "docs/guide/clients.md",
    "docs/guide/failures.md",
    "docs/guide/getting-started.md",
    "docs/guide/migrating.md",
    "docs/guide/observability.md",
    "docs/guide/refresh.md",
    "docs/guide/rejections.md",
    "docs/guide/replay.md",
    "docs/guide/tenants.md",
    "docs/guide/testing.md",
];

#[test]
fn every_chapter_is_listed_here() {
    for entry in fs::read_dir(root().join("docs/guide")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(PAGES.contains(&&*format!("docs/guide/{name}")), "{name}");
    }
}

#[test]
fn relative_links_lead_to_files() {
    for page in PAGES {
        let text = read(page);
        let inline = text.split("](").skip(1).filter_map(|it| it.split_once(')'));
        let inline = inline.map(|(target, _)| target.to_owned());
        for target in inline.chain(definitions(&text).into_values()) {
            let is_relative = !target.contains("://") && !target.starts_with('#');
            let (path, _fragment) = target.split_once('#').unwrap_or((&target, ""));
            let from = root().join(page);
            let exists = from.parent().unwrap().join(path).exists();
            assert!(exists || !is_relative, "{page} links to {target}");
        }
    }
}

#[test]
fn links_of_the_chapters_lead_to_the_same_place_on_docs_rs() {
    let of_rustdoc = definitions(&read("src/guide/links.md"));
    for page in PAGES.iter().filter(|page| page.starts_with("docs/guide/")) {
        for (label, target) in definitions(&read(page)) {
            let path = of_rustdoc.get(&label).map(String::as_str);
            assert_eq!(path, Some(&*path_of(&target)), "{label} in {page}");
        }
    }
}

#[test]
fn every_link_of_the_chapters_is_defined() {
    for page in PAGES.iter().filter(|page| page.starts_with("docs/guide/")) {
        let text = read(page);
        let defined = definitions(&text);
        for (label, _) in text
            .split("[`")
            .skip(1)
            .filter_map(|it| it.split_once("`]"))
        {
            assert!(
                defined.contains_key(&format!("`{label}`")),
                "{label} in {page}"
            );
        }
    }
}

/// No page shows a line that rustdoc would hide, or a block without a language.
#[test]
fn code_blocks_are_plain_and_have_a_language() {
    for page in PAGES {
        let text = read(page);
        for (number, block) in text.split("```").enumerate().filter(|(at, _)| at % 2 == 1) {
            let (language, code) = block.split_once('\n').expect("a block has lines");
            assert!(!language.is_empty(), "block {number} of {page}");
            let hides = code
                .lines()
                .any(|line| line == "#" || line.starts_with("# "));
            assert!(!hides || !language.starts_with("rust"), "{page}: {code}");
        }
    }
}

/// The path that rustdoc has for the page that a link leads to.
fn path_of(target: &str) -> String {
    let Some(item) = target.strip_prefix(DOCS_RS) else {
        let name = target.rsplit('/').next().unwrap().trim_end_matches(".md");
        return format!("crate::guide::{}", name.to_lowercase().replace('-', "_"));
    };
    // Such as `replay/struct.Buffered.html#method.new`.
    let (page, member) = item.split_once('#').unwrap_or((item, ""));
    let page = page.trim_end_matches(".html");
    let names = page.split('/').chain([member]).filter(|it| !it.is_empty());
    let names = names.map(|it| it.split_once('.').map_or(it, |(_kind, name)| name));
    [vec!["crate"], names.collect()].concat().join("::")
}

/// The link definitions of a page, such as `[label]: target`.
fn definitions(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| {
        let (label, target) = line.strip_prefix('[')?.split_once("]: ")?;
        Some((label.to_owned(), target.to_owned()))
    });
    lines.collect()
}

fn read(page: &str) -> String {
    fs::read_to_string(root().join(page)).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
