//! What can be seen from outside: token requests, sends and answers; and what follows from them.
//!
//! Knows the promises, not the code: nothing here is asked of the cache. Each promise is a function
//! that is named after it; `promises.rs` holds them.

use std::{collections::HashMap, time::Duration};

use tokio::sync::oneshot;

use crate::{
    action::{Answer, Reply, milliseconds},
    bodies::{Belt, Policy},
    clocks::{Clocks, Moment},
    runtimes::{Driven, Home},
    world::TokenOutcome,
};

/// The defaults that the promises speak of.
pub(crate) const MARGIN: Duration = Duration::from_secs(10);
pub(crate) const WINDOW: Duration = Duration::from_secs(300);
/// As a share of the window.
pub(crate) const MOST_JITTER: f64 = 0.5;
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// How much later than that a flight without an outcome counts as lost.
const OVERDUE_AFTER: Duration = Duration::from_secs(1);
/// How long a stale token is used before a refresh that was lost is started again.
const RELAUNCH_AFTER: Duration = Duration::from_secs(1);
pub(crate) const COOL_DOWN: Duration = Duration::from_secs(30);
pub(crate) const ATTEMPTS: u32 = 3;
/// How many flights one waiter waits for, if one after the other is of no use to it.
pub(crate) const WAITS: usize = 4;
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(200);
pub(crate) const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
pub(crate) const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Names a call of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CallId(pub(crate) usize);

pub(crate) struct Observer {
    pub(crate) clocks: Clocks,
    driven: Driven,
    /// Whether the cache keeps its token warm, and so asks without being asked.
    pub(crate) is_kept_warm: bool,
    pub(crate) flight: Option<Flight>,
    pub(crate) flights: usize,
    pub(crate) token_requests_in_progress: usize,
    pub(crate) newest: Option<Landed>,
    tokens: usize,
    pub(crate) landings: usize,
    /// How many flights have had an outcome, or were lost.
    pub(crate) ended_flights: usize,
    /// When each token ends, by what was said of it last.
    pub(crate) ends: HashMap<String, Moment>,
    /// The token that the API refused and whose renewal somebody waits for.
    pub(crate) withheld: Option<String>,
    pub(crate) may_be_withheld: Option<String>,
    /// The same, after a flight that brought it once more, or was lost: then its renewal is still due.
    pub(crate) may_still_be_withheld: Option<String>,
    pub(crate) renewed_at: Option<Duration>,
    pub(crate) failure: Option<Failure>,
    /// Also of a failure that a token has made good.
    pub(crate) last_failure_at: Option<Duration>,
    /// When a flight was lost: who waited for it then may be told so.
    pub(crate) last_lost_at: Option<Duration>,
    pub(crate) calls: Vec<CallSeen>,
    pub(crate) sends: Vec<Send>,
    /// Whether a stale token was used in this step.
    pub(crate) is_refresh_due: bool,
    /// Whether a token was refused in this step to a call that is sent once.
    pub(crate) is_renewal_due: bool,
    /// Whether the process stands still in this step.
    pub(crate) stands_still: bool,
    pub(crate) polls: usize,
    /// Whether handles are left; without any, a flight may be given up.
    pub(crate) has_handles: bool,
    /// The promises that were found broken.
    broken: Vec<String>,
}

/// One acquisition, as its token requests show it.
pub(crate) struct Flight {
    pub(crate) started_at: Moment,
    pub(crate) attempts: u32,
    pub(crate) asked_at: Moment,
    /// The token that its requests name as rejected.
    pub(crate) renews: Option<String>,
    /// The runtime that its task is on.
    home: Home,
    pub(crate) phase: Phase,
}

pub(crate) enum Phase {
    /// Its answer is taken out when it is given.
    Asking(Option<oneshot::Sender<Reply>>),
    Pausing {
        at_least_until: Duration,
        at_most_until: Duration,
    },
}

/// A token that a flight brought.
pub(crate) struct Landed {
    pub(crate) text: String,
    pub(crate) landed_at: Moment,
    pub(crate) ends_at: Moment,
    pub(crate) stale_at: Duration,
    pub(crate) window: Duration,
    pub(crate) is_unchanged: bool,
    /// A flight failed that was to replace it, whether it was stale, rejected, or ended by a clock
    /// that was set back since.
    pub(crate) is_to_be_replaced: bool,
}

/// A flight's failure, and how long it answers for the token service.
pub(crate) struct Failure {
    pub(crate) in_a_row: u32,
    pub(crate) at_least_until: Duration,
    pub(crate) at_most_until: Duration,
}

/// A call, as far as it can be seen.
#[derive(Default)]
pub(crate) struct CallSeen {
    /// Whether it needs a token only, and so no service that is ready.
    pub(crate) is_ask: bool,
    pub(crate) policy: Policy,
    /// Where its body comes from, if that streams.
    pub(crate) belt: Belt,
    /// When it was first polled with a service that was ready, and so began to want a token.
    pub(crate) began_at: Option<Duration>,
    /// How many flights had ended by then.
    pub(crate) ended_flights_before: usize,
    pub(crate) sends: usize,
    pub(crate) is_sending: bool,
    pub(crate) last_token: Option<String>,
    pub(crate) last_answer: Option<Answer>,
    /// How many flights had ended by then.
    pub(crate) ended_flights_when_answered: usize,
    /// Whether it was seen to wait since.
    pub(crate) waits_for_a_renewal: bool,
    /// How many tokens had landed when it was last sent.
    pub(crate) landings_before: usize,
    /// Tokens that ended on landing, which it waited for.
    pub(crate) entitled_to: Vec<String>,
    /// Whether it is over without a second send, for a reason that its request has.
    pub(crate) is_sent_once: bool,
    pub(crate) is_over: bool,
}

/// A send in progress.
pub(crate) struct Send {
    pub(crate) call: CallId,
    pub(crate) answer: oneshot::Sender<Answer>,
}

impl Observer {
    pub(crate) fn new(clocks: Clocks, driven: Driven, is_kept_warm: bool) -> Self {
        Self {
            clocks,
            driven,
            is_kept_warm,
            flight: None,
            flights: 0,
            token_requests_in_progress: 0,
            newest: None,
            tokens: 0,
            landings: 0,
            ended_flights: 0,
            ends: HashMap::new(),
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

    /// Notes a promise that does not hold.
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

    /// The token service is asked.
    pub(crate) fn token_requested(
        &mut self,
        rejected: Option<String>,
        answer: oneshot::Sender<Reply>,
    ) {
        let now = self.now();
        self.one_flight_at_most();
        self.token_requests_in_progress += 1;
        match self.flight.take() {
            Some(flight) => {
                self.retry_is_due(&flight, &rejected, now);
                self.flight = Some(Flight {
                    attempts: flight.attempts + 1,
                    asked_at: now,
                    phase: Phase::Asking(Some(answer)),
                    ..flight
                });
            }
            None => {
                self.flights += 1;
                self.back_off_is_respected(now);
                self.cool_down_is_respected(rejected.as_deref(), now);
                self.flight_has_a_cause(rejected.as_deref(), now);
                self.token_requests_are_bounded();
                self.withheld = rejected.clone().or(self.withheld.take());
                self.flight = Some(Flight {
                    started_at: now,
                    attempts: 1,
                    asked_at: now,
                    renews: rejected,
                    home: self.driven.home(),
                    phase: Phase::Asking(Some(answer)),
                });
            }
        }
    }

    /// The token service has answered.
    pub(crate) fn token_answered(&mut self, reply: Reply) -> Option<String> {
        self.token_requests_in_progress -= 1;
        match reply {
            Reply::New(lifetime) => {
                self.tokens += 1;
                let text = format!("token-{}", self.tokens);
                Some(self.landed(text, milliseconds(lifetime)))
            }
            Reply::Same(lifetime) => {
                self.tokens = self.tokens.max(1);
                let text = format!("token-{}", self.tokens);
                Some(self.landed(text, milliseconds(lifetime)))
            }
            Reply::Transient | Reply::Panic => self.attempt_failed(Duration::ZERO),
            Reply::RetryAfter(seconds) => self.attempt_failed(Duration::from_secs(seconds)),
            Reply::Permanent => {
                self.flight_failed(Duration::ZERO);
                None
            }
        }
    }

    /// The token request was given up.
    pub(crate) fn token_request_dropped(&mut self) {
        self.token_requests_in_progress -= 1;
        if self.has_handles {
            self.flight_is_given_up_at_its_deadline_only();
            self.flight_failed(Duration::ZERO);
        } else {
            self.flight = None;
        }
    }

    /// The second runtime is about to go away, and with it the flight, if that is its home.
    pub(crate) fn second_runtime_goes_away(&mut self) {
        if self
            .flight
            .as_ref()
            .is_some_and(|flight| flight.home == Home::Second)
        {
            self.flight_lost();
        }
    }

    /// The API is sent a request.
    pub(crate) fn sent(&mut self, call: CallId, token: String, answer: oneshot::Sender<Answer>) {
        self.handed_out(call, &token);
        // A waiter that is polled late may be sent with the token without life that it waited for,
        // which says nothing of the newest.
        let is_newest = self
            .newest
            .as_ref()
            .is_some_and(|newest| newest.text == token);
        self.is_refresh_due |= is_newest && self.newest_is_stale();
        let seen = &mut self.calls[call.0];
        seen.sends += 1;
        seen.is_sending = true;
        seen.last_token = Some(token);
        seen.landings_before = self.landings;
        self.two_sends_at_most(call);
        self.sends.push(Send { call, answer });
    }

    /// The call has the API's answer.
    pub(crate) fn answered(&mut self, call: CallId, answer: Answer) {
        let seen = &mut self.calls[call.0];
        seen.is_sending = false;
        seen.last_answer = Some(answer);
        seen.ended_flights_when_answered = self.ended_flights;
    }

    /// The request was given up.
    pub(crate) fn send_dropped(&mut self, call: CallId) {
        self.calls[call.0].is_sending = false;
        self.sends.retain(|send| send.call != call);
    }

    /// An API has read the body of a send to its end, or to an error.
    pub(crate) fn upload_ended(
        &mut self,
        call: CallId,
        send: usize,
        is_failed: bool,
        received: &[u8],
    ) {
        if is_failed {
            self.upload_fails_for_a_replay_only(call, send);
        } else {
            self.request_is_sent_whole(call, send, received);
        }
    }

    /// A token was given to a call.
    pub(crate) fn handed_out(&mut self, call: CallId, token: &str) {
        self.no_expired_token_is_handed_out(call, token);
        self.no_rejected_token_is_handed_out(call, token);
    }

    /// A call was polled and goes on waiting; its service was ready or not.
    pub(crate) fn still_pending(&mut self, call: CallId, is_ready: bool) {
        let now = self.now();
        let seen = &mut self.calls[call.0];
        let is_ready = is_ready || seen.is_ask;
        let begins = is_ready && seen.began_at.is_none();
        if begins {
            seen.began_at = Some(now.monotonic);
            seen.ended_flights_before = self.ended_flights;
        }
        if seen.is_sending {
            return;
        }
        if seen.last_answer.is_some_and(Answer::is_rejection) {
            self.waits_for_a_renewal(call, is_ready);
        }
        if !is_ready {
            return;
        }
        if begins {
            self.usable_token_is_used(call);
        }
    }

    /// Refused, not sent again, and not told so; or it has the renewed token, but no room to send it.
    /// Once a flight has ended, the token may be in use again, and the call be one that was polled so
    /// late that it asks anew; and one that began to wait while the token had expired goes on waiting
    /// when a clock is set back.
    fn waits_for_a_renewal(&mut self, call: CallId, is_ready: bool) {
        let refused = self.calls[call.0].last_token.clone();
        if self.newest.as_ref().map(|newest| &newest.text) != refused.as_ref() {
            return;
        }
        let seen = &mut self.calls[call.0];
        let has_waited = std::mem::replace(&mut seen.waits_for_a_renewal, true)
            || seen.ended_flights_when_answered < self.ended_flights;
        if is_ready && !has_waited && self.newest_is_usable_and(|_| true) {
            self.withheld = refused;
        } else {
            self.may_be_withheld = refused;
        }
    }

    /// The call is over. If its second token was refused, too, while a refresh was under way, then
    /// that is the renewal, unless the cache is cooling down, which cannot be seen.
    pub(crate) fn over_with(&mut self, call: CallId, outcome: &TokenOutcome) {
        self.outcome_is_honest(call, outcome);
        if let TokenOutcome::Status(status, reason) = outcome {
            self.reason_is_right(call, *status, reason.as_ref());
        }
        self.calls[call.0].is_sent_once = outcome.is_sent_once();
        self.is_renewal_due |= self.renewal_is_due(call);
        self.calls[call.0].is_over = true;
        let refused = &self.calls[call.0].last_token;
        let is_newest = self.newest.as_ref().map(|newest| &newest.text) == refused.as_ref();
        if is_newest && matches!(outcome, TokenOutcome::Status(401, _)) {
            self.may_be_withheld = refused.clone();
        }
    }

    /// A step is over. A flight whose deadline came while it paused, which only happens to a process
    /// that stood still, asks no more; without a flight there is no renewal that could be hidden.
    pub(crate) fn step_is_over(&mut self) {
        let now = self.now().monotonic;
        let is_over = self.flight.as_ref().is_some_and(|flight| {
            matches!(flight.phase, Phase::Pausing { .. })
                && now >= flight.started_at.monotonic + DEADLINE
        });
        if is_over {
            self.flight_failed(Duration::ZERO);
        }
        self.stale_token_is_refreshed();
        self.refused_token_is_renewed();
        self.stands_still = false;
        if self.flight.is_none() {
            self.may_be_withheld = None;
        }
    }

    pub(crate) fn rejected_by_hand(&mut self) {
        self.withheld = self.newest.as_ref().map(|newest| newest.text.clone());
    }

    fn newest_is_usable_and(&self, is_wanted: impl FnOnce(Option<String>) -> bool) -> bool {
        let now = self.now();
        self.newest.as_ref().is_some_and(|newest| {
            !now.has_reached(&newest.ends_at) && is_wanted(Some(newest.text.clone()))
        })
    }

    /// Whether the newest token is used, and should be refreshed, whatever jitter was drawn. Who
    /// came back unchanged, or could not be had lately, is left alone for a while.
    fn newest_is_stale(&self) -> bool {
        let now = self.now();
        let is_left_alone = self
            .last_lost_at
            .is_some_and(|lost_at| now.monotonic < lost_at + RELAUNCH_AFTER);
        self.failure.is_none()
            && !is_left_alone
            && self.newest.as_ref().is_some_and(|newest| {
                !newest.is_unchanged
                    && now.monotonic >= newest.stale_at + newest.window.mul_f64(MOST_JITTER)
                    && !now.has_reached(&newest.ends_at)
            })
    }

    /// Whether a call that is sent once was refused with the newest token, and nothing tells against
    /// its renewal.
    fn renewal_is_due(&self, call: CallId) -> bool {
        let seen = &self.calls[call.0];
        let newest = self.newest.as_ref().map(|newest| &newest.text);
        let is_newest = newest == seen.last_token.as_ref() && seen.landings_before == self.landings;
        let is_possible = self.failure.is_none() && !self.is_cooling_down(self.now().monotonic);
        seen.is_sent_once && is_newest && is_possible
    }

    pub(crate) fn is_cooling_down(&self, now: Duration) -> bool {
        self.renewed_at
            .is_some_and(|renewed_at| now < renewed_at + COOL_DOWN)
    }

    /// Whether a token is there that may be given to anyone.
    pub(crate) fn has_usable_token(&self) -> bool {
        self.newest_is_usable_and(|text| {
            text != self.withheld
                && text != self.may_be_withheld
                && text != self.may_still_be_withheld
        })
    }

    fn landed(&mut self, text: String, lifetime: Duration) -> String {
        let Some(flight) = self.flight.take() else {
            return text;
        };
        self.ended_flights += 1;
        let now = self.now();
        let is_unchanged = self
            .newest
            .as_ref()
            .is_some_and(|newest| newest.text == text);
        let expires_after = lifetime - MARGIN.min(lifetime / 10);
        let window = WINDOW.min(lifetime / 5);
        let landed = Landed {
            text: text.clone(),
            landed_at: now,
            ends_at: flight.asked_at.after(expires_after),
            stale_at: flight.asked_at.after(expires_after - window).monotonic,
            window,
            is_unchanged,
            is_to_be_replaced: false,
        };
        self.ends.insert(text.clone(), landed.ends_at);
        if now.has_reached(&landed.ends_at) {
            let waiting = |call: &&mut CallSeen| call.began_at.is_some() && !call.is_over;
            for call in self.calls.iter_mut().filter(waiting) {
                call.entitled_to.push(text.clone());
            }
        }
        self.landings += 1;
        self.newest = Some(landed);
        self.failure = None;
        // A refresh that began before the rejection may bring the rejected token once more: then its
        // renewal is still due.
        if !is_unchanged || flight.renews.is_some() {
            self.over(&flight);
        } else {
            self.renewal_may_be_due();
        }
        text
    }

    fn attempt_failed(&mut self, retry_after: Duration) -> Option<String> {
        let now = self.now().monotonic;
        let flight = self.flight.as_mut()?;
        let pause = FIRST_PAUSE * (1 << (flight.attempts - 1));
        let lands_by = flight.started_at.monotonic + DEADLINE;
        if flight.attempts < ATTEMPTS && now + retry_after < lands_by {
            flight.phase = Phase::Pausing {
                at_least_until: now + retry_after,
                at_most_until: now + pause.max(retry_after.mul_f64(1.5)),
            };
        } else {
            self.flight_failed(retry_after);
        }
        None
    }

    fn flight_failed(&mut self, retry_after: Duration) {
        let Some(flight) = self.flight.take() else {
            return;
        };
        let now = self.now().monotonic;
        if now >= flight.started_at.monotonic + DEADLINE + OVERDUE_AFTER {
            self.flight_ends_in_time(&flight, now);
            self.flight = Some(flight);
            self.flight_lost();
            return;
        }
        self.ended_flights += 1;
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
        self.over(&flight);
    }

    /// Without an outcome, which says nothing of the token service.
    fn flight_lost(&mut self) {
        self.flight = None;
        self.ended_flights += 1;
        self.last_lost_at = Some(self.now().monotonic);
        if let Some(newest) = &mut self.newest {
            newest.is_to_be_replaced = true;
        }
        self.renewal_may_be_due();
    }

    /// A flight that was no renewal, or none that ended, leaves the refused token as it was.
    fn renewal_may_be_due(&mut self) {
        let refused = self.may_be_withheld.take();
        self.may_still_be_withheld = refused.or(self.may_still_be_withheld.take());
    }

    /// Whatever a flight came to, its renewal is over, and the token is in use again if it is there.
    fn over(&mut self, flight: &Flight) {
        if flight.renews.is_some() {
            self.renewed_at = Some(self.now().monotonic);
        }
        self.withheld = None;
        self.may_be_withheld = None;
        self.may_still_be_withheld = None;
    }
}

impl Flight {
    /// Whether the pause that an error leads to is longer or shorter than the time that is left
    /// cannot be seen from outside, as part of it is chance.
    pub(crate) fn may_end_or_retry(&self, retry_after: Duration, now: Moment) -> bool {
        let lands_by = self.started_at.monotonic + DEADLINE;
        let longest_pause = (FIRST_PAUSE * (1 << ATTEMPTS)).max(retry_after.mul_f64(1.5));
        now.monotonic + retry_after < lands_by && now.monotonic + longest_pause >= lands_by
    }
}
