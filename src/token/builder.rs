use std::time::{Duration, SystemTime};

use tower::{BoxError, Service};

use super::{
    AccessToken, TokenCache, TokenParameters, TokenRequest,
    schedule::Backoff,
    settings::{RefreshMode, Settings},
};
use crate::clock::Clock;

/// Builds a [`TokenCache`] with options. The defaults suit most servers.
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
///     // What to request.
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
    /// Sets the parameters of the token requests. Default: none.
    pub fn parameters(mut self, parameters: TokenParameters) -> Self {
        self.settings.parameters = parameters;
        self
    }

    /// Sets how long before its expiry a token is due for refresh. Default: 5 minutes.
    ///
    /// The window is never more than a fifth of the token's lifetime, so that short-lived tokens
    /// aren't refreshed all the time.
    pub fn refresh_window(mut self, window: Duration) -> Self {
        self.settings.timing.refresh_window = window;
        self
    }

    /// Sets how long before its stated end a token counts as expired. Default: 10 seconds.
    ///
    /// The margin allows for transit times and clock differences. It is never more than a tenth of
    /// the token's lifetime.
    pub fn expiry_margin(mut self, margin: Duration) -> Self {
        self.settings.timing.expiry_margin = margin;
        self
    }

    /// Sets the share of the refresh window by which a refresh may be delayed at random. Default: 0.5.
    ///
    /// The delay is drawn once per token, so that clients that started together don't refresh
    /// together. Values are clamped to the range from 0 to 1, and `NaN` counts as 0.
    pub fn jitter(mut self, share: f64) -> Self {
        // `clamp` would return `NaN`.
        self.settings.timing.jitter = if share.is_nan() {
            0.0
        } else {
            share.clamp(0.0, 1.0)
        };
        self
    }

    /// Sets the lifetime to assume for tokens whose server doesn't state one. Default: 5 minutes.
    ///
    /// Servers may omit it (RFC 6749 §5.1). Their documentation says how long they accept a token.
    pub fn default_lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.timing.default_lifetime = lifetime;
        self
    }

    /// Sets how long a token request may take, including its retries. Default: 30 seconds.
    ///
    /// If nobody drives the runtime of a token request, callers on other runtimes give it up one
    /// second after its deadline and start another. A caller whose own token request is lost starts
    /// up to three more.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.limits.deadline = deadline;
        self
    }

    /// Sets how many times a token request is attempted when it fails with transient errors.
    /// Default: 3. The value 0 counts as 1.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.settings.limits.max_attempts = attempts;
        self
    }

    /// Sets the longest pause before the second attempt of a token request. Default:
    /// 200 milliseconds.
    ///
    /// The longest pause doubles with each attempt. The actual pause is drawn at random between zero
    /// and that ("full jitter").
    pub fn retry_backoff(mut self, first: Duration) -> Self {
        self.settings.limits.retry_backoff = first;
        self
    }

    /// Sets how long all callers get the error of a failed token request, without another one being
    /// sent. Default: 1 second after the first failure, doubling up to 60 seconds.
    ///
    /// Each pause varies by up to 20 % at random. A longer `Retry-After` from the server is obeyed, up
    /// to an hour. Up to half as long again is added to it at random, so that clients that were
    /// refused together don't return together.
    pub fn failure_backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.settings.backoff = Backoff { first, longest };
        self
    }

    /// Sets how long after a renewal further rejections cause no other renewal. Default: 30 seconds.
    pub fn cool_down(mut self, cool_down: Duration) -> Self {
        self.settings.cool_down = cool_down;
        self
    }

    /// Refreshes the token even while no call uses it. Default: only when a call uses it.
    ///
    /// For clients whose calls are rare and mustn't wait. The first call that requests a token starts
    /// this (call [`TokenCache::token`] at startup), as a task on the runtime of that call. The task
    /// ends with the last handle of the cache. If its runtime shuts down, the next call that needs a
    /// token starts it again.
    ///
    /// At least a second passes between the end of a token request and the next refresh, so a token
    /// that lives for less than two seconds may be missing at times. Timers stand still while a
    /// machine is suspended. The task therefore checks both clocks once a minute, and a call within a
    /// minute of the wake-up may wait.
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
    /// A token expires as soon as either clock says so: tokio's monotonic clock, which stands still
    /// while a machine is suspended, or the wall clock, which jumps when it is set. Tests control the
    /// first with `tokio::time::pause`, and the second with this option.
    ///
    /// The function is called for each call that needs a token. The system's wall clock is read at
    /// most once per millisecond.
    ///
    /// # Examples
    ///
    /// A test in which the machine is suspended for longer than the token lives:
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

    /// Creates the cache. The first token request is sent when a token is needed.
    pub fn build<T>(self, token_service: T) -> TokenCache
    where
        T: Service<TokenRequest, Response = AccessToken> + Clone + Send + 'static,
        T::Error: Into<BoxError>,
        T::Future: Send + 'static,
    {
        TokenCache::with_settings(token_service, self.settings)
    }
}
