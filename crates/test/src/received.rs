use std::{collections::VecDeque, fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, request::Parts};

use crate::{AuthMethod, Refusal, TokenState};

/// A log forgets its oldest requests beyond this number of requests or bytes, so that a test that
/// runs for days needs bounded memory. The counters stay exact.
const MAX_REQUESTS: usize = 10_000;
// Twice the largest body, so that it stays.
const MAX_BYTES: usize = 128 * 1024 * 1024;

/// How a server has answered a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The server hasn't answered yet. A request that the client gives up stays unanswered.
    Unanswered,
    /// The server answered with this status.
    Answered(StatusCode),
    /// The server answered with this status, but ended the body early or left it unfinished.
    Interrupted(StatusCode),
    /// The server reset the connection.
    Reset,
}

impl Outcome {
    /// Returns the status, if there is one.
    pub fn status(self) -> Option<StatusCode> {
        match self {
            Self::Answered(status) | Self::Interrupted(status) => Some(status),
            Self::Unanswered | Self::Reset => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unanswered => f.write_str("not answered"),
            Self::Answered(status) => write!(f, "{}", status.as_u16()),
            Self::Interrupted(status) => write!(f, "{} with half its body", status.as_u16()),
            Self::Reset => f.write_str("connection reset"),
        }
    }
}

/// A request that an [`AuthServer`](crate::AuthServer) received.
///
/// `Debug` and `Display` show neither secrets nor tokens. The methods return everything.
#[derive(Clone)]
pub struct ReceivedTokenRequest {
    pub(crate) number: usize,
    pub(crate) received_at: Duration,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) parameters: Vec<(String, String)>,
    pub(crate) client_id: Option<String>,
    pub(crate) auth_method: Option<AuthMethod>,
    pub(crate) outcome: Outcome,
    pub(crate) token: Option<usize>,
    pub(crate) refusal: Option<Refusal>,
    pub(crate) shown: ShownTokenRequest,
}

/// The texts of a token request that may be shown, because they contain no known secret or token.
#[derive(Clone, Default)]
pub(crate) struct ShownTokenRequest {
    pub(crate) head: ShownHead,
    pub(crate) client_id: Option<String>,
    pub(crate) grant_type: Option<String>,
    pub(crate) scope: Option<String>,
}

/// The method and the path of a request that may be shown.
#[derive(Clone, Default)]
pub(crate) struct ShownHead {
    pub(crate) method: String,
    pub(crate) path: String,
}

impl ShownHead {
    pub(crate) fn new(method: &Method, uri: &Uri, redacted: impl Fn(&str) -> String) -> Self {
        Self {
            method: redacted(method.as_str()),
            path: redacted(uri.path()),
        }
    }

    fn bytes(&self) -> usize {
        self.method.len() + self.path.len()
    }
}

impl ShownTokenRequest {
    fn bytes(&self) -> usize {
        let texts = [&self.client_id, &self.grant_type, &self.scope];
        let texts = texts.into_iter().flatten().map(String::len);
        self.head.bytes() + texts.sum::<usize>()
    }
}

impl ReceivedTokenRequest {
    pub(crate) fn new(head: &Parts, received_at: Duration) -> Self {
        Self {
            number: 0,
            received_at,
            method: head.method.clone(),
            uri: head.uri.clone(),
            headers: head.headers.clone(),
            parameters: Vec::new(),
            client_id: None,
            auth_method: None,
            outcome: Outcome::Unanswered,
            token: None,
            refusal: None,
            shown: ShownTokenRequest::default(),
        }
    }

    /// Returns the number of the request. The first request that a server receives is number 1.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Returns when the request arrived, as the time since the server was created.
    pub fn received_at(&self) -> Duration {
        self.received_at
    }

    /// Returns the HTTP method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Returns the URI as the server got it. On a port, that is usually only a path.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Returns the headers, with the client's credentials.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Returns the value of a form parameter, the first one if it was sent more than once. The server
    /// treats a parameter with an empty value as one that wasn't sent (RFC 6749 §3.2).
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters().find(|it| it.0 == name).map(|it| it.1)
    }

    /// Returns the form parameters in the order in which they were sent.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &str)> {
        let parameters = self.parameters.iter();
        parameters.map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Returns the id of the client, from the form or from the `Authorization` header.
    pub fn client_id(&self) -> Option<&str> {
        self.client_id.as_deref()
    }

    /// Returns how the client authenticated, also if the server didn't accept it.
    pub fn auth_method(&self) -> Option<AuthMethod> {
        self.auth_method
    }

    /// Returns the scopes that were asked for.
    pub fn scopes(&self) -> Vec<&str> {
        let scope = self
            .parameters()
            .find(|it| it.0 == "scope" && !it.1.is_empty());
        scopes(scope.map_or("", |it| it.1))
    }

    /// Returns how the request was answered.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Returns the number of the token that was issued.
    pub fn token_number(&self) -> Option<usize> {
        self.token
    }

    /// Returns why the server refused the request. Scripted replies aren't refusals.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }
}

impl fmt::Display for ReceivedTokenRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.shown;
        write_head(f, self.number, self.received_at, &shown.head, &self.uri)?;
        match (&shown.client_id, self.auth_method) {
            (Some(id), Some(method)) => write!(f, " client {id:?} by {method}")?,
            (Some(id), None) => write!(f, " client {id:?} without authentication")?,
            (None, _) => write!(f, " no client")?,
        }
        if let Some(grant_type) = &shown.grant_type {
            write!(f, ", grant {grant_type:?}")?;
        }
        if let Some(scope) = &shown.scope {
            write!(f, ", scope {scope:?}")?;
        }
        write!(f, " → {}", self.outcome)?;
        if let Some(token) = self.token {
            write!(f, ", token #{token}")?;
        }
        if let Some(refusal) = &self.refusal {
            write!(f, " {}: {refusal}", refusal.code())?;
        }
        Ok(())
    }
}

impl fmt::Debug for ReceivedTokenRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceivedTokenRequest")
            .field("number", &self.number)
            .field("received_at", &self.received_at)
            .field("method", &self.shown.head.method)
            .field("path", &self.shown.head.path)
            .field("headers", &self.headers.len())
            .field("parameters", &self.parameters.len())
            .field("client_id", &self.shown.client_id)
            .field("auth_method", &self.auth_method)
            .field("grant_type", &self.shown.grant_type)
            .field("scope", &self.shown.scope)
            .field("outcome", &self.outcome)
            .field("token_number", &self.token)
            .field("refusal", &self.refusal)
            .finish_non_exhaustive()
    }
}

/// A request that an [`Api`](crate::Api) received.
///
/// `Debug` and `Display` show neither tokens nor bodies. The methods return everything.
#[derive(Clone)]
pub struct ReceivedRequest {
    pub(crate) number: usize,
    pub(crate) received_at: Duration,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) token: Option<usize>,
    pub(crate) token_state: TokenState,
    pub(crate) body: ReceivedBody,
    pub(crate) outcome: Outcome,
    pub(crate) refused: bool,
    pub(crate) shown: ShownHead,
}

impl ReceivedRequest {
    pub(crate) fn new(head: &Parts, received_at: Duration) -> Self {
        Self {
            number: 0,
            received_at,
            method: head.method.clone(),
            uri: head.uri.clone(),
            headers: head.headers.clone(),
            token: None,
            token_state: TokenState::Missing,
            body: ReceivedBody::Unread,
            outcome: Outcome::Unanswered,
            refused: false,
            shown: ShownHead::default(),
        }
    }

    /// Returns the number of the request. The first request that an API receives is number 1.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Returns when the request arrived, as the time since the authorization server was created.
    pub fn received_at(&self) -> Duration {
        self.received_at
    }

    /// Returns the HTTP method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Returns the URI as the API got it. On a port, that is usually only a path.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Returns the headers, with the token.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Returns the number of the request's token, if the authorization server issued it.
    pub fn token_number(&self) -> Option<usize> {
        self.token
    }

    /// Returns the state of the request's token when the request arrived, or after the delay of a
    /// scripted reply.
    pub fn token_state(&self) -> TokenState {
        self.token_state
    }

    /// Returns the body, or `None` if it wasn't read to its end or is no longer remembered.
    pub fn body(&self) -> Option<&Bytes> {
        match &self.body {
            ReceivedBody::Complete(data) => Some(data),
            _ => None,
        }
    }

    /// Returns how the request was answered.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Returns whether the API refused the request: because of its token, or with status 401 or 403.
    pub fn is_refused(&self) -> bool {
        self.refused
    }
}

/// How much of a request's body the API has read.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum ReceivedBody {
    Unread,
    /// The body failed after this many bytes.
    Failed(usize),
    /// The API stopped reading after this many bytes.
    TooLarge(usize),
    Complete(Bytes),
}

impl fmt::Display for ReceivedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unread => f.write_str("body unread"),
            Self::Failed(len) => write!(f, "body failed after {len} bytes"),
            Self::TooLarge(len) => write!(f, "body too large after {len} bytes"),
            Self::Complete(data) => write!(f, "{} bytes", data.len()),
        }
    }
}

impl fmt::Display for ReceivedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_head(f, self.number, self.received_at, &self.shown, &self.uri)?;
        match self.token {
            Some(token) => write!(f, " token #{token} ({})", self.token_state)?,
            None if self.token_state == TokenState::Missing => f.write_str(" no token")?,
            None => write!(f, " {} token", self.token_state)?,
        }
        write!(f, ", {} → {}", self.body, self.outcome)
    }
}

impl fmt::Debug for ReceivedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceivedRequest")
            .field("number", &self.number)
            .field("received_at", &self.received_at)
            .field("method", &self.shown.method)
            .field("path", &self.shown.path)
            .field("headers", &self.headers.len())
            .field("token_number", &self.token)
            .field("token_state", &self.token_state)
            .field("body", &format_args!("{}", self.body))
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}

/// The scopes in the value of a `scope` parameter (RFC 6749 §3.3).
pub(crate) fn scopes(scope: &str) -> Vec<&str> {
    scope.split(' ').filter(|it| !it.is_empty()).collect()
}

/// The query isn't shown, because a client might send a secret in it.
fn write_head(
    f: &mut fmt::Formatter<'_>,
    number: usize,
    received_at: Duration,
    shown: &ShownHead,
    uri: &Uri,
) -> fmt::Result {
    let query = if uri.query().is_some() { "?…" } else { "" };
    let seconds = received_at.as_secs_f64();
    write!(
        f,
        "{number:>4}. {seconds:>9.3} s  {} {}{query}",
        shown.method, shown.path
    )
}

/// The latest requests of a server.
#[derive(Debug)]
pub(crate) struct Log<T> {
    entries: VecDeque<T>,
    forgotten: usize,
    bytes: usize,
}

/// What a log contains.
pub(crate) trait Entry: Clone + fmt::Display {
    fn set_number(&mut self, number: usize);
    /// The memory that the entry needs, at least.
    fn bytes(&self) -> usize;
}

impl Entry for ReceivedTokenRequest {
    fn set_number(&mut self, number: usize) {
        self.number = number;
    }

    fn bytes(&self) -> usize {
        let parameters = self.parameters.iter();
        let parameters = parameters.map(|it| size_of_val(it) + it.0.len() + it.1.len());
        size_of::<Self>()
            + head_bytes(&self.uri, &self.headers)
            + parameters.sum::<usize>()
            + self.client_id.as_ref().map_or(0, String::len)
            + self.refusal.as_ref().map_or(0, Refusal::bytes)
            + self.shown.bytes()
    }
}

impl Entry for ReceivedRequest {
    fn set_number(&mut self, number: usize) {
        self.number = number;
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + head_bytes(&self.uri, &self.headers) + self.body().map_or(0, Bytes::len)
    }
}

fn head_bytes(uri: &Uri, headers: &HeaderMap) -> usize {
    let uri = uri.path_and_query().map_or(0, |it| it.as_str().len())
        + uri.authority().map_or(0, |it| it.as_str().len());
    let header = |(name, value): (&HeaderName, &HeaderValue)| {
        size_of_val(name) + size_of_val(value) + name.as_str().len() + value.len()
    };
    uri + headers.iter().map(header).sum::<usize>()
}

impl<T: Entry> Log<T> {
    pub(crate) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            forgotten: 0,
            bytes: 0,
        }
    }

    /// The number of all requests.
    pub(crate) fn len(&self) -> usize {
        self.forgotten + self.entries.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter()
    }

    /// Adds a request, and returns its number.
    pub(crate) fn add(&mut self, mut entry: T) -> usize {
        let number = self.len() + 1;
        entry.set_number(number);
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        self.forget_oldest();
        number
    }

    /// Changes a request, if it is still remembered.
    pub(crate) fn update(&mut self, number: usize, change: impl FnOnce(&mut T)) {
        let index = number.checked_sub(self.forgotten + 1);
        if let Some(entry) = index.and_then(|index| self.entries.get_mut(index)) {
            let before = entry.bytes();
            change(entry);
            self.bytes = self.bytes + entry.bytes() - before;
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        while self.entries.len() > MAX_REQUESTS || self.bytes > MAX_BYTES {
            let Some(oldest) = self.entries.pop_front() else {
                return;
            };
            self.forgotten += 1;
            self.bytes -= oldest.bytes();
        }
    }

    /// Describes the latest requests, one per line.
    pub(crate) fn describe(&self, subject: &str) -> String {
        const MOST_SHOWN: usize = 50;
        let mut text = match self.len() {
            0 => format!("{subject} received no request"),
            1 => format!("{subject} received 1 request:"),
            len => format!("{subject} received {len} requests:"),
        };
        let left_out = self.len() - self.entries.len().min(MOST_SHOWN);
        if left_out > 0 {
            text += &format!("\n      … {left_out} earlier requests");
        }
        let shown = self.entries.len().saturating_sub(MOST_SHOWN);
        for entry in self.entries.iter().skip(shown) {
            text += &format!("\n{entry}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn request(body: usize) -> ReceivedRequest {
        let (head, ()) = Request::new(()).into_parts();
        let mut request = ReceivedRequest::new(&head, Duration::ZERO);
        request.body = ReceivedBody::Complete(Bytes::from(vec![0; body]));
        request
    }

    fn numbers(log: &Log<ReceivedRequest>) -> Vec<usize> {
        log.iter().map(ReceivedRequest::number).collect()
    }

    #[test]
    fn a_log_forgets_its_oldest_requests_but_counts_them() {
        let mut log = Log::new();
        for number in 1..=MAX_REQUESTS + 2 {
            assert_eq!(log.add(request(1)), number);
        }

        assert_eq!(log.len(), MAX_REQUESTS + 2);
        assert_eq!(numbers(&log).len(), MAX_REQUESTS);
        assert_eq!(numbers(&log)[0], 3);
        assert!(log.describe("it").contains("received 10002 requests:"));
        // Has no effect, and doesn't hit another request.
        log.update(2, |request| request.outcome = Outcome::Reset);
        log.update(3, |request| request.outcome = Outcome::Reset);
        let reset = log.iter().filter(|it| it.outcome() == Outcome::Reset);
        assert_eq!(reset.map(ReceivedRequest::number).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn a_log_forgets_requests_that_need_too_much_memory() {
        let mut log = Log::new();
        for _ in 0..3 {
            log.add(request(MAX_BYTES / 2 - 4096));
        }
        assert_eq!(numbers(&log), [2, 3]);

        // A body is often known only after the request.
        let number = log.add(request(0));
        log.update(number, |it| it.body = request(MAX_BYTES - 4096).body);
        assert_eq!(numbers(&log), [4]);
        assert!(log.bytes > MAX_BYTES - 4096 && log.bytes <= MAX_BYTES);
    }

    #[test]
    fn a_log_counts_what_it_keeps_of_a_request() {
        let uri = format!("/{}", "u".repeat(1000));
        let head = Request::get(uri).header("x-large", "h".repeat(1000));
        let (head, ()) = head.body(()).unwrap().into_parts();
        let request = ReceivedRequest::new(&head, Duration::ZERO);
        assert!(request.bytes() > 2000);

        let mut request = ReceivedTokenRequest::new(&head, Duration::ZERO);
        request.parameters = vec![("p".repeat(1000), "v".repeat(1000))];
        request.client_id = Some("c".repeat(1000));
        assert!(request.bytes() > 5000);
        let text = "r".repeat(1000);
        let client_id = text.clone();
        for refusal in [
            Refusal::RepeatedParameter(text.clone()),
            Refusal::UnsupportedGrantType(text.clone()),
            Refusal::UnknownClient { client_id },
            Refusal::InvalidScope(vec![text]),
        ] {
            request.refusal = Some(refusal);
            assert!(request.bytes() > 6000, "{:?}", request.refusal);
        }
    }
}
