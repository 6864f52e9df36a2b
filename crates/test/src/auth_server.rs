use std::{
    collections::{HashMap, VecDeque},
    fmt, io, iter, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use tokio::{sync::watch, time::Instant};
use tower_service::Service;

use crate::{
    AuthReply, Body, BoxError, Client, FailureReport, HttpClient, IssuedToken, Outcome,
    Personality, ReceivedTokenRequest, Refusal, Reply, ResponseFuture, Server, TestClock,
    TokenReply, TokenState,
    grant::{self, Credentials, Grant},
    personality::Standard,
    received::{Log, ShownHead, ShownTokenRequest},
    redact::redacted,
    reply::{AuthReplyKind, Lifetime, TokenChoice, wait},
    request_body::{self, ReadError},
    script::{Script, Scripted, Seen},
    tokens::Tokens,
};

/// Former secrets are remembered only because they aren't shown.
const MAX_FORMER_SECRETS: usize = 1000;

/// A token request is a short form.
const MAX_FORM: usize = 1024 * 1024;

/// An OAuth 2.0 authorization server for tests of clients that use the client-credentials grant.
///
/// The server checks each token request as RFC 6749 says: the client authenticates with its secret
/// in the header or in the form, names the grant, and asks only for scopes that it may have. It
/// issues opaque tokens that an [`Api`](crate::Api) accepts until they expire or are revoked.
///
/// An `AuthServer` is a handle: clones share one server, and each method also works while requests
/// are served. Methods that change the server return another handle, so that calls can be chained.
///
/// # In process and on a port
///
/// `AuthServer` is a `Service<Request<B>>` for requests with any body. A client that takes an HTTP
/// client as a tower service can use it without a socket, and with Tokio's clock paused. If the
/// compiler can't infer the body type, use [`http_client`](Self::http_client).
///
/// [`serve`](Self::serve) listens on a port of the loopback interface. Don't pause Tokio's clock
/// then: while a paused runtime waits for a socket, its clock jumps to the next timer, and timeouts
/// end requests that are on their way. To let a token expire on a port, give the server a
/// [`clock`](Self::clock) that the test advances, issue short-lived tokens, or use
/// [`revoke_all`](Self::revoke_all).
///
/// # Scripts
///
/// By default, the server issues a new token for each accepted request. [`next_once`] sets the reply
/// to one request, and [`always`] the reply to all requests that have none of their own. The replies
/// are [`Reply`] and [`TokenReply`].
///
/// # What the server saw
///
/// [`requests`](Self::requests) returns the parsed requests, and `assert_*` methods check them. A
/// failed assertion prints the latest 50 requests, without secrets and tokens.
///
/// # Memory
///
/// The server keeps at most the latest 10,000 requests and 128 MiB of them: URIs, headers,
/// parameters and refusals. It keeps at most the latest 100,000 tokens and 64 MiB of them, with
/// their scopes. It doesn't know older tokens any more. The counters are exact.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use http::Request;
/// use tower::ServiceExt;
/// use tower_client_credentials_test::{AuthServer, BoxError, Reply};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let auth = AuthServer::new()
///     .with_client("my-client", "s3cret")
///     .lifetime(Duration::from_secs(600));
/// auth.next_once(Reply::status(503).with_header("retry-after", "1"));
///
/// let token_request = || {
///     Request::post("https://auth.example.com/token")
///         .header("content-type", "application/x-www-form-urlencoded")
///         .body("grant_type=client_credentials&client_id=my-client&client_secret=s3cret".to_owned())
/// };
/// let response = auth.clone().oneshot(token_request()?).await?;
/// assert_eq!(response.status(), 503);
/// let response = auth.clone().oneshot(token_request()?).await?;
/// assert_eq!(response.status(), 200);
///
/// auth.assert_token_requests(2);
/// assert_eq!(auth.issued_tokens(), 1);
/// # Ok(())
/// # }
/// ```
///
/// [`next_once`]: Self::next_once
/// [`always`]: Self::always
#[derive(Clone)]
pub struct AuthServer(Arc<Shared>);

struct Shared {
    created_at: Instant,
    /// Never locked while a function of the user runs.
    state: Mutex<State>,
    /// The number of requests that have arrived.
    arrived: watch::Sender<usize>,
    /// The number of tokens that were issued.
    issued: watch::Sender<usize>,
}

/// Everything that clones share and methods change.
struct State {
    personality: Arc<dyn Personality>,
    clients: HashMap<String, Client>,
    /// The latest secrets that clients had before.
    former_secrets: VecDeque<String>,
    token_path: Option<String>,
    lifetime: Option<Lifetime>,
    token_length: Option<usize>,
    clock: Option<ClockSetting>,
    tokens: Tokens,
    refused: usize,
    script: Script<AuthReply, ReceivedTokenRequest>,
    log: Log<ReceivedTokenRequest>,
}

impl State {
    fn redacted(&self, text: &str, own: &[String]) -> String {
        let clients = self.clients.values().map(|client| &client.secret);
        let tokens = self.tokens.iter().map(|token| &token.text);
        let secrets = clients.chain(&self.former_secrets).chain(tokens).chain(own);
        redacted(text, secrets.map(String::as_str))
    }
}

/// A clock that replaces Tokio's.
struct ClockSetting {
    clock: TestClock,
    /// What the clock showed when the server was created.
    origin: SystemTime,
}

/// Options.
impl AuthServer {
    /// Creates a server without clients that behaves as the RFCs say.
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            created_at: Instant::now(),
            state: Mutex::new(State {
                personality: Arc::new(Standard),
                clients: HashMap::new(),
                former_secrets: VecDeque::new(),
                token_path: None,
                lifetime: None,
                token_length: None,
                clock: None,
                tokens: Tokens::default(),
                refused: 0,
                script: Script::new(),
                log: Log::new(),
            }),
            arrived: watch::Sender::new(0),
            issued: watch::Sender::new(0),
        }))
    }

    /// Registers a client that may ask for any scope. If the id is registered, its secret changes.
    pub fn with_client(&self, id: impl Into<String>, secret: impl Into<String>) -> Self {
        self.register(Client::new(id, secret))
    }

    /// Registers a client, or replaces the one with the same id.
    pub fn register(&self, client: Client) -> Self {
        self.set(|state| {
            if let Some(former) = state.clients.insert(client.id.clone(), client) {
                state.former_secrets.push_back(former.secret);
            }
            if state.former_secrets.len() > MAX_FORMER_SECRETS {
                state.former_secrets.pop_front();
            }
        })
    }

    /// Sets the provider whose behavior the server imitates. Default:
    /// [`Standard`](crate::personality::Standard).
    pub fn personality(&self, personality: impl Personality) -> Self {
        let personality: Arc<dyn Personality> = Arc::new(personality);
        self.set(|state| mem::replace(&mut state.personality, personality))
    }

    /// Sets the lifetime of tokens, and the `expires_in` of replies in whole seconds. Default: that
    /// of the personality, which is one hour for the standard one.
    pub fn lifetime(&self, lifetime: Duration) -> Self {
        self.set(|state| state.lifetime = Some(Lifetime::Of(lifetime)))
    }

    /// Issues tokens that don't expire, without `expires_in`.
    pub fn without_lifetime(&self) -> Self {
        self.set(|state| state.lifetime = Some(Lifetime::Unstated))
    }

    /// Sets the number of characters of a token. Default: that of the personality, which is 43 for
    /// the standard one. Short tokens aren't necessarily unique.
    pub fn token_length(&self, characters: usize) -> Self {
        self.set(|state| state.token_length = Some(characters))
    }

    /// Restricts the token endpoint to this path. Requests to other paths get status 404. Default:
    /// any path.
    pub fn token_path(&self, path: impl Into<String>) -> Self {
        self.set(|state| state.token_path = Some(path.into()))
    }

    /// Measures the age of tokens by this clock. Default: Tokio's clock.
    pub fn clock(&self, clock: &TestClock) -> Self {
        let now = self.now();
        let origin = clock
            .now()
            .checked_sub(now)
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let clock = clock.clone();
        self.set(|state| state.clock = Some(ClockSetting { clock, origin }))
    }

    /// Makes APIs refuse tokens that are younger than this, as servers do whose tokens take a while
    /// to be known everywhere. Default: zero.
    pub fn accept_from(&self, age: Duration) -> Self {
        self.set(|state| state.tokens.accept_from = age)
    }
}

/// The script.
impl AuthServer {
    /// Sets the reply to the next request only. Further calls set the replies to the requests after
    /// it, in this order.
    ///
    /// A [`TokenReply`] applies to the next request that the server accepts. Every other reply
    /// applies to the next request, whatever it contains.
    pub fn next_once(&self, reply: impl Into<AuthReply>) -> Self {
        self.set(|state| state.script.next_once(reply.into()))
    }

    /// Sets the reply to each request that has none from [`next_once`](Self::next_once).
    ///
    /// `always(Reply::normal())` ends this.
    pub fn always(&self, reply: impl Into<AuthReply>) -> Self {
        self.set(|state| state.script.always(reply.into()))
    }

    /// Like [`always`](Self::always), with a function that chooses the reply to each request.
    ///
    /// ```
    /// use tower_client_credentials_test::{AuthServer, Reply};
    ///
    /// let auth = AuthServer::new().with_client("my-client", "s3cret");
    /// // Every third token request fails.
    /// auth.always_by(|request| match request.number() % 3 {
    ///     0 => Reply::status(500),
    ///     _ => Reply::normal(),
    /// });
    /// ```
    pub fn always_by<F, R>(&self, choose: F) -> Self
    where
        F: Fn(&ReceivedTokenRequest) -> R + Send + Sync + 'static,
        R: Into<AuthReply>,
    {
        let choose = Arc::new(move |request: &ReceivedTokenRequest| choose(request).into());
        self.set(|state| state.script.always_by(Seen::Everything, choose))
    }

    /// Like [`always_by`](Self::always_by), with a function that is called before the body is read,
    /// so that it can choose a reply [before the body](Reply::before_body). The request that it gets
    /// has no parameters and no client yet.
    pub fn always_by_head<F, R>(&self, choose: F) -> Self
    where
        F: Fn(&ReceivedTokenRequest) -> R + Send + Sync + 'static,
        R: Into<AuthReply>,
    {
        let choose = Arc::new(move |request: &ReceivedTokenRequest| choose(request).into());
        self.set(|state| state.script.always_by(Seen::Head, choose))
    }

    /// Removes every scripted reply.
    pub fn clear_script(&self) -> Self {
        self.set(|state| state.script.clear())
    }

    /// Revokes every token issued so far.
    pub fn revoke_all(&self) -> Self {
        self.set(|state| state.tokens.revoke_all())
    }

    /// Revokes a token by its text. Returns whether the server has issued it.
    pub fn revoke(&self, token: &str) -> bool {
        let mut state = self.lock();
        let number = state.tokens.by_text(token).map(IssuedToken::number);
        number.is_some_and(|number| state.tokens.revoke(number))
    }

    /// Revokes a token by its number. Returns whether the server has issued it.
    pub fn revoke_number(&self, number: usize) -> bool {
        self.lock().tokens.revoke(number)
    }
}

/// What the server saw.
impl AuthServer {
    /// Returns the number of token requests that have arrived, accepted or not.
    pub fn token_requests(&self) -> usize {
        self.lock().log.len()
    }

    /// Returns the number of tokens that were issued.
    pub fn issued_tokens(&self) -> usize {
        self.lock().tokens.len()
    }

    /// Returns the number of token requests that the server refused. Scripted replies aren't
    /// refusals.
    pub fn refused_requests(&self) -> usize {
        self.lock().refused
    }

    /// Returns the latest token requests, oldest first.
    pub fn requests(&self) -> Vec<ReceivedTokenRequest> {
        self.lock().log.iter().cloned().collect()
    }

    /// Returns the latest tokens, oldest first. At most 100,000 and 64 MiB of them are kept.
    pub fn tokens(&self) -> Vec<IssuedToken> {
        self.lock().tokens.iter().cloned().collect()
    }

    /// Returns the token that was issued last.
    pub fn last_token(&self) -> Option<IssuedToken> {
        self.lock().tokens.iter().last().cloned()
    }

    /// Returns what APIs think of a token with this text now.
    pub fn token_state(&self, token: &str) -> TokenState {
        self.look_up(token).1
    }

    /// Waits until this many token requests have arrived since the server was created. They need not
    /// be answered yet; [`wait_for_issued_tokens`](Self::wait_for_issued_tokens) waits for tokens.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future has no effect on the server.
    pub async fn wait_for_token_requests(&self, number: usize) {
        wait_for(&self.0.arrived, number).await;
    }

    /// Waits until the server has issued this many tokens since it was created. The replies that
    /// carry them may be on their way to the client.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future has no effect on the server.
    pub async fn wait_for_issued_tokens(&self, number: usize) {
        wait_for(&self.0.issued, number).await;
    }

    /// Describes the latest token requests, one per line, without secrets and tokens.
    pub fn describe(&self) -> String {
        let state = self.lock();
        let mut text = state.log.describe("the authorization server");
        if state.script.remaining() > 0 {
            text += &format!(
                "\nscripted replies that are left: {}",
                state.script.remaining()
            );
        }
        text
    }
}

/// Assertions.
impl AuthServer {
    /// Asserts the number of token requests that have arrived.
    ///
    /// # Panics
    ///
    /// Panics if the number is different. The message lists the requests.
    #[track_caller]
    pub fn assert_token_requests(&self, expected: usize) {
        self.assert_equal("token requests", expected, self.token_requests());
    }

    /// Asserts that the server refused no token request.
    ///
    /// # Panics
    ///
    /// Panics if a request was refused. The message says why.
    #[track_caller]
    pub fn assert_no_refusals(&self) {
        self.assert_equal("refused token requests", 0, self.refused_requests());
    }

    /// Asserts that every reply that was set by [`next_once`](Self::next_once) was used.
    ///
    /// # Panics
    ///
    /// Panics if a reply is left.
    #[track_caller]
    pub fn assert_script_used(&self) {
        let left = self.lock().script.remaining();
        self.assert_equal("scripted replies that are left", 0, left);
    }

    /// Prints the latest token requests if the test panics before the returned value is dropped.
    ///
    /// [`Api::report_on_failure`](crate::Api::report_on_failure) prints those of both servers.
    pub fn report_on_failure(&self) -> FailureReport {
        let server = self.clone();
        FailureReport::new(move || server.describe())
    }

    #[track_caller]
    fn assert_equal(&self, what: &str, expected: usize, actual: usize) {
        assert!(
            expected == actual,
            "number of {what}: expected {expected}, got {actual}\n{}",
            self.describe()
        );
    }
}

/// Access.
impl AuthServer {
    /// Returns this server as an HTTP client for requests with bodies of type `Full<Bytes>`.
    ///
    /// `AuthServer` itself takes requests with any body. A function that infers the body type from
    /// the client can't choose one, and the compiler reports `type annotations needed`.
    ///
    /// ```
    /// use tower_client_credentials::{ClientAuth, Error, TokenEndpoint};
    /// use tower_client_credentials_test::AuthServer;
    ///
    /// let auth = AuthServer::new().with_client("my-client", "s3cret");
    /// let tokens = TokenEndpoint::new(
    ///     auth.http_client(),
    ///     "https://auth.example.com/token",
    ///     ClientAuth::client_secret_basic("my-client", "s3cret"),
    /// )?;
    /// # drop(tokens);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn http_client(&self) -> HttpClient<Self> {
        HttpClient::new(self.clone())
    }

    /// Listens on a free port of the loopback interface, for HTTP/1.1 and HTTP/2 without TLS.
    /// [`Server::start_at`] listens on an address of your choice.
    ///
    /// # Errors
    ///
    /// Fails if the operating system provides no port.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime.
    pub async fn serve(&self) -> io::Result<Server> {
        Server::start(self.clone()).await
    }

    /// Returns the time since the server was created.
    pub(crate) fn now(&self) -> Duration {
        // Read before the lock, so that no clock is read under it.
        let elapsed = self.0.created_at.elapsed();
        let state = self.lock();
        match &state.clock {
            None => elapsed,
            Some(setting) => {
                let (clock, origin) = (setting.clock.clone(), setting.origin);
                drop(state);
                clock.now().duration_since(origin).unwrap_or_default()
            }
        }
    }

    /// Returns the number and the state of a token.
    pub(crate) fn look_up(&self, token: &str) -> (Option<usize>, TokenState) {
        let now = self.now();
        let state = self.lock();
        match state.tokens.by_text(token) {
            Some(token) => (Some(token.number), state.tokens.state(token, now)),
            None => (None, TokenState::Unknown),
        }
    }

    /// Returns the path of the token endpoint.
    pub(crate) fn path(&self) -> String {
        let state = self.lock();
        let path = state.token_path.clone();
        let personality = Arc::clone(&state.personality);
        drop(state);
        path.unwrap_or_else(|| personality.token_path().to_owned())
    }

    pub(crate) fn current_personality(&self) -> Arc<dyn Personality> {
        Arc::clone(&self.lock().personality)
    }

    /// Changes the state. What the change returns is dropped after unlocking, because it may contain
    /// a function of the user.
    fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> Self {
        let _replaced = change(&mut self.lock());
        self.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No step under the lock leaves the state inconsistent.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) async fn wait_for(counter: &watch::Sender<usize>, number: usize) {
    let mut counter = counter.subscribe();
    // The sender is alive, because the caller borrows it.
    let _ = counter.wait_for(|count| *count >= number).await;
}

/// Answering.
impl AuthServer {
    async fn respond<B>(self, request: Request<B>) -> io::Result<Response<Body>>
    where
        B: http_body::Body<Error: Into<BoxError>>,
    {
        let (head, body) = request.into_parts();
        let mut received = ReceivedTokenRequest::new(&head, self.now());
        let scripted = self.arrived(&mut received);
        let read = if replies_before_body(&scripted) {
            drop(body);
            Ok(None)
        } else {
            let body = request_body::read(body, MAX_FORM).await;
            self.read(&mut received, body)
        };
        let (reply, once) = match scripted {
            Scripted::Normal => (Reply::normal().into(), None),
            Scripted::Once(number, reply) => (reply, Some(number)),
            Scripted::Always(reply) => (reply, None),
            Scripted::By(_, choose) => (choose(&received), None),
        };
        wait(reply.delivery().delay).await;

        let (response, answer) = match reply.scripted_response().await {
            Some(response) => (response, Answer::Scripted),
            None => self.decide(&received, read, reply, once).await,
        };
        self.answered(received.number, &response, answer);
        response
    }

    /// Issues a token, or refuses the request.
    async fn decide(
        &self,
        received: &ReceivedTokenRequest,
        read: Result<Option<Credentials>, Refusal>,
        reply: AuthReply,
        once: Option<usize>,
    ) -> (io::Result<Response<Body>>, Answer) {
        match self.accept(received, read) {
            Ok(grant) => {
                let (token, response) = match &reply.0 {
                    AuthReplyKind::Token(reply) => self.issue(grant, reply),
                    AuthReplyKind::Any(_) => self.issue(grant, &TokenReply::new()),
                };
                let response = reply.delivery().apply(response).await;
                (response, Answer::Issued(token))
            }
            Err(refusal) => {
                // The refusal is shown to the client, in the log, and by assertions.
                let own = grant::secrets_of(received);
                let refusal = refusal.map_texts(|text| self.redacted(text, &own));
                let personality = self.current_personality();
                let response = personality.refusal(&refusal).fixed_response().await;
                let response = match &reply.0 {
                    AuthReplyKind::Any(reply) => reply.delivered(response).await,
                    AuthReplyKind::Token(_) => response,
                };
                // A token reply is for a request that is accepted.
                if let (Some(number), AuthReplyKind::Token(_)) = (once, &reply.0) {
                    self.set(|state| state.script.put_back(number, reply));
                }
                (response, Answer::Refused(refusal))
            }
        }
    }

    /// Notes that a request has arrived, numbers it, and takes its reply from the script.
    fn arrived(
        &self,
        received: &mut ReceivedTokenRequest,
    ) -> Scripted<AuthReply, ReceivedTokenRequest> {
        self.show(received);
        let mut state = self.lock();
        received.number = state.log.add(received.clone());
        let scripted = state.script.take();
        drop(state);
        self.0.arrived.send_modify(|arrived| *arrived += 1);
        scripted.with_head(received)
    }

    fn read(
        &self,
        received: &mut ReceivedTokenRequest,
        body: Result<Bytes, ReadError>,
    ) -> Result<Option<Credentials>, Refusal> {
        let body = body.map_err(|error| match error {
            ReadError::Failed(_) => Refusal::IncompleteBody,
            ReadError::TooLarge(_) => Refusal::BodyTooLarge,
        })?;
        let personality = self.current_personality();
        let read = grant::read(received, &body, &*personality);
        self.show(received);
        self.lock()
            .log
            .update(received.number, |it| *it = received.clone());
        read
    }

    /// Sets the texts of a request that may be shown.
    fn show(&self, received: &mut ReceivedTokenRequest) {
        let own = grant::secrets_of(received);
        let redacted = |text: &str| self.redacted(text, &own);
        received.shown = ShownTokenRequest {
            head: ShownHead::new(&received.method, &received.uri, redacted),
            client_id: received.client_id.as_deref().map(redacted),
            grant_type: received.parameter("grant_type").map(redacted),
            scope: received.parameter("scope").map(redacted),
        };
    }

    /// Removes the secrets and tokens that the server knows from a text that is shown, and those of
    /// the request that it comes from.
    pub(crate) fn redacted(&self, text: &str, own: &[String]) -> String {
        self.lock().redacted(text, own)
    }

    fn accept(
        &self,
        received: &ReceivedTokenRequest,
        read: Result<Option<Credentials>, Refusal>,
    ) -> Result<Grant, Refusal> {
        let state = self.lock();
        let path = state.token_path.as_deref();
        if path.is_some_and(|path| path != received.uri.path()) {
            return Err(Refusal::WrongPath);
        }
        let personality = Arc::clone(&state.personality);
        let clients = state.clients.clone();
        drop(state);
        grant::check(received, read?, &clients, &*personality)
    }

    /// Issues a token; returns its number and the response.
    fn issue(&self, grant: Grant, reply: &TokenReply) -> (usize, Response<Body>) {
        let now = self.now();
        let personality = self.current_personality();
        let (default_lifetime, length) = (personality.lifetime(), personality.token_length());
        let mut state = self.lock();
        let same = match reply.token {
            TokenChoice::SameAgain => state.tokens.last_of(&grant.client_id).cloned(),
            _ => None,
        };
        let same = match (same, reply.lifetime) {
            (Some(token), Some(lifetime)) => {
                state.tokens.renew(token.number, lifetime, now);
                state.tokens.by_number(token.number).cloned()
            }
            (same, _) => same,
        };
        let token = same.unwrap_or_else(|| {
            let lifetime = reply
                .lifetime
                .or(state.lifetime)
                .unwrap_or_else(|| default_lifetime.map_or(Lifetime::Unstated, Lifetime::Of));
            let text = match &reply.token {
                TokenChoice::Text(text) => text.clone(),
                _ => random_text(state.token_length.unwrap_or(length)),
            };
            state.tokens.add(IssuedToken {
                number: 0,
                text,
                client_id: grant.client_id,
                scopes: grant.scopes,
                lifetime,
                issued_at: now,
                revoked: false,
            })
        });
        let issued = state.tokens.len();
        drop(state);
        // Requests that are answered at the same time may come here in any order.
        self.0
            .issued
            .send_modify(|count| *count = issued.max(*count));

        let expires_in = match token.remaining(now) {
            Lifetime::Of(remaining) => Some(remaining),
            Lifetime::Unstated => None,
        };
        let mut members = personality.token_reply(&token, expires_in);
        members.extend(reply.members.clone());
        for name in &reply.omitted {
            members.remove(name);
        }
        let members = serde_json::Value::Object(members).to_string();
        let mut response = Response::new(Body::new(members));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // RFC 6749 §5.1.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        (token.number, response)
    }

    /// Notes how a request is answered.
    fn answered(&self, number: usize, response: &io::Result<Response<Body>>, answer: Answer) {
        let outcome = outcome(response);
        let mut state = self.lock();
        if let Answer::Refused(_) = answer {
            state.refused += 1;
        }
        state.log.update(number, |request| {
            request.outcome = outcome;
            match answer {
                Answer::Scripted => {}
                Answer::Issued(token) => request.token = Some(token),
                Answer::Refused(refusal) => request.refusal = Some(refusal),
            }
        });
    }
}

/// What a request got.
enum Answer {
    Scripted,
    /// The token with this number.
    Issued(usize),
    Refused(Refusal),
}

pub(crate) fn outcome(response: &io::Result<Response<Body>>) -> Outcome {
    match response {
        Ok(response) if response.body().is_half() => Outcome::Interrupted(response.status()),
        Ok(response) => Outcome::Answered(response.status()),
        Err(_) => Outcome::Reset,
    }
}

fn replies_before_body(scripted: &Scripted<AuthReply, ReceivedTokenRequest>) -> bool {
    match scripted {
        Scripted::Once(_, reply) | Scripted::Always(reply) => reply.is_before_body(),
        Scripted::Normal | Scripted::By(..) => false,
    }
}

fn random_text(length: usize) -> String {
    iter::repeat_with(fastrand::alphanumeric)
        .take(length)
        .collect()
}

impl<B> Service<Request<B>> for AuthServer
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
        ResponseFuture::new(self.clone().respond(request))
    }
}

impl Default for AuthServer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for AuthServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        let clients = state.clients.keys();
        let clients: Vec<_> = clients.map(|id| state.redacted(id, &[])).collect();
        f.debug_struct("AuthServer")
            .field("personality", &state.personality)
            .field("clients", &clients)
            .field("script", &state.script)
            .field("token_requests", &state.log.len())
            .field("issued_tokens", &state.tokens.len())
            .finish_non_exhaustive()
    }
}
