//! Builds and runs the programs of a page as a reader would: in a package of its own, with the
//! dependencies that stand next to it, and with its two URLs replaced by those of servers on loopback.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses only a part of this module"
)]

use std::{
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

const TOKEN_URL: &str = "https://auth.example.com/oauth/token";
const API_URL: &str = "https://api.example.com/orders";

/// The text of the first block with this language.
pub fn fenced<'a>(page: &'a str, language: &str) -> &'a str {
    let (_, rest) = page
        .split_once(&format!("```{language}\n"))
        .expect("the page has such a block");
    rest.split_once("```").expect("the block ends").0
}

/// The lines that the `cargo add` commands would write into Cargo.toml, with any version.
pub fn added_dependencies(commands: &str) -> String {
    let commands = commands
        .lines()
        .filter_map(|line| line.strip_prefix("cargo add "));
    commands.flat_map(added_by).collect()
}

fn added_by(arguments: &str) -> Vec<String> {
    let mut requirement = String::new();
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
    let lines = names.iter().map(|name| {
        // An older one may be in the lock file for another dependency.
        let version = if *name == "tower" { "0.5" } else { "*" };
        format!("{name} = {{ version = \"{version}\"{requirement} }}\n")
    });
    lines.collect()
}

/// Builds and runs a program offline; returns what it printed, and the requests that it made.
///
/// `root` is the folder of this repository.
pub fn run(root: &Path, name: &str, dependencies: &str, program: &str) -> (String, Vec<String>) {
    let runtime = Runtime::new().unwrap();
    let servers = runtime.block_on(Servers::start());
    let program = program
        .replace(TOKEN_URL, &format!("{}/oauth/token", servers.url))
        .replace(API_URL, &format!("{}/orders", servers.url));
    assert!(
        !program.contains("https://"),
        "another URL would reach the network"
    );

    let output = build_and_run(root, name, dependencies, &program);

    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let received = servers.received.lock().unwrap().clone();
    (String::from_utf8(output.stdout).unwrap(), received)
}

fn build_and_run(root: &Path, name: &str, dependencies: &str, program: &str) -> Output {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let package = target.join(format!("program-{name}"));
    let dependencies: String = dependencies
        .lines()
        .map(|line| format!("{}\n", with_path(root, line)))
        .collect();
    fs::create_dir_all(package.join("src")).unwrap();
    // A workspace of its own, with the versions that this package is tested with.
    fs::write(
        package.join("Cargo.toml"),
        format!(
            "[package]\nname = \"program-{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
             [workspace]\n\n[dependencies]\n{dependencies}"
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

/// Takes this repository's crates from their folders instead of from the registry.
fn with_path(root: &Path, dependency: &str) -> String {
    let (name, requirement) = dependency.split_once(" = ").expect("name and requirement");
    let path = match name {
        "tower-client-credentials" => root.to_owned(),
        "tower-client-credentials-reqwest" => root.join("crates/reqwest"),
        _ => return dependency.to_owned(),
    };
    let features = requirement.find("features").map(|at| &requirement[at..]);
    let rest = features.map_or(" }".to_owned(), |features| format!(", {features}"));
    format!("{name} = {{ path = {path:?}{rest}")
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
