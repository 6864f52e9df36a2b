//! The token endpoint that the whole fleet shares: LinkedIn's reply over HTTP, and a rate limit.

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

/// What LinkedIn's tokens live.
pub(crate) const TOKEN_LIFE: Duration = Duration::from_secs(30 * 60);

/// Token requests that are answered in each second; the others get 429.
///
/// Fifteen times what the fleet needs when it is evenly spread, and half more than what it needs
/// when ten thousand refreshes are spread over the two and a half minutes that jitter makes of the
/// default window: 67 a second.
pub(crate) const LIMIT: u32 = 100;

/// What `Retry-After` says, in seconds: requests are counted anew in each.
pub(crate) const REFUSED_FOR: u32 = 1;

/// How long the endpoint thinks.
const LATENCY: Duration = Duration::from_millis(50);

/// A handle; clones share the counters.
#[derive(Clone)]
pub(crate) struct Endpoint {
    opened_at: Instant,
    seconds: Arc<Mutex<Vec<Second>>>,
}

/// What came to the endpoint within one second.
#[derive(Clone, Copy, Default)]
pub(crate) struct Second {
    pub(crate) requests: u32,
    pub(crate) refused: u32,
}

/// When this token was issued, counted from the opening: its text says so.
pub(crate) fn issued_at(token: &AccessToken) -> Duration {
    let millis = token.expose().parse();
    Duration::from_millis(millis.expect("the endpoint issues numbers"))
}

type Reply = Response<Full<Bytes>>;

impl Endpoint {
    pub(crate) fn open() -> Self {
        Self {
            opened_at: Instant::now(),
            seconds: Arc::default(),
        }
    }

    /// An HTTP client whose requests all come here.
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
                let reply = endpoint.answer()?;
                sleep(LATENCY).await;
                Ok(reply)
            }
        })
    }

    /// What came in each second of the time since the endpoint was opened.
    pub(crate) fn close(&self, time: Duration) -> Vec<Second> {
        let mut seconds = mem::take(&mut *self.lock());
        seconds.resize(whole_seconds(time), Second::default());
        seconds
    }

    fn answer(&self) -> Result<Reply, BoxError> {
        let open_for = self.opened_at.elapsed();
        if self.count(whole_seconds(open_for)) > LIMIT {
            let refusal = Response::builder()
                .status(StatusCode::TOO_MANY_REQUESTS)
                .header(RETRY_AFTER, REFUSED_FOR)
                .body(Full::default())?;
            return Ok(refusal);
        }
        let (token, life) = (open_for.as_millis(), TOKEN_LIFE.as_secs());
        let body = format!(r#"{{"access_token":"{token}","expires_in":"{life}"}}"#);
        Ok(Response::new(Full::from(body)))
    }

    /// Counts a request; returns how many there were in its second so far.
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
