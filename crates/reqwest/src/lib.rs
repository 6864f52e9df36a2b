//! OAuth 2.0 access tokens for [reqwest].
//!
//! An [`ApiClient`] is a reqwest client that sends every request with an access token from the
//! client-credentials grant (RFC 6749 §4.4, "2-legged OAuth"). It refreshes tokens before they
//! expire, makes one token request no matter how many callers need the token, and sends a request
//! again with a new token after a 401. The crate [`tower_client_credentials`] does this work; its
//! documentation explains the rules and all options.
//!
//! # Example
//!
//! ```no_run
//! use std::env;
//!
//! use reqwest::Client;
//! use tower_client_credentials::{ClientAuth, TokenEndpoint};
//! use tower_client_credentials_reqwest::{ClientExt, token_client};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let auth = ClientAuth::client_secret_basic(env::var("CLIENT_ID")?, env::var("CLIENT_SECRET")?);
//! let tokens = TokenEndpoint::new(token_client()?, "https://auth.example.com/oauth/token", auth)?;
//! let api = Client::new().with_client_credentials(tokens);
//!
//! let response = api.get("https://api.example.com/orders").send().await?;
//! println!("{}", response.error_for_status()?.text().await?);
//! # Ok(())
//! # }
//! ```
//!
//! # Where to look
//!
//! | question | answer |
//! |---|---|
//! | What happens to a request, its timeout and its response? | [`ApiClient`] |
//! | How do I send a `reqwest::RequestBuilder` that I already have? | [`RequestBuilderExt::send_with`] |
//! | Which bodies are sent a second time? | [`ReplayBodies`] |
//! | Which redirects are followed? | [`ReqwestService`], [`ClientBuilderExt`] |
//! | How do I set options, or share a cache? | [`Tokens`] |
//! | How do I use a proxy for token requests? | [`token_client_with`] |
//! | How do I combine reqwest with tower layers? | [`ReqwestService`] |
//! | How do I use it with reqwest-middleware? | `ClientCredentialsMiddleware`, with the feature `middleware` |
//! | What can fail? | [`Error`] |
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `json`, `query`, `form`, `multipart` | the method of [`ApiRequestBuilder`] with this name, and reqwest's feature |
//! | `middleware` | `ClientCredentialsMiddleware`, `SentUrl` |
//!
//! No feature is enabled by default. This crate enables no TLS library. Token requests and API
//! requests use that of your own dependency on reqwest.
//!
//! [reqwest]: https://docs.rs/reqwest

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod api_client;
mod deadline;
mod error;
#[cfg(feature = "middleware")]
mod middleware;
mod redirect;
mod replay;
mod request_builder;
mod sealed;
mod service;
mod tokens;

#[cfg(feature = "middleware")]
pub use crate::middleware::{ClientCredentialsMiddleware, SentUrl};
pub use crate::{
    api_client::{
        ApiClient, ClientBuilderExt, ClientExt, ResponseFuture, token_client, token_client_with,
    },
    error::Error,
    replay::{KeptBody, ReplayBodies},
    request_builder::{ApiRequestBuilder, RequestBuilderExt},
    service::{ReqwestService, ServiceFuture},
    tokens::Tokens,
};
