use std::{fmt, future, io, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE},
};
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use crate::{Body, body::HalfEnd};

/// Why a reply has no header with its length.
pub(crate) const LENGTH_IS_OF_BODY: &str =
    "content-length is the length of the body; cut_off announces a wrong one";

/// The methods that `Reply` and `TokenReply` have in common.
macro_rules! delivery_methods {
    () => {
        /// Sets a header, in place of one of the same name that the server would send. A second
        /// call with the same name adds a second value.
        ///
        /// # Panics
        ///
        /// Panics if the name or the value isn't valid in a header, or the name is `content-length`.
        /// HTTP servers refuse to send a length that the body doesn't have; use
        /// [`cut_off`](Self::cut_off) for a body that is shorter than announced.
        #[track_caller]
        pub fn with_header(mut self, name: &str, value: &str) -> Self {
            let name = HeaderName::try_from(name).expect("the header name is valid");
            let value = HeaderValue::try_from(value).expect("the header value is valid");
            assert!(name != CONTENT_LENGTH, "{LENGTH_IS_OF_BODY}");
            self.delivery.headers.append(name, value);
            self
        }

        /// Replaces the status.
        ///
        /// # Panics
        ///
        /// Panics if `status` isn't between 200 and 999.
        #[track_caller]
        pub fn with_status(mut self, status: u16) -> Self {
            self.delivery.status = Some(final_status(status));
            self
        }

        /// Replaces the body.
        pub fn with_body(mut self, data: impl Into<Bytes>) -> Self {
            self.delivery.body = Some(data.into());
            self
        }

        /// Replaces the body with a JSON value, and sets its content type.
        pub fn with_json(mut self, value: &Value) -> Self {
            let json = HeaderValue::from_static("application/json");
            self.delivery.headers.insert(CONTENT_TYPE, json);
            self.with_body(value.to_string())
        }

        /// Waits before the server handles the request, by Tokio's clock. A token is issued after
        /// the delay, and an API looks at the token of a request after it.
        pub fn delayed(mut self, delay: Duration) -> Self {
            self.delivery.delay = delay;
            self
        }

        /// Ends the body after half its data, although its length was announced.
        pub fn cut_off(mut self) -> Self {
            self.delivery.half = Some(HalfEnd::Error);
            self
        }

        /// Sends half the body, and then nothing more.
        pub fn stalled(mut self) -> Self {
            self.delivery.half = Some(HalfEnd::Silence);
            self
        }
    };
}

/// A reply of a test server: what it sends, and how.
///
/// Pass it to `next_once` or `always` of [`AuthServer`](crate::AuthServer) or [`Api`](crate::Api).
/// The constructors say what the server replies. The methods change how it replies, also if a
/// [`normal`](Self::normal) reply turns out to be a refusal.
///
/// | reply | in process | on a port |
/// |---|---|---|
/// | [`hang`](Self::hang) | the response future never completes | no byte is sent |
/// | [`reset`](Self::reset) | the response future fails with [`io::ErrorKind::ConnectionReset`] | the connection ends with a TCP reset |
/// | [`cut_off`](Self::cut_off) | after half its data, the body fails with [`io::ErrorKind::UnexpectedEof`] | the connection ends after half of the announced length (in HTTP/2: the stream is reset) |
/// | [`stalled`](Self::stalled) | after half its data, the body is pending forever | after half of the announced length, no further byte is sent |
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use tower_client_credentials_test::Reply;
///
/// let busy = Reply::status(503).with_header("retry-after", "2");
/// let slow = Reply::normal().delayed(Duration::from_secs(3));
/// let interrupted = Reply::normal().cut_off();
/// # drop((busy, slow, interrupted));
/// ```
#[derive(Clone)]
pub struct Reply {
    pub(crate) content: Content,
    pub(crate) before_body: bool,
    pub(crate) delivery: Delivery,
}

/// What a reply consists of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    /// What the server would say without a script.
    Normal,
    Fixed(StatusCode),
    Hang,
    Reset,
}

/// How a reply is sent.
#[derive(Clone, Default)]
pub(crate) struct Delivery {
    status: Option<StatusCode>,
    headers: HeaderMap,
    pub(crate) delay: Duration,
    body: Option<Bytes>,
    half: Option<HalfEnd>,
}

impl Reply {
    fn new(content: Content) -> Self {
        Self {
            content,
            before_body: false,
            delivery: Delivery::default(),
        }
    }

    /// Replies as without a script. Use it to delay or to interrupt a normal reply, or to end what
    /// `always` began.
    pub fn normal() -> Self {
        Self::new(Content::Normal)
    }

    /// Replies with a status and no body, whatever the request contains.
    ///
    /// # Panics
    ///
    /// Panics if `status` isn't between 200 and 999. Interim responses (1xx) aren't replies.
    #[track_caller]
    pub fn status(status: u16) -> Self {
        Self::new(Content::Fixed(final_status(status)))
    }

    /// Replies with an error of the token endpoint (RFC 6749 §5.2): status 401 for
    /// `invalid_client`, and 400 for every other code.
    pub fn oauth_error(code: &str) -> Self {
        Self::oauth_error_with(code, None)
    }

    /// Like [`oauth_error`](Self::oauth_error), with an `error_description`.
    pub fn oauth_error_with_description(code: &str, description: &str) -> Self {
        Self::oauth_error_with(code, Some(description))
    }

    fn oauth_error_with(code: &str, description: Option<&str>) -> Self {
        let status = if code == "invalid_client" { 401 } else { 400 };
        let mut body = json!({ "error": code });
        if let Some(description) = description {
            body["error_description"] = description.into();
        }
        Self::status(status).with_json(&body)
    }

    /// Replies with status 401 and this `WWW-Authenticate` challenge, such as
    /// `Bearer error="invalid_token"`.
    ///
    /// # Panics
    ///
    /// Panics if `challenge` isn't a valid header value.
    #[track_caller]
    pub fn unauthorized(challenge: &str) -> Self {
        Self::status(401).with_header(WWW_AUTHENTICATE.as_str(), challenge)
    }

    /// Replies with a redirect (307) to this URL.
    ///
    /// # Panics
    ///
    /// Panics if `location` isn't a valid header value.
    #[track_caller]
    pub fn redirect(location: &str) -> Self {
        Self::status(307).with_header(LOCATION.as_str(), location)
    }

    /// Replies with status 200 and content type `application/json`, but bytes that are neither JSON
    /// nor UTF-8.
    pub fn garbage() -> Self {
        Self::status(200)
            .with_header(CONTENT_TYPE.as_str(), "application/json")
            .with_body(&b"\xff\xfe{\"access_token\":\x00\x9f\x92\x96]]"[..])
    }

    /// Never replies.
    pub fn hang() -> Self {
        Self::new(Content::Hang)
    }

    /// Resets the connection instead of replying.
    pub fn reset() -> Self {
        Self::new(Content::Reset)
    }

    /// Replies without reading the request's body, and drops the body.
    ///
    /// A [`normal`](Self::normal) reply ignores this, because it depends on the body. So does a reply
    /// that `always_by` chooses, because its function gets the body; use `always_by_head` instead.
    pub fn before_body(mut self) -> Self {
        self.before_body = true;
        self
    }

    delivery_methods!();

    pub(crate) fn is_normal(&self) -> bool {
        matches!(self.content, Content::Normal)
    }

    pub(crate) fn is_before_body(&self) -> bool {
        self.before_body && !self.is_normal()
    }

    /// Changes a response that has another origin to what is sent.
    pub(crate) async fn delivered(
        &self,
        response: io::Result<Response<Body>>,
    ) -> io::Result<Response<Body>> {
        self.delivery.apply(response?).await
    }

    /// The response of a reply with a fixed content, after its delay. `None` for a normal reply.
    ///
    /// Never completes for [`hang`](Self::hang).
    pub(crate) async fn scripted_response(&self) -> Option<io::Result<Response<Body>>> {
        match self.content {
            Content::Normal => None,
            Content::Fixed(status) => {
                let mut response = Response::new(Body::default());
                *response.status_mut() = status;
                Some(self.delivery.apply(response).await)
            }
            Content::Hang => future::pending().await,
            Content::Reset => Some(Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                "the test server reset the connection",
            ))),
        }
    }

    /// The response of a reply in place of another one, such as that of a personality. A normal
    /// reply is an empty one with status 200.
    pub(crate) async fn fixed_response(&self) -> io::Result<Response<Body>> {
        wait(self.delivery.delay).await;
        match self.scripted_response().await {
            Some(response) => response,
            None => self.delivery.apply(Response::new(Body::default())).await,
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("content", &self.content)
            .field("before_body", &self.before_body)
            .field("delivery", &self.delivery)
            .finish()
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values and bodies may contain a token.
        let headers: Vec<_> = self.headers.keys().map(HeaderName::as_str).collect();
        f.debug_struct("Delivery")
            .field("status", &self.status)
            .field("headers", &headers)
            .field("delay", &self.delay)
            .field("body", &self.body.as_ref().map(Bytes::len))
            .field("half", &self.half)
            .finish()
    }
}

/// The reply of a token endpoint that issues a token.
///
/// The server checks the request first. If the request is refused, it gets the error, and a reply
/// that was set by `next_once` remains for the next request.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use tower_client_credentials_test::{AuthServer, TokenReply};
///
/// let auth = AuthServer::new().with_client("my-client", "s3cret");
/// auth.next_once(TokenReply::new().with_lifetime(Duration::from_secs(2)));
/// auth.next_once(TokenReply::same_again());
/// auth.next_once(TokenReply::new().with_member("scope", ["read", "write"]));
/// ```
#[derive(Clone)]
pub struct TokenReply {
    pub(crate) token: TokenChoice,
    pub(crate) lifetime: Option<Lifetime>,
    pub(crate) members: Map<String, Value>,
    pub(crate) omitted: Vec<String>,
    pub(crate) delivery: Delivery,
}

/// Which token a reply carries.
#[derive(Clone)]
pub(crate) enum TokenChoice {
    New,
    SameAgain,
    Text(String),
}

/// How long a token lives, and what the reply says about that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifetime {
    Of(Duration),
    /// The token doesn't expire, and the reply has no `expires_in`.
    Unstated,
}

impl TokenReply {
    /// Issues a new token.
    pub fn new() -> Self {
        Self::with_choice(TokenChoice::New)
    }

    /// Issues the token that this client got last, with the rest of its lifetime, even if that token
    /// was revoked. Without one, the server issues a new token. [`with_lifetime`](Self::with_lifetime)
    /// sets how long the token lives from then on.
    pub fn same_again() -> Self {
        Self::with_choice(TokenChoice::SameAgain)
    }

    /// Issues a token with this text.
    pub fn text(token: impl Into<String>) -> Self {
        Self::with_choice(TokenChoice::Text(token.into()))
    }

    fn with_choice(token: TokenChoice) -> Self {
        Self {
            token,
            lifetime: None,
            members: Map::new(),
            omitted: Vec::new(),
            delivery: Delivery::default(),
        }
    }

    /// Sets the lifetime of the token, and the `expires_in` of the reply in whole seconds.
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(Lifetime::Of(lifetime));
        self
    }

    /// Issues a token that doesn't expire, without `expires_in`.
    pub fn without_lifetime(mut self) -> Self {
        self.lifetime = Some(Lifetime::Unstated);
        self
    }

    /// Adds a member to the JSON object, or replaces one. An `expires_in` that is set here changes
    /// what the reply says, but not when the token expires.
    pub fn with_member(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// Removes a member from the JSON object, such as `token_type`.
    pub fn without_member(mut self, name: &str) -> Self {
        self.omitted.push(name.to_owned());
        self
    }

    delivery_methods!();
}

impl Default for TokenReply {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for TokenReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = match self.token {
            TokenChoice::New => "new",
            TokenChoice::SameAgain => "same again",
            TokenChoice::Text(_) => "of the test",
        };
        let members: Vec<_> = self.members.keys().collect();
        f.debug_struct("TokenReply")
            .field("token", &token)
            .field("lifetime", &self.lifetime)
            .field("members", &members)
            .field("omitted", &self.omitted)
            .field("delivery", &self.delivery)
            .finish()
    }
}

/// What an [`AuthServer`](crate::AuthServer) can be scripted to reply: a [`Reply`] or a
/// [`TokenReply`].
///
/// You don't need to name this type, because both convert into it.
#[derive(Clone, Debug)]
pub struct AuthReply(pub(crate) AuthReplyKind);

#[derive(Clone, Debug)]
pub(crate) enum AuthReplyKind {
    Any(Reply),
    Token(TokenReply),
}

impl AuthReply {
    pub(crate) fn delivery(&self) -> &Delivery {
        match &self.0 {
            AuthReplyKind::Any(reply) => &reply.delivery,
            AuthReplyKind::Token(reply) => &reply.delivery,
        }
    }

    pub(crate) fn is_before_body(&self) -> bool {
        matches!(&self.0, AuthReplyKind::Any(reply) if reply.is_before_body())
    }

    /// See [`Reply::scripted_response`]. `None` for a token reply.
    pub(crate) async fn scripted_response(&self) -> Option<io::Result<Response<Body>>> {
        match &self.0 {
            AuthReplyKind::Any(reply) => reply.scripted_response().await,
            AuthReplyKind::Token(_) => None,
        }
    }
}

impl From<Reply> for AuthReply {
    fn from(reply: Reply) -> Self {
        Self(AuthReplyKind::Any(reply))
    }
}

impl From<TokenReply> for AuthReply {
    fn from(reply: TokenReply) -> Self {
        Self(AuthReplyKind::Token(reply))
    }
}

impl Delivery {
    /// Changes a response to what is sent.
    pub(crate) async fn apply(&self, response: Response<Body>) -> io::Result<Response<Body>> {
        let (mut head, mut body) = response.into_parts();
        head.status = self.status.unwrap_or(head.status);
        for name in self.headers.keys() {
            head.headers.remove(name);
        }
        for (name, value) in &self.headers {
            head.headers.append(name.clone(), value.clone());
        }
        if let Some(data) = &self.body {
            body = Body::new(data.clone());
        }
        if let Some(end) = self.half {
            let data = body.collect().await?.to_bytes();
            body = Body::half(&data, end);
        }
        Ok(Response::from_parts(head, body))
    }
}

/// Waits, if there is something to wait for: a timer needs a runtime, and at least a millisecond.
pub(crate) async fn wait(delay: Duration) {
    if !delay.is_zero() {
        sleep(delay).await;
    }
}

/// # Panics
///
/// Panics if this isn't the status of a final response: interim responses (1xx) aren't replies.
#[track_caller]
fn final_status(status: u16) -> StatusCode {
    StatusCode::from_u16(status)
        .ok()
        .filter(|status| !status.is_informational())
        .expect("the status of a reply is between 200 and 999")
}
