use std::{
    fmt, mem,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use http::{Extensions, Request, Response};
use reqwest::{Body, Url};
use reqwest_middleware::{Middleware, Next};
use tower::{Layer, ServiceExt};
use tower_client_credentials::{
    ClientCredentialsLayer, TokenCache, TokenParameters, replay::NoReplay,
};
use tower_service::Service;

use crate::{
    Error, ReplayBodies, Tokens,
    api_client::Call,
    deadline::in_time_or_reqwests,
    redirect::Redirects,
    service::{finish, prepare, token_url},
};

/// A middleware of the crate reqwest-middleware that adds an access token to every request.
///
/// Needs the feature `middleware`. It gives the same guarantees as an
/// [`ApiClient`](crate::ApiClient): one renewal and one second send after a rejection, with the same
/// method, URL, headers and body. A timeout of the request covers the wait for a token and both
/// sends.
///
/// The extension [`NoReplay`] of a request makes it be sent only once, and the extension
/// [`TokenParameters`] makes it be sent with a token for another scope, audience or tenant.
///
/// Middlewares that are added after this one see each send, with its token. Add a retry middleware
/// there, or it repeats calls that have already been sent twice.
///
/// # Redirects
///
/// The middleware doesn't know the client. If its redirects may lead to other origins, only tokens
/// in the `Authorization` header are sent, because reqwest removes no other header there. See
/// [`redirects_within_origin`](Self::redirects_within_origin).
///
/// The middleware doesn't know the URL that the client is asked for either: another middleware may
/// change it, or answer the request itself. So every 401 counts as a rejection, unless [`SentUrl`] is
/// the last middleware. With it, a 401 from another origin, where reqwest removed the token, is no
/// rejection, and the response has the extension [`TokenRemoved`].
///
/// [`TokenRemoved`]: tower_client_credentials::TokenRemoved
///
/// # Errors
///
/// Errors of this crate are [`Error`]s in a [`reqwest_middleware::Error::Middleware`]. Errors of
/// reqwest and of other middlewares are returned unchanged.
///
/// If a timeout elapses during a send, the error is reqwest's. If it elapses while the call waits for
/// a token, the error is an [`Error`], for which [`reqwest_middleware::Error::is_timeout`] returns
/// `false`. This function finds both:
///
/// ```
/// use reqwest_middleware::Error;
///
/// fn is_timeout(error: &Error) -> bool {
///     match error {
///         Error::Reqwest(error) => error.is_timeout(),
///         Error::Middleware(error) => error
///             .downcast_ref::<tower_client_credentials_reqwest::Error>()
///             .is_some_and(|error| error.is_timeout()),
///     }
/// }
/// ```
///
/// # Examples
///
/// ```
/// use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
/// use tower_client_credentials::TokenEndpoint;
/// use tower_client_credentials_reqwest::{ClientCredentialsMiddleware, SentUrl};
///
/// fn client(tokens: TokenEndpoint) -> ClientWithMiddleware {
///     ClientBuilder::new(reqwest::Client::new())
///         .with(ClientCredentialsMiddleware::new(tokens))
///         .with(SentUrl)
///         .build()
/// }
/// ```
#[derive(Clone)]
pub struct ClientCredentialsMiddleware {
    layer: ClientCredentialsLayer<ReplayBodies>,
    timeout: Option<Duration>,
    redirects: Redirects,
}

impl ClientCredentialsMiddleware {
    /// Creates a middleware that gets its tokens from a token service, a [`TokenCache`] or a
    /// [`ClientCredentialsLayer`].
    pub fn new<Kind>(tokens: impl Tokens<Kind>) -> Self {
        Self {
            layer: tokens.into_layer(),
            timeout: None,
            redirects: Redirects::Anywhere,
        }
    }

    /// Sets the total timeout of requests that have none of their own. Default: no timeout.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sends tokens in any header, because the client follows no redirect to another origin.
    ///
    /// The middleware can't check that. If the client follows such a redirect, the other origin
    /// receives the token.
    /// [`ReqwestService::within_origin`](crate::ReqwestService::within_origin) builds such a client;
    /// [`into_inner`](crate::ReqwestService::into_inner) returns it.
    #[must_use]
    pub fn redirects_within_origin(mut self) -> Self {
        self.redirects = Redirects::WithinOrigin;
        self
    }

    /// Returns the cache that supplies the tokens.
    pub fn cache(&self) -> &TokenCache {
        self.layer.cache()
    }
}

#[async_trait]
impl Middleware for ClientCredentialsMiddleware {
    async fn handle(
        &self,
        request: reqwest::Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<reqwest::Response> {
        let Call {
            mut request,
            deadline,
        } = Call::new(request, self.timeout)?;
        if let Some(no_replay) = extensions.get::<NoReplay>() {
            request.extensions_mut().insert(*no_replay);
        }
        if let Some(parameters) = extensions.get::<TokenParameters>() {
            request.extensions_mut().insert(parameters.clone());
        }
        let lent = Lent::new(extensions);
        let service = self.layer.layer(NextService {
            next,
            extensions: lent.shared.clone(),
            redirects: self.redirects,
        });
        let result = in_time_or_reqwests(deadline, async {
            let response = service.oneshot(request).await;
            response
                .map(reqwest::Response::from)
                .map_err(Error::from_boxed)
        })
        .await;
        result.map_err(Error::into_middleware_error)
    }
}

impl fmt::Debug for ClientCredentialsMiddleware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentialsMiddleware")
            .field("layer", &self.layer)
            .field("timeout", &self.timeout)
            .field("redirects", &self.redirects)
            .finish()
    }
}

/// A middleware that notes the URL that reqwest sends a request to.
///
/// Needs the feature `middleware`. Add it as the last middleware: it tells
/// [`ClientCredentialsMiddleware`] whether reqwest has followed a redirect to another origin, where it
/// removes the token. It changes no request. A middleware that is added after it must not change the
/// origin of a request's URL.
#[derive(Clone, Copy, Debug, Default)]
pub struct SentUrl;

/// Where the client is asked to send a token. A request extension.
#[derive(Clone)]
struct TokenUrl(Url);

#[async_trait]
impl Middleware for SentUrl {
    async fn handle(
        &self,
        request: reqwest::Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<reqwest::Response> {
        match token_url(&request) {
            Some(url) => extensions.insert(TokenUrl(url)),
            // A retry may send the request without the token that an earlier attempt had.
            None => extensions.remove(),
        };
        let response = next.run(request, extensions).await;
        if response.is_err() {
            // Another middleware may answer in place of the client.
            extensions.remove::<TokenUrl>();
        }
        response
    }
}

/// The middlewares below this one, and the client.
#[derive(Clone)]
struct NextService<'a> {
    next: Next<'a>,
    extensions: SharedExtensions,
    redirects: Redirects,
}

impl<'a> Service<Request<Body>> for NextService<'a> {
    type Response = Response<Body>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Error>> + Send + 'a>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self {
            next,
            extensions,
            redirects,
        } = self.clone();
        Box::pin(async move {
            let request = prepare(request, redirects)?;
            let mut borrowed = extensions.borrow();
            borrowed.extensions.remove::<TokenUrl>();
            let response = next.run(request, &mut borrowed.extensions).await;
            let response = response.map_err(Error::from_middleware)?;
            let token_url = borrowed.extensions.remove::<TokenUrl>();
            Ok(finish(
                response,
                token_url.as_ref().map(|TokenUrl(url)| url),
            ))
        })
    }
}

/// The extensions of a request, which the sends of the request use one after the other.
#[derive(Clone)]
struct SharedExtensions(Arc<Mutex<Extensions>>);

impl SharedExtensions {
    fn new(extensions: Extensions) -> Self {
        Self(Arc::new(Mutex::new(extensions)))
    }

    fn take(&self) -> Extensions {
        self.replace(Extensions::new())
    }

    fn borrow(self) -> Borrowed {
        Borrowed {
            extensions: self.take(),
            owner: self,
        }
    }

    fn replace(&self, extensions: Extensions) -> Extensions {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        mem::replace(&mut shared, extensions)
    }
}

/// The extensions of the caller, who gets them back when the call ends or is dropped.
struct Lent<'a> {
    owner: &'a mut Extensions,
    shared: SharedExtensions,
}

impl<'a> Lent<'a> {
    fn new(owner: &'a mut Extensions) -> Self {
        let shared = SharedExtensions::new(mem::take(owner));
        Self { owner, shared }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        *self.owner = self.shared.take();
    }
}

/// Extensions that are given back when a send ends or is dropped.
struct Borrowed {
    extensions: Extensions,
    owner: SharedExtensions,
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.owner.replace(mem::take(&mut self.extensions));
    }
}
