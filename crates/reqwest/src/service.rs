use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response, header::AUTHORIZATION};
use pin_project_lite::pin_project;
use reqwest::{Body, Client, ClientBuilder, ResponseBuilderExt, Url, redirect::Policy};
use tower_client_credentials::TokenRemoved;
use tower_service::Service;

use crate::{
    Error,
    deadline::Deadline,
    redirect::{self, CallersHeaders, Redirects},
};

/// A reqwest client as a service for requests of the `http` crate.
///
/// Use it to put tower layers around reqwest. For the HTTP client of a [`TokenEndpoint`], use
/// [`token_client`](crate::token_client), which returns this type. The service is always ready. Its
/// responses keep their URL when they are converted into a [`reqwest::Response`].
///
/// # Redirects
///
/// If the client follows a redirect to another origin, reqwest removes the `Authorization` header. A
/// 401 from there says nothing about the token, so the response gets the extension [`TokenRemoved`].
/// The response to a request without this header doesn't get it.
///
/// reqwest reveals only the last URL of a redirect. So if redirects lead to another origin and back, a
/// 401 counts as a rejection, although reqwest has removed the token on the way.
///
/// reqwest doesn't remove a token in any other header. Requests with such a token aren't sent, and
/// fail with an error that is an [unsafe redirect](Error::is_unsafe_redirect), unless the client's
/// redirects stay within an origin: those of [`within_origin`](Self::within_origin),
/// [`ClientBuilderExt`](crate::ClientBuilderExt) and [`token_client`](crate::token_client). A header
/// counts as such a token if its value is marked sensitive, or if it is a `DPoP` proof.
///
/// [`TokenEndpoint`]: tower_client_credentials::TokenEndpoint
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use tower::{ServiceBuilder, timeout::TimeoutLayer};
/// use tower_client_credentials::{ClientCredentialsLayer, TokenCache};
/// use tower_client_credentials_reqwest::{ReqwestService, ReplayBodies};
///
/// # fn stack(cache: TokenCache, client: reqwest::Client) {
/// let layer = ClientCredentialsLayer::with_cache(cache).replay(ReplayBodies::default());
/// let api = ServiceBuilder::new()
///     .layer(TimeoutLayer::new(Duration::from_secs(30)))
///     .layer(layer)
///     .service(ReqwestService::new(client));
/// # drop(api);
/// # }
/// ```
#[derive(Clone)]
pub struct ReqwestService {
    client: Client,
    redirects: Redirects,
}

impl ReqwestService {
    /// Wraps a client.
    ///
    /// For a token endpoint, use [`token_client`](crate::token_client) instead. `client` may follow a
    /// redirect and send the client secret to the URL that it names.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            redirects: Redirects::Anywhere,
        }
    }

    /// Builds a client that follows no redirects.
    pub(crate) fn without_redirects(builder: ClientBuilder) -> reqwest::Result<Self> {
        Ok(Self {
            client: builder.redirect(Policy::none()).build()?,
            redirects: Redirects::WithinOrigin,
        })
    }

    /// Builds a client that follows redirects only within an origin.
    ///
    /// Redirects within an origin are followed as reqwest does by default, up to ten. A redirect to
    /// another origin isn't followed; the caller gets the response with the status 3xx. A policy
    /// that was set with [`redirect`](ClientBuilder::redirect) is replaced.
    ///
    /// # Errors
    ///
    /// Fails if [`build`](ClientBuilder::build) fails.
    ///
    /// # Examples
    ///
    /// For a stack of tower layers with tokens in a header other than `Authorization`:
    ///
    /// ```
    /// use reqwest::Client;
    /// use tower_client_credentials_reqwest::ReqwestService;
    ///
    /// # fn main() -> reqwest::Result<()> {
    /// let service = ReqwestService::within_origin(Client::builder().cookie_store(true))?;
    /// # drop(service);
    /// # Ok(())
    /// # }
    /// ```
    pub fn within_origin(builder: ClientBuilder) -> reqwest::Result<Self> {
        Ok(Self {
            client: builder.redirect(redirect::within_origin()).build()?,
            redirects: Redirects::WithinOrigin,
        })
    }

    /// Returns the client.
    pub fn get_ref(&self) -> &Client {
        &self.client
    }

    /// Consumes this service and returns the client.
    pub fn into_inner(self) -> Client {
        self.client
    }
}

impl From<Client> for ReqwestService {
    fn from(client: Client) -> Self {
        Self::new(client)
    }
}

impl Service<Request<Body>> for ReqwestService {
    type Response = Response<Body>;
    type Error = Error;
    type Future = ServiceFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> ServiceFuture {
        let state = match prepare(request, self.redirects) {
            Ok(request) => State::Sending {
                token_url: token_url(&request),
                response: self.client.call(request),
            },
            Err(error) => State::Failed { error: Some(error) },
        };
        ServiceFuture { state }
    }
}

/// Checks and converts a request whose token was added.
pub(crate) fn prepare(
    request: Request<Body>,
    redirects: Redirects,
) -> Result<reqwest::Request, Error> {
    if redirects == Redirects::Anywhere {
        let callers = request.extensions().get::<CallersHeaders>();
        if let Some(header) = redirect::exposed(request.headers(), callers) {
            return Err(Error::redirects_may_expose(header.clone()));
        }
    }
    let deadline = request.extensions().get::<Deadline>().copied();
    let mut request = reqwest::Request::try_from(request)?;
    if let Some(deadline) = deadline {
        *request.timeout_mut() = Some(deadline.remaining());
    }
    Ok(request)
}

/// Returns the URL of a request, if reqwest removes a token from it when it leaves the URL's origin.
pub(crate) fn token_url(request: &reqwest::Request) -> Option<Url> {
    let has_token = request.headers().contains_key(AUTHORIZATION);
    has_token.then(|| request.url().clone())
}

/// Converts the response to a request that reqwest was asked to send with a token to `token_url`.
///
/// Without this URL, nothing is known of redirects.
pub(crate) fn finish(response: reqwest::Response, token_url: Option<&Url>) -> Response<Body> {
    let url = response.url().clone();
    let is_elsewhere = token_url.is_some_and(|asked| asked.origin() != url.origin());
    // reqwest looks for the URL in this extension when it converts the response back.
    let mut with_url = Response::builder().url(url);
    let mut response = Response::<Body>::from(response);
    if let Some(extensions) = with_url.extensions_mut() {
        response.extensions_mut().extend(std::mem::take(extensions));
    }
    if is_elsewhere {
        response.extensions_mut().insert(TokenRemoved);
    }
    response
}

impl fmt::Debug for ReqwestService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client would show its default headers.
        f.debug_struct("ReqwestService")
            .field("redirects", &self.redirects)
            .finish_non_exhaustive()
    }
}

pin_project! {
    /// The response future of [`ReqwestService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ServiceFuture {
        #[pin]
        state: State,
    }
}

pin_project! {
    #[project = StateProj]
    enum State {
        Sending {
            token_url: Option<Url>,
            #[pin]
            response: <Client as Service<reqwest::Request>>::Future,
        },
        // The request can't be sent.
        Failed { error: Option<Error> },
    }
}

impl Future for ServiceFuture {
    type Output = Result<Response<Body>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Sending {
                token_url,
                response,
            } => {
                let response = ready!(response.poll(cx))?;
                Poll::Ready(Ok(finish(response, token_url.as_ref())))
            }
            StateProj::Failed { error } => {
                let error = error.take();
                Poll::Ready(Err(error.expect("a future is polled until it is ready")))
            }
        }
    }
}

impl fmt::Debug for ServiceFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn second_send_gets_what_is_left_of_the_timeout() {
        let deadline = Deadline::after(Duration::from_secs(10));
        let request = || {
            let mut request = Request::get("https://api.example/").body(Body::default());
            let extensions = request.as_mut().unwrap().extensions_mut();
            extensions.insert(deadline);
            prepare(request.unwrap(), Redirects::Anywhere).unwrap()
        };

        for left in [10, 7, 4, 1, 0] {
            let expected = Duration::from_secs(left);
            assert_eq!(request().timeout(), Some(&expected));
            advance(Duration::from_secs(3)).await;
        }
    }
}
