//! What the promises say about rejected tokens: when they are renewed, and when they are withheld.

use std::time::Duration;

use crate::observer::COOL_DOWN;

/// How long a rejected token is withheld.
const WITHHELD_FOR: Duration = Duration::from_secs(1);
/// The pause between renewals of accepted tokens starts over after this long without a rejection.
const QUIET: Duration = Duration::from_secs(60);

/// What is known of the newest token, and of the renewals so far.
#[derive(Default)]
pub(crate) struct Rejections {
    /// Whether the API has accepted the newest token.
    pub(crate) is_accepted: bool,
    /// The same, if a copy of the token from before its last renewal counts as well.
    pub(crate) may_be_accepted: bool,
    /// Whether the API has rejected the newest token.
    pub(crate) is_rejected: bool,
    withheld: Withheld,
    /// Whether the token is in use again because its renewal takes long.
    is_released: bool,
    /// The same, if it was withheld at all.
    may_be_released: bool,
    /// Whether a renewal is due: the token was withheld, and no token request has ended since.
    is_renewal_due: bool,
    renewed_at: Option<Duration>,
    /// Renewals of accepted tokens, without a quiet minute in between: at least, and at most.
    in_a_row: (u32, u32),
    last_rejection_at: Option<Duration>,
}

/// Whether calls wait for a renewal instead of using the newest token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Withheld {
    #[default]
    No,
    /// It depends on the end of a back-off, which is random, or on an acceptance that may not count.
    /// Resolved at the end of the step, unless there is a token request to wait for.
    Perhaps { is_requesting: bool },
    /// Until this time, if there is a token request to wait for.
    Yes(Option<Duration>),
}

/// Whether calls share the error of a failed token request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackOff {
    Over,
    /// Its end is random.
    PerhapsOver,
    NotOver,
}

/// What a rejection must lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The token is renewed.
    Renewed,
    /// The token stays in use.
    InUse,
    Unknown,
}

impl Rejections {
    /// The API rejected the newest token.
    pub(crate) fn rejected(
        &mut self,
        now: Duration,
        back_off: BackOff,
        is_requesting: bool,
    ) -> Fate {
        self.note_rejection(now);
        self.decide(now, back_off, is_requesting)
    }

    fn note_rejection(&mut self, now: Duration) {
        let last = self.last_rejection_at.replace(now);
        if last.is_some_and(|last| now - last >= QUIET) {
            self.in_a_row = (0, 0);
        }
    }

    /// A call whose request was rejected starts to wait, possibly not for the first time.
    pub(crate) fn decide(&mut self, now: Duration, back_off: BackOff, is_requesting: bool) -> Fate {
        match self.withheld(now) {
            Withheld::Yes(_) => return Fate::Renewed,
            Withheld::Perhaps { .. } => return Fate::Unknown,
            // The call waits for the token request, although the token is in use.
            Withheld::No if self.is_released && is_requesting => return Fate::Renewed,
            Withheld::No if self.may_be_released && is_requesting => {
                self.withhold(now, is_requesting, false);
                return Fate::Unknown;
            }
            Withheld::No => {}
        }
        self.is_rejected = true;
        if back_off == BackOff::NotOver || !self.may_be_renewed(now) {
            return Fate::InUse;
        }
        let is_certain = back_off == BackOff::Over && self.has_to_be_renewed(now);
        self.withhold(now, is_requesting, is_certain);
        if is_certain {
            Fate::Renewed
        } else {
            Fate::Unknown
        }
    }

    fn withhold(&mut self, now: Duration, is_requesting: bool, is_certain: bool) {
        self.is_renewal_due |= is_certain;
        self.withheld = if is_certain {
            Withheld::Yes(is_requesting.then(|| now + WITHHELD_FOR))
        } else {
            Withheld::Perhaps { is_requesting }
        };
    }

    /// Whether a renewal breaks no promise.
    pub(crate) fn may_be_renewed(&self, now: Duration) -> bool {
        self.pause_is_over(now, self.may_be_accepted, self.in_a_row.0)
    }

    /// Whether a missing renewal breaks a promise.
    pub(crate) fn has_to_be_renewed(&self, now: Duration) -> bool {
        self.pause_is_over(now, self.is_accepted, self.in_a_row.1)
    }

    fn pause_is_over(&self, now: Duration, is_accepted: bool, in_a_row: u32) -> bool {
        let Some(renewed_at) = self.renewed_at else {
            return true;
        };
        let pause = match (is_accepted, in_a_row) {
            (false, _) => COOL_DOWN,
            (true, 0) => Duration::ZERO,
            (true, in_a_row) => Duration::from_secs(1 << (in_a_row - 1).min(10)).min(COOL_DOWN),
        };
        now - renewed_at >= pause
    }

    /// A token request starts. Returns whether it may name the newest token as rejected.
    pub(crate) fn token_request_started(&mut self, now: Duration, is_renewal: bool) -> bool {
        match self.withheld(now) {
            Withheld::Yes(until) => {
                self.withheld = Withheld::Yes(until.or(Some(now + WITHHELD_FOR)));
                // A refresh may have been spawned before the rejection, and seen only now.
                is_renewal || self.last_rejection_at == Some(now)
            }
            Withheld::Perhaps { .. } if is_renewal => {
                self.is_renewal_due = true;
                self.withheld = Withheld::Yes(Some(now + WITHHELD_FOR));
                true
            }
            // Nobody has used the token since it was withheld for long enough.
            Withheld::Perhaps { .. } | Withheld::No => {
                self.may_be_released |= self.withheld != Withheld::No;
                self.withheld = Withheld::No;
                !is_renewal || self.is_renewal_due
            }
        }
    }

    /// A token request returned a token that replaces the newest one, or is the same once more.
    pub(crate) fn token_obtained(&mut self, now: Duration, is_renewal: bool, is_same: bool) {
        if is_same && !is_renewal {
            return;
        }
        if is_renewal {
            self.renewed_at = Some(now);
            self.in_a_row.0 += u32::from(self.is_accepted);
            self.in_a_row.1 += u32::from(self.may_be_accepted);
        }
        (self.is_accepted, self.may_be_accepted, self.is_rejected) = (false, false, false);
        (self.withheld, self.is_renewal_due) = (Withheld::No, false);
        (self.is_released, self.may_be_released) = (false, false);
    }

    /// A token request failed. A rejected token is in use again.
    pub(crate) fn token_request_failed(&mut self) {
        (self.withheld, self.is_renewal_due) = (Withheld::No, false);
        (self.is_released, self.may_be_released) = (false, false);
    }

    /// A step is over: nothing that a random back-off allowed has started.
    pub(crate) fn resolve(&mut self) {
        let perhaps = Withheld::Perhaps {
            is_requesting: false,
        };
        if self.withheld == perhaps {
            self.withheld = Withheld::No;
        }
    }

    /// The result of `TokenCache::reject` shows whether a token is withheld.
    pub(crate) fn resolve_as(&mut self, is_withheld: bool, now: Duration) {
        let Withheld::Perhaps { is_requesting } = self.withheld else {
            return;
        };
        self.withheld = Withheld::No;
        if is_withheld {
            self.withhold(now, is_requesting, true);
        }
    }

    pub(crate) fn is_withheld(&mut self, now: Duration) -> bool {
        matches!(self.withheld(now), Withheld::Yes(_))
    }

    pub(crate) fn may_be_withheld(&mut self, now: Duration) -> bool {
        self.withheld(now) != Withheld::No
    }

    /// When calls stop waiting for a renewal of the newest token.
    pub(crate) fn withheld_until(&self) -> Option<Duration> {
        match self.withheld {
            Withheld::Yes(until) => until,
            Withheld::No | Withheld::Perhaps { .. } => None,
        }
    }

    fn withheld(&mut self, now: Duration) -> Withheld {
        if self.withheld_until().is_some_and(|until| now >= until) {
            (self.withheld, self.is_released) = (Withheld::No, true);
        }
        self.withheld
    }
}
