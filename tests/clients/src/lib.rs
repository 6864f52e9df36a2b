//! What the tests and the examples of real clients share: servers on 127.0.0.1 that count their
//! connections and what they are sent, and bodies that can be told apart by their hash.

mod connections;
mod loopback;
mod servers;
mod upload;

pub use self::{
    connections::Connections,
    loopback::{Body, Loopback, text},
    servers::{Received, Servers},
    upload::{Upload, hash},
};

use std::time::Duration;

use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tower_client_credentials::TokenCache;

/// The versions of HTTP that a client is tested with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    pub const ALL: [Self; 2] = [Self::Http1, Self::Http2];
}

/// hyper-util's client, for one version of HTTP.
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

/// A cache that renews its token as often as the API rejects one.
pub fn cache_without_cool_down(tokens: tower_client_credentials::TokenEndpoint) -> TokenCache {
    TokenCache::builder()
        .cool_down(Duration::ZERO)
        .build(tokens)
}

/// Waits for something that must not hang.
///
/// # Panics
///
/// Panics if it hangs.
pub async fn in_time<F: Future>(future: F) -> F::Output {
    // Far more than any test needs, on a busy machine too.
    const DEADLINE: Duration = Duration::from_secs(60);
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("it hangs")
}

/// Compiles the examples of the guide's chapters that show other crates.
#[cfg(doctest)]
mod guide {
    #[doc = include_str!("../../../docs/guide/clients.md")]
    mod clients {}

    #[doc = include_str!("../../../docs/guide/migrating.md")]
    mod migrating {}
}
