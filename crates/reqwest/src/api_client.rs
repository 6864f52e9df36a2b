use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Method, Request};
use reqwest::{Body, Client, ClientBuilder, IntoUrl};
use tower::Layer;
use tower_client_credentials::{ClientCredentials, TokenCache, TokenParameters, replay::NoReplay};
use tower_service::Service;

use crate::{
    ApiRequestBuilder, Error, ReplayBodies, ReqwestService, Tokens,
    deadline::{Deadline, in_time},
    redirect::CallersHeaders,
    sealed::Sealed,
};

/// Adds [`with_client_credentials`](Self::with_client_credentials) to [`reqwest::Client`].
pub trait ClientExt: Sealed {
    /// Returns a client that sends its requests through this one, with an access token.
    ///
    /// `tokens` is a token service such as a [`TokenEndpoint`], a [`TokenCache`] or a
    /// [`ClientCredentialsLayer`].
    ///
    /// Only tokens in the `Authorization` header are sent, because this client may follow redirects to
    /// other origins, and reqwest removes no other header there. Use [`ClientBuilderExt`] for tokens in
    /// other headers.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use reqwest::Client;
    /// use tower_client_credentials::{ClientAuth, TokenEndpoint};
    /// use tower_client_credentials_reqwest::{ClientExt, token_client};
    ///
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let auth = ClientAuth::client_secret_basic("my-client", "s3cret");
    /// let tokens = TokenEndpoint::new(token_client()?, "https://auth.example.com/token", auth)?;
    /// let api = Client::new().with_client_credentials(tokens);
    ///
    /// let orders = api.get("https://api.example.com/orders").send().await?;
    /// # drop(orders);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`TokenEndpoint`]: tower_client_credentials::TokenEndpoint
    /// [`ClientCredentialsLayer`]: tower_client_credentials::ClientCredentialsLayer
    fn with_client_credentials<Kind>(&self, tokens: impl Tokens<Kind>) -> ApiClient;
}

impl ClientExt for Client {
    fn with_client_credentials<Kind>(&self, tokens: impl Tokens<Kind>) -> ApiClient {
        ApiClient::new(ReqwestService::new(self.clone()), tokens)
    }
}

/// Adds [`with_client_credentials`](Self::with_client_credentials) to [`reqwest::ClientBuilder`].
pub trait ClientBuilderExt: Sealed {
    /// Builds a client that sends its requests with an access token, and follows redirects only
    /// within an origin.
    ///
    /// Use it for tokens in a header other than `Authorization`, and for DPoP: reqwest would take
    /// these headers along to another origin.
    ///
    /// See [`ReqwestService::within_origin`] for its redirects.
    ///
    /// # Errors
    ///
    /// Fails if [`build`](reqwest::ClientBuilder::build) fails.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use reqwest::Client;
    /// use tower_client_credentials::TokenCache;
    /// use tower_client_credentials_reqwest::{ApiClient, ClientBuilderExt};
    ///
    /// fn api(tokens: TokenCache) -> reqwest::Result<ApiClient> {
    ///     Client::builder()
    ///         .connect_timeout(Duration::from_secs(2))
    ///         .with_client_credentials(tokens)
    /// }
    /// ```
    fn with_client_credentials<Kind>(self, tokens: impl Tokens<Kind>)
    -> reqwest::Result<ApiClient>;
}

impl ClientBuilderExt for ClientBuilder {
    fn with_client_credentials<Kind>(
        self,
        tokens: impl Tokens<Kind>,
    ) -> reqwest::Result<ApiClient> {
        Ok(ApiClient::new(ReqwestService::within_origin(self)?, tokens))
    }
}

/// Builds a reqwest client for token requests: it follows no redirects.
///
/// A client that follows redirects would send the client secret to the URL that a reply names. The
/// client has its own connections, and uses the same TLS library as your other clients, because
/// Cargo unifies the features of reqwest.
///
/// Use it for every token endpoint. For a proxy or a certificate authority of your own, use
/// [`token_client_with`].
///
/// # Errors
///
/// Fails if [`build`](reqwest::ClientBuilder::build) fails.
///
/// # Examples
///
/// ```
/// use tower_client_credentials::{ClientAuth, TokenEndpoint};
/// use tower_client_credentials_reqwest::token_client;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let tokens = TokenEndpoint::new(
///     token_client()?,
///     "https://auth.example.com/oauth/token",
///     ClientAuth::client_secret_basic("my-client", "s3cret"),
/// )?;
/// # drop(tokens);
/// # Ok(())
/// # }
/// ```
pub fn token_client() -> reqwest::Result<ReqwestService> {
    token_client_with(Client::builder())
}

/// Builds a client as [`token_client`] does, from a builder with your options.
///
/// A redirect policy of the builder is replaced.
///
/// # Errors
///
/// Fails if [`build`](reqwest::ClientBuilder::build) fails.
///
/// # Examples
///
/// ```
/// use reqwest::{Client, Proxy};
/// use tower_client_credentials_reqwest::{ReqwestService, token_client_with};
///
/// fn token_client_behind_proxy() -> reqwest::Result<ReqwestService> {
///     let proxy = Proxy::all("http://proxy.example.com:3128")?;
///     token_client_with(Client::builder().proxy(proxy))
/// }
/// ```
pub fn token_client_with(builder: ClientBuilder) -> reqwest::Result<ReqwestService> {
    ReqwestService::without_redirects(builder)
}

/// A reqwest client that sends every request with an access token.
///
/// Has the methods of [`reqwest::Client`], and returns ordinary [`reqwest::Response`]s. Clones share
/// their tokens and connections. It can be put into a struct, shared, and used in spawned tasks.
///
/// Created by [`ClientExt`], or by [`ClientBuilderExt`].
///
/// # What happens to a request
///
/// * If the API rejects the token, the token is renewed and the request sent once more, with the
///   same method, URL, headers and body. See [`ReplayBodies`] for bodies that stream.
/// * A 401 after a redirect within the origin counts, too, and it is the original request that is sent
///   again. So a `POST` that the API has answered with 303 is repeated. If this does harm, use
///   [`no_replay`](ApiRequestBuilder::no_replay).
/// * The response has the extension [`TokenOutcome`] if the call waited for a token, was sent twice,
///   or was rejected. [`reqwest::Response::extensions`] contains it.
/// * If reqwest follows a redirect to another origin, it removes the token, and the response has the
///   extension [`TokenRemoved`]. See [`ReqwestService`] for tokens in other headers.
/// * A request over plain HTTP to another machine is sent without a token, unless the layer
///   [allows it](tower_client_credentials::ClientCredentialsLayer::allow_http).
/// * reqwest uses the proxies in the environment, such as `HTTP_PROXY`, for plain HTTP to the own
///   machine, too. The proxy then sees the token. Use [`ClientBuilder::no_proxy`] or the variable
///   `NO_PROXY`.
/// * A request that already has an `Authorization` header is sent unchanged. A default
///   `Authorization` header of the client doesn't count: reqwest adds it later, and only to requests
///   without a token.
/// * A [`timeout`](ApiRequestBuilder::timeout) of the request, or [that of this client](Self::timeout),
///   covers the wait for a token, both sends, and reading the response. A timeout of the
///   [`reqwest::ClientBuilder`] is applied to each send, because reqwest doesn't reveal it.
///   `connect_timeout` and `read_timeout` work as without tokens.
///
/// [`TokenOutcome`]: tower_client_credentials::TokenOutcome
/// [`TokenRemoved`]: tower_client_credentials::TokenRemoved
///
/// # Examples
///
/// ```no_run
/// use tower_client_credentials_reqwest::{ApiClient, Error};
///
/// #[derive(Clone)]
/// struct Orders {
///     api: ApiClient,
/// }
///
/// impl Orders {
///     async fn latest(&self) -> Result<String, Error> {
///         let response = self.api.get("https://api.example.com/orders/latest").send().await?;
///         Ok(response.error_for_status()?.text().await?)
///     }
///
///     fn refresh_in_background(&self) {
///         tokio::spawn(self.api.post("https://api.example.com/orders/refresh").send());
///     }
/// }
/// ```
///
/// To find out whether a request was sent twice:
///
/// ```
/// use tower_client_credentials::TokenOutcome;
///
/// fn was_replayed(response: &reqwest::Response) -> bool {
///     let outcome = response.extensions().get::<TokenOutcome>();
///     outcome.is_some_and(TokenOutcome::replayed)
/// }
/// ```
#[derive(Clone)]
pub struct ApiClient {
    service: ClientCredentials<ReqwestService, ReplayBodies>,
    timeout: Option<Duration>,
    parameters: Option<TokenParameters>,
}

impl ApiClient {
    fn new<Kind>(client: ReqwestService, tokens: impl Tokens<Kind>) -> Self {
        Self {
            service: tokens.into_layer().layer(client),
            timeout: None,
            parameters: None,
        }
    }

    /// Returns a client for tokens with another scope, audience or tenant.
    ///
    /// Both clients share their connections and their cache, which holds a token for each
    /// combination of parameters. The parameters replace those of the cache. The scope of the
    /// [`TokenEndpoint`](tower_client_credentials::TokenEndpoint) itself is requested in addition.
    ///
    /// A request that was converted from an [`http::Request`] with the extension [`TokenParameters`]
    /// uses the parameters of this extension instead.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use tower_client_credentials::TokenParameters;
    /// use tower_client_credentials_reqwest::{ApiClient, Error};
    ///
    /// async fn delete(api: &ApiClient) -> Result<(), Error> {
    ///     let writing = TokenParameters::default().with_scope("orders.write");
    ///     let request = api.with_parameters(writing).delete("https://api.example.com/orders/7");
    ///     request.send().await?.error_for_status()?;
    ///     Ok(())
    /// }
    /// ```
    #[must_use]
    pub fn with_parameters(&self, parameters: TokenParameters) -> Self {
        Self {
            parameters: Some(parameters),
            ..self.clone()
        }
    }

    /// Sets the total timeout of requests that have none of their own. Default: no timeout.
    ///
    /// It starts when a request is sent, and covers the wait for a token, both sends, and reading the
    /// response. The second send gets the time that the first one has left. If the timeout elapses, the
    /// call fails with an error that is a [timeout](Error::is_timeout). A token request isn't canceled,
    /// because other calls can use its token.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use reqwest::Client;
    /// use tower_client_credentials::TokenCache;
    /// use tower_client_credentials_reqwest::{ApiClient, ClientExt};
    ///
    /// fn api(tokens: TokenCache) -> ApiClient {
    ///     Client::new().with_client_credentials(tokens).timeout(Duration::from_secs(10))
    /// }
    /// ```
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Starts a `GET` request. An invalid URL makes [`send`](ApiRequestBuilder::send) fail.
    pub fn get(&self, url: impl IntoUrl) -> ApiRequestBuilder {
        self.request(Method::GET, url)
    }

    /// Starts a `POST` request. An invalid URL makes [`send`](ApiRequestBuilder::send) fail.
    pub fn post(&self, url: impl IntoUrl) -> ApiRequestBuilder {
        self.request(Method::POST, url)
    }

    /// Starts a `PUT` request. An invalid URL makes [`send`](ApiRequestBuilder::send) fail.
    pub fn put(&self, url: impl IntoUrl) -> ApiRequestBuilder {
        self.request(Method::PUT, url)
    }

    /// Starts a `PATCH` request. An invalid URL makes [`send`](ApiRequestBuilder::send) fail.
    pub fn patch(&self, url: impl IntoUrl) -> ApiRequestBuilder {
        self.request(Method::PATCH, url)
    }

    /// Starts a `DELETE` request. An invalid URL makes [`send`](ApiRequestBuilder::send) fail.
    pub fn delete(&self, url: impl IntoUrl) -> ApiRequestBuilder {
        self.request(Method::DELETE, url)
    }

    /// Starts a `HEAD` request. An invalid URL makes [`send`](ApiRequestBuilder::send) fail.
    pub fn head(&self, url: impl IntoUrl) -> ApiRequestBuilder {
        self.request(Method::HEAD, url)
    }

    /// Starts a request. An invalid URL makes [`send`](ApiRequestBuilder::send) fail.
    pub fn request(&self, method: Method, url: impl IntoUrl) -> ApiRequestBuilder {
        let builder = self.service.get_ref().get_ref().request(method, url);
        ApiRequestBuilder::new(self.clone(), builder)
    }

    /// Sends a request that was built without this client.
    ///
    /// # Errors
    ///
    /// See [`ApiRequestBuilder::send`].
    pub fn execute(&self, request: reqwest::Request) -> ResponseFuture {
        self.send(Ok(request), None)
    }

    /// Returns a handle of the cache for the tokens of this client, with its
    /// [parameters](Self::with_parameters).
    pub fn cache(&self) -> TokenCache {
        let cache = self.service.cache();
        match &self.parameters {
            Some(parameters) => cache.with_parameters(parameters.clone()),
            None => cache.clone(),
        }
    }

    /// Returns the client without tokens.
    pub fn client(&self) -> &Client {
        self.service.get_ref().get_ref()
    }

    /// Returns the tower service that sends the requests.
    pub fn service(&self) -> &ClientCredentials<ReqwestService, ReplayBodies> {
        &self.service
    }

    pub(crate) fn send(
        &self,
        request: reqwest::Result<reqwest::Request>,
        no_replay: Option<NoReplay>,
    ) -> ResponseFuture {
        let call = match request.and_then(|request| Call::new(request, self.timeout)) {
            Ok(call) => call,
            Err(error) => return ResponseFuture::new(async { Err(error.into()) }),
        };
        let Call {
            mut request,
            deadline,
        } = call;
        if let Some(no_replay) = no_replay {
            request.extensions_mut().insert(no_replay);
        }
        if let Some(parameters) = &self.parameters {
            let extensions = request.extensions_mut();
            extensions.get_or_insert_with(|| parameters.clone());
        }
        let response = self.service.send(request);
        ResponseFuture::new(in_time(deadline, async {
            response
                .await
                .map(reqwest::Response::from)
                .map_err(|error| Error::from_boxed(error.into_inner()))
        }))
    }
}

/// A request in the form in which a stack sends it.
pub(crate) struct Call {
    pub(crate) request: Request<Body>,
    pub(crate) deadline: Option<Deadline>,
}

impl Call {
    /// Converts a request without a token. Its timeout starts here.
    pub(crate) fn new(
        request: reqwest::Request,
        timeout: Option<Duration>,
    ) -> reqwest::Result<Self> {
        let deadline = request.timeout().copied().or(timeout).map(Deadline::after);
        let mut request = Request::<Body>::try_from(request)?;
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(deadline);
        }
        if let Some(callers) = CallersHeaders::of(request.headers()) {
            request.extensions_mut().insert(callers);
        }
        Ok(Self { request, deadline })
    }
}

impl Service<reqwest::Request> for ApiClient {
    type Response = reqwest::Response;
    type Error = Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // Each call polls a clone of its own ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: reqwest::Request) -> ResponseFuture {
        self.execute(request)
    }
}

impl fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiClient")
            .field("service", &self.service)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// The future of a request with an access token.
///
/// Borrows nothing, so it can be spawned and put into a struct.
///
/// # Cancel safety
///
/// Dropping this future drops the request. It doesn't cancel a token request that the call waits
/// for: other calls can use the token.
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture(Pin<Box<dyn Future<Output = Result<reqwest::Response, Error>> + Send>>);

impl ResponseFuture {
    fn new(call: impl Future<Output = Result<reqwest::Response, Error>> + Send + 'static) -> Self {
        Self(Box::pin(call))
    }
}

impl Future for ResponseFuture {
    type Output = Result<reqwest::Response, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
