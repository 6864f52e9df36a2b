//! Tower middleware that gives every HTTP request of a client an OAuth 2.0 access token, obtained
//! with the client-credentials grant ([RFC 6749 §4.4], "2-legged OAuth").
//!
//! [`ClientCredentialsLayer`] wraps any `tower::Service<http::Request<B>>`. It keeps one token,
//! refreshes it ahead of time behind the requests that use it, asks the token endpoint once however
//! many requests need the answer, and when the API answers 401 it renews the token and sends the
//! request once more. It brings no HTTP client: both the client that it wraps and the service that
//! it asks for tokens are yours.
//!
//! # Example
//!
//! ```
//! # use bytes::Bytes;
//! # use http::{Request, Response};
//! # use http_body_util::Full;
//! # use tower::service_fn;
//! # use tower_client_credentials::BoxError;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! # // Any HTTP client; this one plays LinkedIn.
//! # let http = service_fn(|request: Request<Full<Bytes>>| async move {
//! #     let answer = match request.uri().path() {
//! #         "/oauth/v2/accessToken" => r#"{"access_token":"AQXdSP_W41","expires_in":"1800"}"#,
//! #         _ => {
//! #             assert_eq!(request.headers()["authorization"], "Bearer AQXdSP_W41");
//! #             "hello"
//! #         }
//! #     };
//! #     Ok::<_, BoxError>(Response::new(answer.to_owned()))
//! # });
//! # let (client_id, client_secret) = ("77tt5z", "WPL_AP1");
//! # let request = Request::get("https://api.linkedin.com/rest/me").body(Full::default())?;
//! use tower::{Service, ServiceBuilder, ServiceExt};
//! use tower_client_credentials::{ClientAuth, ClientCredentialsLayer, TokenEndpoint};
//!
//! let tokens = TokenEndpoint::new(
//!     http.clone(),
//!     "https://www.linkedin.com/oauth/v2/accessToken",
//!     ClientAuth::client_secret_post(client_id, client_secret),
//! )?;
//! let mut api = ServiceBuilder::new().layer(ClientCredentialsLayer::new(tokens)).service(http);
//! let response = api.ready().await?.call(request).await?;
//! # assert_eq!(response.body(), "hello");
//! # Ok(())
//! # }
//! ```
//!
//! # The way of a request
//!
//! ```text
//!  Request<B> ─► ClientCredentials<S, R>::call
//!                  │  token cached and fresh ── hit: no lock, no wait
//!                  │        └─ miss: a flight (one tokio task, owned by nobody)
//!                  │                    └─► token service: Service<TokenRequest, Response = AccessToken>
//!                  │                          └─ TokenEndpoint: sends the form with your HTTP client, reads the reply
//!                  │  replay policy R: body ─► body to send + what is kept for a second send
//!                  ▼
//!                S::call(Request<R::Body>) ─► Response<ResBody> ─► accepted ─► returned as it is
//!                                                                └ rejected ─► renew ─► S::call once more
//! ```
//!
//! # When to use it, and when not
//!
//! It is for programs that call an API as themselves, at a server with the client-credentials grant, and
//! over an HTTP client that is a tower service or can be made one.
//!
//! Use something else when
//!
//! * your tokens belong to users: take the [`oauth2`] crate's other grants;
//! * your token never changes: take tower-http's `AddAuthorizationLayer`;
//! * you serve requests and have to check their tokens: this crate is for clients;
//! * you make one call and end: a token request and a header need no cache.
//!
//! # Where it stands among other layers
//!
//! ```text
//!  Buffer, Trace, Timeout                    above: they see one call, the wait for a token included
//!  ClientCredentialsLayer
//!  Retry, FollowRedirect, ConcurrencyLimit   below: they see each send, with its token
//!  your HTTP client
//! ```
//!
//! A redirect follower above the layer can carry a token to another host. [`guide::clients`] says why, and
//! what changes when the others go to the other side.
//!
//! # Where to look
//!
//! The [`guide`] has a chapter for each of the larger questions. These are the items to begin with:
//!
//! | question | answer |
//! |---|---|
//! | Which options are there? | [`ClientCredentialsLayer`], [`TokenCacheBuilder`], [`TokenEndpoint`] |
//! | How is a client authenticated? | [`ClientAuth`] |
//! | How is a request sent a second time? | [`replay`] |
//! | What happened to a call? Why was a 401 not followed by a second send? | [`TokenOutcome`] |
//! | What can fail? | [`Error`] |
//! | How do I use a token without the layer? | [`TokenCache`] |
//!
//! # Features
//!
//! None is on by default, and none changes what the crate does.
//!
//! | feature | adds |
//! |---|---|
//! | `tracing` | a span for each flight, and events, with the crate `tracing` |
//! | `metrics` | counters, histograms and gauges, with the facade of the crate `metrics` |
//!
//! Their names, levels, units and labels are in [`guide::observability`].
//!
//! # Words
//!
//! They mean the same everywhere in this crate:
//!
//! | word | meaning |
//! |---|---|
//! | *fresh* | use the token |
//! | *stale* | use the token; a refresh runs behind it |
//! | *expired* | wait for another token |
//! | *rejected* | the API refused the token |
//! | *refresh* | any acquisition after the first |
//! | *renewal* | a refresh that a rejection asked for |
//! | *flight* | one acquisition and everybody who waits for it |
//! | *waiter* | a call that waits for a flight |
//! | *replay* | the second send of a request |
//! | *window* | the stale time before expiry |
//! | *margin* | how long before its stated end a token counts as expired |
//!
//! # Runtime
//!
//! Tokio, with timers enabled: a flight is a task. A token that is there already is given out
//! anywhere. One cache can serve several runtimes, in turn or at once.
//!
//! # Not here
//!
//! Other grants, refresh tokens, the validation of tokens on servers, an HTTP client, TLS.
//!
//! [`oauth2`]: https://docs.rs/oauth2
//! [RFC 6749 §4.4]: https://www.rfc-editor.org/rfc/rfc6749#section-4.4

#![warn(clippy::disallowed_methods)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod replay;

mod anchor;
mod authorization;
mod clock;
mod config;
mod detour;
mod drain;
mod endpoint;
mod error;
mod future;
mod host;
mod layer;
mod lease;
mod origin;
mod outcome;
mod secret;
mod send;
mod service;
mod telemetry;
mod token;
mod verdict;
mod wait;

pub use crate::{
    endpoint::{ClientAuth, ClientSecret, TokenEndpoint, provider},
    error::Error,
    future::ResponseFuture,
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
    pub fn is_rejection<B>(response: &http::Response<B>) -> bool {
        crate::verdict::Verdict::of(response) == crate::verdict::Verdict::Rejected
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
