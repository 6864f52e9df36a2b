//! What all token requests of an endpoint share: pauses of a client, and probes of an origin.
//!
//! [`State`] decides and has no locks, tasks or clocks. [`Budget`] puts it behind a lock. Nothing
//! waits, and nothing that was kept is dropped, while the lock is held.

use std::{
    collections::HashMap,
    future::poll_fn,
    hash::{BuildHasher, Hash, RandomState},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::{Either, select};
use tokio::{runtime::Handle, sync::watch};

use super::token_url::TokenUrl;
use crate::{
    AccessToken, Error,
    clock::{Clock, Moment, Timer},
};

/// The longest `Retry-After` that is obeyed. Longer ones are mostly Unix times or milliseconds.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(5 * 60);

/// The pause of a client that was refused too many requests without a plausible `Retry-After`.
const DEFAULT_PAUSE: Duration = Duration::from_secs(1);

/// The pause between probes of an origin. Doubles from the first to the longest with each key in
/// turn that fails: one key alone says little about the others.
const FIRST_PROBE_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PROBE_PAUSE: Duration = Duration::from_secs(1);

/// How long a token request may take before it counts as failed. Half of an attempt, so that a
/// request that waited for a probe still has time of its own.
const NO_ANSWER: Duration = Duration::from_secs(5);

/// How many clients and how many origins are kept. Forgetting one costs a few token requests.
const MOST_ENTRIES: usize = 1000;

/// The budget of a [`TokenEndpoint`](super::TokenEndpoint) and its clones.
#[derive(Debug, Default)]
pub(super) struct Budget {
    state: Mutex<State>,
    clock: Clock,
    hasher: RandomState,
}

/// Whom a token request counts for. Hashes with random seeds, because URLs can contain secrets, and
/// callers of a program may choose its tenants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Party {
    /// The parameters and the tenant.
    key: u64,
    /// The URL and the client id.
    client: u64,
    /// Scheme, host and port.
    origin: u64,
}

impl Budget {
    pub(super) fn party(&self, url: &TokenUrl, client_id: &str, key: impl Hash) -> Party {
        Party {
            key: self.hasher.hash_one(key),
            client: self.hasher.hash_one((url.uri(), client_id)),
            origin: self.hasher.hash_one(url.origin()),
        }
    }

    /// Waits until a token request may be sent.
    ///
    /// # Errors
    ///
    /// Fails with the error of another token request if this one is not to be sent.
    pub(super) async fn admit(self: &Arc<Self>, party: Party) -> Result<Permit, Error> {
        loop {
            let now = self.clock.now();
            let admission = self.lock().admit(party, &now);
            let probe = match admission {
                Admission::Send => None,
                Admission::Probe(id, end, _replaced) => Some((id, end)),
                Admission::Refused(error) => return Err(error),
                Admission::Wait(probe) => match probe.end().await {
                    Some(Err(error)) => return Err(error),
                    // It has a token, was dropped, or takes too long.
                    Some(Ok(())) | None => continue,
                },
            };
            return Ok(Permit {
                budget: Arc::clone(self),
                party,
                started_at: now,
                probe,
                has_ended: false,
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A token request that may be sent. Counts as given up if dropped before it has ended.
pub(super) struct Permit {
    budget: Arc<Budget>,
    party: Party,
    started_at: Moment,
    /// If the request is a probe: its number, and how others learn its end.
    probe: Option<(u64, watch::Sender<Option<ProbeResult>>)>,
    has_ended: bool,
}

impl Permit {
    /// Says how the token request ended.
    pub(super) fn ended(mut self, result: &Result<AccessToken, Error>) {
        self.end(Some(match result {
            Ok(_) => Ending::Token,
            Err(error) => Ending::of(error),
        }));
    }

    /// Notes the ending; `None` means that the request was dropped without one.
    fn end(&mut self, ending: Option<Ending>) {
        self.has_ended = true;
        let now = self.budget.clock.now();
        let probe = self.probe.take();
        let sent = Sent {
            party: self.party,
            started_at: self.started_at,
            probe: probe.as_ref().map(|(id, _)| *id),
        };
        let mut state = self.budget.lock();
        let ending = ending.unwrap_or_else(|| state.ending_without_answer(&sent, &now));
        let removed = state.ended(&sent, &ending, &now);
        drop(state);
        drop(removed);
        // Dropping the sender without a result makes another waiter probe.
        if let (Some((_, waiters)), Some(result)) = (probe, ending.for_waiters()) {
            waiters.send_replace(Some(result));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.has_ended {
            self.end(None);
        }
    }
}

/// How a token request ended, as far as other token requests are concerned.
#[derive(Debug)]
enum Ending {
    Token,
    /// The origin answered with an error that isn't its own. Maybe it asks the client to wait.
    Refusal(Error, Option<Duration>),
    /// The origin did not answer, or with a 5xx. Maybe it asks the client to wait.
    Down(Error, Option<Duration>),
    /// The request was given up after the origin had not answered for too long.
    Silence(Error),
    /// Nothing was sent, or the request was given up early.
    Unknown,
}

impl Ending {
    fn of(error: &Error) -> Self {
        let pause = pause_asked_for(error);
        match error.status() {
            Some(status) if status.is_server_error() => Self::Down(error.clone(), pause),
            Some(_) => Self::Refusal(error.clone(), pause),
            None if error.is_transport() => Self::Down(error.clone(), pause),
            None => Self::Unknown,
        }
    }

    /// What those get who waited for this token request.
    fn for_waiters(&self) -> Option<ProbeResult> {
        match self {
            Self::Token | Self::Refusal(..) => Some(Ok(())),
            Self::Down(error, _) | Self::Silence(error) => Some(Err(shared(error))),
            Self::Unknown => None,
        }
    }
}

/// How long a reply asks the client to wait.
///
/// The `Retry-After` of a permanent error is ignored: the error doesn't go away by waiting.
fn pause_asked_for(error: &Error) -> Option<Duration> {
    let asked_for = error.retry_after().filter(|_| error.is_transient());
    // Zero says nothing.
    match asked_for.filter(|asked_for| !asked_for.is_zero()) {
        Some(asked_for) if asked_for <= LONGEST_RETRY_AFTER => Some(asked_for),
        Some(_) => Some(DEFAULT_PAUSE),
        None => error.is_too_many_requests().then_some(DEFAULT_PAUSE),
    }
}

/// An error of an origin, for another client. `Retry-After` was not meant for that one.
fn shared(error: &Error) -> Error {
    error.clone().with_retry_after(None)
}

/// `Err` if the origin is down.
type ProbeResult = Result<(), Error>;

/// Which clients are paused, and which origins are down.
#[derive(Debug, Default)]
struct State {
    pauses: HashMap<u64, Pause>,
    outages: HashMap<u64, Outage>,
    probes: u64,
}

/// A client that the endpoint asked to wait.
#[derive(Debug)]
struct Pause {
    /// The key that got the error. Its cache has a pause of its own, which the user can end.
    key: u64,
    error: Error,
    started_at: Moment,
    ends_at: Moment,
}

/// An origin whose last token request failed.
#[derive(Debug)]
struct Outage {
    /// The key of that token request. Its retries are probes.
    key: u64,
    error: Error,
    /// How many keys failed in turn.
    failures: u32,
    failed_at: Moment,
    /// When the first request was sent of those that have had no answer since the last one.
    silent_since: Option<Moment>,
    /// Until then, other keys get the error.
    pause_ends_at: Moment,
    probe: Option<Probe>,
}

/// A token request to an origin that was down, with others waiting for its end.
#[derive(Clone, Debug)]
struct Probe {
    id: u64,
    overdue_at: Moment,
    end: watch::Receiver<Option<ProbeResult>>,
}

impl Probe {
    /// Waits for the end; returns `None` if there is no result or it takes too long.
    async fn end(mut self) -> Option<ProbeResult> {
        let runtime = Handle::try_current().ok();
        let mut overdue = Timer::until(self.overdue_at.monotonic, runtime);
        let overdue = poll_fn(|cx| overdue.poll(cx));
        match select(pin!(self.end.wait_for(Option::is_some)), overdue).await {
            Either::Left((Ok(result), _)) => result.clone(),
            Either::Left((Err(_), _)) | Either::Right(_) => None,
        }
    }
}

/// What a token request may do.
#[derive(Debug)]
enum Admission {
    Send,
    /// Send, and tell the others how it ended. The last field is to be dropped after unlocking.
    Probe(u64, watch::Sender<Option<ProbeResult>>, Option<Probe>),
    Wait(Probe),
    Refused(Error),
}

/// A token request that was sent.
#[derive(Debug)]
struct Sent {
    party: Party,
    started_at: Moment,
    probe: Option<u64>,
}

/// What is not kept any longer. To be dropped after unlocking: errors contain errors of the user's
/// HTTP client.
#[derive(Debug, Default)]
#[allow(dead_code, reason = "these are only dropped")]
struct Removed {
    pauses: Vec<Pause>,
    outages: Vec<Outage>,
}

impl State {
    fn admit(&mut self, party: Party, now: &Moment) -> Admission {
        if let Some(pause) = self.pauses.get(&party.client) {
            if pause.key != party.key && !now.has_reached(&pause.ends_at) {
                let left = pause.ends_at.monotonic.duration_since(now.monotonic);
                return Admission::Refused(pause.error.clone().with_retry_after(Some(left)));
            }
        }
        let Some(outage) = self.outages.get_mut(&party.origin) else {
            return Admission::Send;
        };
        let probe = outage.probe.as_ref();
        if let Some(probe) = probe.filter(|probe| !now.has_reached(&probe.overdue_at)) {
            return Admission::Wait(probe.clone());
        }
        if outage.key != party.key && !now.has_reached(&outage.pause_ends_at) {
            return Admission::Refused(shared(&outage.error));
        }
        outage.silent_since.get_or_insert(*now);
        let (sender, end) = watch::channel(None);
        self.probes += 1;
        let replaced = outage.probe.replace(Probe {
            id: self.probes,
            overdue_at: now.after(NO_ANSWER),
            end,
        });
        Admission::Probe(self.probes, sender, replaced)
    }

    /// Returns the ending of a request that was dropped.
    fn ending_without_answer(&self, sent: &Sent, now: &Moment) -> Ending {
        match now.has_reached(&self.silent_since(sent).after(NO_ANSWER)) {
            true => Ending::Silence(Error::timed_out(NO_ANSWER, None)),
            false => Ending::Unknown,
        }
    }

    /// Returns since when the origin has not answered.
    ///
    /// Probes that follow each other and are all dropped soon tell as much as one that takes long.
    fn silent_since(&self, sent: &Sent) -> Moment {
        let outage = self.outages.get(&sent.party.origin);
        let outage = outage.filter(|_| sent.probe.is_some());
        let silent_since = outage.and_then(|outage| outage.silent_since);
        silent_since.unwrap_or(sent.started_at)
    }

    fn ended(&mut self, sent: &Sent, ending: &Ending, now: &Moment) -> Removed {
        let mut removed = Removed::default();
        if let Some(outage) = self.outages.get_mut(&sent.party.origin) {
            let is_current = |probe: &mut Probe| Some(probe.id) == sent.probe;
            // The sender of the probe is still there, so this drops no result.
            let _ = outage.probe.take_if(is_current);
        }
        match ending {
            Ending::Token => {
                removed
                    .outages
                    .extend(self.outages.remove(&sent.party.origin));
                let is_newer =
                    |pause: &Pause| pause.started_at.monotonic < sent.started_at.monotonic;
                if self.pauses.get(&sent.party.client).is_some_and(is_newer) {
                    removed
                        .pauses
                        .extend(self.pauses.remove(&sent.party.client));
                }
            }
            Ending::Refusal(error, pause) => {
                removed
                    .outages
                    .extend(self.outages.remove(&sent.party.origin));
                self.pause(sent.party, error, *pause, now, &mut removed);
            }
            Ending::Down(error, pause) => {
                self.fail(sent, error, None, now, &mut removed);
                self.pause(sent.party, error, *pause, now, &mut removed);
            }
            Ending::Silence(error) => {
                let silent_since = self.silent_since(sent);
                self.fail(sent, error, Some(silent_since), now, &mut removed);
            }
            Ending::Unknown => {}
        }
        removed
    }

    /// Pauses a client, unless it is paused for longer.
    fn pause(
        &mut self,
        party: Party,
        error: &Error,
        pause: Option<Duration>,
        now: &Moment,
        removed: &mut Removed,
    ) {
        let Some(pause) = pause else { return };
        let ends_at = now.after(pause);
        let earlier = self.pauses.get(&party.client);
        if earlier.is_some_and(|earlier| earlier.ends_at.monotonic > ends_at.monotonic) {
            return;
        }
        let pause = Pause {
            key: party.key,
            error: error.clone(),
            started_at: *now,
            ends_at,
        };
        removed
            .pauses
            .extend(self.pauses.insert(party.client, pause));
        let rank = |pause: &Pause| (!now.has_reached(&pause.ends_at), pause.started_at.monotonic);
        removed.pauses.extend(evict(&mut self.pauses, rank));
    }

    /// Notes a failure, unless the request was sent before the last failure: it says nothing new.
    fn fail(
        &mut self,
        sent: &Sent,
        error: &Error,
        silent_since: Option<Moment>,
        now: &Moment,
        removed: &mut Removed,
    ) {
        let previous = self.outages.get(&sent.party.origin);
        let is_news = |last: &Outage| {
            sent.probe.is_some() || sent.started_at.monotonic > last.failed_at.monotonic
        };
        if !previous.is_none_or(is_news) {
            return;
        }
        let previous = self.outages.remove(&sent.party.origin);
        let failures = match &previous {
            Some(last) if last.key == sent.party.key => last.failures,
            Some(last) => last.failures.saturating_add(1),
            None => 1,
        };
        let outage = Outage {
            key: sent.party.key,
            error: error.clone(),
            failures,
            failed_at: *now,
            silent_since,
            pause_ends_at: now.after(probe_pause(failures)),
            probe: previous.as_ref().and_then(|last| last.probe.clone()),
        };
        removed.outages.extend(previous);
        self.outages.insert(sent.party.origin, outage);
        let is_used =
            |outage: &Outage| outage.probe.is_some() || !now.has_reached(&outage.pause_ends_at);
        let rank = |outage: &Outage| (is_used(outage), outage.failed_at.monotonic);
        removed.outages.extend(evict(&mut self.outages, rank));
    }
}

fn probe_pause(failures: u32) -> Duration {
    let doubled = 1 << failures.saturating_sub(1).min(16);
    (FIRST_PROBE_PAUSE * doubled).min(LONGEST_PROBE_PAUSE)
}

/// Removes the entry with the lowest rank if there are too many.
fn evict<T, R: Ord>(entries: &mut HashMap<u64, T>, rank: impl Fn(&T) -> R) -> Option<T> {
    if entries.len() <= MOST_ENTRIES {
        return None;
    }
    let lowest = entries.iter().min_by_key(|(_, entry)| rank(entry));
    let lowest = lowest.map(|(id, _)| *id);
    lowest.and_then(|id| entries.remove(&id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// A state with the time of a test.
    struct World {
        state: State,
        now: Moment,
    }

    impl World {
        fn new() -> Self {
            Self {
                state: State::default(),
                now: Clock::default().now(),
            }
        }

        fn advance(&mut self, duration: Duration) {
            self.now = self.now.after(duration);
        }

        fn admit(&mut self, party: Party) -> Admission {
            self.state.admit(party, &self.now)
        }

        fn end(&mut self, sent: &Sent, ending: &Ending) {
            let removed = self.state.ended(sent, ending, &self.now);
            drop(removed);
        }

        /// A request that is sent and ends at once.
        fn send(&mut self, party: Party, ending: &Ending) {
            let probe = match self.admit(party) {
                Admission::Send => None,
                Admission::Probe(id, ..) => Some(id),
                other => panic!("not sent: {other:?}"),
            };
            self.end(&sent(party, self.now, probe), ending);
        }
    }

    fn sent(party: Party, started_at: Moment, probe: Option<u64>) -> Sent {
        Sent {
            party,
            started_at,
            probe,
        }
    }

    /// Each key has its own client id.
    fn party(key: u64) -> Party {
        Party {
            key,
            client: key,
            origin: 0,
        }
    }

    fn down() -> Ending {
        let error = Error::new(Kind::Transport { cause: None });
        Ending::of(&error)
    }

    fn too_many(retry_after: Option<Duration>) -> Ending {
        let error = Error::transient("too many", None);
        Ending::Refusal(error, retry_after)
    }

    #[test]
    fn pause_between_probes_doubles_with_each_key_that_fails() {
        let mut world = World::new();
        for (key, pause) in [10, 20, 40, 80, 160, 320, 640, 1000, 1000]
            .into_iter()
            .enumerate()
        {
            world.send(party(key as u64), &down());

            let other = party(1000);
            world.advance(pause * MILLISECOND - Duration::from_nanos(1));
            assert!(matches!(world.admit(other), Admission::Refused(_)), "{key}");
            world.advance(Duration::from_nanos(1));
        }
        assert_eq!(probe_pause(u32::MAX), LONGEST_PROBE_PAUSE);
    }

    #[test]
    fn key_that_fails_alone_is_never_refused_and_does_not_lengthen_the_pause() {
        let mut world = World::new();
        for _ in 0..100 {
            world.send(party(1), &down());
        }

        world.advance(FIRST_PROBE_PAUSE);
        assert!(matches!(world.admit(party(2)), Admission::Probe(..)));
    }

    #[test]
    fn any_answer_ends_an_outage_and_only_a_newer_token_ends_a_pause() {
        for ending in [Ending::Token, too_many(None)] {
            let mut world = World::new();
            world.send(party(1), &down());
            world.send(party(1), &ending);
            assert!(matches!(world.admit(party(2)), Admission::Send));
        }

        let mut world = World::new();
        let other_key = Party { key: 2, ..party(1) };
        let before = sent(other_key, world.now, None);
        world.advance(MILLISECOND);
        world.send(party(1), &too_many(Some(DEFAULT_PAUSE)));
        world.end(&before, &Ending::Token);
        assert!(matches!(world.admit(other_key), Admission::Refused(_)));

        world.advance(MILLISECOND);
        world.send(party(1), &Ending::Token);
        assert!(matches!(world.admit(other_key), Admission::Send));
    }

    #[test]
    fn shorter_pause_does_not_replace_a_longer_one() {
        let mut world = World::new();
        let other_key = Party { key: 2, ..party(1) };
        let shorter = sent(other_key, world.now, None);
        world.send(party(1), &too_many(Some(60 * DEFAULT_PAUSE)));
        world.end(&shorter, &too_many(Some(DEFAULT_PAUSE)));

        world.advance(2 * DEFAULT_PAUSE);
        assert!(matches!(world.admit(other_key), Admission::Refused(_)));
    }

    #[test]
    fn request_that_was_sent_before_the_last_failure_says_nothing_new() {
        let mut world = World::new();
        let before: Vec<_> = (2..100)
            .map(|key| sent(party(key), world.now, None))
            .collect();
        world.advance(MILLISECOND);
        world.send(party(1), &down());
        for sent in before {
            world.end(&sent, &down());
        }

        world.advance(FIRST_PROBE_PAUSE);
        assert!(matches!(world.admit(party(200)), Admission::Probe(..)));
    }

    #[test]
    fn replaced_probe_does_not_end_its_successor() {
        let mut world = World::new();
        world.send(party(1), &down());
        let Admission::Probe(first, ..) = world.admit(party(1)) else {
            panic!("not a probe");
        };
        let first = sent(party(1), world.now, Some(first));
        world.advance(NO_ANSWER);
        let Admission::Probe(_, _sender, _) = world.admit(party(2)) else {
            panic!("not replaced");
        };

        for ending in [Ending::Unknown, down()] {
            world.end(&first, &ending);
            assert!(matches!(world.admit(party(3)), Admission::Wait(_)));
        }
    }

    #[test]
    fn probes_that_are_all_dropped_soon_are_silence() {
        let mut world = World::new();
        world.send(party(1), &down());
        for _ in 0..5 {
            let Admission::Probe(id, ..) = world.admit(party(1)) else {
                panic!("not a probe");
            };
            let probe = sent(party(1), world.now, Some(id));
            world.advance(NO_ANSWER / 5 - MILLISECOND);
            let ending = world.state.ending_without_answer(&probe, &world.now);
            assert!(matches!(ending, Ending::Unknown));
            world.end(&probe, &ending);
        }
        let Admission::Probe(id, ..) = world.admit(party(1)) else {
            panic!("not a probe");
        };
        let probe = sent(party(1), world.now, Some(id));
        world.advance(5 * MILLISECOND);

        let ending = world.state.ending_without_answer(&probe, &world.now);

        assert!(matches!(ending, Ending::Silence(_)));
        world.end(&probe, &ending);
        assert!(matches!(world.admit(party(2)), Admission::Refused(_)));
    }

    #[test]
    fn only_a_thousand_clients_and_origins_are_kept() {
        let mut world = World::new();
        let far = |number| Party {
            key: number,
            client: number,
            origin: number,
        };
        for number in 0..5000 {
            let error = Error::transient("down", None);
            world.send(far(number), &Ending::Down(error, Some(60 * DEFAULT_PAUSE)));
            world.advance(MILLISECOND / 1000);
        }

        assert_eq!(world.state.outages.len(), MOST_ENTRIES);
        assert_eq!(world.state.pauses.len(), MOST_ENTRIES);
        let is_kept = |world: &mut World, number| {
            let other_key = Party {
                key: u64::MAX,
                ..far(number)
            };
            matches!(world.admit(other_key), Admission::Refused(_))
        };
        assert!(is_kept(&mut world, 4999) && is_kept(&mut world, 4000));
        assert!(!is_kept(&mut world, 3999));
    }

    #[test]
    fn pauses_that_are_over_are_forgotten_first() {
        let mut world = World::new();
        let other_origin = |number| Party {
            key: number,
            client: number,
            origin: number,
        };
        world.send(other_origin(0), &too_many(Some(3600 * DEFAULT_PAUSE)));
        for number in 1..5000 {
            world.advance(MILLISECOND);
            world.send(other_origin(number), &too_many(Some(MILLISECOND)));
        }

        let other_key = Party {
            key: u64::MAX,
            ..other_origin(0)
        };
        assert!(matches!(world.admit(other_key), Admission::Refused(_)));
    }

    #[test]
    fn only_plausible_pauses_of_transient_errors_are_obeyed() {
        let second = Duration::from_secs(1);
        for (asked_for, pause) in [
            (Some(300 * second), Some(300 * second)),
            (Some(301 * second), Some(DEFAULT_PAUSE)),
            (Some(Duration::ZERO), None),
            (None, None),
        ] {
            let error = Error::transient("busy", asked_for);
            assert_eq!(pause_asked_for(&error), pause);
            let permanent = Error::permanent("gone").with_retry_after(asked_for);
            assert_eq!(pause_asked_for(&permanent), None);
        }
    }
}
