//! Both servers and a control API on one port, for programs in other languages.
//!
//! The program of this crate serves [`Control`]. Its paths:
//!
//! | path | what answers |
//! |---|---|
//! | the token path, by default that of the personality | the [`AuthServer`] |
//! | `/control` and below | the control API |
//! | any other | the [`Api`] |
//!
//! The control API has no access control, so serve it on loopback only. The body of a request is a
//! JSON object, whatever its content type, and so is each response. An unknown path gets status 404,
//! another method status 405, and a body that the control API can't read status 400; each says why
//! in `error`.
//!
//! | request | body | what it does |
//! |---|---|---|
//! | `GET /control` | | lists these requests |
//! | `POST /control/auth/next_once`, `/control/api/next_once` | a [reply](#replies) | sets the reply to the next request |
//! | `POST /control/auth/always`, `/control/api/always` | a [reply](#replies) | sets the reply to all requests |
//! | `POST /control/clear_script` | | removes all scripted replies |
//! | `POST /control/revoke_all` | | revokes all tokens |
//! | `POST /control/revoke` | `{"token": "..."}` or `{"number": 1}` | revokes a token; the result is `{"revoked": true}` if it was issued |
//! | `POST /control/clients` | `{"id": "...", "secret": "...", "scopes": ["..."]}`, scopes optional | registers a client |
//! | `POST /control/lifetime` | `{"seconds": 60}` or `{"seconds": null}` | sets the lifetime of tokens |
//! | `POST /control/accept_from` | `{"seconds": 2}` | refuses tokens that are younger |
//! | `GET /control/counters` | | `token_requests`, `issued_tokens`, `refused_token_requests`, `sends`, `accepted_sends`, `refused_sends` |
//! | `GET /control/requests` | | what both servers saw, without secrets and tokens: `auth`, `api`, `description` |
//!
//! # Replies
//!
//! A reply is an object with the member `reply`, and optional members that say how it is sent:
//!
//! | `reply` | meaning |
//! |---|---|
//! | `"normal"` | [`Reply::normal`] |
//! | `{"status": 503}` | [`Reply::status`] |
//! | `{"oauth_error": {"error": "invalid_client", "description": "..."}}` | [`Reply::oauth_error`]; the description is optional |
//! | `{"unauthorized": "Bearer error=\"invalid_token\""}` | [`Reply::unauthorized`] |
//! | `{"redirect": "https://example.com/"}` | [`Reply::redirect`] |
//! | `"garbage"`, `"hang"`, `"reset"` | the functions of [`Reply`] with these names |
//! | `{"token": {"lifetime": 60, "text": "...", "members": {}, "omit": []}}` | [`TokenReply::new`]; each member is optional; `"lifetime": null` means that none is stated |
//! | `"same_token"` | [`TokenReply::same_again`] |
//!
//! | member | value |
//! |---|---|
//! | `code` | a status in place of that of the reply |
//! | `headers` | an object, such as `{"retry-after": "1"}`, without `content-length` |
//! | `body` | a text |
//! | `delay_ms` | a number of milliseconds |
//! | `cut_off`, `stalled`, `before_body` | `true` |
//!
//! Only `/control/auth` takes token replies.
//!
//! ```console
//! curl -d '{"reply": {"status": 503}, "headers": {"retry-after": "1"}}' http://127.0.0.1:9400/control/auth/next_once
//! ```

use std::{
    collections::BTreeMap,
    io,
    task::{Context, Poll},
    time::Duration,
};

use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE},
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use tower_service::Service;

use crate::{
    Api, AuthReply, AuthServer, Body, BoxError, Client, Reply, ResponseFuture, TokenReply,
    received::scopes, reply::LENGTH_IS_OF_BODY, request_body,
};

/// The method and the path of each request, and what it does.
const REQUESTS: [(&str, &str, &str); 13] = [
    ("GET", "", "lists these requests"),
    (
        "POST",
        "auth/next_once",
        "sets the reply to the next token request",
    ),
    (
        "POST",
        "auth/always",
        "sets the reply to all token requests",
    ),
    (
        "POST",
        "api/next_once",
        "sets the reply to the next request to the API",
    ),
    (
        "POST",
        "api/always",
        "sets the reply to all requests to the API",
    ),
    ("POST", "clear_script", "removes all scripted replies"),
    ("POST", "revoke_all", "revokes all tokens"),
    (
        "POST",
        "revoke",
        r#"revokes a token: {"token": "..."} or {"number": 1}"#,
    ),
    (
        "POST",
        "clients",
        r#"registers a client: {"id": "...", "secret": "...", "scopes": ["..."]}"#,
    ),
    (
        "POST",
        "lifetime",
        r#"sets the lifetime of tokens: {"seconds": 60} or {"seconds": null}"#,
    ),
    (
        "POST",
        "accept_from",
        r#"refuses tokens that are younger: {"seconds": 2}"#,
    ),
    ("GET", "counters", "counts the requests and tokens"),
    ("GET", "requests", "returns what both servers saw"),
];

/// The body of a request to the control API.
const MAX_BODY: usize = 1024 * 1024;

/// Both servers and the control API as one service. See the [module documentation](self).
///
/// # Examples
///
/// ```
/// use tower_client_credentials_test::{Api, AuthServer, Server, control::Control};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let auth = AuthServer::new().with_client("my-client", "s3cret");
/// let control = Control::new(&auth, &Api::new(&auth));
/// let server = Server::start(control).await?;
/// println!("{}", server.url("/control/counters"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Control {
    auth: AuthServer,
    api: Api,
}

impl Control {
    /// Creates the control API of these servers.
    pub fn new(auth: &AuthServer, api: &Api) -> Self {
        Self {
            auth: auth.clone(),
            api: api.clone(),
        }
    }

    async fn respond<B>(self, request: Request<B>) -> io::Result<Response<Body>>
    where
        B: http_body::Body<Error: Into<BoxError>>,
    {
        let (head, body) = request.into_parts();
        let reply = match request_body::read(body, MAX_BODY).await {
            Ok(body) => self.control(&head.method, head.uri.path(), &body),
            Err(_) => Err(Failure::bad_request("the body is incomplete or too large")),
        };
        let (status, reply) = match reply {
            Ok(reply) => (StatusCode::OK, reply),
            Err(Failure { status, message }) => (status, json!({ "error": message })),
        };
        let allowed = match status {
            StatusCode::METHOD_NOT_ALLOWED => method_of(action(head.uri.path())),
            _ => None,
        };
        let mut response = Response::new(Body::from(reply.to_string()));
        *response.status_mut() = status;
        if let Some(allowed) = allowed {
            let headers = response.headers_mut();
            headers.insert(ALLOW, HeaderValue::from_static(allowed));
        }
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        Ok(response)
    }

    fn control(&self, method: &Method, path: &str, body: &[u8]) -> Result<Value, Failure> {
        let (auth, api) = (&self.auth, &self.api);
        match (method.as_str(), action(path)) {
            ("GET", "") => return Ok(index()),
            ("GET", "counters") => return Ok(self.counters()),
            ("GET", "requests") => return Ok(self.requests()),
            ("POST", "auth/next_once") => drop(auth.next_once(auth_reply(body)?)),
            ("POST", "auth/always") => drop(auth.always(auth_reply(body)?)),
            ("POST", "api/next_once") => drop(api.next_once(api_reply(body)?)),
            ("POST", "api/always") => drop(api.always(api_reply(body)?)),
            ("POST", "clear_script") => {
                auth.clear_script();
                api.clear_script();
            }
            ("POST", "revoke_all") => drop(auth.revoke_all()),
            ("POST", "revoke") => {
                let revoked = match parse(body)? {
                    Revoke::Token(token) => auth.revoke(&token),
                    Revoke::Number(number) => auth.revoke_number(number),
                };
                return Ok(json!({ "revoked": revoked }));
            }
            ("POST", "clients") => drop(auth.register(parse::<NewClient>(body)?.into())),
            ("POST", "lifetime") => drop(match parse::<Lifetime>(body)?.seconds {
                Some(seconds) => auth.lifetime(duration(seconds)?),
                None => auth.without_lifetime(),
            }),
            ("POST", "accept_from") => {
                auth.accept_from(duration(parse::<Seconds>(body)?.seconds)?);
            }
            _ => {
                return Err(Failure {
                    status: match method_of(action(path)) {
                        Some(_) => StatusCode::METHOD_NOT_ALLOWED,
                        None => StatusCode::NOT_FOUND,
                    },
                    message: format!("the control API has no {method} {path}"),
                });
            }
        }
        Ok(json!({}))
    }

    fn counters(&self) -> Value {
        json!({
            "token_requests": self.auth.token_requests(),
            "issued_tokens": self.auth.issued_tokens(),
            "refused_token_requests": self.auth.refused_requests(),
            "sends": self.api.sends(),
            "accepted_sends": self.api.accepted_requests(),
            "refused_sends": self.api.refused_requests(),
        })
    }

    fn requests(&self) -> Value {
        let token_requests = self.auth.requests().into_iter().map(|request| {
            let scopes = request.shown.scope.as_deref().map(scopes);
            json!({
                "number": request.number(),
                "method": request.shown.head.method,
                "path": request.shown.head.path,
                "client_id": request.shown.client_id,
                "auth_method": request.auth_method().map(|method| method.to_string()),
                "grant_type": request.shown.grant_type,
                "scopes": scopes.unwrap_or_default(),
                "status": request.outcome().status().map(|status| status.as_u16()),
                "outcome": request.outcome().to_string(),
                "token_number": request.token_number(),
                "refusal": request.refusal().map(ToString::to_string),
            })
        });
        let sends = self.api.requests().into_iter().map(|request| {
            json!({
                "number": request.number(),
                "method": request.shown.method,
                "path": request.shown.path,
                "token_number": request.token_number(),
                "token_state": request.token_state().to_string(),
                "body_length": request.body().map(bytes::Bytes::len),
                "status": request.outcome().status().map(|status| status.as_u16()),
                "outcome": request.outcome().to_string(),
            })
        });
        json!({
            "auth": token_requests.collect::<Vec<_>>(),
            "api": sends.collect::<Vec<_>>(),
            "description": format!("{}\n{}", self.auth.describe(), self.api.describe()),
        })
    }
}

impl<B> Service<Request<B>> for Control
where
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = io::Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        let path = request.uri().path();
        if path == self.auth.path() {
            self.auth.call(request)
        } else if path == "/control" || path.starts_with("/control/") {
            ResponseFuture::new(self.clone().respond(request))
        } else {
            self.api.call(request)
        }
    }
}

/// What a path names, such as `auth/always`.
fn action(path: &str) -> &str {
    path.strip_prefix("/control")
        .unwrap_or(path)
        .trim_matches('/')
}

/// The method of the requests with this path.
fn method_of(action: &str) -> Option<&'static str> {
    let request = REQUESTS.iter().find(|(_, path, _)| *path == action);
    request.map(|(method, ..)| *method)
}

fn index() -> Value {
    let requests = REQUESTS.iter().map(|(method, path, description)| {
        let path = format!("/control/{path}");
        let path = path.trim_end_matches('/');
        json!({ "method": method, "path": path, "description": description })
    });
    json!({ "requests": requests.collect::<Vec<_>>() })
}

/// Why a request to the control API has no effect.
struct Failure {
    status: StatusCode,
    message: String,
}

impl Failure {
    fn bad_request(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            message: message.into(),
        }
    }

    /// A value in the body is wrong.
    fn value(error: impl Into<BoxError>) -> Self {
        Self::bad_request(error.into().to_string())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Revoke {
    Token(String),
    Number(usize),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewClient {
    id: String,
    secret: String,
    scopes: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Seconds {
    seconds: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lifetime {
    #[serde(deserialize_with = "Option::deserialize")]
    seconds: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScriptedReply {
    reply: Kind,
    code: Option<u16>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<String>,
    #[serde(default)]
    delay_ms: u64,
    #[serde(default)]
    cut_off: bool,
    #[serde(default)]
    stalled: bool,
    #[serde(default)]
    before_body: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Kind {
    Normal,
    Status(u16),
    OauthError(OauthError),
    Unauthorized(String),
    Redirect(String),
    Garbage,
    Hang,
    Reset,
    Token(Token),
    SameToken,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OauthError {
    error: String,
    description: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    /// The outer option is `None` if the member is missing, the inner one if it is `null`.
    #[serde(default, deserialize_with = "some")]
    lifetime: Option<Option<f64>>,
    text: Option<String>,
    #[serde(default)]
    members: Map<String, Value>,
    #[serde(default)]
    omit: Vec<String>,
}

fn some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<f64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(Failure::value)
}

fn duration(seconds: f64) -> Result<Duration, Failure> {
    Duration::try_from_secs_f64(seconds).map_err(Failure::value)
}

impl From<NewClient> for Client {
    fn from(client: NewClient) -> Self {
        let new = Self::new(client.id, client.secret);
        match client.scopes {
            Some(scopes) => new.with_scopes(scopes),
            None => new,
        }
    }
}

fn api_reply(body: &[u8]) -> Result<Reply, Failure> {
    let scripted: ScriptedReply = parse(body)?;
    scripted.check()?;
    let reply = scripted.any_reply();
    reply.ok_or_else(|| Failure::bad_request("only the authorization server issues tokens"))
}

fn auth_reply(body: &[u8]) -> Result<AuthReply, Failure> {
    let scripted: ScriptedReply = parse(body)?;
    scripted.check()?;
    match scripted.any_reply() {
        Some(reply) => Ok(reply.into()),
        None => Ok(scripted.token_reply()?.into()),
    }
}

/// Applies the members that both kinds of reply have in common.
macro_rules! delivered {
    ($scripted:expr, $reply:expr) => {{
        let (scripted, mut reply) = ($scripted, $reply);
        reply = reply.delayed(Duration::from_millis(scripted.delay_ms));
        if let Some(code) = scripted.code {
            reply = reply.with_status(code);
        }
        for (name, value) in &scripted.headers {
            reply = reply.with_header(name, value);
        }
        if let Some(body) = &scripted.body {
            reply = reply.with_body(body.clone());
        }
        if scripted.cut_off {
            reply = reply.cut_off();
        }
        if scripted.stalled {
            reply = reply.stalled();
        }
        reply
    }};
}

impl ScriptedReply {
    /// Checks the values for which the constructors of replies panic.
    fn check(&self) -> Result<(), Failure> {
        let status = match self.reply {
            Kind::Status(status) => Some(status),
            _ => None,
        };
        let is_final = |status: &u16| (200..=999).contains(status);
        if let Some(status) = status.iter().chain(&self.code).find(|it| !is_final(it)) {
            let message = format!("{status} is not the status of a reply");
            return Err(Failure::bad_request(message));
        }
        let value = match &self.reply {
            Kind::Unauthorized(value) | Kind::Redirect(value) => Some(value),
            _ => None,
        };
        for name in self.headers.keys() {
            if HeaderName::try_from(name).map_err(Failure::value)? == CONTENT_LENGTH {
                return Err(Failure::bad_request(LENGTH_IS_OF_BODY));
            }
        }
        for value in self.headers.values().chain(value) {
            HeaderValue::try_from(value).map_err(Failure::value)?;
        }
        Ok(())
    }

    /// Returns `None` for a reply with a token.
    fn any_reply(&self) -> Option<Reply> {
        let reply = match &self.reply {
            Kind::Normal => Reply::normal(),
            Kind::Status(status) => Reply::status(*status),
            Kind::OauthError(OauthError { error, description }) => match description {
                Some(description) => Reply::oauth_error_with_description(error, description),
                None => Reply::oauth_error(error),
            },
            Kind::Unauthorized(challenge) => Reply::unauthorized(challenge),
            Kind::Redirect(location) => Reply::redirect(location),
            Kind::Garbage => Reply::garbage(),
            Kind::Hang => Reply::hang(),
            Kind::Reset => Reply::reset(),
            Kind::Token(_) | Kind::SameToken => return None,
        };
        let reply = delivered!(self, reply);
        Some(if self.before_body {
            reply.before_body()
        } else {
            reply
        })
    }

    fn token_reply(&self) -> Result<TokenReply, Failure> {
        if self.before_body {
            let message = "a reply with a token depends on the request's body";
            return Err(Failure::bad_request(message));
        }
        let Kind::Token(token) = &self.reply else {
            return Ok(delivered!(self, TokenReply::same_again()));
        };
        let mut reply = match &token.text {
            Some(text) => TokenReply::text(text),
            None => TokenReply::new(),
        };
        reply = match token.lifetime {
            None => reply,
            Some(None) => reply.without_lifetime(),
            Some(Some(seconds)) => reply.with_lifetime(duration(seconds)?),
        };
        for (name, value) in &token.members {
            reply = reply.with_member(name, value.clone());
        }
        for name in &token.omit {
            reply = reply.without_member(name);
        }
        Ok(delivered!(self, reply))
    }
}
