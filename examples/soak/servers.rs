//! An authorization server and an API on loopback that are slow and inject random faults.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error as StdError,
    fmt,
    future::poll_fn,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::{
    HeaderName, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_LENGTH},
};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep},
};
use tower_client_credentials::BoxError;

/// The header that names the call of a request.
pub(crate) const CALL: HeaderName = HeaderName::from_static("x-call");

/// In seconds.
const TOKEN_LIFETIME: u64 = 1;

type Reply = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// The way in which a server handles a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Action {
    Succeed,
    /// Responds with 503.
    Unavailable,
    /// Responds with 401.
    Reject,
    /// Closes the connection without a response.
    Close,
    /// Resets the connection without a response.
    Reset,
    /// Closes the connection in the middle of the response.
    CloseHalfway,
    /// Resets the connection in the middle of the response.
    ResetHalfway,
}

impl Action {
    /// The error with which the server ends the connection.
    fn error(self) -> io::Error {
        let kind = match self {
            Self::Reset | Self::ResetHalfway => io::ErrorKind::ConnectionReset,
            _ => io::ErrorKind::ConnectionAborted,
        };
        io::Error::new(kind, "injected fault")
    }
}

/// The server that handles a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Server {
    TokenEndpoint,
    Api,
}

/// Both servers. They stop when this is dropped.
pub(crate) struct Servers {
    pub(crate) token_url: String,
    pub(crate) api_url: String,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

/// The state that both servers share.
struct State {
    rng: fastrand::Rng,
    /// How often each server took each action.
    actions: BTreeMap<(Server, Action), u64>,
    /// The number of requests that each server is handling.
    concurrent: HashMap<Server, u64>,
    max_concurrent: BTreeMap<Server, u64>,
    /// The valid tokens and the moments at which they expire.
    tokens: HashMap<String, Instant>,
    issued: u64,
    /// The number of requests to the API without a valid token.
    without_valid_token: u64,
    /// The API's last action for each call that has not ended.
    calls: HashMap<u64, Option<Action>>,
}

impl Servers {
    pub(crate) async fn start(seed: u64) -> Result<Self, BoxError> {
        let state = Arc::new(Mutex::new(State {
            rng: fastrand::Rng::with_seed(seed),
            actions: BTreeMap::new(),
            concurrent: HashMap::new(),
            max_concurrent: BTreeMap::new(),
            tokens: HashMap::new(),
            issued: 0,
            without_valid_token: 0,
            calls: HashMap::new(),
        }));
        let mut tasks = JoinSet::new();
        let token_endpoint = serve(&mut tasks, &state, Server::TokenEndpoint).await?;
        let api = serve(&mut tasks, &state, Server::Api).await?;
        Ok(Self {
            token_url: format!("http://{token_endpoint}/token"),
            api_url: format!("http://{api}/echo"),
            state,
            _tasks: tasks,
        })
    }

    /// Remembers the API's actions for this call from now on.
    pub(crate) fn track(&self, call: u64) {
        lock(&self.state).calls.insert(call, None);
    }

    /// Returns the API's last action for a call that has ended, and forgets the call.
    pub(crate) fn take_last_action(&self, call: u64) -> Option<Action> {
        lock(&self.state).calls.remove(&call).flatten()
    }

    pub(crate) fn token_requests(&self) -> u64 {
        let actions = self.actions().into_iter();
        let token_requests = actions.filter(|((server, _), _)| *server == Server::TokenEndpoint);
        token_requests.map(|(_, times)| times).sum()
    }

    /// The highest number of token requests that were handled at the same time.
    pub(crate) fn max_concurrent_token_requests(&self) -> u64 {
        let state = lock(&self.state);
        let max = state.max_concurrent.get(&Server::TokenEndpoint);
        max.copied().unwrap_or_default()
    }

    /// The number of requests to the API without a valid token.
    pub(crate) fn without_valid_token(&self) -> u64 {
        lock(&self.state).without_valid_token
    }

    /// How often each server took each action.
    pub(crate) fn actions(&self) -> BTreeMap<(Server, Action), u64> {
        lock(&self.state).actions.clone()
    }
}

/// Describes a problem if token requests were concurrent: there is one key, and its attempts are
/// made one after the other.
pub(crate) fn concurrent_token_requests(max: u64) -> Option<String> {
    (max > 1).then(|| format!("{max} concurrent token requests"))
}

/// Describes a problem if tokens were refreshed too late. A few expire on their way to the API on a
/// busy machine.
pub(crate) fn late_refreshes(
    without_valid_token: u64,
    token_requests: u64,
    seconds: u64,
) -> Option<String> {
    // Each token is valid for a second and refreshed before it expires.
    if token_requests < seconds / 2 {
        return Some(format!(
            "only {token_requests} token requests in {seconds} s"
        ));
    }
    const MAX_PER_SECOND: u64 = 20;
    (without_valid_token > MAX_PER_SECOND * seconds)
        .then(|| format!("{without_valid_token} requests without a valid token"))
}

/// Describes a problem if there were more token requests than short lifetimes, renewals and
/// failures explain.
pub(crate) fn too_many_token_requests(token_requests: u64, seconds: u64) -> Option<String> {
    // One in 50 ms, the shortest back-off, if all of them failed; most of them succeed.
    const MAX_PER_SECOND: u64 = 20;
    (token_requests > MAX_PER_SECOND * (seconds + 1))
        .then(|| format!("{token_requests} token requests in {seconds} s"))
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TokenEndpoint => "token endpoint",
            Self::Api => "API",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Succeed => "success",
            Self::Unavailable => "503",
            Self::Reject => "401",
            Self::Close => "connection closed before the response",
            Self::Reset => "connection reset before the response",
            Self::CloseHalfway => "connection closed during the response",
            Self::ResetHalfway => "connection reset during the response",
        })
    }
}

impl State {
    /// Draws the latency of a request and the server's action.
    fn draw(&mut self, server: Server) -> (Duration, Action) {
        let latency = Duration::from_millis(self.rng.u64(1..80));
        // The token endpoint gets few requests, so it fails more often.
        let range = match server {
            Server::TokenEndpoint => 40,
            Server::Api => 100,
        };
        let action = match self.rng.u8(0..range) {
            0..2 => Action::Close,
            2..4 => Action::Reset,
            4..6 => Action::CloseHalfway,
            6..8 => Action::ResetHalfway,
            8..14 => Action::Unavailable,
            14..17 => Action::Reject,
            _ => Action::Succeed,
        };
        *self.actions.entry((server, action)).or_default() += 1;
        (latency, action)
    }

    fn begin(&mut self, server: Server) {
        let concurrent = self.concurrent.entry(server).or_default();
        *concurrent += 1;
        let max = self.max_concurrent.entry(server).or_default();
        *max = (*max).max(*concurrent);
    }

    fn issue(&mut self) -> String {
        let now = Instant::now();
        self.tokens.retain(|_, expires_at| *expires_at > now);
        self.issued += 1;
        let token = format!("token-{}", self.issued);
        let expires_at = now + Duration::from_secs(TOKEN_LIFETIME);
        self.tokens.insert(token.clone(), expires_at);
        format!(r#"{{"access_token":"{token}","expires_in":"{TOKEN_LIFETIME}"}}"#)
    }

    /// Whether the request has a valid token.
    fn has_valid_token(&self, request: &Request<Bytes>) -> bool {
        let header = request.headers().get(AUTHORIZATION);
        let token = header.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let expires_at = token.and_then(|token| self.tokens.get(token));
        expires_at.is_some_and(|expires_at| Instant::now() < *expires_at)
    }

    fn record(&mut self, request: &Request<Bytes>, action: Action) {
        let call = request.headers().get(CALL);
        let call = call.and_then(|value| value.to_str().ok()?.parse().ok());
        // Cancelled calls are no longer tracked.
        if let Some(last) = call.and_then(|call: u64| self.calls.get_mut(&call)) {
            *last = Some(action);
        }
    }
}

/// Handles a request. An error ends the connection.
async fn respond(
    state: Arc<Mutex<State>>,
    server: Server,
    request: Request<Bytes>,
) -> Result<Reply, io::Error> {
    let (latency, drawn) = lock(&state).draw(server);
    {
        let _in_progress = InProgress::new(&state, server);
        sleep(latency).await;
    }
    let (action, body) = {
        let mut state = lock(&state);
        let action = match (server, drawn) {
            (Server::Api, Action::Succeed) if !state.has_valid_token(&request) => {
                state.without_valid_token += 1;
                Action::Reject
            }
            _ => drawn,
        };
        state.record(&request, action);
        let body = match (server, action) {
            (
                Server::TokenEndpoint,
                Action::Succeed | Action::CloseHalfway | Action::ResetHalfway,
            ) => state.issue().into(),
            _ => request.into_body(),
        };
        (action, body)
    };
    match action {
        Action::Succeed => Ok(complete(StatusCode::OK, body)),
        Action::Unavailable => Ok(complete(StatusCode::SERVICE_UNAVAILABLE, error(action))),
        Action::Reject => Ok(complete(StatusCode::UNAUTHORIZED, error(action))),
        Action::Close | Action::Reset => Err(action.error()),
        Action::CloseHalfway | Action::ResetHalfway => Ok(half(&body, action)),
    }
}

/// Counts a request as in progress until this is dropped.
struct InProgress<'a> {
    state: &'a Mutex<State>,
    server: Server,
}

impl<'a> InProgress<'a> {
    fn new(state: &'a Mutex<State>, server: Server) -> Self {
        lock(state).begin(server);
        Self { state, server }
    }
}

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        let mut state = lock(self.state);
        *state.concurrent.entry(self.server).or_default() -= 1;
    }
}

/// Returns an error reply that names the fault.
fn error(action: Action) -> Bytes {
    let name = match action {
        Action::Reject => "injected_rejection",
        _ => "injected_unavailability",
    };
    format!(r#"{{"error":"{name}"}}"#).into()
}

fn complete(status: StatusCode, body: Bytes) -> Reply {
    let body = Full::new(body).map_err(|never| match never {});
    let mut reply = Response::new(body.boxed_unsync());
    *reply.status_mut() = status;
    reply
}

fn half(body: &Bytes, action: Action) -> Reply {
    let length = body.len();
    let first = stream::iter([Ok(Frame::data(body.slice(..length / 2)))]);
    // Gives the server time to send the first half.
    let rest = stream::once(async move {
        sleep(Duration::from_millis(2)).await;
        Err(action.error())
    });
    let body = StreamBody::new(first.chain(rest));
    let mut reply = Response::new(body.boxed_unsync());
    reply.headers_mut().insert(CONTENT_LENGTH, length.into());
    reply
}

async fn serve(
    tasks: &mut JoinSet<()>,
    state: &Arc<Mutex<State>>,
    server: Server,
) -> Result<SocketAddr, BoxError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let state = Arc::clone(state);
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve_connection(stream, Arc::clone(&state), server));
            // Frees the memory of connections that have ended.
            while connections.try_join_next().is_some() {}
        }
    });
    Ok(address)
}

async fn serve_connection(stream: TcpStream, state: Arc<Mutex<State>>, server: Server) {
    let service = service_fn(move |request: Request<Incoming>| {
        let state = Arc::clone(&state);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
            respond(state, server, Request::from_parts(head, body)).await
        })
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let result = poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
    let stream = connection.into_parts().io.into_inner();
    if result.is_err_and(|error| is_reset(&error)) {
        // Without linger, dropping the socket sends RST instead of FIN.
        let _ = stream.set_zero_linger();
    }
}

/// Whether a connection was reset by either side.
pub(crate) fn is_reset(error: &(dyn StdError + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
    })
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
