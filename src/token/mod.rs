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
mod key;
mod key_map;
mod last_seen;
mod parameters;
mod renewals;
mod request;
mod schedule;
mod settings;
mod task;

pub use self::{
    access_token::AccessToken, builder::TokenCacheBuilder, cache::TokenCache, entry::Rejection,
    parameters::TokenParameters, request::TokenRequest,
};
pub(crate) use self::{
    cache::{Acquired, Acquiring},
    entry::CachedToken,
    last_seen::LastSeen,
};
