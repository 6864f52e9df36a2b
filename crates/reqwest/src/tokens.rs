use tower_client_credentials::{
    AccessToken, BoxError, ClientCredentialsLayer, TokenCache, TokenRequest,
    replay::{CloneBody, NoReplay},
};
use tower_service::Service;

use crate::ReplayBodies;

/// Where an [`ApiClient`](crate::ApiClient) gets its tokens from.
///
/// Implemented for
///
/// * token services, such as a [`TokenEndpoint`](tower_client_credentials::TokenEndpoint),
/// * a [`TokenCache`], which several clients can share,
/// * a [`ClientCredentialsLayer`], whose options apply. Of its replay policies, these are possible:
///   [`ReplayBodies`], [`NoReplay`], and [`CloneBody`], which is the default of the layer and
///   becomes the default of `ReplayBodies`.
///
/// `Kind` distinguishes the three. The compiler infers it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot supply the access tokens of a reqwest client",
    note = "pass a token service such as `TokenEndpoint`, a `TokenCache` or a `ClientCredentialsLayer`",
    note = "use `.replay(ReplayBodies::default())` or `.no_replay()` for the layer's replay policy"
)]
pub trait Tokens<Kind> {
    /// Returns the layer that adds the tokens.
    fn into_layer(self) -> ClientCredentialsLayer<ReplayBodies>;
}

#[diagnostic::do_not_recommend]
impl<T> Tokens<kind::Service> for T
where
    T: Service<TokenRequest, Response = AccessToken> + Clone + Send + 'static,
    T::Error: Into<BoxError>,
    T::Future: Send + 'static,
{
    fn into_layer(self) -> ClientCredentialsLayer<ReplayBodies> {
        ClientCredentialsLayer::new(self).replay(ReplayBodies::default())
    }
}

impl Tokens<kind::Cache> for TokenCache {
    fn into_layer(self) -> ClientCredentialsLayer<ReplayBodies> {
        ClientCredentialsLayer::with_cache(self).replay(ReplayBodies::default())
    }
}

impl Tokens<kind::Layer> for ClientCredentialsLayer<ReplayBodies> {
    fn into_layer(self) -> Self {
        self
    }
}

impl Tokens<kind::Layer> for ClientCredentialsLayer<CloneBody> {
    fn into_layer(self) -> ClientCredentialsLayer<ReplayBodies> {
        self.replay(ReplayBodies::default())
    }
}

impl Tokens<kind::Layer> for ClientCredentialsLayer<NoReplay> {
    fn into_layer(self) -> ClientCredentialsLayer<ReplayBodies> {
        self.replay(NoReplay.into())
    }
}

/// Without them, the three implementations could overlap.
#[expect(unnameable_types, reason = "the compiler infers them")]
mod kind {
    #[derive(Debug)]
    pub struct Service;
    #[derive(Debug)]
    pub struct Cache;
    #[derive(Debug)]
    pub struct Layer;
}
