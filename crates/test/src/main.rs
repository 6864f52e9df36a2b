//! An authorization server and an API on one port, for tests in any language.
//!
//! `--help` lists the options. The module `control` of the library describes the control API.
#![forbid(unsafe_code)]

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use tokio::runtime;
use tower_client_credentials_test::{
    Api, AuthServer, Personality, Server,
    control::Control,
    personality::{self, Standard},
};

const HELP: &str = "\
An OAuth 2.0 authorization server and an API on one port, for tests of clients

Usage: tower-client-credentials-test [OPTIONS]

Options:
    --port <PORT>            Port to listen on; 0, the default, is any free port
    --host <ADDRESS>         IP address to listen on [default: 127.0.0.1]
    --personality <NAME>     Provider to behave like [default: standard]
    --client <ID:SECRET>     Client to register; may be repeated [default: my-client:s3cret]
    --token-path <PATH>      Path of the token endpoint [default: that of the personality]
    --lifetime <SECONDS>     Lifetime of tokens [default: that of the personality]
    --token-header <NAME>    Header that carries tokens, without a prefix
                             [default: authorization, with the prefix Bearer]
    --help                   Print this help
    --version                Print the version

Paths:
    The token path issues tokens, /control is the control API, and every other path is an API that
    echoes request bodies and requires a live token.

    curl -d 'grant_type=client_credentials' -u my-client:s3cret http://127.0.0.1:9400/token
    curl -d '{\"reply\": \"reset\"}' http://127.0.0.1:9400/control/auth/next_once
    curl http://127.0.0.1:9400/control/counters

GET /control lists the requests of the control API. Their bodies are JSON objects, whatever their
content type. It is described at
https://docs.rs/tower-client-credentials-test/latest/tower_client_credentials_test/control/

When the server is ready, the program prints one line to the standard output. SIGTERM or Ctrl-C ends
it with status 0.
";

/// What the program was asked to do.
enum Command {
    Help,
    Version,
    Serve(Options),
}

struct Options {
    address: SocketAddr,
    personality: Arc<dyn Personality>,
    clients: Vec<(String, String)>,
    token_path: Option<String>,
    lifetime: Option<Duration>,
    token_header: Option<String>,
}

fn main() -> ExitCode {
    let outcome = match arguments().and_then(|it| parse(it.into_iter())) {
        Ok(Command::Help) => writeln!(io::stdout(), "{HELP}\n{}", personalities()),
        Ok(Command::Version) => writeln!(io::stdout(), "{}", env!("CARGO_PKG_VERSION")),
        Ok(Command::Serve(options)) => serve(&options),
        Err(message) => {
            eprintln!("error: {message}\n\nFor more information, try '--help'.");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The arguments after the name of the program.
fn arguments() -> Result<Vec<String>, String> {
    let arguments = env::args_os().skip(1).map(OsString::into_string);
    // The argument may be a secret, so the message doesn't repeat it.
    arguments
        .collect::<Result<_, _>>()
        .map_err(|_| "the arguments are not UTF-8".to_owned())
}

fn personalities() -> String {
    let names = personality::all().into_iter().map(|it| it.name());
    format!("Personalities: {}", names.collect::<Vec<_>>().join(", "))
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut options = Options {
        address: (Ipv4Addr::LOCALHOST, 0).into(),
        personality: Arc::new(Standard),
        clients: Vec::new(),
        token_path: None,
        lifetime: None,
        token_header: None,
    };
    while let Some(argument) = arguments.next() {
        // Both `--port 9400` and `--port=9400`.
        let (name, inline) = match argument.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (&*argument, None),
        };
        match name {
            "--help" | "-h" => return Ok(Command::Help),
            "--version" | "-V" => return Ok(Command::Version),
            _ => {}
        }
        let value = || {
            let value = inline.or_else(|| arguments.next());
            value.ok_or_else(|| format!("{name} needs a value"))
        };
        match name {
            "--port" => options.address.set_port(port(&value()?)?),
            "--host" => options.address.set_ip(ip(&value()?)?),
            "--personality" => options.personality = named_personality(&value()?)?,
            "--client" => options.clients.push(client(&value()?)?),
            "--token-path" => options.token_path = Some(path(value()?)?),
            "--lifetime" => options.lifetime = Some(seconds(&value()?)?),
            "--token-header" => options.token_header = Some(header(value()?)?),
            name => return Err(format!("unexpected argument '{name}'")),
        }
    }
    if options.clients.is_empty() {
        options.clients.push(("my-client".into(), "s3cret".into()));
    }
    Ok(Command::Serve(options))
}

fn port(text: &str) -> Result<u16, String> {
    text.parse()
        .map_err(|_| format!("'{text}' is not a port between 0 and 65535"))
}

fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| format!("'{text}' is not an IP address"))
}

fn named_personality(name: &str) -> Result<Arc<dyn Personality>, String> {
    personality::by_name(name)
        .ok_or_else(|| format!("there is no personality '{name}'\n{}", personalities()))
}

fn client(text: &str) -> Result<(String, String), String> {
    // The text may be a secret, so the message doesn't repeat it.
    let (id, secret) = text
        .split_once(':')
        .ok_or("--client needs an id and a secret, separated by a colon")?;
    Ok((id.to_owned(), secret.to_owned()))
}

fn path(text: String) -> Result<String, String> {
    let is_path = http::Uri::try_from(&text).is_ok_and(|uri| uri.path() == text);
    is_path
        .then_some(text)
        .ok_or_else(|| "--token-path needs a path that begins with a slash".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok();
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| format!("'{text}' is not a number of seconds"))
}

fn header(text: String) -> Result<String, String> {
    match http::HeaderName::try_from(&text) {
        Ok(_) => Ok(text),
        Err(_) => Err(format!("'{text}' is not the name of a header")),
    }
}

fn serve(options: &Options) -> io::Result<()> {
    let runtime = runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let auth = AuthServer::new().personality(Arc::clone(&options.personality));
        let api = Api::new(&auth);
        let token_path = options.token_path.as_deref();
        let token_path = token_path.unwrap_or_else(|| options.personality.token_path());
        auth.token_path(token_path);
        for (id, secret) in &options.clients {
            auth.with_client(id, secret);
        }
        if let Some(lifetime) = options.lifetime {
            auth.lifetime(lifetime);
        }
        if let Some(header) = &options.token_header {
            api.token_header(header, "");
        }
        let ended = terminated()?;
        let server = Server::start_at(options.address, Control::new(&auth, &api)).await;
        let server = server.map_err(|error| {
            let message = format!("cannot listen on {}: {error}", options.address);
            io::Error::new(error.kind(), message)
        })?;
        announce(&server, token_path, &options.personality)?;
        ended.await
    })
}

fn announce(
    server: &Server,
    token_path: &str,
    personality: &Arc<dyn Personality>,
) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(
        stdout,
        "tower-client-credentials-test ({}) listening on {}, token endpoint {}",
        personality.name(),
        server.url(""),
        server.url(token_path),
    )?;
    stdout.flush()
}

/// Returns a future that completes on SIGTERM or Ctrl-C. Signals count from this call on.
#[cfg(unix)]
fn terminated() -> io::Result<impl Future<Output = io::Result<()>>> {
    use std::{future, task::Poll};

    use tokio::signal::unix::{SignalKind, signal};

    let mut signals = [
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    ];
    Ok(future::poll_fn(move |cx| {
        let is_here = signals
            .iter_mut()
            .any(|signal| signal.poll_recv(cx).is_ready());
        if is_here {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }))
}

#[cfg(not(unix))]
fn terminated() -> io::Result<impl Future<Output = io::Result<()>>> {
    Ok(tokio::signal::ctrl_c())
}
