//! The program: its options, its start-up line, and how it ends.

mod support;

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, ChildStdout, Command, Output, Stdio},
};

use http::Request;
use http_body_util::Full;
use support::{form_request, hyper_client, in_time, json, token_request};

/// A running program. Ends when this is dropped.
struct Program {
    child: Child,
    stdout: BufReader<ChildStdout>,
    line: String,
}

impl Program {
    fn start(options: &[&str]) -> Self {
        let mut child = command(options).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        Self {
            child,
            stdout,
            line,
        }
    }

    /// The URL that the start-up line names last.
    fn token_url(&self) -> &str {
        self.line.trim_end().rsplit(' ').next().unwrap()
    }

    /// The URL that the start-up line names first.
    fn url(&self) -> &str {
        let (_, url) = self.line.split_once("listening on ").unwrap();
        url.split_once(',').unwrap().0
    }

    #[cfg(unix)]
    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails if the program has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tower-client-credentials-test"));
    command.args(options);
    command
}

fn output(options: &[&str]) -> Output {
    command(options).output().unwrap()
}

#[tokio::test]
async fn the_start_up_line_names_what_clients_need() {
    let program = Program::start(&["--personality", "linkedin", "--client", "id:a:b"]);
    let address: SocketAddr = program
        .url()
        .strip_prefix("http://")
        .unwrap()
        .parse()
        .unwrap();
    assert!(address.ip().is_loopback());
    assert_eq!(
        program.token_url(),
        format!("{}/oauth/v2/accessToken", program.url())
    );

    let form = "grant_type=client_credentials&client_id=id&client_secret=a%3Ab";
    let request = form_request(program.token_url(), form);
    let (status, body) = json(in_time(hyper_client(false).request(request)).await.unwrap()).await;

    assert_eq!(status, 200);
    assert_eq!(body["expires_in"], "1800");
}

#[tokio::test]
async fn options_set_client_path_lifetime_and_header() {
    let options = [
        "--lifetime=7.5",
        "--token-path=/t",
        "--token-header=x-token",
        "--port=0",
    ];
    let program = Program::start(&options);
    let client = hyper_client(true);

    // Without --client, the client of the help text is registered.
    let request = token_request(format!("{}/t", program.url()));
    let (_, body) = json(in_time(client.request(request)).await.unwrap()).await;
    assert_eq!(body["expires_in"], 7);
    let request = Request::get(program.url())
        .header("x-token", body["access_token"].as_str().unwrap())
        .body(Full::default())
        .unwrap();
    assert_eq!(
        in_time(client.request(request)).await.unwrap().status(),
        200
    );
}

/// Also while a client waits for a reply.
#[cfg(unix)]
#[tokio::test]
async fn sigterm_and_sigint_end_the_program_with_status_0() {
    for signal in ["TERM", "INT"] {
        let mut program = Program::start(&[]);
        let client = hyper_client(false);
        let hang = Request::post(format!("{}/control/auth/always", program.url()));
        let hang = hang.body(Full::from(r#"{"reply": "hang"}"#)).unwrap();
        in_time(client.request(hang)).await.unwrap();
        let waiting = tokio::spawn(client.request(token_request(program.token_url())));
        let mut arrived = 0;
        while arrived == 0 {
            let counters = Request::get(format!("{}/control/counters", program.url()));
            let counters = counters.body(Full::default()).unwrap();
            let (_, counters) = json(in_time(client.request(counters)).await.unwrap()).await;
            arrived = counters["token_requests"].as_u64().unwrap();
        }

        program.signal(signal);

        let status = program.child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{signal}");
        in_time(waiting).await.unwrap().unwrap_err();
        let mut rest = String::new();
        program.stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "the start-up line is the only output");
    }
}

#[test]
fn help_and_version_are_printed() {
    for option in ["--help", "-h"] {
        let output = output(&[option]);
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        for word in [
            "--port",
            "--host",
            "--personality",
            "/control",
            "linkedin",
            "my-client",
        ] {
            assert!(text.contains(word), "{word} is missing in {text}");
        }
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    }
    let output = output(&["--version"]);
    assert_eq!(
        output.stdout,
        format!("{}\n", env!("CARGO_PKG_VERSION")).into_bytes()
    );
}

#[test]
fn wrong_arguments_are_named() {
    let cases: [(&[&str], &str); 10] = [
        (&["--unknown"], "unexpected argument '--unknown'"),
        (&["serve"], "unexpected argument 'serve'"),
        (&["--port"], "--port needs a value"),
        (&["--port=99999"], "'99999' is not a port"),
        (&["--host", "localhost"], "'localhost' is not an IP address"),
        (
            &["--personality", "x"],
            "there is no personality 'x'\nPersonalities: standard, linkedin",
        ),
        (
            &["--client", "the-secret"],
            "--client needs an id and a secret",
        ),
        (&["--lifetime=-1"], "'-1' is not a number of seconds"),
        (&["--token-path", "token"], "--token-path needs a path"),
        (&["--token-path", "/token?a=b"], "--token-path needs a path"),
    ];
    for (options, expected) in cases {
        let output = output(options);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        assert!(errors.contains(expected), "{errors}");
        assert!(!errors.contains("the-secret"), "{errors}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let program = Program::start(&[]);
    let port = program.url().rsplit(':').next().unwrap();

    let output = output(&["--port", port]);

    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.contains(&format!("cannot listen on 127.0.0.1:{port}")),
        "{errors}"
    );
}

#[cfg(unix)]
#[test]
fn arguments_that_are_not_utf_8_are_refused() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    let output = Command::new(env!("CARGO_BIN_EXE_tower-client-credentials-test"))
        .arg(OsStr::from_bytes(b"--client=\xff"))
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("the arguments are not UTF-8"), "{errors}");
}
