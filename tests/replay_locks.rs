//! No user code runs under the lock of a replay buffer: whatever the buffer polls, wakes, clones or
//! drops may use a body of the same buffer.
//!
//! Bodies, frames, errors and wakers of these tests take the lock of their buffer when they are
//! used and when they are dropped. If the buffer held it, they would wait forever.

#![expect(
    unsafe_code,
    reason = "a waker whose clone runs code has its own vtable"
)]

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, RawWaker, RawWakerVTable, Waker},
    thread,
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tower::BoxError;
use tower_client_credentials::replay::{Buffered, KeptFrames, ReplayBody, ReplayPolicy};

/// Runs a test on another thread, and fails if it hangs.
#[track_caller]
fn in_time(test: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::channel();
    let thread = thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match finished.recv_timeout(Duration::from_secs(20)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("user code ran under the lock"),
        _ => thread.join().expect("the test has not failed"),
    }
}

/// Reaches a buffer from the code that the buffer runs.
#[derive(Clone, Default)]
struct Reentry(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// A superseded body of the buffer. All of its methods take the lock.
    body: Mutex<Option<Arc<ReplayBody<Source>>>>,
    kept: Mutex<Option<KeptFrames<Source>>>,
    calls: AtomicUsize,
}

impl Reentry {
    /// Takes the lock of the buffer.
    fn call(&self) {
        let body = self.0.body.lock().unwrap().clone();
        if let Some(body) = body {
            let _ = (body.size_hint(), body.is_end_stream());
            self.0.calls.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Returns how often the lock was taken since the last time.
    fn take_calls(&self) -> usize {
        self.0.calls.swap(0, Ordering::SeqCst)
    }

    /// Starts a replay, and drops what is kept if no other may start.
    fn replay(&self) -> Option<ReplayBody<Source>> {
        let mut kept = self.0.kept.lock().unwrap().take()?;
        let replay = Buffered::new(LIMIT).restore(&mut kept);
        *self.0.kept.lock().unwrap() = Some(kept);
        replay
    }
}

/// Takes the lock when it is dropped.
struct OnDrop(Reentry);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.call();
    }
}

/// Frames of this size share their memory with the buffer.
const LARGE: usize = 8 * 1024;
const LIMIT: usize = 4 * LARGE;

#[derive(Clone, Copy)]
enum Step {
    /// A frame of this size, whose memory takes the lock when it is freed.
    Data(usize),
    Pending,
    Error,
    Panic,
    /// Starts another replay while the body is polled, then returns a frame.
    Replay(usize),
}

/// A body that takes the lock whenever it is used.
struct Source {
    steps: VecDeque<Step>,
    waker: Option<Waker>,
    reentry: OnDrop,
}

impl Body for Source {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let reentry = self.reentry.0.clone();
        reentry.call();
        self.waker = Some(cx.waker().clone());
        let data = |size| {
            let memory = Memory(vec![7; size], OnDrop(reentry.clone()));
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(memory)))))
        };
        match self.steps.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Data(size)) => data(size),
            Some(Step::Pending) => Poll::Pending,
            Some(Step::Error) => Poll::Ready(Some(Err(Failure(OnDrop(reentry))))),
            Some(Step::Panic) => panic!("the body panics on purpose"),
            Some(Step::Replay(size)) => {
                let replay = reentry.replay().map(Arc::new);
                let superseded = std::mem::replace(&mut *reentry.0.body.lock().unwrap(), replay);
                drop(superseded);
                data(size)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.reentry.0.call();
        false
    }

    fn size_hint(&self) -> SizeHint {
        self.reentry.0.call();
        SizeHint::default()
    }
}

struct Memory(
    Vec<u8>,
    #[expect(dead_code, reason = "dropped with the data")] OnDrop,
);

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

struct Failure(#[expect(dead_code, reason = "dropped with the error")] OnDrop);

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Failure")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the file is gone")
    }
}

impl std::error::Error for Failure {}

/// Takes the lock when it is cloned, woken or dropped.
fn waker(reentry: &Reentry) -> Waker {
    const VTABLE: RawWakerVTable = RawWakerVTable::new(
        |data| {
            // SAFETY: `data` comes from `into_raw`, and the count that it holds is left alone.
            let reentry = unsafe { &*data.cast::<Reentry>() };
            reentry.call();
            RawWaker::new(Box::into_raw(Box::new(reentry.clone())).cast(), &VTABLE)
        },
        |data| {
            // SAFETY: `data` comes from `into_raw`, and this waker is not used again.
            let reentry = unsafe { Box::from_raw(data.cast::<Reentry>().cast_mut()) };
            reentry.call();
        },
        |data| {
            // SAFETY: `data` comes from `into_raw`, and the waker still owns it.
            unsafe { &*data.cast::<Reentry>() }.call();
        },
        |data| {
            // SAFETY: `data` comes from `into_raw`, and this waker is not used again.
            let reentry = unsafe { Box::from_raw(data.cast::<Reentry>().cast_mut()) };
            reentry.call();
        },
    );
    let data = Box::into_raw(Box::new(reentry.clone())).cast_const();
    // SAFETY: the functions of the vtable only share `Reentry`, which is `Send` and `Sync`.
    unsafe { Waker::from_raw(RawWaker::new(data.cast(), &VTABLE)) }
}

type Next = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

/// Polls with a waker that takes the lock.
fn poll(body: &mut ReplayBody<Source>, reentry: &Reentry) -> Next {
    let waker = waker(reentry);
    Pin::new(body).poll_frame(&mut Context::from_waker(&waker))
}

fn poll_data(body: &mut ReplayBody<Source>, reentry: &Reentry) -> Frame<Bytes> {
    match poll(body, reentry) {
        Poll::Ready(Some(Ok(frame))) => frame,
        other => panic!("expected a frame: {other:?}"),
    }
}

/// A replay of a body that follows these steps. The first body stays, to take the lock.
fn start<const N: usize>(steps: [Step; N]) -> (ReplayBody<Source>, Reentry) {
    let reentry = Reentry::default();
    // The first poll, which finds nothing, is made before the buffer exists.
    let steps = [Step::Pending].into_iter().chain(steps);
    let (first, kept) = Buffered::new(LIMIT).split(Source {
        steps: steps.collect(),
        waker: None,
        reentry: OnDrop(reentry.clone()),
    });
    *reentry.0.kept.lock().unwrap() = kept;
    let replay = reentry.replay().expect("nothing has exceeded the limit");
    *reentry.0.body.lock().unwrap() = Some(Arc::new(first));
    (replay, reentry)
}

#[test]
fn no_user_code_runs_under_a_lock_when_a_body_is_polled() {
    in_time(|| {
        for size in [1, LARGE] {
            let (mut body, reentry) = start([Step::Data(size)]);

            poll_data(&mut body, &reentry);

            // The source is polled and asked for its size, and the waker is cloned and dropped.
            assert!(reentry.take_calls() >= 5);
        }
    });
}

#[test]
fn no_user_code_runs_under_a_lock_when_a_waker_is_replaced_woken_or_dropped() {
    in_time(|| {
        let (mut body, reentry) = start([Step::Pending, Step::Pending]);
        assert!(poll(&mut body, &reentry).is_pending());
        assert!(poll(&mut body, &reentry).is_pending());
        reentry.take_calls();

        let mut next = reentry.replay().unwrap();

        assert_eq!(reentry.take_calls(), 1, "the waker of the last poll");
        assert!(matches!(
            poll(&mut body, &reentry),
            Poll::Ready(Some(Err(_)))
        ));
        assert!(matches!(poll(&mut next, &reentry), Poll::Ready(None)));
        drop((body, next));
    });
}

#[test]
fn no_user_code_runs_under_a_lock_when_the_source_ends() {
    in_time(|| {
        let (mut body, reentry) = start([]);

        assert!(matches!(poll(&mut body, &reentry), Poll::Ready(None)));

        assert!(reentry.take_calls() >= 2);
    });
}

#[test]
fn no_user_code_runs_under_a_lock_when_the_source_fails() {
    in_time(|| {
        let (mut body, reentry) = start([Step::Error]);
        let error = poll(&mut body, &reentry);
        assert!(matches!(&error, Poll::Ready(Some(Err(_)))));
        reentry.take_calls();

        drop(error);

        assert_eq!(reentry.take_calls(), 1);
        assert!(reentry.replay().is_none());
    });
}

#[test]
fn no_user_code_runs_under_a_lock_when_the_source_panics() {
    in_time(|| {
        let (mut body, reentry) = start([Step::Panic]);

        let panicked = catch_unwind(AssertUnwindSafe(|| poll(&mut body, &reentry).is_ready()));

        assert!(panicked.is_err());
        assert!(reentry.take_calls() >= 2);
        assert!(matches!(
            poll(&mut body, &reentry),
            Poll::Ready(Some(Err(_)))
        ));
    });
}

#[test]
fn no_user_code_runs_under_a_lock_when_frames_are_freed_beyond_the_limit() {
    in_time(|| {
        let (mut body, reentry) = start([Step::Data(LIMIT), Step::Data(1)]);
        drop(poll_data(&mut body, &reentry));
        let last = poll(&mut body, &reentry);
        reentry.take_calls();

        // The frame before it was freed by that poll; this one was only passed on.
        drop(last);

        assert_eq!(reentry.take_calls(), 1);
        assert!(reentry.replay().is_none());
    });
}

#[test]
fn no_user_code_runs_under_a_lock_when_kept_frames_are_dropped() {
    in_time(|| {
        let (mut body, reentry) = start([Step::Data(LARGE), Step::Data(LARGE), Step::Data(1)]);
        for _ in 0..3 {
            drop(poll_data(&mut body, &reentry));
        }
        reentry.take_calls();

        let kept = reentry.0.kept.lock().unwrap().take();
        drop(kept);

        assert_eq!(
            reentry.take_calls(),
            2,
            "the two frames that share their memory"
        );
    });
}

/// The reader that polls becomes an older one meanwhile, and stores the frame for the newest.
#[test]
fn no_user_code_runs_under_a_lock_when_a_replay_starts_during_a_poll() {
    in_time(|| {
        for size in [1, LARGE, LIMIT, LIMIT + 1] {
            let (mut body, reentry) = start([Step::Replay(size), Step::Pending]);

            let superseded = poll(&mut body, &reentry);
            assert!(matches!(superseded, Poll::Ready(Some(Err(_)))));

            let newest = reentry.0.body.lock().unwrap().take().unwrap();
            *reentry.0.body.lock().unwrap() = Some(Arc::new(body));
            let mut newest = Arc::into_inner(newest).expect("nothing else uses it");
            let frame = poll_data(&mut newest, &reentry);
            assert_eq!(frame.into_data().unwrap().len(), size);
            assert!(poll(&mut newest, &reentry).is_pending());
            drop(newest);
            assert!(reentry.take_calls() > 0);
        }
    });
}

#[test]
fn no_user_code_runs_under_a_lock_when_everything_is_dropped() {
    in_time(|| {
        for steps in [
            [Step::Data(LARGE), Step::Pending],
            [Step::Data(1), Step::Error],
        ] {
            for drops_kept_first in [true, false] {
                let (mut body, reentry) = start(steps);
                drop(poll_data(&mut body, &reentry));
                let _ = poll(&mut body, &reentry);
                let kept = reentry.0.kept.lock().unwrap().take();

                if drops_kept_first {
                    drop((kept, body));
                } else {
                    drop((body, kept));
                }
                let last = reentry.0.body.lock().unwrap().take();
                drop(last);
            }
        }
    });
}
