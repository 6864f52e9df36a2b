//! What a peer has to be able to do, so that the same work can be asked of all.

use std::{convert::Infallible, future::Future};

use bytes::Bytes;
use http::{Request, Response, header::AUTHORIZATION};
use http_body_util::Full;
use tower::{BoxError, Service, ServiceExt};

use crate::endpoint::Endpoint;

pub(crate) type ApiRequest = Request<Full<Bytes>>;
pub(crate) type ApiResponse = Response<Full<Bytes>>;

/// What requests are sent to once they have a token; it stands for an HTTP client and an API.
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

/// One way to get tokens, keep them, and put them on requests.
pub(crate) trait Peer: Sized + 'static {
    const NAME: &'static str;

    /// Whether it is this crate.
    const OURS: bool = false;

    /// Whether it keeps a copy of each request, to send it again after a 401.
    const KEEPS_REQUESTS: bool = false;

    /// Why no caller ever finds it without a first token, if that is so.
    const NEVER_COLD: Option<&'static str> = None;

    /// Why it cannot learn that the API rejects a token, if that is so.
    const DEAF: Option<&'static str> = None;

    type Client<L: Leaf>: Client;

    /// Sets it up as its documentation says, with all defaults.
    fn start(endpoint: &Endpoint) -> impl Future<Output = Result<Self, BoxError>>;

    /// What an application calls. Clones share the token.
    fn client<L: Leaf>(&self, leaf: L) -> Self::Client<L>;
}

/// An HTTP client whose requests carry a token.
pub(crate) trait Client: Clone + Send + 'static {
    /// Gets a token, puts it on the request, and sends that.
    fn send(
        &mut self,
        request: ApiRequest,
    ) -> impl Future<Output = Result<ApiResponse, BoxError>> + Send;

    /// The same for a caller that wants a second send after a 401. Layers do that by themselves; for
    /// the others it is done as their documentation says.
    fn send_twice(
        &mut self,
        request: ApiRequest,
    ) -> impl Future<Output = Result<ApiResponse, BoxError>> + Send {
        self.send(request)
    }
}

/// The client of a peer that is no layer: the caller gets a token, sets the header, sends.
#[derive(Clone)]
pub(crate) struct ByHand<P, L> {
    pub(crate) tokens: P,
    pub(crate) leaf: L,
}

/// The client of a peer that is a layer.
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

/// No token at all: what the leaf itself costs, which is taken off everything else.
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

/// What everybody writes who has a token as text.
pub(crate) fn set_bearer(request: &mut ApiRequest, token: &str) -> Result<(), BoxError> {
    let header_value = format!("Bearer {token}").try_into()?;
    request.headers_mut().insert(AUTHORIZATION, header_value);
    Ok(())
}
