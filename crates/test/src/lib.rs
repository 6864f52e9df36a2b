//! A scriptable OAuth 2.0 authorization server and API, for tests of clients that use the
//! client-credentials grant (RFC 6749 §4.4).
#![forbid(unsafe_code)]

mod api;
mod auth_server;
mod body;
mod client;
mod clock;
pub mod control;
mod grant;
pub mod personality;
mod received;
mod reply;
mod request_body;
mod script;
mod serve;
mod service;
#[cfg(feature = "tls")]
mod tls;
mod tokens;

pub use self::{
    api::Api,
    auth_server::AuthServer,
    body::Body,
    client::{AuthMethod, Client},
    clock::TestClock,
    grant::Refusal,
    personality::Personality,
    received::{Outcome, ReceivedRequest, ReceivedTokenRequest},
    reply::{AuthReply, Reply, TokenReply},
    serve::Server,
    service::{HttpClient, ResponseFuture},
    tokens::{IssuedToken, TokenState},
};

#[cfg(feature = "tls")]
pub use self::tls::TlsServer;

/// Any error, as tower defines it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
