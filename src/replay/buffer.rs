//! The frames of a streaming body, kept until the API has accepted the request.
//!
//! A buffer is shared by the readers, one for each send, and by the handle that is kept for the
//! next send. Only the newest reader reads: it gets the stored frames first, then polls the source.
//! Older readers get an error.
//!
//! Nothing but the buffer's own code runs under its lock. A reader takes the source out of the
//! buffer to poll it, and frames and wakers are dropped and woken after unlocking, because all of
//! them may run code of the caller that uses the buffer.

#[cfg(not(all(test, interleavings)))]
use std::sync::{Arc, Mutex, MutexGuard};
use std::{
    collections::VecDeque,
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
        let mut buffer = Buffer {
            frames: VecDeque::new(),
            position: 0,
            source: first_poll.source,
            framing,
            retention: Retention::AllFrames,
            bytes_read: 0,
            limit,
            reader: 0,
            waiting: None,
        };
        if let Some(frame) = first_poll.frame {
            drop(buffer.push(frame));
        }
        Self {
            number: buffer.reader,
            buffer: Arc::new(Mutex::new(buffer)),
        }
    }

    /// Keeps the buffer for another reader, unless the first frame exceeds the limit already.
    pub(super) fn keep(&self) -> Option<KeptBuffer<B>> {
        let retention = lock(&self.buffer).retention;
        (retention == Retention::AllFrames).then(|| KeptBuffer {
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
                Outcome::Progress => {}
                Outcome::EmptyFrame => return Poll::Ready(Some(Ok(Frame::data(Bytes::new())))),
                // If a newer reader started meanwhile, it has woken this one.
                Outcome::Pending => return Poll::Pending,
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
    fn poll_source(&self, body: Pin<Box<B>>, cx: &mut Context<'_>) -> Outcome {
        let guard = PanicGuard(&self.buffer);
        let poll = SourcePoll::new(body, cx);
        mem::forget(guard);

        let outcome = poll.outcome;
        let after_unlock = lock(&self.buffer).store(poll, self.number);
        after_unlock.run();
        outcome
    }
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
    /// The stored frames, oldest first.
    frames: VecDeque<StoredFrame>,
    /// Index of the frame that the newest reader reads next.
    position: usize,
    source: Source<B>,
    framing: Framing,
    retention: Retention,
    /// Bytes of data that the source has returned.
    bytes_read: usize,
    limit: usize,
    /// Number of the newest reader, the only one that may read.
    reader: usize,
    /// The newest reader's waker: woken when another reader has put the source back, and when the
    /// reader is superseded.
    waiting: Option<Waker>,
}

/// Which frames a buffer keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Retention {
    /// All frames, because another reader may start.
    AllFrames,
    /// Frames that the newest reader has not read. Its position stays at 0.
    UnreadOnly,
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
struct AfterUnlock {
    wake: Option<Waker>,
    discarded: Vec<StoredFrame>,
}

impl AfterUnlock {
    fn run(self) {
        self.wake.into_iter().for_each(Waker::wake);
        drop(self.discarded);
    }
}

impl<B> Buffer<B> {
    /// Returns what the reader gets next, and leaves its waker if it has to wait.
    fn read(&mut self, reader: usize, waker: &mut Option<Waker>) -> Read<B> {
        if self.reader != reader {
            return Read::Error(Superseded.into());
        }
        if let Some(frame) = self.next_frame() {
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

    fn next_frame(&mut self) -> Option<StoredFrame> {
        match self.retention {
            Retention::UnreadOnly => self.frames.pop_front(),
            Retention::AllFrames => {
                let frame = self.frames.get(self.position)?.clone();
                self.position += 1;
                Some(frame)
            }
        }
    }

    /// Stores what a reader's poll of the source returned.
    fn store(&mut self, poll: SourcePoll<B>, reader: usize) -> AfterUnlock {
        self.source = poll.source;
        let discarded = poll.frame.map_or_else(Vec::new, |frame| self.push(frame));
        // The reader that polled goes on by itself; a newer one waits for the source.
        let is_superseded = self.reader != reader;
        AfterUnlock {
            wake: is_superseded.then(|| self.waiting.take()).flatten(),
            discarded,
        }
    }

    /// Adds a frame. Beyond the limit, returns the frames that are no longer needed.
    fn push(&mut self, frame: StoredFrame) -> Vec<StoredFrame> {
        self.bytes_read = self.bytes_read.saturating_add(frame.len());
        self.frames.push_back(frame);
        if self.bytes_read > self.limit {
            self.discard_read()
        } else {
            Vec::new()
        }
    }

    fn fail(&mut self, message: &'static str) -> AfterUnlock {
        self.source = Source::Failed(Some(message.into()));
        AfterUnlock {
            wake: self.waiting.take(),
            discarded: Vec::new(),
        }
    }

    /// Starts reading from the first frame again, with a new reader, if that is possible.
    fn start_reader(&mut self) -> Option<AfterUnlock> {
        if self.retention == Retention::UnreadOnly || matches!(self.source, Source::Failed(_)) {
            return None;
        }
        self.reader += 1;
        self.position = 0;
        Some(AfterUnlock {
            wake: self.waiting.take(),
            discarded: Vec::new(),
        })
    }

    fn keep_unread_only(&mut self) -> AfterUnlock {
        AfterUnlock {
            wake: None,
            discarded: self.discard_read(),
        }
    }

    /// Stops keeping frames once they are read, and takes out those that were.
    fn discard_read(&mut self) -> Vec<StoredFrame> {
        self.retention = Retention::UnreadOnly;
        let read = mem::take(&mut self.position);
        self.frames.drain(..read).collect()
    }

    fn is_end_stream(&self) -> bool {
        let can_come = match &self.source {
            Source::Open { .. } | Source::Failed(Some(_)) => true,
            Source::Ended | Source::Failed(None) => false,
        };
        !can_come && self.position == self.frames.len()
    }

    fn size_hint(&self) -> SizeHint {
        let unread = || self.frames.range(self.position..);
        let data: usize = unread().map(StoredFrame::len).sum();
        let data = data as u64;
        match &self.source {
            Source::Open { size, .. } => add(size, data),
            Source::Ended | Source::Failed(_) => self
                .framing
                .size_of_remaining(data, unread().any(StoredFrame::is_trailers)),
        }
    }
}

fn add(hint: &SizeHint, data: u64) -> SizeHint {
    let mut sum = SizeHint::new();
    sum.set_lower(hint.lower().saturating_add(data));
    if let Some(upper) = hint.upper().and_then(|upper| upper.checked_add(data)) {
        sum.set_upper(upper);
    }
    sum
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
