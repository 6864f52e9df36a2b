//! The identity cache of [`aws-smithy-runtime`](https://docs.rs/aws-smithy-runtime), called the way
//! the orchestrator of an AWS client calls it, with a bearer token as the identity. It has no token
//! request, so this adds one as an application would; the header is set the way its bearer signer
//! does.
//!
//! Limits: it has no way to report a rejected token. A cached identity stays until it expires.

use std::{fmt, sync::Arc, time::SystemTime};

use aws_smithy_async::{rt::sleep::TokioSleep, time::SystemTimeSource};
use aws_smithy_runtime::client::{
    auth::http::BearerAuthScheme, identity::IdentityCache,
    orchestrator::endpoints::StaticUriEndpointResolver, retries::strategy::NeverRetryStrategy,
};
use aws_smithy_runtime_api::client::{
    auth::{http::HTTP_BEARER_AUTH_SCHEME_ID, static_resolver::StaticAuthSchemeOptionResolver},
    identity::{
        Identity, IdentityFuture, ResolveCachedIdentity, ResolveIdentity, SharedIdentityResolver,
        http::Token,
    },
    runtime_components::{RuntimeComponents, RuntimeComponentsBuilder},
};
use aws_smithy_types::config_bag::ConfigBag;
use tower::BoxError;

use super::plain_fetch::PlainFetch;
use crate::{
    endpoint::Endpoint,
    peer::{ApiRequest, ApiResponse, ByHand, Client, Leaf, Peer, send, set_bearer},
};

#[derive(Clone)]
pub(crate) struct AwsSmithy {
    resolver: SharedIdentityResolver,
    components: RuntimeComponents,
    config: Arc<ConfigBag>,
}

struct Resolver(PlainFetch);

impl ResolveIdentity for Resolver {
    fn resolve_identity<'a>(
        &'a self,
        _: &'a RuntimeComponents,
        _: &'a ConfigBag,
    ) -> IdentityFuture<'a> {
        IdentityFuture::new(async {
            let fetched = self.0.token().await?;
            let expires_at = SystemTime::now() + fetched.lifetime();
            Ok(Identity::from(Token::new(
                fetched.access_token,
                Some(expires_at),
            )))
        })
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl Peer for AwsSmithy {
    const NAME: &'static str = "aws-smithy-runtime";
    const NO_REJECTION: Option<&'static str> = Some("it has no way to report a rejected token");

    type Client<L: Leaf> = ByHand<Self, L>;

    async fn start(endpoint: &Endpoint) -> Result<Self, BoxError> {
        let resolver = SharedIdentityResolver::new(Resolver(PlainFetch::new(endpoint)));
        let schemes = StaticAuthSchemeOptionResolver::new(vec![HTTP_BEARER_AUTH_SCHEME_ID]);
        let components = RuntimeComponentsBuilder::new("peers")
            .with_auth_scheme(BearerAuthScheme::new())
            .with_auth_scheme_option_resolver(Some(schemes))
            .with_endpoint_resolver(Some(StaticUriEndpointResolver::uri(endpoint.url())))
            .with_identity_cache(Some(IdentityCache::lazy().build()))
            .with_identity_resolver(HTTP_BEARER_AUTH_SCHEME_ID, resolver.clone())
            .with_retry_strategy(Some(NeverRetryStrategy::new()))
            .with_sleep_impl(Some(TokioSleep::new()))
            .with_time_source(Some(SystemTimeSource::new()))
            .build()?;
        Ok(Self {
            resolver,
            components,
            config: Arc::new(ConfigBag::base()),
        })
    }

    fn client<L: Leaf>(&self, leaf: L) -> Self::Client<L> {
        ByHand {
            tokens: self.clone(),
            leaf,
        }
    }
}

impl AwsSmithy {
    async fn identity(&self) -> Result<Identity, BoxError> {
        let cache = self.components.identity_cache();
        let resolver = self.resolver.clone();
        cache
            .resolve_cached_identity(resolver, &self.components, &self.config)
            .await
    }
}

impl<L: Leaf> Client for ByHand<AwsSmithy, L> {
    async fn send(&mut self, mut request: ApiRequest) -> Result<ApiResponse, BoxError> {
        let identity = self.tokens.identity().await?;
        let token = identity
            .data::<Token>()
            .ok_or("the identity is not a token")?;
        set_bearer(&mut request, token.token())?;
        send(&mut self.leaf, request).await
    }
}
