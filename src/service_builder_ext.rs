use tower::{BoxError, Service, ServiceBuilder, layer::util::Stack};

use crate::{AccessToken, ClientCredentialsLayer, TokenRequest};

/// Adds [`client_credentials`](Self::client_credentials) to tower's [`ServiceBuilder`].
///
/// # Examples
///
/// ```
/// # use tower_client_credentials::{AccessToken, TokenRequest};
/// # use tower::{BoxError, service_fn};
/// # let token_service = service_fn(|_: TokenRequest| async {
/// #     Ok::<_, BoxError>(AccessToken::new("token-1")?)
/// # });
/// # let http = service_fn(|_: http::Request<String>| async {
/// #     Ok::<_, BoxError>(http::Response::new(String::new()))
/// # });
/// use tower::ServiceBuilder;
/// use tower_client_credentials::ServiceBuilderExt;
///
/// let api = ServiceBuilder::new()
///     .client_credentials(token_service)
///     .service(http);
/// # drop(api.send(http::Request::new(String::new())));
/// ```
pub trait ServiceBuilderExt<L>: sealed::Sealed<L> + Sized {
    /// Adds a [`ClientCredentialsLayer`] with the default options.
    ///
    /// For other options, or to share a cache, use
    /// [`layer`](ServiceBuilder::layer) with a `ClientCredentialsLayer`.
    fn client_credentials<T>(
        self,
        token_service: T,
    ) -> ServiceBuilder<Stack<ClientCredentialsLayer, L>>
    where
        T: Service<TokenRequest, Response = AccessToken> + Clone + Send + 'static,
        T::Error: Into<BoxError>,
        T::Future: Send + 'static;
}

impl<L> ServiceBuilderExt<L> for ServiceBuilder<L> {
    fn client_credentials<T>(
        self,
        token_service: T,
    ) -> ServiceBuilder<Stack<ClientCredentialsLayer, L>>
    where
        T: Service<TokenRequest, Response = AccessToken> + Clone + Send + 'static,
        T::Error: Into<BoxError>,
        T::Future: Send + 'static,
    {
        self.layer(ClientCredentialsLayer::new(token_service))
    }
}

mod sealed {
    use tower::ServiceBuilder;

    #[expect(unnameable_types, reason = "no other type implements the trait")]
    pub trait Sealed<L> {}

    impl<L> Sealed<L> for ServiceBuilder<L> {}
}
