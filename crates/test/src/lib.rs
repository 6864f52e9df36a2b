//! A scriptable OAuth 2.0 authorization server and API, for tests of clients that use the
//! client-credentials grant (RFC 6749 §4.4).
//!
//! * [`AuthServer`] checks token requests, issues tokens, and fails as a test tells it to.
//! * [`Api`] accepts the live tokens of an `AuthServer`, and fails as a test tells it to.
//! * [`Reply`] and [`TokenReply`] are what both can be told to reply.
//! * [`personality`] contains how the servers of providers behave, such as LinkedIn's.
//! * [`TestClock`] is a wall clock that a test sets.
//! * [`control`] is the control API of the program `tower-client-credentials-test`, for tests in
//!   other languages.
//!
//! The servers speak HTTP and don't know the client, so they fit any client in any language. In the
//! process, they are tower services that need no socket and work with Tokio's paused clock. On a
//! port, they speak HTTP/1.1 and HTTP/2.
//!
//! The chapter
//! [Test your integration in ten minutes](https://docs.rs/tower-client-credentials/latest/tower_client_credentials/guide/testing/)
//! contains a unit test, an integration test and a chaos test of a client that uses
//! `tower-client-credentials`.
//!
//! # Example
//!
//! A test of a function that gets a token and calls an API. The function takes any HTTP client that
//! is a tower service:
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, StatusCode};
//! use http_body_util::{BodyExt, Full};
//! use tower::ServiceExt;
//! use tower_client_credentials_test::{Api, AuthServer, BoxError, Reply};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let auth = AuthServer::new().with_client("my-client", "s3cret");
//! let api = Api::new(&auth);
//! api.next_once(Reply::status(503).with_header("retry-after", "2"));
//!
//! // What a client does.
//! let form = "grant_type=client_credentials&client_id=my-client&client_secret=s3cret";
//! let request = Request::post("https://auth.example.com/token")
//!     .header("content-type", "application/x-www-form-urlencoded")
//!     .body(Full::<Bytes>::from(form))?;
//! let reply = auth.clone().oneshot(request).await?.into_body().collect().await?;
//! let reply: serde_json::Value = serde_json::from_slice(&reply.to_bytes())?;
//! let token = reply["access_token"].as_str().ok_or("no token")?;
//! for expected in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK] {
//!     let request = Request::get("https://api.example.com/orders")
//!         .header("authorization", format!("Bearer {token}"))
//!         .body(Full::<Bytes>::default())?;
//!     assert_eq!(api.clone().oneshot(request).await?.status(), expected);
//! }
//!
//! auth.assert_token_requests(1);
//! api.assert_sends(2);
//! api.assert_no_refusals();
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! | feature | what it adds |
//! |---|---|
//! | `tls` | `AuthServer::serve_tls` and `Api::serve_tls`, with a certificate that is made for the server |
//!
//! # What the servers don't do
//!
//! They know client authentication by secret and opaque tokens. They aren't made for anything but
//! tests: tokens aren't random enough to be secrets, and nothing is stored.
#![forbid(unsafe_code)]

mod api;
mod auth_server;
mod body;
mod client;
mod clock;
pub mod control;
mod failure_report;
mod grant;
pub mod personality;
mod received;
mod redact;
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
    failure_report::FailureReport,
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

/// Compiles and runs the examples of the guide that need this crate.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guide/testing.md")]
mod guide {}

/// Compiles and runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

/// Any error, as tower defines it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
