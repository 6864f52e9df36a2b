//! The complete programs of README.md and of the guide's first chapter.
//!
//! Each is built as a reader would build it: in a package of its own, with the dependencies that
//! stand next to it, and with its two URLs replaced by those of servers on loopback.

use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    process::{Command, Output},
};

use http::Response;
use tokio::runtime::Runtime;
use tower_client_credentials_test::{Api, AuthMethod, AuthServer, Body};

const README: &str = include_str!("../README.md");
const GETTING_STARTED: &str = include_str!("../docs/guide/getting-started.md");

const TOKEN_URL: &str = "https://auth.example.com/oauth/token";
const API_URL: &str = "https://api.example.com/orders";

#[test]
fn first_program_of_the_readme_is_the_example_readme() {
    assert_eq!(
        fenced(README, "rust,no_run"),
        include_str!("../examples/readme.rs")
    );
}

#[test]
fn program_of_the_readme_runs_with_the_dependencies_it_names() {
    let dependencies = added_dependencies(fenced(README, "console"));

    let (output, auth, api) = run("readme", &dependencies, fenced(README, "rust,no_run"));

    assert_eq!(output, "200 OK\nno orders\n");
    auth.assert_token_requests(1);
    api.assert_sends(1);
    assert_eq!(api.requests()[0].uri(), "/orders");
    let request = &auth.requests()[0];
    assert_eq!(request.auth_method(), Some(AuthMethod::ClientSecretBasic));
}

#[test]
fn program_of_the_guide_runs_with_the_dependencies_it_names() {
    let manifest = fenced(GETTING_STARTED, "toml");
    let dependencies = manifest
        .strip_prefix("[dependencies]\n")
        .expect("the block lists dependencies");

    let (output, auth, api) = run(
        "getting-started",
        dependencies,
        fenced(GETTING_STARTED, "rust,no_run"),
    );

    assert_eq!(output, "200 OK: no orders\n200 OK: no orders\n");
    auth.assert_token_requests(1);
    api.assert_sends(2);
    api.assert_no_refusals();
    assert_eq!(auth.requests()[0].scopes(), ["orders.read"]);
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
        names(&added_dependencies(fenced(README, "console"))),
        names(&manifest)
    );
}

/// The text of the first block with this language.
fn fenced<'a>(page: &'a str, language: &str) -> &'a str {
    let (_, rest) = page
        .split_once(&format!("```{language}\n"))
        .expect("the page has such a block");
    rest.split_once("```").expect("the block ends").0
}

/// The lines that the `cargo add` commands would write into Cargo.toml, with any version.
fn added_dependencies(commands: &str) -> String {
    let commands = commands
        .lines()
        .filter_map(|line| line.strip_prefix("cargo add "));
    commands.flat_map(added_by).collect()
}

fn added_by(arguments: &str) -> Vec<String> {
    let mut requirement = String::from(r#"{ version = "*""#);
    let mut names = Vec::new();
    let mut words = arguments.split(' ');
    while let Some(word) = words.next() {
        match word {
            "--no-default-features" => requirement += ", default-features = false",
            "--features" => {
                let features = words.next().expect("features").replace(',', r#"", ""#);
                requirement += &format!(r#", features = ["{features}"]"#);
            }
            name => names.push(name),
        }
    }
    requirement += " }";
    let lines = names.iter().map(|name| format!("{name} = {requirement}\n"));
    lines.collect()
}

/// Builds and runs a program offline; returns what it printed, and the servers that it called.
fn run(name: &str, dependencies: &str, program: &str) -> (String, AuthServer, Api) {
    let runtime = Runtime::new().unwrap();
    let auth = AuthServer::new()
        .with_client("my-client", "s3cret")
        .token_path("/oauth/token");
    let api = Api::new(&auth).answer(|_| async { Response::new(Body::new("no orders")) });
    let auth_server = runtime.block_on(auth.serve()).unwrap();
    let api_server = runtime.block_on(api.serve()).unwrap();
    let program = program
        .replace(TOKEN_URL, &auth_server.url("/oauth/token"))
        .replace(API_URL, &api_server.url("/orders"));
    assert!(
        !program.contains("https://"),
        "another URL would reach the network"
    );

    let output = build_and_run(name, dependencies, &program);

    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    (String::from_utf8(output.stdout).unwrap(), auth, api)
}

fn build_and_run(name: &str, dependencies: &str, program: &str) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let package = target.join(format!("program-{name}"));
    let this_crate = format!("tower-client-credentials = {{ path = {root:?} }}\n");
    let dependencies: String = dependencies
        .lines()
        .filter(|line| !line.starts_with("tower-client-credentials "))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::create_dir_all(package.join("src")).unwrap();
    // A workspace of its own, with the versions that this package is tested with.
    fs::write(
        package.join("Cargo.toml"),
        format!(
            "[package]\nname = \"program-{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
             [workspace]\n\n[dependencies]\n{this_crate}{dependencies}"
        ),
    )
    .unwrap();
    fs::copy(root.join("Cargo.lock"), package.join("Cargo.lock")).unwrap();
    fs::write(package.join("src/main.rs"), program).unwrap();

    Command::new(env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["run", "--offline", "--quiet", "--manifest-path"])
        .arg(package.join("Cargo.toml"))
        // What the dependencies have in common with this build isn't built again.
        .env("CARGO_TARGET_DIR", target.parent().unwrap_or(target))
        .env("CLIENT_ID", "my-client")
        .env("CLIENT_SECRET", "s3cret")
        .output()
        .unwrap()
}
