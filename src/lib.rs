//! A tower middleware that adds an OAuth 2.0 access token to every request of an HTTP client.
//!
//! It gets tokens with the client-credentials grant ([RFC 6749 §4.4], "2-legged OAuth") and refreshes
//! them in the background before they expire. It makes one token request no matter how many callers
//! need the token. When the API rejects a token, it sends the request again with a new one.
//!
//! The crate contains no HTTP client. You supply two tower services: the HTTP client to wrap, and the
//! token service that tokens come from. [`TokenEndpoint`] turns any HTTP client into a token service.
//!
//! # Example
//!
//! ```no_run
#![doc = include_str!("../examples/readme.rs")]
//! ```
//!
//! [`guide::getting_started`] lists its dependencies and shows the next steps.
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
//! add the Authorization header; let the replay policy keep the body
//!   │
//!   ▼
//! your HTTP client ──► Response
//!                        ├─ accepted: return it
//!                        └─ rejected: renew the token and send once more
//! ```
//!
//! If the token is due for refresh, the request uses it, and a refresh starts in the background.
//!
//! A request that already has an `Authorization` header is sent unchanged. A request over plain HTTP
//! to another machine is sent without a token, unless you allow it.
//!
//! A call with a fresh token has these costs:
//!
//! * It takes no lock and doesn't wait.
//! * Each service remembers the token that it last used. At most once per millisecond, it checks the
//!   cache for a newer one, which loads an atomic pointer and reads two clocks. If you clone the
//!   service for each call, each clone may check once.
//! * It allocates what its replay policy keeps. Apart from that, it allocates only if the added header
//!   makes the request's `HeaderMap` grow.
//!
//! # When to use it
//!
//! Use this crate if your program calls an API on its own behalf, the authorization server supports
//! the client-credentials grant, and your HTTP client is a tower service or can be adapted to one.
//!
//! Use something else if
//!
//! * your tokens belong to users: the [`oauth2`] crate supports other grants;
//! * your token never changes: tower-http has `AddAuthorizationLayer`;
//! * you want to check tokens on a server: this crate is for clients;
//! * your program makes one call and exits: it doesn't need a cache.
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
//! Put a layer that follows redirects below: above, it can carry a token to another host.
//! [`guide::clients`] explains this and the other layers.
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
//! | What happened to a call? Why wasn't it replayed? | [`TokenOutcome`] |
//! | What can fail? | [`Error`] |
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
//! | *fresh* | a token that can be used |
//! | *due for refresh* | a token that can be used while its refresh runs in the background |
//! | *expired* | a token that must not be used anymore |
//! | *rejected* | a token that the API refused |
//! | *refresh* | any token request after the first |
//! | *renewal* | a refresh because of a rejection |
//! | *replay* | the second send of a request |
//! | *refresh window* | the time before expiry in which a token is due for refresh |
//! | *expiry margin* | how long before its stated end a token counts as expired |
//! | *cool-down* | the time after a renewal in which rejections cause no other renewal |
//!
//! # Runtime
//!
//! Token requests run as Tokio tasks and need a runtime with timers enabled. A token that is already
//! in the cache can be used without a runtime. One cache can serve several runtimes.
//!
//! # Not here
//!
//! Other grants, refresh tokens, token validation on servers, an HTTP client, TLS.
//!
//! [`oauth2`]: https://docs.rs/oauth2
//! [RFC 6749]: https://www.rfc-editor.org/rfc/rfc6749
//! [RFC 6749 §4.4]: https://www.rfc-editor.org/rfc/rfc6749#section-4.4

#![warn(clippy::disallowed_methods)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod replay;

mod call;
mod clock;
mod drain;
mod endpoint;
mod error;
mod host;
mod layer;
mod origin;
mod outcome;
mod scheme;
mod secret;
mod service;
mod telemetry;
mod token;

pub use crate::{
    call::ResponseFuture,
    endpoint::{ClientAuth, ClientSecret, TokenEndpoint, provider},
    error::Error,
    layer::ClientCredentialsLayer,
    outcome::{NotReplayed, TokenOmitted, TokenOutcome},
    service::ClientCredentials,
    token::{AccessToken, Rejection, TokenCache, TokenCacheBuilder, TokenParameters, TokenRequest},
};

/// What the fuzz targets reach that is not public.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    /// Whether a response rejects the token, by the default verdict.
    pub fn is_rejection(response: &http::response::Parts) -> bool {
        let token = crate::AccessToken::new("token").expect("the token can be sent");
        token.scheme().verdict(response) == crate::scheme::Verdict::Rejected
    }
}

/// The error type of the layer's service, as tower has it.
pub use tower::BoxError;

#[cfg(doc)]
pub mod guide;

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
