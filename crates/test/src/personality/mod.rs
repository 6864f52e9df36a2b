//! How the servers of a provider behave.
//!
//! A [`Personality`] is a ready script for an [`AuthServer`](crate::AuthServer) and the APIs that
//! accept its tokens: which client authentication the provider knows, what its replies look like,
//! and how it words its errors. The tests of a client then meet the provider's behavior without a
//! network.
//!
//! | personality | provider |
//! |---|---|
//! | [`Standard`] | what RFC 6749 and RFC 6750 say; the default |
//! | [`LinkedIn`] | LinkedIn's 2-legged OAuth |
//!
//! # Examples
//!
//! ```
//! use tower_client_credentials_test::{AuthServer, personality::LinkedIn};
//!
//! let auth = AuthServer::new()
//!     .personality(LinkedIn)
//!     .with_client("77tt5zexample", "not/a+real=secret==");
//! # drop(auth);
//! ```
//!
//! A provider that isn't listed is an implementation of the trait. Every method has a default that
//! follows the RFCs, so an implementation contains only what differs:
//!
//! ```
//! use std::time::Duration;
//!
//! use tower_client_credentials_test::{
//!     AuthServer, Personality, Refusal, Reply, personality::Standard,
//! };
//!
//! /// Answers 400 to wrong credentials, and issues tokens for 10 minutes.
//! #[derive(Debug)]
//! struct Example;
//!
//! impl Personality for Example {
//!     fn name(&self) -> &'static str {
//!         "example"
//!     }
//!
//!     fn lifetime(&self) -> Option<Duration> {
//!         Some(Duration::from_secs(600))
//!     }
//!
//!     fn refusal(&self, refusal: &Refusal) -> Reply {
//!         match refusal {
//!             Refusal::WrongSecret { .. } => Reply::oauth_error("invalid_grant"),
//!             refusal => Standard.refusal(refusal),
//!         }
//!     }
//! }
//!
//! let auth = AuthServer::new().personality(Example);
//! # drop(auth);
//! ```

mod linkedin;

pub use self::linkedin::LinkedIn;

use std::{fmt, sync::Arc, time::Duration};

use serde_json::{Map, Value, json};

use crate::{AuthMethod, IssuedToken, Refusal, Reply, TokenState};

/// How a provider's servers behave. See the [module documentation](self).
pub trait Personality: fmt::Debug + Send + Sync + 'static {
    /// Returns the name by which the program selects this personality.
    fn name(&self) -> &'static str;

    /// Returns the path of the provider's token endpoint. The program serves it there. An
    /// [`AuthServer`](crate::AuthServer) answers on every path, unless
    /// [`AuthServer::token_path`](crate::AuthServer::token_path) is set.
    fn token_path(&self) -> &'static str {
        "/token"
    }

    /// Returns the lifetime of tokens. `None` means that tokens don't expire, and that replies don't
    /// state a lifetime.
    fn lifetime(&self) -> Option<Duration> {
        Some(Duration::from_secs(3600))
    }

    /// Returns the number of characters of a token.
    fn token_length(&self) -> usize {
        43
    }

    /// Returns the grant type that token requests must name.
    fn grant_type(&self) -> &'static str {
        "client_credentials"
    }

    /// Returns the methods of client authentication that the token endpoint knows. Without Basic,
    /// the endpoint ignores `Authorization` headers.
    fn auth_methods(&self) -> &[AuthMethod] {
        &[AuthMethod::ClientSecretBasic, AuthMethod::ClientSecretPost]
    }

    /// Returns the reply to a token request that is accepted. `expires_in` is the rest of the
    /// token's lifetime.
    fn token_reply(&self, token: &IssuedToken, expires_in: Option<Duration>) -> Map<String, Value> {
        standard_token_reply(token, expires_in)
    }

    /// Returns the reply to a token request that is refused.
    fn refusal(&self, refusal: &Refusal) -> Reply {
        standard_refusal(refusal)
    }

    /// Returns the reply of an API to a token that it doesn't accept.
    fn api_refusal(&self, state: TokenState) -> Reply {
        standard_api_refusal(state)
    }
}

/// For personalities that are chosen at run time, such as by [`by_name`].
impl Personality for Arc<dyn Personality> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn token_path(&self) -> &'static str {
        (**self).token_path()
    }

    fn lifetime(&self) -> Option<Duration> {
        (**self).lifetime()
    }

    fn token_length(&self) -> usize {
        (**self).token_length()
    }

    fn grant_type(&self) -> &'static str {
        (**self).grant_type()
    }

    fn auth_methods(&self) -> &[AuthMethod] {
        (**self).auth_methods()
    }

    fn token_reply(&self, token: &IssuedToken, expires_in: Option<Duration>) -> Map<String, Value> {
        (**self).token_reply(token, expires_in)
    }

    fn refusal(&self, refusal: &Refusal) -> Reply {
        (**self).refusal(refusal)
    }

    fn api_refusal(&self, state: TokenState) -> Reply {
        (**self).api_refusal(state)
    }
}

/// What RFC 6749 and RFC 6750 say. The default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standard;

impl Personality for Standard {
    fn name(&self) -> &'static str {
        "standard"
    }
}

/// Returns the personality with this name, such as `linkedin`.
pub fn by_name(name: &str) -> Option<Arc<dyn Personality>> {
    all().into_iter().find(|it| it.name() == name)
}

/// Returns every personality of this crate.
pub fn all() -> Vec<Arc<dyn Personality>> {
    vec![Arc::new(Standard), Arc::new(LinkedIn)]
}

/// RFC 6749 §5.1.
fn standard_token_reply(token: &IssuedToken, expires_in: Option<Duration>) -> Map<String, Value> {
    let mut reply = Map::new();
    reply.insert("access_token".to_owned(), token.expose().into());
    reply.insert("token_type".to_owned(), "Bearer".into());
    if let Some(expires_in) = expires_in {
        reply.insert("expires_in".to_owned(), expires_in.as_secs().into());
    }
    if !token.scopes().is_empty() {
        reply.insert("scope".to_owned(), token.scopes().join(" ").into());
    }
    reply
}

/// RFC 6749 §5.2.
fn standard_refusal(refusal: &Refusal) -> Reply {
    let description = error_description(&refusal.to_string());
    let reply = Reply::oauth_error_with_description(refusal.code(), &description);
    match refusal {
        Refusal::WrongPath => reply.with_status(404),
        Refusal::WrongMethod => reply.with_status(405).with_header("allow", "POST"),
        Refusal::BodyTooLarge | Refusal::TooManyParameters => reply.with_status(413),
        // HTTP requires a challenge with every 401.
        refusal if refusal.code() == "invalid_client" => {
            reply.with_header("www-authenticate", r#"Basic realm="token endpoint""#)
        }
        _ => reply,
    }
}

/// RFC 6749 §5.2 allows only these characters in a description.
fn error_description(text: &str) -> String {
    let is_allowed = |it: char| matches!(it, ' '..='~') && !matches!(it, '"' | '\\');
    let characters = text.chars();
    characters
        .map(|it| if is_allowed(it) { it } else { '?' })
        .collect()
}

/// RFC 6750 §3: a request without a token gets a challenge without an error code.
fn standard_api_refusal(state: TokenState) -> Reply {
    let challenge = match state {
        TokenState::Missing => r#"Bearer realm="api""#.to_owned(),
        state => format!(
            r#"Bearer realm="api", error="invalid_token", error_description="the token is {state}""#
        ),
    };
    Reply::unauthorized(&challenge).with_json(&json!({ "error": "unauthorized" }))
}
