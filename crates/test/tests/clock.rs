//! The wall clock of tests.

use std::{
    thread,
    time::{Duration, SystemTime},
};

use tower_client_credentials_test::TestClock;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_clock_follows_tokios_clock_from_any_time() {
    let clock = TestClock::following_tokio();
    let start = clock.now();
    assert!(
        start.duration_since(SystemTime::now() - MINUTE).is_ok(),
        "the system's time"
    );

    tokio::time::advance(MINUTE).await;
    assert_eq!(clock.now(), start + MINUTE);
    clock.advance(MINUTE);
    assert_eq!(clock.now(), start + 2 * MINUTE);

    // Also after it was set, here to an earlier time.
    clock.set(SystemTime::UNIX_EPOCH);
    assert_eq!(clock.now(), SystemTime::UNIX_EPOCH);
    tokio::time::advance(MINUTE).await;
    assert_eq!(clock.now(), SystemTime::UNIX_EPOCH + MINUTE);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_does_not_follow_stands_still() {
    let clock = TestClock::new(SystemTime::UNIX_EPOCH);

    tokio::time::advance(MINUTE).await;
    assert_eq!(clock.now(), SystemTime::UNIX_EPOCH);
    clock.advance(MINUTE);
    assert_eq!(clock.now(), SystemTime::UNIX_EPOCH + MINUTE);
}

#[test]
fn clones_and_readers_share_the_time() {
    let clock = TestClock::new(SystemTime::UNIX_EPOCH);
    let (clone, reader) = (clock.clone(), clock.reader());

    thread::spawn(move || clone.advance(MINUTE)).join().unwrap();

    assert_eq!(reader(), SystemTime::UNIX_EPOCH + MINUTE);
}

#[test]
fn a_clock_that_can_not_advance_so_far_stays_as_it_was() {
    let clock = TestClock::new(SystemTime::UNIX_EPOCH);

    let advances = std::panic::AssertUnwindSafe(|| clock.advance(Duration::MAX));
    assert!(std::panic::catch_unwind(advances).is_err());

    assert_eq!(clock.now(), SystemTime::UNIX_EPOCH);
}
