use std::{
    collections::HashMap,
    fmt, io, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
    request::Parts,
};
use tokio::sync::watch;
use tower_service::Service;

use crate::{
    AuthServer, Body, BoxError, FailureReport, HttpClient, Outcome, ReceivedRequest, Reply,
    ResponseFuture, Server, TokenState,
    auth_server::{outcome, wait_for},
    received::{Log, ReceivedBody, ShownHead},
    reply::wait,
    request_body::{self, ReadError},
    script::{Script, Scripted, Seen},
};

/// Larger request bodies are answered with status 413.
const MAX_BODY: usize = 64 * 1024 * 1024;

/// The response header with the number of the token that the request carried.
const TOKEN_NUMBER: HeaderName = HeaderName::from_static("x-token-number");

/// An API that accepts the live tokens of one [`AuthServer`], for tests of its clients.
///
/// By default, a request carries its token as `Authorization: Bearer {token}`, and the API echoes the
/// request's body with status 200. A token that isn't live is refused with status 401 and a
/// `WWW-Authenticate` challenge (RFC 6750 §3), or as the server's
/// [personality](crate::personality) does. Responses to requests with a token that was issued carry
/// the number of the token in the header `x-token-number`.
///
/// Like [`AuthServer`], an `Api` is a handle, a `Service<Request<B>>` for any body, and can
/// [`serve`](Self::serve) on a port.
///
/// # Sends of one request
///
/// An API sees a request that is sent twice as two requests. [`assert_replays_match`] compares their
/// bodies. Requests belong together if they have the same method and URI, and the same value in the
/// header `x-request-id`. Without that header, give each request of a test its own URI. After a final
/// answer, the next request with the same method and URI counts as a new one.
///
/// [`assert_replays_match`]: Self::assert_replays_match
///
/// # Examples
///
/// ```
/// use http::{Request, StatusCode};
/// use tower::ServiceExt;
/// use tower_client_credentials_test::{Api, AuthServer, BoxError, Reply};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let auth = AuthServer::new();
/// let api = Api::new(&auth);
/// api.next_once(Reply::status(503));
///
/// let request = || Request::get("https://api.example.com/orders").body(String::new());
/// let response = api.clone().oneshot(request()?).await?;
/// assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
/// let response = api.clone().oneshot(request()?).await?;
/// assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
///
/// api.assert_sends(2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Api(Arc<Shared>);

struct Shared {
    auth: AuthServer,
    /// Never locked while a function of the user runs.
    state: Mutex<State>,
    /// The number of requests that have arrived.
    arrived: watch::Sender<usize>,
}

struct State {
    header: HeaderName,
    prefix: String,
    handler: Handler,
    /// `None` for that of the personality.
    refusal: Option<Reply>,
    accepted: usize,
    refused: usize,
    script: Script<Reply, ReceivedRequest>,
    log: Log<ReceivedRequest>,
}

type Handler = Arc<dyn Fn(Request<Bytes>) -> HandlerFuture + Send + Sync>;
type HandlerFuture = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// Options.
impl Api {
    /// Creates an API that accepts the tokens of `auth` and echoes request bodies.
    pub fn new(auth: &AuthServer) -> Self {
        Self(Arc::new(Shared {
            auth: auth.clone(),
            state: Mutex::new(State {
                header: AUTHORIZATION,
                prefix: "Bearer".to_owned(),
                handler: Arc::new(|request| Box::pin(async { echo(request) })),
                refusal: None,
                accepted: 0,
                refused: 0,
                script: Script::new(),
                log: Log::new(),
            }),
            arrived: watch::Sender::new(0),
        }))
    }

    /// Sets the header that carries the token, and the word in front of the token. With an empty
    /// `prefix`, the value is the token alone. Default: `authorization` and `Bearer`.
    ///
    /// # Panics
    ///
    /// Panics if `name` isn't a valid header name.
    #[track_caller]
    pub fn token_header(&self, name: &str, prefix: &str) -> Self {
        let name = HeaderName::try_from(name).expect("the header name is valid");
        let prefix = prefix.to_owned();
        self.set(|state| (state.header, state.prefix) = (name, prefix))
    }

    /// Sets the function that answers requests with a live token.
    ///
    /// ```
    /// use http::Response;
    /// use tower_client_credentials_test::{Api, AuthServer};
    ///
    /// let api = Api::new(&AuthServer::new()).answer(|request| async move {
    ///     Response::new(format!("you asked for {}", request.uri().path()))
    /// });
    /// # drop(api);
    /// ```
    pub fn answer<F, Fut, B>(&self, handler: F) -> Self
    where
        F: Fn(Request<Bytes>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| {
            let response = handler(request);
            Box::pin(async { response.await.map(Body::wrap) })
        });
        self.set(|state| mem::replace(&mut state.handler, handler))
    }

    /// Sets the reply to requests without a live token. Default: that of the
    /// [personality](crate::personality).
    ///
    /// ```
    /// use tower_client_credentials_test::{Api, AuthServer, Reply};
    ///
    /// // As gRPC servers answer.
    /// let refusal = Reply::status(200)
    ///     .with_header("content-type", "application/grpc")
    ///     .with_header("grpc-status", "16");
    /// let api = Api::new(&AuthServer::new()).refusal(refusal);
    /// # drop(api);
    /// ```
    pub fn refusal(&self, reply: Reply) -> Self {
        self.set(|state| state.refusal = Some(reply))
    }
}

/// The script.
impl Api {
    /// Sets the reply to the next request only, whatever its token. Further calls set the replies to
    /// the requests after it, in this order.
    pub fn next_once(&self, reply: Reply) -> Self {
        self.set(|state| state.script.next_once(reply))
    }

    /// Sets the reply to each request that has none from [`next_once`](Self::next_once), whatever
    /// its token.
    ///
    /// `always(Reply::normal())` ends this.
    pub fn always(&self, reply: Reply) -> Self {
        self.set(|state| state.script.always(reply))
    }

    /// Like [`always`](Self::always), with a function that chooses the reply to each request.
    pub fn always_by<F>(&self, choose: F) -> Self
    where
        F: Fn(&ReceivedRequest) -> Reply + Send + Sync + 'static,
    {
        self.set(|state| state.script.always_by(Seen::Everything, Arc::new(choose)))
    }

    /// Like [`always_by`](Self::always_by), with a function that is called before the body is read,
    /// so that it can choose a reply [before the body](Reply::before_body). The request that it gets
    /// has no body yet.
    ///
    /// ```
    /// use tower_client_credentials_test::{Api, AuthServer, Reply};
    ///
    /// let api = Api::new(&AuthServer::new());
    /// api.always_by_head(|request| match request.number() % 3 {
    ///     0 => Reply::status(502).before_body(),
    ///     _ => Reply::normal(),
    /// });
    /// ```
    pub fn always_by_head<F>(&self, choose: F) -> Self
    where
        F: Fn(&ReceivedRequest) -> Reply + Send + Sync + 'static,
    {
        self.set(|state| state.script.always_by(Seen::Head, Arc::new(choose)))
    }

    /// Removes every scripted reply.
    pub fn clear_script(&self) -> Self {
        self.set(|state| state.script.clear())
    }
}

/// What the API saw.
impl Api {
    /// Returns the number of requests that have arrived, accepted or not.
    pub fn sends(&self) -> usize {
        self.lock().log.len()
    }

    /// Returns the number of requests that were answered as without a script, whose token was live,
    /// and whose answer isn't a refusal.
    pub fn accepted_requests(&self) -> usize {
        self.lock().accepted
    }

    /// Returns the number of requests that were refused: because of their token, or with status 401
    /// or 403, whether a script, the function of [`answer`](Self::answer) or the API chose it.
    pub fn refused_requests(&self) -> usize {
        self.lock().refused
    }

    /// Returns the latest requests, oldest first. At most 10,000 requests and 128 MiB of them are
    /// kept: URIs, headers and bodies.
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        self.lock().log.iter().cloned().collect()
    }

    /// Waits until this many requests have arrived since the API was created.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future has no effect on the API.
    pub async fn wait_for_sends(&self, number: usize) {
        wait_for(&self.0.arrived, number).await;
    }

    /// Describes the latest requests, one per line, without tokens and bodies.
    pub fn describe(&self) -> String {
        let state = self.lock();
        let mut text = state.log.describe("the API");
        if state.script.remaining() > 0 {
            text += &format!(
                "\nscripted replies that are left: {}",
                state.script.remaining()
            );
        }
        text
    }
}

/// Assertions. The message of a failed assertion lists the requests, and those of the authorization
/// server.
impl Api {
    /// Asserts the number of requests that have arrived.
    ///
    /// # Panics
    ///
    /// Panics if the number is different.
    #[track_caller]
    pub fn assert_sends(&self, expected: usize) {
        self.assert_equal("requests to the API", expected, self.sends());
    }

    /// Asserts that no request was refused, as [`refused_requests`](Self::refused_requests) counts.
    ///
    /// # Panics
    ///
    /// Panics if a request was refused.
    #[track_caller]
    pub fn assert_no_refusals(&self) {
        self.assert_equal("refused requests to the API", 0, self.refused_requests());
    }

    /// Asserts that each request which was sent again had the same body as the first time.
    ///
    /// A request is sent again if the API refused it (401, 403), answered it with a status after
    /// which clients retry (408, 421, 425, 429, 5xx), reset or interrupted it, or didn't answer it.
    /// Each send is compared with the first one whose whole body the API read. See
    /// [Sends of one request](Self#sends-of-one-request) for which requests belong together.
    ///
    /// # Panics
    ///
    /// Panics if a body is different, or failed before its end.
    #[track_caller]
    pub fn assert_replays_match(&self) {
        if let Some((first, replay)) = damaged_replay(&self.requests()) {
            panic!(
                "request {replay} repeats request {first}, but has another body\n{}",
                self.describe_both()
            );
        }
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

    /// Prints the latest requests of both servers if the test panics before the returned value is
    /// dropped. With it, assertions of your own show what the servers saw, too.
    ///
    /// ```
    /// use tower_client_credentials_test::{Api, AuthServer};
    ///
    /// let api = Api::new(&AuthServer::new());
    /// let _report = api.report_on_failure();
    /// assert_eq!(api.sends(), 0);
    /// ```
    pub fn report_on_failure(&self) -> FailureReport {
        let api = self.clone();
        FailureReport::new(move || api.describe_both())
    }

    #[track_caller]
    fn assert_equal(&self, what: &str, expected: usize, actual: usize) {
        assert!(
            expected == actual,
            "number of {what}: expected {expected}, got {actual}\n{}",
            self.describe_both()
        );
    }

    fn describe_both(&self) -> String {
        format!("{}\n{}", self.describe(), self.0.auth.describe())
    }
}

/// The sends of one request so far.
struct Sends<'a> {
    last: &'a ReceivedRequest,
    /// The first send whose body is known, or the first one at all.
    first: &'a ReceivedRequest,
}

/// The numbers of a send, and of a replay with another body.
fn damaged_replay(requests: &[ReceivedRequest]) -> Option<(usize, usize)> {
    let mut all: HashMap<_, Sends<'_>> = HashMap::new();
    for request in requests {
        let id = request.headers().get("x-request-id");
        let same = (request.method(), request.uri(), id);
        let mut first = request;
        if let Some(sends) = all.get(&same).filter(|it| may_be_sent_again(it.last)) {
            if !bodies_match(sends.first, request) {
                return Some((sends.first.number(), request.number()));
            }
            if sends.first.body().is_some() {
                first = sends.first;
            }
        }
        let last = request;
        all.insert(same, Sends { last, first });
    }
    None
}

fn may_be_sent_again(request: &ReceivedRequest) -> bool {
    match request.outcome() {
        Outcome::Unanswered | Outcome::Interrupted(_) | Outcome::Reset => true,
        Outcome::Answered(status) => {
            request.is_refused()
                || status.is_server_error()
                || matches!(status.as_u16(), 408 | 421 | 425 | 429)
        }
    }
}

fn bodies_match(first: &ReceivedRequest, replay: &ReceivedRequest) -> bool {
    match (&first.body, &replay.body) {
        (ReceivedBody::Complete(first), ReceivedBody::Complete(second)) => first == second,
        // The client may stop sending a body when it gets a refusal early.
        (_, ReceivedBody::Failed(_)) => false,
        _ => true,
    }
}

/// Access.
impl Api {
    /// Returns this API as an HTTP client for requests with bodies of type `Full<Bytes>`. See
    /// [`AuthServer::http_client`].
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

    /// See [`AuthServer`]: what the change returns is dropped after unlocking.
    fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> Self {
        let _replaced = change(&mut self.lock());
        self.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No step under the lock leaves the state inconsistent.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answering.
impl Api {
    async fn respond<B>(self, request: Request<B>) -> io::Result<Response<Body>>
    where
        B: http_body::Body<Error: Into<BoxError>>,
    {
        let (head, body) = request.into_parts();
        let mut received = ReceivedRequest::new(&head, self.0.auth.now());
        (received.token, received.token_state) = self.token_of(&head.headers);
        let scripted = self.arrived(&mut received);
        let mut refusal = self.refusal_of(received.token_state);

        let mut unread = Some(body);
        if !replies_before_body(&scripted, refusal.as_ref()) {
            self.read(&mut received, unread.take()).await;
        }
        let reply = match scripted {
            Scripted::Normal => Reply::normal(),
            Scripted::Once(_, reply) | Scripted::Always(reply) => reply,
            Scripted::By(_, choose) => choose(&received),
        };
        if !reply.delivery.delay.is_zero() {
            wait(reply.delivery.delay).await;
            // Only now, the API handles the request.
            self.look_up_token(&mut received);
            refusal = self.refusal_of(received.token_state);
            if reply.is_normal() && refusal.is_none() {
                self.read(&mut received, unread).await;
            }
        }

        let (response, answer) = match (reply.scripted_response().await, refusal) {
            (Some(response), _) => (response, Answer::Scripted),
            (None, Some(refusal)) => {
                let response = refusal.fixed_response().await;
                (reply.delivered(response).await, Answer::Refused)
            }
            (None, None) => {
                let response = self.accept(head, &received.body).await;
                (reply.delivered(Ok(response)).await, Answer::Accepted)
            }
        };
        self.answered(&received, response, answer)
    }

    async fn read<B: http_body::Body>(&self, received: &mut ReceivedRequest, body: Option<B>) {
        let Some(body) = body else {
            return;
        };
        received.body = match request_body::read(body, MAX_BODY).await {
            Ok(data) => ReceivedBody::Complete(data),
            Err(ReadError::Failed(len)) => ReceivedBody::Failed(len),
            Err(ReadError::TooLarge(len)) => ReceivedBody::TooLarge(len),
        };
        let body = received.body.clone();
        self.update(received.number, |request| request.body = body);
    }

    fn look_up_token(&self, received: &mut ReceivedRequest) {
        let (token, state) = self.token_of(&received.headers);
        (received.token, received.token_state) = (token, state);
        self.update(received.number, |request| {
            (request.token, request.token_state) = (token, state);
        });
    }

    /// Notes that a request has arrived, numbers it, and takes its reply from the script.
    fn arrived(&self, received: &mut ReceivedRequest) -> Scripted<Reply, ReceivedRequest> {
        self.show(received);
        let mut state = self.lock();
        received.number = state.log.add(received.clone());
        let scripted = state.script.take();
        drop(state);
        self.0.arrived.send_modify(|arrived| *arrived += 1);
        scripted.with_head(received)
    }

    /// Sets the texts of a request that may be shown.
    fn show(&self, received: &mut ReceivedRequest) {
        let header = self.lock().header.clone();
        // A token that no server issued isn't shown either.
        let values = received.headers.get_all(header).iter();
        let values = values.filter_map(|value| value.to_str().ok());
        let words = values.flat_map(|value| [value, value.rsplit(' ').next().unwrap_or_default()]);
        let own: Vec<_> = words.map(str::to_owned).collect();
        let redacted = |text: &str| self.0.auth.redacted(text, &own);
        received.shown = ShownHead::new(&received.method, &received.uri, redacted);
    }

    /// Returns the number and the state of the request's token.
    fn token_of(&self, headers: &HeaderMap) -> (Option<usize>, TokenState) {
        let state = self.lock();
        let mut values = headers.get_all(&state.header).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            let several = headers.contains_key(&state.header);
            let several_or_none = [TokenState::Missing, TokenState::Unknown];
            return (None, several_or_none[usize::from(several)]);
        };
        let is_standard = state.header == AUTHORIZATION;
        let token = token_in(value, &state.prefix, is_standard).map(str::to_owned);
        drop(state);
        match token {
            Some(token) => self.0.auth.look_up(&token),
            None => (None, TokenState::Missing),
        }
    }

    /// The reply to a token in this state, or `None` if the API accepts it.
    fn refusal_of(&self, state: TokenState) -> Option<Reply> {
        if state == TokenState::Live {
            return None;
        }
        let set = self.lock().refusal.clone();
        Some(set.unwrap_or_else(|| self.0.auth.current_personality().api_refusal(state)))
    }

    async fn accept(&self, head: Parts, body: &ReceivedBody) -> Response<Body> {
        let error = |status, text| {
            let mut response = Response::new(Body::from(text));
            *response.status_mut() = status;
            response
        };
        match body {
            ReceivedBody::Complete(data) => {
                let handler = Arc::clone(&self.lock().handler);
                handler(Request::from_parts(head, data.clone())).await
            }
            ReceivedBody::TooLarge(_) => error(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the body is larger than 64 MiB",
            ),
            ReceivedBody::Unread | ReceivedBody::Failed(_) => {
                error(StatusCode::BAD_REQUEST, "the body failed before its end")
            }
        }
    }

    /// Notes how a request is answered.
    fn answered(
        &self,
        received: &ReceivedRequest,
        mut response: io::Result<Response<Body>>,
        answer: Answer,
    ) -> io::Result<Response<Body>> {
        let outcome = outcome(&response);
        let is_refused = matches!(answer, Answer::Refused)
            || matches!(
                outcome.status(),
                Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
            );
        let is_accepted = matches!(answer, Answer::Accepted) && !is_refused;
        let mut state = self.lock();
        state.refused += usize::from(is_refused);
        state.accepted += usize::from(is_accepted);
        state.log.update(received.number, |request| {
            request.outcome = outcome;
            request.refused = is_refused;
        });
        drop(state);
        if let (Ok(response), Some(token)) = (&mut response, received.token) {
            response.headers_mut().insert(TOKEN_NUMBER, token.into());
        }
        response
    }

    fn update(&self, number: usize, change: impl FnOnce(&mut ReceivedRequest)) {
        self.lock().log.update(number, change);
    }
}

/// What a request got.
#[derive(Clone, Copy)]
enum Answer {
    Scripted,
    Accepted,
    Refused,
}

fn replies_before_body(
    scripted: &Scripted<Reply, ReceivedRequest>,
    refusal: Option<&Reply>,
) -> bool {
    match scripted {
        Scripted::Once(_, reply) | Scripted::Always(reply) if !reply.is_normal() => {
            reply.is_before_body()
        }
        Scripted::By(..) => false,
        _ => refusal.is_some_and(Reply::is_before_body),
    }
}

/// RFC 9110 §11.1: the name of an authentication scheme has no case.
fn token_in<'a>(value: &'a HeaderValue, prefix: &str, ignore_case: bool) -> Option<&'a str> {
    let value = value.to_str().ok()?;
    if prefix.is_empty() {
        return Some(value);
    }
    let (first, token) = value.split_once(' ')?;
    let matches = first == prefix || ignore_case && first.eq_ignore_ascii_case(prefix);
    matches.then(|| token.trim_start_matches(' '))
}

fn echo(request: Request<Bytes>) -> Response<Body> {
    let (head, data) = request.into_parts();
    let mut response = Response::new(Body::new(data));
    if let Some(content_type) = head.headers.get(CONTENT_TYPE) {
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, content_type.clone());
    }
    response
}

impl<B> Service<Request<B>> for Api
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

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Api")
            .field("header", &state.header)
            .field("prefix", &state.prefix)
            .field("script", &state.script)
            .field("sends", &state.log.len())
            .field("accepted", &state.accepted)
            .field("refused", &state.refused)
            .finish_non_exhaustive()
    }
}
