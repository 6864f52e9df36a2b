//! What the response future is made of: the inner one, what is kept for a second send, and the rest.

use std::{
    future::Ready,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
};

use benches::ApiResponse;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Extensions, HeaderName, HeaderValue, Method, Request, Uri, Version};
use http_body_util::Full;
use tower::{BoxError, Service};
use tower_client_credentials::{
    ResponseFuture,
    replay::{Buffered, CloneBody, NoReplay, ReplayPolicy},
};

use crate::table::Table;

/// What the future may take beside the inner one and what is kept.
const REST: f64 = 192.0;

type Answer = Result<ApiResponse, BoxError>;

pub(crate) fn measure(table: &mut Table) {
    table.part(
        "Bytes of the response future beside the inner one and what is kept for a second send",
    );
    small_and_large::<NoReplay>(table, "Never", Keeps::Nothing);
    small_and_large::<CloneBody>(table, "CloneBody", Keeps::Request);
    small_and_large::<Buffered>(table, "Buffered", Keeps::Request);
}

#[derive(Clone, Copy)]
enum Keeps {
    Nothing,
    Request,
}

fn small_and_large<R: ReplayPolicy<Full<Bytes>>>(table: &mut Table, policy: &str, keeps: Keeps) {
    row::<R, 0, BoxFuture<'static, Answer>>(table, policy, keeps, "boxed future");
    row::<R, 0, Ready<Answer>>(table, policy, keeps, "Ready");
    row::<R, 0, Large<1024>>(table, policy, keeps, "future of 1 KiB");
    row::<R, 256, BoxFuture<'static, Answer>>(table, policy, keeps, "boxed, service of 256 B");
}

fn row<R, const SIZE: usize, F>(table: &mut Table, policy: &str, keeps: Keeps, inner: &str)
where
    R: ReplayPolicy<Full<Bytes>>,
    F: Future<Output = Answer>,
{
    let all = size_of::<ResponseFuture<Inner<SIZE, F>, R, Full<Bytes>>>();
    let inner_future = size_of::<F>();
    let kept = match keeps {
        Keeps::Nothing => 0,
        Keeps::Request => HEAD + size_of::<R::Kept>(),
    };
    let rest = all - inner_future - kept;
    table.row(
        &format!("{policy}, {inner}"),
        rest as f64,
        REST,
        &format!("{all} in all: {inner_future} inner, {kept} kept"),
    );
}

/// A request without its body, as it is kept.
const HEAD: usize = size_of::<Method>()
    + size_of::<Uri>()
    + size_of::<Version>()
    + size_of::<Box<[(HeaderName, HeaderValue)]>>()
    + size_of::<Extensions>();

/// A service of some size with a future of some size; nobody calls it.
struct Inner<const SIZE: usize, F>([u8; SIZE], PhantomData<F>);

impl<const SIZE: usize, F, B> Service<Request<B>> for Inner<SIZE, F>
where
    F: Future<Output = Answer>,
{
    type Response = ApiResponse;
    type Error = BoxError;
    type Future = F;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Pending
    }

    fn call(&mut self, _: Request<B>) -> F {
        unreachable!("it is never ready")
    }
}

/// A future of some size; nobody polls it.
struct Large<const SIZE: usize>([u8; SIZE]);

impl<const SIZE: usize> Future for Large<SIZE> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Answer> {
        Poll::Pending
    }
}
