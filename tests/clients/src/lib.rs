//! Shared parts of the tests and examples with real clients: servers on 127.0.0.1 that record
//! connections and requests, and bodies that are identified by their hash.

mod connections;
mod loopback;
mod servers;
mod upload;

pub use self::{
    connections::Connections,
    loopback::{Body, Head, Loopback, text},
    servers::{Received, Servers},
    upload::{Upload, hash},
};

use std::time::Duration;

use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tower_client_credentials::TokenCache;

/// The HTTP versions that a client is tested with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    pub const ALL: [Self; 2] = [Self::Http1, Self::Http2];
}

/// Builds hyper-util's client for one HTTP version. It does not follow redirects.
pub fn hyper_client<B>(protocol: Protocol) -> Client<HttpConnector, B>
where
    B: http_body::Body<Data: Send> + Send,
{
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new())
        .http2_only(protocol == Protocol::Http2)
        .build(connector)
}

/// Builds a cache that renews its token after every rejection.
pub fn cache_without_cool_down(tokens: tower_client_credentials::TokenEndpoint) -> TokenCache {
    TokenCache::builder()
        .cool_down(Duration::ZERO)
        .build(tokens)
}

/// Waits for a future that must not hang.
///
/// # Panics
///
/// Panics if the future hangs.
pub async fn in_time<F: Future>(future: F) -> F::Output {
    // Far more than any test needs, even on a busy machine.
    const DEADLINE: Duration = Duration::from_secs(60);
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("the future does not hang")
}

/// Compiles the examples in the chapters of the guide that use other crates.
#[cfg(doctest)]
mod guide {
    #[doc = include_str!("../../../docs/guide/clients.md")]
    mod clients {}

    #[doc = include_str!("../../../docs/guide/migrating.md")]
    mod migrating {}
}
