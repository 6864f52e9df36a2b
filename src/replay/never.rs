use std::convert::Infallible;

use http::Request;

use super::Replay;

/// Keeps nothing and costs nothing: every request is sent once, with whatever body it has.
///
/// A rejected token is renewed all the same, for the requests that follow.
///
/// # Examples
///
/// ```
/// # use tower_client_credentials::{AccessToken, TokenRequest};
/// # use tower::{BoxError, service_fn};
/// # let token_service = service_fn(|_: TokenRequest| async {
/// #     Ok::<_, BoxError>(AccessToken::new("token-1")?)
/// # });
/// use tower_client_credentials::{ClientCredentialsLayer, Never};
///
/// let layer = ClientCredentialsLayer::new(token_service).replay(Never);
/// # drop(layer);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Never;

impl<B> Replay<B> for Never {
    type Body = B;
    type Kept = Infallible;

    fn split(&self, body: B) -> (B, Option<Infallible>) {
        (body, None)
    }

    #[inline]
    fn sent_once(&self, request: Request<B>) -> Request<B> {
        request
    }

    fn restore(&self, kept: Infallible) -> Option<B> {
        match kept {}
    }
}
