use std::time::{Duration, SystemTime};

use tower::{BoxError, Service};

use super::{
    AccessToken, TokenCache, TokenParameters, TokenRequest,
    schedule::Backoff,
    settings::{RefreshMode, Settings},
};
use crate::clock::Clock;

/// Sets up a [`TokenCache`]; every option has a default that fits most servers.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower::{BoxError, service_fn};
/// use tower_client_credentials::{AccessToken, TokenCache, TokenParameters, TokenRequest};
///
/// let token_service = service_fn(|_request: TokenRequest| async {
///     Ok::<_, BoxError>(AccessToken::new("token-1")?)
/// });
///
/// let cache = TokenCache::builder()
///     // What to ask for.
///     .parameters(TokenParameters::default().with_scope("orders.read"))
///     // When to refresh.
///     .refresh_window(Duration::from_secs(60))
///     .expiry_margin(Duration::from_secs(5))
///     .jitter(0.8)
///     .default_lifetime(Duration::from_secs(3600))
///     // How long to try.
///     .deadline(Duration::from_secs(10))
///     .max_attempts(5)
///     .retry_backoff(Duration::from_millis(100))
///     // When to try again.
///     .failure_backoff(Duration::from_secs(2), Duration::from_secs(30))
///     .cool_down(Duration::from_secs(10))
///     .build(token_service);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until it is built"]
pub struct TokenCacheBuilder {
    settings: Settings,
}

impl TokenCacheBuilder {
    /// Sets what tokens are asked to be good for. Default: nothing in particular.
    pub fn parameters(mut self, parameters: TokenParameters) -> Self {
        self.settings.parameters = parameters;
        self
    }

    /// Sets how long before a token expires its refresh may start. Default: 5 minutes.
    ///
    /// Never more than a fifth of the token's lifetime, whatever is set, so that short-lived tokens
    /// are used rather than refreshed all the time.
    pub fn refresh_window(mut self, window: Duration) -> Self {
        self.settings.timing.window = window;
        self
    }

    /// Sets how long before its stated end a token counts as expired. Default: 10 seconds.
    ///
    /// Makes up for transit time and for clocks that differ. Never more than a tenth of the token's
    /// lifetime, whatever is set.
    pub fn expiry_margin(mut self, margin: Duration) -> Self {
        self.settings.timing.margin = margin;
        self
    }

    /// Sets which share of the window a refresh may be put off by, at random. Default: 0.5.
    ///
    /// Drawn once per token, so that clients that started together do not refresh together. Values
    /// outside 0 to 1 count as the nearer of the two, `NaN` as 0.
    pub fn jitter(mut self, share: f64) -> Self {
        // What is no number is no jitter.
        self.settings.timing.jitter = if share.is_nan() {
            0.0
        } else {
            share.clamp(0.0, 1.0)
        };
        self
    }

    /// Sets how long a token is taken to live when the server does not say. Default: 5 minutes.
    ///
    /// RFC 6749 §5.1 only recommends that servers say so. For how long the server really accepts
    /// such a token is in its documentation.
    pub fn default_lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.timing.default_lifetime = lifetime;
        self
    }

    /// Sets how long one flight may take, its retries included. Default: 30 seconds.
    ///
    /// A flight whose runtime nobody drives is given up a second later by those who wait for it on
    /// other runtimes, and started anew there. A caller whose own flights are lost starts three more.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.limits.deadline = deadline;
        self
    }

    /// Sets how often one flight asks the token service while it fails with transient errors.
    /// Default: 3 times; 0 counts as 1.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.settings.limits.max_attempts = attempts;
        self
    }

    /// Sets the longest pause before the second attempt of a flight. Default: 200 milliseconds.
    ///
    /// It doubles with every further attempt; the pause that is made is drawn at random between
    /// nothing and that ("full jitter").
    pub fn retry_backoff(mut self, first: Duration) -> Self {
        self.settings.limits.retry_backoff = first;
        self
    }

    /// Sets how long a failure is shared before the token service is asked again. Default: 1 second
    /// after the first failed flight, doubling to 60 seconds.
    ///
    /// Each pause is changed by up to 20 % at random. A longer `Retry-After` of the server is obeyed,
    /// up to an hour, and up to half as long again is added at random: a fleet that was refused
    /// together must not come back together.
    pub fn failure_backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.settings.backoff = Backoff { first, longest };
        self
    }

    /// Sets for how long after a renewal no further rejection causes another. Default: 30 seconds.
    pub fn cool_down(mut self, cool_down: Duration) -> Self {
        self.settings.cool_down = cool_down;
        self
    }

    /// Refreshes the token in time even while nobody uses it. Default: only when it is used.
    ///
    /// For clients whose calls are rare and must not wait. Begins with the first token that somebody
    /// asks for (call [`TokenCache::token`] at start), as a task on the runtime of that call, and ends
    /// with the last handle of the cache. If that runtime goes away, the next call that needs a
    /// token begins anew. No flight starts sooner than a second after the last one landed, so tokens
    /// that live for less than two seconds are not kept warm all the time. Timers stand still while a
    /// machine is suspended, so both clocks are looked at once a minute: a call within a minute of the
    /// wake-up may wait.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_client_credentials::{AccessToken, TokenRequest};
    /// # use tower::{BoxError, service_fn};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// # let token_service = service_fn(|_: TokenRequest| async {
    /// #     Ok::<_, BoxError>(AccessToken::new("token-1")?)
    /// # });
    /// use tower_client_credentials::TokenCache;
    ///
    /// let cache = TokenCache::builder().keep_warm().build(token_service);
    /// cache.token().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn keep_warm(mut self) -> Self {
        self.settings.refresh_mode = RefreshMode::KeepWarm;
        self
    }

    /// Sets how the wall clock is read. Default: [`SystemTime::now`].
    ///
    /// A token expires when tokio's monotonic clock says so, or when the wall clock does: the first
    /// stands still while a machine is suspended, the second jumps when somebody sets it. In tests,
    /// `tokio::time::pause` drives the first, and this the second.
    ///
    /// A function that is set here is asked at each call. The system's wall clock is asked once in a
    /// millisecond of the monotonic clock at most.
    ///
    /// # Examples
    ///
    /// A test that shows a machine which slept longer than the token lives:
    ///
    /// ```
    /// use std::{sync::{Arc, Mutex}, time::{Duration, SystemTime}};
    /// # use tower::{BoxError, service_fn};
    /// # use tower_client_credentials::{AccessToken, TokenCache, TokenRequest};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// # let number = Arc::new(Mutex::new(0));
    /// # let token_service = service_fn(move |_: TokenRequest| {
    /// #     let number = number.clone();
    /// #     async move {
    /// #         let mut number = number.lock().unwrap();
    /// #         *number += 1;
    /// #         let token = AccessToken::new(format!("token-{number}"))?;
    /// #         Ok::<_, BoxError>(token.with_lifetime(Duration::from_secs(1800)))
    /// #     }
    /// # });
    /// let wall = Arc::new(Mutex::new(SystemTime::UNIX_EPOCH));
    /// let cache = TokenCache::builder()
    ///     .wall_clock({
    ///         let wall = wall.clone();
    ///         move || *wall.lock().unwrap()
    ///     })
    ///     .build(token_service);
    /// assert_eq!(cache.token().await?.expose(), "token-1");
    ///
    /// *wall.lock().unwrap() += Duration::from_secs(3600);
    /// assert_eq!(cache.token().await?.expose(), "token-2");
    /// # Ok(())
    /// # }
    /// ```
    pub fn wall_clock(
        mut self,
        wall_clock: impl Fn() -> SystemTime + Send + Sync + 'static,
    ) -> Self {
        self.settings.clock = Clock::with_wall(wall_clock);
        self
    }

    /// Makes the cache. Nothing is asked of the token service until a token is needed.
    pub fn build<T>(self, token_service: T) -> TokenCache
    where
        T: Service<TokenRequest, Response = AccessToken> + Clone + Send + 'static,
        T::Error: Into<BoxError>,
        T::Future: Send + 'static,
    {
        TokenCache::with_settings(token_service, self.settings)
    }
}
