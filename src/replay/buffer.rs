//! The frames of a streaming body, kept until the API has accepted the request.
//!
//! A buffer is shared by the readers, one for each send, and by the handle that is kept for the
//! next send. Only the newest reader reads: it gets the stored frames first, then polls the source.
//! Older readers get an error.
//!
//! Nothing but the buffer's own code runs under its lock. A reader takes the source out of the
//! buffer to poll it. What the lock guards and the caller has made is dropped after unlocking:
//! frames, wakers, errors and the source. Wakers are woken then, too. All of them may run code of
//! the caller that uses the buffer.

#[cfg(not(all(test, interleavings)))]
use std::sync::{Arc, Mutex, MutexGuard};
use std::{
    error::Error as StdError,
    fmt, mem,
    pin::Pin,
    sync::PoisonError,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
#[cfg(all(test, interleavings))]
use loom::sync::{Arc, Mutex, MutexGuard};
use tower::BoxError;

use super::{
    frame::StoredFrame,
    frames::Frames,
    framing::Framing,
    source::{Outcome, Source, SourcePoll},
};

/// Reads a buffer from its first frame on, for one send.
pub(super) struct BufferedReader<B> {
    buffer: Arc<Mutex<Buffer<B>>>,
    number: usize,
}

/// Keeps the frames of a buffer for another reader.
///
/// Dropping it frees the frames that have been read, and those that will be.
pub(super) struct KeptBuffer<B> {
    buffer: Arc<Mutex<Buffer<B>>>,
}

impl<B> BufferedReader<B> {
    /// Creates a buffer of a body that has been polled once, and its first reader.
    pub(super) fn new(first_poll: SourcePoll<B>, framing: Framing, limit: usize) -> Self {
        let mut frames = Frames::new(limit);
        if let Some(frame) = &first_poll.frame {
            drop(frames.push_unread(frame.to_kept()));
        }
        let buffer = Buffer {
            frames,
            source: first_poll.source,
            framing,
            reader: 0,
            is_polled: false,
            waiting: None,
        };
        Self {
            number: buffer.reader,
            buffer: Arc::new(Mutex::new(buffer)),
        }
    }

    /// Keeps the buffer for another reader, unless the first frame exceeds the limit already.
    pub(super) fn keep(&self) -> Option<KeptBuffer<B>> {
        let can_start = lock(&self.buffer).frames.are_complete();
        can_start.then(|| KeptBuffer {
            buffer: Arc::clone(&self.buffer),
        })
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let buffer = lock(&self.buffer);
        buffer.reader == self.number && buffer.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let buffer = lock(&self.buffer);
        if buffer.reader == self.number {
            buffer.size_hint()
        } else {
            SizeHint::default()
        }
    }
}

impl<B> BufferedReader<B>
where
    B: Body<Error: Into<BoxError>>,
{
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let body = match self.read(cx) {
                Read::Frame(frame) => return Poll::Ready(Some(Ok(frame.into()))),
                Read::Error(error) => return Poll::Ready(Some(Err(error))),
                Read::End => return Poll::Ready(None),
                Read::SourceInUse => return Poll::Pending,
                Read::Source(body) => body,
            };
            match self.poll_source(body, cx) {
                Polled::Frame(frame) => return Poll::Ready(Some(Ok(frame))),
                Polled::Progress => {}
                // If a newer reader started meanwhile, it has woken this one.
                Polled::Pending => return Poll::Pending,
            }
        }
    }

    fn read(&self, cx: &Context<'_>) -> Read<B> {
        // Cloned before locking, and the waker that it replaces is dropped after unlocking.
        let mut waker = Some(cx.waker().clone());
        let read = lock(&self.buffer).read(self.number, &mut waker);
        drop(waker);
        read
    }

    /// Polls the source outside the lock, and stores what it returned.
    fn poll_source(&self, body: Pin<Box<B>>, cx: &mut Context<'_>) -> Polled {
        let guard = PanicGuard(&self.buffer);
        let poll = SourcePoll::new(body, cx);
        mem::forget(guard);

        let outcome = poll.outcome;
        let (frame, after_unlock) = lock(&self.buffer).store(poll, self.number);
        after_unlock.run();
        match (outcome, frame) {
            (Outcome::Pending, _) => Polled::Pending,
            (Outcome::EmptyFrame, _) => Polled::Frame(Frame::data(Bytes::new())),
            (Outcome::Progress, Some(frame)) => Polled::Frame(frame.into()),
            (Outcome::Progress, None) => Polled::Progress,
        }
    }
}

/// What a reader learns from a poll of the source.
enum Polled {
    Frame(Frame<Bytes>),
    /// The source has ended or failed, or a newer reader gets the frame.
    Progress,
    Pending,
}

/// Fails the source if polling it panics, so that no reader waits for it forever.
struct PanicGuard<'a, B>(&'a Mutex<Buffer<B>>);

impl<B> Drop for PanicGuard<'_, B> {
    fn drop(&mut self) {
        let after_unlock = lock(self.0).fail("request body panicked while it was being read");
        after_unlock.run();
    }
}

impl<B> KeptBuffer<B> {
    /// Starts a reader that supersedes the one before it.
    ///
    /// Returns `None` if the body can't be read from its start again: more of it than the limit
    /// has been read, or the source [has failed](Self::has_failed).
    pub(super) fn new_reader(&mut self) -> Option<BufferedReader<B>> {
        let mut buffer = lock(&self.buffer);
        let after_unlock = buffer.start_reader()?;
        let number = buffer.reader;
        drop(buffer);
        after_unlock.run();
        Some(BufferedReader {
            buffer: Arc::clone(&self.buffer),
            number,
        })
    }

    /// Whether reading the source has failed.
    pub(super) fn has_failed(&self) -> bool {
        matches!(lock(&self.buffer).source, Source::Failed(_))
    }
}

impl<B> Drop for KeptBuffer<B> {
    fn drop(&mut self) {
        let after_unlock = lock(&self.buffer).keep_unread_only();
        after_unlock.run();
    }
}

/// What the readers of a body share. Changed only under its lock.
struct Buffer<B> {
    frames: Frames,
    source: Source<B>,
    framing: Framing,
    /// Number of the newest reader, the only one that may read.
    reader: usize,
    /// Whether the newest reader has been polled.
    is_polled: bool,
    /// The newest reader's waker: woken when another reader has put the source back, and when the
    /// reader is superseded.
    waiting: Option<Waker>,
}

/// What a reader gets from a buffer.
enum Read<B> {
    Frame(StoredFrame),
    Error(BoxError),
    End,
    /// Nothing is stored, and the reader has to poll the source.
    Source(Pin<Box<B>>),
    /// Nothing is stored, and an older reader is polling the source.
    SourceInUse,
}

/// What a change of a buffer leaves to do after unlocking.
#[must_use]
struct AfterUnlock<B> {
    wake: Option<Waker>,
    discarded: Vec<StoredFrame>,
    replaced: Option<Source<B>>,
}

impl<B> AfterUnlock<B> {
    fn run(self) {
        self.wake.into_iter().for_each(Waker::wake);
        drop((self.discarded, self.replaced));
    }
}

impl<B> Buffer<B> {
    /// Returns what the reader gets next, and leaves its waker if it has to wait.
    fn read(&mut self, reader: usize, waker: &mut Option<Waker>) -> Read<B> {
        if self.reader != reader {
            return Read::Error(Superseded.into());
        }
        self.is_polled = true;
        if let Some(frame) = self.frames.next() {
            return Read::Frame(frame);
        }
        match &mut self.source {
            Source::Ended => Read::End,
            Source::Failed(error) => error.take().map_or(Read::End, Read::Error),
            Source::Open { body, .. } => {
                mem::swap(&mut self.waiting, waker);
                body.take().map_or(Read::SourceInUse, Read::Source)
            }
        }
    }

    /// Stores what a reader's poll of the source returned. Returns the frame if the reader is the
    /// newest, which then has read it; otherwise the newest reader will.
    fn store(
        &mut self,
        poll: SourcePoll<B>,
        reader: usize,
    ) -> (Option<StoredFrame>, AfterUnlock<B>) {
        let mut after_unlock = self.replace_source(poll.source);
        let mut passed_on = None;
        if self.reader == reader {
            passed_on = poll.frame;
            if let Some(frame) = &passed_on {
                after_unlock.discarded = self.frames.push_read(frame);
            }
        } else {
            after_unlock.wake = self.waiting.take();
            if let Some(frame) = poll.frame {
                after_unlock.discarded = self.frames.push_unread(frame);
            }
        }
        (passed_on, after_unlock)
    }

    fn fail(&mut self, message: &'static str) -> AfterUnlock<B> {
        AfterUnlock {
            wake: self.waiting.take(),
            ..self.replace_source(Source::Failed(Some(message.into())))
        }
    }

    fn replace_source(&mut self, source: Source<B>) -> AfterUnlock<B> {
        AfterUnlock {
            wake: None,
            discarded: Vec::new(),
            replaced: Some(mem::replace(&mut self.source, source)),
        }
    }

    /// Starts reading from the first frame again, with a new reader, if that is possible.
    fn start_reader(&mut self) -> Option<AfterUnlock<B>> {
        if !self.frames.are_complete() || matches!(self.source, Source::Failed(_)) {
            return None;
        }
        self.frames.rewind();
        self.reader += 1;
        self.is_polled = false;
        Some(AfterUnlock {
            wake: self.waiting.take(),
            discarded: Vec::new(),
            replaced: None,
        })
    }

    fn keep_unread_only(&mut self) -> AfterUnlock<B> {
        AfterUnlock {
            wake: None,
            discarded: self.frames.discard_read(),
            replaced: None,
        }
    }

    /// A reader that has not been polled does not report the end, even if all is known to be there:
    /// the body did not when it was sent first, and HTTP clients frame the two differently.
    fn is_end_stream(&self) -> bool {
        let can_come = match &self.source {
            Source::Open { .. } | Source::Failed(Some(_)) => true,
            Source::Ended | Source::Failed(None) => false,
        };
        self.is_polled && !can_come && self.frames.are_read()
    }

    fn size_hint(&self) -> SizeHint {
        let source = match &self.source {
            Source::Open { size, .. } => Some(size),
            Source::Ended | Source::Failed(_) => None,
        };
        if self.is_end_stream() {
            return SizeHint::with_exact(0);
        }
        let (read, unread) = (self.frames.read(), self.frames.unread());
        self.framing.size_of_remaining(read, unread, source)
    }
}

fn lock<T>(buffer: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs under the lock.
    buffer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends a body whose request is being sent again.
#[derive(Debug)]
struct Superseded;

impl fmt::Display for Superseded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("request body abandoned: the request is being sent again")
    }
}

impl StdError for Superseded {}
