//! The promises, one function each.

use std::time::Duration;

use tower_client_credentials::{Error, NotReplayed};

use crate::{
    action::Answer,
    bodies::{Policy, TEXT},
    clocks::Moment,
    observer::{ATTEMPTS, COOL_DOWN, CallId, CallSeen, DEADLINE, Flight, Observer, Phase, WAITS},
    world::TokenOutcome,
};

/// Tokio's timers go off at whole milliseconds.
const TIMER: Duration = Duration::from_millis(2);

/// What floating-point numbers may differ by.
const ROUNDING: Duration = Duration::from_micros(1);

/// Those that are looked at when something happens.
impl Observer {
    pub(crate) fn one_flight_at_most(&mut self) {
        let others = self.token_requests_in_progress;
        self.expect(others == 0, || {
            format!("one flight at most: {others} token requests in progress, and one more")
        });
    }

    pub(crate) fn two_sends_at_most(&mut self, call: CallId) {
        let seen = &self.calls[call.0];
        let (sends, policy) = (seen.sends, seen.policy);
        let most = match policy {
            Policy::Cloned | Policy::Buffered => 2,
            Policy::Overflowing if !seen.belt.is_read() => 2,
            Policy::Overflowing | Policy::Never | Policy::OptedOut => 1,
        };
        self.expect(sends <= most, || {
            format!("two sends at most: {call:?} was sent {sends} times, {policy:?}")
        });
    }

    /// A first send that was refused, and whose body the second send takes over, is told so.
    pub(crate) fn upload_fails_for_a_replay_only(&mut self, call: CallId, send: usize) {
        let seen = &self.calls[call.0];
        let is_refused = seen.last_answer.is_some_and(Answer::is_rejection);
        let is_taken_over = send < seen.sends || (is_refused && !seen.is_sent_once);
        self.expect(is_taken_over, || {
            format!("nothing is lost of a body: send {send} of {call:?} fails")
        });
    }

    pub(crate) fn request_is_sent_whole(&mut self, call: CallId, send: usize, received: &[u8]) {
        self.expect(received == TEXT.as_bytes(), || {
            let received = String::from_utf8_lossy(received);
            format!("nothing is lost of a body: send {send} of {call:?} ends with {received:?}")
        });
    }

    pub(crate) fn no_expired_token_is_handed_out(&mut self, call: CallId, token: &str) {
        let now = self.now();
        let has_expired = self
            .ends
            .get(token)
            .is_none_or(|ends_at| now.has_reached(ends_at));
        let is_entitled = self.calls[call.0]
            .entitled_to
            .iter()
            .any(|entitled| entitled == token);
        self.expect(!has_expired || is_entitled, || {
            format!("an expired token is never sent: {call:?} got {token}")
        });
    }

    pub(crate) fn no_rejected_token_is_handed_out(&mut self, call: CallId, token: &str) {
        let is_withheld = self.withheld.as_deref() == Some(token);
        self.expect(!is_withheld, || {
            format!("nobody is given the rejected token: {call:?} got {token}")
        });
    }

    /// Nobody waits for what is there already: a stale token, or a rejected one whose renewal failed.
    pub(crate) fn usable_token_is_used(&mut self, call: CallId) {
        let is_there = self.has_usable_token();
        self.expect(!is_there, || {
            format!("nobody waits for what is there: {call:?} waits")
        });
    }

    pub(crate) fn retry_is_due(&mut self, flight: &Flight, rejected: &Option<String>, now: Moment) {
        let attempts = flight.attempts + 1;
        self.expect(attempts <= ATTEMPTS, || {
            format!("three attempts at most: this is attempt {attempts}")
        });
        let Phase::Pausing { at_least_until, .. } = flight.phase else {
            return;
        };
        self.expect(now.monotonic + ROUNDING >= at_least_until, || {
            format!("Retry-After is obeyed: asked at {now:?}, not before {at_least_until:?}")
        });
        let age = now.monotonic - flight.started_at.monotonic;
        self.expect(age < DEADLINE, || {
            format!("a flight is bounded in time: it asks after {age:?}")
        });
        self.expect(flight.renews == *rejected, || {
            format!("every attempt asks for the same: {rejected:?}")
        });
    }

    pub(crate) fn flight_is_given_up_at_its_deadline_only(&mut self) {
        let now = self.now().monotonic;
        let Some(flight) = &self.flight else { return };
        let age = now - flight.started_at.monotonic;
        self.expect(age >= DEADLINE, || {
            format!("nobody owns a flight: given up after {age:?}")
        });
    }

    /// Only a process that stood still finds out too late that the deadline has passed.
    pub(crate) fn flight_ends_in_time(&mut self, flight: &Flight, now: Duration) {
        let stood_still = self.stands_still;
        let age = now - flight.started_at.monotonic;
        self.expect(stood_still, || {
            format!("a flight is bounded in time: it ends after {age:?}")
        });
    }

    pub(crate) fn back_off_is_respected(&mut self, now: Moment) {
        let Some(failure) = &self.failure else { return };
        let not_before = failure.at_least_until;
        self.expect(now.monotonic + ROUNDING >= not_before, || {
            format!("failures are shared: asked at {now:?}, not before {not_before:?}")
        });
    }

    pub(crate) fn cool_down_is_respected(&mut self, rejected: Option<&str>, now: Moment) {
        let (Some(rejected), Some(renewed_at)) = (rejected, self.renewed_at) else {
            return;
        };
        let pause = now.monotonic - renewed_at;
        self.expect(pause >= COOL_DOWN, || {
            format!("no storm: {rejected} is renewed {pause:?} after the last renewal")
        });
    }

    /// There is no token, or it is stale or expired, or the API refused it.
    pub(crate) fn flight_has_a_cause(&mut self, rejected: Option<&str>, now: Moment) {
        let Some(newest) = &self.newest else { return };
        let left = newest
            .ends_at
            .monotonic
            .saturating_sub(newest.landed_at.monotonic);
        let recheck = (left / 2).max(Duration::from_secs(1));
        let is_stale = if newest.is_unchanged {
            now.monotonic + ROUNDING >= newest.landed_at.monotonic + recheck
        } else {
            now.monotonic + ROUNDING >= newest.stale_at
        };
        let is_unwanted = rejected.is_some() || newest.is_to_be_replaced;
        let has_cause = is_unwanted || is_stale || now.has_reached(&newest.ends_at);
        let age = now.monotonic - newest.landed_at.monotonic;
        let text = newest.text.clone();
        self.expect(has_cause, || {
            format!("token requests are bounded: asked {age:?} after {text} landed, for no reason")
        });
    }

    /// Only those who are polled can ask.
    pub(crate) fn token_requests_are_bounded(&mut self) {
        let (flights, polls) = (self.flights, self.polls + 1);
        self.expect(self.is_kept_warm || flights <= polls, || {
            format!("token requests are bounded: {flights} flights in {polls} polls")
        });
    }
}

/// Those that are looked at after each step.
impl Observer {
    /// A call that was not woken has somebody to wait for.
    pub(crate) fn no_call_is_pending_without_a_reason(
        &mut self,
        call: CallId,
        is_woken: bool,
        is_ready: bool,
    ) {
        let seen = &self.calls[call.0];
        let waits_for_room = !is_ready && !seen.is_ask;
        let has_reason = is_woken || waits_for_room || self.flight.is_some() || seen.is_sending;
        self.expect(has_reason, || {
            format!("no call is pending without a reason: {call:?}")
        });
    }

    /// Otherwise somebody would wait for what could be foreseen.
    pub(crate) fn stale_token_is_refreshed(&mut self) {
        let is_due = std::mem::take(&mut self.is_refresh_due);
        let is_under_way = self.flight.is_some();
        self.expect(!is_due || is_under_way, || {
            "a stale token is used while its refresh runs: there is none".to_owned()
        });
    }

    /// A call that is sent once has no use for another token, but the next one has.
    pub(crate) fn refused_token_is_renewed(&mut self) {
        let is_due = std::mem::take(&mut self.is_renewal_due);
        let is_under_way = self.flight.is_some();
        self.expect(!is_due || is_under_way, || {
            "a rejected token is renewed for the next call: nothing is under way".to_owned()
        });
    }

    /// An upload that was not woken has read all that there is, or waits for its turn to be over.
    pub(crate) fn no_upload_waits_for_what_is_there(&mut self, call: CallId, is_woken: bool) {
        let seen = &self.calls[call.0];
        let is_waiting = seen.is_sending && !is_woken;
        let is_read = !seen.policy.streams() || seen.belt.is_empty();
        self.expect(!is_waiting || is_read, || {
            format!("nothing is lost of a body: {call:?} is not woken for its next frame")
        });
    }

    /// The same for what is read on after the answer, until a replay takes over.
    pub(crate) fn no_left_upload_waits_for_nothing(
        &mut self,
        call: CallId,
        send: usize,
        is_woken: bool,
    ) {
        let seen = &self.calls[call.0];
        let is_taken_over = send < seen.sends;
        let has_reason = is_woken || (seen.belt.is_empty() && !is_taken_over);
        self.expect(has_reason, || {
            format!("nothing is lost of a body: send {send} of {call:?} is told nothing")
        });
    }

    /// A flight that neither asks nor pauses would never land.
    pub(crate) fn flight_goes_on(&mut self) {
        let now = self.now().monotonic;
        let Some(flight) = &self.flight else { return };
        let age = now - flight.started_at.monotonic;
        let is_late = match flight.phase {
            Phase::Asking(_) => age > DEADLINE + TIMER,
            Phase::Pausing { at_most_until, .. } => now > at_most_until + TIMER,
        };
        self.expect(!is_late, || {
            format!("a flight is bounded in time: it is {age:?} old")
        });
    }
}

/// Those that are looked at when a call is over.
impl Observer {
    pub(crate) fn outcome_is_honest(&mut self, call: CallId, outcome: &TokenOutcome) {
        let seen = &self.calls[call.0];
        let is_honest = match outcome {
            TokenOutcome::Status(200, _) => seen.last_answer == Some(Answer::Accepted),
            TokenOutcome::Status(..) => seen.last_answer.is_some_and(Answer::is_rejection),
            TokenOutcome::Token(token) => self.ends.contains_key(token),
            TokenOutcome::ApiError => seen.last_answer == Some(Answer::Failed),
            // Once it was sent there is an answer to show, unless that was read and dropped for a replay
            // whose token was lost before it could be sent.
            TokenOutcome::TokenError => {
                (seen.sends == 0 || self.has_waited_in_vain(seen)) && self.failed_lately(call)
            }
            TokenOutcome::GaveUp => {
                let waits = self.ended_flights - seen.ended_flights_before;
                let has_no_answer = seen.sends == 0 || self.has_waited_in_vain(seen);
                has_no_answer && waits >= WAITS && !self.has_usable_token()
            }
            TokenOutcome::Expired => self.has_waited_in_vain(seen) && !self.has_usable_token(),
        };
        let sends = seen.sends;
        self.expect(is_honest, || {
            format!("the caller sees what happened: {call:?}, sent {sends} times, got {outcome:?}")
        });
    }

    /// A rejection comes back with the reason why it was not mended, everything else without one.
    pub(crate) fn reason_is_right(
        &mut self,
        call: CallId,
        status: u16,
        reason: Option<&NotReplayed>,
    ) {
        let now = self.now().monotonic;
        let seen = &self.calls[call.0];
        let (sends, policy) = (seen.sends, seen.policy);
        let may_replay = sends == 1 && !matches!(policy, Policy::Never | Policy::OptedOut);
        let is_right = match reason {
            None => status != 401,
            Some(_) if status != 401 => false,
            Some(NotReplayed::RejectedAgain) => sends == 2,
            Some(NotReplayed::BodyNotKept) => policy == Policy::Never,
            Some(NotReplayed::OptedOut) => policy == Policy::OptedOut,
            Some(NotReplayed::BodyOverLimit) => {
                may_replay && policy == Policy::Overflowing && seen.belt.is_read()
            }
            Some(NotReplayed::CoolingDown) => may_replay && self.is_cooling_down(now),
            Some(NotReplayed::RenewalFailed(error)) => {
                let is_of_a_flight = error.is_token_service() || error.is_timeout();
                let has_failed = is_of_a_flight && self.failed_lately(call);
                may_replay && (has_failed || self.is_without_token(call, error))
            }
            Some(_) => false,
        };
        self.expect(is_right, || {
            let reason = reason.map(ToString::to_string);
            format!(
                "the caller sees what the API said: {call:?}, {policy:?}, sent {sends} times, \
                 got {status} because of {reason:?}"
            )
        });
    }

    /// Whether a replay got nothing although no flight failed: one after the other was lost, or
    /// brought what ended before the call was polled.
    fn is_without_token(&self, call: CallId, error: &Error) -> bool {
        let ended_before = self.calls[call.0].ended_flights_when_answered;
        let waits = self.ended_flights - ended_before;
        (error.is_expired() || error.is_no_runtime()) && waits >= WAITS
    }

    /// Whether the call had its last token and could not use it: a first send waits for a second one,
    /// a replay has its answer to thank a renewal for.
    fn has_waited_in_vain(&self, call: &CallSeen) -> bool {
        let newest = self.newest.as_ref().map(|newest| &newest.text);
        let is_renewed = self.landings > call.landings_before || newest != call.last_token.as_ref();
        match call.sends {
            0 => !call.is_ask && self.ended_flights >= call.ended_flights_before + 2,
            1 => call.last_answer.is_some_and(Answer::is_rejection) && is_renewed,
            _ => false,
        }
    }

    /// Whether a flight failed while the call waited, or its failure still answers for others.
    fn failed_lately(&self, call: CallId) -> bool {
        let now = self.now().monotonic;
        let began_at = self.calls[call.0].began_at.unwrap_or(now);
        self.last_failure_at.is_some_and(|at| at >= began_at)
            || self
                .failure
                .as_ref()
                .is_some_and(|failure| now <= failure.at_most_until + ROUNDING)
    }
}
