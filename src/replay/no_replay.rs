use std::convert::Infallible;

use super::ReplayPolicy;

/// Sends each request only once.
///
/// `NoReplay` is both a policy and a request extension. As a policy, set with [`no_replay`], it
/// applies to all requests of a service. As an extension, it applies to a single request and
/// overrides the policy.
///
/// A rejected token is still renewed for later requests.
///
/// [`no_replay`]: crate::ClientCredentialsLayer::no_replay
///
/// # Examples
///
/// As a policy:
///
/// ```
/// use tower_client_credentials::{ClientCredentialsLayer, TokenEndpoint, replay::NoReplay};
///
/// fn layer(tokens: TokenEndpoint) -> ClientCredentialsLayer<NoReplay> {
///     ClientCredentialsLayer::new(tokens).no_replay()
/// }
/// ```
///
/// As the extension of one request:
///
/// ```
/// use tower_client_credentials::replay::NoReplay;
///
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(NoReplay);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NoReplay;

impl<B> ReplayPolicy<B> for NoReplay {
    type Body = B;
    type Kept = Infallible;

    #[inline]
    fn split(&self, body: B) -> (B, Option<Infallible>) {
        (body, None)
    }

    fn restore(&self, kept: &mut Infallible) -> Option<B> {
        match *kept {}
    }
}
