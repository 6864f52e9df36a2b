//! The complete programs of README.md and of the guide's first chapter.
//!
//! Each is built as a reader would build it: in a package of its own, with the dependencies that
//! stand next to it, and with its two URLs replaced by those of servers on loopback.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    env, fs,
    net::Ipv4Addr,
    path::Path,
    process::{Command, Output},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, runtime::Runtime};

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

    let (output, received) = run("readme", &dependencies, fenced(README, "rust,no_run"));

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

/// Builds and runs a program offline; returns what it printed, and the requests that it made.
fn run(name: &str, dependencies: &str, program: &str) -> (String, Vec<String>) {
    let runtime = Runtime::new().unwrap();
    let servers = runtime.block_on(Servers::start());
    let program = program
        .replace(TOKEN_URL, &format!("{}/oauth/token", servers.url))
        .replace(API_URL, &format!("{}/orders", servers.url));
    assert!(
        !program.contains("https://"),
        "another URL would reach the network"
    );

    let output = build_and_run(name, dependencies, &program);

    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let received = servers.received.lock().unwrap().clone();
    (String::from_utf8(output.stdout).unwrap(), received)
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

/// A token endpoint and an API on one port.
struct Servers {
    url: String,
    received: Arc<Mutex<Vec<String>>>,
}

impl Servers {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let received = Arc::<Mutex<Vec<String>>>::default();
        let servers = Self {
            url,
            received: Arc::clone(&received),
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let received = Arc::clone(&received);
                let answer = service_fn(move |request| answer(request, Arc::clone(&received)));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
        servers
    }
}

async fn answer(
    request: Request<Incoming>,
    received: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let authorization = head.headers.get(AUTHORIZATION);
    let authorization = authorization.map_or("", |value| value.to_str().unwrap());
    received.lock().unwrap().push(format!(
        "{} {} {authorization}: {}",
        head.method,
        head.uri.path(),
        String::from_utf8_lossy(&body)
    ));
    let (status, body) = match (head.uri.path(), authorization) {
        ("/oauth/token", _) => (
            StatusCode::OK,
            r#"{"access_token":"token-1","token_type":"Bearer","expires_in":1800}"#,
        ),
        (_, "Bearer token-1") => (StatusCode::OK, "no orders"),
        _ => (StatusCode::UNAUTHORIZED, ""),
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    Ok(response)
}
