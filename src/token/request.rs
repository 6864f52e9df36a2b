use super::{AccessToken, TokenParameters};

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
