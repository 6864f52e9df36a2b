//! One call: its request is sent with a token, and sent again if the token is rejected.
//!
//! Most calls find a fresh token and get a response that says nothing about it: the fast path is
//! the inner future and what is saved for a replay. Every other call takes the slow path, a box
//! whose stages are named after what they wait for.

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response, request, response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::{BoxError, Service};

use crate::{
    Error, NotReplayed, Rejection, TokenCache, TokenOmitted, TokenOutcome,
    drain::Drain,
    error::Kind,
    origin::Destinations,
    replay::{NotSaved, ReplayPolicy, SavedRequest},
    scheme::{Put, Verdict},
    telemetry,
    token::{Acquired, Acquiring, CachedToken},
};

/// Decides which responses reject the token.
pub(crate) type RejectedWhen = Arc<dyn Fn(&response::Parts) -> bool + Send + Sync>;

/// What the layer was set up with. All clones of a service and their calls share it.
pub(crate) struct Options<R> {
    pub(crate) cache: TokenCache,
    pub(crate) destinations: Destinations,
    pub(crate) policy: R,
    pub(crate) rejected_when: Option<RejectedWhen>,
}

impl<R> Options<R> {
    /// Whether a response may say something about the token that its request carried.
    #[inline]
    fn must_read<B>(&self, token: &CachedToken, response: &Response<B>) -> bool {
        self.rejected_when.is_some() || token.token().scheme().must_read(response)
    }

    /// Reads what a response says about the token that its request carried.
    fn verdict(&self, token: &CachedToken, response: &response::Parts) -> Verdict {
        let verdict = token.token().scheme().verdict(response);
        match &self.rejected_when {
            Some(rejected_when) if verdict != Verdict::SendAgain => {
                if rejected_when(response) {
                    Verdict::Rejected
                } else {
                    Verdict::Accepted
                }
            }
            _ => verdict,
        }
    }
}

pin_project! {
    /// The response future of [`ClientCredentials`](crate::ClientCredentials).
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
    /// # let http = service_fn(|_: http::Request<String>| async {
    /// #     Ok::<_, BoxError>(http::Response::new(String::new()))
    /// # });
    /// use std::time::Duration;
    /// use tower::{Layer, Service, ServiceExt};
    /// use tower_client_credentials::ClientCredentialsLayer;
    ///
    /// let mut api = ClientCredentialsLayer::new(token_service).layer(http);
    /// let response = api.ready().await?.call(http::Request::new(String::new()));
    ///
    /// // If the call times out, its token request continues, and the next call uses the token.
    /// let response = tokio::time::timeout(Duration::from_secs(5), response).await??;
    /// # assert_eq!(response.status(), 200);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the request, as with any service. It doesn't cancel a token request
    /// that the call waits for: other calls can use the token.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, R, B>
    where
        S: Service<Request<R::Body>>,
        R: ReplayPolicy<B>,
    {
        #[pin]
        state: State<S, R, B>,
    }
}

pin_project! {
    #[project = StateProj]
    #[project_replace = StateReplaced]
    enum State<S, R, B>
    where
        S: Service<Request<R::Body>>,
        R: ReplayPolicy<B>,
    {
        // The API has the request, with a token.
        Calling {
            #[pin]
            response: S::Future,
            sent: Sent<S, R, R::Kept>,
        },
        // The API has the request, with a token of the caller's own or with none.
        CallingUntouched {
            #[pin]
            response: S::Future,
            omitted: Option<TokenOmitted>,
        },
        // The call waits before a send, or its response has something to report.
        Slow { call: Pin<Box<SlowCall<S, R, B>>> },
        // The token could not be put on the request.
        Failed { error: Option<Error> },
    }
}

/// A token that was sent with a request, and what a replay needs.
pub(crate) struct Sent<S, R, K> {
    pub(crate) token: Arc<CachedToken>,
    pub(crate) options: Arc<Options<R>>,
    pub(crate) replay: Result<Replay<S, K>, NotSaved>,
}

/// What is needed to send a request again.
pub(crate) struct Replay<S, K> {
    /// Has to be polled ready first.
    service: S,
    request: SavedRequest<K>,
}

impl<S: Clone, K> Replay<S, K> {
    /// Prepares for a replay of a request that carries the token.
    #[inline]
    pub(crate) fn prepare(
        service: &S,
        token: &CachedToken,
        head: &request::Parts,
        kept: Option<K>,
    ) -> Result<Self, NotSaved> {
        let request = SavedRequest::new(head, Some(token.token().scheme()), kept)?;
        let service = service.clone();
        Ok(Self { service, request })
    }
}

impl<S, R, B> ResponseFuture<S, R, B>
where
    S: Service<Request<R::Body>>,
    R: ReplayPolicy<B>,
{
    /// The request was sent with a token.
    #[inline]
    pub(crate) fn calling(response: S::Future, sent: Sent<S, R, R::Kept>) -> Self {
        Self {
            state: State::Calling { response, sent },
        }
    }

    /// The request was sent without a token of ours: it carries one of the caller's own, or must not
    /// carry any.
    pub(crate) fn calling_untouched(response: S::Future, omitted: Option<TokenOmitted>) -> Self {
        if let Some(reason) = omitted {
            telemetry::token_omitted(reason.label());
        }
        Self {
            state: State::CallingUntouched { response, omitted },
        }
    }

    /// The request waits for a token.
    pub(crate) fn waiting(job: Job<S, R, B>) -> Self {
        let stage = job.await_token();
        Self::slow(SlowCall { stage, job })
    }

    /// The token could not be put on the request.
    pub(crate) fn failed(error: Error) -> Self {
        let error = Some(error);
        Self {
            state: State::Failed { error },
        }
    }

    fn slow(call: SlowCall<S, R, B>) -> Self {
        let call = Box::pin(call);
        Self {
            state: State::Slow { call },
        }
    }
}

impl<S, R, B, ResBody> Future for ResponseFuture<S, R, B>
where
    S: Service<Request<R::Body>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    R: ReplayPolicy<B>,
    ResBody: Body,
{
    type Output = Result<Response<ResBody>, BoxError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.as_mut().project().state.project() {
            StateProj::Calling { response, sent } => match response.poll(cx) {
                Poll::Ready(Ok(response)) if sent.must_read(&response) => self.read(response, cx),
                output => output.map_err(Into::into),
            },
            StateProj::CallingUntouched { response, omitted } => {
                let response = ready!(response.poll(cx)).map_err(Into::into)?;
                Poll::Ready(Ok(match omitted.take() {
                    Some(reason) => TokenOutcome::without_token(reason).attach_to(response),
                    None => response,
                }))
            }
            StateProj::Slow { call } => call.as_mut().poll(cx),
            StateProj::Failed { error } => {
                let error = error.take().expect(POLLED_AFTER_READY);
                Poll::Ready(Err(error.into()))
            }
        }
    }
}

impl<S, R, B, ResBody> ResponseFuture<S, R, B>
where
    S: Service<Request<R::Body>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    R: ReplayPolicy<B>,
    ResBody: Body,
{
    /// Gives the response to the caller, or goes on by the slow path.
    #[cold]
    #[inline(never)]
    fn read(
        mut self: Pin<&mut Self>,
        response: Response<ResBody>,
        cx: &mut Context<'_>,
    ) -> Poll<<Self as Future>::Output> {
        let failed = State::Failed { error: None };
        let state = self.as_mut().project().state.project_replace(failed);
        let StateReplaced::Calling { sent, .. } = state else {
            unreachable!("the response is that of a call")
        };
        match sent.follow_up(response) {
            FollowUp::Return(response) => Poll::Ready(Ok(response)),
            FollowUp::Continue(call) => {
                self.set(Self::slow(call));
                self.poll(cx)
            }
        }
    }
}

impl<S, R, B> fmt::Debug for ResponseFuture<S, R, B>
where
    S: Service<Request<R::Body>>,
    R: ReplayPolicy<B>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Calling { .. } => "Calling",
            State::CallingUntouched { .. } => "CallingUntouched",
            State::Slow { call } => call.stage.name(),
            State::Failed { .. } => "Failed",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}

/// What follows a response, or the end of a renewal.
enum FollowUp<Res, Next> {
    /// The caller gets the response.
    Return(Res),
    /// The request is sent again.
    Continue(Next),
}

impl<S, R, K> Sent<S, R, K> {
    /// Whether the response may say something about the token.
    #[inline]
    fn must_read<B>(&self, response: &Response<B>) -> bool {
        self.options.must_read(&self.token, response)
    }

    /// Decides what follows the response to the first send.
    fn follow_up<B, ResBody>(
        self,
        response: Response<ResBody>,
    ) -> FollowUp<Response<ResBody>, SlowCall<S, R, B>>
    where
        S: Service<Request<R::Body>, Response = Response<ResBody>>,
        R: ReplayPolicy<B, Kept = K>,
    {
        let (head, body) = response.into_parts();
        let verdict = self.options.verdict(&self.token, &head);
        let response = Response::from_parts(head, body);
        match self.replay {
            _ if verdict == Verdict::Accepted => FollowUp::Return(response),
            Ok(Replay { service, request }) => {
                let mut job = Job::new(self.options, service, Ok(request));
                match job.refused(verdict, self.token, response) {
                    FollowUp::Return(response) => FollowUp::Return(response),
                    FollowUp::Continue(stage) => FollowUp::Continue(SlowCall { stage, job }),
                }
            }
            Err(not_saved) => {
                if verdict == Verdict::Rejected {
                    self.options.reject_for_others(&self.token);
                }
                let reason = self.options.reason(not_saved);
                FollowUp::Return(TokenOutcome::default().explain(reason, response))
            }
        }
    }
}

impl<R> Options<R> {
    /// The request can't be sent again, but the requests that follow need another token.
    fn reject_for_others(&self, token: &CachedToken) {
        let rejection = self.cache.reject_generation(token.generation());
        if matches!(rejection, Rejection::Withheld) {
            self.cache.renew_in_background();
        }
    }

    fn reason<B>(&self, not_saved: NotSaved) -> NotReplayed
    where
        R: ReplayPolicy<B>,
    {
        match not_saved {
            NotSaved::Body => self.policy.not_kept(),
            NotSaved::OptedOut => NotReplayed::OptedOut,
            NotSaved::Replayed => {
                telemetry::rejected_again();
                NotReplayed::RejectedAgain
            }
        }
    }
}

pin_project! {
    /// A call that waits before a send, or whose response has something to report.
    struct SlowCall<S, R, B>
    where
        S: Service<Request<R::Body>>,
        R: ReplayPolicy<B>,
    {
        #[pin]
        stage: Stage<S::Future, S::Response>,
        job: Job<S, R, B>,
    }
}

pin_project! {
    /// What a slow call waits for.
    #[project = StageProj]
    enum Stage<F, Res> {
        // The request waits for a token.
        AwaitingToken { token: Acquiring },
        // The API rejected the token. Its response is held until the renewal has ended.
        Renewing {
            token: Acquiring,
            rejection: Option<Res>,
        },
        // The request can be sent again. What has arrived of the rejection is read first, so that
        // its connection can be used again.
        Draining {
            token: Arc<CachedToken>,
            rejection: Pin<Box<Res>>,
            drain: Drain,
        },
        // The token is there. The service has to become ready.
        Readying { token: Arc<CachedToken> },
        // The API has the request.
        Calling {
            token: Arc<CachedToken>,
            #[pin]
            response: F,
        },
        // The API has the request, which turned out to carry a token of the caller's own.
        CallingUntouched {
            #[pin]
            response: F,
        },
    }
}

impl<F, Res> Stage<F, Res> {
    fn draining(token: Arc<CachedToken>, rejection: Res) -> Self {
        Self::Draining {
            token,
            rejection: Box::pin(rejection),
            drain: Drain::new(),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::AwaitingToken { .. } => "AwaitingToken",
            Self::Renewing { .. } => "Renewing",
            Self::Draining { .. } => "Draining",
            Self::Readying { .. } => "Readying",
            Self::Calling { .. } => "Calling",
            Self::CallingUntouched { .. } => "CallingUntouched",
        }
    }
}

impl<S, R, B, ResBody> Future for SlowCall<S, R, B>
where
    S: Service<Request<R::Body>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    R: ReplayPolicy<B>,
    ResBody: Body,
{
    type Output = Result<S::Response, BoxError>;

    #[cold]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let mut this = self.as_mut().project();
            let follow_up = match this.stage.as_mut().project() {
                StageProj::AwaitingToken { token } => {
                    let acquired = ready!(token.as_mut().poll(cx));
                    FollowUp::Continue(this.job.token_acquired(acquired)?)
                }
                StageProj::Renewing { token, rejection } => {
                    let renewal = ready!(token.as_mut().poll(cx));
                    let rejection = rejection.take().expect(POLLED_AFTER_READY);
                    this.job.renewal_ended(renewal, rejection)
                }
                StageProj::Draining {
                    token,
                    rejection,
                    drain,
                } => {
                    ready!(drain.poll(rejection.as_mut(), cx));
                    let token = Arc::clone(token);
                    FollowUp::Continue(Stage::Readying { token })
                }
                StageProj::Readying { token } => {
                    ready!(this.job.service.poll_ready(cx)).map_err(Into::into)?;
                    FollowUp::Continue(this.job.service_ready(token)?)
                }
                StageProj::Calling { token, response } => {
                    let response = ready!(response.poll(cx)).map_err(Into::into)?;
                    let token = Arc::clone(token);
                    this.job.answered(token, response)
                }
                StageProj::CallingUntouched { response } => {
                    let response = ready!(response.poll(cx)).map_err(Into::into)?;
                    FollowUp::Return(this.job.finish(response))
                }
            };
            match follow_up {
                FollowUp::Return(response) => return Poll::Ready(Ok(response)),
                FollowUp::Continue(stage) => this.stage.set(stage),
            }
        }
    }
}

/// The request of a slow call, and what becomes of it.
pub(crate) struct Job<S, R, B>
where
    R: ReplayPolicy<B>,
{
    options: Arc<Options<R>>,
    /// Ready when the last stage before a send has ended, and only then.
    service: S,
    /// The request to send next, without a token.
    request: Option<Request<R::Body>>,
    saved: Result<SavedRequest<R::Kept>, NotSaved>,
    /// The request was sent again with the same token, as the API had asked for it.
    challenge_answered: bool,
    /// The request is sent again with another token.
    token_replaced: bool,
    /// How often the request may still wait for another token before it is sent.
    waits_left: u8,
    outcome: TokenOutcome,
}

/// How often a request waits again because its token expired, or was rejected for another request,
/// while the service became ready.
///
/// Otherwise a service that takes longer to become ready than a token lives would request tokens
/// forever.
const WAITS: u8 = 10;

impl<S, R, B> Job<S, R, B>
where
    R: ReplayPolicy<B>,
{
    fn new(
        options: Arc<Options<R>>,
        service: S,
        saved: Result<SavedRequest<R::Kept>, NotSaved>,
    ) -> Self {
        Self {
            options,
            service,
            request: None,
            saved,
            challenge_answered: false,
            token_replaced: false,
            waits_left: WAITS,
            outcome: TokenOutcome::default(),
        }
    }

    /// A request that has not been sent. The service has to be polled ready first.
    pub(crate) fn unsent(
        options: Arc<Options<R>>,
        service: S,
        request: Request<R::Body>,
        saved: Result<SavedRequest<R::Kept>, NotSaved>,
    ) -> Self {
        Self {
            request: Some(request),
            ..Self::new(options, service, saved)
        }
    }

    fn await_token<F, Res>(&self) -> Stage<F, Res> {
        let token = self.options.cache.clone().acquire(None);
        Stage::AwaitingToken { token }
    }

    /// A wait for a token has ended.
    fn token_acquired<F, Res>(&mut self, acquired: Acquired) -> Result<Stage<F, Res>, Error> {
        self.outcome.note_wait(acquired.waited);
        match acquired.result {
            Ok(token) => Ok(Stage::Readying { token }),
            Err(error) => Err(error.after(self.outcome.waited())),
        }
    }

    /// The service is ready, and `token` was usable when the wait for the service began.
    fn service_ready<Res>(
        &mut self,
        token: &Arc<CachedToken>,
    ) -> Result<Stage<S::Future, Res>, Error>
    where
        S: Service<Request<R::Body>> + Clone,
    {
        match self.options.cache.still_usable(token) {
            Some(token) => self.send(token),
            None => self.wait_again(),
        }
    }

    fn send<Res>(&mut self, token: Arc<CachedToken>) -> Result<Stage<S::Future, Res>, Error>
    where
        S: Service<Request<R::Body>>,
    {
        let mut request = self.request.take().expect("a waiting request is sent once");
        let put = token.token().scheme().put_on(&mut request);
        if put == Put::NoRoom {
            return Err(Error::new(Kind::TooManyHeaders).after(self.outcome.waited()));
        }
        let response = self.service.call(request);
        Ok(match put {
            // A request that waits for the first token can't know which header that goes into.
            Put::CallersOwn => Stage::CallingUntouched { response },
            _ => Stage::Calling { token, response },
        })
    }

    fn wait_again<F, Res>(&mut self) -> Result<Stage<F, Res>, Error>
    where
        S: Clone,
    {
        let Some(waits_left) = self.waits_left.checked_sub(1) else {
            return Err(Error::new(Kind::Expired).after(self.outcome.waited()));
        };
        self.waits_left = waits_left;
        // Gives up the service's readiness, which the next token request may need.
        self.service = self.service.clone();
        Ok(self.await_token())
    }

    /// The API answered.
    fn answered<F, ResBody>(
        &mut self,
        token: Arc<CachedToken>,
        response: Response<ResBody>,
    ) -> FollowUp<Response<ResBody>, Stage<F, Response<ResBody>>> {
        let (head, body) = response.into_parts();
        let verdict = self.options.verdict(&token, &head);
        let response = Response::from_parts(head, body);
        match verdict {
            Verdict::Accepted => FollowUp::Return(self.finish(response)),
            _ => self.refused(verdict, token, response),
        }
    }

    /// The API refused the request because of its token.
    fn refused<F, Res>(
        &mut self,
        verdict: Verdict,
        token: Arc<CachedToken>,
        response: Response<Res>,
    ) -> FollowUp<Response<Res>, Stage<F, Response<Res>>> {
        let is_challenge = verdict == Verdict::SendAgain && !self.challenge_answered;
        let request = if is_challenge {
            self.request_after_challenge()
        } else {
            self.request_after_rejection(&token)
        };
        match request {
            Err(reason) => FollowUp::Return(self.finish_with(reason, response)),
            Ok(request) => {
                self.request = Some(request);
                FollowUp::Continue(if is_challenge {
                    self.outcome.note_replay(false);
                    Stage::draining(token, response)
                } else {
                    self.await_renewal(&token, response)
                })
            }
        }
    }

    /// Makes the request again for the same token.
    fn request_after_challenge(&mut self) -> Result<Request<R::Body>, NotReplayed> {
        self.challenge_answered = true;
        match &mut self.saved {
            Ok(saved) => saved.restore(&self.options.policy),
            Err(not_saved) => Err(self.options.reason(*not_saved)),
        }
    }

    /// Makes the request again if another token may help, and tells the cache of the rejection.
    fn request_after_rejection(
        &mut self,
        token: &CachedToken,
    ) -> Result<Request<R::Body>, NotReplayed> {
        let options = &self.options;
        if mem::replace(&mut self.token_replaced, true) {
            self.saved = Err(NotSaved::Replayed);
        }
        let saved = match &mut self.saved {
            Ok(saved) => saved,
            Err(not_saved) => {
                options.reject_for_others(token);
                return Err(options.reason(*not_saved));
            }
        };
        let request = match options.cache.reject_generation(token.generation()) {
            Rejection::CoolingDown => return Err(NotReplayed::CoolingDown),
            Rejection::Failing(error) => return Err(NotReplayed::RenewalFailed(error)),
            Rejection::Replaced => saved.restore(&options.policy)?,
            Rejection::Withheld => saved
                .restore(&options.policy)
                .inspect_err(|_| options.cache.renew_in_background())?,
        };
        if self.challenge_answered || !token.token().scheme().may_challenge() {
            // No other send follows, so the body need not be remembered any longer.
            self.saved = Err(NotSaved::Replayed);
        }
        Ok(request)
    }

    fn await_renewal<F, Res>(&self, rejected: &CachedToken, rejection: Res) -> Stage<F, Res> {
        let cache = self.options.cache.clone();
        Stage::Renewing {
            token: cache.acquire(Some(rejected.generation())),
            rejection: Some(rejection),
        }
    }

    fn renewal_ended<F, ResBody>(
        &mut self,
        renewal: Acquired,
        rejection: Response<ResBody>,
    ) -> FollowUp<Response<ResBody>, Stage<F, Response<ResBody>>> {
        self.outcome.note_wait(renewal.waited);
        match renewal.result {
            Ok(token) => {
                let renewed = renewal.waited.is_some();
                self.outcome.note_replay(renewed);
                telemetry::replayed(renewed);
                FollowUp::Continue(Stage::draining(token, rejection))
            }
            Err(error) => {
                let reason = NotReplayed::without_token(error);
                FollowUp::Return(self.finish_with(reason, rejection))
            }
        }
    }

    /// The response that the caller gets.
    fn finish<ResBody>(&mut self, response: Response<ResBody>) -> Response<ResBody> {
        mem::take(&mut self.outcome).attach_to(response)
    }

    /// The rejection that the caller gets, and why.
    fn finish_with<ResBody>(
        &mut self,
        reason: NotReplayed,
        rejection: Response<ResBody>,
    ) -> Response<ResBody> {
        mem::take(&mut self.outcome).explain(reason, rejection)
    }
}

const POLLED_AFTER_READY: &str = "`ResponseFuture` is not polled after it returned `Ready`";

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use http::{HeaderMap, StatusCode};
    use tower::{Layer, ServiceExt, service_fn};

    use super::*;
    use crate::{
        AccessToken, ClientCredentialsLayer, TokenRequest,
        scheme::{Scheme, tests::Challenged},
    };

    /// An API that gives prepared answers in turn, and remembers the requests.
    #[derive(Clone)]
    struct Api {
        answers: Arc<Mutex<Vec<Answer>>>,
        requests: Arc<Mutex<Vec<Request<String>>>>,
    }

    /// A status, and a nonce that the next request has to prove.
    type Answer = (u16, Option<&'static str>);

    impl Api {
        fn answering<const N: usize>(answers: [Answer; N]) -> Self {
            Self {
                answers: Arc::new(Mutex::new(answers.into_iter().rev().collect())),
                requests: Arc::default(),
            }
        }

        fn answer(&self, request: Request<String>) -> Response<String> {
            self.requests.lock().unwrap().push(request);
            let (status, nonce) = self.answers.lock().unwrap().pop().unwrap();
            let mut response = Response::new(String::new());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            if let Some(nonce) = nonce {
                let nonce = nonce.parse().unwrap();
                response.headers_mut().insert("nonce", nonce);
            }
            response
        }

        /// The token and the proof of each request.
        fn received(&self) -> Vec<(String, String)> {
            let requests = self.requests.lock().unwrap();
            assert!(requests.iter().all(|request| request.body() == "name=Ada"));
            let text = |headers: &HeaderMap, name| headers[name].to_str().unwrap().to_owned();
            requests
                .iter()
                .map(Request::headers)
                .map(|headers| (text(headers, "authorization"), text(headers, "proof")))
                .collect()
        }

        /// Makes one call with challenged tokens, and says how many tokens were requested.
        async fn call<R>(&self, policy: R) -> (Response<String>, usize)
        where
            R: ReplayPolicy<String, Body = String> + Clone,
        {
            let requests = Arc::new(AtomicUsize::new(0));
            let tokens = service_fn({
                let requests = Arc::clone(&requests);
                move |_: TokenRequest| {
                    let number = requests.fetch_add(1, Ordering::SeqCst) + 1;
                    async move {
                        let token = AccessToken::new(format!("token-{number}"))?;
                        let header = token.scheme().token_header().clone();
                        let scheme = Scheme::Challenged(Challenged::new(header));
                        Ok::<_, Error>(token.with_scheme(scheme))
                    }
                }
            });
            let api = self.clone();
            let http = service_fn(move |request| {
                let response = api.answer(request);
                async { Ok::<_, Infallible>(response) }
            });
            let service = ClientCredentialsLayer::new(tokens)
                .replay(policy)
                .layer(http);
            let request = Request::new("name=Ada".to_owned());
            let response = service.oneshot(request).await.unwrap();
            (response, requests.load(Ordering::SeqCst))
        }
    }

    fn sent<const N: usize>(sends: [(&str, &str); N]) -> Vec<(String, String)> {
        let sends = sends.into_iter();
        sends
            .map(|(token, proof)| (format!("Bearer {token}"), proof.to_owned()))
            .collect()
    }

    fn outcome(response: &Response<String>) -> &TokenOutcome {
        response.extensions().get().expect("an outcome is attached")
    }

    #[tokio::test(start_paused = true)]
    async fn challenge_is_answered_with_the_same_token() {
        let api = Api::answering([(401, Some("n-1")), (200, None)]);

        let (response, token_requests) = api.call(crate::replay::CloneBody).await;

        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(
            api.received(),
            sent([("token-1", "none"), ("token-1", "n-1")])
        );
        assert_eq!(token_requests, 1);
        assert!(outcome(&response).replayed() && !outcome(&response).token_renewed());
    }

    #[tokio::test(start_paused = true)]
    async fn challenge_and_rejection_are_answered_in_either_order_with_three_sends() {
        for (answers, sends) in [
            (
                [(401, Some("n-1")), (401, None), (200, None)],
                [("token-1", "none"), ("token-1", "n-1"), ("token-2", "none")],
            ),
            (
                [(401, None), (401, Some("n-1")), (200, None)],
                [("token-1", "none"), ("token-2", "none"), ("token-2", "n-1")],
            ),
        ] {
            let api = Api::answering(answers);

            let (response, token_requests) = api.call(crate::replay::CloneBody).await;

            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(api.received(), sent(sends));
            assert_eq!(token_requests, 2);
            assert!(outcome(&response).replayed() && outcome(&response).token_renewed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_call_makes_more_than_three_sends() {
        let api = Api::answering([
            (401, Some("n-1")),
            (401, Some("n-2")),
            (401, Some("n-3")),
            (200, None),
        ]);

        let (response, _) = api.call(crate::replay::CloneBody).await;

        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(api.received().len(), 3);
        let reason = outcome(&response).not_replayed();
        assert!(matches!(reason, Some(NotReplayed::RejectedAgain)));
    }

    #[tokio::test(start_paused = true)]
    async fn challenge_of_a_request_that_is_never_replayed_renews_nothing() {
        let api = Api::answering([(401, Some("n-1")), (200, None)]);

        let (response, token_requests) = api.call(crate::replay::NoReplay).await;

        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(api.received().len(), 1);
        assert_eq!(token_requests, 1);
        let reason = outcome(&response).not_replayed();
        assert!(matches!(reason, Some(NotReplayed::BodyNotKept)));
    }
}
