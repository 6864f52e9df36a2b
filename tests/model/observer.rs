//! Records what is visible from outside: attempts to get a token, sends and answers.
//!
//! The observer derives from these what the promises allow next. It knows the promises and not the
//! code, and asks the cache nothing. `promises.rs` has one function for each promise.

use std::{collections::HashMap, time::Duration};

use tokio::sync::oneshot;

use crate::{
    action::{Answer, Reply, milliseconds},
    bodies::{FrameSource, Policy},
    clocks::{Clocks, Moment},
    runtimes::{CurrentRuntime, RuntimeId},
    world::CallResult,
};

// The defaults that the promises mention.
pub(crate) const EXPIRY_MARGIN: Duration = Duration::from_secs(10);
pub(crate) const REFRESH_WINDOW: Duration = Duration::from_secs(300);
/// As a share of the refresh window.
pub(crate) const MOST_JITTER: f64 = 0.5;
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
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
pub(crate) const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

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
    tokens_issued: usize,
    pub(crate) tokens_obtained: usize,
    pub(crate) newest: Option<ObtainedToken>,
    /// When each token expires, according to its last issue.
    pub(crate) expiries: HashMap<String, Moment>,
    /// The rejected token that no call may use, because its renewal runs.
    pub(crate) withheld: Option<String>,
    /// A rejected token that may be withheld: whether its renewal has begun is not visible.
    pub(crate) may_be_withheld: Option<String>,
    /// The same, from before a token request that did not renew it. Its renewal may still be due.
    pub(crate) may_still_be_withheld: Option<String>,
    pub(crate) renewed_at: Option<Duration>,
    /// The failure that calls share, until a token is obtained.
    pub(crate) failure: Option<Failure>,
    pub(crate) last_failure_at: Option<Duration>,
    /// When a token request was last lost with its runtime, or overdue.
    pub(crate) last_lost_at: Option<Duration>,
    pub(crate) calls: Vec<ObservedCall>,
    pub(crate) sends: Vec<PendingSend>,
    /// Whether this step used a token that was due for refresh.
    pub(crate) is_refresh_due: bool,
    /// Whether this step rejected the token of a call that is not replayed.
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
        at_least_until: Duration,
        at_most_until: Duration,
    },
}

/// The result of a token request.
pub(crate) struct ObtainedToken {
    pub(crate) text: String,
    pub(crate) obtained_at: Moment,
    pub(crate) expires_at: Moment,
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
    /// Whether it has been pending after a rejection.
    pub(crate) waits_for_a_renewal: bool,
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
    pub(crate) fn new(clocks: Clocks, current_runtime: CurrentRuntime, is_kept_warm: bool) -> Self {
        Self {
            clocks,
            current_runtime,
            is_kept_warm,
            request: None,
            requests_started: 0,
            requests_ended: 0,
            attempts_in_progress: 0,
            tokens_issued: 0,
            tokens_obtained: 0,
            newest: None,
            expiries: HashMap::new(),
            withheld: None,
            may_be_withheld: None,
            may_still_be_withheld: None,
            renewed_at: None,
            failure: None,
            last_failure_at: None,
            last_lost_at: None,
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
        match self.request.take() {
            Some(request) => {
                self.next_attempt_is_due(&request, &rejected, now);
                self.request = Some(TokenRequest {
                    attempts: request.attempts + 1,
                    attempt_started_at: now,
                    phase: Phase::Attempting(Some(answer)),
                    ..request
                });
            }
            None => {
                self.requests_started += 1;
                self.back_off_is_respected(now);
                self.cool_down_is_respected(rejected.as_deref(), now);
                self.token_request_has_a_reason(rejected.as_deref(), now);
                self.token_requests_are_bounded();
                self.withheld = rejected.clone().or(self.withheld.take());
                self.request = Some(TokenRequest {
                    started_at: now,
                    attempts: 1,
                    attempt_started_at: now,
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
                let text = format!("token-{}", self.tokens_issued);
                Some(self.token_obtained(text, milliseconds(lifetime)))
            }
            Reply::Same(lifetime) => {
                self.tokens_issued = self.tokens_issued.max(1);
                let text = format!("token-{}", self.tokens_issued);
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
            self.token_request_is_dropped_only_at_its_deadline();
            self.request_failed(Duration::ZERO);
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
        let seen = &mut self.calls[call.0];
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
        self.no_expired_token_is_used(call, token);
        self.no_withheld_token_is_used(call, token);
    }

    /// A call was polled and is still pending.
    pub(crate) fn still_pending(&mut self, call: CallId, is_ready: bool) {
        let now = self.now();
        let seen = &mut self.calls[call.0];
        let is_ready = is_ready || seen.is_token_only;
        let begins = is_ready && seen.began_at.is_none();
        if begins {
            seen.began_at = Some(now.monotonic);
            seen.requests_ended_before = self.requests_ended;
        }
        if seen.is_sending {
            return;
        }
        if seen.last_answer.is_some_and(Answer::is_rejection) {
            if seen.sends == 1 {
                let since = *seen.holds_rejection_since.get_or_insert(now.monotonic);
                let held = now.monotonic - since;
                seen.may_have_dropped_rejection |= held >= HOLD;
                // The timer is late in a process that stood still.
                let is_over = held >= HOLD + TIMER_RESOLUTION && !self.stands_still;
                seen.has_dropped_rejection |= is_over;
            }
            self.pending_after_a_rejection(call, is_ready);
        }
        if !is_ready {
            return;
        }
        if begins {
            self.no_call_waits_while_a_token_is_usable(call);
        }
    }

    /// A call whose request was rejected is pending. It waits for the renewal of its token if that
    /// is the newest one, unless something else explains why it is pending:
    ///
    /// * It has the renewed token, and its service is not ready.
    /// * A token request has ended since the rejection. The token may serve again, and the call may
    ///   have been polled so late that it starts over.
    /// * It began to wait because the token had expired, and a clock was set back since.
    fn pending_after_a_rejection(&mut self, call: CallId, is_ready: bool) {
        let rejected = self.calls[call.0].last_token.clone();
        if self.newest.as_ref().map(|newest| &newest.text) != rejected.as_ref() {
            return;
        }
        let seen = &mut self.calls[call.0];
        let has_waited = std::mem::replace(&mut seen.waits_for_a_renewal, true)
            || seen.requests_ended_when_answered < self.requests_ended;
        if is_ready && !has_waited && self.newest_is_unexpired_and(|_| true) {
            self.withheld = rejected;
        } else {
            self.may_be_withheld = rejected;
        }
    }

    /// A call has ended. A rejection of its second token during a refresh turns the refresh into
    /// the renewal, except within the cool-down; which of the two happened is not visible.
    pub(crate) fn call_ended(&mut self, call: CallId, result: &CallResult) {
        self.caller_sees_what_happened(call, result);
        if let CallResult::Status(status, reason) = result {
            self.caller_sees_what_the_api_said(call, *status, reason.as_ref());
        }
        self.calls[call.0].is_not_replayable = result.is_not_replayable();
        self.is_renewal_due |= self.renewal_is_due(call);
        self.calls[call.0].is_over = true;
        let last_token = &self.calls[call.0].last_token;
        let is_newest = self.newest.as_ref().map(|newest| &newest.text) == last_token.as_ref();
        if is_newest && matches!(result, CallResult::Status(401, _)) {
            self.may_be_withheld = last_token.clone();
        }
    }

    /// A step is over. If the process stood still past the deadline of a token request that paused
    /// between two attempts, the request fails without another attempt.
    pub(crate) fn step_is_over(&mut self) {
        let now = self.now().monotonic;
        let is_over = self.request.as_ref().is_some_and(|request| {
            matches!(request.phase, Phase::Pausing { .. })
                && now >= request.started_at.monotonic + DEADLINE
        });
        if is_over {
            self.request_failed(Duration::ZERO);
        }
        self.token_due_for_refresh_is_refreshed();
        self.rejected_token_is_renewed_for_the_next_call();
        self.stands_still = false;
        // Without a token request, no renewal runs.
        if self.request.is_none() {
            self.may_be_withheld = None;
        }
    }

    /// `TokenCache::reject` withheld the newest token.
    pub(crate) fn rejected_through_the_cache(&mut self) {
        self.withheld = self.newest.as_ref().map(|newest| newest.text.clone());
    }

    fn newest_is_unexpired_and(&self, is_wanted: impl FnOnce(Option<String>) -> bool) -> bool {
        let now = self.now();
        self.newest.as_ref().is_some_and(|newest| {
            !now.has_reached(&newest.expires_at) && is_wanted(Some(newest.text.clone()))
        })
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

    /// Whether the newest token was rejected in a call that is not replayed, and may be renewed
    /// now.
    fn renewal_is_due(&self, call: CallId) -> bool {
        let seen = &self.calls[call.0];
        let newest = self.newest.as_ref().map(|newest| &newest.text);
        let is_newest = newest == seen.last_token.as_ref()
            && seen.tokens_obtained_before == self.tokens_obtained;
        let is_possible = self.failure.is_none() && !self.is_cooling_down(self.now().monotonic);
        seen.is_not_replayable && is_newest && is_possible
    }

    pub(crate) fn is_cooling_down(&self, now: Duration) -> bool {
        self.renewed_at
            .is_some_and(|renewed_at| now < renewed_at + COOL_DOWN)
    }

    /// Whether there is a token that any call may use.
    pub(crate) fn has_usable_token(&self) -> bool {
        self.newest_is_unexpired_and(|text| {
            text != self.withheld
                && text != self.may_be_withheld
                && text != self.may_still_be_withheld
        })
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
        // A refresh that started before the rejection may bring the rejected token again. Its
        // renewal is still due then.
        if !is_unchanged || request.rejected.is_some() {
            self.renewal_is_over(&request);
        } else {
            self.renewal_may_still_be_due();
        }
        text
    }

    fn attempt_failed(&mut self, retry_after: Duration) -> Option<String> {
        let now = self.now().monotonic;
        let request = self.request.as_mut()?;
        let pause = FIRST_PAUSE * (1 << (request.attempts - 1));
        let deadline = request.started_at.monotonic + DEADLINE;
        if request.attempts < MOST_ATTEMPTS && now + retry_after < deadline {
            request.phase = Phase::Pausing {
                at_least_until: now + retry_after,
                at_most_until: now + pause.max(retry_after.mul_f64(1.5)),
            };
        } else {
            self.request_failed(retry_after);
        }
        None
    }

    fn request_failed(&mut self, retry_after: Duration) {
        let Some(request) = self.request.take() else {
            return;
        };
        let now = self.now().monotonic;
        if now >= request.started_at.monotonic + DEADLINE + OVERDUE_AFTER {
            self.token_request_is_bounded_in_time(&request, now);
            self.request = Some(request);
            self.request_lost();
            return;
        }
        self.requests_ended += 1;
        let in_a_row = self.failure.as_ref().map_or(0, |last| last.in_a_row) + 1;
        let doubled = Duration::from_secs(1 << (in_a_row - 1).min(10)).min(LONGEST_BACKOFF);
        let asked_for = retry_after.min(LONGEST_RETRY_AFTER);
        self.last_failure_at = Some(now);
        self.failure = Some(Failure {
            in_a_row,
            at_least_until: now + doubled.mul_f64(0.8).max(asked_for),
            at_most_until: now + doubled.mul_f64(1.2).max(asked_for.mul_f64(1.5)),
        });
        if let Some(newest) = &mut self.newest {
            newest.is_to_be_replaced = true;
        }
        self.renewal_is_over(&request);
    }

    /// The token request ends without a result. That is not a failure of the token service.
    fn request_lost(&mut self) {
        self.request = None;
        self.requests_ended += 1;
        self.last_lost_at = Some(self.now().monotonic);
        if let Some(newest) = &mut self.newest {
            newest.is_to_be_replaced = true;
        }
        self.renewal_may_still_be_due();
    }

    /// A token request that was lost, or that was not a renewal, does not settle a rejection.
    fn renewal_may_still_be_due(&mut self) {
        let rejected = self.may_be_withheld.take();
        self.may_still_be_withheld = rejected.or(self.may_still_be_withheld.take());
    }

    /// The token request has settled every rejection, whatever its result. A token that is not
    /// replaced serves again.
    fn renewal_is_over(&mut self, request: &TokenRequest) {
        if request.rejected.is_some() {
            self.renewed_at = Some(self.now().monotonic);
        }
        self.withheld = None;
        self.may_be_withheld = None;
        self.may_still_be_withheld = None;
    }
}

impl TokenRequest {
    /// Whether a failed attempt may or may not be the last one. The pause before the next attempt
    /// is random, so whether it ends before the deadline is not visible.
    pub(crate) fn may_end_or_retry(&self, retry_after: Duration, now: Moment) -> bool {
        let deadline = self.started_at.monotonic + DEADLINE;
        let longest_pause = (FIRST_PAUSE * (1 << MOST_ATTEMPTS)).max(retry_after.mul_f64(1.5));
        now.monotonic + retry_after < deadline && now.monotonic + longest_pause >= deadline
    }
}
