//! The token endpoint that the fleet shares: it replies like LinkedIn's and has a rate limit.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::RETRY_AFTER};
use http_body_util::Full;
use tokio::time::{Instant, sleep};
use tower::{BoxError, Service, service_fn};
use tower_client_credentials::AccessToken;

use crate::day::whole_seconds;

/// The lifetime of LinkedIn's tokens.
pub(crate) const TOKEN_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// The number of token requests that get a token in each second. The others get a 429.
///
/// A fleet whose refreshes are spread evenly needs a fifteenth of this. Ten thousand refreshes that
/// jitter spreads over half of the default refresh window, two and a half minutes, need two thirds:
/// 67 a second.
pub(crate) const LIMIT: u32 = 100;

/// The value of `Retry-After` in seconds. The limit applies to each second.
pub(crate) const RETRY_AFTER_SECONDS: u32 = 1;

/// The response time of the endpoint.
const LATENCY: Duration = Duration::from_millis(50);

/// A handle to the endpoint. Clones share the counters.
#[derive(Clone)]
pub(crate) struct Endpoint {
    started_at: Instant,
    seconds: Arc<Mutex<Vec<Second>>>,
}

/// The load on the endpoint in one second.
#[derive(Clone, Copy, Default)]
pub(crate) struct Second {
    pub(crate) requests: u32,
    pub(crate) refused: u32,
}

/// Returns the time at which a token was issued, since the start of the endpoint.
pub(crate) fn issued_at(token: &AccessToken) -> Duration {
    let millis = token.expose().parse();
    Duration::from_millis(millis.expect("tokens are their time of issue in milliseconds"))
}

type Reply = Response<Full<Bytes>>;

impl Endpoint {
    pub(crate) fn start() -> Self {
        Self {
            started_at: Instant::now(),
            seconds: Arc::default(),
        }
    }

    /// Returns an HTTP client that sends all requests to this endpoint.
    pub(crate) fn http_client(
        &self,
    ) -> impl Service<
        Request<Full<Bytes>>,
        Response = Reply,
        Error = BoxError,
        Future: Send + 'static,
    > + Clone
    + Send
    + 'static {
        let endpoint = self.clone();
        service_fn(move |_request| {
            let endpoint = endpoint.clone();
            async move {
                let reply = endpoint.reply()?;
                sleep(LATENCY).await;
                Ok(reply)
            }
        })
    }

    /// Returns the load in each second of the period since the start, and resets it.
    pub(crate) fn take_seconds(&self, period: Duration) -> Vec<Second> {
        let mut seconds = mem::take(&mut *self.lock());
        seconds.resize(whole_seconds(period), Second::default());
        seconds
    }

    fn reply(&self) -> Result<Reply, BoxError> {
        let now = self.started_at.elapsed();
        if self.count(whole_seconds(now)) > LIMIT {
            let refusal = Response::builder()
                .status(StatusCode::TOO_MANY_REQUESTS)
                .header(RETRY_AFTER, RETRY_AFTER_SECONDS)
                .body(Full::default())?;
            return Ok(refusal);
        }
        let (token, lifetime) = (now.as_millis(), TOKEN_LIFETIME.as_secs());
        let body = format!(r#"{{"access_token":"{token}","expires_in":"{lifetime}"}}"#);
        Ok(Response::new(Full::from(body)))
    }

    /// Counts a request and returns the number of requests in its second so far.
    fn count(&self, second: usize) -> u32 {
        let mut seconds = self.lock();
        if seconds.len() <= second {
            seconds.resize(second + 1, Second::default());
        }
        let second = &mut seconds[second];
        second.requests += 1;
        second.refused = second.requests.saturating_sub(LIMIT);
        second.requests
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Second>> {
        self.seconds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
