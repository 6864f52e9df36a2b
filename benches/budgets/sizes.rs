//! The size of the response future: the inner future, what a replay needs, and the rest.

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

/// What the future may hold besides the inner future and what a replay needs.
const BUDGET: f64 = 192.0;

type Output = Result<ApiResponse, BoxError>;

pub(crate) fn measure(table: &mut Table) {
    table.section(
        "Bytes of the response future, less the inner future, what is saved of the request, and a clone\n\
         of the inner service. `NoReplay` saves nothing, but its future has room for the clone.",
    );
    policy::<NoReplay>(table, "NoReplay", Replay::Never);
    policy::<CloneBody>(table, "CloneBody", Replay::Once);
    policy::<Buffered>(table, "Buffered", Replay::Once);
}

#[derive(Clone, Copy)]
enum Replay {
    Never,
    Once,
}

fn policy<R: ReplayPolicy<Full<Bytes>>>(table: &mut Table, name: &str, replay: Replay) {
    row::<R, 0, BoxFuture<'static, Output>>(table, name, replay, "boxed future");
    row::<R, 0, Ready<Output>>(table, name, replay, "Ready");
    row::<R, 0, Large<1024>>(table, name, replay, "future of 1 KiB");
    row::<R, 256, BoxFuture<'static, Output>>(table, name, replay, "boxed, service of 256 B");
}

fn row<R, const SIZE: usize, F>(table: &mut Table, policy: &str, replay: Replay, inner: &str)
where
    R: ReplayPolicy<Full<Bytes>>,
    F: Future<Output = Output>,
{
    let all = size_of::<ResponseFuture<Inner<SIZE, F>, R, Full<Bytes>>>();
    let inner_future = size_of::<F>();
    let service = size_of::<Inner<SIZE, F>>();
    let kept = match replay {
        Replay::Never => 0,
        Replay::Once => HEAD + size_of::<R::Kept>(),
    };
    table.row(
        &format!("{policy}, {inner}"),
        all as f64 - (inner_future + kept + service) as f64,
        BUDGET,
        &format!("{all} in all: {inner_future} inner, {kept} kept, {service} service"),
    );
}

/// The head of a request, as it is saved: its headers are in a list.
const HEAD: usize = size_of::<Method>()
    + size_of::<Uri>()
    + size_of::<Version>()
    + size_of::<Vec<(HeaderName, HeaderValue)>>()
    + size_of::<Extensions>();

/// A service of a given size, with a future of a given size. Nothing calls it.
struct Inner<const SIZE: usize, F>([u8; SIZE], PhantomData<F>);

impl<const SIZE: usize, F, B> Service<Request<B>> for Inner<SIZE, F>
where
    F: Future<Output = Output>,
{
    type Response = ApiResponse;
    type Error = BoxError;
    type Future = F;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Pending
    }

    fn call(&mut self, _: Request<B>) -> F {
        unreachable!("never ready")
    }
}

/// A future of a given size. Nothing polls it.
struct Large<const SIZE: usize>([u8; SIZE]);

impl<const SIZE: usize> Future for Large<SIZE> {
    type Output = Output;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Output> {
        Poll::Pending
    }
}
