use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep};
use tower::{BoxError, Service, service_fn};
use tower_client_credentials::{AccessToken, TokenRequest};

/// A token of 800 bytes: LinkedIn's tokens can be that long.
pub fn secret(number: usize) -> String {
    format!("{number:0>800}")
}

/// A token service that takes some time for each token and records when it was called.
#[derive(Clone, Debug)]
pub struct Tokens {
    delay: Duration,
    lifetime: Duration,
    requested_at: Arc<Mutex<Vec<Instant>>>,
}

impl Tokens {
    /// Issues tokens that outlive every bench.
    pub fn new(delay: Duration) -> Self {
        Self::with_lifetime(delay, Duration::from_secs(3600))
    }

    pub fn with_lifetime(delay: Duration, lifetime: Duration) -> Self {
        Self {
            delay,
            lifetime,
            requested_at: Arc::default(),
        }
    }

    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// The moments at which tokens were requested.
    pub fn requested_at(&self) -> Vec<Instant> {
        self.lock().clone()
    }

    /// The number of token requests so far.
    pub fn requests(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.requested_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Issues the next token; the first one has number 1.
    pub async fn issue(&self) -> Result<AccessToken, BoxError> {
        let number = {
            let mut requested_at = self.lock();
            requested_at.push(Instant::now());
            requested_at.len()
        };
        sleep(self.delay).await;
        Ok(AccessToken::new(secret(number))?.with_lifetime(self.lifetime))
    }

    pub fn service(
        &self,
    ) -> impl Service<
        TokenRequest,
        Response = AccessToken,
        Error = BoxError,
        Future = BoxFuture<'static, Result<AccessToken, BoxError>>,
    > + Clone
    + Send
    + use<> {
        let tokens = self.clone();
        service_fn(move |_: TokenRequest| {
            let tokens = tokens.clone();
            Box::pin(async move { tokens.issue().await })
                as BoxFuture<'static, Result<AccessToken, BoxError>>
        })
    }
}
