//! One function for each promise.

use std::time::Duration;

use tower_client_credentials::{Error, NotReplayed};

use crate::{
    action::Answer,
    bodies::{Policy, TEXT},
    clocks::Moment,
    observer::{
        CHECK_INTERVAL, CallId, DEADLINE, MOST_ATTEMPTS, MOST_WAITS, ObservedCall, Observer, Phase,
        TIMER_RESOLUTION, TokenRequest,
    },
    rejections::Fate,
    world::CallResult,
};

/// The rounding error of durations that were multiplied by a floating-point number.
pub(crate) const ROUNDING: Duration = Duration::from_micros(1);

/// Checked when something happens.
impl Observer {
    pub(crate) fn one_token_request_per_key(&mut self) {
        let others = self.attempts_in_progress;
        self.expect(others == 0, || {
            format!("one token request per key: {others} attempts in progress, and one more starts")
        });
    }

    pub(crate) fn two_sends_at_most(&mut self, call: CallId) {
        let seen = &self.calls[call.0];
        let (sends, policy) = (seen.sends, seen.policy);
        let most = match policy {
            Policy::Cloned | Policy::Buffered => 2,
            Policy::Overflowing if !seen.frames.is_read_to_the_end() => 2,
            Policy::Overflowing | Policy::NoReplay | Policy::OptedOut => 1,
        };
        self.expect(sends <= most, || {
            format!("two sends at most: {call:?} was sent {sends} times, {policy:?}")
        });
    }

    /// The upload of a rejected request ends with an error once the replay takes over its body.
    pub(crate) fn upload_fails_only_for_a_replay(&mut self, call: CallId, send: usize) {
        let seen = &self.calls[call.0];
        let is_rejected = seen.last_answer.is_some_and(Answer::is_rejection);
        let is_taken_over = send < seen.sends || (is_rejected && !seen.is_not_replayable);
        self.expect(is_taken_over, || {
            format!("no part of a body is lost: send {send} of {call:?} fails")
        });
    }

    pub(crate) fn whole_body_is_sent(&mut self, call: CallId, send: usize, received: &[u8]) {
        self.expect(received == TEXT.as_bytes(), || {
            let received = String::from_utf8_lossy(received);
            format!("no part of a body is lost: send {send} of {call:?} ends with {received:?}")
        });
    }

    pub(crate) fn no_expired_token_is_used(&mut self, call: CallId, token: &str) {
        let now = self.now();
        let has_expired = self
            .expiries
            .get(token)
            .is_none_or(|expires_at| now.has_reached(expires_at));
        let may_use_it = self.calls[call.0]
            .may_use_expired
            .iter()
            .any(|expired| expired == token);
        let is_newest = self
            .newest
            .as_ref()
            .is_some_and(|newest| newest.text == token);
        let is_last_resort =
            self.calls[call.0].may_use_last_resort && is_newest && self.has_last_resort(call);
        self.expect(!has_expired || may_use_it || is_last_resort, || {
            format!("an expired token is not sent: {call:?} uses {token}")
        });
    }

    pub(crate) fn replay_has_another_token(&mut self, call: CallId, token: &str) {
        let seen = &self.calls[call.0];
        let is_another = seen.sends == 0 || seen.last_token.as_deref() != Some(token);
        self.expect(is_another, || {
            format!("no replay with the rejected token: {call:?} sends {token} again")
        });
    }

    pub(crate) fn no_withheld_token_is_used(&mut self, call: CallId, token: &str) {
        let now = self.now().monotonic;
        let is_newest = self
            .newest
            .as_ref()
            .is_some_and(|newest| newest.text == token);
        let is_withheld = is_newest && self.rejections.is_withheld(now);
        self.expect(!is_withheld, || {
            format!("a rejected token is withheld: {call:?} uses {token}")
        });
    }

    /// A call that waits for the renewal of a token that it may use waits for a second.
    pub(crate) fn rejected_token_is_withheld_briefly(
        &mut self,
        call: CallId,
        is_woken: bool,
        is_ready: bool,
    ) {
        let now = self.now().monotonic;
        let waits_until = self.calls[call.0].waits_until;
        let is_late = waits_until.is_some_and(|until| now > until + TIMER_RESOLUTION);
        let may_use_newest = self.newest_is_unexpired() && !self.is_rejected_newest(call);
        let may_go_on = may_use_newest && (is_ready || self.calls[call.0].is_token_only);
        self.expect(!is_late || is_woken || !may_go_on, || {
            format!("a rejected token is withheld briefly: {call:?} waits on")
        });
    }

    /// A token that is due for refresh is usable, and so is a rejected one whose renewal failed.
    pub(crate) fn no_call_waits_while_a_token_is_usable(&mut self, call: CallId) {
        let is_usable = self.has_usable_token();
        self.expect(!is_usable, || {
            format!("no call waits while a token is usable: {call:?} waits")
        });
    }

    pub(crate) fn next_attempt_is_due(
        &mut self,
        request: &TokenRequest,
        rejected: &Option<String>,
        now: Moment,
    ) {
        let attempts = request.attempts + 1;
        self.expect(attempts <= MOST_ATTEMPTS, || {
            format!("three attempts at most: this is attempt {attempts}")
        });
        let Phase::Pausing { at_least_until, .. } = request.phase else {
            return;
        };
        self.expect(now.monotonic + ROUNDING >= at_least_until, || {
            format!("Retry-After is obeyed: attempt at {now:?}, not before {at_least_until:?}")
        });
        let age = request.age(now);
        self.expect(age < DEADLINE, || {
            format!("a token request is bounded in time: attempt after {age:?}")
        });
        self.expect(request.rejected == *rejected, || {
            format!("every attempt makes the same request: {rejected:?}")
        });
    }

    pub(crate) fn attempt_is_dropped_only_when_its_time_is_over(&mut self) {
        let now = self.now();
        let Some(request) = &self.request else { return };
        let (is_over, age) = (request.attempt_is_over(now), request.age(now));
        self.expect(is_over, || {
            format!("no caller owns a token request: dropped after {age:?}")
        });
    }

    /// A token request may only end late if the process stood still.
    pub(crate) fn token_request_is_bounded_in_time(
        &mut self,
        request: &TokenRequest,
        now: Duration,
    ) {
        let stood_still = self.stands_still;
        let age = now - request.started_at.monotonic;
        self.expect(stood_still, || {
            format!("a token request is bounded in time: it ends after {age:?}")
        });
    }

    pub(crate) fn back_off_is_respected(&mut self, now: Moment) {
        let Some(failure) = &self.failure else { return };
        let not_before = failure.at_least_until;
        self.expect(now.monotonic + ROUNDING >= not_before, || {
            format!("failures are shared: token request at {now:?}, not before {not_before:?}")
        });
    }

    /// A token that the API has accepted is renewed after a short pause, any other after the cool-down.
    pub(crate) fn renewal_is_allowed(&mut self, rejected: Option<&str>, now: Moment) {
        let now = now.monotonic;
        let is_renewal = rejected.is_some();
        let is_newest = self.newest.as_ref().map(|newest| newest.text.as_str()) == rejected;
        let may_renew = self.rejections.may_be_renewed(now);
        let is_as_expected = self.rejections.token_request_started(now, is_renewal);
        self.expect(!is_renewal || (is_newest && may_renew), || {
            format!("no storm: {rejected:?} is renewed at {now:?}")
        });
        self.expect(is_as_expected, || {
            format!("a token request names the rejected token: {rejected:?}")
        });
    }

    /// `TokenCache::reject` says what happens to the token.
    pub(crate) fn rejection_through_the_cache_is_answered(
        &mut self,
        fate: Fate,
        is_withheld: bool,
    ) {
        let is_right = match fate {
            Fate::Renewed => is_withheld,
            Fate::InUse => !is_withheld,
            Fate::Unknown => true,
        };
        self.expect(is_right, || {
            format!("a rejection is answered: {fate:?}, withheld: {is_withheld}")
        });
    }

    /// The reason is that there is no token, or that it is due for refresh, expired or rejected.
    pub(crate) fn token_request_has_a_reason(&mut self, rejected: Option<&str>, now: Moment) {
        let Some(newest) = &self.newest else { return };
        let left = newest
            .expires_at
            .monotonic
            .saturating_sub(newest.obtained_at.monotonic);
        let refresh_at = if newest.is_unchanged {
            newest.obtained_at.monotonic + (left / 2).max(Duration::from_secs(1))
        } else {
            newest.refresh_at
        };
        let is_due = now.monotonic + ROUNDING >= refresh_at;
        let is_unwanted = rejected.is_some() || newest.is_to_be_replaced;
        let has_reason = is_unwanted || is_due || now.has_reached(&newest.expires_at);
        let age = now.monotonic - newest.obtained_at.monotonic;
        let text = newest.text.clone();
        self.expect(has_reason, || {
            format!("token requests are bounded: no reason for one {age:?} after {text} arrived")
        });
    }

    /// Only a call that is polled can start a token request, unless the token is kept warm.
    pub(crate) fn token_requests_are_bounded(&mut self) {
        let (requests, polls) = (self.requests_started, self.polls + 1);
        self.expect(self.is_kept_warm || requests <= polls, || {
            format!("token requests are bounded: {requests} token requests in {polls} polls")
        });
    }
}

/// Checked after each step.
impl Observer {
    pub(crate) fn no_call_is_pending_without_a_reason(
        &mut self,
        call: CallId,
        is_woken: bool,
        is_ready: bool,
    ) {
        let seen = &self.calls[call.0];
        let waits_for_readiness = !is_ready && !seen.is_token_only;
        let has_reason =
            is_woken || waits_for_readiness || self.request.is_some() || seen.is_sending;
        self.expect(has_reason, || {
            format!("no call is pending without a reason: {call:?}")
        });
    }

    /// Otherwise a later call would wait for a routine refresh.
    pub(crate) fn token_due_for_refresh_is_refreshed(&mut self) {
        let is_due = std::mem::take(&mut self.is_refresh_due);
        let is_running = self.request.is_some();
        self.expect(!is_due || is_running, || {
            "a token due for refresh is refreshed: no token request is in progress".to_owned()
        });
    }

    pub(crate) fn rejected_token_is_renewed_for_the_next_call(&mut self) {
        let is_due = std::mem::take(&mut self.is_renewal_due);
        let is_running = self.request.is_some();
        self.expect(!is_due || is_running, || {
            "a rejected token is renewed for the next call: no token request is in progress"
                .to_owned()
        });
    }

    /// An upload that is not woken has read every available frame.
    pub(crate) fn no_upload_misses_a_frame(&mut self, call: CallId, is_woken: bool) {
        let seen = &self.calls[call.0];
        let is_waiting = seen.is_sending && !is_woken;
        let is_drained = !seen.policy.streams() || seen.frames.is_drained();
        self.expect(!is_waiting || is_drained, || {
            format!("no part of a body is lost: {call:?} is not woken for its next frame")
        });
    }

    /// The API reads on after an early answer, until a replay takes over the body.
    pub(crate) fn no_remaining_upload_misses_a_frame(
        &mut self,
        call: CallId,
        send: usize,
        is_woken: bool,
    ) {
        let seen = &self.calls[call.0];
        let is_taken_over = send < seen.sends;
        let has_reason = is_woken || (seen.frames.is_drained() && !is_taken_over);
        self.expect(has_reason, || {
            format!("no part of a body is lost: send {send} of {call:?} is not woken")
        });
    }

    /// A token request that neither attempts nor pauses would never end.
    pub(crate) fn token_request_goes_on(&mut self) {
        let now = self.now().monotonic;
        let Some(request) = &self.request else { return };
        let age = now - request.started_at.monotonic;
        let is_late = match request.phase {
            Phase::Attempting(_) => request
                .over_since
                .is_some_and(|since| now > since + CHECK_INTERVAL + TIMER_RESOLUTION),
            Phase::Pausing { at_most_until, .. } => now > at_most_until + TIMER_RESOLUTION,
        };
        self.expect(!is_late, || {
            format!("a token request is bounded in time: it is {age:?} old")
        });
    }
}

/// Checked when a call ends.
impl Observer {
    pub(crate) fn caller_sees_what_happened(&mut self, call: CallId, result: &CallResult) {
        let (has_usable_token, has_last_resort) =
            (self.has_usable_token(), self.has_last_resort(call));
        let seen = &self.calls[call.0];
        let is_right = match result {
            CallResult::Status(200, _) => seen.last_answer == Some(Answer::Accepted),
            CallResult::Status(..) => seen.last_answer.is_some_and(Answer::is_rejection),
            CallResult::Token(token) => self.expiries.contains_key(token),
            CallResult::ApiError => seen.last_answer == Some(Answer::Failed),
            CallResult::TokenError(status) => {
                let has_failed = self.failed_recently(call)
                    || self.may_be_cooling_down()
                    || self.is_renewed_in_vain(call);
                let says_what_was_answered = *status == (seen.sends > 0).then_some(401);
                self.has_no_answer(seen)
                    && has_failed
                    && says_what_was_answered
                    && (!has_last_resort || self.is_renewed_in_vain(call))
            }
            CallResult::RequestsLost => {
                let waits = self.requests_ended - seen.requests_ended_before;
                self.has_no_answer(seen) && waits >= MOST_WAITS && !has_usable_token
            }
            CallResult::Expired => {
                let waits = self.requests_ended - seen.requests_ended_before;
                let was_renewed_in_vain = seen.may_have_dropped_rejection && waits >= MOST_WAITS;
                (self.has_lost_its_token(seen) || was_renewed_in_vain) && !has_usable_token
            }
        };
        let sends = seen.sends;
        self.expect(is_right, || {
            format!("the caller sees what happened: {call:?}, sent {sends} times, got {result:?}")
        });
    }

    /// A rejection comes back with the reason why it was not replayed, anything else without one.
    pub(crate) fn caller_sees_what_the_api_said(
        &mut self,
        call: CallId,
        status: u16,
        reason: Option<&NotReplayed>,
    ) {
        let seen = &self.calls[call.0];
        let (sends, policy) = (seen.sends, seen.policy);
        let may_replay = sends == 1 && !matches!(policy, Policy::NoReplay | Policy::OptedOut);
        let is_right = match reason {
            None => status != 401,
            Some(_) if status != 401 => false,
            Some(NotReplayed::RejectedAgain) => sends == 2,
            Some(NotReplayed::BodyNotKept) => policy == Policy::NoReplay,
            Some(NotReplayed::OptedOut) => policy == Policy::OptedOut,
            Some(NotReplayed::BodyOverLimit) => {
                may_replay && policy == Policy::Overflowing && seen.frames.is_read_to_the_end()
            }
            Some(NotReplayed::CoolingDown) => may_replay && self.may_be_cooling_down(),
            Some(NotReplayed::SameToken) => may_replay && self.is_renewed_in_vain(call),
            Some(NotReplayed::RenewalFailed(error)) => {
                let is_of_a_request = error.is_token_service() || error.is_timeout();
                let has_failed = is_of_a_request && self.failed_recently(call);
                may_replay && (has_failed || self.requests_were_lost(call, error))
            }
            Some(_) => false,
        };
        let is_held = sends == 2 || !seen.has_dropped_rejection;
        self.expect(is_right && is_held, || {
            let reason = reason.map(ToString::to_string);
            format!(
                "the caller sees what the API said: {call:?}, {policy:?}, sent {sends} times, \
                 got {status} because of {reason:?}"
            )
        });
    }

    fn may_be_cooling_down(&self) -> bool {
        let now = self.now().monotonic;
        !self.rejections.has_to_be_renewed(now)
    }

    /// Whether the last renewal returned the token that this call was sent with.
    fn is_renewed_in_vain(&self, call: CallId) -> bool {
        let last_token = self.calls[call.0].last_token.as_ref();
        last_token.is_some_and(|token| self.renewed_in_vain.contains(token))
    }

    /// Whether a replay got no token although no token request failed: each was lost, or brought a
    /// token that expired before the call was polled.
    fn requests_were_lost(&self, call: CallId, error: &Error) -> bool {
        let ended_before = self.calls[call.0].requests_ended_when_answered;
        let waits = self.requests_ended - ended_before;
        (error.is_expired() || error.is_no_runtime()) && waits >= MOST_WAITS
    }

    /// Whether a call has no answer to return: it was not sent, held its rejection for long enough, or
    /// dropped it for a replay whose token was lost before the send.
    fn has_no_answer(&self, call: &ObservedCall) -> bool {
        call.sends == 0 || call.may_have_dropped_rejection || self.has_lost_its_token(call)
    }

    /// Whether the call got a token for its next send and lost it before the service was ready. A
    /// first send loses its token when a second one is requested, a replay when it had a newer one.
    fn has_lost_its_token(&self, call: &ObservedCall) -> bool {
        let newest = self.newest.as_ref().map(|newest| &newest.text);
        let is_renewed = self.tokens_obtained > call.tokens_obtained_before
            || newest != call.last_token.as_ref();
        match call.sends {
            0 => !call.is_token_only && self.requests_ended >= call.requests_ended_before + 2,
            1 => call.last_answer.is_some_and(Answer::is_rejection) && is_renewed,
            _ => false,
        }
    }

    /// Whether a token request failed while the call waited, or calls still share its error.
    pub(crate) fn failed_recently(&self, call: CallId) -> bool {
        let now = self.now().monotonic;
        let began_at = self.calls[call.0].began_at.unwrap_or(now);
        self.last_failure_at.is_some_and(|at| at >= began_at)
            || self
                .failure
                .as_ref()
                .is_some_and(|failure| now <= failure.at_most_until + ROUNDING)
    }
}
