//! Model checks of a buffer's readers, its kept handle and its source, in every interleaving.
//!
//! ```text
//! RUSTFLAGS="--cfg interleavings" CARGO_TARGET_DIR=target/interleavings cargo test --lib interleavings
//! ```
//!
//! The buffer is the only code of the crate that combines a lock and wakers by hand. Token requests
//! notify their waiters with `tokio::sync::watch`, which has loom tests of its own. The snapshot of
//! the token cache is checked in `token/interleavings.rs`.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use loom::{
    future::block_on,
    model::Builder,
    sync::{Arc, Mutex},
    thread,
};
use tower::BoxError;

use super::{Buffered, KeptFrames, ReplayBody, ReplayPolicy};

/// A body whose frames another thread delivers.
struct Delivered {
    queue: Arc<Mutex<Queue>>,
    frames_left: usize,
}

#[derive(Default)]
struct Queue {
    frames: usize,
    waiting: Option<Waker>,
}

const FRAMES: usize = 2;
const DATA: &[u8] = b"frame";

impl Body for Delivered {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.frames_left == 0 {
            return Poll::Ready(None);
        }
        if !self.queue.lock().expect(UNPOISONED).take_frame(cx) {
            return Poll::Pending;
        }
        self.frames_left -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(DATA)))))
    }
}

const UNPOISONED: &str = "nothing panics while it holds this lock";

impl Queue {
    /// Takes a frame if there is one, and leaves a waker if not.
    fn take_frame(&mut self, cx: &Context<'_>) -> bool {
        let has_frame = self.frames > 0;
        if has_frame {
            self.frames -= 1;
        } else {
            self.waiting = Some(cx.waker().clone());
        }
        has_frame
    }
}

fn deliver(queue: &Mutex<Queue>) {
    for _ in 0..FRAMES {
        let waiting = {
            let mut queue = queue.lock().expect(UNPOISONED);
            queue.frames += 1;
            queue.waiting.take()
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// Splits a body whose frames are delivered from now on.
fn start() -> (ReplayBody<Delivered>, KeptFrames<Delivered>) {
    let queue = Arc::new(Mutex::new(Queue::default()));
    let body = Delivered {
        queue: Arc::clone(&queue),
        frames_left: FRAMES,
    };
    let (upload, kept) = Buffered::new(1024).split(body);
    thread::spawn(move || deliver(&queue));
    (upload, kept.expect("nothing has exceeded the limit"))
}

fn restore(kept: &mut KeptFrames<Delivered>) -> ReplayBody<Delivered> {
    Buffered::new(1024)
        .restore(kept)
        .expect("all frames are kept")
}

/// Reads to the end, and returns the number of frames whose data arrived. A replay may get the data
/// of several in one.
fn read(body: ReplayBody<Delivered>) -> Result<usize, BoxError> {
    let mut body = Box::pin(body);
    block_on(async move {
        let mut read = Vec::new();
        while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            read.extend(frame?.into_data().unwrap_or_default());
        }
        let frames = read.chunks(DATA.len());
        assert!(frames.clone().all(|data| data == DATA));
        Ok(frames.len())
    })
}

/// Reads on a thread of its own.
struct Reading(thread::JoinHandle<Result<usize, BoxError>>);

impl Reading {
    fn start(body: ReplayBody<Delivered>) -> Self {
        Self(thread::spawn(move || read(body)))
    }

    fn join(self) -> Result<usize, BoxError> {
        self.0.join().expect("no reader panics")
    }

    /// A superseded reader either read everything in time or got an error. It doesn't hang.
    fn assert_superseded(self) {
        let frames = self.join();
        assert!(frames.is_err() || frames.is_ok_and(|frames| frames == FRAMES));
    }
}

/// Checks all interleavings with at most `bound` preemptions. Loom also fails if no thread can
/// continue, which is how it detects a lost wake-up.
fn with_preemptions(bound: usize, check: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(bound);
    builder.check(check);
}

#[test]
fn replay_loses_no_frame_and_no_wake_up_while_the_first_send_reads() {
    with_preemptions(3, || {
        let (upload, mut kept) = start();
        let upload = Reading::start(upload);

        let replay = restore(&mut kept);
        drop(kept);

        assert_eq!(read(replay).ok(), Some(FRAMES));
        upload.assert_superseded();
    });
}

#[test]
fn second_replay_loses_no_frame_and_no_wake_up_while_the_first_replay_reads() {
    with_preemptions(3, || {
        let (upload, mut kept) = start();
        drop(upload);
        let first_replay = Reading::start(restore(&mut kept));

        let second_replay = restore(&mut kept);
        drop(kept);

        assert_eq!(read(second_replay).ok(), Some(FRAMES));
        first_replay.assert_superseded();
    });
}

#[test]
fn second_replay_loses_no_frame_and_no_wake_up_while_all_earlier_sends_read() {
    with_preemptions(2, || {
        let (upload, mut kept) = start();
        let upload = Reading::start(upload);
        let first_replay = Reading::start(restore(&mut kept));

        let second_replay = restore(&mut kept);

        assert_eq!(read(second_replay).ok(), Some(FRAMES));
        upload.assert_superseded();
        first_replay.assert_superseded();
    });
}

#[test]
fn upload_continues_when_the_kept_frames_are_dropped() {
    with_preemptions(3, || {
        let (upload, kept) = start();
        let upload = Reading::start(upload);

        drop(kept);

        assert_eq!(upload.join().ok(), Some(FRAMES));
    });
}

#[test]
fn replay_continues_when_the_first_send_is_dropped_at_any_point() {
    with_preemptions(3, || {
        let (upload, mut kept) = start();
        let upload = thread::spawn(move || {
            let mut upload = Box::pin(upload);
            let _ = upload
                .as_mut()
                .poll_frame(&mut Context::from_waker(Waker::noop()));
        });

        let replay = restore(&mut kept);
        drop(kept);

        assert_eq!(read(replay).ok(), Some(FRAMES));
        upload.join().expect("the upload does not panic");
    });
}
