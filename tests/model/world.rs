//! The layer between a token service and an API that do as a history says.

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
    TokenCache, TokenRequest,
    replay::{Buffered, CloneBody, NoReplay},
};

use crate::{
    action::{Action, Answer, Reply, milliseconds},
    bodies::{Belt, Policy, SHORT_LIMIT, TEXT, Upload},
    clocks::Clocks,
    observer::{CallId, CallSeen, Observer, Phase},
    runtimes::{Home, Runtimes},
};

/// So many calls at once show what more would show.
const MOST_CALLS: usize = 24;

/// How a cache is made, and how its services are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    /// Each call has a clone of a service that makes none, so each looks at the cache.
    Plain,
    /// The cache asks for tokens that nobody uses.
    KeptWarm,
    /// One service makes call after call, and looks at the cache once in a millisecond: for that the
    /// wall clock has to be the system's, which nobody sets, and which stands all but still.
    ServicesThatLast,
}

pub(crate) struct World {
    setup: Setup,
    clocks: Clocks,
    observer: SharedObserver,
    gate: Gate,
    cache: TokenCache,
    services: Services,
    calls: Vec<PendingCall>,
    uploads: Vec<PendingUpload>,
    left_uploads: LeftUploads,
    runtimes: Runtimes,
}

/// One cache behind several replay policies.
struct Services {
    cloned: ClientCredentials<Api, CloneBody>,
    buffered: ClientCredentials<Api, Buffered>,
    overflowing: ClientCredentials<Api, Buffered>,
    never: ClientCredentials<Api, NoReplay>,
}

impl Services {
    fn new(cache: &TokenCache, api: &Api) -> Self {
        let layer = || ClientCredentialsLayer::with_cache(cache.clone());
        let buffered = |limit| layer().replay(Buffered::new(limit)).layer(api.clone());
        Self {
            cloned: layer().layer(api.clone()),
            buffered: buffered(TEXT.len()),
            overflowing: buffered(SHORT_LIMIT),
            never: layer().no_replay().layer(api.clone()),
        }
    }

    fn call(&mut self, setup: Setup, policy: Policy, id: CallId, belt: &Belt) -> Outcoming {
        let text = || request(id, TEXT.to_owned());
        match policy {
            Policy::Cloned => outcome(setup, &mut self.cloned, text()),
            Policy::Buffered => outcome(setup, &mut self.buffered, request(id, belt.body())),
            Policy::Overflowing => outcome(setup, &mut self.overflowing, request(id, belt.body())),
            Policy::Never => outcome(setup, &mut self.never, text()),
            Policy::OptedOut => {
                let mut request = text();
                request.extensions_mut().insert(NoReplay);
                outcome(setup, &mut self.cloned, request)
            }
        }
    }
}

fn request<B>(id: CallId, body: B) -> Request<B> {
    let request = Request::post("https://api.example/people").extension(id);
    request.body(body).unwrap()
}

/// A call on its way to what it comes to.
type Outcoming = Pin<Box<dyn Future<Output = TokenOutcome>>>;

fn outcome<S, B>(setup: Setup, service: &mut S, request: Request<B>) -> Outcoming
where
    S: Service<Request<B>, Response = Response<String>, Error = BoxError, Future: 'static>,
    S: Clone + 'static,
    B: 'static,
{
    let mut cx = Context::from_waker(Waker::noop());
    let calls_itself = setup == Setup::ServicesThatLast && service.poll_ready(&mut cx).is_ready();
    let response = if calls_itself {
        Either::Left(service.call(request))
    } else {
        Either::Right(service.clone().oneshot(request))
    };
    Box::pin(async move {
        match response.await {
            Ok(response) => {
                let outcome = response
                    .extensions()
                    .get::<tower_client_credentials::TokenOutcome>();
                let reason = outcome.and_then(|outcome| outcome.not_replayed());
                TokenOutcome::Status(response.status().as_u16(), reason.cloned())
            }
            Err(error) => error
                .downcast_ref()
                .map_or(TokenOutcome::ApiError, TokenOutcome::without_token),
        }
    })
}

/// What a call came to.
#[derive(Debug)]
pub(crate) enum TokenOutcome {
    Status(u16, Option<NotReplayed>),
    Token(String),
    ApiError,
    /// The token service failed.
    TokenError,
    /// Its token ended, or was rejected, before the service was ready to send it.
    Expired,
    /// One flight after the other was lost, or brought what ended before the call was polled.
    GaveUp,
}

impl TokenOutcome {
    fn without_token(error: &Error) -> Self {
        if error.is_expired() {
            Self::Expired
        } else if error.is_no_runtime() {
            Self::GaveUp
        } else {
            Self::TokenError
        }
    }

    /// Whether the request is why there was no second send, whatever the cache thinks.
    pub(crate) fn is_sent_once(&self) -> bool {
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
    home: Home,
    task: Spawn<Outcoming>,
}

/// A body that is read on after its request was answered.
struct PendingUpload {
    call: CallId,
    send: usize,
    task: Spawn<Uploading>,
}

type Uploading = Pin<Box<dyn Future<Output = ()>>>;

/// What an API leaves behind when it answers early.
type LeftUploads = Rc<RefCell<Vec<(CallId, usize, Uploading)>>>;

impl World {
    pub(crate) fn new(setup: Setup) -> Self {
        let is_kept_warm = setup == Setup::KeptWarm;
        let runtimes = Runtimes::start();
        let first = runtimes.handle(Home::First);
        let _context = first.enter();
        let clocks = Clocks::start();
        let observer = Observer::new(clocks.clone(), runtimes.driven(), is_kept_warm);
        let observer = SharedObserver::new(observer);
        let wall = clocks.clone();
        let builder = TokenCache::builder();
        let builder = match setup {
            Setup::Plain => builder.wall_clock(move || wall.system_time()),
            Setup::KeptWarm => builder.wall_clock(move || wall.system_time()).keep_warm(),
            Setup::ServicesThatLast => builder,
        };
        let issuer = observer.clone();
        let cache = builder.build(service_fn(move |request| issue(issuer.clone(), request)));
        let gate = Gate::default();
        let left_uploads = LeftUploads::default();
        let api = Api {
            observer: observer.clone(),
            gate: gate.clone(),
            left_uploads: left_uploads.clone(),
            is_ready: false,
        };
        let services = Services::new(&cache, &api);
        Self {
            setup,
            clocks,
            observer,
            gate,
            cache,
            services,
            calls: Vec::new(),
            uploads: Vec::new(),
            left_uploads,
            runtimes,
        }
    }

    /// Takes one step, lets all tasks run, and looks at every promise.
    pub(crate) fn step(&mut self, action: Action) -> Result<(), String> {
        let first = self.runtimes.handle(Home::First);
        let _context = first.enter();
        self.act(action);
        self.runtimes.settle();
        self.look()
    }

    /// Lets everything end well, and looks at what is left behind.
    pub(crate) fn finish(mut self, last_lifetime: u64) -> Result<(), String> {
        self.step(Action::Ready)?;
        // A call waits for two flights and two sends at most.
        for _ in 0..8 {
            for call in 0..self.calls.len() {
                self.step(Action::Frame(call))?;
            }
            self.step(Action::PollWoken)?;
            self.step(Action::Token(Reply::New(last_lifetime)))?;
            while !self.observer.lock().sends.is_empty() {
                self.step(Action::Api(0, Answer::Accepted))?;
            }
            // A pause before a retry may be all that they wait for: five seconds and half of that.
            self.step(Action::Wait(8000))?;
        }
        if let Some(call) = self.calls.first() {
            return Err(format!("every call completes: {:?} does not", call.id));
        }
        self.leave_nothing()
    }

    fn leave_nothing(self) -> Result<(), String> {
        let first = self.runtimes.handle(Home::First);
        let _context = first.enter();
        self.observer.lock().has_handles = false;
        drop((self.cache, self.services, self.calls, self.uploads));
        self.runtimes.settle();
        match self.runtimes.alive_tasks() {
            0 => self.observer.lock().verdict(),
            tasks => Err(format!("no task outlives the last handle: {tasks} do")),
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Call => self.call(Policy::Cloned, Home::First),
            Action::CallWith(policy, home) => self.call(policy, home),
            Action::Ask => self.ask(Home::First),
            Action::AskOn(home) => self.ask(home),
            Action::PollWoken => self.poll_woken(),
            Action::Poll(call) if !self.calls.is_empty() => self.poll(call % self.calls.len()),
            Action::Drop(call) if !self.calls.is_empty() => self.drop_call(call),
            Action::Frame(call) if !self.calls.is_empty() => self.bring_frame(call),
            Action::Poll(_) | Action::Drop(_) | Action::Frame(_) => {}
            Action::Token(reply) => self.answer_token_request(reply),
            Action::Api(send, answer) => self.answer_send(send, answer),
            Action::Reject => self.reject(),
            Action::Wait(time) => self.runtimes.wait(milliseconds(time)),
            Action::Freeze(time) => {
                self.observer.lock().stands_still = true;
                self.runtimes.freeze(milliseconds(time));
            }
            Action::SetWall(_) if self.setup == Setup::ServicesThatLast => {}
            Action::SetWall(seconds) => self.clocks.set_wall(seconds),
            Action::Lose => self.lose_second_runtime(),
            Action::Unready => self.gate.close(),
            Action::Ready => self.gate.open(),
        }
    }

    fn call(&mut self, policy: Policy, home: Home) {
        let seen = CallSeen {
            policy,
            ..CallSeen::default()
        };
        let belt = seen.belt.clone();
        self.start(seen, home, move |world, id| {
            world.services.call(world.setup, policy, id, &belt)
        });
    }

    fn ask(&mut self, home: Home) {
        let seen = CallSeen {
            is_ask: true,
            ..CallSeen::default()
        };
        self.start(seen, home, |world, _| {
            let cache = world.cache.clone();
            Box::pin(async move {
                match cache.token().await {
                    Ok(token) => TokenOutcome::Token(token.expose().to_owned()),
                    Err(error) => TokenOutcome::without_token(&error),
                }
            })
        });
    }

    fn start(
        &mut self,
        seen: CallSeen,
        home: Home,
        call: impl FnOnce(&mut Self, CallId) -> Outcoming,
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
            let home = self.runtimes.handle(home);
            let _context = home.enter();
            spawn(call(self, id))
        };
        self.calls.push(PendingCall { id, home, task });
        self.poll(self.calls.len() - 1);
    }

    fn poll_woken(&mut self) {
        // From the newest, because those that are over are taken out.
        for index in (0..self.calls.len()).rev() {
            if self.calls[index].task.is_woken() {
                self.poll(index);
            }
        }
        self.uploads
            .retain_mut(|upload| !upload.task.is_woken() || upload.task.poll().is_pending());
    }

    fn poll(&mut self, index: usize) {
        let call = &mut self.calls[index];
        let id = call.id;
        self.observer.lock().polls += 1;
        let polled = {
            let home = self.runtimes.handle(call.home);
            let _context = home.enter();
            call.task.poll()
        };
        for (call, send, upload) in self.left_uploads.take() {
            let mut task = spawn(upload);
            if task.poll().is_pending() {
                self.uploads.push(PendingUpload { call, send, task });
            }
        }
        let mut observer = self.observer.lock();
        match polled {
            Poll::Pending => observer.still_pending(id, self.gate.is_open()),
            Poll::Ready(outcome) => {
                if let TokenOutcome::Token(token) = &outcome {
                    observer.handed_out(id, token);
                }
                observer.over_with(id, &outcome);
                drop(observer);
                self.calls.remove(index);
            }
        }
    }

    fn drop_call(&mut self, call: usize) {
        let call = self.calls.remove(call % self.calls.len());
        self.observer.lock().calls[call.id.0].is_over = true;
    }

    fn bring_frame(&mut self, call: usize) {
        let call = self.calls[call % self.calls.len()].id;
        let belt = self.observer.lock().calls[call.0].belt.clone();
        belt.bring();
    }

    fn lose_second_runtime(&mut self) {
        // Calls are tasks of a runtime, too.
        while let Some(call) = self.calls.iter().position(|call| call.home == Home::Second) {
            self.drop_call(call);
        }
        self.observer.lock().second_runtime_goes_away();
        self.runtimes.lose_second();
    }

    fn answer_token_request(&mut self, reply: Reply) {
        let reply = match self.setup {
            Setup::ServicesThatLast => reply.lasting_longer_than_a_test(),
            Setup::Plain | Setup::KeptWarm => reply,
        };
        let mut observer = self.observer.lock();
        let now = observer.now();
        let Some(flight) = &mut observer.flight else {
            return;
        };
        let retry_after = match reply {
            Reply::Transient | Reply::Panic => Some(Duration::ZERO),
            Reply::RetryAfter(seconds) => Some(Duration::from_secs(seconds)),
            Reply::New(_) | Reply::Same(_) | Reply::Permanent => None,
        };
        if retry_after.is_some_and(|retry_after| flight.may_end_or_retry(retry_after, now)) {
            return;
        }
        if let Phase::Asking(answer) = &mut flight.phase {
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
        if matches!(self.cache.reject(&token), Rejection::Withheld) {
            self.observer.lock().rejected_by_hand();
        }
    }

    fn look(&mut self) -> Result<(), String> {
        let mut observer = self.observer.lock();
        let is_ready = self.gate.is_open();
        observer.step_is_over();
        observer.flight_goes_on();
        for call in &self.calls {
            let is_woken = call.task.is_woken();
            observer.no_call_is_pending_without_a_reason(call.id, is_woken, is_ready);
            observer.no_upload_waits_for_what_is_there(call.id, is_woken);
        }
        for upload in &self.uploads {
            let is_woken = upload.task.is_woken();
            observer.no_left_upload_waits_for_nothing(upload.call, upload.send, is_woken);
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

/// The token service: waits for the history to say what it answers.
async fn issue(observer: SharedObserver, request: TokenRequest) -> Result<AccessToken, BoxError> {
    let (answer, answered) = oneshot::channel();
    let rejected = request.rejected.map(|token| token.expose().to_owned());
    observer.lock().token_requested(rejected, answer);
    let in_progress = InProgress(Some(observer.clone()));
    let Ok(reply) = answered.await else {
        return std::future::pending().await;
    };

    in_progress.end();
    let token = observer.lock().token_answered(reply);
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
        // A panic that prints nothing.
        Reply::Panic => resume_unwind(Box::new("the token service panics on purpose")),
    }
}

/// A token request that is told to the observer if it is given up.
struct InProgress(Option<SharedObserver>);

impl InProgress {
    fn end(mut self) {
        self.0 = None;
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        if let Some(observer) = &self.0 {
            observer.lock().token_request_dropped();
        }
    }
}

/// The API: waits for the history to say what it answers.
struct Api {
    observer: SharedObserver,
    gate: Gate,
    left_uploads: LeftUploads,
    is_ready: bool,
}

impl Clone for Api {
    fn clone(&self) -> Self {
        Self {
            observer: self.observer.clone(),
            gate: self.gate.clone(),
            left_uploads: self.left_uploads.clone(),
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
                format!("readiness: {id:?} is sent by a service that was not ready")
            });
            observer.sent(id, token, answer);
            observer.calls[id.0].sends
        };
        let sending = Sending(Some((self.observer.clone(), id)));
        let mut upload = Upload::new(request.into_body(), id, send, self.observer.clone());
        let left_uploads = self.left_uploads.clone();
        Box::pin(async move {
            let answer = poll_fn(|cx| {
                let _ = upload.poll(cx);
                Pin::new(&mut answered).poll(cx)
            });
            let answer = answer.await?;
            sending.end(answer);
            if answer == Answer::RejectedEarly && !upload.has_ended() {
                let uploading = Box::pin(poll_fn(move |cx| upload.poll(cx)));
                left_uploads.borrow_mut().push((id, send, uploading));
            }
            match answer {
                Answer::Accepted => Ok(Response::default()),
                Answer::Rejected | Answer::RejectedEarly => Ok(crate::support::rejection()),
                Answer::Failed => Err("connection reset".into()),
            }
        })
    }
}

/// A send that is told to the observer if it is given up.
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

/// Whether the API has room for another call.
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
