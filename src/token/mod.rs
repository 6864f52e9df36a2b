//! All about tokens; knows no HTTP.
//!
//! What *fresh*, *stale*, *flight* and the other words mean stands in the crate's documentation.

mod access_token;
mod builder;
mod cache;
mod flight;
#[cfg(all(test, interleavings))]
mod interleavings;
mod ledger;
mod parameters;
mod request;
mod schedule;
mod settings;
mod view;

pub use self::{
    access_token::AccessToken, builder::TokenCacheBuilder, cache::TokenCache, ledger::Rejection,
    parameters::TokenParameters, request::TokenRequest,
};
pub(crate) use self::{
    cache::{Acquired, Acquiring, WeakTokenCache},
    ledger::{Generation, Held},
    view::{Seen, View},
};
