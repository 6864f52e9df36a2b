//! Every way in which an upload, its replay and the source of both can come in between each other.
//!
//! ```text
//! RUSTFLAGS="--cfg interleavings" CARGO_TARGET_DIR=target/interleavings cargo test --lib interleavings
//! ```
//!
//! The tape is the only place of the crate where a lock and wakers are put together by hand: flights
//! tell their waiters through `tokio::sync::watch`, which has loom tests of its own, and the token
//! cache's entry has no wakers. What the cache does by hand is to publish what the entry decided;
//! `token/interleavings.rs` has that.

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

/// A body whose frames come when somebody brings them.
struct Delivered {
    belt: Arc<Mutex<Belt>>,
    to_come: usize,
}

#[derive(Default)]
struct Belt {
    frames: usize,
    waiting: Option<Waker>,
}

const FRAMES: usize = 2;

impl Body for Delivered {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.to_come == 0 {
            return Poll::Ready(None);
        }
        let is_there = {
            let mut belt = self.belt.lock().expect("nothing panics with this lock");
            let is_there = belt.frames > 0;
            if is_there {
                belt.frames -= 1;
            } else {
                belt.waiting = Some(cx.waker().clone());
            }
            is_there
        };
        if !is_there {
            return Poll::Pending;
        }
        self.to_come -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"frame")))))
    }
}

fn deliver(belt: &Mutex<Belt>) {
    for _ in 0..FRAMES {
        let waiting = {
            let mut belt = belt.lock().expect("nothing panics with this lock");
            belt.frames += 1;
            belt.waiting.take()
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// An upload and its memory; frames come from a thread of their own.
fn start() -> (ReplayBody<Delivered>, KeptFrames<Delivered>) {
    let belt = Arc::new(Mutex::new(Belt::default()));
    let body = Delivered {
        belt: Arc::clone(&belt),
        to_come: FRAMES,
    };
    let (upload, kept) = Buffered::new(1024).split(body);
    thread::spawn(move || deliver(&belt));
    (upload, kept.expect("no frame has been delivered yet"))
}

/// How many frames there were before the end.
fn read(body: ReplayBody<Delivered>) -> Result<usize, BoxError> {
    let mut body = Box::pin(body);
    block_on(async move {
        let mut frames = 0;
        while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            frames += usize::from(frame?.is_data());
        }
        Ok(frames)
    })
}

/// In each interleaving, unless it takes more preemptions than have ever been seen to matter. Loom
/// finds a wake-up that is lost: no thread can go on then.
fn in_every_interleaving(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

#[test]
fn replay_that_takes_over_loses_neither_a_frame_nor_a_wake_up() {
    in_every_interleaving(|| {
        let (upload, kept) = start();
        let upload = thread::spawn(move || read(upload));

        let replay = Buffered::new(1024)
            .restore(kept)
            .expect("all of it is remembered");

        assert_eq!(read(replay).ok(), Some(FRAMES));
        // It was complete, or it is told that it is over; it does not hang.
        let upload = upload.join().expect("the upload does not panic");
        assert!(upload.is_err() || upload.is_ok_and(|frames| frames == FRAMES));
    });
}

#[test]
fn upload_goes_on_when_the_verdict_forgets_what_was_sent() {
    in_every_interleaving(|| {
        let (upload, kept) = start();
        let upload = thread::spawn(move || read(upload));

        drop(kept);

        let upload = upload.join().expect("the upload does not panic");
        assert_eq!(upload.ok(), Some(FRAMES));
    });
}

#[test]
fn replay_goes_on_when_the_upload_is_dropped_at_any_point() {
    in_every_interleaving(|| {
        let (upload, kept) = start();
        let upload = thread::spawn(move || {
            let mut upload = Box::pin(upload);
            let _ = upload
                .as_mut()
                .poll_frame(&mut Context::from_waker(Waker::noop()));
        });

        let replay = Buffered::new(1024)
            .restore(kept)
            .expect("all of it is remembered");

        assert_eq!(read(replay).ok(), Some(FRAMES));
        upload.join().expect("the upload does not panic");
    });
}
