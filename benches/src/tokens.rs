use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep};
use tower::{BoxError, Service, service_fn};
use tower_client_credentials::{AccessToken, TokenRequest};

/// A token of 800 bytes, as LinkedIn's may be long.
pub fn secret(number: usize) -> String {
    format!("{number:0>800}")
}

/// A token service that takes its time and remembers when it was asked.
#[derive(Clone, Debug)]
pub struct Tokens {
    delay: Duration,
    lifetime: Duration,
    begun: Arc<Mutex<Vec<Instant>>>,
}

impl Tokens {
    /// Tokens that outlive every bench.
    pub fn new(delay: Duration) -> Self {
        Self::living(delay, Duration::from_secs(3600))
    }

    pub fn living(delay: Duration, lifetime: Duration) -> Self {
        Self {
            delay,
            lifetime,
            begun: Arc::default(),
        }
    }

    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// When each token was asked for.
    pub fn begun(&self) -> Vec<Instant> {
        self.lock().clone()
    }

    /// How often a token was asked for.
    pub fn asked(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next token, numbered from 1.
    pub async fn issue(&self) -> Result<AccessToken, BoxError> {
        let number = {
            let mut begun = self.lock();
            begun.push(Instant::now());
            begun.len()
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
