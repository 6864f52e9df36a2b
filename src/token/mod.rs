//! All about tokens; knows no HTTP.
//!
//! What *fresh*, *stale*, *flight* and the other words mean stands in the crate's documentation.

mod access_token;
mod builder;
mod cache;
mod entry;
mod flight;
#[cfg(all(test, interleavings))]
mod interleavings;
mod last_seen;
mod parameters;
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
