//! An authorization server and an API that behave as LinkedIn's documentation says, and as LinkedIn
//! was observed to do.
//!
//! They listen on loopback and share the list of issued tokens.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue},
};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep},
};
use tower_client_credentials::BoxError;

/// A registered application: its id and its secret. Like LinkedIn's secrets, this one needs
/// encoding.
pub(crate) const APPLICATION: (&str, &str) = ("77tt5zexample", "not/a+real=secret==");

/// An application without access to 2-legged OAuth.
pub(crate) const UNPRIVILEGED: (&str, &str) = ("77uu6yexample", "not/a+real=one=either==");

const TOKEN_PATH: &str = "/oauth/v2/accessToken";

/// The response time of the authorization server.
pub(crate) const TOKEN_DELAY: Duration = Duration::from_millis(50);

/// The response header in which the API returns the number of the token that it received.
pub(crate) const TOKEN_NUMBER: HeaderName = HeaderName::from_static("x-token-number");

/// The API's response to an unknown or expired token.
pub(crate) const INVALID: &str =
    r#"{"serviceErrorCode":65600,"message":"Invalid access token","status":401}"#;
const REVOKED: &str = r#"{"status":401,"serviceErrorCode":65601,"code":"REVOKED_ACCESS_TOKEN","message":"The token used in the request has been revoked by the user"}"#;
const EMPTY: &str =
    r#"{"message":"Empty oauth2_access_token","serviceErrorCode":401,"status":401}"#;

type Reply = Response<Full<Bytes>>;

/// Both servers. They stop when this is dropped.
pub(crate) struct Servers {
    pub(crate) token_url: String,
    pub(crate) api_url: String,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

/// The state that both servers share.
struct State {
    token_lifetime: Duration,
    token_requests: usize,
    /// The first is token #1.
    tokens: Vec<Token>,
    received: Vec<ReceivedRequest>,
    rejects_every_token: bool,
}

struct Token {
    text: String,
    expires_at: Instant,
    revoked: bool,
}

/// A request that the API received.
#[derive(Clone)]
pub(crate) struct ReceivedRequest {
    /// The number of the request's token.
    ///
    /// `None` without a token, and 0 for a token that was never issued.
    pub(crate) token: Option<usize>,
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl Servers {
    pub(crate) async fn start(token_lifetime: Duration) -> Result<Self, BoxError> {
        let state = Arc::new(Mutex::new(State {
            token_lifetime,
            token_requests: 0,
            tokens: Vec::new(),
            received: Vec::new(),
            rejects_every_token: false,
        }));
        let mut tasks = JoinSet::new();

        let shared = Arc::clone(&state);
        let authorization_server = serve(&mut tasks, move |request| {
            let state = Arc::clone(&shared);
            async move {
                lock(&state).token_requests += 1;
                sleep(TOKEN_DELAY).await;
                reply_to_token_request(&state, &request)
            }
        });
        let authorization_server = authorization_server.await?;

        let shared = Arc::clone(&state);
        let api = serve(&mut tasks, move |request| {
            let reply = lock(&shared).respond(&request);
            async move { reply }
        });
        let api = api.await?;

        Ok(Self {
            token_url: format!("http://{authorization_server}{TOKEN_PATH}"),
            api_url: format!("http://{api}/v2/posts"),
            state,
            _tasks: tasks,
        })
    }

    /// Revokes all tokens issued so far.
    pub(crate) fn revoke_tokens(&self) {
        for token in &mut lock(&self.state).tokens {
            token.revoked = true;
        }
    }

    /// Makes the API respond with 401 from now on, whatever the token.
    pub(crate) fn reject_every_token(&self) {
        lock(&self.state).rejects_every_token = true;
    }

    pub(crate) fn token_requests(&self) -> usize {
        lock(&self.state).token_requests
    }

    pub(crate) fn issued_tokens(&self) -> usize {
        lock(&self.state).tokens.len()
    }

    pub(crate) fn expired_tokens(&self) -> usize {
        let now = now();
        let has_expired = |token: &&Token| token.expires_at <= now;
        lock(&self.state).tokens.iter().filter(has_expired).count()
    }

    pub(crate) fn received(&self) -> Vec<ReceivedRequest> {
        lock(&self.state).received.clone()
    }
}

/// The reply of the authorization server.
fn reply_to_token_request(state: &Mutex<State>, request: &Request<Bytes>) -> Reply {
    if request.method() != Method::POST || request.uri().path() != TOKEN_PATH {
        return json_reply(StatusCode::NOT_FOUND, "{}");
    }
    match client_error(request) {
        None => lock(state).issue(),
        Some((status, error, description)) => {
            let body = json!({ "error": error, "error_description": description });
            json_reply(status, body.to_string())
        }
    }
}

/// Returns LinkedIn's documented errors. Credentials are only accepted in the form, not in a header
/// or the URL.
fn client_error(request: &Request<Bytes>) -> Option<(StatusCode, &'static str, String)> {
    let is_form = |value| value == "application/x-www-form-urlencoded";
    let form: HashMap<_, _> = match request.headers().get(CONTENT_TYPE) {
        Some(value) if is_form(value) => form_urlencoded::parse(request.body()).collect(),
        _ => HashMap::new(),
    };
    for required in ["grant_type", "client_id", "client_secret"] {
        if !form.contains_key(required) {
            let description = format!("A required parameter \"{required}\" is missing");
            return Some((StatusCode::BAD_REQUEST, "invalid_request", description));
        }
    }

    let id = &form["client_id"];
    let Some(known) = [APPLICATION, UNPRIVILEGED]
        .into_iter()
        .find(|known| known.0 == id)
    else {
        let description = format!("The passed in client_id is invalid \"{id}\"");
        return Some((StatusCode::BAD_REQUEST, "invalid_client_id", description));
    };
    if form["client_secret"] != known.1 {
        let description = "Client authentication failed".to_owned();
        return Some((StatusCode::UNAUTHORIZED, "invalid_client_id", description));
    }
    if known == UNPRIVILEGED || form["grant_type"] != "client_credentials" {
        let description = "This application is not allowed to create application tokens".to_owned();
        return Some((StatusCode::UNAUTHORIZED, "access_denied", description));
    }
    None
}

impl State {
    /// Issues a token. The lifetime is a string and there is no token type, as in LinkedIn's
    /// documentation.
    fn issue(&mut self) -> Reply {
        let text: String = (0..500).map(|_| fastrand::alphanumeric()).collect();
        let lifetime = self.token_lifetime.as_secs().to_string();
        let body = json!({ "access_token": text, "expires_in": lifetime }).to_string();
        self.tokens.push(Token {
            text,
            expires_at: now() + self.token_lifetime,
            revoked: false,
        });
        json_reply(StatusCode::OK, body)
    }

    /// The response of the API, which echoes the body of the request.
    fn respond(&mut self, request: &Request<Bytes>) -> Reply {
        let token = self.token_number(request);
        let mut reply = match self.token_error(token) {
            None => json_reply(StatusCode::OK, request.body().clone()),
            // LinkedIn sends no `WWW-Authenticate`.
            Some(error) => json_reply(StatusCode::UNAUTHORIZED, error),
        };
        if let Some(token) = token {
            reply.headers_mut().insert(TOKEN_NUMBER, token.into());
        }
        self.received.push(ReceivedRequest {
            token,
            status: reply.status(),
            body: request.body().clone(),
        });
        reply
    }

    /// See [`ReceivedRequest::token`].
    fn token_number(&self, request: &Request<Bytes>) -> Option<usize> {
        let header = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
        let text = header.strip_prefix("Bearer ")?;
        let index = self.tokens.iter().position(|token| token.text == text);
        Some(index.map_or(0, |index| index + 1))
    }

    fn token_error(&self, number: Option<usize>) -> Option<&'static str> {
        let Some(number) = number else {
            return Some(EMPTY);
        };
        match number.checked_sub(1).map(|index| &self.tokens[index]) {
            Some(token) if token.revoked => Some(REVOKED),
            Some(token) if !self.rejects_every_token && now() < token.expires_at => None,
            _ => Some(INVALID),
        }
    }
}

fn json_reply(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    reply.headers_mut().insert(CONTENT_TYPE, json);
    reply
}

/// Serves HTTP/1.1 on a free port until the tasks are dropped.
async fn serve<F, Fut>(tasks: &mut JoinSet<()>, handler: F) -> Result<SocketAddr, BoxError>
where
    F: Fn(Request<Bytes>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Reply> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve_connection(stream, handler.clone()));
        }
    });
    Ok(address)
}

async fn serve_connection<F, Fut>(stream: TcpStream, handler: F)
where
    F: Fn(Request<Bytes>) -> Fut + Clone,
    Fut: Future<Output = Reply>,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = handler.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>(handler(Request::from_parts(head, body)).await)
        }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // Clients may close their connections at any time.
    let _ = connection.await;
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[allow(
    clippy::disallowed_methods,
    reason = "the servers have their own clock"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}
