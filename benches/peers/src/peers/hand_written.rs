//! What most applications write: a lock around a token and its expiry, checked again under the
//! write lock.
//!
//! Limits: like most hand-written caches, it has no way to report a rejected token.

use std::{sync::Arc, time::Instant};

use tokio::sync::RwLock;
use tower::BoxError;

use super::plain_fetch::PlainFetch;
use crate::{
    endpoint::Endpoint,
    peer::{ApiRequest, ApiResponse, ByHand, Client, Leaf, Peer, send, set_bearer},
};

#[derive(Clone)]
pub(crate) struct HandWritten {
    cached: Arc<RwLock<Option<(String, Instant)>>>,
    fetch: PlainFetch,
}

impl HandWritten {
    async fn token(&self) -> Result<String, BoxError> {
        if let Some((token, expires_at)) = &*self.cached.read().await
            && Instant::now() < *expires_at
        {
            return Ok(token.clone());
        }
        let mut cached = self.cached.write().await;
        // Another caller may have fetched a token while this one waited for the lock.
        if let Some((token, expires_at)) = &*cached
            && Instant::now() < *expires_at
        {
            return Ok(token.clone());
        }
        let fetched = self.fetch.token().await?;
        let expires_at = Instant::now() + fetched.lifetime();
        *cached = Some((fetched.access_token.clone(), expires_at));
        Ok(fetched.access_token)
    }
}

impl Peer for HandWritten {
    const NAME: &'static str = "hand-written RwLock";
    const NO_REJECTION: Option<&'static str> = Some("it has no way to report a rejected token");

    type Client<L: Leaf> = ByHand<Self, L>;

    async fn start(endpoint: &Endpoint) -> Result<Self, BoxError> {
        Ok(Self {
            cached: Arc::default(),
            fetch: PlainFetch::new(endpoint),
        })
    }

    fn client<L: Leaf>(&self, leaf: L) -> Self::Client<L> {
        ByHand {
            tokens: self.clone(),
            leaf,
        }
    }
}

impl<L: Leaf> Client for ByHand<HandWritten, L> {
    async fn send(&mut self, mut request: ApiRequest) -> Result<ApiResponse, BoxError> {
        set_bearer(&mut request, &self.tokens.token().await?)?;
        send(&mut self.leaf, request).await
    }
}
