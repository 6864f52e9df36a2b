use std::{
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::runtime::Handle;
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
///     .deadline(Duration::from_secs(20))
///     .attempt_timeout(Duration::from_secs(4))
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
    /// Names the cache in errors, spans and events. Default: no name.
    ///
    /// A program with several caches can then tell which one failed. The name isn't sent.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower::{BoxError, service_fn};
    /// # use tower_client_credentials::{AccessToken, Error, TokenRequest};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use tower_client_credentials::TokenCache;
    ///
    /// # let token_service = service_fn(|_: TokenRequest| async {
    /// #     Err::<AccessToken, BoxError>(Error::permanent("the tenant is disabled").into())
    /// # });
    /// let cache = TokenCache::builder().name("orders").build(token_service);
    /// let error = cache.token().await.unwrap_err();
    ///
    /// assert_eq!(error.cache_name(), Some("orders"));
    /// assert_eq!(error.to_string(), "cache \"orders\": token service failed");
    /// # }
    /// ```
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.settings.name = Some(name.into());
        self
    }

    /// Names the runtime that token requests run on. Default: the caller's.
    ///
    /// With a named runtime, threads without a runtime and futures that another executor polls can get
    /// tokens, too. The runtime must have timers, and something must drive it: either it has several
    /// threads, or a thread blocks on it. If it shuts down, callers without a usable token get an
    /// error.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower::{BoxError, service_fn};
    /// # use tower_client_credentials::{AccessToken, TokenRequest};
    /// # fn main() -> Result<(), BoxError> {
    /// # let token_service = service_fn(|_: TokenRequest| async {
    /// #     Ok::<_, BoxError>(AccessToken::new("token-1")?)
    /// # });
    /// use tower_client_credentials::TokenCache;
    ///
    /// let runtime = tokio::runtime::Builder::new_multi_thread()
    ///     .worker_threads(1)
    ///     .enable_all()
    ///     .build()?;
    /// let cache = TokenCache::builder()
    ///     .runtime(runtime.handle().clone())
    ///     .build(token_service);
    ///
    /// // This thread is not part of the runtime.
    /// let token = cache.blocking_token()?;
    /// assert_eq!(token.expose(), "token-1");
    /// # Ok(())
    /// # }
    /// ```
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.settings.runtime = Some(runtime);
        self
    }

    /// Sets the maximum number of unused tokens in the cache. Default: 10,000.
    ///
    /// See [`TokenCache::with_parameters`]. A token that is in use isn't evicted, so more tokens than
    /// this can be in use at the same time. The token of the cache's own
    /// [parameters](Self::parameters) doesn't count.
    pub fn max_tokens(mut self, tokens: NonZeroUsize) -> Self {
        self.settings.max_tokens = tokens;
        self
    }

    /// Sets how long the cache keeps an unused token. Default: 1 hour.
    ///
    /// The cache has no task that looks for such tokens. It looks when a token request completes, and
    /// when the first call with other parameters comes.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.idle_timeout = timeout;
        self
    }

    /// Sets how many token requests may be under way at the same time. Default: 64.
    ///
    /// Others wait, for at most twice the [`deadline`](Self::deadline). The deadline of a token request
    /// starts when it no longer waits.
    pub fn max_token_requests(mut self, requests: NonZeroUsize) -> Self {
        self.settings.max_token_requests = requests;
        self
    }

    /// Sets the parameters of the token requests. Default: none.
    pub fn parameters(mut self, parameters: TokenParameters) -> Self {
        self.settings.parameters = parameters;
        self
    }

    /// Sets how long before its expiry a token is due for refresh. Default: 5 minutes.
    ///
    /// The window is limited to a fifth of the token's lifetime, so that short-lived tokens aren't
    /// refreshed all the time.
    pub fn refresh_window(mut self, window: Duration) -> Self {
        self.settings.timing.refresh_window = window;
        self
    }

    /// Sets how long before its stated expiry a token counts as expired. Default: 10 seconds.
    ///
    /// The margin allows for transit times and clock differences. It is limited to a tenth of the
    /// token's lifetime.
    pub fn expiry_margin(mut self, margin: Duration) -> Self {
        self.settings.timing.expiry_margin = margin;
        self
    }

    /// Sets the maximum random delay of a refresh, as a share of the refresh window. Default: 0.5.
    ///
    /// Each token gets its own random delay, so that clients that start at the same time don't
    /// refresh at the same time. Values are clamped to the range from 0 to 1, and `NaN` counts as
    /// 0.
    pub fn jitter(mut self, share: f64) -> Self {
        // `clamp` would return `NaN`.
        self.settings.timing.jitter = if share.is_nan() {
            0.0
        } else {
            share.clamp(0.0, 1.0)
        };
        self
    }

    /// Sets the lifetime of tokens if the server doesn't state one. Default: 5 minutes.
    ///
    /// Servers may omit the lifetime (RFC 6749 §5.1). Their documentation usually says how long a
    /// token is valid.
    pub fn default_lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.timing.default_lifetime = lifetime;
        self
    }

    /// Sets how long a token request may take, including its retries. Default: 30 seconds.
    ///
    /// Both clocks count: if the machine is suspended for longer than the deadline, the token request
    /// ends within a second after the machine wakes up. The same happens if the wall clock is set
    /// forward by more than what is left of the deadline.
    ///
    /// If the runtime of a token request stops making progress, callers on other runtimes wait
    /// until one second after the deadline and then start another token request. A caller starts up
    /// to three more token requests if its own are lost.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.limits.deadline = deadline;
        self
    }

    /// Sets how long an attempt of a token request may take. Default: 10 seconds.
    ///
    /// An attempt without an answer fails as a timeout, and the next attempt follows. The
    /// [`deadline`](Self::deadline) limits all attempts together, so there is only one attempt if this
    /// limit isn't shorter than the deadline. With a limit of zero, only token services that answer at
    /// once succeed.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.settings.limits.attempt_timeout = timeout;
        self
    }

    /// Sets the maximum number of attempts of a token request. Default: 3.
    ///
    /// Only transient errors cause another attempt. The value 0 counts as 1.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.settings.limits.max_attempts = attempts;
        self
    }

    /// Sets the maximum pause before the second attempt of a token request. Default: 200 ms.
    ///
    /// The maximum doubles with each further attempt. The actual pause is random, between zero and
    /// the maximum ("full jitter").
    pub fn retry_backoff(mut self, first: Duration) -> Self {
        self.settings.limits.retry_backoff = first;
        self
    }

    /// Sets the pause after a failed token request. Default: 1 second, doubling up to 60 seconds.
    ///
    /// During the pause, callers that need a token get the error of the failed token request at
    /// once, and no token request is sent. The first pause lasts `first`. With each further
    /// failure, the pause doubles, up to `longest`. Each pause varies at random by up to 20 %.
    ///
    /// If the server asks for a longer pause, the pause is at least that long. See
    /// [`max_retry_after`](Self::max_retry_after). [`TokenCache::reset`] ends the pause.
    pub fn failure_backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.settings.backoff = Backoff { first, longest };
        self
    }

    /// Sets the longest `Retry-After` that is obeyed. Default: 5 minutes.
    ///
    /// A longer time is implausible: it is often a Unix time, or a number of milliseconds. It is
    /// ignored, and the pause is that of [`failure_backoff`](Self::failure_backoff). The
    /// `Retry-After` of a permanent error is ignored as well. Values above one day count as one day.
    ///
    /// This limit also applies to the pauses within a token request, between its attempts. There, the
    /// pause that replaces an ignored time is that of [`retry_backoff`](Self::retry_backoff).
    ///
    /// A `Retry-After` that is obeyed is extended by a random time of up to half its length, so that
    /// clients that were refused at the same time don't return at the same time.
    pub fn max_retry_after(mut self, longest: Duration) -> Self {
        self.settings.limits.max_retry_after = longest;
        self
    }

    /// Sets the longest pause that is enforced between two renewals. Default: 30 seconds.
    ///
    /// How soon a rejected token is renewed depends on whether the API has accepted the token
    /// before, with a 2xx response:
    ///
    /// * If so, the token is renewed at once. Between such renewals, 1 second passes, then
    ///   2 seconds and so on, up to the cool-down. The pauses start over after 60 seconds without a
    ///   rejection.
    /// * Otherwise, the token is renewed if no renewal ended within the cool-down. So an API that
    ///   rejects every token causes one renewal per cool-down.
    ///
    /// Until the renewal, a rejected token stays in use, and callers get the API's rejection.
    pub fn cool_down(mut self, cool_down: Duration) -> Self {
        self.settings.cool_down = cool_down;
        self
    }

    /// Refreshes the token even if no calls use it. By default, only calls cause a refresh.
    ///
    /// Use this option if calls are rare and mustn't wait. A background task refreshes the token.
    /// The first call that requests a token starts this task on its own runtime, so call
    /// [`TokenCache::token`] at startup. The task ends when the last handle of the cache is
    /// dropped. If its runtime shuts down, the next call that needs a token starts the task again.
    ///
    /// At least one second passes between the end of a token request and the next refresh. For a
    /// token that lives for less than two seconds, calls may therefore have to wait. Timers don't
    /// run while a machine is suspended, so the task checks both clocks once a minute. A call
    /// within a minute after the machine wakes up may have to wait.
    ///
    /// The task doesn't renew a token that the API has rejected before the token is due for refresh. The
    /// rejected call renews it, or the next call does.
    ///
    /// A token of [other parameters](TokenCache::with_parameters) is kept warm, too, until it is
    /// evicted. Its refreshes don't count as use.
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

    /// Replaces the wall clock. Default: [`SystemTime::now`].
    ///
    /// A token expires as soon as either of two clocks says so: Tokio's monotonic clock, which
    /// doesn't run while a machine is suspended, or the wall clock, which jumps when it is set.
    /// Tests control the monotonic clock with `tokio::time::pause`, and the wall clock with this
    /// option.
    ///
    /// A service calls this function for each request. It reads the default wall clock at most once
    /// per millisecond.
    ///
    /// If the function panics in a call, the panic reaches the caller. If it panics in the task of a
    /// token request, the token request fails, and callers get an error.
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
