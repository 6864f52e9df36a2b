use super::AccessToken;

/// What a token service is asked for.
///
/// A service that always answers with the same kind of token may ignore it.
///
/// # Examples
///
/// ```
/// use tower::{BoxError, service_fn};
/// use tower_client_credentials::{AccessToken, TokenRequest};
///
/// # #[derive(Clone)]
/// # struct Agent;
/// # impl Agent {
/// #     async fn token(&self, _scope: String, _anew: bool) -> Result<String, BoxError> {
/// #         Ok("token-1".to_owned())
/// #     }
/// # }
/// # let agent = Agent;
/// // An agent on this machine, with a cache of its own that is passed by when the API rejected
/// // what it gave.
/// let tokens = service_fn(move |request: TokenRequest| {
///     let agent = agent.clone();
///     async move {
///         let scope = request.parameters.scopes.join(" ");
///         let token = agent.token(scope, request.rejected.is_some()).await?;
///         Ok::<_, BoxError>(AccessToken::new(token)?)
///     }
/// });
/// # drop(tower_client_credentials::TokenCache::new(tokens));
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TokenRequest {
    /// What the token is asked to be good for.
    pub parameters: TokenParameters,
    /// The token that the API rejected, if that is why a new one is asked for.
    ///
    /// A token service with a cache of its own must not answer with this one again.
    pub rejected: Option<AccessToken>,
}

impl TokenRequest {
    /// Asks for a token with the given parameters.
    ///
    /// # Examples
    ///
    /// To test a token service of one's own:
    ///
    /// ```
    /// use tower_client_credentials::{TokenParameters, TokenRequest};
    ///
    /// let request = TokenRequest::new(TokenParameters::default().scope("r_basic"));
    ///
    /// assert_eq!(request.parameters.scopes, ["r_basic"]);
    /// assert!(request.rejected.is_none());
    /// ```
    pub fn new(parameters: TokenParameters) -> Self {
        Self {
            parameters,
            rejected: None,
        }
    }
}

/// What a token is asked to be good for; two equal values can share a token.
///
/// Not for secrets: `Debug` shows all of it.
///
/// # Examples
///
/// ```
/// use tower_client_credentials::TokenParameters;
///
/// let parameters = TokenParameters::default()
///     .scope("orders.read orders.write")
///     .audience("https://api.example")
///     .resource("https://api.example/orders")
///     .param("tenant", "example");
/// assert_eq!(parameters.scopes, ["orders.read", "orders.write"]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TokenParameters {
    /// Scopes (RFC 6749 §3.3); sent as one parameter, joined with spaces.
    pub scopes: Vec<String>,
    /// Resources (RFC 8707 §2), as absolute URIs; one parameter each.
    pub resources: Vec<String>,
    /// Audiences (RFC 8693 §2.1); one parameter each.
    pub audiences: Vec<String>,
    /// Further parameters of the token request, as names and values; names may repeat.
    pub further: Vec<(String, String)>,
}

impl TokenParameters {
    /// Adds a scope, or several that are separated by spaces.
    #[must_use]
    pub fn scope(mut self, scope: impl AsRef<str>) -> Self {
        let scopes = scope.as_ref().split_ascii_whitespace().map(str::to_owned);
        self.scopes.extend(scopes);
        self
    }

    /// Adds a resource.
    #[must_use]
    pub fn resource(mut self, resource: impl Into<String>) -> Self {
        self.resources.push(resource.into());
        self
    }

    /// Adds an audience.
    #[must_use]
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.audiences.push(audience.into());
        self
    }

    /// Adds any other parameter.
    #[must_use]
    pub fn param(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.further.push((name.into(), value.into()));
        self
    }
}
