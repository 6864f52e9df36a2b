//! What all benches measure: the same requests through the same leaf service, with the layer and with
//! what it is compared with in between.

mod crowd;
mod leaf;
mod request;
mod stacks;
mod timing;
mod tokens;

pub use self::{
    crowd::{Crowd, ENDPOINT, crowd_runtime},
    leaf::{Answer, BoxedAnswer, Leaf, OpaqueAnswer},
    request::{ApiRequest, ApiResponse, HEADERS, request},
    stacks::{Api, RetryOnce, Stacks},
    timing::{interleaved, median, milliseconds, repeat, repeat_async, repeat_cloned, time_calls},
    tokens::{Tokens, secret},
};
