//! Tokens: which one is current, when it is refreshed, and how it is requested once for all callers.
//!
//! Knows nothing about HTTP requests or OAuth. A *flight* is one token request and everyone waiting
//! for it.

mod access_token;
mod builder;
mod cache;
mod entry;
mod flight;
#[cfg(all(test, interleavings))]
mod interleavings;
#[allow(dead_code, reason = "the cache does not use it yet")]
mod key_map;
mod last_seen;
mod parameters;
mod renewals;
mod request;
mod schedule;
mod settings;

pub use self::{
    access_token::AccessToken, builder::TokenCacheBuilder, cache::TokenCache, entry::Rejection,
    parameters::TokenParameters, request::TokenRequest,
};
pub(crate) use self::{
    cache::{Acquired, Acquiring},
    entry::CachedToken,
    last_seen::LastSeen,
};
