//! The interface between the scenarios and the peers.

use std::{convert::Infallible, future::Future};

use bytes::Bytes;
use http::{Request, Response, header::AUTHORIZATION};
use http_body_util::Full;
use tower::{BoxError, Service, ServiceExt};

use crate::endpoint::Endpoint;

pub(crate) type ApiRequest = Request<Full<Bytes>>;
pub(crate) type ApiResponse = Response<Full<Bytes>>;

/// A mock of the HTTP client and the API. It receives requests that carry a token.
pub(crate) trait Leaf:
    Service<ApiRequest, Response = ApiResponse, Error = Infallible, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<L> Leaf for L where
    L: Service<ApiRequest, Response = ApiResponse, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// A way to get tokens, cache them, and add them to requests.
pub(crate) trait Peer: Sized + 'static {
    const NAME: &'static str;

    /// Whether this is our crate.
    const OURS: bool = false;

    /// Whether it keeps a copy of each request to send it again after a 401.
    const REPLAYS: bool = false;

    /// The reason why it never has to serve a call without a token, if so.
    const NO_COLD_START: Option<&'static str> = None;

    /// The reason why it does not handle rejected tokens, if so.
    const NO_REJECTION: Option<&'static str> = None;

    type Client<L: Leaf>: Client;

    /// Sets the peer up as its documentation says, with all defaults.
    fn start(endpoint: &Endpoint) -> impl Future<Output = Result<Self, BoxError>>;

    /// Returns the client that an application would call. Clones share the token.
    fn client<L: Leaf>(&self, leaf: L) -> Self::Client<L>;
}

/// An HTTP client whose requests carry a token.
pub(crate) trait Client: Clone + Send + 'static {
    /// Adds a token to the request and sends it.
    fn send(
        &mut self,
        request: ApiRequest,
    ) -> impl Future<Output = Result<ApiResponse, BoxError>> + Send;

    /// Like [`send`](Self::send), but sends once more after a 401, as the peer's documentation
    /// says. Layers do so on their own.
    fn send_twice(
        &mut self,
        request: ApiRequest,
    ) -> impl Future<Output = Result<ApiResponse, BoxError>> + Send {
        self.send(request)
    }
}

/// The client of a peer without a layer: the caller gets a token, sets the header, and sends.
#[derive(Clone)]
pub(crate) struct ByHand<P, L> {
    pub(crate) tokens: P,
    pub(crate) leaf: L,
}

/// The client of a peer with a layer.
#[derive(Clone)]
pub(crate) struct Layered<S>(pub(crate) S);

impl<S> Client for Layered<S>
where
    S: Service<ApiRequest, Response = ApiResponse, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
{
    async fn send(&mut self, request: ApiRequest) -> Result<ApiResponse, BoxError> {
        let service = self.0.ready().await.map_err(Into::into)?;
        service.call(request).await.map_err(Into::into)
    }
}

/// The leaf without a token. Its cost is subtracted from all others.
#[derive(Clone)]
pub(crate) struct Bare<L>(pub(crate) L);

impl<L: Leaf> Client for Bare<L> {
    async fn send(&mut self, request: ApiRequest) -> Result<ApiResponse, BoxError> {
        send(&mut self.0, request).await
    }
}

pub(crate) async fn send<L: Leaf>(
    leaf: &mut L,
    request: ApiRequest,
) -> Result<ApiResponse, BoxError> {
    Ok(leaf.ready().await?.call(request).await?)
}

/// Sets the header from a token that the peer returns as text.
pub(crate) fn set_bearer(request: &mut ApiRequest, token: &str) -> Result<(), BoxError> {
    let header_value = format!("Bearer {token}").try_into()?;
    request.headers_mut().insert(AUTHORIZATION, header_value);
    Ok(())
}
