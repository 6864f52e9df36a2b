//! Records what is visible from outside: attempts to get a token, sends and answers.
//!
//! The observer derives from these what the promises allow next. It knows the promises and not the
//! code, and asks the cache nothing. `promises.rs` has one function for each promise.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::sync::oneshot;

use crate::{
    action::{Answer, Reply, milliseconds},
    bodies::{FrameSource, Policy},
    clocks::{Clocks, Moment},
    promises::ROUNDING,
    rejections::{BackOff, Fate, Rejections},
    runtimes::{CurrentRuntime, RuntimeId},
    world::CallResult,
};

// The defaults that the promises mention.
pub(crate) const EXPIRY_MARGIN: Duration = Duration::from_secs(10);
pub(crate) const REFRESH_WINDOW: Duration = Duration::from_secs(300);
/// As a share of the refresh window.
pub(crate) const MOST_JITTER: f64 = 0.5;
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon a token request notices that the wall clock has ended it.
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A token request without a result counts as lost this long after its deadline.
const OVERDUE_AFTER: Duration = Duration::from_secs(1);
/// How long after a lost refresh the next one starts.
const RESTART_AFTER: Duration = Duration::from_secs(1);
pub(crate) const COOL_DOWN: Duration = Duration::from_secs(30);
pub(crate) const MOST_ATTEMPTS: u32 = 3;
/// How long a call that waits for a renewal holds the rejection.
pub(crate) const HOLD: Duration = Duration::from_secs(1);
/// Tokio's timers fire at whole milliseconds.
pub(crate) const TIMER_RESOLUTION: Duration = Duration::from_millis(2);
/// How many lost token requests one waiter waits for before it fails.
pub(crate) const MOST_WAITS: usize = 4;
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(200);
pub(crate) const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// A longer `Retry-After` is ignored.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// The number of a call within its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CallId(pub(crate) usize);

pub(crate) struct Observer {
    pub(crate) clocks: Clocks,
    current_runtime: CurrentRuntime,
    /// Whether the cache keeps its token warm, and so starts token requests that no call needs.
    pub(crate) is_kept_warm: bool,
    /// The token request in progress.
    pub(crate) request: Option<TokenRequest>,
    pub(crate) requests_started: usize,
    /// Includes the token requests that were lost.
    pub(crate) requests_ended: usize,
    pub(crate) attempts_in_progress: usize,
    /// The number of the key, which its tokens begin with.
    key: usize,
    tokens_issued: usize,
    pub(crate) tokens_obtained: usize,
    pub(crate) newest: Option<ObtainedToken>,
    /// When each token expires, according to its last issue.
    pub(crate) expiries: HashMap<String, Moment>,
    pub(crate) rejections: Rejections,
    /// The tokens that their renewal returned again.
    pub(crate) renewed_in_vain: HashSet<String>,
    /// Counts the tokens that landed: new ones, and those that a renewal returned again.
    landing: usize,
    /// The failure that calls share, until a token is obtained.
    pub(crate) failure: Option<Failure>,
    pub(crate) last_failure_at: Option<Duration>,
    /// When a token request was last lost with its runtime, or overdue.
    pub(crate) last_lost_at: Option<Duration>,
    /// The numbers of token requests that settled no rejection: they were lost, or refreshes that
    /// returned the newest token again.
    unsettling_requests: HashSet<usize>,
    pub(crate) calls: Vec<ObservedCall>,
    pub(crate) sends: Vec<PendingSend>,
    /// Whether this step used a token that was due for refresh.
    pub(crate) is_refresh_due: bool,
    /// Whether this step rejected a token that has to be renewed.
    pub(crate) is_renewal_due: bool,
    /// Whether the process stands still in this step.
    pub(crate) stands_still: bool,
    pub(crate) polls: usize,
    /// Whether a handle of the cache is left. Without one, a token request may be dropped.
    pub(crate) has_handles: bool,
    /// The promises found broken in this history.
    broken: Vec<String>,
}

/// A token request, as its attempts show it.
pub(crate) struct TokenRequest {
    pub(crate) started_at: Moment,
    pub(crate) attempts: u32,
    pub(crate) attempt_started_at: Moment,
    /// When a step first ended after a clock had ended the attempt.
    pub(crate) over_since: Option<Duration>,
    /// The rejected token that each attempt names.
    pub(crate) rejected: Option<String>,
    /// The runtime that its task runs on.
    runtime: RuntimeId,
    pub(crate) phase: Phase,
}

pub(crate) enum Phase {
    /// The token service has been called. The sender is taken when the answer is given.
    Attempting(Option<oneshot::Sender<Reply>>),
    /// Between two attempts.
    Pausing {
        since: Duration,
        at_least_until: Duration,
        at_most_until: Duration,
    },
}

/// The result of a token request.
pub(crate) struct ObtainedToken {
    pub(crate) text: String,
    pub(crate) obtained_at: Moment,
    pub(crate) expires_at: Moment,
    /// The stated end, by the monotonic clock.
    pub(crate) ends_at: Duration,
    /// Without jitter.
    pub(crate) refresh_at: Duration,
    pub(crate) refresh_window: Duration,
    /// Whether the same token was the newest before.
    pub(crate) is_unchanged: bool,
    /// Whether a token request that should have replaced it failed or was lost.
    pub(crate) is_to_be_replaced: bool,
}

/// A failed token request, and how long calls share its error.
pub(crate) struct Failure {
    pub(crate) in_a_row: u32,
    pub(crate) at_least_until: Duration,
    pub(crate) at_most_until: Duration,
}

/// What is visible of a call.
#[derive(Default)]
pub(crate) struct ObservedCall {
    /// Whether it calls the cache directly, and so needs no service that is ready.
    pub(crate) is_token_only: bool,
    pub(crate) policy: Policy,
    /// The source of its body, if the body streams.
    pub(crate) frames: FrameSource,
    /// When it was first polled with a service that was ready, which is when it needs a token.
    pub(crate) began_at: Option<Duration>,
    /// `requests_ended` at that time.
    pub(crate) requests_ended_before: usize,
    pub(crate) sends: usize,
    pub(crate) is_sending: bool,
    pub(crate) last_token: Option<String>,
    pub(crate) last_answer: Option<Answer>,
    /// `requests_ended` when the last answer arrived.
    pub(crate) requests_ended_when_answered: usize,
    /// Which landing of its token it was sent with.
    pub(crate) landing: usize,
    /// When it has to stop waiting for a renewal of another call's token.
    pub(crate) waits_until: Option<Duration>,
    /// The number of the token request that it waits for.
    pub(crate) waits_for: usize,
    /// Whether a token request failed while it waited, or before and calls shared the error.
    pub(crate) may_use_last_resort: bool,
    /// When it was first pending after its first rejection.
    pub(crate) holds_rejection_since: Option<Duration>,
    /// Whether it was polled when it might not hold the rejection any longer.
    pub(crate) may_have_dropped_rejection: bool,
    /// Whether it was polled when it must not hold the rejection any longer.
    pub(crate) has_dropped_rejection: bool,
    /// `tokens_obtained` at its last send.
    pub(crate) tokens_obtained_before: usize,
    /// The tokens that it waited for and that had expired on arrival.
    pub(crate) may_use_expired: Vec<String>,
    /// Whether it ended without a replay because of its body or its policy.
    pub(crate) is_not_replayable: bool,
    pub(crate) is_over: bool,
}

/// A request that the API has not answered yet.
pub(crate) struct PendingSend {
    pub(crate) call: CallId,
    pub(crate) answer: oneshot::Sender<Answer>,
}

impl Observer {
    pub(crate) fn new(
        clocks: Clocks,
        current_runtime: CurrentRuntime,
        is_kept_warm: bool,
        key: usize,
    ) -> Self {
        Self {
            clocks,
            current_runtime,
            is_kept_warm,
            request: None,
            requests_started: 0,
            requests_ended: 0,
            attempts_in_progress: 0,
            key,
            tokens_issued: 0,
            tokens_obtained: 0,
            newest: None,
            expiries: HashMap::new(),
            rejections: Rejections::default(),
            renewed_in_vain: HashSet::new(),
            landing: 0,
            failure: None,
            last_failure_at: None,
            last_lost_at: None,
            unsettling_requests: HashSet::new(),
            calls: Vec::new(),
            sends: Vec::new(),
            is_refresh_due: false,
            is_renewal_due: false,
            stands_still: false,
            polls: 0,
            has_handles: true,
            broken: Vec::new(),
        }
    }

    pub(crate) fn now(&self) -> Moment {
        self.clocks.now()
    }

    /// Records a promise that does not hold.
    pub(crate) fn expect(&mut self, holds: bool, promise: impl FnOnce() -> String) {
        if !holds {
            self.broken.push(promise());
        }
    }

    pub(crate) fn verdict(&self) -> Result<(), String> {
        if self.broken.is_empty() {
            Ok(())
        } else {
            Err(self.broken.join("; "))
        }
    }

    /// The token service was called.
    pub(crate) fn attempt_started(
        &mut self,
        rejected: Option<String>,
        answer: oneshot::Sender<Reply>,
    ) {
        let now = self.now();
        self.one_token_request_per_key();
        self.attempts_in_progress += 1;
        self.fail_paused_request_after_its_deadline();
        match self.request.take() {
            Some(request) => {
                self.next_attempt_is_due(&request, &rejected, now);
                self.request = Some(TokenRequest {
                    attempts: request.attempts + 1,
                    attempt_started_at: now,
                    over_since: None,
                    phase: Phase::Attempting(Some(answer)),
                    ..request
                });
            }
            None => {
                self.requests_started += 1;
                self.back_off_is_respected(now);
                self.renewal_is_allowed(rejected.as_deref(), now);
                self.token_request_has_a_reason(rejected.as_deref(), now);
                self.token_requests_are_bounded();
                self.request = Some(TokenRequest {
                    started_at: now,
                    attempts: 1,
                    attempt_started_at: now,
                    over_since: None,
                    rejected,
                    runtime: self.current_runtime.id(),
                    phase: Phase::Attempting(Some(answer)),
                });
            }
        }
    }

    /// The token service has answered. Returns the text of the token, if it issues one.
    pub(crate) fn attempt_answered(&mut self, reply: Reply) -> Option<String> {
        self.attempts_in_progress -= 1;
        match reply {
            Reply::New(lifetime) => {
                self.tokens_issued += 1;
                let text = format!("{}-{}", self.key, self.tokens_issued);
                Some(self.token_obtained(text, milliseconds(lifetime)))
            }
            Reply::Same(lifetime) => {
                self.tokens_issued = self.tokens_issued.max(1);
                let text = format!("{}-{}", self.key, self.tokens_issued);
                Some(self.token_obtained(text, milliseconds(lifetime)))
            }
            Reply::Transient | Reply::Panic => self.attempt_failed(Duration::ZERO),
            Reply::RetryAfter(seconds) => self.attempt_failed(Duration::from_secs(seconds)),
            Reply::Permanent => {
                self.request_failed(Duration::ZERO);
                None
            }
        }
    }

    /// The future of the token service was dropped before it answered.
    pub(crate) fn attempt_dropped(&mut self) {
        self.attempts_in_progress -= 1;
        if self.has_handles {
            self.attempt_is_dropped_only_when_its_time_is_over();
            if self
                .request
                .as_ref()
                .is_some_and(|request| request.age(self.now()) >= DEADLINE)
            {
                self.request_failed(Duration::ZERO);
            } else {
                self.attempt_failed(Duration::ZERO);
            }
        } else {
            self.request = None;
        }
    }

    /// The second runtime is about to shut down. A token request on it is lost.
    pub(crate) fn second_runtime_shuts_down(&mut self) {
        if self
            .request
            .as_ref()
            .is_some_and(|request| request.runtime == RuntimeId::Second)
        {
            self.request_lost();
        }
    }

    /// The API received a request.
    pub(crate) fn sent(&mut self, call: CallId, token: String, answer: oneshot::Sender<Answer>) {
        self.token_used(call, &token);
        // A waiter that is polled late may send the token that it waited for and that had expired
        // on arrival. That does not show that the newest token was used.
        let is_newest = self
            .newest
            .as_ref()
            .is_some_and(|newest| newest.text == token);
        self.is_refresh_due |= is_newest && self.newest_is_due_for_refresh();
        self.replay_has_another_token(call, &token);
        let is_current = is_newest && self.newest_is_unexpired();
        let landing = if is_current { self.landing } else { 0 };
        let seen = &mut self.calls[call.0];
        seen.landing = landing;
        seen.waits_until = None;
        seen.sends += 1;
        seen.is_sending = true;
        seen.last_token = Some(token);
        seen.tokens_obtained_before = self.tokens_obtained;
        self.two_sends_at_most(call);
        self.sends.push(PendingSend { call, answer });
    }

    /// The call received the API's answer.
    pub(crate) fn answered(&mut self, call: CallId, answer: Answer) {
        let seen = &mut self.calls[call.0];
        seen.is_sending = false;
        seen.last_answer = Some(answer);
        seen.requests_ended_when_answered = self.requests_ended;
        let is_newest_landing = seen.landing == self.landing;
        if !self.last_token_is_newest(call) {
            return;
        }
        match answer {
            Answer::Accepted => {
                self.rejections.is_accepted |= is_newest_landing;
                self.rejections.may_be_accepted = true;
            }
            Answer::Rejected | Answer::RejectedEarly => {
                let fate = self.newest_rejected();
                self.is_renewal_due |= fate == Fate::Renewed;
            }
            Answer::Failed => {}
        }
    }

    /// The API rejected the newest token. Returns what that must lead to.
    fn newest_rejected(&mut self) -> Fate {
        let now = self.now().monotonic;
        let back_off = self.back_off();
        self.rejections
            .rejected(now, back_off, self.request.is_some())
    }

    fn back_off(&self) -> BackOff {
        let now = self.now().monotonic;
        match &self.failure {
            // The token request started after the back-off had ended.
            _ if self.request.is_some() => BackOff::Over,
            Some(failure) if now + ROUNDING < failure.at_least_until => BackOff::NotOver,
            Some(failure) if now <= failure.at_most_until + ROUNDING => BackOff::PerhapsOver,
            Some(_) | None => BackOff::Over,
        }
    }

    /// A call is about to be polled. If the token request that it waits for didn't settle its rejection,
    /// it starts over: a rejected token that is in use again is rejected once more.
    pub(crate) fn about_to_be_polled(&mut self, call: CallId) {
        let now = self.now().monotonic;
        let seen = &self.calls[call.0];
        let waits_for_a_renewal =
            !seen.is_sending && seen.last_answer.is_some_and(Answer::is_rejection);
        let starts_over = waits_for_a_renewal
            && self.unsettling_requests.contains(&seen.waits_for)
            && self.last_token_is_newest(call)
            && self.newest_is_unexpired();
        if starts_over && !self.rejections.may_be_withheld(now) {
            let back_off = self.back_off();
            self.rejections
                .decide(now, back_off, self.request.is_some());
        }
    }

    fn last_token_is_newest(&self, call: CallId) -> bool {
        let newest = self.newest.as_ref().map(|newest| &newest.text);
        newest.is_some() && newest == self.calls[call.0].last_token.as_ref()
    }

    /// The future of the API was dropped before it answered.
    pub(crate) fn send_dropped(&mut self, call: CallId) {
        self.calls[call.0].is_sending = false;
        self.sends.retain(|send| send.call != call);
    }

    /// The API has read the body of a send to its end, or to an error.
    pub(crate) fn upload_ended(
        &mut self,
        call: CallId,
        send: usize,
        is_failed: bool,
        received: &[u8],
    ) {
        if is_failed {
            self.upload_fails_only_for_a_replay(call, send);
        } else {
            self.whole_body_is_sent(call, send, received);
        }
    }

    /// A call sends a token, or returns it.
    pub(crate) fn token_used(&mut self, call: CallId, token: &str) {
        if self.failed_recently(call) {
            self.calls[call.0].may_use_last_resort = true;
        }
        self.no_expired_token_is_used(call, token);
        self.no_withheld_token_is_used(call, token);
    }

    /// A call was polled and is still pending.
    pub(crate) fn still_pending(&mut self, call: CallId, is_ready: bool, was_woken: bool) {
        let now = self.now();
        let seen = &mut self.calls[call.0];
        let is_ready = is_ready || seen.is_token_only;
        let begins = is_ready && seen.began_at.is_none();
        if begins {
            seen.began_at = Some(now.monotonic);
            seen.requests_ended_before = self.requests_ended;
        }
        // Otherwise, it goes on waiting for what it waited for.
        let waits_anew = begins || was_woken;
        if waits_anew {
            seen.waits_until = None;
        }
        if seen.is_sending {
            return;
        }
        if seen.last_answer.is_some_and(Answer::is_rejection) && seen.sends == 1 {
            let since = *seen.holds_rejection_since.get_or_insert(now.monotonic);
            let held = now.monotonic - since;
            seen.may_have_dropped_rejection |= held >= HOLD;
            // The timer is late in a process that stood still.
            let is_over = held >= HOLD + TIMER_RESOLUTION && !self.stands_still;
            seen.has_dropped_rejection |= is_over;
        }
        if self.failed_recently(call) {
            self.calls[call.0].may_use_last_resort = true;
        }
        if !waits_anew {
            return;
        }
        // A token request that the call has started is visible once its task has run.
        let is_to_start = usize::from(self.request.is_none());
        self.calls[call.0].waits_for = self.requests_started + is_to_start;
        if !is_ready {
            return;
        }
        let may_use_newest = self.newest_is_unexpired() && !self.is_rejected_newest(call);
        let withheld_until = self.rejections.withheld_until();
        self.calls[call.0].waits_until = withheld_until.filter(|_| may_use_newest);
        if begins {
            self.no_call_waits_while_a_token_is_usable(call);
        }
    }

    /// Whether the API rejected the newest token when this call sent it.
    pub(crate) fn is_rejected_newest(&self, call: CallId) -> bool {
        let is_rejected = self.calls[call.0]
            .last_answer
            .is_some_and(Answer::is_rejection);
        is_rejected && self.last_token_is_newest(call)
    }

    pub(crate) fn call_ended(&mut self, call: CallId, result: &CallResult) {
        self.caller_sees_what_happened(call, result);
        if let CallResult::Status(status, reason) = result {
            self.caller_sees_what_the_api_said(call, *status, reason.as_ref());
        }
        self.calls[call.0].is_not_replayable = result.is_not_replayable();
        self.calls[call.0].is_over = true;
    }

    /// A step is over. If the process stood still past the deadline of a token request that paused
    /// between two attempts, the request fails without another attempt.
    pub(crate) fn step_is_over(&mut self) {
        self.fail_paused_request_after_its_deadline();
        self.token_due_for_refresh_is_refreshed();
        self.rejected_token_is_renewed_for_the_next_call();
        self.stands_still = false;
        self.rejections.resolve();
        let now = self.now();
        if let Some(request) = &mut self.request {
            let is_over = request.attempt_is_over(now);
            request.over_since = is_over.then(|| *request.over_since.get_or_insert(now.monotonic));
        }
    }

    /// A token request fails if a clock reached its deadline during a pause between two attempts.
    fn fail_paused_request_after_its_deadline(&mut self) {
        let now = self.now();
        let request = self.request.as_ref();
        if let Some(request) = request.filter(|request| request.may_have_failed(now)) {
            // It may have ended without a pause, if that would not have ended in time.
            self.request_failed_since(request.pausing_since(), Duration::ZERO);
        }
    }

    /// `TokenCache::reject` was called with the newest token, and withheld it or not.
    pub(crate) fn rejected_through_the_cache(&mut self, is_withheld: bool) {
        let fate = self.newest_rejected();
        let now = self.now().monotonic;
        self.rejections.resolve_as(is_withheld, now);
        self.rejection_through_the_cache_is_answered(fate, is_withheld);
    }

    /// How long it takes until a token request that pauses notices that its deadline has passed.
    pub(crate) fn last_pause(&self) -> Option<Duration> {
        let now = self.now();
        let request = self.request.as_ref()?;
        let is_last = request.is_pausing() && request.age(now) >= DEADLINE;
        let left = request.pause_ends_at().saturating_sub(now.monotonic);
        is_last.then_some(left.min(CHECK_INTERVAL) + TIMER_RESOLUTION)
    }

    /// How long the process stands still so that it is visible whether another attempt follows the one
    /// in progress: not until shortly before the deadline.
    pub(crate) fn unambiguous(&self, time: Duration) -> Duration {
        let later = self.now().after(time);
        let is_ambiguous = self.request.as_ref().is_some_and(|request| {
            request.attempt_is_over(later) && request.may_end_or_retry(Duration::ZERO, later)
        });
        if is_ambiguous {
            time + FIRST_PAUSE * (1 << MOST_ATTEMPTS)
        } else {
            time
        }
    }

    pub(crate) fn newest_is_unexpired(&self) -> bool {
        let now = self.now();
        let newest = self.newest.as_ref();
        newest.is_some_and(|newest| !now.has_reached(&newest.expires_at))
    }

    /// Whether a use of the newest token must start a refresh, whatever the jitter. A token that
    /// came back unchanged is exempt, as is one whose last refresh failed or has just been lost.
    fn newest_is_due_for_refresh(&self) -> bool {
        let now = self.now();
        let was_just_lost = self
            .last_lost_at
            .is_some_and(|lost_at| now.monotonic < lost_at + RESTART_AFTER);
        self.failure.is_none()
            && !was_just_lost
            && self.newest.as_ref().is_some_and(|newest| {
                let latest_refresh = newest.refresh_at + newest.refresh_window.mul_f64(MOST_JITTER);
                !newest.is_unchanged
                    && now.monotonic >= latest_refresh
                    && !now.has_reached(&newest.expires_at)
            })
    }

    /// Whether there is a token that any call may use.
    pub(crate) fn has_usable_token(&mut self) -> bool {
        let now = self.now().monotonic;
        self.newest_is_unexpired() && !self.rejections.may_be_withheld(now)
    }

    /// Whether the newest token is better than none for this call, by the monotonic clock alone.
    pub(crate) fn has_last_resort(&self, call: CallId) -> bool {
        let now = self.now().monotonic;
        let has_not_ended = self
            .newest
            .as_ref()
            .is_some_and(|newest| now < newest.ends_at);
        has_not_ended && !self.rejections.is_rejected && !self.is_rejected_newest(call)
    }

    fn token_obtained(&mut self, text: String, lifetime: Duration) -> String {
        let Some(request) = self.request.take() else {
            return text;
        };
        self.requests_ended += 1;
        let now = self.now();
        let is_unchanged = self
            .newest
            .as_ref()
            .is_some_and(|newest| newest.text == text);
        let expires_after = lifetime - EXPIRY_MARGIN.min(lifetime / 10);
        let refresh_window = REFRESH_WINDOW.min(lifetime / 5);
        let refresh_after = expires_after - refresh_window;
        let obtained = ObtainedToken {
            text: text.clone(),
            obtained_at: now,
            expires_at: request.attempt_started_at.after(expires_after),
            ends_at: request.attempt_started_at.after(lifetime).monotonic,
            refresh_at: request.attempt_started_at.after(refresh_after).monotonic,
            refresh_window,
            is_unchanged,
            is_to_be_replaced: false,
        };
        self.expiries.insert(text.clone(), obtained.expires_at);
        if now.has_reached(&obtained.expires_at) {
            let waiting = |call: &&mut ObservedCall| call.began_at.is_some() && !call.is_over;
            for call in self.calls.iter_mut().filter(waiting) {
                call.may_use_expired.push(text.clone());
            }
        }
        self.tokens_obtained += 1;
        self.newest = Some(obtained);
        self.failure = None;
        let is_renewal = request.rejected.is_some();
        if is_renewal || !is_unchanged {
            self.landing += 1;
        }
        if is_renewal && is_unchanged {
            self.renewed_in_vain.insert(text.clone());
        }
        self.rejections
            .token_obtained(now.monotonic, is_renewal, is_unchanged);
        if is_unchanged && !is_renewal {
            self.unsettling_requests.insert(self.requests_started);
        }
        text
    }

    fn attempt_failed(&mut self, retry_after: Duration) -> Option<String> {
        let moment = self.now();
        let now = moment.monotonic;
        let retry_after = plausible(retry_after);
        let request = self.request.as_mut()?;
        let pause = FIRST_PAUSE * (1 << (request.attempts - 1));
        let ends_in_time = request.age(moment) + retry_after < DEADLINE;
        if request.attempts < MOST_ATTEMPTS && ends_in_time {
            request.over_since = None;
            request.phase = Phase::Pausing {
                since: now,
                at_least_until: now + retry_after,
                at_most_until: now + pause.max(retry_after.mul_f64(1.5)),
            };
        } else {
            self.request_failed(retry_after);
        }
        None
    }

    fn request_failed(&mut self, retry_after: Duration) {
        self.request_failed_since(self.now().monotonic, retry_after);
    }

    /// The token request failed now, or after `earliest` and before now.
    fn request_failed_since(&mut self, earliest: Duration, retry_after: Duration) {
        let Some(request) = self.request.take() else {
            return;
        };
        let now = self.now().monotonic;
        let ended_at = if self.stands_still { now } else { earliest };
        if ended_at >= request.started_at.monotonic + DEADLINE + OVERDUE_AFTER {
            self.token_request_is_bounded_in_time(&request, now);
            self.request = Some(request);
            self.request_lost();
            return;
        }
        self.requests_ended += 1;
        let in_a_row = self.failure.as_ref().map_or(0, |last| last.in_a_row) + 1;
        let doubled = Duration::from_secs(1 << (in_a_row - 1).min(10)).min(LONGEST_BACKOFF);
        let asked_for = plausible(retry_after);
        self.last_failure_at = Some(now);
        self.failure = Some(Failure {
            in_a_row,
            at_least_until: earliest + doubled.mul_f64(0.8).max(asked_for),
            at_most_until: now + doubled.mul_f64(1.2).max(asked_for.mul_f64(1.5)),
        });
        if let Some(newest) = &mut self.newest {
            newest.is_to_be_replaced = true;
        }
        self.rejections.token_request_failed();
    }

    /// The token request ends without a result. That is not a failure of the token service.
    fn request_lost(&mut self) {
        self.request = None;
        self.requests_ended += 1;
        self.last_lost_at = Some(self.now().monotonic);
        self.unsettling_requests.insert(self.requests_started);
        if let Some(newest) = &mut self.newest {
            newest.is_to_be_replaced = true;
        }
    }
}

/// A `Retry-After`, if it is obeyed.
fn plausible(retry_after: Duration) -> Duration {
    if retry_after <= MAX_RETRY_AFTER {
        retry_after
    } else {
        Duration::ZERO
    }
}

impl TokenRequest {
    /// How long ago it started, by the clock that says more.
    pub(crate) fn age(&self, now: Moment) -> Duration {
        now.longest_since(&self.started_at)
    }

    /// Whether either clock has ended the attempt in progress.
    pub(crate) fn attempt_is_over(&self, now: Moment) -> bool {
        let is_attempting = matches!(self.phase, Phase::Attempting(_));
        let age = now.longest_since(&self.attempt_started_at);
        is_attempting && (age >= ATTEMPT_TIMEOUT || self.age(now) >= DEADLINE)
    }

    fn is_pausing(&self) -> bool {
        matches!(self.phase, Phase::Pausing { .. })
    }

    /// Whether it may have failed after a pause, because a clock has reached its deadline.
    pub(crate) fn may_have_failed(&self, now: Moment) -> bool {
        self.is_pausing() && self.age(now) >= DEADLINE
    }

    fn pausing_since(&self) -> Duration {
        match self.phase {
            Phase::Pausing { since, .. } => since,
            Phase::Attempting(_) => Duration::MAX,
        }
    }

    fn pause_ends_at(&self) -> Duration {
        match self.phase {
            Phase::Pausing { at_most_until, .. } => at_most_until,
            Phase::Attempting(_) => Duration::MAX,
        }
    }

    /// Whether a failed attempt may or may not be the last one. The pause before the next attempt
    /// is random, so whether it ends before the deadline is not visible.
    pub(crate) fn may_end_or_retry(&self, retry_after: Duration, now: Moment) -> bool {
        let retry_after = plausible(retry_after);
        let age = self.age(now);
        let longest_pause = (FIRST_PAUSE * (1 << MOST_ATTEMPTS)).max(retry_after.mul_f64(1.5));
        age + retry_after < DEADLINE && age + longest_pause >= DEADLINE
    }
}
