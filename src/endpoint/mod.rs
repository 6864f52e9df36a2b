//! The token service over any HTTP client.

mod client_auth;
mod exchange;
pub mod provider;
mod redaction;
mod reply;
mod token_url;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, Uri,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING},
};
use http_body::Body;
use tower::{BoxError, Service, ServiceExt, util::BoxCloneService};

pub use self::client_auth::{ClientAuth, ClientSecret};
use self::{
    exchange::{Exchange, HttpClient, PlainHttp, erase_body},
    token_url::TokenUrl,
};
use crate::{AccessToken, Error, TokenParameters, TokenRequest, error::Refusal};

/// A token service that asks a token endpoint with the client-credentials grant (RFC 6749 §4.4).
///
/// It sends its requests with the HTTP client that it is given: any clonable tower service that
/// takes `http` requests with a body made of [`Bytes`]. Its caller decides when a token is asked
/// for; each call is one token request, two at most where
/// [rotated credentials](ClientAuth::from_fn) are refused. It neither caches nor retries, and has no
/// timeout of its own: a [`TokenCache`](crate::TokenCache) brings all three.
///
/// # What is sent
///
/// A POST with a form: `grant_type=client_credentials`, what [`ClientAuth`] adds, `scope` with the
/// endpoint's and the request's scopes, each once, then resources, audiences and further parameters,
/// the endpoint's before the request's. Nothing is added to the URL.
///
/// # What is read
///
/// Any 2xx with a JSON object, whatever its content type says; `expires_in` as a number or as a
/// numeric string, at most one year; a missing `token_type` as Bearer. A parameter that stands in
/// the reply twice, a token type other than Bearer, and an `error` within a 2xx are errors. So is an
/// `expires_in` that is no number: a token used for a time of our own choosing could end unnoticed.
///
/// Of any other status as much is read as comes, on a Tokio runtime for two seconds, whose timers
/// have to be enabled then: a body that breaks off or stalls takes away neither the status nor
/// `Retry-After`. A 2xx that breaks off is a transport error, and one that stalls is waited for.
///
/// # Examples
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::Full;
/// use tower::{BoxError, ServiceExt, service_fn};
/// use tower_client_credentials::{ClientAuth, TokenEndpoint, TokenRequest};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// // Any HTTP client; this one knows the answer.
/// let http = service_fn(|_: http::Request<Full<Bytes>>| async {
///     let reply = r#"{"access_token":"AQXdSP_W41","expires_in":"1800"}"#;
///     Ok::<_, BoxError>(http::Response::new(reply.to_owned()))
/// });
/// let tokens = TokenEndpoint::new(
///     http,
///     "https://www.linkedin.com/oauth/v2/accessToken",
///     ClientAuth::client_secret_post("77tt5z...", "WPL_AP1..."),
/// )?;
///
/// let token = tokens.oneshot(TokenRequest::default()).await?;
/// assert_eq!(token.expose(), "AQXdSP_W41");
/// # Ok(())
/// # }
/// ```
///
/// A server that wants to know what the token is for:
///
/// ```
/// # use bytes::Bytes;
/// # use http_body_util::Full;
/// # use tower::{BoxError, service_fn};
/// # use tower_client_credentials::{ClientAuth, Error, TokenEndpoint};
/// # let http = service_fn(|_: http::Request<Full<Bytes>>| async {
/// #     Ok::<_, BoxError>(http::Response::new(String::new()))
/// # });
/// let tokens = TokenEndpoint::new(
///     http,
///     "https://auth.example/oauth/token",
///     ClientAuth::client_secret_basic("my-client", "s3cret"),
/// )?
/// .scope("orders.read orders.write")
/// .audience("https://api.example")
/// .resource("https://api.example/orders")
/// .parameter("tenant", "example")
/// .header(http::header::USER_AGENT, http::HeaderValue::from_static("orders/1.0"))
/// .reply_limit(64 * 1024);
/// # drop(tokens);
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
///
/// A call fails if the HTTP client fails ([`is_transport`](Error::is_transport)), if the endpoint
/// answers with an error ([`is_refused`](Error::is_refused)) or with something that is no token
/// reply ([`is_invalid_reply`](Error::is_invalid_reply)), if a function given to [`ClientAuth`]
/// fails or gives what cannot be sent ([`is_client_auth`](Error::is_client_auth)), and, before
/// anything is sent, if a setting cannot work ([`is_configuration`](Error::is_configuration)).
///
/// # Cancel safety
///
/// Dropping a call's future drops the request that it sent. The server may have issued a token for
/// it that nobody gets.
#[derive(Clone)]
pub struct TokenEndpoint {
    client: HttpClient,
    exchange: Arc<Exchange>,
}

impl TokenEndpoint {
    /// Asks the token endpoint at `url`, with the given HTTP client and client authentication.
    ///
    /// `url` may be a `&str`, a `String` or a [`Uri`]. The body type of the client's requests is found
    /// by inference; for a client that takes several, name it:
    /// `TokenEndpoint::new::<_, Full<Bytes>, _>(..)`.
    ///
    /// Switch redirects off in this client: on a 307 or 308 a follower sends the form, with the
    /// client's secret, to whatever host the reply names. The endpoint reports redirects as errors
    /// that say where to.
    ///
    /// # Errors
    ///
    /// Fails if the URL is not an absolute http or https URL with a host, or if it holds user
    /// information, a fragment (seen in texts only, as [`Uri`] keeps none) or a bad port; if the
    /// client id is empty, or if id or secret hold a control or invisible character or start or end
    /// with white space, which usually comes from the file they were read from. An empty secret is
    /// left to the server (RFC 6749 §2.3.1).
    ///
    /// Plain http to a host other than loopback is not refused here, because
    /// [`allow_http`](Self::allow_http) comes later: every token request is, before anything is sent.
    pub fn new<C, B, ResBody>(
        client: C,
        url: impl TryInto<Uri, Error: Into<BoxError>> + fmt::Display,
        auth: ClientAuth,
    ) -> Result<Self, Error>
    where
        C: Service<Request<B>, Response = Response<ResBody>> + Clone + Send + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send + 'static,
        B: From<Bytes>,
        ResBody: Body<Error: Into<BoxError>> + Send + 'static,
    {
        let url = TokenUrl::new(url)?;
        auth.check()?;
        let client = client
            .map_request(|request: Request<Bytes>| request.map(B::from))
            .map_response(erase_body)
            .map_err(|error: C::Error| error.into());
        Ok(Self {
            client: BoxCloneService::new(client),
            exchange: Arc::new(Exchange {
                url,
                auth,
                parameters: TokenParameters::default(),
                headers: HeaderMap::new(),
                reply_limit: DEFAULT_REPLY_LIMIT,
                plain_http: PlainHttp::Loopback,
                hint: |_| None,
            }),
        })
    }

    /// Sends to another URL, a test server's or a proxy's, and keeps all else.
    ///
    /// # Examples
    ///
    /// ```
    /// # use bytes::Bytes;
    /// # use http_body_util::Full;
    /// # use tower::{BoxError, service_fn};
    /// # let http = service_fn(|_: http::Request<Full<Bytes>>| async {
    /// #     Ok::<_, BoxError>(http::Response::new(String::new()))
    /// # });
    /// use tower_client_credentials::provider;
    ///
    /// let tokens = provider::linkedin(http, "77tt5z...", "WPL_AP1...")?
    ///     .url("http://127.0.0.1:8080/token")?;
    /// # drop(tokens);
    /// # Ok::<(), BoxError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Fails for the URLs that [`new`](Self::new) refuses.
    pub fn url(
        self,
        url: impl TryInto<Uri, Error: Into<BoxError>> + fmt::Display,
    ) -> Result<Self, Error> {
        let url = TokenUrl::new(url)?;
        Ok(self.set(|it| it.url = url))
    }

    /// Asks for a scope each time, or for several that are separated by spaces.
    ///
    /// The request's own scopes follow; each is sent once.
    #[must_use]
    pub fn scope(self, scope: impl AsRef<str>) -> Self {
        self.parameters(|parameters| parameters.with_scope(scope))
    }

    /// Names a resource each time (RFC 8707 §2), as an absolute URI; may be given several times.
    #[must_use]
    pub fn resource(self, resource: impl Into<String>) -> Self {
        self.parameters(|parameters| parameters.with_resource(resource))
    }

    /// Names an audience each time (RFC 8693 §2.1); may be given several times.
    #[must_use]
    pub fn audience(self, audience: impl Into<String>) -> Self {
        self.parameters(|parameters| parameters.with_audience(audience))
    }

    /// Sends another parameter in the form each time; one name may be given several times.
    ///
    /// A name that the endpoint sends itself, such as `grant_type`, or `client_id` with
    /// [`ClientAuth::client_secret_post`], makes every token request fail with a configuration error:
    /// servers must refuse repeated ones (RFC 6749 §3.2), and replacing one is no business of this
    /// option. With [`ClientAuth::client_secret_basic`], `client_id` is free for servers that want it in both
    /// places, once. Not for secrets: `Debug` shows it.
    #[must_use]
    pub fn parameter(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.parameters(|parameters| parameters.with_parameter(name, value))
    }

    /// Sends a header with every token request; one name may be given several times.
    ///
    /// `Accept` replaces the default, `application/json`. `Content-Type`, `Content-Length`,
    /// `Transfer-Encoding` and `Host` have no effect, nor has `Authorization` with
    /// [`ClientAuth::client_secret_basic`]. `Debug` shows names only.
    #[must_use]
    pub fn header(self, name: HeaderName, value: HeaderValue) -> Self {
        if OF_THE_REQUEST_ITSELF.contains(&name) {
            return self;
        }
        self.set(|it| {
            it.headers.append(name, value);
        })
    }

    /// Reads at most so many bytes of a reply, whatever its `Content-Length` claims; 1 MiB unless
    /// given. A longer reply is an error.
    #[must_use]
    pub fn reply_limit(self, bytes: usize) -> Self {
        self.set(|it| it.reply_limit = bytes)
    }

    /// Sends credentials over plain http to any host.
    ///
    /// Without it, only to `localhost`, `127.0.0.0/8` and `[::1]`. Whoever can listen on the way
    /// then has them: for networks that are encrypted otherwise, such as a service mesh.
    ///
    /// # Examples
    ///
    /// ```
    /// # use bytes::Bytes;
    /// # use http_body_util::Full;
    /// # use tower::{BoxError, service_fn};
    /// # let http = service_fn(|_: http::Request<Full<Bytes>>| async {
    /// #     Ok::<_, BoxError>(http::Response::new(String::new()))
    /// # });
    /// use tower_client_credentials::{ClientAuth, TokenEndpoint};
    ///
    /// let auth = ClientAuth::client_secret_basic("my-client", "s3cret");
    /// let tokens = TokenEndpoint::new(http, "http://auth.mesh.internal/token", auth)?.allow_http();
    /// # drop(tokens);
    /// # Ok::<(), BoxError>(())
    /// ```
    #[must_use]
    pub fn allow_http(self) -> Self {
        self.set(|it| it.plain_http = PlainHttp::Anywhere)
    }

    /// Sets what the provider's documented errors ask the user to do.
    fn hints(self, hint: fn(&Refusal) -> Option<&'static str>) -> Self {
        self.set(|it| it.hint = hint)
    }

    fn parameters(self, change: impl FnOnce(TokenParameters) -> TokenParameters) -> Self {
        self.set(|it| it.parameters = change(std::mem::take(&mut it.parameters)))
    }

    fn set(mut self, change: impl FnOnce(&mut Exchange)) -> Self {
        change(Arc::make_mut(&mut self.exchange));
        self
    }
}

/// What follows from the form and the URL.
const OF_THE_REQUEST_ITSELF: [HeaderName; 4] =
    [CONTENT_TYPE, CONTENT_LENGTH, TRANSFER_ENCODING, HOST];

/// A token reply has some kilobytes; an error page may have more.
const DEFAULT_REPLY_LIMIT: usize = 1024 * 1024;

impl Service<TokenRequest> for TokenEndpoint {
    type Response = AccessToken;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<AccessToken, Error>> + Send>>;

    /// Always ready: the client is polled within the call.
    ///
    /// A client that was polled ready holds a permit, and the user's function for an assertion or
    /// for credentials may need that very permit for a request of its own.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: TokenRequest) -> Self::Future {
        let client = self.client.clone();
        let exchange = Arc::clone(&self.exchange);
        Box::pin(async move { exchange.run(client, &request.parameters).await })
    }
}

impl fmt::Debug for TokenEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<_> = self.exchange.headers.keys().collect();
        f.debug_struct("TokenEndpoint")
            .field("url", &self.exchange.url)
            .field("auth", &self.exchange.auth)
            .field("parameters", &self.exchange.parameters)
            .field("headers", &headers)
            .field("reply_limit", &self.exchange.reply_limit)
            .field("plain_http", &self.exchange.plain_http)
            .finish_non_exhaustive()
    }
}
