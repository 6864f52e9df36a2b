use std::{
    pin::pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tower::{BoxError, ServiceExt};

use crate::{Api, ApiResponse, request};

/// Makes calls of a stack that answers at once; each has a request of its own.
pub fn repeat<S: Api>(service: &mut S, headers: usize, calls: u64) {
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..calls {
        let is_ready = service.poll_ready(&mut cx);
        assert!(matches!(is_ready, Poll::Ready(Ok(()))), "a leaf is ready");
        let response = pin!(service.call(request(headers))).poll(&mut cx);
        assert!(matches!(response, Poll::Ready(Ok(_))), "a leaf answers");
    }
}

/// The same from an `async` function, as most programs make them.
pub fn repeat_async<S: Api>(service: &mut S, headers: usize, calls: u64) {
    async fn call<S: Api>(service: &mut S, headers: usize) -> Result<ApiResponse, BoxError> {
        service.ready().await?.call(request(headers)).await
    }
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..calls {
        let response = pin!(call(service, headers)).poll(&mut cx);
        assert!(matches!(response, Poll::Ready(Ok(_))), "a leaf answers");
    }
}

/// The same with a clone of the service for each call, as tasks make them that share one.
pub fn repeat_cloned<S: Api + Clone>(service: &S, headers: usize, calls: u64) {
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..calls {
        let response = pin!(service.clone().oneshot(request(headers))).poll(&mut cx);
        assert!(matches!(response, Poll::Ready(Ok(_))), "a leaf answers");
    }
}

/// How long so many calls take, the making of their requests included.
pub fn time_calls<S: Api>(service: &mut S, headers: usize, calls: u64) -> Duration {
    let start = Instant::now();
    repeat(service, headers, calls);
    start.elapsed()
}

/// Runs the candidates in turn, so many rounds, and gives the median of each: what disturbs the
/// machine for a while disturbs them all.
pub fn interleaved<const N: usize>(
    rounds: usize,
    mut candidates: [&mut dyn FnMut() -> Duration; N],
) -> [Duration; N] {
    let mut times = [const { Vec::new() }; N];
    for _ in 0..rounds {
        for (times, candidate) in times.iter_mut().zip(&mut candidates) {
            times.push(candidate());
        }
    }
    times.map(median)
}

pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

pub fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
