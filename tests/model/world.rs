//! The layer between a scripted token service and a scripted API, both driven by a history.

use std::{
    cell::RefCell,
    future::poll_fn,
    panic::resume_unwind,
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::future::Either;
use http::{Request, Response, header::AUTHORIZATION};
use http_body::Body;
use tokio::sync::oneshot;
use tokio_test::task::{Spawn, spawn};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, ClientCredentials, ClientCredentialsLayer, Error, NotReplayed, Rejection,
    TokenCache, TokenOutcome, TokenParameters, TokenRequest,
    replay::{Buffered, CloneBody, NoReplay},
};

use crate::{
    action::{Action, Answer, Reply, milliseconds},
    bodies::{FrameSource, Policy, SHORT_LIMIT, TEXT, Upload},
    clocks::Clocks,
    observer::{CallId, ObservedCall, Observer, Phase},
    runtimes::{RuntimeId, Runtimes},
};

/// The most pending calls at a time. More would show nothing new.
const MOST_CALLS: usize = 24;

/// How a cache is made, and how its services are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    /// Each call uses a new clone of the service, and so looks at the cache.
    Plain,
    /// The cache replaces its token even if no call uses it.
    KeptWarm,
    /// One service makes every call, and looks at the cache once per millisecond. It does so only
    /// with the system's wall clock, which the history cannot set and which hardly advances.
    ReusedServices,
}

/// A cache with one or several keys.
pub(crate) struct World {
    clocks: Clocks,
    runtimes: Rc<RefCell<Runtimes>>,
    keys: Vec<Key>,
}

/// One key of the cache with its calls, and with an API and an observer to itself.
struct Key {
    setup: Setup,
    observer: SharedObserver,
    gate: Gate,
    cache: TokenCache,
    services: Services,
    calls: Vec<PendingCall>,
    uploads: Vec<PendingUpload>,
    remaining_uploads: RemainingUploads,
    runtimes: Rc<RefCell<Runtimes>>,
}

/// The parameters of a key. The first key is the cache's own.
fn parameters_of(key: usize) -> TokenParameters {
    match key {
        0 => TokenParameters::default(),
        key => TokenParameters::default().with_tenant(key.to_string()),
    }
}

/// The key whose token is requested.
fn key_of(parameters: &TokenParameters) -> usize {
    parameters
        .tenant()
        .map_or(0, |tenant| tenant.parse().unwrap())
}

/// One cache behind several replay policies.
struct Services {
    /// The parameters that the requests choose.
    parameters: TokenParameters,
    cloned: ClientCredentials<Api, CloneBody>,
    buffered: ClientCredentials<Api, Buffered>,
    overflowing: ClientCredentials<Api, Buffered>,
    no_replay: ClientCredentials<Api, NoReplay>,
}

impl Services {
    fn new(cache: &TokenCache, parameters: TokenParameters, api: &Api) -> Self {
        let layer = || ClientCredentialsLayer::with_cache(cache.clone());
        let buffered = |limit| layer().replay(Buffered::new(limit)).layer(api.clone());
        Self {
            parameters,
            cloned: layer().layer(api.clone()),
            buffered: buffered(TEXT.len()),
            overflowing: buffered(SHORT_LIMIT),
            no_replay: layer().no_replay().layer(api.clone()),
        }
    }

    fn call(
        &mut self,
        setup: Setup,
        policy: Policy,
        id: CallId,
        frames: &FrameSource,
    ) -> CallFuture {
        let parameters = self.parameters.clone();
        let text = || request(id, parameters.clone(), TEXT.to_owned());
        let streaming = || request(id, parameters.clone(), frames.body());
        match policy {
            Policy::Cloned => result_of(setup, &mut self.cloned, text()),
            Policy::Buffered => result_of(setup, &mut self.buffered, streaming()),
            Policy::Overflowing => result_of(setup, &mut self.overflowing, streaming()),
            Policy::NoReplay => result_of(setup, &mut self.no_replay, text()),
            Policy::OptedOut => {
                let mut request = text();
                request.extensions_mut().insert(NoReplay);
                result_of(setup, &mut self.cloned, request)
            }
        }
    }
}

fn request<B>(id: CallId, parameters: TokenParameters, body: B) -> Request<B> {
    let request = Request::post("https://api.example/people").extension(id);
    let mut request = request.body(body).unwrap();
    if parameters != parameters_of(0) {
        request.extensions_mut().insert(parameters);
    }
    request
}

type CallFuture = Pin<Box<dyn Future<Output = CallResult>>>;

fn result_of<S, B>(setup: Setup, service: &mut S, request: Request<B>) -> CallFuture
where
    S: Service<Request<B>, Response = Response<String>, Error = BoxError, Future: 'static>,
    S: Clone + 'static,
    B: 'static,
{
    let mut cx = Context::from_waker(Waker::noop());
    let is_reused = setup == Setup::ReusedServices && service.poll_ready(&mut cx).is_ready();
    let response = if is_reused {
        Either::Left(service.call(request))
    } else {
        Either::Right(service.clone().oneshot(request))
    };
    Box::pin(async move {
        match response.await {
            Ok(response) => {
                let outcome = response.extensions().get::<TokenOutcome>();
                let reason = outcome.and_then(TokenOutcome::not_replayed);
                CallResult::Status(response.status().as_u16(), reason.cloned())
            }
            Err(error) => error
                .downcast_ref()
                .map_or(CallResult::ApiError, CallResult::of_error),
        }
    })
}

/// How a call ended.
#[derive(Debug)]
pub(crate) enum CallResult {
    Status(u16, Option<NotReplayed>),
    Token(String),
    ApiError,
    /// The token service failed. Contains the status of the rejection that was dropped.
    TokenError(Option<u16>),
    /// Each token expired or was rejected before the service was ready to send it.
    Expired,
    /// Each token request was lost, or brought a token that expired before the call was polled.
    RequestsLost,
}

impl CallResult {
    fn of_error(error: &Error) -> Self {
        if error.is_expired() {
            Self::Expired
        } else if error.is_no_runtime() {
            Self::RequestsLost
        } else {
            Self::TokenError(error.rejected_status().map(|status| status.as_u16()))
        }
    }

    /// Whether the body or the policy of the request ruled out a replay.
    pub(crate) fn is_not_replayable(&self) -> bool {
        let Self::Status(_, Some(reason)) = self else {
            return false;
        };
        matches!(
            reason,
            NotReplayed::BodyNotKept | NotReplayed::OptedOut | NotReplayed::BodyOverLimit
        )
    }
}

struct PendingCall {
    id: CallId,
    runtime: RuntimeId,
    task: Spawn<CallFuture>,
}

/// A request body that the API goes on reading after its answer.
struct PendingUpload {
    call: CallId,
    send: usize,
    task: Spawn<UploadFuture>,
}

type UploadFuture = Pin<Box<dyn Future<Output = ()>>>;

/// The uploads that the API leaves behind when it answers early.
type RemainingUploads = Rc<RefCell<Vec<(CallId, usize, UploadFuture)>>>;

impl World {
    pub(crate) fn new(setup: Setup) -> Self {
        Self::with_keys(setup, 1)
    }

    pub(crate) fn with_keys(setup: Setup, keys: usize) -> Self {
        let is_kept_warm = setup == Setup::KeptWarm;
        let runtimes = Runtimes::start();
        let first = runtimes.handle(RuntimeId::First);
        let _context = first.enter();
        let clocks = Clocks::start();
        let observer = |key| {
            let observer = Observer::new(clocks.clone(), runtimes.current(), is_kept_warm, key);
            SharedObserver::new(observer)
        };
        let observers: Vec<_> = (0..keys).map(observer).collect();
        let wall = clocks.clone();
        let builder = TokenCache::builder();
        let builder = match setup {
            Setup::Plain => builder.wall_clock(move || wall.system_time()),
            Setup::KeptWarm => builder.wall_clock(move || wall.system_time()).keep_warm(),
            Setup::ReusedServices => builder,
        };
        let issuers = observers.clone();
        let cache = builder.build(service_fn(move |request: TokenRequest| {
            let issuer = &issuers[key_of(&request.parameters)];
            issue(issuer.clone(), request)
        }));
        let runtimes = Rc::new(RefCell::new(runtimes));
        let keys = observers.into_iter().enumerate();
        let keys = keys
            .map(|(key, observer)| Key::new(setup, &cache, key, observer, Rc::clone(&runtimes)));
        Self {
            keys: keys.collect(),
            clocks,
            runtimes,
        }
    }

    /// Takes one step, runs every task, and checks every promise.
    pub(crate) fn step(&mut self, action: Action) -> Result<(), String> {
        self.step_of(0, action)
    }

    /// Takes one step of a key, and checks every promise of all keys.
    pub(crate) fn step_of(&mut self, key: usize, action: Action) -> Result<(), String> {
        let first = self.runtimes.borrow().handle(RuntimeId::First);
        let _context = first.enter();
        self.act(key, action);
        self.runtimes.borrow().settle();
        self.keys.iter_mut().try_for_each(Key::check)
    }

    /// Lets every call succeed, and checks that nothing is left behind.
    pub(crate) fn finish(mut self, last_lifetime: u64) -> Result<(), String> {
        for key in 0..self.keys.len() {
            self.step_of(key, Action::Ready)?;
        }
        // A call waits for at most two token requests and two sends.
        for _ in 0..8 {
            for key in 0..self.keys.len() {
                for call in 0..self.keys[key].calls.len() {
                    self.step_of(key, Action::Frame(call))?;
                }
                self.step_of(key, Action::PollWoken)?;
                self.step_of(key, Action::TokenReply(Reply::New(last_lifetime)))?;
                while !self.keys[key].observer.lock().sends.is_empty() {
                    self.step_of(key, Action::ApiAnswer(0, Answer::Accepted))?;
                }
            }
            // Long enough for any pause between attempts: a `Retry-After` of 5 s, and half of that.
            self.step(Action::Wait(8000))?;
        }
        if let Some(call) = self.keys.iter().find_map(|key| key.calls.first()) {
            return Err(format!("every call completes: {:?} does not", call.id));
        }
        self.leave_nothing()
    }

    fn leave_nothing(self) -> Result<(), String> {
        let runtimes = self.runtimes;
        let first = runtimes.borrow().handle(RuntimeId::First);
        let _context = first.enter();
        let observers: Vec<_> = self.keys.iter().map(|key| key.observer.clone()).collect();
        for observer in &observers {
            observer.lock().has_handles = false;
        }
        drop(self.keys);
        runtimes.borrow().settle();
        match runtimes.borrow().alive_tasks() {
            0 => observers.iter().try_for_each(|it| it.lock().verdict()),
            tasks => Err(format!("no task outlives the last handle: {tasks} do")),
        }
    }

    fn act(&mut self, key: usize, action: Action) {
        match action {
            Action::Wait(time) => self.runtimes.borrow().wait(milliseconds(time)),
            Action::StandStill(time) => self.stand_still(milliseconds(time)),
            Action::SetWallClock(_) if self.keys[key].setup == Setup::ReusedServices => {}
            Action::SetWallClock(seconds) => self.set_wall_clock(seconds),
            Action::ShutDownSecond => self.shut_down_second_runtime(),
            action => self.keys[key].act(action),
        }
    }

    fn stand_still(&self, mut time: Duration) {
        // A longer time may be ambiguous for a key for which the shorter one was not.
        for _ in 0..=self.keys.len() {
            for key in &self.keys {
                let mut observer = key.observer.lock();
                observer.stands_still = true;
                time = observer.unambiguous(time);
            }
        }
        self.runtimes.borrow().stand_still(time);
    }

    /// A token request between two attempts notices that its deadline has passed within a second.
    fn set_wall_clock(&self, seconds: i64) {
        self.clocks.move_wall(seconds);
        let pauses = self
            .keys
            .iter()
            .filter_map(|key| key.observer.lock().last_pause());
        if let Some(pause) = pauses.max() {
            self.runtimes.borrow().wait(pause);
        }
    }

    fn shut_down_second_runtime(&mut self) {
        for key in &mut self.keys {
            key.second_runtime_shuts_down();
        }
        self.runtimes.borrow_mut().shut_down_second();
    }
}

impl Key {
    fn new(
        setup: Setup,
        cache: &TokenCache,
        key: usize,
        observer: SharedObserver,
        runtimes: Rc<RefCell<Runtimes>>,
    ) -> Self {
        let gate = Gate::default();
        let remaining_uploads = RemainingUploads::default();
        let api = Api {
            observer: observer.clone(),
            gate: gate.clone(),
            remaining_uploads: remaining_uploads.clone(),
            is_ready: false,
        };
        Self {
            setup,
            observer,
            gate,
            cache: cache.with_parameters(parameters_of(key)),
            services: Services::new(cache, parameters_of(key), &api),
            calls: Vec::new(),
            uploads: Vec::new(),
            remaining_uploads,
            runtimes,
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Call => self.call(Policy::Cloned, RuntimeId::First),
            Action::CallWith(policy, runtime) => self.call(policy, runtime),
            Action::GetToken => self.get_token(RuntimeId::First),
            Action::GetTokenOn(runtime) => self.get_token(runtime),
            Action::PollWoken => self.poll_woken(),
            Action::Poll(call) if !self.calls.is_empty() => self.poll(call % self.calls.len()),
            Action::Drop(call) if !self.calls.is_empty() => self.drop_call(call),
            Action::Frame(call) if !self.calls.is_empty() => self.release_frame(call),
            Action::Poll(_) | Action::Drop(_) | Action::Frame(_) => {}
            Action::TokenReply(reply) => self.answer_token_request(reply),
            Action::ApiAnswer(send, answer) => self.answer_send(send, answer),
            Action::Reject => self.reject(),
            Action::Unready => self.gate.close(),
            Action::Ready => self.gate.open(),
            Action::Wait(_)
            | Action::StandStill(_)
            | Action::SetWallClock(_)
            | Action::ShutDownSecond => unreachable!("a step of all keys"),
        }
    }

    fn call(&mut self, policy: Policy, runtime: RuntimeId) {
        let seen = ObservedCall {
            policy,
            ..ObservedCall::default()
        };
        let frames = seen.frames.clone();
        self.start(seen, runtime, move |world, id| {
            world.services.call(world.setup, policy, id, &frames)
        });
    }

    fn get_token(&mut self, runtime: RuntimeId) {
        let seen = ObservedCall {
            is_token_only: true,
            ..ObservedCall::default()
        };
        self.start(seen, runtime, |world, _| {
            let cache = world.cache.clone();
            Box::pin(async move {
                match cache.token().await {
                    Ok(token) => CallResult::Token(token.expose().to_owned()),
                    Err(error) => CallResult::of_error(&error),
                }
            })
        });
    }

    fn start(
        &mut self,
        seen: ObservedCall,
        runtime: RuntimeId,
        call: impl FnOnce(&mut Self, CallId) -> CallFuture,
    ) {
        if self.calls.len() == MOST_CALLS {
            return;
        }
        let id = {
            let calls = &mut self.observer.lock().calls;
            calls.push(seen);
            CallId(calls.len() - 1)
        };
        let task = {
            let handle = self.runtimes.borrow().handle(runtime);
            let _context = handle.enter();
            spawn(call(self, id))
        };
        self.calls.push(PendingCall { id, runtime, task });
        self.poll(self.calls.len() - 1);
    }

    fn poll_woken(&mut self) {
        // From the newest, because a call that ends is removed.
        for index in (0..self.calls.len()).rev() {
            if self.calls[index].task.is_woken() {
                self.poll(index);
                // A token request that the call has started is visible to the observer.
                self.runtimes.borrow().settle();
            }
        }
        self.uploads
            .retain_mut(|upload| !upload.task.is_woken() || upload.task.poll().is_pending());
    }

    fn poll(&mut self, index: usize) {
        let call = &mut self.calls[index];
        let id = call.id;
        let was_woken = call.task.is_woken();
        self.observer.lock().polls += 1;
        self.observer.lock().about_to_be_polled(id);
        let polled = {
            let handle = self.runtimes.borrow().handle(call.runtime);
            let _context = handle.enter();
            call.task.poll()
        };
        for (call, send, upload) in self.remaining_uploads.take() {
            let mut task = spawn(upload);
            if task.poll().is_pending() {
                self.uploads.push(PendingUpload { call, send, task });
            }
        }
        let mut observer = self.observer.lock();
        match polled {
            Poll::Pending => observer.still_pending(id, self.gate.is_open(), was_woken),
            Poll::Ready(result) => {
                if let CallResult::Token(token) = &result {
                    observer.token_used(id, token);
                }
                observer.call_ended(id, &result);
                drop(observer);
                self.calls.remove(index);
            }
        }
    }

    fn drop_call(&mut self, call: usize) {
        let call = self.calls.remove(call % self.calls.len());
        self.observer.lock().calls[call.id.0].is_over = true;
    }

    fn release_frame(&mut self, call: usize) {
        let call = self.calls[call % self.calls.len()].id;
        let frames = self.observer.lock().calls[call.0].frames.clone();
        frames.release_next();
    }

    fn second_runtime_shuts_down(&mut self) {
        // The calls on a runtime are its tasks, and are dropped with it.
        while let Some(call) = self
            .calls
            .iter()
            .position(|call| call.runtime == RuntimeId::Second)
        {
            self.drop_call(call);
        }
        self.observer.lock().second_runtime_shuts_down();
    }

    fn answer_token_request(&mut self, reply: Reply) {
        let reply = match self.setup {
            Setup::ReusedServices => reply.outlives_the_test(),
            Setup::Plain | Setup::KeptWarm => reply,
        };
        let mut observer = self.observer.lock();
        let now = observer.now();
        let Some(request) = &mut observer.request else {
            return;
        };
        let retry_after = match reply {
            Reply::Transient | Reply::Panic => Some(Duration::ZERO),
            Reply::RetryAfter(seconds) => Some(Duration::from_secs(seconds)),
            Reply::New(_) | Reply::Same(_) | Reply::Permanent => None,
        };
        if retry_after.is_some_and(|retry_after| request.may_end_or_retry(retry_after, now)) {
            return;
        }
        if let Phase::Attempting(answer) = &mut request.phase {
            let answer = answer.take();
            drop(observer);
            let _ = answer.map(|answer| answer.send(reply));
        }
    }

    fn answer_send(&mut self, send: usize, answer: Answer) {
        let mut observer = self.observer.lock();
        if observer.sends.is_empty() {
            return;
        }
        let send = send % observer.sends.len();
        let send = observer.sends.remove(send);
        drop(observer);
        let _ = send.answer.send(answer);
    }

    fn reject(&mut self) {
        let newest = {
            let observer = self.observer.lock();
            observer.newest.as_ref().map(|newest| newest.text.clone())
        };
        let Some(newest) = newest else { return };
        let token = AccessToken::new(newest).unwrap();
        let rejection = self.cache.reject(&token);
        let is_withheld = matches!(rejection, Rejection::Withheld | Rejection::Renewing);
        self.observer.lock().rejected_through_the_cache(is_withheld);
    }

    fn check(&mut self) -> Result<(), String> {
        let mut observer = self.observer.lock();
        let is_ready = self.gate.is_open();
        observer.step_is_over();
        observer.token_request_goes_on();
        for call in &self.calls {
            let is_woken = call.task.is_woken();
            observer.no_call_is_pending_without_a_reason(call.id, is_woken, is_ready);
            observer.no_upload_misses_a_frame(call.id, is_woken);
            observer.rejected_token_is_withheld_briefly(call.id, is_woken, is_ready);
        }
        for upload in &self.uploads {
            let is_woken = upload.task.is_woken();
            observer.no_remaining_upload_misses_a_frame(upload.call, upload.send, is_woken);
        }
        observer.verdict()
    }
}

#[derive(Clone)]
pub(crate) struct SharedObserver(Arc<Mutex<Observer>>);

impl SharedObserver {
    fn new(observer: Observer) -> Self {
        Self(Arc::new(Mutex::new(observer)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Observer> {
        self.0.lock().unwrap()
    }
}

/// The token service. It answers when the history says so.
async fn issue(observer: SharedObserver, request: TokenRequest) -> Result<AccessToken, BoxError> {
    let (answer, answered) = oneshot::channel();
    let rejected = request.rejected.map(|token| token.expose().to_owned());
    observer.lock().attempt_started(rejected, answer);
    let in_progress = InProgress(Some(observer.clone()));
    let Ok(reply) = answered.await else {
        return std::future::pending().await;
    };

    in_progress.end();
    let token = observer.lock().attempt_answered(reply);
    match reply {
        Reply::New(lifetime) | Reply::Same(lifetime) => {
            let token = AccessToken::new(token.unwrap_or_default())?;
            Ok(token.with_lifetime(milliseconds(lifetime)))
        }
        Reply::Transient => Err("out of order".into()),
        Reply::Permanent => Err(Error::permanent("disabled").into()),
        Reply::RetryAfter(seconds) => {
            Err(Error::transient("too many requests", Some(Duration::from_secs(seconds))).into())
        }
        // Unlike `panic!`, this prints nothing.
        Reply::Panic => resume_unwind(Box::new("the token service panics on purpose")),
    }
}

/// Tells the observer if the future of the token service is dropped before it answers.
struct InProgress(Option<SharedObserver>);

impl InProgress {
    fn end(mut self) {
        self.0 = None;
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        if let Some(observer) = &self.0 {
            observer.lock().attempt_dropped();
        }
    }
}

/// The API. It answers when the history says so.
struct Api {
    observer: SharedObserver,
    gate: Gate,
    remaining_uploads: RemainingUploads,
    is_ready: bool,
}

impl Clone for Api {
    fn clone(&self) -> Self {
        Self {
            observer: self.observer.clone(),
            gate: self.gate.clone(),
            remaining_uploads: self.remaining_uploads.clone(),
            is_ready: false,
        }
    }
}

impl<B> Service<Request<B>> for Api
where
    B: Body<Error: Into<BoxError>> + 'static,
{
    type Response = Response<String>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<String>, BoxError>>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.is_ready = self.gate.poll(cx).is_ready();
        if self.is_ready {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let id = *request.extensions().get::<CallId>().unwrap();
        let header = request.headers()[AUTHORIZATION].to_str().unwrap();
        let token = header.strip_prefix("Bearer ").unwrap().to_owned();
        let (answer, mut answered) = oneshot::channel();
        let send = {
            let mut observer = self.observer.lock();
            let was_ready = std::mem::take(&mut self.is_ready);
            observer.expect(was_ready, || {
                format!("readiness: {id:?} is sent through a service that was not ready")
            });
            observer.sent(id, token, answer);
            observer.calls[id.0].sends
        };
        let sending = Sending(Some((self.observer.clone(), id)));
        let mut upload = Upload::new(request.into_body(), id, send, self.observer.clone());
        let remaining_uploads = self.remaining_uploads.clone();
        Box::pin(async move {
            let answer = poll_fn(|cx| {
                let _ = upload.poll(cx);
                Pin::new(&mut answered).poll(cx)
            });
            let answer = answer.await?;
            sending.end(answer);
            if answer == Answer::RejectedEarly && !upload.has_ended() {
                let uploading = Box::pin(poll_fn(move |cx| upload.poll(cx)));
                remaining_uploads.borrow_mut().push((id, send, uploading));
            }
            match answer {
                Answer::Accepted => Ok(Response::default()),
                Answer::Rejected | Answer::RejectedEarly => Ok(crate::support::rejection()),
                Answer::Failed => Err("connection reset".into()),
            }
        })
    }
}

/// Tells the observer if the future of the API is dropped before it answers.
struct Sending(Option<(SharedObserver, CallId)>);

impl Sending {
    fn end(mut self, answer: Answer) {
        if let Some((observer, call)) = self.0.take() {
            observer.lock().answered(call, answer);
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some((observer, call)) = &self.0 {
            observer.lock().send_dropped(*call);
        }
    }
}

/// Whether the API is ready for another call.
#[derive(Clone, Default)]
struct Gate(Arc<Mutex<Closed>>);

#[derive(Default)]
struct Closed {
    is_closed: bool,
    waiting: Vec<Waker>,
}

impl Gate {
    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let mut closed = self.0.lock().unwrap();
        if !closed.is_closed {
            return Poll::Ready(());
        }
        closed.waiting.push(cx.waker().clone());
        Poll::Pending
    }

    fn is_open(&self) -> bool {
        !self.0.lock().unwrap().is_closed
    }

    fn close(&self) {
        self.0.lock().unwrap().is_closed = true;
    }

    fn open(&self) {
        let waiting = {
            let mut closed = self.0.lock().unwrap();
            closed.is_closed = false;
            std::mem::take(&mut closed.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}
