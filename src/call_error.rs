use std::{error::Error as StdError, fmt};

use tower::BoxError;

/// The error of a call, as a [`std::error::Error`].
///
/// The layer's service fails with a [`BoxError`], which doesn't implement [`std::error::Error`], so
/// `?` can't convert it into the errors of most other crates. This type wraps it. `Display` and
/// [`source`](StdError::source) are those of the wrapped error.
///
/// Returned by [`ClientCredentials::send`](crate::ClientCredentials::send). For libraries whose
/// HTTP client must have a standard error, map the error of the service to this type.
///
/// # Examples
///
/// For a library whose HTTP client must have a standard error:
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
/// use tower::{Service, ServiceBuilder};
/// use tower_client_credentials::{CallError, ClientCredentialsLayer};
///
/// fn is_standard<S: Service<http::Request<String>, Error: std::error::Error>>(_: &S) {}
///
/// let api = ServiceBuilder::new()
///     .map_err(CallError::from)
///     .layer(ClientCredentialsLayer::new(token_service))
///     .service(http);
/// is_standard(&api);
/// ```
///
/// To find out what failed:
///
/// ```
/// use tower_client_credentials::{CallError, Error};
///
/// fn is_refused(error: &CallError) -> bool {
///     error.downcast_ref::<Error>().is_some_and(Error::is_refused)
/// }
/// # assert!(!is_refused(&CallError::from(tower::BoxError::from("no connection"))));
/// ```
pub struct CallError(BoxError);

impl CallError {
    /// Returns the wrapped error if it is of type `E`.
    ///
    /// Errors of this crate are of type [`Error`](crate::Error). All others are those of the inner
    /// service.
    pub fn downcast_ref<E: StdError + 'static>(&self) -> Option<&E> {
        self.0.downcast_ref()
    }

    /// Returns the wrapped error.
    pub fn into_inner(self) -> BoxError {
        self.0
    }
}

impl From<BoxError> for CallError {
    fn from(error: BoxError) -> Self {
        Self(error)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for CallError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}
