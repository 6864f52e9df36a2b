//! One call: its request is sent with a token, and sent again if the token is rejected.
//!
//! Most calls find a fresh token, and their response needs no further action. For them, the future
//! is the inner future and what is saved for a replay. Every other call takes the slow path: a box
//! whose stages are named after what they wait for.

use std::{
    fmt, mem,
    ops::ControlFlow::{self, Break, Continue},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response, StatusCode, request, response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tower::{BoxError, Service};

use crate::{
    Error, NotReplayed, Rejection, TokenCache, TokenOmitted, TokenOutcome, TokenParameters,
    TokenRemoved,
    error::Kind,
    origin::Destinations,
    replay::{NotSaved, ReplayPolicy, Saved, SavedRequest},
    scheme::{Presented, Put, Verdict},
    telemetry,
    token::{Acquired, Acquiring, CachedToken},
    unread::{Drain, Held},
};

/// Decides which responses reject the token.
pub(crate) type RejectedWhen = Arc<dyn Fn(&response::Parts) -> bool + Send + Sync>;

/// Chooses the parameters of a request's token, instead of the cache's own.
pub(crate) type ParametersBy =
    Arc<dyn Fn(&request::Parts) -> Option<TokenParameters> + Send + Sync>;

/// The layer's options. All clones of a service and their calls share them.
pub(crate) struct Options<R> {
    pub(crate) cache: TokenCache,
    pub(crate) parameters_by: Option<ParametersBy>,
    pub(crate) destinations: Destinations,
    pub(crate) policy: R,
    pub(crate) rejected_when: Option<RejectedWhen>,
}

/// A token that was sent with a request.
pub(crate) struct SentToken {
    pub(crate) token: Arc<CachedToken>,
    pub(crate) presented: Presented,
}

/// What a call remembers of its first send.
pub(crate) struct FirstSend<S, R, K> {
    pub(crate) sent: SentToken,
    pub(crate) options: Arc<Options<R>>,
    /// The handle of the request's token, if that isn't the layer's.
    pub(crate) other_cache: Option<TokenCache>,
    pub(crate) replay: Saved<Replay<S, K>>,
}

/// What a replay needs: the request, and a service that has to be polled ready first.
pub(crate) struct Replay<S, K> {
    pub(crate) service: S,
    pub(crate) request: SavedRequest<K>,
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
            first: FirstSend<S, R, R::Kept>,
        },
        // The API has the request, with a token of the caller's own or with none.
        CallingUntouched {
            #[pin]
            response: S::Future,
            omitted: Option<TokenOmitted>,
        },
        // The call waits before a send, or its response has something to report.
        Slow { call: Pin<Box<SlowCall<S, R, B>>> },
        // The caller has the response.
        Done,
    }
}

impl<S, R, B> ResponseFuture<S, R, B>
where
    S: Service<Request<R::Body>>,
    R: ReplayPolicy<B>,
{
    /// The request was sent with a token.
    #[inline]
    pub(crate) fn calling(response: S::Future, first: FirstSend<S, R, R::Kept>) -> Self {
        let state = State::Calling { response, first };
        Self { state }
    }

    /// The request was sent with a token of the caller's own, or must not carry a token.
    pub(crate) fn calling_untouched(response: S::Future, omitted: Option<TokenOmitted>) -> Self {
        let state = State::CallingUntouched { response, omitted };
        Self { state }
    }

    /// The request waits for a token.
    pub(crate) fn waiting(job: Job<S, R, B>) -> Self {
        Self::slow(job.await_token(), job)
    }

    fn slow(stage: Stage<S::Future, S::Response>, job: Job<S, R, B>) -> Self {
        let unread = None;
        let call = Box::pin(SlowCall { stage, unread, job });
        let state = State::Slow { call };
        Self { state }
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
            StateProj::Calling { response, first } => match response.poll(cx) {
                Poll::Ready(Ok(response)) if !first.is_settled(&response) => {
                    self.read(response, cx)
                }
                output => output.map_err(Into::into),
            },
            StateProj::CallingUntouched { response, omitted } => {
                let response = ready!(response.poll(cx)).map_err(Into::into)?;
                let outcome = omitted.map(TokenOutcome::without_token);
                Poll::Ready(Ok(outcome.unwrap_or_default().attach_to(response)))
            }
            StateProj::Slow { call } => call.as_mut().poll(cx),
            StateProj::Done => panic!("`ResponseFuture` polled after it returned `Ready`"),
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
    /// Hands the response of the first send to the caller, or continues on the slow path.
    #[cold]
    fn read(
        mut self: Pin<&mut Self>,
        response: Response<ResBody>,
        cx: &mut Context<'_>,
    ) -> Poll<<Self as Future>::Output> {
        let state = self.as_mut().project().state.project_replace(State::Done);
        let StateReplaced::Calling { first, .. } = state else {
            unreachable!("only a call that has sent its token reads a response")
        };
        match first.answered(response) {
            Break(response) => Poll::Ready(Ok(response)),
            Continue(call) => {
                self.set(call);
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
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl SentToken {
    /// Notes that the API accepted the token. Only a success proves that: other responses may come
    /// from something in between that doesn't look at tokens.
    #[inline]
    fn note_accepted<B>(&self, response: &Response<B>) {
        if response.status().is_success() && !self.token.is_accepted() {
            self.note_first_acceptance(response);
        }
    }

    #[cold]
    fn note_first_acceptance<B>(&self, response: &Response<B>) {
        if response.extensions().get::<TokenRemoved>().is_none() {
            self.token.note_accepted();
        }
    }
}

impl<S, R, K> FirstSend<S, R, K> {
    /// Whether the status of a response says all that there is to know of the token.
    #[inline]
    fn is_settled<B>(&self, response: &Response<B>) -> bool {
        let scheme = self.sent.token.token().scheme();
        let is_settled = self.options.rejected_when.is_none() && !scheme.must_read(response);
        if is_settled {
            self.sent.note_accepted(response);
        }
        is_settled
    }

    /// Decides whether the caller gets the response, or the call goes on.
    fn answered<B, ResBody>(
        self,
        response: Response<ResBody>,
    ) -> ControlFlow<Response<ResBody>, ResponseFuture<S, R, B>>
    where
        S: Service<Request<R::Body>, Response = Response<ResBody>> + Clone,
        R: ReplayPolicy<B, Kept = K>,
    {
        match self.replay {
            Saved::Nothing(reason) => {
                let cache = self.other_cache.as_ref().unwrap_or(&self.options.cache);
                Break(self.options.end(cache, &self.sent, reason, response))
            }
            Saved::Request(Replay { service, request }) => {
                let saved = Saved::Request(request);
                let mut job = Job::new(self.options, self.other_cache, service, None, saved);
                let step = job.answered(self.sent, response);
                step.map_continue(|stage| ResponseFuture::slow(stage, job))
            }
        }
    }
}

impl<R> Options<R> {
    /// Whether a request may need another token than the cache's own.
    #[inline]
    pub(crate) fn may_need_other_token<B>(&self, request: &Request<B>) -> bool {
        self.parameters_by.is_some() || request.extensions().get::<TokenParameters>().is_some()
    }

    /// Returns the handle of a request's token, if that isn't the cache's own.
    pub(crate) fn other_cache(&self, request: &request::Parts) -> Option<TokenCache> {
        if let Some(parameters) = request.extensions.get::<TokenParameters>() {
            return Some(self.cache.other(parameters));
        }
        let parameters = self.parameters_by.as_ref()?(request)?;
        Some(self.cache.other(&parameters))
    }

    /// Reads what the response to a request says about the token that the request carried.
    fn verdict(&self, sent: &SentToken, response: &response::Parts) -> Verdict {
        let verdict = sent
            .token
            .token()
            .scheme()
            .verdict(&sent.presented, response);
        match &self.rejected_when {
            Some(_) if verdict == Verdict::SendAgain => verdict,
            Some(rejected_when) if rejected_when(response) => Verdict::Rejected,
            Some(_) => Verdict::Accepted,
            None => verdict,
        }
    }

    /// Hands on the response to a request that can't be sent again.
    fn end<B, ResBody>(
        &self,
        cache: &TokenCache,
        sent: &SentToken,
        reason: NotSaved,
        response: Response<ResBody>,
    ) -> Response<ResBody>
    where
        R: ReplayPolicy<B>,
    {
        let (head, body) = response.into_parts();
        let verdict = self.verdict(sent, &head);
        let response = Response::from_parts(head, body);
        match verdict {
            Verdict::Accepted => {
                sent.note_accepted(&response);
                return response;
            }
            Verdict::Rejected => cache.reject_and_renew(&sent.token),
            Verdict::SendAgain => {}
        }
        TokenOutcome::default().explain(reason.reason(&self.policy), response)
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
        // The rest of a rejection. It is read while the call waits for something else, because that
        // may need the connection of the rejection.
        unread: Option<Drain<S::Response>>,
        job: Job<S, R, B>,
    }
}

pin_project! {
    /// What a slow call waits for.
    #[project = StageProj]
    enum Stage<F, Res> {
        // The request waits for a token.
        AwaitingToken { token: Acquiring },
        // The API rejected the token. Its response is held for a while, in case the renewal fails.
        Renewing {
            token: Acquiring,
            rejection: Held<Res>,
        },
        // The request can be sent again. The part of the rejection that has arrived is read first,
        // so that its connection can be reused.
        Draining {
            token: Arc<CachedToken>,
            rejection: Option<Drain<Res>>,
        },
        // The token is there. The service has to become ready.
        Readying { token: Arc<CachedToken> },
        // The API has the request, with a token or with one of the caller's own.
        Calling {
            sent: Option<SentToken>,
            #[pin]
            response: F,
        },
    }
}

/// The caller gets a response, or the call goes on with a stage.
type Step<F, Res> = ControlFlow<Res, Stage<F, Res>>;

impl<F, ResBody> Stage<F, Response<ResBody>> {
    fn draining(
        token: Arc<CachedToken>,
        rejection: Response<ResBody>,
        runtime: Option<Handle>,
    ) -> Self {
        let rejection = Some(Drain::new(rejection, runtime));
        Self::Draining { token, rejection }
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

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let mut this = self.as_mut().project();
            let unread = this.unread.as_mut();
            if unread.is_some_and(|unread| unread.poll_rest(cx).is_ready()) {
                *this.unread = None;
            }
            let step = match this.stage.as_mut().project() {
                StageProj::AwaitingToken { token } => {
                    let acquired = ready!(token.as_mut().poll(cx));
                    this.job.outcome.note_wait(acquired.waited);
                    let token = acquired.result.map_err(|error| this.job.fail(error))?;
                    Continue(Stage::Readying { token })
                }
                StageProj::Renewing { token, rejection } => {
                    let Poll::Ready(renewal) = token.as_mut().poll(cx) else {
                        let overdue = ready!(rejection.poll_release(cx));
                        let runtime = this.job.cache().runtime();
                        *this.unread = Drain::overdue(overdue, runtime, cx);
                        continue;
                    };
                    this.job.renewal_ended(renewal, rejection.take())?
                }
                StageProj::Draining { token, rejection } => {
                    let drain = rejection.as_mut().expect("a rejection is drained once");
                    ready!(drain.poll_present(cx));
                    *this.unread = rejection.take().and_then(Drain::rest);
                    let token = Arc::clone(token);
                    Continue(Stage::Readying { token })
                }
                StageProj::Readying { token } => {
                    ready!(this.job.service.poll_ready(cx)).map_err(Into::into)?;
                    Continue(this.job.service_ready(token)?)
                }
                StageProj::Calling { sent, response } => {
                    let response = ready!(response.poll(cx)).map_err(Into::into)?;
                    match sent.take() {
                        Some(sent) => this.job.answered(sent, response),
                        None => Break(this.job.finish(response)),
                    }
                }
            };
            match step {
                Break(response) => return Poll::Ready(Ok(response)),
                Continue(stage) => this.stage.set(stage),
            }
        }
    }
}

/// The request of a slow call, and what may still become of it.
pub(crate) struct Job<S, R, B>
where
    R: ReplayPolicy<B>,
{
    options: Arc<Options<R>>,
    other_cache: Option<TokenCache>,
    /// Polled ready in the last stage before a send, and only there.
    service: S,
    /// The request to send next, without a token.
    request: Option<Request<R::Body>>,
    saved: Saved<SavedRequest<R::Kept>>,
    /// The request may be sent again with the same token, if the API asks for it.
    may_answer_challenge: bool,
    /// The request may be sent again with another token.
    may_replace_token: bool,
    /// The token that the API rejected for this request.
    rejected: Option<Arc<CachedToken>>,
    /// The status of the response that rejected it, which may have been dropped.
    rejected_status: Option<StatusCode>,
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
    /// The handle of the request's token.
    fn cache(&self) -> &TokenCache {
        self.other_cache.as_ref().unwrap_or(&self.options.cache)
    }

    fn await_token<F, Res>(&self) -> Stage<F, Res> {
        let token = self.cache().clone().acquire(self.rejected.clone());
        Stage::AwaitingToken { token }
    }
}

impl<S, R, B, F, ResBody> Job<S, R, B>
where
    S: Service<Request<R::Body>, Response = Response<ResBody>, Future = F> + Clone,
    R: ReplayPolicy<B>,
{
    pub(crate) fn new(
        options: Arc<Options<R>>,
        other_cache: Option<TokenCache>,
        service: S,
        request: Option<Request<R::Body>>,
        saved: Saved<SavedRequest<R::Kept>>,
    ) -> Self {
        Self {
            options,
            other_cache,
            service,
            request,
            saved,
            may_answer_challenge: true,
            may_replace_token: true,
            rejected: None,
            rejected_status: None,
            waits_left: WAITS,
            outcome: TokenOutcome::default(),
        }
    }

    /// The service is ready, and `token` was usable when the wait for the service began.
    fn service_ready<Res>(&mut self, token: &Arc<CachedToken>) -> Result<Stage<F, Res>, Error> {
        let rejected = self.rejected.as_deref();
        if let Some(token) = self.cache().still_usable(token, rejected) {
            return self.send(token);
        }
        let Some(waits_left) = self.waits_left.checked_sub(1) else {
            return Err(self.fail(Error::new(Kind::Expired)));
        };
        self.waits_left = waits_left;
        // Gives up the service's readiness, which the next token request may need.
        self.service = self.service.clone();
        Ok(self.await_token())
    }

    fn send<Res>(&mut self, token: Arc<CachedToken>) -> Result<Stage<F, Res>, Error> {
        let mut request = self
            .request
            .take()
            .expect("a request that waits is not sent");
        if !self.is_unchanged() {
            return Err(self.fail(Error::new(Kind::BodyChanged)));
        }
        let scheme = token.token().scheme();
        let may_send_again =
            self.may_replace_token || self.may_answer_challenge && scheme.may_challenge();
        if !may_send_again {
            // The body can be forgotten as it is sent.
            self.saved = Saved::Nothing(NotSaved::LastSend);
        }
        let sent = match scheme.put_on(&mut request) {
            Put::Done(presented) => Some(SentToken { token, presented }),
            // A request that waits for the first token can't know which header that goes into.
            Put::CallersOwn => None,
            Put::Failed(error) => return Err(self.fail(error)),
        };
        let response = self.service.call(request);
        Ok(Stage::Calling { sent, response })
    }

    /// Whether the body of the request is still the one that was made for this send.
    fn is_unchanged(&self) -> bool {
        let is_first_send = self.may_replace_token && self.may_answer_challenge;
        match &self.saved {
            Saved::Request(saved) if !is_first_send => saved.is_unchanged(&self.options.policy),
            Saved::Request(_) | Saved::Nothing(_) => true,
        }
    }

    fn answered(
        &mut self,
        sent: SentToken,
        response: Response<ResBody>,
    ) -> Step<F, Response<ResBody>> {
        let (head, body) = response.into_parts();
        let verdict = self.options.verdict(&sent, &head);
        let response = Response::from_parts(head, body);
        let request = match verdict {
            Verdict::Accepted => {
                sent.note_accepted(&response);
                return Break(self.finish(response));
            }
            Verdict::Rejected => self.request_after_rejection(&sent.token),
            Verdict::SendAgain => self.request_after_challenge(),
        };
        match request {
            Err(reason) => return Break(mem::take(&mut self.outcome).explain(reason, response)),
            Ok(request) => self.request = Some(request),
        }
        Continue(if verdict == Verdict::SendAgain {
            self.note_replay(false);
            Stage::draining(sent.token, response, self.cache().runtime())
        } else {
            self.rejected_status = Some(response.status());
            self.rejected = Some(Arc::clone(&sent.token));
            let cache = self.cache().clone();
            Stage::Renewing {
                token: cache.acquire(Some(Arc::clone(&sent.token))),
                rejection: Held::new(response, self.cache().runtime()),
            }
        })
    }

    /// Makes the request again for the same token, once.
    fn request_after_challenge(&mut self) -> Result<Request<R::Body>, NotReplayed> {
        let may_send = mem::take(&mut self.may_answer_challenge);
        match &mut self.saved {
            Saved::Request(saved) if may_send => saved.restore(&self.options.policy),
            Saved::Request(_) => Err(NotReplayed::RejectedAgain),
            Saved::Nothing(not_saved) => Err(not_saved.reason(&self.options.policy)),
        }
    }

    /// Tells the cache of the rejection, and makes the request again if another token may help.
    fn request_after_rejection(
        &mut self,
        token: &CachedToken,
    ) -> Result<Request<R::Body>, NotReplayed> {
        let rejection = self.cache().reject(token.token());
        if !mem::take(&mut self.may_replace_token) {
            self.saved = Saved::Nothing(NotSaved::LastSend);
            telemetry::rejected_again(self.cache().name());
        }
        let options = &self.options;
        let request = match (&mut self.saved, &rejection) {
            (Saved::Nothing(not_saved), _) => Err(not_saved.reason(&options.policy)),
            (_, Rejection::CoolingDown) => Err(NotReplayed::CoolingDown),
            (_, Rejection::Failing(error)) => Err(NotReplayed::RenewalFailed(error.clone())),
            (Saved::Request(saved), _) => saved.restore(&options.policy),
        };
        if request.is_err() && matches!(rejection, Rejection::Withheld) {
            // The requests that follow need another token.
            self.cache().renew_in_background();
        }
        request
    }

    /// The renewal has ended. `rejection` is there if the call still holds it.
    fn renewal_ended(
        &mut self,
        renewal: Acquired,
        rejection: Option<Response<ResBody>>,
    ) -> Result<Step<F, Response<ResBody>>, Error> {
        self.outcome.note_wait(renewal.waited);
        match (renewal.result, rejection) {
            (Ok(token), rejection) => {
                self.note_replay(renewal.waited.is_some());
                Ok(Continue(match rejection {
                    Some(rejection) => Stage::draining(token, rejection, self.cache().runtime()),
                    None => Stage::Readying { token },
                }))
            }
            (Err(error), Some(rejection)) => {
                let reason = NotReplayed::without_token(error);
                let outcome = mem::take(&mut self.outcome);
                Ok(Break(outcome.explain(reason, rejection)))
            }
            (Err(error), None) => Err(self.fail(error)),
        }
    }

    fn note_replay(&mut self, token_renewed: bool) {
        self.outcome.note_replay(token_renewed);
        telemetry::replayed(self.cache().name(), token_renewed);
    }

    /// The error of a call that may have waited, or seen a rejection.
    fn fail(&self, error: Error) -> Error {
        error
            .after(self.outcome.waited())
            .after_rejection(self.rejected_status)
    }

    /// The response that the caller gets.
    fn finish(&mut self, response: Response<ResBody>) -> Response<ResBody> {
        mem::take(&mut self.outcome).attach_to(response)
    }
}

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
        let api = Api::answering([(401, Some("n-1")), (401, None), (401, None), (200, None)]);

        let (response, token_requests) = api.call(crate::replay::CloneBody).await;

        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(api.received().len(), 3);
        assert_eq!(token_requests, 2);
        let reason = outcome(&response).not_replayed();
        assert!(matches!(reason, Some(NotReplayed::RejectedAgain)));
    }

    #[tokio::test(start_paused = true)]
    async fn second_challenge_in_a_row_is_returned_and_rejects_no_token() {
        let api = Api::answering([(401, Some("n-1")), (401, Some("n-2")), (200, None)]);

        let (response, token_requests) = api.call(crate::replay::CloneBody).await;

        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(api.received().len(), 2);
        assert_eq!(token_requests, 1);
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
