use super::{AccessToken, TokenParameters};

/// A request for an access token, as a token service receives it.
///
/// A token service that always returns the same kind of token can ignore the fields.
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
/// #     async fn token(&self, _scope: String, _bypass_cache: bool) -> Result<String, BoxError> {
/// #         Ok("token-1".to_owned())
/// #     }
/// # }
/// # let agent = Agent;
/// // This agent has its own cache, which must be bypassed if the API rejected the cached token.
/// let tokens = service_fn(move |request: TokenRequest| {
///     let agent = agent.clone();
///     async move {
///         let scope = request.parameters.scopes().join(" ");
///         let token = agent.token(scope, request.rejected.is_some()).await?;
///         Ok::<_, BoxError>(AccessToken::new(token)?)
///     }
/// });
/// # drop(tower_client_credentials::TokenCache::new(tokens));
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TokenRequest {
    /// What the token is requested for.
    pub parameters: TokenParameters,
    /// The token that the API rejected, if a rejection caused this request.
    ///
    /// A token service with its own cache must not return this token again.
    pub rejected: Option<AccessToken>,
}

impl TokenRequest {
    /// Creates a request with the given parameters and no rejected token.
    ///
    /// # Examples
    ///
    /// For tests of a token service:
    ///
    /// ```
    /// use tower_client_credentials::{TokenParameters, TokenRequest};
    ///
    /// let request = TokenRequest::new(TokenParameters::default().with_scope("r_basic"));
    ///
    /// assert_eq!(request.parameters.scopes(), ["r_basic"]);
    /// assert!(request.rejected.is_none());
    /// ```
    pub fn new(parameters: TokenParameters) -> Self {
        Self {
            parameters,
            rejected: None,
        }
    }
}
