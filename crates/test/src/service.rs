use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower_service::Service;

use crate::Body;

/// The future of a response of this crate's services.
pub struct ResponseFuture(Pin<Box<dyn Future<Output = io::Result<Response<Body>>> + Send>>);

impl ResponseFuture {
    pub(crate) fn new(
        future: impl Future<Output = io::Result<Response<Body>>> + Send + 'static,
    ) -> Self {
        Self(Box::pin(future))
    }
}

impl Future for ResponseFuture {
    type Output = io::Result<Response<Body>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// A server of this crate as an HTTP client for requests with bodies of type `Full<Bytes>`.
///
/// [`AuthServer::http_client`](crate::AuthServer::http_client) creates one and says when it is
/// needed.
#[derive(Clone, Debug)]
pub struct HttpClient<S>(S);

impl<S> HttpClient<S> {
    pub(crate) fn new(server: S) -> Self {
        Self(server)
    }
}

impl<S: Service<Request<Full<Bytes>>>> Service<Request<Full<Bytes>>> for HttpClient<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> S::Future {
        self.0.call(request)
    }
}
