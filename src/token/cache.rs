use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    time::Instant,
};
use tower::{BoxError, Service};

use super::{
    AccessToken, Rejection, TokenCacheBuilder, TokenParameters, TokenRequest,
    entry::{Awaited, CachedToken, Entry, FlightResult, Join},
    flight::{SharedTokenService, Waited},
    key::{Common, Key},
    key_map::KeyMap,
    schedule::Freshness,
    settings::Settings,
    task,
};
use crate::{
    Error,
    clock::{Clock, Moment},
    error::Kind,
    telemetry,
};

/// Holds access tokens and refreshes them before they expire.
///
/// This is a handle to one token of a cache, at first that of the cache's own
/// [parameters](TokenCacheBuilder::parameters). Clones are cheap and share the token.
/// [`with_parameters`](Self::with_parameters) returns a handle to another token. You can use a handle
/// without the layer, for example for the metadata of a gRPC call, for a WebSocket handshake, or to get
/// the first token at startup.
///
/// Any number of concurrent callers share one token request. The token request runs in its own
/// Tokio task, so dropping a caller doesn't cancel it. Between token requests, no task runs, unless
/// the token is [kept warm](TokenCacheBuilder::keep_warm). No task outlives the last handle. A call
/// through the layer holds a handle until it returns its response.
///
/// # Examples
///
/// ```
/// use tower::{BoxError, service_fn};
/// use tower_client_credentials::{AccessToken, TokenCache, TokenRequest};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let cache = TokenCache::new(service_fn(|_request: TokenRequest| async {
///     Ok::<_, BoxError>(AccessToken::new("token-1")?)
/// }));
///
/// let token = cache.token().await?;
/// assert_eq!(token.header_value(), "Bearer token-1");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TokenCache {
    /// The key of this handle.
    key: Arc<Key>,
    keys: Arc<Keys>,
}

/// All keys of a cache.
pub(super) struct Keys {
    /// The key of the cache's own parameters, which is never evicted.
    own: Arc<Key>,
    others: KeyMap<TokenParameters, Key>,
    /// Closed when the last handle is dropped.
    handles: watch::Sender<()>,
}

/// A future that waits for a token. Boxed, because only calls without a usable token need one.
pub(crate) type Acquiring = Pin<Box<dyn Future<Output = Acquired> + Send>>;

/// A token or an error.
pub(crate) struct Acquired {
    pub(crate) result: FlightResult,
    /// How long the call waited for a flight; `None` if it didn't have to.
    pub(crate) waited: Option<Duration>,
}

/// The current token, if it may be used, and the monotonic time up to which it needs no other look as
/// long as the cache publishes no change.
#[derive(Clone)]
pub(super) struct Look {
    pub(super) token: Option<Arc<CachedToken>>,
    pub(super) valid_until: Instant,
}

impl TokenCache {
    /// Creates a cache with the default options.
    ///
    /// A token service is any `Service<TokenRequest, Response = AccessToken>`, such as a
    /// [`TokenEndpoint`](crate::TokenEndpoint) or a [`service_fn`](tower::service_fn).
    pub fn new<T>(token_service: T) -> Self
    where
        T: Service<TokenRequest, Response = AccessToken> + Clone + Send + 'static,
        T::Error: Into<BoxError>,
        T::Future: Send + 'static,
    {
        Self::builder().build(token_service)
    }

    /// Returns a builder that creates a cache with other options.
    pub fn builder() -> TokenCacheBuilder {
        TokenCacheBuilder::default()
    }

    /// Returns a token that can be used now.
    ///
    /// If the current token is fresh or due for refresh, this method returns it immediately. If it
    /// is due for refresh, a refresh also starts in the background. Otherwise, this method waits
    /// for the active token request, or starts one. Call this method at startup to have a token
    /// before the first request.
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
    /// let cache = TokenCache::new(token_service);
    /// match cache.token().await {
    ///     Ok(token) => println!("lifetime: {:?}", token.lifetime()),
    ///     Err(error) => println!("{error}; next attempt in {:?}", error.retry_after()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Fails if the token request fails, unless there is a token that the API hasn't rejected and
    /// whose stated end hasn't passed. All waiting callers get the same error. Later callers get it
    /// until the back-off ends (see [`Error::retry_after`]). Also fails if the cache holds no
    /// usable token and the caller isn't on a Tokio runtime with timers enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future doesn't cancel or delay the token request that it waits for.
    pub async fn token(&self) -> Result<AccessToken, Error> {
        if let Some(cached) = self.current_at(&self.key.now()) {
            return Ok(cached.token().clone());
        }
        let cached = self.clone().acquire(None).await.result?;
        Ok(cached.token().clone())
    }

    /// Reports that the API rejected `token`, so that later callers get another one.
    ///
    /// This method doesn't send a token request. The next call to [`token`](Self::token) or
    /// [`refresh`](Self::refresh) does. If the cache already holds a newer token, or if the cool-down
    /// or the back-off hasn't ended, nothing changes. The returned [`Rejection`] describes the outcome.
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
    /// use tower_client_credentials::{Rejection, TokenCache};
    ///
    /// let cache = TokenCache::new(token_service);
    /// let token = cache.token().await?;
    /// // The server rejected the token in a WebSocket handshake.
    /// let another = match cache.reject(&token) {
    ///     // Waits for the renewal, however long it takes.
    ///     Rejection::Withheld | Rejection::Renewing => Some(cache.refresh().await?),
    ///     Rejection::Replaced => Some(cache.token().await?),
    ///     _ => None,
    /// };
    /// # assert!(another.is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub fn reject(&self, token: &AccessToken) -> Rejection {
        let now = self.key.now();
        let update = self
            .key
            .update_watching_withheld(|entry| entry.reject(token, &now, self.key.settings()));
        let name = self.key.name();
        telemetry::rejected(name, update.result.label(), update.newly_withheld);
        update.result
    }

    /// Reports that the API accepted `token`.
    ///
    /// How soon a rejected token is renewed depends on whether the API has accepted it before; see
    /// [`TokenCacheBuilder::cool_down`]. The layer reports this itself. Call this method if you use the
    /// token without the layer, for example after a successful WebSocket handshake. It is cheap.
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
    /// # let handshake_succeeded = true;
    /// use tower_client_credentials::TokenCache;
    ///
    /// let cache = TokenCache::new(token_service);
    /// let token = cache.token().await?;
    /// if handshake_succeeded {
    ///     cache.accept(&token);
    /// } else {
    ///     cache.reject(&token);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn accept(&self, token: &AccessToken) {
        if let Some(cached) = self.last_token().filter(|last| last.token().is_same(token)) {
            cached.note_accepted();
        }
    }

    /// Forgets everything about the token: the token itself, rejections, the cool-down, and the
    /// back-off after a failure.
    ///
    /// The next caller starts a token request. Call this method when something was corrected and
    /// callers shouldn't wait for a pause to end, for example after an operator has changed the
    /// client's permissions.
    ///
    /// A token request that is already under way serves only the calls that already wait for it. They
    /// share its token or its failure, but the cache doesn't keep its token, and no pause follows its
    /// failure. If no call waits for the token request, it is cancelled.
    ///
    /// If the token is [kept warm](TokenCacheBuilder::keep_warm), another one is requested within a
    /// minute, even without a call.
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
    /// let cache = TokenCache::new(token_service);
    /// cache.token().await?;
    /// cache.reset();
    ///
    /// // Sends a token request.
    /// cache.token().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn reset(&self) {
        drop(self.key.update(Entry::reset));
    }

    /// Returns the current token, or `None` if there is none that may be used now. Never waits.
    ///
    /// Without a usable token, this method starts a token request, unless one is under way or a pause
    /// after a failure or a renewal hasn't ended. The token request runs on the
    /// [named runtime](TokenCacheBuilder::runtime), or on the caller's. Outside a runtime, none starts.
    ///
    /// Use it where code can't wait, such as in a synchronous interceptor.
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
    /// let cache = TokenCache::new(token_service);
    /// assert!(cache.current().is_none());
    ///
    /// // Waits for the token request that `current` has started.
    /// cache.token().await?;
    /// assert!(cache.current().is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub fn current(&self) -> Option<AccessToken> {
        let cached = self.current_at(&self.key.now()).or_else(|| {
            let Some(runtime) = self.key.runtime() else {
                return self.fall_back(None, Kind::NoRuntime).ok();
            };
            match self.join(None, &runtime) {
                NextStep::Return(result) => result.ok(),
                NextStep::Await(_) => None,
            }
        });
        Some(cached?.token().clone())
    }

    /// Returns a token that can be used now, and blocks the thread while it waits for one.
    ///
    /// For threads beside a [named runtime](TokenCacheBuilder::runtime), such as those of a batch
    /// exporter. On a thread of a runtime, use [`token`](Self::token).
    ///
    /// # Errors
    ///
    /// Fails like [`token`](Self::token), or if there is no usable token, no runtime was named, and the
    /// thread doesn't belong to one.
    ///
    /// # Panics
    ///
    /// Panics if it has to wait on a thread that runs asynchronous tasks.
    pub fn blocking_token(&self) -> Result<AccessToken, Error> {
        if let Some(cached) = self.current_at(&self.key.now()) {
            return Ok(cached.token().clone());
        }
        match self.key.runtime() {
            Some(runtime) => runtime.block_on(self.token()),
            None => {
                let cached = self.fall_back(None, Kind::NoRuntime);
                let name = self.key.settings().name.as_ref();
                let cached = cached.map_err(|error| error.in_cache(name))?;
                Ok(cached.token().clone())
            }
        }
    }

    /// Requests a new token, even if the current one can be used or a pause hasn't ended.
    ///
    /// If a token request is under way, this method waits for that one. All callers that wait share
    /// its result. Until there is a result, other callers use the current token.
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
    /// let cache = TokenCache::new(token_service);
    /// cache.token().await?;
    ///
    /// // The client got another scope, which only new tokens have.
    /// let token = cache.refresh().await?;
    /// # drop(token);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Fails if the token request fails. The current token stays in use.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future doesn't cancel or delay the token request.
    pub async fn refresh(&self) -> Result<AccessToken, Error> {
        let name = self.key.settings().name.as_ref();
        let result = self.wait_for_refresh().await;
        let cached = result.map_err(|error| error.in_cache(name))?;
        Ok(cached.token().clone())
    }

    /// Makes `token` the current token, as if a token request had returned it.
    ///
    /// Use it for a token that an earlier process has kept. Set its end with
    /// [`AccessToken::with_expires_at`]. A token that has expired isn't used. If a token request is
    /// under way, its token replaces `token`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_client_credentials::TokenRequest;
    /// # use tower::{BoxError, service_fn};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// # let token_service = service_fn(|_: TokenRequest| async {
    /// #     Err::<AccessToken, BoxError>("not needed".into())
    /// # });
    /// use std::time::{Duration, SystemTime};
    /// use tower_client_credentials::{AccessToken, TokenCache};
    ///
    /// let cache = TokenCache::new(token_service);
    /// let expires_at = SystemTime::now() + Duration::from_secs(600);
    /// cache.seed(AccessToken::new("token-1")?.with_expires_at(expires_at));
    ///
    /// assert_eq!(cache.token().await?.expose(), "token-1");
    /// # Ok(())
    /// # }
    /// ```
    pub fn seed(&self, token: AccessToken) {
        let now = self.key.now();
        let settings = self.key.settings();
        self.key.update(|entry| entry.seed(token, &now, settings));
    }

    /// Returns the parameters of this handle's token requests.
    pub fn parameters(&self) -> &TokenParameters {
        &self.key.parameters
    }

    /// Returns a handle to another token of the same cache: the one for `parameters`.
    ///
    /// The parameters replace those of this handle, and its tenant. Handles with equal parameters share
    /// a token. Each token has its own refreshes, rejections and failures. All of them share the token
    /// service and the options.
    ///
    /// The cache keeps a token while somebody uses it or holds its handle, and for a
    /// [while](TokenCacheBuilder::idle_timeout) after that, up to a
    /// [number](TokenCacheBuilder::max_tokens) of tokens.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_client_credentials::{AccessToken, TokenRequest};
    /// # use tower::{BoxError, service_fn};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// use tower_client_credentials::{TokenCache, TokenParameters};
    ///
    /// # let token_service = service_fn(|request: TokenRequest| async move {
    /// #     Ok::<_, BoxError>(AccessToken::new(request.parameters.scopes().join("+"))?)
    /// # });
    /// let orders = TokenCache::builder()
    ///     .parameters(TokenParameters::default().with_scope("orders.read"))
    ///     .build(token_service);
    /// let reports = orders.with_parameters(TokenParameters::default().with_scope("reports.read"));
    ///
    /// assert_ne!(orders.token().await?.expose(), reports.token().await?.expose());
    /// # Ok(())
    /// # }
    /// ```
    #[allow(
        clippy::needless_pass_by_value,
        reason = "most callers make the parameters for this call"
    )]
    pub fn with_parameters(&self, parameters: TokenParameters) -> Self {
        self.other(&parameters)
    }

    /// Returns the handle for these parameters.
    pub(crate) fn other(&self, parameters: &TokenParameters) -> Self {
        Self::of(self.keys.get(parameters), Arc::clone(&self.keys))
    }

    pub(super) fn with_settings<T>(token_service: T, settings: Settings) -> Self
    where
        T: Service<TokenRequest, Response = AccessToken> + Clone + Send + 'static,
        T::Error: Into<BoxError>,
        T::Future: Send + 'static,
    {
        telemetry::describe();
        let parameters = settings.parameters.clone();
        let others = KeyMap::new(settings.max_tokens, settings.idle_timeout);
        let places = settings
            .max_token_requests
            .get()
            .min(Semaphore::MAX_PERMITS);
        let common = Arc::new(Common {
            token_service: SharedTokenService::new(token_service),
            settings,
            places: Arc::new(Semaphore::new(places)),
        });
        let own = Arc::new(Key::new(parameters, common));
        let keys = Keys {
            own: Arc::clone(&own),
            others,
            handles: watch::Sender::new(()),
        };
        Self::of(own, Arc::new(keys))
    }

    pub(super) fn of(key: Arc<Key>, keys: Arc<Keys>) -> Self {
        Self { key, keys }
    }

    pub(super) fn key(&self) -> &Arc<Key> {
        &self.key
    }

    pub(super) fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// Returns the name of the cache, for events.
    pub(crate) fn name(&self) -> Option<&str> {
        self.key.name()
    }

    /// Returns the runtime on which tasks are spawned for this cache.
    pub(crate) fn runtime(&self) -> Option<Handle> {
        self.key.runtime()
    }

    /// Returns the token that was received last, whatever has become of it.
    pub(crate) fn last_token(&self) -> Option<Arc<CachedToken>> {
        let current = self.key.current();
        current.or_else(|| self.key.lock().last_token())
    }

    /// How often the current token has changed, to or from none included.
    #[inline]
    pub(super) fn edition(&self) -> u64 {
        self.key.edition()
    }

    /// Returns the token that may be used now, if there is one.
    pub(crate) fn usable(&self) -> Option<Arc<CachedToken>> {
        self.current_at(&self.key.now())
    }

    /// Looks at the current token with both clocks.
    pub(super) fn look(&self) -> Look {
        let now = self.key.now();
        let cached = self.current_at(&now);
        let in_step_until = self.key.settings().clock.in_step_until(&now);
        let valid_until = cached.as_ref().map_or(now.monotonic, |cached| {
            cached.fresh_until().min(in_step_until)
        });
        Look {
            token: cached,
            valid_until,
        }
    }

    /// Returns a token to send now for a call that got `token` a while ago, and whose token `rejected`
    /// was rejected before that.
    pub(crate) fn still_usable(
        &self,
        token: &Arc<CachedToken>,
        rejected: Option<&CachedToken>,
    ) -> Option<Arc<CachedToken>> {
        let now = self.key.now();
        let current = self.current_at(&now);
        let usable = current.or_else(|| self.key.still_usable(token, &now))?;
        (!rejected.is_some_and(|rejected| usable.is_same(rejected))).then_some(usable)
    }

    /// Rejects a token whose request isn't sent again, and renews it for the calls that follow.
    pub(crate) fn reject_and_renew(&self, token: &CachedToken) {
        if matches!(self.reject(token.token()), Rejection::Withheld) {
            self.renew_in_background();
        }
    }

    /// Renews a rejected token for later calls. Nobody waits for the renewal.
    pub(crate) fn renew_in_background(&self) {
        let Some(runtime) = self.key.runtime() else {
            return;
        };
        if let Join::Start(new_flight) = self.key.join(None) {
            task::spawn(self, new_flight, &runtime);
        }
    }

    /// Waits for a token that may be used and is not the `rejected` one.
    pub(crate) fn acquire(self, rejected: Option<Arc<CachedToken>>) -> Acquiring {
        Box::pin(async move {
            let mut wait = None;
            let result = self.wait_for_token(rejected.as_deref(), &mut wait).await;
            let result = result.map_err(|error| error.in_cache(self.key.settings().name.as_ref()));
            let waited = wait.map(|wait: Wait| wait.end(result.as_ref().err()));
            Acquired { result, waited }
        })
    }

    /// Joins flights until one of them leads to a result for this call. Sets `wait` if it waits.
    async fn wait_for_token(
        &self,
        rejected: Option<&CachedToken>,
        wait: &mut Option<Wait>,
    ) -> FlightResult {
        let Some(runtime) = self.key.runtime() else {
            return self.fall_back(rejected, Kind::NoRuntime);
        };
        // Before a flight is joined: this task must not start another one either.
        if task::is_requesting(&self.key) {
            return self.unexpired(rejected).ok_or_else(waits_for_itself);
        }
        let (mut restarts, mut misses) = (0, 0);
        loop {
            let joined = match self.join(rejected, &runtime) {
                NextStep::Return(result) => return result,
                NextStep::Await(joined) => joined,
            };
            wait.get_or_insert_with(Wait::start);
            let is_renewal = joined.awaited.flight.is_renewal();
            match joined.awaited.result(&runtime).await {
                Waited::Result(Ok(token)) => {
                    if let Some(token) = self.usable_after_wait(rejected, &token) {
                        return Ok(token);
                    }
                    if is_renewal && rejected.is_some_and(|rejected| rejected.is_same(&token)) {
                        return Err(Error::new(Kind::SameToken));
                    }
                    if misses == MAX_MISSES {
                        return self.fall_back(rejected, Kind::Expired);
                    }
                    misses += 1;
                }
                Waited::Result(Err(error)) => return self.despite(error, rejected),
                // Other callers' runtimes may come and go. Only this call's own count.
                Waited::Lost if joined.started_here && restarts == MAX_RESTARTS => {
                    return self.fall_back(rejected, Kind::RuntimeLost);
                }
                Waited::Lost if joined.started_here => restarts += 1,
                Waited::Lost | Waited::TimeIsUp => {}
            }
        }
    }

    /// Waits for a token request that is under way, or for a new one.
    async fn wait_for_refresh(&self) -> FlightResult {
        let Some(runtime) = self.key.runtime() else {
            return Err(Error::new(Kind::NoRuntime));
        };
        if task::is_requesting(&self.key) {
            return Err(waits_for_itself());
        }
        for _ in 0..=MAX_RESTARTS {
            let (now, settings) = (self.key.now(), self.key.settings());
            let join = self.key.update(|entry| entry.refresh_now(&now, settings));
            let NextStep::Await(joined) = self.next_step(join, &runtime) else {
                unreachable!("a refresh always waits");
            };
            match joined.awaited.result(&runtime).await {
                Waited::Result(result) => return result,
                Waited::Lost | Waited::TimeIsUp => {}
            }
        }
        Err(Error::new(Kind::RuntimeLost))
    }

    /// Finds the flight that this call waits for, and spawns it if there is none yet.
    fn join(&self, rejected: Option<&CachedToken>, runtime: &Handle) -> NextStep {
        self.next_step(self.key.join(rejected), runtime)
    }

    fn next_step(&self, join: Join, runtime: &Handle) -> NextStep {
        match join {
            Join::Token(token) => {
                if token.is_last_resort() {
                    telemetry::last_resort(self.name());
                }
                NextStep::Return(Ok(token))
            }
            Join::Failing(error) => {
                telemetry::failed_fast(self.name(), &error);
                NextStep::Return(Err(error))
            }
            Join::CoolingDown => NextStep::Return(Err(Error::new(Kind::CoolingDown))),
            Join::Wait(awaited) => NextStep::Await(Joined {
                awaited,
                started_here: false,
            }),
            Join::Start(new_flight) => {
                let awaited = new_flight.awaited.clone();
                task::spawn(self, new_flight, runtime);
                NextStep::Await(Joined {
                    awaited,
                    started_here: true,
                })
            }
        }
    }

    /// Returns the token for a call that waited for `token`.
    ///
    /// The call may be polled long after the flight completed. `token` may have expired since then,
    /// or been rejected.
    fn usable_after_wait(
        &self,
        rejected: Option<&CachedToken>,
        token: &Arc<CachedToken>,
    ) -> Option<Arc<CachedToken>> {
        self.unexpired(rejected).or_else(|| {
            let is_rejected = rejected.is_some_and(|rejected| rejected.is_same(token));
            let token = self.key.still_usable(token, &self.key.now());
            token.filter(|_| !is_rejected)
        })
    }

    /// The token request failed. Returns a token if there is one that the call may use nevertheless.
    fn despite(&self, error: Error, rejected: Option<&CachedToken>) -> FlightResult {
        if let Some(token) = self.unexpired(rejected) {
            return Ok(token);
        }
        let now = self.key.now().monotonic;
        let last_resort = self.key.lock().last_resort(rejected, now);
        let token = last_resort.ok_or(error)?;
        telemetry::last_resort(self.name());
        Ok(token)
    }

    /// Returns the current token if it may be used; refreshes it in the background if that is due.
    fn current_at(&self, now: &Moment) -> Option<Arc<CachedToken>> {
        let cached = self.key.current()?;
        match cached.freshness(now) {
            Freshness::Fresh => {}
            Freshness::DueForRefresh => self.refresh_in_background(),
            Freshness::Expired => return None,
        }
        Some(cached)
    }

    /// Starts the refresh of a token that is due, unless another call already has.
    #[cold]
    fn refresh_in_background(&self) {
        let now = self.key.now();
        let Some(runtime) = self.key.runtime() else {
            self.key.update(|entry| entry.retry_refresh_later(&now));
            return;
        };
        let settings = self.key.settings();
        if let Some(new_flight) = self.key.update(|entry| entry.refresh(&now, settings)) {
            task::spawn(self, new_flight, &runtime);
        }
    }

    fn unexpired(&self, rejected: Option<&CachedToken>) -> Option<Arc<CachedToken>> {
        let cached = self.key.current()?;
        cached
            .may_serve(rejected, &self.key.now())
            .then(|| cached.for_later_calls())
    }

    /// No flight can bring a token: an unexpired token is better than none, even if rejected before.
    fn fall_back(&self, rejected: Option<&CachedToken>, reason: Kind) -> FlightResult {
        let now = self.key.now();
        self.key.update(|entry| entry.make_available(&now));
        self.unexpired(rejected).ok_or_else(|| Error::new(reason))
    }

    /// Makes one transition, without anything that the cache does around it.
    #[cfg(all(test, interleavings))]
    pub(super) fn transition<T>(
        &self,
        transition: impl FnOnce(&mut Entry, &Moment, &Settings) -> T,
    ) -> T {
        let now = self.key.now();
        self.key
            .update(|entry| transition(entry, &now, self.key.settings()))
    }
}

impl fmt::Debug for TokenCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenCache")
            .field("current", &self.key.current())
            .field("settings", self.key.settings())
            .finish_non_exhaustive()
    }
}

fn waits_for_itself() -> Error {
    Error::configuration(
        "token request waits for the token that it requests; use an HTTP client without the layer \
         that uses its tokens",
    )
}

/// How many times a call starts another flight after its own was lost with its runtime.
const MAX_RESTARTS: u32 = 3;

/// How many times a call waits again because the token that it waited for had expired, or been
/// rejected, by the time the call was polled.
const MAX_MISSES: u32 = 10;

/// What a call that needs a token does next.
enum NextStep {
    Await(Joined),
    Return(FlightResult),
}

/// The flight that a call waits for.
struct Joined {
    awaited: Awaited,
    /// The flight runs on the runtime that the call is polled on.
    started_here: bool,
}

/// A call's wait for a token, which may extend over several flights.
struct Wait {
    started_at: Instant,
    telemetry: telemetry::Waiter,
}

impl Wait {
    fn start() -> Self {
        Self {
            started_at: Clock::monotonic(),
            telemetry: telemetry::Waiter::start(),
        }
    }

    fn end(self, error: Option<&Error>) -> Duration {
        let waited = Clock::monotonic().duration_since(self.started_at);
        self.telemetry.end(waited, error);
        waited
    }
}

impl Keys {
    fn get(&self, parameters: &TokenParameters) -> Arc<Key> {
        if *parameters == self.own.parameters {
            return Arc::clone(&self.own);
        }
        let make = || Key::new(parameters.clone(), Arc::clone(&self.own.common));
        self.others
            .get_or_insert_with(parameters, Clock::monotonic(), make)
    }

    /// Returns a receiver that is closed when the last handle is dropped.
    pub(super) fn handles(&self) -> watch::Receiver<()> {
        self.handles.subscribe()
    }

    /// Evicts some unused keys.
    pub(super) fn sweep(&self) {
        self.others.sweep(Clock::monotonic());
    }
}
