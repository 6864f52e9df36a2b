//! Shared parts of the benches: the same requests through the same leaf service, with this crate's
//! layer or one of the alternatives around it.

mod burst;
mod leaf;
mod request;
mod stacks;
mod timing;
mod tokens;

pub use self::{
    burst::{Burst, TOKEN_DELAY, burst_runtime},
    leaf::{BoxedFuture, InlinedFuture, Leaf, LeafFuture, OpaqueFuture},
    request::{ApiRequest, ApiResponse, HEADERS, request},
    stacks::{Api, RetryOnce, Stacks},
    timing::{
        interleaved, median, milliseconds, repeat, repeat_cloned, repeat_in_style, time_calls,
    },
    tokens::{Tokens, secret},
};
