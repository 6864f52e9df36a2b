use std::{
    future::{Ready, ready},
    hint::black_box,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
};

use http::Response;
use tower::{BoxError, Service};

use crate::{ApiRequest, ApiResponse};

/// A service that responds at once, in place of an HTTP client.
///
/// The optimizer cannot see that it ignores the request, as with a client in another crate. `USE`
/// gives each stack its own leaf type: code that two stacks share is compiled differently than in a
/// program that has only one of them.
#[derive(Debug)]
pub struct Leaf<F, const USE: usize = 0>(PhantomData<fn() -> F>);

/// The future of a [`Leaf`], ready at once.
pub trait LeafFuture: Future<Output = Result<ApiResponse, BoxError>> + Send {
    fn new(response: ApiResponse) -> Self;
}

/// A future that the compiler sees through.
pub type InlinedFuture = Ready<Result<ApiResponse, BoxError>>;

impl LeafFuture for InlinedFuture {
    fn new(response: ApiResponse) -> Self {
        ready(Ok(response))
    }
}

/// A future on the heap, like that of hyper-util's client.
pub type BoxedFuture = Pin<Box<dyn Future<Output = Result<ApiResponse, BoxError>> + Send>>;

impl LeafFuture for BoxedFuture {
    fn new(response: ApiResponse) -> Self {
        Box::pin(ready(Ok(response)))
    }
}

/// A future that holds the response and whose `poll` is never inlined.
#[derive(Debug)]
pub struct OpaqueFuture(Option<ApiResponse>);

impl LeafFuture for OpaqueFuture {
    fn new(response: ApiResponse) -> Self {
        Self(Some(response))
    }
}

impl Future for OpaqueFuture {
    type Output = Result<ApiResponse, BoxError>;

    #[inline(never)]
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(self.0.take().expect("polled once")))
    }
}

impl<F, const USE: usize> Default for Leaf<F, USE> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<F, const USE: usize> Clone for Leaf<F, USE> {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl<F: LeafFuture, const USE: usize> Service<ApiRequest> for Leaf<F, USE> {
    type Response = ApiResponse;
    type Error = BoxError;
    type Future = F;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    #[inline(never)]
    fn call(&mut self, request: ApiRequest) -> F {
        black_box(&request);
        F::new(Response::default())
    }
}
