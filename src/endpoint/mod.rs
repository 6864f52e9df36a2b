//! The client-credentials grant over any HTTP client.

mod budget;
mod cause;
mod client_auth;
mod error_reply;
mod exchange;
mod hint;
mod json;
mod parameters;
pub mod provider;
mod redaction;
mod reply;
mod retry_after;
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
    budget::Budget,
    exchange::{Exchange, HttpClient, PlainHttp, erase_body},
    parameters::OwnParameters,
    token_url::{TokenUrl, UrlSource},
};
use crate::{AccessToken, Error, TokenParameters, TokenRequest, error::Refusal};

/// A token service that requests tokens with the client-credentials grant (RFC 6749 §4.4).
///
/// You supply the HTTP client: any `Clone` tower service for `http` requests whose body type can be
/// created from [`Bytes`]. Each call sends one request, or two if the server refuses credentials
/// that were [rotated](ClientAuth::from_fn), or none while the server is [known](#sharing) to be down.
/// This type doesn't cache, retry or time out. A
/// [`TokenCache`](crate::TokenCache) adds all three.
///
/// # HTTP client
///
/// Use a separate HTTP client for token requests:
///
/// * Turn redirects off. After a 307 or 308, a client that follows redirects sends the form with
///   the client secret to the host that the reply names. If redirects are off, this type returns
///   an error that names the target. A reply with the extension [`TokenRemoved`](crate::TokenRemoved)
///   is from another origin, and is refused.
/// * Don't share connections with API requests. On an HTTP/2 connection, unread responses of the API
///   can delay the token reply.
/// * Don't wrap the client with the layer that uses its tokens. A token request that passes through
///   this layer waits for the token that it is supposed to get, and fails.
///
/// # Request
///
/// A `POST` with a form. The form contains `grant_type=client_credentials`, the parameters of
/// [`ClientAuth`], `scope`, resources, audiences and other parameters, in this order. Values that
/// are set on this type precede those of the [`TokenRequest`]. Duplicate scopes, resources and
/// audiences are sent only once. The URL is sent unchanged.
///
/// Unless you set them with [`header`](Self::header), the request has the headers `Accept:
/// application/json`, `Accept-Encoding: identity`, and `User-Agent` with the name and version of
/// this crate.
///
/// # Reply
///
/// A reply with a 2xx status must be a JSON object. Its content type is ignored. `expires_in` can
/// be a number or a numeric string, and is limited to one year. The age of a cached reply (`Age`,
/// RFC 9111 §5.1) is subtracted. If `token_type` is missing, the token is a Bearer token. If the
/// server grants fewer scopes than requested, [`AccessToken::missing_scopes`] returns the
/// others. The reply is an error if it contains a duplicate parameter, another
/// token type, an `error`, or an `expires_in` that isn't a number. If the body ends early, the call
/// fails with a transport error. There is no time limit.
///
/// A reply with any other status is an error. Its body is read for at most two seconds, and the
/// part that has arrived by then is used. (The time limit requires a Tokio runtime with timers
/// enabled.) The status and the `Retry-After` header are used even if the body ends early.
///
/// Code and description of an error are read as RFC 6749 §5.2 and RFC 9457 define them, and as
/// Apigee, Azure, Facebook, Google, Okta, X and Zoom send them.
///
/// # Sharing
///
/// Clones share what they learn about the server, so that a program with many keys doesn't multiply an
/// outage. A key is the parameters and the tenant of a [`TokenRequest`].
///
/// * If the server answers with status 429, or with a transient error and `Retry-After`, other keys with
///   the same URL and client id are paused for that time, or for one second if there is no
///   `Retry-After` or it is longer than 5 minutes. A paused token request fails at once with the same
///   error, and [`Error::retry_after`] returns the time that is left. The key that got the reply isn't
///   paused here, because its [`TokenCache`](crate::TokenCache) has its own pause.
/// * After a transport error or a 5xx status, one token request at a time is sent to that origin
///   (scheme, host and port). Token requests that start meanwhile wait until this one has ended. If it
///   failed like the last one, they fail with its error; otherwise, they are sent. If several keys fail
///   in a row, there is a pause between these token requests: 10 ms, doubling up to one second.
///   Meanwhile, other keys get the last error at once.
/// * A token request without an answer holds up others for at most 5 seconds. If it is dropped after
///   that, it counts as failed.
///
/// A reply other than 5xx ends the state of the origin, and a token ends the pause of the client.
/// Nothing is shared between endpoints that were created separately.
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
/// // Any HTTP client works. This one returns a fixed reply.
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
/// With scopes, audience, resource and other parameters:
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
/// A call fails if
///
/// * a setting is invalid, in which case nothing is sent
///   ([`is_configuration`](Error::is_configuration));
/// * a function passed to [`ClientAuth`] fails or returns unusable credentials
///   ([`is_client_auth`](Error::is_client_auth));
/// * a function passed to [`with_url_fn`](Self::with_url_fn) fails or returns an unusable URL
///   ([`is_token_url`](Error::is_token_url));
/// * the HTTP client fails ([`is_transport`](Error::is_transport));
/// * the endpoint answers with an error ([`is_refused`](Error::is_refused));
/// * the endpoint answers with something else ([`is_invalid_reply`](Error::is_invalid_reply)).
///
/// # Cancel safety
///
/// Dropping the future of a call drops the HTTP client's future. If the server still issues a
/// token, that token is lost.
#[derive(Clone)]
pub struct TokenEndpoint {
    client: HttpClient,
    exchange: Arc<Exchange>,
    budget: Arc<Budget>,
}

impl TokenEndpoint {
    /// Creates a token service for the token endpoint at `url`.
    ///
    /// `url` is a `&str`, a `String` or a [`Uri`]. The body type `B` of the client's requests is
    /// inferred. If the client accepts several body types, specify one:
    /// `TokenEndpoint::new::<_, Full<Bytes>, _>(..)`.
    ///
    /// Turn redirects off in the HTTP client, and don't use it for API requests; see
    /// [HTTP client](#http-client).
    ///
    /// # Errors
    ///
    /// Fails if
    ///
    /// * the URL isn't an absolute http or https URL, or has no host or an invalid port;
    /// * the URL contains user information or a fragment (a [`Uri`] never contains a fragment);
    /// * the client id is empty;
    /// * the client id or secret contains a control or invisible character, or starts or ends with
    ///   whitespace, such as the trailing line break of a file.
    ///
    /// An empty secret isn't an error, because RFC 6749 §2.3.1 allows it. A plain HTTP URL of
    /// another machine isn't an error here, because you can still call
    /// [`allow_http`](Self::allow_http). If you don't, each token request fails.
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
        Self::from_parts(client, UrlSource::Fixed(TokenUrl::new(url)?), auth)
    }

    /// Creates a token service whose token URL depends on the [`TokenRequest`].
    ///
    /// Use it if each tenant has its own token URL. The function receives the request with its
    /// [tenant](TokenParameters::tenant) and its other parameters, and returns a `&str`, a `String` or
    /// a [`Uri`]. It is called for each attempt, before the functions passed to [`ClientAuth`].
    ///
    /// If the function looks the URL up somewhere, keep the result: until it returns, callers wait.
    /// Its own limit should be shorter than that of an
    /// [attempt](crate::TokenCacheBuilder::attempt_timeout).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::future::ready;
    ///
    /// use bytes::Bytes;
    /// use http_body_util::Full;
    /// use hyper_util::client::legacy::{Client, connect::HttpConnector};
    /// use tower_client_credentials::{ClientAuth, Error, TokenEndpoint, TokenRequest};
    ///
    /// fn tokens(http: Client<HttpConnector, Full<Bytes>>) -> Result<TokenEndpoint, Error> {
    ///     let url = |request: TokenRequest| {
    ///         ready(match request.parameters.tenant() {
    ///             Some("tenant-1") => Ok("https://auth.tenant-1.example/token"),
    ///             Some("tenant-2") => Ok("https://auth.tenant-2.example/oauth/token"),
    ///             _ => Err(Error::permanent("unknown tenant")),
    ///         })
    ///     };
    ///     // The tenants' credentials can differ, too; see `ClientAuth::from_fn`.
    ///     TokenEndpoint::with_url_fn(http, url, ClientAuth::client_secret_basic("my-client", "s3cret"))
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// Fails if the client id or secret isn't valid; see [`new`](Self::new).
    ///
    /// If the function fails, the token request fails with [`is_token_url`](Error::is_token_url), and
    /// the function's error is the source. By default, such errors are transient. For an unknown
    /// tenant, return [`Error::permanent`]. A URL that `new` doesn't accept, and a plain HTTP URL of
    /// another machine, are permanent errors of the same kind. The messages contain the tenant's label,
    /// but not the URL.
    pub fn with_url_fn<C, B, ResBody, F, Fut, U, E>(
        client: C,
        url: F,
        auth: ClientAuth,
    ) -> Result<Self, Error>
    where
        C: Service<Request<B>, Response = Response<ResBody>> + Clone + Send + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send + 'static,
        B: From<Bytes>,
        ResBody: Body<Error: Into<BoxError>> + Send + 'static,
        F: Fn(TokenRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<U, E>> + Send + 'static,
        U: TryInto<Uri, Error: Into<BoxError>> + fmt::Display,
        E: Into<BoxError>,
    {
        Self::from_parts(client, UrlSource::from_fn(url), auth)
    }

    fn from_parts<C, B, ResBody>(client: C, url: UrlSource, auth: ClientAuth) -> Result<Self, Error>
    where
        C: Service<Request<B>, Response = Response<ResBody>> + Clone + Send + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send + 'static,
        B: From<Bytes>,
        ResBody: Body<Error: Into<BoxError>> + Send + 'static,
    {
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
                parameters: OwnParameters::default(),
                headers: HeaderMap::new(),
                reply_limit: DEFAULT_REPLY_LIMIT,
                plain_http: PlainHttp::Loopback,
                hint: |_| None,
            }),
            budget: Arc::default(),
        })
    }

    /// Replaces the token URL, for example with that of a test server or a proxy.
    ///
    /// All other settings stay the same. The URL also replaces a function passed to
    /// [`with_url_fn`](Self::with_url_fn).
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
    /// Fails for the same URLs as [`new`](Self::new).
    pub fn url(
        self,
        url: impl TryInto<Uri, Error: Into<BoxError>> + fmt::Display,
    ) -> Result<Self, Error> {
        let url = TokenUrl::new(url)?;
        Ok(self.set(|exchange| exchange.url = UrlSource::Fixed(url)))
    }

    /// Adds a scope, or several separated by spaces, to each token request.
    ///
    /// The scopes of the [`TokenRequest`] come after these. Duplicate scopes are sent only once.
    ///
    /// A scope consists of visible ASCII characters other than `"` and `\` (RFC 6749 §3.3). If it
    /// contains anything else, each token request fails with a
    /// [configuration error](Error::is_configuration), and nothing is sent.
    #[must_use]
    pub fn scope(self, scope: impl AsRef<str>) -> Self {
        self.map_parameters(|parameters| parameters.with_scope(scope))
    }

    /// Adds a resource, an absolute URI (RFC 8707 §2), to each token request.
    ///
    /// Can be called several times. If a resource isn't an absolute URI or has a fragment, each
    /// token request fails with a [configuration error](Error::is_configuration), and nothing is
    /// sent. For servers that expect other values, use [`parameter`](Self::parameter) with the name
    /// `resource`.
    #[must_use]
    pub fn resource(self, resource: impl Into<String>) -> Self {
        self.map_parameters(|parameters| parameters.with_resource(resource))
    }

    /// Adds an audience (RFC 8693 §2.1) to each token request.
    ///
    /// Can be called several times. If an audience is empty or contains a control character or an
    /// invisible character, each token request fails with a
    /// [configuration error](Error::is_configuration), and nothing is sent.
    #[must_use]
    pub fn audience(self, audience: impl Into<String>) -> Self {
        self.map_parameters(|parameters| parameters.with_audience(audience))
    }

    /// Adds another parameter to each token request. A name can be added several times.
    ///
    /// This option can't override built-in parameters, such as `grant_type`, or `client_id` with
    /// [`ClientAuth::client_secret_post`]. If you add one of them, every token request fails with a
    /// configuration error, because servers must refuse repeated parameters (RFC 6749 §3.2). With
    /// [`ClientAuth::client_secret_basic`], you can add `client_id` once, for servers that expect
    /// it both in the header and in the form. A name must not be empty or contain whitespace, control
    /// characters or invisible characters. Values are not checked.
    ///
    /// `Debug` shows names and values, so don't use this option for secrets.
    #[must_use]
    pub fn parameter(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.set(|exchange| {
            let others = &mut exchange.parameters.others;
            others.push((name.into(), value.into()));
        })
    }

    /// Adds a header to each token request. A name can be added several times.
    ///
    /// `Accept`, `Accept-Encoding` and `User-Agent` replace the [defaults](#request). If you accept a
    /// content coding, the HTTP client has to decompress the reply. `Content-Type`, `Content-Length`,
    /// `Transfer-Encoding` and `Host` are ignored. `Authorization` is ignored with
    /// [`ClientAuth::client_secret_basic`]. `Debug` shows only the names.
    #[must_use]
    pub fn header(self, name: HeaderName, value: HeaderValue) -> Self {
        if DERIVED_HEADERS.contains(&name) {
            return self;
        }
        self.set(|exchange| {
            exchange.headers.append(name, value);
        })
    }

    /// Sets the maximum size of a reply's body in bytes. Default: 1 MiB.
    ///
    /// A longer reply is an error. The received bytes are counted, regardless of `Content-Length`.
    #[must_use]
    pub fn reply_limit(self, bytes: usize) -> Self {
        self.set(|exchange| exchange.reply_limit = bytes)
    }

    /// Allows sending credentials over plain HTTP to any host.
    ///
    /// By default, plain HTTP is allowed only to loopback: `localhost`, `127.0.0.0/8` and `[::1]`.
    /// Anyone who can read the traffic gets the credentials. Use this option only if something else
    /// encrypts the traffic, such as a service mesh.
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
        self.set(|exchange| exchange.plain_http = PlainHttp::Anywhere)
    }

    /// Sets the function that says what to do about a provider's documented errors.
    fn hints(self, hint: fn(&Refusal) -> Option<&'static str>) -> Self {
        self.set(|exchange| exchange.hint = hint)
    }

    fn map_parameters(self, change: impl FnOnce(TokenParameters) -> TokenParameters) -> Self {
        self.set(|exchange| {
            let parameters = &mut exchange.parameters.standard;
            *parameters = change(std::mem::take(parameters));
        })
    }

    fn set(mut self, change: impl FnOnce(&mut Exchange)) -> Self {
        change(Arc::make_mut(&mut self.exchange));
        self
    }
}

/// Headers that follow from the form and the URL.
const DERIVED_HEADERS: [HeaderName; 4] = [CONTENT_TYPE, CONTENT_LENGTH, TRANSFER_ENCODING, HOST];

/// Token replies have a few kilobytes; error pages may have more.
const DEFAULT_REPLY_LIMIT: usize = 1024 * 1024;

impl Service<TokenRequest> for TokenEndpoint {
    type Response = AccessToken;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<AccessToken, Error>> + Send>>;

    /// Always returns ready. The call polls the HTTP client.
    ///
    /// A client that is ready may hold a permit, and a function passed to [`ClientAuth`] may need
    /// the same permit for its own request.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: TokenRequest) -> Self::Future {
        let client = self.client.clone();
        let exchange = Arc::clone(&self.exchange);
        let budget = Arc::clone(&self.budget);
        Box::pin(async move { exchange.run(client, &budget, &request).await })
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
