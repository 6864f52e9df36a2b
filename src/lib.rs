//! A tower middleware that adds an OAuth 2.0 access token to every request of an HTTP client.
//!
//! It gets tokens with the client-credentials grant ([RFC 6749 §4.4], "2-legged OAuth") and refreshes
//! them in the background before they expire. It makes one token request no matter how many callers
//! need the token. When the API rejects a token, the middleware gets a new one and sends the request
//! again.
//!
//! The crate doesn't include an HTTP client. You supply two tower services: the HTTP client to wrap,
//! and a token service that supplies tokens. [`TokenEndpoint`] turns any HTTP client into a token
//! service.
//!
//! If you use reqwest, start with [tower-client-credentials-reqwest]: with it, a reqwest client sends
//! every request with a token.
//!
//! # Example
//!
//! With hyper-util's client:
//!
//! ```no_run
#![doc = include_str!("../examples/readme.rs")]
//! ```
//!
//! [`guide::getting_started`] lists the dependencies of this program and shows the next steps.
//!
//! # How a request is handled
//!
//! ```text
//! Request<B>
//!   │
//!   ▼
//! ClientCredentials::call
//!   │   there is a usable token ──► no lock, no wait
//!   │   otherwise               ──► wait for one token request, which all
//!   │                               callers share; it runs in its own Tokio
//!   │                               task and calls the token service, such
//!   │                               as a TokenEndpoint
//!   ▼
//! add the Authorization header; keep a copy of the body for a replay
//!   │
//!   ▼
//! your HTTP client ──► Response
//!                        ├─ accepted: return it
//!                        └─ rejected: renew the token and send again
//! ```
//!
//! If the token is due for refresh, the request uses it, and a refresh starts in the background.
//!
//! A request that already has an `Authorization` header is sent unchanged. A request over plain HTTP
//! to another machine is sent without a token, unless you allow it.
//!
//! A call with a fresh token is cheap:
//!
//! * It takes no lock and doesn't wait.
//! * It seldom reads the cache. A service remembers the token that it last used and checks the cache
//!   for a newer token at most once per millisecond. Such a check loads an atomic pointer and reads
//!   two clocks. If you clone the service for each call, each clone may check once.
//! * It allocates in two cases only: if its replay policy keeps a copy of the request, and if the
//!   added header makes the request's `HeaderMap` grow.
//!
//! # When to use it
//!
//! Use this crate if your program calls an API on its own behalf, the authorization server supports
//! the client-credentials grant, and your HTTP client is a tower service or can be adapted to one.
//!
//! Use something else in these cases:
//!
//! * Your tokens belong to users. The [`oauth2`] crate supports other grants.
//! * Your token never changes. tower-http has `AddAuthorizationLayer`.
//! * You want to validate tokens on a server. This crate is for clients.
//! * Your program makes one call and exits. It doesn't need a cache.
//!
//! # Order of layers
//!
//! ```text
//! Buffer, Trace, Timeout                    above: see one call,
//!                                           including the wait for a token
//! ClientCredentialsLayer
//! Retry, FollowRedirect, ConcurrencyLimit   below: see each send,
//!                                           with its token
//! your HTTP client
//! ```
//!
//! Put a layer that follows redirects below `ClientCredentialsLayer`. Above it, a redirect can send a
//! token to another host. [`guide::clients`] explains the recommended position of each layer.
//!
//! # Where to look
//!
//! The [`guide`] has one chapter per topic. These are the central items:
//!
//! | question | answer |
//! |---|---|
//! | Which options are there? | [`ClientCredentialsLayer`], [`TokenCacheBuilder`], [`TokenEndpoint`] |
//! | How does the client authenticate? | [`ClientAuth`] |
//! | How is a request sent a second time? | [`replay`] |
//! | What happened to a call? Why wasn't its request replayed? | [`TokenOutcome`] |
//! | What can fail? | [`Error`] |
//! | How do I send a request? | [`ClientCredentials::send`] |
//! | How do requests get different tokens? | [`TokenParameters`], [`guide::tenants`] |
//! | How do I use tokens without the layer? | [`TokenCache`] |
//!
//! # Features
//!
//! No feature is enabled by default, and none changes how requests are handled.
//!
//! | feature | adds |
//! |---|---|
//! | `tracing` | a span for each token request, and events |
//! | `metrics` | counters, histograms and gauges |
//!
//! [`guide::observability`] lists their names, levels, units and labels.
//!
//! # Terms
//!
//! The documentation uses these terms, and those of [RFC 6749]:
//!
//! | term | meaning |
//! |---|---|
//! | *token service* | the tower service that supplies access tokens |
//! | *token request* | one request for an access token, including its retries |
//! | *fresh* token | can be used, and doesn't need a refresh yet |
//! | token *due for refresh* | can be used while a refresh runs in the background |
//! | *expired* token | is replaced before it is used, if possible |
//! | *rejected* token | was refused by the API |
//! | *refresh* | any token request after the first |
//! | *renewal* | a refresh caused by a rejection |
//! | *replay* | the second send of a request |
//! | *refresh window* | the time before the expiry during which a token is due for refresh |
//! | *expiry margin* | the time before the stated expiry during which a token already counts as expired |
//! | *cool-down* | the time after a renewal during which a token that the API has never accepted isn't renewed again |
//!
//! # Runtime
//!
//! Token requests run as Tokio tasks and need a runtime with timers enabled. A token that is already
//! in the cache can be used without a runtime. One cache can serve several runtimes. Threads without a
//! runtime, and other executors, can get tokens if you [name](TokenCacheBuilder::runtime) one.
//!
//! On a runtime without timers, the task of a token request panics with Tokio's message. The panic is
//! caught, and callers get an error that says `enable_time`. With `panic = "abort"` in the Cargo
//! profile, the process ends instead.
//!
//! # Out of scope
//!
//! The crate doesn't support other grants or refresh tokens, and doesn't validate tokens on servers. It
//! doesn't include an HTTP client or TLS.
//!
//! [tower-client-credentials-reqwest]: https://docs.rs/tower-client-credentials-reqwest
//! [`oauth2`]: https://docs.rs/oauth2
//! [RFC 6749]: https://www.rfc-editor.org/rfc/rfc6749
//! [RFC 6749 §4.4]: https://www.rfc-editor.org/rfc/rfc6749#section-4.4

#![forbid(unsafe_code)]
#![warn(clippy::disallowed_methods)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod replay;

mod call;
mod call_error;
mod challenges;
mod clock;
mod endpoint;
mod error;
mod host;
mod layer;
mod origin;
mod outcome;
mod scheme;
mod secret;
mod service;
mod service_builder_ext;
mod telemetry;
mod token;
mod unread;

pub use crate::{
    call::ResponseFuture,
    call_error::CallError,
    endpoint::{ClientAuth, ClientSecret, TokenEndpoint, provider},
    error::Error,
    layer::ClientCredentialsLayer,
    outcome::{NotReplayed, TokenOmitted, TokenOutcome},
    scheme::TokenRemoved,
    service::{CallFuture, ClientCredentials},
    service_builder_ext::ServiceBuilderExt,
    token::{AccessToken, Rejection, TokenCache, TokenCacheBuilder, TokenParameters, TokenRequest},
};

/// Private items that the fuzz targets use.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    use crate::scheme::{Presented, Verdict};

    /// Returns whether a response rejects the token, according to the default rule.
    pub fn is_rejection(response: &http::response::Parts) -> bool {
        let token = crate::AccessToken::new("token").expect("the token can be sent");
        let verdict = token.scheme().verdict(&Presented::Header, response);
        verdict == Verdict::Rejected
    }
}

/// A boxed error: the error type of [`ClientCredentials`], re-exported from tower.
pub use tower::BoxError;

#[cfg(doc)]
pub mod guide;
