#[cfg(not(all(test, interleavings)))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};
use std::{
    fmt,
    panic::catch_unwind,
    pin::{Pin, pin},
    sync::{Arc, PoisonError, Weak},
    time::Duration,
};

#[cfg(not(all(test, interleavings)))]
use arc_swap::ArcSwapOption;
use futures_util::future::select;
use http::{HeaderMap, header::AUTHORIZATION};
#[cfg(all(test, interleavings))]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tower::{BoxError, Service};

#[cfg(all(test, interleavings))]
use super::interleavings::ArcSwapOption;
use super::{
    AccessToken, Rejection, TokenCacheBuilder, TokenRequest,
    entry::{CachedToken, Entry, FlightResult, Generation, Join, NewFlight},
    flight::{Completer, SharedTokenService},
    schedule::Freshness,
    settings::{RefreshMode, Settings},
};
use crate::{
    Error,
    clock::{Clock, Moment},
    error::Kind,
    telemetry,
};

/// How often one waiter starts anew after a flight that it started was lost.
const MAX_RESTARTS: u32 = 3;

/// How often one waiter looks for another flight after one was lost that somebody else had started.
///
/// Short runtimes may come and go in great numbers, and say nothing of this waiter's own.
const LOST_BY_OTHERS: u32 = 1000;

/// How long a token that is kept warm is left alone, at least: one that ends at once would otherwise
/// be asked for without a pause.
const SHORTEST_KEEP_WARM_PAUSE: Duration = Duration::from_secs(1);

/// How often both clocks are looked at while a token is kept warm.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// How often one waiter waits again because the token that landed had expired, or been rejected, by
/// the time that it was polled.
const MAX_MISSES: u32 = 10;

/// A future that waits for a token; boxed because only a miss needs one.
pub(crate) type Acquiring = Pin<Box<dyn Future<Output = Acquired> + Send>>;

/// A token or an error, and how long it took if it had to be waited for.
pub(crate) struct Acquired {
    pub(crate) result: FlightResult,
    pub(crate) waited: Option<Duration>,
}

/// Keeps one access token and replaces it in time.
///
/// A cheap handle: clones share the token. Usable without the layer, for what is no HTTP request:
/// the metadata of a gRPC call, the handshake of a websocket, or a warm-up at start.
///
/// However many callers need a token, one [flight](crate#words) is under way, as a Tokio task that
/// belongs to none of them. There is no task while there is nothing to fetch, unless the token is
/// [kept warm](TokenCacheBuilder::keep_warm), and none outlives the last handle. A call in flight has one
/// if it waits, or may be sent again.
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

struct Shared {
    /// What calls use without a lock: the entry's current token, as it was last published.
    snapshot: ArcSwapOption<CachedToken>,
    /// Counts what was published, so that a service sees at a glance that nothing was.
    edition: AtomicU64,
    /// Locked for one transition at a time; nothing is polled, woken, spawned or dropped meanwhile
    /// that could call back.
    entry: Mutex<Entry>,
    token_service: SharedTokenService,
    settings: Settings,
    /// Closed when the last handle is gone.
    handles: watch::Sender<()>,
}

impl TokenCache {
    /// Makes a cache with all defaults around a token service.
    ///
    /// A token service is any `Service<TokenRequest, Response = AccessToken>`: a
    /// [`TokenEndpoint`](crate::TokenEndpoint), a [`service_fn`](tower::service_fn), a mock.
    pub fn new<T>(token_service: T) -> Self
    where
        T: Service<TokenRequest, Response = AccessToken> + Clone + Send + 'static,
        T::Error: Into<BoxError>,
        T::Future: Send + 'static,
    {
        Self::builder().build(token_service)
    }

    /// Sets options before the cache is made.
    pub fn builder() -> TokenCacheBuilder {
        TokenCacheBuilder::default()
    }

    /// Returns a token that may be used now.
    ///
    /// At once if a fresh or stale one is there; otherwise after the flight that is under way, or
    /// one that this call starts. Call it at start to have a token before the first request.
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
    ///     Ok(token) => println!("lives {:?}", token.lifetime()),
    ///     Err(error) => println!("{error}; asked again in {:?}", error.retry_after()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Fails if the token service does; every waiter gets the same error, and for a short time
    /// ([`Error::retry_after`]) so does every later caller. Fails outside a Tokio runtime with timers,
    /// unless a token is there already.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future neither ends nor delays the flight it waits for.
    pub async fn token(&self) -> Result<AccessToken, Error> {
        if let Some(held) = self.current(&self.shared.now()) {
            return Ok(held.token().clone());
        }
        let held = self.clone().acquire(None).await.result?;
        Ok(held.token().clone())
    }

    /// Says that the API rejected `token`, so that the next caller gets another.
    ///
    /// Nothing is asked of the token service yet: the next call of [`token`](Self::token) does. A newer
    /// token than `token` is left alone, and a rejection that comes soon after a renewal changes
    /// nothing: [`Rejection`] says which.
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
    /// // The other side of a websocket refused it.
    /// assert!(matches!(cache.reject(&token), Rejection::Withheld));
    /// let another = cache.token().await?;
    /// # drop(another);
    /// # Ok(())
    /// # }
    /// ```
    pub fn reject(&self, token: &AccessToken) -> Rejection {
        let generation = self.shared.lock().generation_of(token);
        match generation {
            Some(generation) => self.reject_generation(generation),
            None => {
                telemetry::rejected(Rejection::Replaced.label(), false);
                Rejection::Replaced
            }
        }
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

    /// Whether a request already has the header that a token of this cache would go into.
    ///
    /// Before the first token that is `Authorization`.
    pub(crate) fn is_presented_in(&self, headers: &HeaderMap) -> bool {
        let last = self.shared.lock().last_token();
        match last {
            Some(token) => token.token().scheme().is_on(headers),
            None => headers.contains_key(AUTHORIZATION),
        }
    }

    /// How often another token, or none, became current.
    #[inline]
    pub(super) fn edition(&self) -> u64 {
        self.shared.edition.load(Ordering::Acquire)
    }

    /// The current token, if it may be used, and until when it needs no other look.
    pub(super) fn look(&self) -> (Option<Arc<CachedToken>>, Instant) {
        let now = self.shared.now();
        let held = self.current(&now);
        let in_step_until = self.shared.settings.clock.in_step_until(&now);
        let quiet_until = held
            .as_ref()
            .map_or(now.monotonic, |held| held.fresh_until().min(in_step_until));
        (held, quiet_until)
    }

    /// A token to send now, in place of one that was granted a while ago to a call that waited for it.
    pub(crate) fn still_usable(&self, granted: &Arc<CachedToken>) -> Option<Arc<CachedToken>> {
        self.current(&self.shared.now()).or_else(|| {
            let may_serve = self.shared.lock().may_serve_waiter(granted);
            may_serve.then(|| Arc::clone(granted))
        })
    }

    /// Says that the API rejected the token of this generation.
    pub(crate) fn reject_generation(&self, generation: Generation) -> Rejection {
        let now = self.shared.now();
        let (rejection, withheld) = self
            .shared
            .update_and_watch(|entry| entry.reject(generation, &now, &self.shared.settings));
        telemetry::rejected(rejection.label(), withheld);
        rejection
    }

    /// Renews a rejected token for those who come next; nobody waits for it.
    pub(crate) fn renew_in_background(&self) {
        let Some(runtime) = runtime_with_timers() else {
            return;
        };
        if let Join::Start(new_flight) = self.shared.join(None) {
            self.shared.spawn_flight(new_flight, &runtime);
        }
    }

    /// The cold path: waits for a token that may be used, and that is not the `rejected` one.
    pub(crate) fn acquire(self, rejected: Option<Generation>) -> Acquiring {
        Box::pin(async move {
            let mut since = None;
            let result = self.wait_for_token(rejected, &mut since).await;
            let waited = since.map(|(since, waiter): (Instant, telemetry::Waiter)| {
                let waited = Clock::monotonic().duration_since(since);
                waiter.end(waited, result.as_ref().err());
                waited
            });
            Acquired { result, waited }
        })
    }

    /// Notes since when it waits, if it has to.
    async fn wait_for_token(
        &self,
        rejected: Option<Generation>,
        since: &mut Option<(Instant, telemetry::Waiter)>,
    ) -> FlightResult {
        let Some(runtime) = runtime_with_timers() else {
            return self.fall_back(rejected, Kind::NoRuntime);
        };
        let (mut lost, mut lost_by_others, mut missed) = (0, 0, 0);
        while lost <= MAX_RESTARTS && lost_by_others <= LOST_BY_OTHERS && missed <= MAX_MISSES {
            let mut times_lost = &mut lost_by_others;
            let flight = match self.shared.join(rejected) {
                Join::Token(held) => return Ok(held),
                Join::Failing(error) => {
                    telemetry::failed_fast(&error);
                    return Err(error);
                }
                Join::CoolingDown => return Err(Error::new(Kind::CoolingDown)),
                Join::Wait(flight) => flight,
                Join::Start(new_flight) => {
                    let flight = new_flight.flight.clone();
                    self.shared.spawn_flight(new_flight, &runtime);
                    times_lost = &mut lost;
                    flight
                }
            };
            since.get_or_insert_with(|| (Clock::monotonic(), telemetry::Waiter::start()));
            match flight.result().await {
                Some(Ok(landed)) => {
                    // This waiter may be polled long after the landing: what landed may have
                    // expired by now, or been rejected.
                    if let Some(held) = self.unexpired(rejected) {
                        return Ok(held);
                    }
                    if self.shared.lock().may_serve_waiter(&landed) {
                        return Ok(landed);
                    }
                    missed += 1;
                }
                Some(Err(error)) => return self.unexpired(rejected).ok_or(error),
                // The flight was lost with its runtime: whoever notices starts anew.
                None => *times_lost += 1,
            }
        }
        let reason = if missed > MAX_MISSES {
            Kind::Expired
        } else {
            Kind::RuntimeLost
        };
        self.fall_back(rejected, reason)
    }

    /// One transition, without what the cache does around it.
    #[cfg(all(test, interleavings))]
    pub(super) fn transition<T>(
        &self,
        transition: impl FnOnce(&mut Entry, &Moment, &Settings) -> T,
    ) -> T {
        let now = self.shared.now();
        self.shared
            .update(|entry| transition(entry, &now, &self.shared.settings))
    }

    /// The current token, if it may be used; a stale one is refreshed behind.
    fn current(&self, now: &Moment) -> Option<Arc<CachedToken>> {
        let held = self.shared.snapshot.load_full()?;
        match held.freshness(now) {
            Freshness::Fresh => {}
            Freshness::DueForRefresh => self.shared.refresh_in_background(),
            Freshness::Expired => return None,
        }
        Some(held)
    }

    fn unexpired(&self, rejected: Option<Generation>) -> Option<Arc<CachedToken>> {
        let held = self.shared.snapshot.load_full()?;
        held.may_serve(rejected, &self.shared.now())
            .then(|| held.for_later_calls())
    }

    /// Nothing can be asked: a rejected token that has not expired is better than none.
    fn fall_back(&self, rejected: Option<Generation>, reason: Kind) -> FlightResult {
        let now = self.shared.now();
        self.shared.update(|entry| entry.make_available(&now));
        self.unexpired(rejected).ok_or_else(|| Error::new(reason))
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

impl Shared {
    /// Carries out one transition and publishes the token that it leaves current.
    fn update<T>(&self, transition: impl FnOnce(&mut Entry) -> T) -> T {
        let mut entry = self.lock();
        let result = transition(&mut entry);
        self.publish(entry.current());
        result
    }

    /// The same, and whether the transition withheld the token that was in use.
    fn update_and_watch<T>(&self, transition: impl FnOnce(&mut Entry) -> T) -> (T, bool) {
        self.update(|entry| {
            let was_in_use = entry.current().is_some();
            let result = transition(entry);
            (result, was_in_use && entry.current().is_none())
        })
    }

    fn now(&self) -> Moment {
        self.settings.clock.now()
    }

    fn join(&self, rejected: Option<Generation>) -> Join {
        let now = self.now();
        let (join, withheld) =
            self.update_and_watch(|entry| entry.join(rejected, &now, &self.settings));
        if withheld {
            telemetry::token_withheld();
        }
        join
    }

    fn lock(&self) -> MutexGuard<'_, Entry> {
        // No transition panics half-way; a panic elsewhere in the thread says nothing of the entry.
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
            // Counted after the snapshot is there: whoever sees this edition finds it, or a later one.
            self.edition.fetch_add(1, Ordering::Release);
        }
    }

    /// Starts the refresh of a stale token, unless somebody was faster.
    #[cold]
    fn refresh_in_background(self: &Arc<Self>) {
        let now = self.now();
        let Some(runtime) = runtime_with_timers() else {
            self.update(|entry| entry.retry_refresh_later(&now));
            return;
        };
        if let Some(new_flight) = self.update(|entry| entry.refresh(&now, &self.settings)) {
            self.spawn_flight(new_flight, &runtime);
        }
    }

    fn keep_warm_refresh(self: &Arc<Self>, landed: Generation, now: &Moment, runtime: &Handle) {
        let new_flight = self.update(|entry| entry.keep_warm_refresh(landed, now, &self.settings));
        if let Some(new_flight) = new_flight {
            self.spawn_flight(new_flight, runtime);
        }
    }

    /// Starts a flight. Not under the lock: a runtime that is shutting down drops the task at once.
    fn spawn_flight(self: &Arc<Self>, new_flight: NewFlight, runtime: &Handle) {
        let mut request = TokenRequest::new(self.settings.parameters.clone());
        request.rejected = new_flight.rejected;
        let task = FlightTask {
            cache: Arc::downgrade(self),
            generation: new_flight.generation,
            deadline: new_flight.flight.deadline(),
            completer: Some(new_flight.completer),
        };
        runtime.spawn(task.run(
            self.token_service.clone(),
            self.settings.clone(),
            request,
            telemetry::Flight::start(new_flight.cause),
        ));
    }
}

/// A flight's task. Holds no handle, so that it ends with the last one.
struct FlightTask {
    cache: Weak<Shared>,
    generation: Generation,
    deadline: Instant,
    /// Gone once the flight has landed.
    completer: Option<Completer<FlightResult>>,
}

impl FlightTask {
    async fn run(
        mut self,
        token_service: SharedTokenService,
        settings: Settings,
        request: TokenRequest,
        mut telemetry: telemetry::Flight,
    ) {
        // The last handle may have gone since the task was spawned.
        if self.cache.strong_count() == 0 {
            return;
        }
        let Some(completer) = &self.completer else {
            return;
        };
        let span = telemetry.span();
        let acquisition = settings.limits.request_token(
            &token_service,
            &request,
            self.deadline,
            &settings.clock,
            &mut telemetry,
        );
        let Some(result) = completer.run(span.instrument(acquisition)).await else {
            return;
        };
        let Some(cache) = self.cache.upgrade() else {
            return;
        };

        let now = cache.now();
        let (landed, to_drop) =
            cache.update(|entry| entry.complete(self.generation, result, &now, &cache.settings));
        drop(to_drop);
        // Without an outcome, it is dropped: waiters notice that the flight was lost.
        if let (Some(landed), Some(completer)) = (landed, self.completer.take()) {
            let token = landed.as_ref().map(|held| held.expires_at());
            telemetry.completed(token, completer.waiters());
            completer.complete(landed);
        }

        if settings.refresh_mode == RefreshMode::KeepWarm {
            drop(cache);
            self.keep_warm(now).await;
        }
    }

    /// Waits until the token that has landed is to be refreshed; the refresh's own task goes on.
    async fn keep_warm(&self, landed_at: Moment) {
        let Some(mut handles) = self.cache.upgrade().map(|cache| cache.handles.subscribe()) else {
            return;
        };
        let earliest = landed_at.after(SHORTEST_KEEP_WARM_PAUSE).monotonic;
        loop {
            let (Some(cache), Some(runtime)) = (self.cache.upgrade(), runtime_with_timers()) else {
                return;
            };
            let now = cache.now();
            let Some(due) = cache.lock().keep_warm_refresh_at(self.generation, &now) else {
                return;
            };
            let due = due.max(earliest);
            if now.monotonic >= due {
                return cache.keep_warm_refresh(self.generation, &now, &runtime);
            }
            drop(cache);
            // Timers stand still while a machine is suspended, and do not see the wall clock jump.
            let look_at = due.min(now.after(CLOCK_CHECK_INTERVAL).monotonic);
            select(pin!(sleep_until(look_at)), pin!(handles.changed())).await;
        }
    }
}

impl Drop for FlightTask {
    /// Lets others start anew when the runtime was shut down in mid-flight.
    fn drop(&mut self) {
        if let (Some(_lost), Some(cache)) = (&self.completer, self.cache.upgrade()) {
            let now = cache.now();
            let to_drop = cache.update(|entry| entry.flight_lost(self.generation, &now));
            drop(to_drop);
        }
    }
}

/// The runtime that a flight can be started on, and waited for.
fn runtime_with_timers() -> Option<Handle> {
    let runtime = Handle::try_current().ok()?;
    // Tokio has no question for it; making a timer panics where timers are not enabled.
    catch_unwind(|| drop(sleep(Duration::ZERO))).ok()?;
    Some(runtime)
}
