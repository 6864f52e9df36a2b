use std::{fmt, iter};

use crate::redact::redacted;

/// A client that is registered at an [`AuthServer`](crate::AuthServer).
///
/// # Examples
///
/// ```
/// use tower_client_credentials_test::{AuthMethod, AuthServer, Client};
///
/// let auth = AuthServer::new().register(
///     Client::new("reports", "s3cret")
///         .with_scopes(["orders.read", "orders.write"])
///         .with_auth_methods([AuthMethod::ClientSecretBasic]),
/// );
/// # drop(auth);
/// ```
#[derive(Clone)]
pub struct Client {
    pub(crate) id: String,
    pub(crate) secret: String,
    /// `None` if the client may ask for any scope.
    pub(crate) scopes: Option<Vec<String>>,
    /// `None` if the client may use every method that the server accepts.
    pub(crate) auth_methods: Option<Vec<AuthMethod>>,
    pub(crate) has_grant: bool,
}

impl Client {
    /// Creates a client that may ask for any scope.
    pub fn new(id: impl Into<String>, secret: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            secret: secret.into(),
            scopes: None,
            auth_methods: None,
            has_grant: true,
        }
    }

    /// Restricts the client to these scopes. A token request for another one is answered with
    /// `invalid_scope`. A token request without scopes gets all of them.
    pub fn with_scopes(mut self, scopes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.scopes = Some(scopes.into_iter().map(Into::into).collect());
        self
    }

    /// Restricts how the client may authenticate. By default, it may use every method that the
    /// server accepts.
    pub fn with_auth_methods(mut self, methods: impl IntoIterator<Item = AuthMethod>) -> Self {
        self.auth_methods = Some(methods.into_iter().collect());
        self
    }

    /// Doesn't allow the client to use the client-credentials grant. Its token requests are answered
    /// with `unauthorized_client`.
    pub fn without_grant(mut self) -> Self {
        self.has_grant = false;
        self
    }

    pub(crate) fn has_secret(&self, secret: &str) -> bool {
        self.secret == secret
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |text: &String| redacted(text, iter::once(&*self.secret));
        let scopes = self.scopes.iter().flatten().map(shown);
        f.debug_struct("Client")
            .field("id", &shown(&self.id))
            .field("scopes", &scopes.collect::<Vec<_>>())
            .field("auth_methods", &self.auth_methods)
            .field("has_grant", &self.has_grant)
            .finish_non_exhaustive()
    }
}

/// A method of client authentication, with its IANA name in [`Display`](fmt::Display).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AuthMethod {
    /// Id and secret in an `Authorization: Basic` header, both form-encoded first (RFC 6749 §2.3.1).
    ClientSecretBasic,
    /// Id and secret in the form.
    ClientSecretPost,
}

impl fmt::Display for AuthMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClientSecretBasic => "client_secret_basic",
            Self::ClientSecretPost => "client_secret_post",
        })
    }
}
