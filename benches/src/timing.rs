use std::{
    pin::pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tower::{BoxError, ServiceExt};

use crate::{Api, ApiResponse, request};

/// Makes calls on a stack that responds at once, each with a new request.
pub fn repeat<S: Api>(service: &mut S, headers: usize, calls: u64) {
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..calls {
        let is_ready = service.poll_ready(&mut cx);
        assert!(matches!(is_ready, Poll::Ready(Ok(()))), "a leaf is ready");
        let response = pin!(service.call(request(headers))).poll(&mut cx);
        assert!(matches!(response, Poll::Ready(Ok(_))), "a leaf responds");
    }
}

/// Like [`repeat`], but calls from an `async` function, as most programs do.
fn repeat_async<S: Api>(service: &mut S, headers: usize, calls: u64) {
    async fn call<S: Api>(service: &mut S, headers: usize) -> Result<ApiResponse, BoxError> {
        service.ready().await?.call(request(headers)).await
    }
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..calls {
        let response = pin!(call(service, headers)).poll(&mut cx);
        assert!(matches!(response, Poll::Ready(Ok(_))), "a leaf responds");
    }
}

/// Like [`repeat`], but clones the service for each call, as tasks that share a client do.
pub fn repeat_cloned<S: Api + Clone>(service: &S, headers: usize, calls: u64) {
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..calls {
        let response = pin!(service.clone().oneshot(request(headers))).poll(&mut cx);
        assert!(matches!(response, Poll::Ready(Ok(_))), "a leaf responds");
    }
}

/// Makes calls in the style of the given name: `async` or `cloned`.
pub fn repeat_in_style<S: Api + Clone>(
    style: &str,
    mut service: S,
    headers: usize,
    calls: u64,
) -> Result<(), BoxError> {
    match style {
        "async" => repeat_async(&mut service, headers, calls),
        "cloned" => repeat_cloned(&service, headers, calls),
        _ => return Err(format!("no style is called {style}").into()),
    }
    Ok(())
}

/// Returns the time that calls take, including the time to build their requests.
pub fn time_calls<S: Api>(service: &mut S, headers: usize, calls: u64) -> Duration {
    let start = Instant::now();
    repeat(service, headers, calls);
    start.elapsed()
}

/// Runs the candidates in turn for a number of rounds and returns the median of each: a disturbance
/// of the machine then affects all of them alike.
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

/// Returns the middle value, or the upper of the two.
pub fn median<T: PartialOrd + Copy>(mut values: Vec<T>) -> T {
    values.sort_unstable_by(|a, b| a.partial_cmp(b).expect("measurements can be compared"));
    values[values.len() / 2]
}

pub fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
