//! The layer between a token service and an API that do as a history says.

use std::{
    panic::resume_unwind,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Request, Response, header::AUTHORIZATION};
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{advance, sleep},
};
use tokio_test::task::{Spawn, spawn};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, ClientCredentials, ClientCredentialsLayer, Error, Rejection, TokenCache,
    TokenRequest,
};

use crate::{
    action::{Action, Answer, Reply, milliseconds},
    clocks::Clocks,
    observer::{CallId, CallSeen, Observer, Phase},
    support::settle_briefly,
};

/// So many calls at once show what more would show.
const MOST_CALLS: usize = 24;

pub(crate) struct World {
    clocks: Clocks,
    observer: SharedObserver,
    gate: Gate,
    cache: TokenCache,
    service: ClientCredentials<Api>,
    calls: Vec<PendingCall>,
}

/// What a call came to.
#[derive(Debug)]
pub(crate) enum Outcome {
    Status(u16),
    Token(String),
    ApiError,
    /// The token service failed.
    TokenError,
    /// Its token ended, or was rejected, before the service was ready to send it.
    Expired,
    /// One flight after the other was lost, or brought what ended before the call was polled.
    GaveUp,
}

impl Outcome {
    fn without_token(error: &Error) -> Self {
        if error.is_expired() {
            Self::Expired
        } else if error.is_no_runtime() {
            Self::GaveUp
        } else {
            Self::TokenError
        }
    }
}

struct PendingCall {
    id: CallId,
    task: Spawn<Pin<Box<dyn Future<Output = Outcome>>>>,
}

impl World {
    pub(crate) fn new(is_kept_warm: bool) -> Self {
        let clocks = Clocks::start();
        let observer = SharedObserver::new(Observer::new(clocks.clone(), is_kept_warm));
        let wall = clocks.clone();
        let mut builder = TokenCache::builder().wall_clock(move || wall.system_time());
        if is_kept_warm {
            builder = builder.keep_warm();
        }
        let issuer = observer.clone();
        let cache = builder.build(service_fn(move |request| issue(issuer.clone(), request)));
        let gate = Gate::default();
        let api = Api {
            observer: observer.clone(),
            gate: gate.clone(),
            is_ready: false,
        };
        let service = ClientCredentialsLayer::with_cache(cache.clone()).layer(api);
        Self {
            clocks,
            observer,
            gate,
            cache,
            service,
            calls: Vec::new(),
        }
    }

    /// Takes one step, lets all tasks run, and looks at every promise.
    pub(crate) async fn step(&mut self, action: Action) -> Result<(), String> {
        self.act(action).await;
        settle_briefly().await;
        self.look()
    }

    /// Lets everything end well, and looks at what is left behind.
    pub(crate) async fn finish(mut self, last_lifetime: u64) -> Result<(), String> {
        self.step(Action::Ready).await?;
        // A call waits for two flights and two sends at most.
        for _ in 0..8 {
            self.step(Action::PollWoken).await?;
            self.step(Action::Token(Reply::New(last_lifetime))).await?;
            while !self.observer.lock().sends.is_empty() {
                self.step(Action::Api(0, Answer::Accepted)).await?;
            }
            // A pause before a retry may be all that they wait for: five seconds and half of that.
            self.step(Action::Wait(8000)).await?;
        }
        if let Some(call) = self.calls.first() {
            return Err(format!("every call completes: {:?} does not", call.id));
        }
        self.leave_nothing().await
    }

    async fn leave_nothing(self) -> Result<(), String> {
        self.observer.lock().has_handles = false;
        drop((self.cache, self.service, self.calls));
        settle_briefly().await;
        match Handle::current().metrics().num_alive_tasks() {
            0 => self.observer.lock().verdict(),
            tasks => Err(format!("no task outlives the last handle: {tasks} do")),
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Call => self.call(),
            Action::Ask => self.ask(),
            Action::PollWoken => self.poll_woken(),
            Action::Poll(call) if !self.calls.is_empty() => self.poll(call % self.calls.len()),
            Action::Drop(call) if !self.calls.is_empty() => self.drop_call(call),
            Action::Poll(_) | Action::Drop(_) => {}
            Action::Token(reply) => self.answer_token_request(reply),
            Action::Api(send, answer) => self.answer_send(send, answer),
            Action::Reject => self.reject(),
            Action::Wait(time) => sleep(milliseconds(time)).await,
            Action::Freeze(time) => advance(milliseconds(time)).await,
            Action::SetWall(seconds) => self.clocks.set_wall(seconds),
            Action::Unready => self.gate.close(),
            Action::Ready => self.gate.open(),
        }
    }

    fn call(&mut self) {
        let service = self.service.clone();
        self.start(CallSeen::default(), move |id| {
            let request = Request::post("https://api.example/people").extension(id);
            let request = request.body("name=Ada".to_owned()).unwrap();
            let response = service.oneshot(request);
            Box::pin(async move {
                match response.await {
                    Ok(response) => Outcome::Status(response.status().as_u16()),
                    Err(error) => error
                        .downcast_ref()
                        .map_or(Outcome::ApiError, Outcome::without_token),
                }
            })
        });
    }

    fn ask(&mut self) {
        let cache = self.cache.clone();
        let seen = CallSeen {
            is_ask: true,
            ..CallSeen::default()
        };
        self.start(seen, move |_| {
            Box::pin(async move {
                match cache.token().await {
                    Ok(token) => Outcome::Token(token.expose().to_owned()),
                    Err(error) => Outcome::without_token(&error),
                }
            })
        });
    }

    fn start(
        &mut self,
        seen: CallSeen,
        call: impl FnOnce(CallId) -> Pin<Box<dyn Future<Output = Outcome>>>,
    ) {
        if self.calls.len() == MOST_CALLS {
            return;
        }
        let id = {
            let calls = &mut self.observer.lock().calls;
            calls.push(seen);
            CallId(calls.len() - 1)
        };
        let task = spawn(call(id));
        self.calls.push(PendingCall { id, task });
        self.poll(self.calls.len() - 1);
    }

    fn poll_woken(&mut self) {
        // From the newest, because those that are over are taken out.
        for index in (0..self.calls.len()).rev() {
            if self.calls[index].task.is_woken() {
                self.poll(index);
            }
        }
    }

    fn poll(&mut self, index: usize) {
        let call = &mut self.calls[index];
        let id = call.id;
        self.observer.lock().polls += 1;
        let polled = call.task.poll();
        let mut observer = self.observer.lock();
        match polled {
            Poll::Pending => observer.still_pending(id, self.gate.is_open()),
            Poll::Ready(outcome) => {
                if let Outcome::Token(token) = &outcome {
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

    fn answer_token_request(&mut self, reply: Reply) {
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
        }
        observer.verdict()
    }
}

#[derive(Clone)]
struct SharedObserver(Arc<Mutex<Observer>>);

impl SharedObserver {
    fn new(observer: Observer) -> Self {
        Self(Arc::new(Mutex::new(observer)))
    }

    fn lock(&self) -> MutexGuard<'_, Observer> {
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
            Ok(token.expires_in(milliseconds(lifetime)))
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
    is_ready: bool,
}

impl Clone for Api {
    fn clone(&self) -> Self {
        Self {
            observer: self.observer.clone(),
            gate: self.gate.clone(),
            is_ready: false,
        }
    }
}

impl Service<Request<String>> for Api {
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

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let id = *request.extensions().get::<CallId>().unwrap();
        let header = request.headers()[AUTHORIZATION].to_str().unwrap();
        let token = header.strip_prefix("Bearer ").unwrap().to_owned();
        let (answer, answered) = oneshot::channel();
        {
            let mut observer = self.observer.lock();
            let was_ready = std::mem::take(&mut self.is_ready);
            observer.expect(was_ready, || {
                format!("readiness: {id:?} is sent by a service that was not ready")
            });
            observer.sent(id, token, answer);
        }
        let sending = Sending(Some((self.observer.clone(), id)));
        Box::pin(async move {
            let answer = answered.await?;
            sending.end(answer);
            match answer {
                Answer::Accepted => Ok(Response::default()),
                Answer::Rejected => Ok(crate::support::rejection()),
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
