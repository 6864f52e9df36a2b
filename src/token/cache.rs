#[cfg(not(all(test, interleavings)))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};
use std::{
    fmt,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{Arc, PoisonError, Weak},
    time::Duration,
};

#[cfg(not(all(test, interleavings)))]
use arc_swap::ArcSwapOption;
use futures_util::{FutureExt, future::select};
#[cfg(all(test, interleavings))]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, sleep_until},
};
use tower::{BoxError, Service};

#[cfg(all(test, interleavings))]
use super::interleavings::ArcSwapOption;
use super::{
    AccessToken, Rejection, TokenCacheBuilder, TokenRequest,
    entry::{Awaited, CachedToken, Entry, FlightResult, Generation, Join, NewFlight},
    flight::{Attempts, Completer, IssuedToken, SharedTokenService, Waited},
    schedule::Freshness,
    settings::{RefreshMode, Settings},
};
use crate::{
    Error,
    clock::{Clock, Moment},
    error::Kind,
    telemetry,
};

/// Holds one access token and refreshes it before it expires.
///
/// This is a handle: clones are cheap and share the token. You can use it without the layer, for
/// example for the metadata of a gRPC call, for a WebSocket handshake, or to get the first token at
/// startup.
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
    shared: Arc<Shared>,
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

struct Shared {
    /// The entry's current token, which calls read without the lock.
    snapshot: ArcSwapOption<CachedToken>,
    /// Counts changes of the snapshot, so that a service can cheaply check whether there was one.
    edition: AtomicU64,
    /// Locked for one transition at a time. Meanwhile, nothing is polled, woken, spawned or dropped
    /// that could call the cache.
    entry: Mutex<Entry>,
    token_service: SharedTokenService,
    settings: Settings,
    /// Closed when the last handle is dropped.
    handles: watch::Sender<()>,
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
        if let Some(cached) = self.current(&self.shared.now()) {
            return Ok(cached.token().clone());
        }
        let cached = self.clone().acquire(None).await.result?;
        Ok(cached.token().clone())
    }

    /// Reports that the API rejected `token`, so that later callers get another one.
    ///
    /// This method doesn't send a token request. The next call to [`token`](Self::token) does. If
    /// the cache already holds a newer token, or if the cool-down or the back-off hasn't ended,
    /// nothing changes. The returned [`Rejection`] says what happened.
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
    /// assert!(matches!(cache.reject(&token), Rejection::Withheld));
    /// let renewed = cache.token().await?;
    /// # drop(renewed);
    /// # Ok(())
    /// # }
    /// ```
    pub fn reject(&self, token: &AccessToken) -> Rejection {
        let now = self.shared.now();
        let update = self
            .shared
            .update_watching_withheld(|entry| entry.reject(token, &now, &self.shared.settings));
        let name = self.shared.name();
        telemetry::rejected(name, update.result.label(), update.newly_withheld);
        update.result
    }

    /// Forgets everything about the token: the token itself, rejections, the cool-down, and the
    /// back-off after a failure.
    ///
    /// The next caller starts a token request. Call this method when something was corrected and
    /// callers shouldn't wait for a pause to end, for example after an operator has changed the
    /// client's permissions.
    ///
    /// A token request that is already under way continues and serves the calls that wait for it,
    /// but its token isn't kept.
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
        drop(self.shared.update(Entry::reset));
    }

    pub(super) fn with_settings<T>(token_service: T, settings: Settings) -> Self
    where
        T: Service<TokenRequest, Response = AccessToken> + Clone + Send + 'static,
        T::Error: Into<BoxError>,
        T::Future: Send + 'static,
    {
        telemetry::describe();
        Self {
            shared: Arc::new(Shared {
                snapshot: ArcSwapOption::empty(),
                edition: AtomicU64::new(0),
                entry: Mutex::default(),
                token_service: SharedTokenService::new(token_service),
                settings,
                handles: watch::Sender::new(()),
            }),
        }
    }

    /// Returns the name of the cache, for events.
    pub(crate) fn name(&self) -> Option<&str> {
        self.shared.name()
    }

    /// Returns the token that was received last, whatever has become of it.
    pub(crate) fn last_token(&self) -> Option<Arc<CachedToken>> {
        let current = self.shared.snapshot.load_full();
        current.or_else(|| self.shared.lock().last_token())
    }

    /// How often the current token has changed, to or from none included.
    #[inline]
    pub(super) fn edition(&self) -> u64 {
        // A reader that sees an edition has to find its snapshot, or a later one.
        self.shared.edition.load(Ordering::Acquire)
    }

    /// Looks at the current token with both clocks.
    pub(super) fn look(&self) -> Look {
        let now = self.shared.now();
        let cached = self.current(&now);
        let in_step_until = self.shared.settings.clock.in_step_until(&now);
        let valid_until = cached.as_ref().map_or(now.monotonic, |cached| {
            cached.fresh_until().min(in_step_until)
        });
        Look {
            token: cached,
            valid_until,
        }
    }

    /// Returns a token to send now for a call that was granted a token a while ago.
    pub(crate) fn still_usable(&self, granted: &Arc<CachedToken>) -> Option<Arc<CachedToken>> {
        let now = self.shared.now();
        self.current(&now)
            .or_else(|| self.shared.grantee_token(granted, &now))
    }

    /// Rejects a token whose request isn't sent again, and renews it for the calls that follow.
    pub(crate) fn reject_and_renew(&self, token: &CachedToken) {
        if matches!(self.reject(token.token()), Rejection::Withheld) {
            self.renew_in_background();
        }
    }

    /// Renews a rejected token for later calls. Nobody waits for the renewal.
    pub(crate) fn renew_in_background(&self) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        if let Join::Start(new_flight) = self.shared.join(None) {
            self.shared.spawn_flight(new_flight, &runtime);
        }
    }

    /// Waits for a token that may be used and is not the `rejected` one.
    pub(crate) fn acquire(self, rejected: Option<Arc<CachedToken>>) -> Acquiring {
        Box::pin(async move {
            let mut wait = None;
            let result = self.wait_for_token(rejected.as_deref(), &mut wait).await;
            let result = result.map_err(|error| error.in_cache(self.shared.settings.name.as_ref()));
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
        let Ok(runtime) = Handle::try_current() else {
            return self.fall_back(rejected, Kind::NoRuntime);
        };
        let (mut restarts, mut misses) = (0, 0);
        loop {
            let joined = match self.join(rejected, &runtime) {
                NextStep::Return(result) => return result,
                NextStep::Await(_) if self.shared.is_requesting_in_this_task() => {
                    return Err(Error::configuration(
                        "token request waits for the token that it requests; use an HTTP client \
                         without the layer that uses its tokens",
                    ));
                }
                NextStep::Await(joined) => joined,
            };
            wait.get_or_insert_with(Wait::start);
            let is_renewal = joined.awaited.flight.is_renewal();
            match joined.awaited.result(&runtime).await {
                Waited::Result(Ok(token)) => {
                    if let Some(token) = self.usable(rejected, &token) {
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

    /// Finds the flight that this call waits for, and spawns it if there is none yet.
    fn join(&self, rejected: Option<&CachedToken>, runtime: &Handle) -> NextStep {
        match self.shared.join(rejected) {
            Join::Token(token) => NextStep::Return(Ok(token)),
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
                self.shared.spawn_flight(new_flight, runtime);
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
    fn usable(
        &self,
        rejected: Option<&CachedToken>,
        token: &Arc<CachedToken>,
    ) -> Option<Arc<CachedToken>> {
        self.unexpired(rejected).or_else(|| {
            let is_rejected = rejected.is_some_and(|rejected| rejected.is_same(token));
            let token = self.shared.grantee_token(token, &self.shared.now());
            token.filter(|_| !is_rejected)
        })
    }

    /// The token request failed. Returns a token if there is one that the call may use nevertheless.
    fn despite(&self, error: Error, rejected: Option<&CachedToken>) -> FlightResult {
        let last_resort = || {
            let now = self.shared.now().monotonic;
            self.shared.lock().last_resort(rejected, now)
        };
        let token = self.unexpired(rejected).or_else(last_resort);
        token.ok_or(error)
    }

    /// Returns the current token if it may be used; refreshes it in the background if that is due.
    fn current(&self, now: &Moment) -> Option<Arc<CachedToken>> {
        let cached = self.shared.snapshot.load_full()?;
        match cached.freshness(now) {
            Freshness::Fresh => {}
            Freshness::DueForRefresh => self.shared.refresh_in_background(),
            Freshness::Expired => return None,
        }
        Some(cached)
    }

    fn unexpired(&self, rejected: Option<&CachedToken>) -> Option<Arc<CachedToken>> {
        let cached = self.shared.snapshot.load_full()?;
        cached
            .may_serve(rejected, &self.shared.now())
            .then(|| cached.for_later_calls())
    }

    /// No flight can bring a token: an unexpired token is better than none, even if rejected before.
    fn fall_back(&self, rejected: Option<&CachedToken>, reason: Kind) -> FlightResult {
        let now = self.shared.now();
        self.shared.update(|entry| entry.make_available(&now));
        self.unexpired(rejected).ok_or_else(|| Error::new(reason))
    }

    /// Makes one transition, without anything that the cache does around it.
    #[cfg(all(test, interleavings))]
    pub(super) fn transition<T>(
        &self,
        transition: impl FnOnce(&mut Entry, &Moment, &Settings) -> T,
    ) -> T {
        let now = self.shared.now();
        self.shared
            .update(|entry| transition(entry, &now, &self.shared.settings))
    }
}

impl fmt::Debug for TokenCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenCache")
            .field("current", &self.shared.snapshot.load().as_deref())
            .field("settings", &self.shared.settings)
            .finish_non_exhaustive()
    }
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

/// The result of a transition.
struct Update<T> {
    result: T,
    /// The transition withheld the token that was in use.
    newly_withheld: bool,
}

impl Shared {
    /// Makes one transition and publishes the token that is current after it.
    fn update<T>(&self, transition: impl FnOnce(&mut Entry) -> T) -> T {
        let mut entry = self.lock();
        let result = transition(&mut entry);
        self.publish(entry.current());
        result
    }

    fn update_watching_withheld<T>(&self, transition: impl FnOnce(&mut Entry) -> T) -> Update<T> {
        self.update(|entry| {
            let was_in_use = entry.current().is_some();
            let result = transition(entry);
            Update {
                result,
                newly_withheld: was_in_use && entry.current().is_none(),
            }
        })
    }

    fn now(&self) -> Moment {
        self.settings.clock.now()
    }

    fn name(&self) -> Option<&str> {
        self.settings.name.as_deref()
    }

    fn join(&self, rejected: Option<&CachedToken>) -> Join {
        let now = self.now();
        let update =
            self.update_watching_withheld(|entry| entry.join(rejected, &now, &self.settings));
        if update.newly_withheld {
            telemetry::token_withheld(self.name());
        }
        update.result
    }

    /// The token that a call was granted a while ago, if the call may still send it.
    fn grantee_token(&self, granted: &Arc<CachedToken>, now: &Moment) -> Option<Arc<CachedToken>> {
        let may_serve = self.lock().may_serve_grantee(granted, now);
        may_serve.then(|| Arc::clone(granted))
    }

    fn lock(&self) -> MutexGuard<'_, Entry> {
        // Transitions don't panic, so a poisoned entry is consistent.
        self.entry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, current: Option<&Arc<CachedToken>>) {
        let published = self.snapshot.load();
        let is_published = match (published.as_ref(), current) {
            (Some(published), Some(current)) => Arc::ptr_eq(published, current),
            (None, None) => true,
            _ => false,
        };
        if !is_published {
            self.snapshot.store(current.cloned());
            // After the store: a reader that sees this edition finds this snapshot, or a later one.
            self.edition.fetch_add(1, Ordering::Release);
        }
    }

    /// Starts the refresh of a token that is due, unless another call already has.
    #[cold]
    fn refresh_in_background(self: &Arc<Self>) {
        let now = self.now();
        let Ok(runtime) = Handle::try_current() else {
            self.update(|entry| entry.retry_refresh_later(&now));
            return;
        };
        if let Some(new_flight) = self.update(|entry| entry.refresh(&now, &self.settings)) {
            self.spawn_flight(new_flight, &runtime);
        }
    }

    /// Spawns the task of a flight. Not under the lock: a runtime that is shutting down drops the
    /// task immediately, which locks the entry.
    fn spawn_flight(self: &Arc<Self>, new_flight: NewFlight, runtime: &Handle) {
        let flight = &new_flight.awaited.flight;
        flight.starts_on(runtime.id());
        let mut request = TokenRequest::new(self.settings.parameters.clone());
        request.rejected = new_flight.rejected;
        let attempts = Attempts {
            token_service: self.token_service.clone(),
            request,
            limits: self.settings.limits.clone(),
            deadline: flight.deadline(),
            clock: self.settings.clock.clone(),
            telemetry: telemetry::Flight::start(new_flight.cause, self.settings.name.clone()),
        };
        let task = FlightTask {
            cache: Arc::downgrade(self),
            generation: new_flight.generation,
            completer: Some(new_flight.completer),
        };
        runtime.spawn(REQUESTING.scope(self.address(), task.run(attempts)));
    }

    /// Whether the token service of this cache is calling, and would wait for itself.
    fn is_requesting_in_this_task(self: &Arc<Self>) -> bool {
        REQUESTING.try_with(|cache| *cache == self.address()) == Ok(true)
    }

    /// Identifies the cache. The task of a flight keeps the memory, so that no other cache gets it.
    fn address(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }
}

tokio::task_local! {
    /// The cache whose flight the current task is.
    static REQUESTING: usize;
}

/// The task of a flight. Holds no handle of the cache, so that it ends with the last one.
struct FlightTask {
    cache: Weak<Shared>,
    generation: Generation,
    /// `None` once the flight has a result.
    completer: Option<Completer<FlightResult>>,
}

impl FlightTask {
    async fn run(mut self, mut attempts: Attempts) {
        // The last handle may have gone since the task was spawned.
        if self.cache.strong_count() == 0 {
            return;
        }
        let Some(result) = self.run_attempts(&mut attempts).await else {
            return;
        };
        let Some(cache) = self.cache.upgrade() else {
            return;
        };
        self.complete(&cache, result, attempts);

        if cache.settings.refresh_mode == RefreshMode::KeepWarm {
            drop(cache);
            self.keep_warm().await;
        }
    }

    /// Returns `None` if nobody is left who could use the result.
    ///
    /// Panics of the token service are caught where it is called, so a panic here is the clock's.
    async fn run_attempts(&self, attempts: &mut Attempts) -> Option<Result<IssuedToken, Error>> {
        let span = attempts.telemetry.span();
        let completer = self.completer.as_ref()?;
        let attempts = AssertUnwindSafe(span.instrument(attempts.run())).catch_unwind();
        let result = completer.run(attempts).await?;
        Some(result.unwrap_or_else(|_payload| {
            Err(Error::configuration(
                "wall clock of the token cache panicked",
            ))
        }))
    }

    fn complete(&mut self, cache: &Shared, result: Result<IssuedToken, Error>, attempts: Attempts) {
        let settings = &cache.settings;
        let result = result.map_err(|error| error.in_cache(settings.name.as_ref()));
        let now = Clock::monotonic();
        let completed =
            cache.update(|entry| entry.complete(self.generation, result, now, settings));
        drop(completed.to_drop);
        // Without a result, the completer is dropped later, and waiters find the flight lost.
        if let (Some(result), Some(completer)) = (completed.result, self.completer.take()) {
            let expires_at = result.as_ref().map(|token| token.expires_at());
            let waiters = completer.waiters();
            attempts.telemetry.completed(expires_at, waiters);
            completer.complete(result);
        }
    }

    /// Waits until the token is due for refresh, and starts the flight that carries on from there.
    async fn keep_warm(&self) {
        let Some(mut handles) = self.cache.upgrade().map(|cache| cache.handles.subscribe()) else {
            return;
        };
        let earliest = Clock::monotonic() + SHORTEST_KEEP_WARM_PAUSE;
        loop {
            let (Some(cache), Ok(runtime)) = (self.cache.upgrade(), Handle::try_current()) else {
                return;
            };
            let now = cache.now();
            let Some(due) = cache.lock().keep_warm_refresh_at(self.generation, &now) else {
                return;
            };
            let due = due.max(earliest);
            if now.monotonic >= due {
                let new_flight = cache.update(|entry| {
                    entry.keep_warm_refresh(self.generation, &now, &cache.settings)
                });
                if let Some(new_flight) = new_flight {
                    cache.spawn_flight(new_flight, &runtime);
                }
                return;
            }
            drop(cache);
            let check_at = due.min(now.after(CLOCK_CHECK_INTERVAL).monotonic);
            select(pin!(sleep_until(check_at)), pin!(handles.changed())).await;
        }
    }
}

/// How long a token that is kept warm isn't refreshed, at least. Otherwise, tokens that expire
/// immediately would be requested without a pause.
const SHORTEST_KEEP_WARM_PAUSE: Duration = Duration::from_secs(1);

/// How often both clocks are checked while a token is kept warm: timers stand still while the machine
/// is suspended, and don't follow the wall clock when it is set.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(60);

impl Drop for FlightTask {
    /// Lets waiters start another flight if the runtime shut down before this one had a result.
    fn drop(&mut self) {
        if let (Some(_lost), Some(cache)) = (&self.completer, self.cache.upgrade()) {
            let to_drop = cache.update(|entry| entry.flight_lost(self.generation));
            drop(to_drop);
        }
    }
}
