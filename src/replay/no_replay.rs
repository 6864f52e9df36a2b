use std::convert::Infallible;

use super::ReplayPolicy;

/// Sends every request once, whatever body it has; also the extension that opts one request out.
///
/// A rejected token is still renewed for the requests that follow.
///
/// # Examples
///
/// As the policy of a layer:
///
/// ```
/// # use tower_client_credentials::{AccessToken, TokenRequest};
/// # use tower::{BoxError, service_fn};
/// # let token_service = service_fn(|_: TokenRequest| async {
/// #     Ok::<_, BoxError>(AccessToken::new("token-1")?)
/// # });
/// use tower_client_credentials::{ClientCredentialsLayer, replay::NoReplay};
///
/// let layer = ClientCredentialsLayer::new(token_service).replay(NoReplay);
/// # drop(layer);
/// ```
///
/// As an extension of one request, whatever the policy of its layer:
///
/// ```
/// use tower_client_credentials::replay::NoReplay;
///
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(NoReplay);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReplay;

impl<B> ReplayPolicy<B> for NoReplay {
    type Body = B;
    type Kept = Infallible;

    fn split(&self, body: B) -> (B, Option<Infallible>) {
        (body, None)
    }

    fn restore(&self, kept: &mut Infallible) -> Option<B> {
        match *kept {}
    }
}
