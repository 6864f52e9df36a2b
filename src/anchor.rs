//! What a service needs of the tokens before it sends a request.

use crate::{TokenCache, origin::Destinations};

/// The cache, which it keeps, and where its tokens may go.
///
/// Services count references to it, and calls that may need another token, which so keep the cache
/// whatever becomes of their service. A service that lasts has one of its own, as it has a lease.
pub(crate) struct Anchor {
    pub(crate) cache: TokenCache,
    pub(crate) destinations: Destinations,
}

impl Anchor {
    /// The same, counted apart.
    pub(crate) fn another(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            destinations: self.destinations.clone(),
        }
    }
}
