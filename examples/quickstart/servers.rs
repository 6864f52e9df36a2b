//! An authorization server and an API that answer as LinkedIn is documented, and was seen, to do.
//!
//! They listen on loopback and share a book of the tokens that were issued.

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

/// A registered application: its id and its secret, which needs encoding as LinkedIn's do.
pub(crate) const APPLICATION: (&str, &str) = ("77tt5zexample", "not/a+real=secret==");

/// An application that may not create 2-legged tokens.
pub(crate) const UNPRIVILEGED: (&str, &str) = ("77uu6yexample", "not/a+real=one=either==");

const TOKEN_PATH: &str = "/oauth/v2/accessToken";

/// How long the authorization server thinks.
pub(crate) const TOKEN_DELAY: Duration = Duration::from_millis(50);

/// Tells callers of the API which token arrived, by its number.
pub(crate) const TOKEN_NUMBER: HeaderName = HeaderName::from_static("x-token-number");

/// What the API says of a token that it does not know, or that has expired.
pub(crate) const INVALID: &str =
    r#"{"serviceErrorCode":65600,"message":"Invalid access token","status":401}"#;
const REVOKED: &str = r#"{"status":401,"serviceErrorCode":65601,"code":"REVOKED_ACCESS_TOKEN","message":"The token used in the request has been revoked by the user"}"#;
const EMPTY: &str =
    r#"{"message":"Empty oauth2_access_token","serviceErrorCode":401,"status":401}"#;

type Reply = Response<Full<Bytes>>;

/// Both servers; they stop when this is dropped.
pub(crate) struct Servers {
    pub(crate) token_url: String,
    pub(crate) api_url: String,
    book: Arc<Mutex<Book>>,
    _tasks: JoinSet<()>,
}

/// What both servers know.
struct Book {
    token_life: Duration,
    token_requests: usize,
    /// The first is token #1.
    tokens: Vec<Token>,
    arrivals: Vec<Arrival>,
    refuses_every_token: bool,
}

struct Token {
    text: String,
    ends_at: Instant,
    revoked: bool,
}

/// A request, as it came to the API.
#[derive(Clone)]
pub(crate) struct Arrival {
    /// The number of its token, if it had one.
    pub(crate) token: Option<usize>,
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl Servers {
    pub(crate) async fn start(token_life: Duration) -> Result<Self, BoxError> {
        let book = Arc::new(Mutex::new(Book {
            token_life,
            token_requests: 0,
            tokens: Vec::new(),
            arrivals: Vec::new(),
            refuses_every_token: false,
        }));
        let mut tasks = JoinSet::new();

        let tokens = Arc::clone(&book);
        let authorization_server = serve(&mut tasks, move |request| {
            let book = Arc::clone(&tokens);
            async move {
                lock(&book).token_requests += 1;
                sleep(TOKEN_DELAY).await;
                issue_token(&book, &request)
            }
        });
        let authorization_server = authorization_server.await?;

        let arrivals = Arc::clone(&book);
        let api = serve(&mut tasks, move |request| {
            let reply = lock(&arrivals).answer(&request);
            async move { reply }
        });
        let api = api.await?;

        Ok(Self {
            token_url: format!("http://{authorization_server}{TOKEN_PATH}"),
            api_url: format!("http://{api}/v2/posts"),
            book,
            _tasks: tasks,
        })
    }

    /// Revokes all tokens that were issued so far.
    pub(crate) fn revoke_tokens(&self) {
        for token in &mut lock(&self.book).tokens {
            token.revoked = true;
        }
    }

    /// Makes the API answer 401 from now on, whatever the token.
    pub(crate) fn refuse_every_token(&self) {
        lock(&self.book).refuses_every_token = true;
    }

    pub(crate) fn token_requests(&self) -> usize {
        lock(&self.book).token_requests
    }

    pub(crate) fn issued_tokens(&self) -> usize {
        lock(&self.book).tokens.len()
    }

    pub(crate) fn expired_tokens(&self) -> usize {
        let now = now();
        let has_expired = |token: &&Token| token.ends_at <= now;
        lock(&self.book).tokens.iter().filter(has_expired).count()
    }

    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        lock(&self.book).arrivals.clone()
    }
}

/// The authorization server.
fn issue_token(book: &Mutex<Book>, request: &Request<Bytes>) -> Reply {
    if request.method() != Method::POST || request.uri().path() != TOKEN_PATH {
        return json_reply(StatusCode::NOT_FOUND, "{}");
    }
    match objection_to_client(request) {
        None => lock(book).issue(),
        Some((status, error, description)) => {
            let body = json!({ "error": error, "error_description": description });
            json_reply(status, body.to_string())
        }
    }
}

/// LinkedIn's documented errors. Credentials count in the form only, not in a header or the URL.
fn objection_to_client(request: &Request<Bytes>) -> Option<(StatusCode, &'static str, String)> {
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

impl Book {
    /// The lifetime is a string and there is no token type, as in LinkedIn's documentation.
    fn issue(&mut self) -> Reply {
        let text: String = (0..500).map(|_| fastrand::alphanumeric()).collect();
        let life = self.token_life.as_secs().to_string();
        let body = json!({ "access_token": text, "expires_in": life }).to_string();
        self.tokens.push(Token {
            text,
            ends_at: now() + self.token_life,
            revoked: false,
        });
        json_reply(StatusCode::OK, body)
    }

    /// The API: echoes what was posted.
    fn answer(&mut self, request: &Request<Bytes>) -> Reply {
        let token = self.number_of_token(request);
        let mut reply = match self.objection_to_token(token) {
            None => json_reply(StatusCode::OK, request.body().clone()),
            // LinkedIn sends no `WWW-Authenticate`.
            Some(objection) => json_reply(StatusCode::UNAUTHORIZED, objection),
        };
        if let Some(token) = token {
            reply.headers_mut().insert(TOKEN_NUMBER, token.into());
        }
        self.arrivals.push(Arrival {
            token,
            status: reply.status(),
            body: request.body().clone(),
        });
        reply
    }

    /// `None` without a token, and 0 for one that was never issued.
    fn number_of_token(&self, request: &Request<Bytes>) -> Option<usize> {
        let header = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
        let text = header.strip_prefix("Bearer ")?;
        let index = self.tokens.iter().position(|token| token.text == text);
        Some(index.map_or(0, |index| index + 1))
    }

    fn objection_to_token(&self, number: Option<usize>) -> Option<&'static str> {
        let Some(number) = number else {
            return Some(EMPTY);
        };
        match number.checked_sub(1).map(|index| &self.tokens[index]) {
            Some(token) if token.revoked => Some(REVOKED),
            Some(token) if !self.refuses_every_token && now() < token.ends_at => None,
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
async fn serve<F, Fut>(tasks: &mut JoinSet<()>, answer: F) -> Result<SocketAddr, BoxError>
where
    F: Fn(Request<Bytes>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Reply> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve_connection(stream, answer.clone()));
        }
    });
    Ok(address)
}

async fn serve_connection<F, Fut>(stream: TcpStream, answer: F)
where
    F: Fn(Request<Bytes>) -> Fut + Clone,
    Fut: Future<Output = Reply>,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>(answer(Request::from_parts(head, body)).await)
        }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A client that went away is no concern of the server; the steps see what matters.
    let _ = connection.await;
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

#[allow(
    clippy::disallowed_methods,
    reason = "servers, and those who measure them, have a clock of their own"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}
