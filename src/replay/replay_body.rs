//! A body whose frames are remembered while they are read, and can be read once more.
//!
//! A tape is shared by the body that is sent and by what is kept of it. The source, the user's body,
//! is taken off the tape while it is polled, so that nothing is polled under the lock, and put back
//! with what it brought. One reader at a time has its turn; a replay takes the turn over, and the
//! reader before it gets an error from then on.

#[cfg(not(all(test, interleavings)))]
use std::sync::{Arc, Mutex, MutexGuard};
use std::{
    collections::VecDeque,
    error::Error as StdError,
    fmt,
    pin::Pin,
    sync::PoisonError,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
#[cfg(all(test, interleavings))]
use loom::sync::{Arc, Mutex, MutexGuard};
use pin_project_lite::pin_project;
use tower::BoxError;

pin_project! {
    /// The body that the inner service gets with [`Buffered`](super::Buffered).
    ///
    /// Reports the exact size that the original body reports, and ends as it does. It ends with an
    /// error once the API has rejected the request and a second send goes on with the body.
    ///
    /// # Examples
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http_body::Body;
    /// use http_body_util::Full;
    /// use tower_client_credentials::replay::{Buffered, ReplayPolicy};
    ///
    /// let (body, _kept) = Buffered::new(1024).split(Full::new(Bytes::from("name=Ada")));
    /// assert_eq!(body.size_hint().exact(), Some(8));
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropping it at any time loses nothing that a second send needs.
    pub struct ReplayBody<B>
    where
        B: Body,
    {
        #[pin]
        reader: Reader<B>,
    }
}

pin_project! {
    #[project = ReaderProj]
    enum Reader<B>
    where
        B: Body,
    {
        // All of it is in memory.
        Whole { whole: Whole },
        // It is too long to be remembered.
        Plain { #[pin] body: B },
        // What is read of it is remembered.
        Recorded { recording: Recording<B> },
    }
}

impl<B: Body> ReplayBody<B> {
    pub(super) fn whole(whole: Whole) -> Self {
        let reader = Reader::Whole { whole };
        Self { reader }
    }

    pub(super) fn plain(body: B) -> Self {
        let reader = Reader::Plain { body };
        Self { reader }
    }

    pub(super) fn recorded(recording: Recording<B>) -> Self {
        let reader = Reader::Recorded { recording };
        Self { reader }
    }
}

impl<B> Body for ReplayBody<B>
where
    B: Body<Error: Into<BoxError>>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().reader.project() {
            ReaderProj::Whole { whole } => Poll::Ready(whole.next().map(Ok)),
            ReaderProj::Plain { body } => {
                let frame = ready!(body.poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map(into_bytes).map_err(Into::into)))
            }
            ReaderProj::Recorded { recording } => recording.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.reader {
            Reader::Whole { whole } => whole.is_end(),
            Reader::Plain { body } => body.is_end_stream(),
            Reader::Recorded { recording } => recording.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.reader {
            Reader::Whole { whole } => whole.size_hint(),
            Reader::Plain { body } => body.size_hint(),
            Reader::Recorded { recording } => recording.size_hint(),
        }
    }
}

impl<B: Body> fmt::Debug for ReplayBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reader = match &self.reader {
            Reader::Whole { .. } => "Whole",
            Reader::Plain { .. } => "Plain",
            Reader::Recorded { .. } => "Recorded",
        };
        f.debug_struct("ReplayBody")
            .field("reader", &reader)
            .finish_non_exhaustive()
    }
}

/// How a body looks before it is sent.
pub(super) enum Start<B: Body> {
    /// It says itself that it is longer than the limit.
    TooLong(B),
    /// All of it is there.
    Whole(Whole),
    /// There may be more to come than what is there.
    Streaming(Recording<B>),
}

impl<B> Start<B>
where
    B: Body<Error: Into<BoxError>>,
{
    pub(super) fn of(body: B, limit: usize) -> Self {
        if body.is_end_stream() {
            return Self::Whole(Whole::default());
        }
        if body.size_hint().lower() > limit as u64 {
            return Self::TooLong(body);
        }
        let mut tape = Tape::new(limit, body.size_hint().exact().is_some());
        let mut source = Some(Box::pin(body));
        // A body in memory gives all of it at once, and then needs no tape. One that has nothing yet
        // is polled again by whoever sends it, with a waker of its own.
        let polled = poll(&mut source, &mut Context::from_waker(Waker::noop()));
        tape.record(&mut source, polled);
        if tape.has_ended() {
            Self::Whole(tape.into_whole())
        } else {
            Self::Streaming(Recording::new(tape))
        }
    }
}

/// A body that is complete in memory.
#[derive(Clone, Default)]
pub(super) struct Whole {
    data: Bytes,
    trailers: Option<HeaderMap>,
    is_sized: bool,
}

impl Whole {
    pub(super) fn len(&self) -> usize {
        self.data.len()
    }

    fn is_end(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        unread(self.len() as u64, self.trailers.is_some() && !self.is_sized)
    }

    fn next(&mut self) -> Option<Frame<Bytes>> {
        if self.data.is_empty() {
            return self.trailers.take().map(Frame::trailers);
        }
        Some(Frame::data(std::mem::take(&mut self.data)))
    }
}

/// A reader of a tape.
pub(super) struct Recording<B: Body> {
    tape: Arc<Mutex<Tape<B>>>,
    turn: Turn,
}

/// What is kept of a tape: the way to read it once more.
pub(super) struct Memory<B: Body> {
    tape: Arc<Mutex<Tape<B>>>,
}

/// Whose turn it is to read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    FirstSend,
    Replay,
}

struct Tape<B> {
    frames: VecDeque<Bytes>,
    /// Which of the frames is read next.
    next: usize,
    trailers: Option<HeaderMap>,
    /// The user's body; not here while a reader polls it, and gone when it has ended.
    source: Option<Pin<Box<B>>>,
    end: End,
    /// What the source reported before it was polled.
    source_size: SizeHint,
    /// Whether the body said at its start how long it is.
    is_sized: bool,
    turn: Turn,
    keep: Keep,
    remembered: usize,
    limit: usize,
    /// The reader that waits, to be woken when its turn is over or when the source is back.
    waiting: Option<Waker>,
    /// To be taken and dropped by whoever unlocks: the data may be the user's own memory.
    forgotten: VecDeque<Bytes>,
}

/// What becomes of frames that were read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// They may be read again.
    All,
    /// Nobody will read them again.
    Nothing,
}

/// How far the source has come.
enum End {
    Ahead,
    Reached,
    /// The error goes to whoever reads next.
    Failed(Option<BoxError>),
}

/// What a reader finds on the tape.
enum Found<B> {
    Frame(Frame<Bytes>),
    End,
    Error(BoxError),
    /// The reader has to poll the source.
    Source(Pin<Box<B>>),
    /// The reader before is still polling it.
    Nothing,
}

/// What a poll of the source brought.
enum Brought {
    /// Something that the reader finds on the tape now.
    LookAgain,
    /// An empty frame: worth passing on, not worth remembering.
    Empty,
    Nothing,
}

type Polled = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

impl<B: Body> Recording<B> {
    fn new(tape: Tape<B>) -> Self {
        Self {
            turn: tape.turn,
            tape: Arc::new(Mutex::new(tape)),
        }
    }

    /// What has to be kept for a second send, if there can be one.
    pub(super) fn memory(&self) -> Option<Memory<B>> {
        let can_replay = lock(&self.tape).keep == Keep::All;
        can_replay.then(|| Memory {
            tape: Arc::clone(&self.tape),
        })
    }

    fn is_end_stream(&self) -> bool {
        let tape = lock(&self.tape);
        tape.turn == self.turn && tape.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        let tape = lock(&self.tape);
        if tape.turn == self.turn {
            tape.size_hint()
        } else {
            SizeHint::default()
        }
    }
}

impl<B> Recording<B>
where
    B: Body<Error: Into<BoxError>>,
{
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let found = lock(&self.tape).read(self.turn, cx);
            let source = match found {
                Found::Frame(frame) => return Poll::Ready(Some(Ok(frame))),
                Found::Error(error) => return Poll::Ready(Some(Err(error))),
                Found::End => return Poll::Ready(None),
                Found::Nothing => return Poll::Pending,
                Found::Source(source) => source,
            };

            let mut loan = Loan {
                tape: &self.tape,
                source: Some(source),
            };
            let polled = poll(&mut loan.source, cx);
            match loan.give_back(polled, self.turn) {
                Brought::LookAgain => {}
                Brought::Empty => return Poll::Ready(Some(Ok(Frame::data(Bytes::new())))),
                Brought::Nothing => return Poll::Pending,
            }
        }
    }
}

/// The source while a reader polls it.
struct Loan<'a, B: Body> {
    tape: &'a Mutex<Tape<B>>,
    source: Option<Pin<Box<B>>>,
}

impl<B: Body> Loan<'_, B> {
    fn give_back(mut self, polled: Polled, turn: Turn) -> Brought {
        let (brought, waiting, forgotten) = {
            let mut tape = lock(self.tape);
            let brought = tape.record(&mut self.source, polled);
            let forgotten = std::mem::take(&mut tape.forgotten);
            if tape.turn == turn {
                (brought, None, forgotten)
            } else {
                // The turn was taken over meanwhile, and the next reader waits for the source.
                (Brought::LookAgain, tape.waiting.take(), forgotten)
            }
        };
        // After unlocking: a source that has ended is the user's to drop, a waker may poll us.
        drop(forgotten);
        self.source = None;
        waiting.into_iter().for_each(Waker::wake);
        brought
    }
}

impl<B: Body> Drop for Loan<'_, B> {
    /// The source panicked: whoever reads next gets an error rather than nothing for ever.
    fn drop(&mut self) {
        if self.source.is_some() {
            let waiting = {
                let mut tape = lock(self.tape);
                tape.end = End::Failed(Some("the body panicked while it was read".into()));
                tape.waiting.take()
            };
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}

impl<B: Body> Memory<B> {
    /// Takes the turn over; `None` if the body cannot be read from its start any more.
    pub(super) fn replay(&self) -> Option<Recording<B>> {
        let waiting = {
            let mut tape = lock(&self.tape);
            if tape.keep == Keep::Nothing || matches!(tape.end, End::Failed(_)) {
                return None;
            }
            tape.turn = Turn::Replay;
            tape.keep = Keep::Nothing;
            tape.next = 0;
            tape.waiting.take()
        };
        // After unlocking. The first upload learns that it is over.
        waiting.into_iter().for_each(Waker::wake);
        Some(Recording {
            tape: Arc::clone(&self.tape),
            turn: Turn::Replay,
        })
    }
}

impl<B: Body> Drop for Memory<B> {
    /// The verdict is there: nothing has to be remembered any more.
    fn drop(&mut self) {
        let forgotten = {
            let mut tape = lock(&self.tape);
            tape.forget();
            std::mem::take(&mut tape.forgotten)
        };
        drop(forgotten);
    }
}

impl<B: Body> Tape<B> {
    fn new(limit: usize, is_sized: bool) -> Self {
        Self {
            is_sized,
            frames: VecDeque::new(),
            next: 0,
            trailers: None,
            source: None,
            end: End::Ahead,
            source_size: SizeHint::default(),
            turn: Turn::FirstSend,
            keep: Keep::All,
            remembered: 0,
            limit,
            waiting: None,
            forgotten: VecDeque::new(),
        }
    }

    /// Whether the source has nothing more than what was read.
    fn has_ended(&self) -> bool {
        match &self.end {
            End::Ahead => self.source.as_ref().is_some_and(Body::is_end_stream),
            End::Reached => true,
            End::Failed(error) => error.is_none(),
        }
    }

    /// What was read at the start.
    fn into_whole(mut self) -> Whole {
        Whole {
            data: self.frames.pop_front().unwrap_or_default(),
            trailers: self.trailers.take(),
            is_sized: self.is_sized,
        }
    }

    /// What the reader finds whose turn it says it is.
    fn read(&mut self, turn: Turn, cx: &Context<'_>) -> Found<B> {
        if self.turn != turn {
            return Found::Error(TakenOver.into());
        }
        if let Some(data) = self.next_data() {
            return Found::Frame(Frame::data(data));
        }
        match &mut self.end {
            End::Failed(error) => error.take().map_or(Found::End, Found::Error),
            End::Reached => match self.next_trailers() {
                Some(trailers) => Found::Frame(Frame::trailers(trailers)),
                None => Found::End,
            },
            End::Ahead => {
                self.waiting = Some(cx.waker().clone());
                let Some(source) = self.source.take() else {
                    return Found::Nothing;
                };
                self.source_size = source.size_hint();
                Found::Source(source)
            }
        }
    }

    /// Takes the source back with what it brought; leaves it to the caller once it has ended.
    fn record(&mut self, source: &mut Option<Pin<Box<B>>>, polled: Polled) -> Brought {
        let Poll::Ready(frame) = polled else {
            self.source = source.take();
            return Brought::Nothing;
        };
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                self.end = End::Failed(Some(error));
                return Brought::LookAgain;
            }
            None => {
                self.end = End::Reached;
                return Brought::LookAgain;
            }
        };
        match frame.into_data() {
            Ok(data) => {
                self.source = source.take();
                if data.is_empty() {
                    return Brought::Empty;
                }
                self.remember(data);
            }
            // Trailers are the last frame (RFC 9110 §6.5).
            Err(frame) => {
                self.trailers = frame.into_trailers().ok();
                self.end = End::Reached;
            }
        }
        Brought::LookAgain
    }

    fn remember(&mut self, data: Bytes) {
        self.remembered = self.remembered.saturating_add(data.len());
        self.frames.push_back(data);
        if self.remembered > self.limit {
            self.forget();
        }
    }

    /// Frees what was read, now and from now on.
    fn forget(&mut self) {
        self.keep = Keep::Nothing;
        if self.next > self.frames.len() {
            self.trailers = None;
        }
        let unread = self.frames.split_off(self.next.min(self.frames.len()));
        let read = std::mem::replace(&mut self.frames, unread);
        self.forgotten.extend(read);
        self.next = 0;
    }

    fn next_data(&mut self) -> Option<Bytes> {
        match self.keep {
            Keep::Nothing => self.frames.pop_front(),
            Keep::All => {
                let data = self.frames.get(self.next)?.clone();
                self.next += 1;
                Some(data)
            }
        }
    }

    /// The trailers count as one more frame behind the others.
    fn next_trailers(&mut self) -> Option<HeaderMap> {
        match self.keep {
            Keep::Nothing => self.trailers.take(),
            Keep::All if self.next > self.frames.len() => None,
            Keep::All => {
                self.next += 1;
                self.trailers.clone()
            }
        }
    }

    fn is_end(&self) -> bool {
        self.has_ended() && !self.has_unread_trailers() && self.next >= self.frames.len()
    }

    fn has_unread_trailers(&self) -> bool {
        self.trailers.is_some() && self.next <= self.frames.len()
    }

    fn size_hint(&self) -> SizeHint {
        let data: usize = self.frames.iter().skip(self.next).map(Bytes::len).sum();
        let data = data as u64;
        match (&self.end, &self.source) {
            (End::Reached | End::Failed(_), _) => {
                unread(data, self.has_unread_trailers() && !self.is_sized)
            }
            (End::Ahead, Some(source)) => plus(&source.size_hint(), data),
            (End::Ahead, None) => plus(&self.source_size, data),
        }
    }
}

/// The size of data that are known to the end.
///
/// HTTP/1.1 sends trailers with a body of unknown length only, so a body that came without one must
/// not get one from being remembered.
fn unread(data: u64, needs_trailers: bool) -> SizeHint {
    let mut hint = SizeHint::with_exact(data);
    if needs_trailers {
        hint = SizeHint::new();
        hint.set_lower(data);
    }
    hint
}

fn plus(hint: &SizeHint, more: u64) -> SizeHint {
    let mut sum = SizeHint::new();
    sum.set_lower(hint.lower().saturating_add(more));
    if let Some(upper) = hint.upper().and_then(|upper| upper.checked_add(more)) {
        sum.set_upper(upper);
    }
    sum
}

/// One poll of the source, in the terms of a [`ReplayBody`].
fn poll<B>(source: &mut Option<Pin<Box<B>>>, cx: &mut Context<'_>) -> Polled
where
    B: Body<Error: Into<BoxError>>,
{
    let Some(source) = source else {
        return Poll::Ready(None);
    };
    let frame = ready!(source.as_mut().poll_frame(cx));
    Poll::Ready(frame.map(|frame| frame.map(into_bytes).map_err(Into::into)))
}

/// Copies nothing where the data are `Bytes` already.
fn into_bytes<D: Buf>(frame: Frame<D>) -> Frame<Bytes> {
    frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))
}

fn lock<T>(tape: &Mutex<T>) -> MutexGuard<'_, T> {
    // No method leaves the tape half-changed when a size hint of the user's panics.
    tape.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The error that ends a body whose request is sent again.
#[derive(Debug)]
struct TakenOver;

impl fmt::Display for TakenOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the API rejected the token, and a second send goes on with the body")
    }
}

impl StdError for TakenOver {}
