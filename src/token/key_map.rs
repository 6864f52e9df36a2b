//! A map whose unused keys are bounded in number and age.
//!
//! Knows nothing about tokens, and reads no clock. A key is in use while its value has a reference
//! outside the map.

#[cfg(not(all(test, interleavings)))]
use std::sync::{
    RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};
use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher},
    num::NonZeroUsize,
    sync::{Arc, OnceLock, PoisonError},
    time::Duration,
};

#[cfg(all(test, interleavings))]
use loom::sync::{
    RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};
use tokio::time::Instant;

use crate::clock::Clock;

/// How many keys an insertion looks at to find some that can be evicted.
const LOOKS: usize = 8;

/// How many keys an insertion evicts at most. More than one, so that a map that has exceeded its
/// limit, because its keys were in use, shrinks again.
const MOST_EVICTED: usize = 2;

/// A fraction of the idle timeout, which bounds how long idle keys stay longer than that.
const SWEEPS_PER_IDLE_TIMEOUT: u32 = 4;

/// A concurrent map that evicts unused keys.
///
/// Keys hash to one `u64`, which is taken as it is. It must be a hash with random seeds, because
/// callers of a program may choose its keys.
///
/// # Bounds
///
/// * A key in use is never evicted. Keys in use may exceed the limit.
/// * An insertion looks at up to eight keys, and evicts at most two unused ones: those that are
///   idle, and, while the limit is exceeded, others. A key that was looked up again since the last look
///   is evicted only if there is no other among the eight.
/// * While no key is in use, there are at most `limit` keys, and one more per thread that is inserting.
///   While keys are in use, there are at most `limit` others, or a quarter as many others as are in
///   use if that is more. If many keys fall out of use at the same time, the insertions and sweeps that
///   follow evict them, and each evicts more than it inserts.
/// * A key is idle if it was neither looked up nor found in use for the idle timeout. It is evicted at
///   the latest by the first sweep after another quarter of the idle timeout.
///
/// # Locks
///
/// Under a lock, keys are hashed and compared, but neither keys nor values are made, cloned or
/// dropped. A look-up takes the read lock of one shard and allocates nothing.
pub(super) struct KeyMap<K, V> {
    limit: usize,
    idle_timeout: Duration,
    created_at: Instant,
    /// Allocated by the first look-up: many programs need only one key, which needs no map.
    shards: OnceLock<Box<Shards<K, V>>>,
    len: AtomicUsize,
    /// The shard in which the next sweep looks for keys to evict.
    next_shard: AtomicUsize,
    /// In nanoseconds since the map was created.
    next_sweep: AtomicU64,
}

type Shards<K, V> = [RwLock<Shard<K, V>>];

impl<K: Clone + Eq + Hash, V> KeyMap<K, V> {
    pub(super) fn new(limit: NonZeroUsize, idle_timeout: Duration) -> Self {
        Self {
            limit: limit.get(),
            idle_timeout,
            created_at: Clock::monotonic(),
            shards: OnceLock::new(),
            len: AtomicUsize::new(0),
            next_shard: AtomicUsize::new(0),
            next_sweep: AtomicU64::new(0),
        }
    }

    /// Returns the value of a key, which stays the same as long as the key is in use.
    ///
    /// `make` is called if the key has no value. If several threads call it for the same key at the
    /// same time, they all get the value that was inserted first, and the others are dropped.
    pub(super) fn get_or_insert_with(
        &self,
        key: &K,
        now: Instant,
        make: impl FnOnce() -> V,
    ) -> Arc<V> {
        let now = self.nanoseconds_at(now);
        let (shards, index) = self.shards_and_index_of(key);
        if let Some(slot) = read(&shards[index]).slots.get(key) {
            return slot.look_up(now);
        }
        let value = self.insert(&shards[index], key, now, Arc::new(make()));
        // In the same shard first, so that shards keep their sizes.
        self.make_room(shards, index, now);
        value
    }

    /// Evicts keys that are idle, and some that exceed the limit.
    ///
    /// The map has no task of its own, so call this method when there is something to do anyway, such
    /// as when a token request has completed. Most calls look at up to eight keys. Four times per idle
    /// timeout, a call looks at all keys, but at no more than eight at a time under a lock.
    pub(super) fn sweep(&self, now: Instant) {
        let Some(shards) = self.shards.get() else {
            return;
        };
        let now = self.nanoseconds_at(now);
        let next_shard = self.next_shard.fetch_add(1, Ordering::Relaxed);
        self.make_room(shards, next_shard, now);

        let due = self.next_sweep.load(Ordering::Relaxed);
        if now < due {
            return;
        }
        let next = now.saturating_add(nanoseconds(self.idle_timeout / SWEEPS_PER_IDLE_TIMEOUT));
        let relaxed = Ordering::Relaxed;
        let claimed = self
            .next_sweep
            .compare_exchange(due, next, relaxed, relaxed);
        // Otherwise, another thread looks at all keys.
        if claimed.is_ok() {
            self.sweep_all(shards, now);
        }
    }

    /// Returns the number of keys.
    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Returns by how many the keys exceed the limit, because they are in use, or were when somebody
    /// last looked.
    pub(super) fn over_limit(&self) -> usize {
        self.len().saturating_sub(self.limit)
    }

    /// Returns the value that is in the map afterwards.
    fn insert(&self, shard: &RwLock<Shard<K, V>>, key: &K, now: u64, value: Arc<V>) -> Arc<V> {
        let (for_slots, for_ring) = (key.clone(), key.clone());
        let mut locked = write(shard);
        if let Some(slot) = locked.slots.get(key) {
            let existing = slot.look_up(now);
            // Before the new value and the clones of the key are dropped.
            drop(locked);
            return existing;
        }
        locked.slots.insert(for_slots, Slot::new(&value, now));
        locked.ring.push_back(for_ring);
        self.len.fetch_add(1, Ordering::Relaxed);
        value
    }

    /// Evicts some keys, those of the shard with this index first.
    fn make_room(&self, shards: &Shards<K, V>, first: usize, now: u64) {
        // A look takes away what protects a key that was looked up again. Above the limit, there are
        // no more looks than necessary.
        let evictions = match self.over_limit() {
            0 => MOST_EVICTED,
            excess => MOST_EVICTED.min(excess),
        };
        let mut most = Count {
            looks: LOOKS,
            evictions,
        };
        // Others follow if a shard has too few keys.
        for index in 0..shards.len() {
            let shard = &shards[first.wrapping_add(index) % shards.len()];
            let count = self.evict(shard, most, now);
            most.looks -= count.looks;
            most.evictions -= count.evictions;
            if most.looks == 0 || most.evictions == 0 {
                break;
            }
        }
    }

    fn sweep_all(&self, shards: &Shards<K, V>, now: u64) {
        for shard in shards {
            let mut left = read(shard).ring.len();
            while left > 0 {
                let looks = left.min(LOOKS);
                let evictions = LOOKS;
                let looked = self.evict(shard, Count { looks, evictions }, now).looks;
                if looked == 0 {
                    break;
                }
                left -= looked;
            }
            write(shard).give_memory_back();
        }
    }

    /// Looks at some keys of a shard, and drops those that it evicts after unlocking.
    fn evict(&self, shard: &RwLock<Shard<K, V>>, most: Count, now: u64) -> Count {
        let criteria = Criteria {
            now,
            idle_timeout: nanoseconds(self.idle_timeout),
            excess: self.over_limit(),
        };
        let mut evicted = Vec::new();
        let looks = write(shard).evict(most, &criteria, &mut evicted);
        let evictions = evicted.len();
        self.len.fetch_sub(evictions, Ordering::Relaxed);
        Count { looks, evictions }
    }

    fn shards_and_index_of(&self, key: &K) -> (&Shards<K, V>, usize) {
        let shards = self.shards.get_or_init(|| {
            let count = if self.limit < FEW { 1 } else { SHARDS };
            (0..count).map(|_| RwLock::new(Shard::new())).collect()
        });
        let hash = BuildHasherDefault::<PassThrough>::default().hash_one(key);
        // The hash table of a shard uses the lowest and the highest bits.
        (shards, (hash >> 32) as usize % shards.len())
    }

    fn nanoseconds_at(&self, now: Instant) -> u64 {
        nanoseconds(now.saturating_duration_since(self.created_at))
    }
}

/// Few look-ups wait for each other, and a shard's table is small enough to grow under its lock.
const SHARDS: usize = 16;

/// Up to this limit there is one shard: each of several would have too few keys to choose from.
const FEW: usize = 1024;

/// How many keys are looked at and evicted.
#[derive(Clone, Copy)]
struct Count {
    looks: usize,
    evictions: usize,
}

/// Which keys are evicted.
struct Criteria {
    /// In nanoseconds since the map was created.
    now: u64,
    /// In nanoseconds.
    idle_timeout: u64,
    /// How many keys that aren't idle may be evicted.
    excess: usize,
}

struct Shard<K, V> {
    slots: HashMap<K, Slot<V>, BuildHasherDefault<PassThrough>>,
    /// The same keys, beginning with the one that is looked at next.
    ring: VecDeque<K>,
}

/// What has been removed from a map, and must be dropped after unlocking.
struct Evicted<K, V> {
    _value: V,
    _keys: [K; 2],
}

impl<K: Eq + Hash, V> Shard<K, V> {
    fn new() -> Self {
        Self {
            slots: HashMap::default(),
            ring: VecDeque::new(),
        }
    }

    /// Looks at the next keys of the ring, and returns how many.
    fn evict(
        &mut self,
        most: Count,
        criteria: &Criteria,
        evicted: &mut Vec<Evicted<K, V>>,
    ) -> usize {
        let looks = most.looks.min(self.ring.len());
        let mut looked = 0;
        let mut spared = None;
        while looked < looks && evicted.len() < most.evictions {
            looked += 1;
            let Some((key, slot)) = self.next() else {
                break;
            };
            match slot.verdict(criteria, evicted.len()) {
                Verdict::Evict => self.remove(key, evicted),
                Verdict::Spare if spared.is_none() => spared = Some(key),
                Verdict::Keep | Verdict::Spare => self.ring.push_back(key),
            }
        }
        match spared {
            Some(key) if evicted.is_empty() => self.remove(key, evicted),
            Some(key) => self.ring.push_back(key),
            None => {}
        }
        looked
    }

    /// Takes the next key from the ring.
    fn next(&mut self) -> Option<(K, &Slot<V>)> {
        let key = self.ring.pop_front()?;
        let slot = self.slots.get(&key)?;
        Some((key, slot))
    }

    /// Removes a key that is not in the ring, unless its value has just got another reference.
    fn remove(&mut self, key: K, evicted: &mut Vec<Evicted<K, V>>) {
        let Some((same_key, slot)) = self.slots.remove_entry(&key) else {
            return;
        };
        // From here on, a `Weak` to the value can't be upgraded.
        match Arc::try_unwrap(slot.value) {
            Ok(value) => evicted.push(Evicted {
                _value: value,
                _keys: [key, same_key],
            }),
            Err(value) => {
                self.slots.insert(same_key, Slot { value, ..slot });
                self.ring.push_back(key);
            }
        }
    }

    /// Frees memory that was needed for many more keys.
    fn give_memory_back(&mut self) {
        let room = 2 * self.slots.len().max(LOOKS);
        if self.slots.capacity() > 2 * room {
            self.slots.shrink_to(room);
            self.ring.shrink_to(room);
        }
    }
}

struct Slot<V> {
    value: Arc<V>,
    /// In nanoseconds since the map was created.
    last_used: AtomicU64,
    /// Whether the key was looked up after it was inserted or spared.
    used_again: AtomicBool,
}

enum Verdict {
    Keep,
    Evict,
    /// Evict it only if there is no other.
    Spare,
}

impl<V> Slot<V> {
    fn new(value: &Arc<V>, now: u64) -> Self {
        Self {
            value: Arc::clone(value),
            last_used: AtomicU64::new(now),
            used_again: AtomicBool::new(false),
        }
    }

    /// Writes rarely, because threads that write to the same memory slow each other down.
    fn look_up(&self, now: u64) -> Arc<V> {
        if self.unused_for(now) >= RESOLUTION {
            self.last_used.store(now, Ordering::Relaxed);
        }
        if !self.used_again.load(Ordering::Relaxed) {
            self.used_again.store(true, Ordering::Relaxed);
        }
        Arc::clone(&self.value)
    }

    fn unused_for(&self, now: u64) -> u64 {
        now.saturating_sub(self.last_used.load(Ordering::Relaxed))
    }

    /// Decides under the write lock, so that a single reference is the map's own and stays the only
    /// one, but for an upgraded `Weak`.
    fn verdict(&self, criteria: &Criteria, evicted: usize) -> Verdict {
        if Arc::strong_count(&self.value) > 1 {
            self.last_used.store(criteria.now, Ordering::Relaxed);
            return Verdict::Keep;
        }
        if self.unused_for(criteria.now) >= criteria.idle_timeout {
            Verdict::Evict
        } else if criteria.excess <= evicted {
            Verdict::Keep
        } else if self.used_again.swap(false, Ordering::Relaxed) {
            Verdict::Spare
        } else {
            Verdict::Evict
        }
    }
}

/// How exactly the last use of a key is known, in nanoseconds.
const RESOLUTION: u64 = 1_000_000;

/// Hashes a `u64` to itself: keys write one that is already a hash.
#[derive(Default)]
struct PassThrough(u64);

impl Hasher for PassThrough {
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    /// Correct for other keys, too, but a poor hash.
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Returns at most 584 years.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

// Slots and rings are only changed in small steps that don't panic, so a poisoned shard is consistent.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, not(interleavings)))]
mod tests {
    use std::{
        cell::Cell,
        collections::BTreeMap,
        sync::{Barrier, Mutex, Weak, mpsc},
        thread,
    };

    use proptest::prelude::*;

    use super::*;

    const IDLE_TIMEOUT: Duration = Duration::from_secs(100);

    /// A limit with which there are several shards.
    const MANY: usize = 4096;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Key(u64);

    impl Hash for Key {
        fn hash<H: Hasher>(&self, state: &mut H) {
            state.write_u64(self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        }
    }

    /// A value with a number, which reports that it is dropped.
    struct Value {
        id: usize,
        dropped: Arc<Mutex<Vec<usize>>>,
    }

    impl Drop for Value {
        fn drop(&mut self) {
            self.dropped.lock().unwrap().push(self.id);
        }
    }

    fn key_map<K: Clone + Eq + Hash, V>(limit: usize) -> KeyMap<K, V> {
        KeyMap::new(NonZeroUsize::new(limit).unwrap(), IDLE_TIMEOUT)
    }

    impl<K: Clone + Eq + Hash, V> KeyMap<K, V> {
        fn at(&self, seconds: u64) -> Instant {
            self.created_at + Duration::from_secs(seconds)
        }

        fn is_unlocked(&self) -> bool {
            let shards = self.shards.get().into_iter().flatten();
            shards.into_iter().all(|shard| shard.try_write().is_ok())
        }

        /// For how many keys there is memory.
        fn capacity(&self) -> usize {
            let shards = self.shards.get().into_iter().flatten();
            let capacities = shards.map(|shard| {
                let shard = read(shard);
                shard.slots.capacity() + shard.ring.capacity()
            });
            capacities.sum()
        }
    }

    // --- Histories against a model ---

    #[derive(Clone, Copy, Debug)]
    enum Step {
        LookUp { key: u64, hold: bool },
        Release(usize),
        Wait(u64),
        Sweep,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..12_u64, any::<bool>()).prop_map(|(key, hold)| Step::LookUp { key, hold }),
            3 => any::<usize>().prop_map(Step::Release),
            2 => prop_oneof![0..30_u64, Just(100)].prop_map(Step::Wait),
            1 => Just(Step::Sweep),
        ]
    }

    /// What the model knows about a key in the map.
    struct Known {
        id: usize,
        looked_up_at: u64,
        /// Later than `looked_up_at` if the key was in use after that.
        used_at: u64,
    }

    struct Model {
        map: KeyMap<Key, Value>,
        dropped: Arc<Mutex<Vec<usize>>>,
        known: BTreeMap<u64, Known>,
        held: Vec<(u64, Arc<Value>)>,
        made: usize,
        now: u64,
        next_sweep: u64,
    }

    impl Model {
        fn new(limit: usize) -> Self {
            Self {
                map: key_map(limit),
                dropped: Arc::default(),
                known: BTreeMap::new(),
                held: vec![],
                made: 0,
                now: 0,
                next_sweep: 0,
            }
        }

        fn take(&mut self, step: Step) {
            match step {
                Step::LookUp { key, hold } => self.look_up(key, hold),
                Step::Release(index) if !self.held.is_empty() => {
                    let index = index % self.held.len();
                    drop(self.held.swap_remove(index));
                }
                Step::Release(_) => {}
                Step::Wait(seconds) => self.now += seconds,
                Step::Sweep => self.sweep(),
            }
            for key in 0..12 {
                if self.is_in_use(key) {
                    self.known.get_mut(&key).expect("it is in use").used_at = self.now;
                }
            }
            assert_eq!(self.map.len(), self.known.len(), "keys are counted");
            for (key, value) in &self.held {
                assert_eq!(self.known[key].id, value.id, "two values of a key in use");
            }
        }

        fn is_in_use(&self, key: u64) -> bool {
            self.held.iter().any(|(held, _)| *held == key)
        }

        fn look_up(&mut self, key: u64, hold: bool) {
            let (made, id) = (Cell::new(false), self.made);
            let value = self
                .map
                .get_or_insert_with(&Key(key), self.map.at(self.now), || {
                    made.set(true);
                    Value {
                        id,
                        dropped: Arc::clone(&self.dropped),
                    }
                });
            let value_id = value.id;
            if made.get() {
                assert!(
                    !self.known.contains_key(&key),
                    "a key in the map is made again"
                );
                self.made += 1;
                self.known.insert(
                    key,
                    Known {
                        id,
                        looked_up_at: self.now,
                        used_at: self.now,
                    },
                );
                self.held.push((key, value));
                let count = self.evicted();
                assert!(count <= MOST_EVICTED, "{count} keys are evicted");
                let all_were_looked_at = self.known.len() + count <= LOOKS;
                let is_bounded = self.known.len() <= self.map.limit
                    || count > 0
                    || self.known.keys().all(|&key| self.is_in_use(key));
                assert!(is_bounded || !all_were_looked_at, "the limit is exceeded");
                let value = self.held.pop();
                self.held.extend(value.filter(|_| hold));
            } else {
                self.held.extend(hold.then_some((key, value)));
                assert_eq!(self.evicted(), 0, "a look-up evicts");
            }
            let known = self.known.get_mut(&key).expect("a key in the map is known");
            assert_eq!(known.id, value_id, "another value");
            (known.looked_up_at, known.used_at) = (self.now, self.now);
        }

        fn sweep(&mut self) {
            self.map.sweep(self.map.at(self.now));
            self.evicted();
            if self.now < self.next_sweep {
                return;
            }
            self.next_sweep = self.now + 25;
            for (&key, known) in &self.known {
                let is_idle = self.now - known.used_at >= 100;
                assert!(!is_idle || self.is_in_use(key), "an idle key stays");
            }
        }

        /// Checks what has been evicted, and returns how much.
        fn evicted(&mut self) -> usize {
            let dropped = std::mem::take(&mut *self.dropped.lock().unwrap());
            for &id in &dropped {
                let key = self.known.iter().find(|(_, known)| known.id == id);
                let key = *key.expect("a value is evicted once").0;
                assert!(!self.is_in_use(key), "a key in use is evicted");
                let is_idle = self.now - self.known[&key].looked_up_at >= 100;
                let is_excess = self.known.len() > self.map.limit;
                assert!(is_idle || is_excess, "a key is evicted for no reason");
                self.known.remove(&key);
            }
            dropped.len()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn keys_are_kept_while_they_are_used_and_bounded_otherwise(
            limit in prop_oneof![1..6_usize, Just(MANY)],
            steps in proptest::collection::vec(any_step(), 0..80),
        ) {
            let mut model = Model::new(limit);
            for step in steps {
                model.take(step);
            }
            let Model { map, dropped, held, made, known, .. } = model;
            drop((map, held));
            prop_assert_eq!(dropped.lock().unwrap().len(), known.len());
            prop_assert!(made >= known.len());
        }
    }

    // --- Bounds ---

    #[test]
    fn keys_in_use_exceed_the_limit_and_are_counted_and_the_others_are_bounded() {
        for (limit, in_use) in [(10, 5), (10, 40), (10, 1000), (MANY, 1000), (MANY, 40_000)] {
            let map = key_map(limit);
            let now = map.at(0);
            let held: Vec<_> = (0..in_use)
                .map(|key| map.get_or_insert_with(&Key(key), now, || 0))
                .collect();
            assert_eq!(map.over_limit() as u64, in_use.saturating_sub(limit as u64));

            let mut most_unused = 0;
            for key in in_use..in_use + 100_000 {
                map.get_or_insert_with(&Key(key), now, || 1);
                most_unused = most_unused.max(map.len() as u64 - in_use);
            }

            let bound = (limit as u64).max(in_use / 4);
            assert!(most_unused <= bound, "{limit}, {in_use}: {most_unused}");
            for (key, value) in (0..).zip(&held) {
                let same = map.get_or_insert_with(&Key(key), now, || 2);
                assert!(Arc::ptr_eq(&same, value));
            }
            // As soon as they aren't in use, insertions evict more than they insert.
            drop(held);
            for key in 200_000..200_000 + 2 * in_use {
                map.get_or_insert_with(&Key(key), now, || 3);
            }
            assert!(map.len() <= limit, "{limit}, {in_use}: {}", map.len());
        }
    }

    #[test]
    fn keys_that_fall_out_of_use_together_are_evicted_by_sweeps() {
        let map = key_map(MANY);
        let keys = 0..4 * MANY as u64;
        let held: Vec<_> = keys
            .map(|key| map.get_or_insert_with(&Key(key), map.at(0), || 0))
            .collect();
        drop(held);

        map.sweep(map.at(0));

        assert_eq!(map.len(), MANY);
    }

    #[test]
    fn idle_keys_go_while_nothing_is_inserted() {
        for limit in [1000, MANY] {
            let map = key_map(limit);
            let held = map.get_or_insert_with(&Key(0), map.at(0), || 0);
            for key in 1..1000 {
                map.get_or_insert_with(&Key(key), map.at(0), || 0);
            }
            map.sweep(map.at(75));
            map.get_or_insert_with(&Key(1), map.at(99), || 1);
            map.sweep(map.at(99));
            assert_eq!(map.len(), 1000);

            map.sweep(map.at(100));

            assert_eq!(map.len(), 2);
            assert_eq!(*map.get_or_insert_with(&Key(1), map.at(100), || 2), 0);
            drop(held);
            // It was in use until now.
            map.sweep(map.at(199));
            assert_eq!(map.len(), 2);
            map.sweep(map.at(225));
            assert_eq!(map.len(), 0);
        }
    }

    #[test]
    fn most_sweeps_look_at_few_keys() {
        let map = key_map(MANY);
        map.sweep(map.at(0));
        for key in 0..MANY as u64 {
            map.get_or_insert_with(&Key(key), map.at(0), || 0);
        }
        map.sweep(map.at(99));

        map.sweep(map.at(100));

        assert_eq!(map.len(), MANY - MOST_EVICTED);
    }

    #[test]
    fn keys_that_are_looked_up_again_outlast_any_number_of_others() {
        for limit in [100, MANY] {
            let map = key_map(limit);
            let made = Cell::new(0);
            let make = || made.replace(made.get() + 1);
            let (regular, others) = (limit as u64 / 4, 200_000);
            for other in regular..regular + others {
                if other % regular == 0 {
                    for key in 0..regular {
                        map.get_or_insert_with(&Key(key), map.at(0), make);
                    }
                }
                map.get_or_insert_with(&Key(other), map.at(0), || 0);
            }
            assert_eq!(made.get(), regular as usize);
        }
    }

    #[test]
    fn insertion_evicts_keys_of_other_shards_if_those_of_its_own_are_in_use() {
        let map = key_map(MANY);
        let is_first_shard = |key: &u64| map.shards_and_index_of(&Key(*key)).1 == 0;
        for key in (0..).filter(|key| !is_first_shard(key)).take(MANY) {
            map.get_or_insert_with(&Key(key), map.at(0), || 0);
        }

        let mut held = vec![];
        for key in (0..).filter(is_first_shard).take(LOOKS - 1) {
            held.push(map.get_or_insert_with(&Key(key), map.at(0), || 0));
            assert_eq!(map.len(), MANY);
        }
    }

    #[test]
    fn memory_stays_the_same_while_keys_come_and_go() {
        for limit in [100, MANY] {
            let map = key_map(limit);
            for key in 0..500_000 {
                map.get_or_insert_with(&Key(key), map.at(0), || 0);
            }

            assert_eq!(map.len(), limit);
            // The table and the ring double their sizes.
            let capacity = map.capacity();
            assert!(capacity < 6 * limit, "{capacity}");
        }
    }

    #[test]
    fn memory_for_many_keys_is_given_back() {
        for limit in [100, MANY] {
            let map = key_map(limit);
            let held: Vec<_> = (0..20 * limit as u64)
                .map(|key| map.get_or_insert_with(&Key(key), map.at(0), || 0))
                .collect();
            let for_many = map.capacity();
            drop(held);

            map.sweep(map.at(100));

            assert_eq!(map.len(), 0);
            assert!(
                map.capacity() < for_many / 20,
                "{} of {for_many}",
                map.capacity()
            );
        }
    }

    #[test]
    fn keys_that_write_no_u64_are_told_apart() {
        let map = key_map(MANY);
        for key in ["", "a", "b", "ab", "ba", "a longer key than eight bytes"] {
            let value = map.get_or_insert_with(&key, map.at(0), || key.len());
            assert_eq!(*value, key.len());
        }
        assert_eq!(*map.get_or_insert_with(&"ab", map.at(0), || 7), 2);
        assert_eq!(map.len(), 6);
    }

    // --- Threads ---

    #[test]
    fn two_threads_that_make_a_value_get_the_same() {
        let map = key_map::<_, Value>(10);
        let dropped = Arc::default();
        let both_make = Barrier::new(2);
        let get = |id| {
            map.get_or_insert_with(&Key(1), map.at(0), || {
                both_make.wait();
                Value {
                    id,
                    dropped: Arc::clone(&dropped),
                }
            })
        };

        let (one, other) = thread::scope(|scope| {
            let other = scope.spawn(|| get(2));
            (get(1), other.join().unwrap())
        });

        assert!(Arc::ptr_eq(&one, &other));
        assert_eq!(map.len(), 1);
        assert_eq!(*dropped.lock().unwrap(), [3 - one.id]);
    }

    #[test]
    fn look_ups_do_not_wait_for_each_other() {
        let map = Arc::new(key_map(10));
        map.get_or_insert_with(&Key(1), map.at(0), || 1);
        let (sender, receiver) = mpsc::channel();
        let (shards, index) = map.shards_and_index_of(&Key(1));
        let reading = read(&shards[index]);

        thread::spawn({
            let map = Arc::clone(&map);
            move || sender.send(*map.get_or_insert_with(&Key(1), map.at(0), || 2))
        });

        let found = receiver.recv_timeout(Duration::from_secs(10));
        assert_eq!(found, Ok(1));
        drop(reading);
    }

    #[test]
    fn key_in_use_has_one_value_while_two_threads_insert_and_evict() {
        const KEYS: usize = 100;
        for limit in [10, 1, MANY] {
            let map = &key_map::<_, usize>(limit);
            let next = &AtomicUsize::new(0);
            // Who uses a key, and which value it has.
            let uses = &[const { Mutex::new((0, 0)) }; KEYS];
            let release = &|held: Option<(usize, Arc<usize>)>| {
                let (key, value) = held.expect("a value is held");
                let mut key_uses = uses[key].lock().unwrap();
                key_uses.0 -= 1;
                drop(value);
            };
            thread::scope(|scope| {
                for seed in 0..2 {
                    scope.spawn(move || {
                        let mut random = fastrand::Rng::with_seed(seed);
                        let mut held = VecDeque::new();
                        for now in 0..20_000 {
                            let key = random.usize(..KEYS);
                            let mut key_uses = uses[key].lock().unwrap();
                            let value =
                                map.get_or_insert_with(&Key(key as u64), map.at(now / 10), || {
                                    next.fetch_add(1, Ordering::Relaxed)
                                });
                            let (count, id) = &mut *key_uses;
                            assert!(*count == 0 || *id == *value, "two values of a key in use");
                            (*count, *id) = (*count + 1, *value);
                            drop(key_uses);
                            held.push_back((key, value));
                            if held.len() > random.usize(..40) {
                                release(held.pop_front());
                            }
                            if random.u8(..) == 0 {
                                map.sweep(map.at(now / 10));
                            }
                        }
                        held.into_iter().for_each(|held| release(Some(held)));
                    });
                }
            });
            let counted = map.shards.get().into_iter().flatten();
            let counted: usize = counted.map(|shard| read(shard).slots.len()).sum();
            assert_eq!(map.len(), counted);
        }
    }

    /// A weak reference can be upgraded although the map has just found no other reference.
    #[test]
    fn value_that_gets_a_reference_at_the_last_moment_stays() {
        let map = key_map(1);
        let upgraded = map.get_or_insert_with(&Key(1), map.at(0), || 1);
        let (shards, index) = map.shards_and_index_of(&Key(1));
        let mut evicted = vec![];

        let mut shard = write(&shards[index]);
        let key = shard.ring.pop_front().unwrap();
        shard.remove(key, &mut evicted);
        drop(shard);

        assert!(evicted.is_empty());
        let same = map.get_or_insert_with(&Key(1), map.at(0), || 2);
        assert!(Arc::ptr_eq(&same, &upgraded));
        // The map still looks at it.
        drop((same, upgraded));
        map.sweep(map.at(100));
        assert_eq!(map.len(), 0);
    }

    // --- User code ---

    /// Reports whether it was cloned or dropped under a lock.
    struct Checked(u64, Arc<Context>);

    #[derive(Default)]
    struct Context {
        map: Mutex<Weak<KeyMap<Checked, Checked>>>,
        ran_under_a_lock: AtomicBool,
    }

    impl Checked {
        fn check(&self) {
            let map = self.1.map.lock().unwrap().upgrade();
            if map.is_some_and(|map| !map.is_unlocked()) {
                self.1.ran_under_a_lock.store(true, Ordering::Relaxed);
            }
        }
    }

    impl Clone for Checked {
        fn clone(&self) -> Self {
            self.check();
            Self(self.0, Arc::clone(&self.1))
        }
    }

    impl Drop for Checked {
        fn drop(&mut self) {
            self.check();
        }
    }

    impl PartialEq for Checked {
        fn eq(&self, other: &Self) -> bool {
            self.0 == other.0
        }
    }

    impl Eq for Checked {}

    impl Hash for Checked {
        fn hash<H: Hasher>(&self, state: &mut H) {
            Key(self.0).hash(state);
        }
    }

    #[test]
    fn no_user_code_runs_under_a_lock_of_the_keys() {
        for limit in [10, MANY] {
            let context = Arc::new(Context::default());
            let map = Arc::new(key_map(limit));
            *context.map.lock().unwrap() = Arc::downgrade(&map);
            let checked = |key| Checked(key, Arc::clone(&context));
            for key in 0..2 * limit as u64 {
                map.get_or_insert_with(&checked(key), map.at(0), || checked(key).clone());
            }
            // A value that is made twice.
            let key = checked(u64::MAX);
            map.get_or_insert_with(&key, map.at(0), || {
                map.get_or_insert_with(&key, map.at(0), || checked(1));
                checked(2)
            });

            map.sweep(map.at(200));

            assert_eq!(map.len(), 0);
            assert!(!context.ran_under_a_lock.load(Ordering::Relaxed));
        }
    }
}

/// Every interleaving of look-ups, insertions and evictions.
#[cfg(all(test, interleavings))]
mod interleavings {
    use loom::{model::Builder, thread};

    use super::*;

    fn in_every_interleaving(check: impl Fn() + Sync + Send + 'static) {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(check);
    }

    fn map_of_one() -> Arc<KeyMap<u64, u32>> {
        Arc::new(KeyMap::new(NonZeroUsize::MIN, Duration::from_secs(100)))
    }

    #[test]
    fn key_in_use_has_one_value_in_every_interleaving() {
        in_every_interleaving(|| {
            let map = map_of_one();
            let now = map.created_at;
            let evicting = thread::spawn({
                let map = Arc::clone(&map);
                move || {
                    map.get_or_insert_with(&2, now, || 0);
                    map.sweep(now + Duration::from_secs(200));
                }
            });

            let first = map.get_or_insert_with(&1, now, || 1);
            let second = map.get_or_insert_with(&1, now, || 2);

            assert!(Arc::ptr_eq(&first, &second));
            evicting.join().expect("nothing panics");
            assert!(map.len() <= 2);
            drop((first, second));
            map.sweep(now + Duration::from_secs(400));
            assert_eq!(map.len(), 0);
        });
    }

    #[test]
    fn threads_that_insert_the_same_key_get_the_same_value_in_every_interleaving() {
        in_every_interleaving(|| {
            let map = map_of_one();
            let now = map.created_at;
            let other = thread::spawn({
                let map = Arc::clone(&map);
                move || map.get_or_insert_with(&1, now, || 1)
            });

            let value = map.get_or_insert_with(&1, now, || 2);

            let other = other.join().expect("nothing panics");
            assert!(Arc::ptr_eq(&value, &other));
            assert_eq!(map.len(), 1);
        });
    }
}
