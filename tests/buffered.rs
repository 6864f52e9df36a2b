//! Streaming bodies: the frames that `Buffered` keeps while they are sent, and the replays that
//! continue with the rest.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, mpsc},
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use proptest::prelude::*;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, BoxError, ClientCredentialsLayer, NotReplayed, TokenOutcome, TokenRequest,
    replay::{Buffered, KeptFrames, ReplayBody, ReplayPolicy},
};

/// A body that follows a script.
#[derive(Debug, Default)]
struct Script {
    steps: VecDeque<Step>,
    /// Whether it reports its exact size and its end.
    is_sized: bool,
    /// The waker of the last poll.
    waker: Arc<Mutex<Option<Waker>>>,
}

#[derive(Clone, Debug)]
enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    Pending,
    Error,
    Panic,
}

fn script(steps: impl IntoIterator<Item = Step>) -> Script {
    Script {
        steps: steps.into_iter().collect(),
        ..Script::default()
    }
}

fn data(text: &'static str) -> Step {
    Step::Data(Bytes::from_static(text.as_bytes()))
}

fn trailers() -> HeaderMap {
    [("x-hash".parse().unwrap(), "7".parse().unwrap())]
        .into_iter()
        .collect()
}

impl Body for Script {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        *self.waker.lock().unwrap() = Some(cx.waker().clone());
        Poll::Ready(match self.steps.pop_front() {
            None => None,
            Some(Step::Data(data)) => Some(Ok(Frame::data(data))),
            Some(Step::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Step::Error) => {
                self.steps.clear();
                Some(Err("the file is gone".into()))
            }
            Some(Step::Panic) => panic!("the body panics on purpose"),
            Some(Step::Pending) => return Poll::Pending,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_sized && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        if !self.is_sized {
            return SizeHint::default();
        }
        let lengths = self.steps.iter().map(|step| match step {
            Step::Data(data) => data.len() as u64,
            _ => 0,
        });
        SizeHint::with_exact(lengths.sum())
    }
}

const LIMIT: usize = 1024;

fn split<B>(body: B) -> (ReplayBody<B>, Option<KeptFrames<B>>)
where
    B: Body<Error: Into<BoxError>>,
{
    Buffered::new(LIMIT).split(body)
}

fn restore<B>(kept: Option<KeptFrames<B>>) -> Option<ReplayBody<B>>
where
    B: Body<Error: Into<BoxError>>,
{
    Buffered::new(LIMIT).restore(&mut kept?)
}

/// Reads to the end, or until the body is pending.
fn read<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> (Bytes, Option<HeaderMap>) {
    let mut read = Vec::new();
    let mut trailers = None;
    while let Some(Some(frame)) = next(body) {
        match frame
            .unwrap_or_else(|_| panic!("the body fails"))
            .into_data()
        {
            Ok(data) => read.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    (read.into(), trailers)
}

type NextFrame<B> = Option<Result<Frame<<B as Body>::Data>, <B as Body>::Error>>;

/// One poll; `None` if it is pending.
fn next<B: Body + Unpin>(body: &mut B) -> Option<NextFrame<B>> {
    body.frame().now_or_never()
}

fn is_superseded<B: Body<Error = BoxError> + Unpin>(body: &mut B) -> bool {
    matches!(next(body), Some(Some(Err(error))) if error.to_string().contains("is being sent again"))
}

#[test]
fn replay_sends_the_same_frames_and_trailers() {
    let (mut first, kept) = split(script([data("ab"), data("cd"), Step::Trailers(trailers())]));
    assert_eq!(read(&mut first), ("abcd".into(), Some(trailers())));

    let mut second = restore(kept).unwrap();
    assert_eq!(read(&mut second), ("abcd".into(), Some(trailers())));
}

/// The replay layer of a well-known proxy once duplicated the first chunk here.
#[test]
fn rejection_before_the_first_poll_duplicates_no_frame() {
    for is_sized in [false, true] {
        let body = Script {
            is_sized,
            ..script([data("ab"), data("cd")])
        };
        let (mut first, kept) = split(body);

        let mut second = restore(kept).unwrap();

        assert!(is_superseded(&mut first));
        assert_eq!(read(&mut second).0, "abcd");
    }
}

#[test]
fn replay_continues_where_the_first_send_stopped() {
    let (mut first, kept) = split(script([data("ab"), data("cd"), data("ef")]));
    next(&mut first);
    next(&mut first);

    let mut second = restore(kept).unwrap();

    assert!(is_superseded(&mut first));
    assert_eq!(read(&mut second).0, "abcdef");
}

#[test]
fn first_body_can_be_dropped_before_or_after_the_replay_starts() {
    for is_dropped_first in [true, false] {
        let (mut first, kept) = split(script([data("ab"), data("cd")]));
        next(&mut first);
        let mut first = Some(first);

        if is_dropped_first {
            first = None;
        }
        let mut second = restore(kept).unwrap();
        drop(first);

        assert_eq!(read(&mut second).0, "abcd");
    }
}

#[test]
fn first_body_stays_superseded_when_the_replay_is_dropped() {
    let (mut first, kept) = split(script([data("ab"), data("cd")]));
    let mut second = restore(kept).unwrap();
    next(&mut second);

    drop(second);

    assert!(is_superseded(&mut first));
}

#[test]
fn waiting_first_body_is_woken_with_an_error_when_a_replay_starts() {
    let (mut first, kept) = split(script([data("ab"), Step::Pending, data("cd")]));
    next(&mut first);
    let mut waiting = tokio_test::task::spawn(first.frame());
    assert!(waiting.poll().is_pending());

    let mut second = restore(kept).unwrap();

    assert!(waiting.is_woken());
    assert!(waiting.expect_error().contains("is being sent again"));
    assert_eq!(read(&mut second).0, "abcd");
}

trait ExpectError {
    fn expect_error(&mut self) -> String;
}

impl<F, T> ExpectError for tokio_test::task::Spawn<F>
where
    F: Future<Output = Option<Result<T, BoxError>>>,
{
    fn expect_error(&mut self) -> String {
        match self.poll() {
            Poll::Ready(Some(Err(error))) => error.to_string(),
            _ => panic!("the body does not fail"),
        }
    }
}

/// A body whose second poll blocks until the test decides how it returns.
struct Blocking {
    entered: mpsc::Sender<()>,
    exit: mpsc::Receiver<Exit>,
    polls: usize,
}

enum Exit {
    Frame,
    Panic,
}

impl Body for Blocking {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.polls += 1;
        if self.polls == 2 {
            self.entered.send(()).unwrap();
            if let Exit::Panic = self.exit.recv().unwrap() {
                panic!("the body panics on purpose");
            }
        }
        let frame = (self.polls <= 3).then(|| Ok(Frame::data(Bytes::from("x"))));
        Poll::Ready(frame)
    }
}

/// A first body that another thread reads, and whose source is being polled.
struct BlockedUpload {
    /// Returns whether the second read says that the body was superseded.
    thread: std::thread::JoinHandle<bool>,
    exit: mpsc::Sender<Exit>,
    kept: KeptFrames<Blocking>,
}

fn blocked_upload() -> BlockedUpload {
    let (entered, is_entered) = mpsc::channel();
    let (exit_sender, exit) = mpsc::channel();
    let (mut first, kept) = split(Blocking {
        entered,
        exit,
        polls: 0,
    });
    let thread = std::thread::spawn(move || {
        next(&mut first);
        is_superseded(&mut first)
    });
    is_entered.recv().unwrap();
    BlockedUpload {
        thread,
        exit: exit_sender,
        kept: kept.unwrap(),
    }
}

#[test]
fn replay_waits_while_the_first_body_polls_the_source() {
    let upload = blocked_upload();

    let mut second = restore(Some(upload.kept)).unwrap();
    next(&mut second);
    let mut waiting = tokio_test::task::spawn(second.collect());
    assert!(waiting.poll().is_pending());
    upload.exit.send(Exit::Frame).unwrap();

    assert!(upload.thread.join().unwrap());
    assert!(waiting.is_woken());
    let Poll::Ready(Ok(rest)) = waiting.poll() else {
        panic!("the replay hangs")
    };
    assert_eq!(rest.to_bytes(), "xx");
}

#[test]
fn second_replay_waits_while_the_first_body_polls_the_source() {
    let mut upload = blocked_upload();
    let policy = Buffered::new(LIMIT);
    let mut second = policy.restore(&mut upload.kept).unwrap();
    next(&mut second);
    let mut superseded = tokio_test::task::spawn(second.frame());
    assert!(superseded.poll().is_pending());

    let mut third = policy.restore(&mut upload.kept).unwrap();
    assert!(superseded.is_woken());
    assert!(superseded.expect_error().contains("is being sent again"));
    next(&mut third);
    let mut waiting = tokio_test::task::spawn(third.collect());
    assert!(waiting.poll().is_pending());
    upload.exit.send(Exit::Frame).unwrap();

    assert!(upload.thread.join().unwrap());
    assert!(waiting.is_woken());
    let Poll::Ready(Ok(rest)) = waiting.poll() else {
        panic!("the second replay hangs")
    };
    assert_eq!(rest.to_bytes(), "xx");
}

#[test]
fn replay_that_waits_for_a_panicking_source_is_woken_with_an_error() {
    let upload = blocked_upload();
    let mut second = restore(Some(upload.kept)).unwrap();
    next(&mut second);
    let mut waiting = tokio_test::task::spawn(second.frame());
    assert!(waiting.poll().is_pending());

    upload.exit.send(Exit::Panic).unwrap();

    assert!(upload.thread.join().is_err());
    assert!(waiting.is_woken());
    assert!(waiting.expect_error().contains("panicked"));
}

#[test]
fn error_reaches_the_first_body_and_prevents_a_replay() {
    let (mut first, kept) = split(script([data("ab"), Step::Error]));
    next(&mut first);
    let Some(Some(Err(error))) = next(&mut first) else {
        panic!("the error is lost");
    };
    assert_eq!(error.to_string(), "the file is gone");

    assert!(restore(kept).is_none());
}

#[test]
fn error_in_the_rest_reaches_the_replay() {
    let (mut first, kept) = split(script([data("ab"), data("cd"), Step::Error]));
    next(&mut first);

    let mut second = restore(kept).unwrap();

    assert!(next(&mut second).is_some() && next(&mut second).is_some());
    assert!(
        matches!(next(&mut second), Some(Some(Err(error))) if error.to_string() == "the file is gone")
    );
    assert!(matches!(next(&mut second), Some(None)));
}

#[test]
fn error_at_the_start_is_not_lost() {
    let (mut first, kept) = split(script([Step::Error]));

    assert!(matches!(next(&mut first), Some(Some(Err(_)))));
    assert!(restore(kept).is_none());
}

#[test]
fn panicking_source_fails_the_body_and_prevents_a_replay() {
    let (mut first, kept) = split(script([data("ab"), Step::Panic]));
    next(&mut first);
    let panicked =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| next(&mut first).is_some()));
    assert!(panicked.is_err());

    assert!(restore(kept).is_none());
    assert!(matches!(next(&mut first), Some(Some(Err(_)))));
}

#[test]
fn body_of_trailers_alone_is_replayed() {
    let (mut first, kept) = split(script([Step::Trailers(trailers())]));
    assert_eq!(read(&mut first), (Bytes::new(), Some(trailers())));

    let mut second = restore(kept).unwrap();
    assert_eq!(read(&mut second), (Bytes::new(), Some(trailers())));
    assert!(second.is_end_stream());
}

/// A body that reports what a function says.
struct Reporting {
    script: Script,
    report: Report,
}

type Report = fn(&Script) -> Framing;

/// What decides how HTTP clients frame a body: whether it has ended, and its exact size.
type Framing = (bool, Option<u64>);

fn framing(body: &impl Body) -> Framing {
    (body.is_end_stream(), body.size_hint().exact())
}

impl Body for Reporting {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.script).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        (self.report)(&self.script).0
    }

    fn size_hint(&self) -> SizeHint {
        let size = (self.report)(&self.script).1;
        size.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Whatever is in memory when a replay starts, and however much of the body was read before.
#[test]
fn every_send_is_framed_as_the_original_body() {
    let reports: [(&str, Report); 6] = [
        ("nothing", |_| (false, None)),
        ("its end", |script| (script.steps.is_empty(), None)),
        ("its size", |script| (false, script.size_hint().exact())),
        ("its size and its end", |script| {
            (script.steps.is_empty(), script.size_hint().exact())
        }),
        ("a larger size than it has", |_| (false, Some(10))),
        // A body that learns its size when it is polled.
        ("its size once it is polled", |script| {
            let is_polled = script.waker.lock().unwrap().is_some();
            (false, script.size_hint().exact().filter(|_| is_polled))
        }),
    ];
    let bodies = [
        vec![],
        vec![Step::Pending],
        vec![data("ab")],
        vec![data("")],
        vec![data("ab"), data("cd")],
        vec![Step::Pending, data("ab"), data("cd")],
        vec![data("ab"), Step::Trailers(trailers())],
        vec![Step::Trailers(trailers())],
    ];
    for (name, report) in reports {
        for steps in &bodies {
            for polls in 0..5 {
                let script = Script {
                    // For the size of a script; only the report is visible.
                    is_sized: true,
                    ..script(steps.clone())
                };
                let body = Reporting { script, report };
                let original = framing(&body);
                let case = format!("{steps:?}, {polls} polls, reports {name}");

                let (mut first, kept) = split(body);
                assert_eq!(framing(&first), original, "first send: {case}");
                let mut kept = kept.unwrap();
                for send in ["first", "second"] {
                    for _ in 0..polls {
                        let _ = next(&mut first);
                    }
                    first = Buffered::new(LIMIT).restore(&mut kept).unwrap();
                    assert_eq!(framing(&first), original, "{send} replay: {case}");
                }
            }
        }
    }
}

#[test]
fn reader_reports_the_end_once_it_has_read_everything() {
    for steps in [
        vec![],
        vec![Step::Pending],
        vec![data("ab")],
        vec![data("ab"), data("cd")],
    ] {
        let (mut first, kept) = split(script(steps.clone()));
        while !matches!(next(&mut first), Some(None)) {}
        assert_eq!(framing(&first), (true, Some(0)), "{steps:?}");

        let mut second = restore(kept).unwrap();
        read(&mut second);
        assert_eq!(framing(&second), (true, Some(0)), "{steps:?}");
    }
}

/// HTTP/1.1 drops the trailers of a body whose length is known.
#[test]
fn buffering_gives_a_body_with_trailers_no_exact_size() {
    let bodies = [
        vec![Step::Trailers(trailers())],
        vec![data("ab"), Step::Trailers(trailers())],
        vec![data("ab"), data("cd"), Step::Trailers(trailers())],
    ];
    for steps in bodies {
        let (mut first, kept) = split(script(steps));
        assert_eq!(first.size_hint().exact(), None);
        read(&mut first);

        let mut second = restore(kept).unwrap();

        assert_eq!(second.size_hint().exact(), None);
        assert_eq!(read(&mut second).1, Some(trailers()));
        assert_eq!(second.size_hint().exact(), Some(0));
    }
}

#[test]
fn empty_bodies_are_replayed() {
    let (mut first, kept) = split(Empty::<Bytes>::new());
    assert!(first.is_end_stream());
    assert_eq!(first.size_hint().exact(), Some(0));
    assert!(matches!(next(&mut first), Some(None)));

    let mut second = restore(kept).unwrap();
    assert!(second.is_end_stream());
    assert!(matches!(next(&mut second), Some(None)));
}

#[test]
fn body_of_one_byte_over_the_limit_is_sent_but_not_replayed() {
    let chunk = Bytes::from(vec![1; LIMIT / 2]);
    for (more, can_replay) in [(0, true), (1, false)] {
        for is_sized in [false, true] {
            let steps = [
                Step::Data(chunk.clone()),
                Step::Data(chunk.clone()),
                Step::Data(Bytes::from(vec![2; more])),
            ];
            let body = Script {
                is_sized,
                ..script(steps)
            };
            let (mut first, kept) = split(body);

            assert_eq!(read(&mut first).0.len(), LIMIT + more);
            assert_eq!(restore(kept).is_some(), can_replay, "{more} more");
        }
    }
}

#[test]
fn body_in_memory_of_exactly_the_limit_is_replayed() {
    let (mut first, kept) = split(Full::new(Bytes::from(vec![1; LIMIT])));
    assert_eq!(read(&mut first).0.len(), LIMIT);

    let mut second = restore(kept).unwrap();
    assert_eq!(read(&mut second).0.len(), LIMIT);
}

#[test]
fn limit_does_not_count_what_the_first_body_has_not_read() {
    let (mut first, kept) = split(script([
        Step::Data(Bytes::from(vec![1; LIMIT])),
        Step::Data(Bytes::from(vec![2; LIMIT])),
    ]));
    next(&mut first);

    // The rest exceeds the limit, but none of it has been sent, so none has to be kept.
    let mut second = restore(kept).unwrap();

    assert_eq!(read(&mut second).0.len(), 2 * LIMIT);
}

#[test]
fn body_that_reports_a_size_over_the_limit_is_passed_through() {
    let (mut first, kept) = split(Full::new(Bytes::from(vec![1; LIMIT + 1])));

    assert!(kept.is_none());
    assert_eq!(first.size_hint().exact(), Some(LIMIT as u64 + 1));
    assert_eq!(read(&mut first).0.len(), LIMIT + 1);
    assert!(first.is_end_stream());
}

/// A frame that is large enough for its memory to be shared rather than copied.
const LARGE: usize = 8 * 1024;

fn split_large<B>(body: B) -> (ReplayBody<B>, Option<KeptFrames<B>>)
where
    B: Body<Error: Into<BoxError>>,
{
    Buffered::new(4 * LARGE).split(body)
}

/// Reads the next frame, which is data.
fn next_data<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> Bytes {
    let Some(Some(Ok(frame))) = next(body) else {
        panic!("there is no frame")
    };
    frame.into_data().unwrap_or_default()
}

#[test]
fn large_frames_share_their_memory_with_the_replay_and_smaller_ones_are_copied() {
    for (size, is_shared) in [(LARGE, true), (LARGE - 1, false), (1, false)] {
        let chunk = Bytes::from(vec![7; size]);
        for (steps, is_sized) in [
            // In memory, first of several frames, and a later frame.
            (vec![Step::Data(chunk.clone())], true),
            (vec![Step::Data(chunk.clone()), data("more")], true),
            (vec![Step::Data(chunk.clone()), data("more")], false),
            (vec![Step::Pending, Step::Data(chunk.clone())], false),
        ] {
            let body = Script {
                is_sized,
                ..script(steps)
            };
            let (mut first, kept) = split_large(body);
            while next(&mut first).is_none_or(|frame| frame.is_some()) {}
            drop(first);

            let second = next_data(&mut restore(kept).unwrap());

            assert!(second.starts_with(&chunk));
            assert_eq!(second.as_ptr() == chunk.as_ptr(), is_shared, "{size} bytes");
        }
    }
}

#[test]
fn first_send_gets_the_frames_of_the_source() {
    let chunks = [1, 100, LARGE].map(|size| Bytes::from(vec![7; size]));
    // Without the first step, one frame would be read before the first send.
    let steps = [Step::Pending].into_iter();
    let steps = steps.chain(chunks.clone().map(Step::Data));
    let (mut first, _kept) = split_large(script(steps));

    for chunk in chunks {
        let frame = next_data(&mut first);
        assert_eq!((frame.as_ptr(), frame.len()), (chunk.as_ptr(), chunk.len()));
    }
}

#[test]
fn replay_sends_small_frames_together_and_in_order() {
    let large = Bytes::from(vec![b'X'; LARGE]);
    let (mut first, kept) = split_large(script([
        data("ab"),
        data("cd"),
        data("ef"),
        Step::Data(large.clone()),
        data("gh"),
        data("ij"),
        Step::Trailers(trailers()),
    ]));
    read(&mut first);

    let mut second = restore(kept).unwrap();

    // The first frame was read before the first send.
    for expected in ["ab".into(), "cdef".into(), large, "ghij".into()] {
        assert_eq!(next_data(&mut second), expected);
    }
    assert_eq!(read(&mut second), (Bytes::new(), Some(trailers())));
}

#[test]
fn sent_frames_are_freed_when_the_kept_frames_are_dropped() {
    let chunk = Bytes::from(vec![7; LARGE]);
    let (mut first, kept) = split_large(script([Step::Data(chunk.clone()), data("more")]));
    drop(next(&mut first));
    assert!(!chunk.is_unique(), "a replay would lack the first chunk");

    drop(kept);

    assert!(chunk.is_unique(), "the buffer still holds the first chunk");
    assert_eq!(read(&mut first).0, "more");
}

#[test]
fn second_replay_continues_where_the_first_replay_stopped() {
    let steps = [
        data("ab"),
        data("cd"),
        data("ef"),
        Step::Trailers(trailers()),
    ];
    let (mut first, kept) = split(script(steps));
    let mut kept = kept.unwrap();
    next(&mut first);
    let mut second = Buffered::new(LIMIT).restore(&mut kept).unwrap();
    next(&mut second);
    next(&mut second);

    let mut third = Buffered::new(LIMIT).restore(&mut kept).unwrap();

    assert!(is_superseded(&mut first));
    assert!(is_superseded(&mut second));
    assert_eq!(second.size_hint().exact(), None);
    assert_eq!(read(&mut third), ("abcdef".into(), Some(trailers())));
    assert!(third.is_end_stream());
}

#[test]
fn second_replay_sends_what_the_first_replay_sent_to_its_end() {
    let (first, kept) = split(script([data("ab"), data("cd"), Step::Trailers(trailers())]));
    let mut kept = kept.unwrap();
    drop(first);

    for _ in 0..2 {
        let mut replay = Buffered::new(LIMIT).restore(&mut kept).unwrap();
        assert_eq!(read(&mut replay), ("abcd".into(), Some(trailers())));
    }
}

#[test]
fn body_in_memory_can_be_replayed_twice() {
    let (mut first, kept) = split(Full::new(Bytes::from("abcd")));
    let mut kept = kept.unwrap();
    assert_eq!(read(&mut first).0, "abcd");

    for _ in 0..2 {
        let mut replay = Buffered::new(LIMIT).restore(&mut kept).unwrap();
        assert_eq!(replay.size_hint().exact(), Some(4));
        assert_eq!(read(&mut replay).0, "abcd");
    }
}

#[test]
fn replay_that_exceeds_the_limit_is_sent_but_not_replayed() {
    let (mut first, kept) = split(script([
        Step::Data(Bytes::from(vec![1; LIMIT])),
        Step::Data(Bytes::from(vec![2; LIMIT])),
    ]));
    let mut kept = kept.unwrap();
    next(&mut first);

    let mut second = Buffered::new(LIMIT).restore(&mut kept).unwrap();

    assert_eq!(read(&mut second).0.len(), 2 * LIMIT);
    assert!(Buffered::new(LIMIT).restore(&mut kept).is_none());
}

#[test]
fn replay_that_failed_is_not_replayed() {
    let (first, kept) = split(script([data("ab"), Step::Error]));
    let mut kept = kept.unwrap();
    drop(first);

    let mut second = Buffered::new(LIMIT).restore(&mut kept).unwrap();
    next(&mut second);

    assert!(matches!(next(&mut second), Some(Some(Err(_)))));
    assert!(Buffered::new(LIMIT).restore(&mut kept).is_none());
}

#[test]
fn frames_of_a_replay_are_freed_when_the_kept_frames_are_dropped() {
    let [one, two] = [1, 2].map(|byte| Bytes::from(vec![byte; LARGE]));
    let steps = [Step::Data(one.clone()), Step::Data(two.clone())];
    let (_first, kept) = split_large(script(steps));
    let mut kept = kept.unwrap();
    let mut second = Buffered::new(LIMIT).restore(&mut kept).unwrap();
    drop(next(&mut second));
    assert!(
        !one.is_unique(),
        "a second replay would lack the first chunk"
    );

    drop(kept);

    assert!(one.is_unique(), "the buffer still holds the first chunk");
    drop(next(&mut second));
    assert!(two.is_unique(), "the buffer still holds the second chunk");
}

#[test]
fn map_converts_the_body_of_every_send() {
    let policy = Buffered::new(LIMIT).map(|body: ReplayBody<Script>| body.boxed_unsync());
    let (mut first, kept) = policy.split(script([data("ab"), data("cd")]));
    assert_eq!(read(&mut first).0, "abcd");

    let mut second = policy.restore(&mut kept.unwrap()).unwrap();
    assert_eq!(read(&mut second).0, "abcd");
}

#[test]
fn body_needs_neither_sync_nor_unpin() {
    fn is_send<T: Send>(_: &T) {}
    let not_sync_nor_unpin = http_body_util::StreamBody::new(futures_util::stream::once(async {
        let cell = std::cell::Cell::new(1);
        std::future::ready(()).await;
        Ok::<_, BoxError>(Frame::data(Bytes::from(vec![cell.get()])))
    }));
    let (first, kept) = split(not_sync_nor_unpin);
    is_send(&first);
    is_send(&kept);
}

#[test]
fn replay_can_be_buffered_again_by_another_layer() {
    let half = || Step::Data(Bytes::from(vec![1; LIMIT / 2]));
    let (mut first, kept) = split(script([half(), half(), half(), half()]));
    next(&mut first);
    let second = restore(kept).unwrap();

    // Another layer, below the first, keeps frames up to a limit of its own.
    let (mut second, kept) = split(second);
    next(&mut second);
    next(&mut second);
    let mut third = restore(kept).unwrap();

    assert_eq!(read(&mut third).0.len(), 2 * LIMIT);
    assert!(is_superseded(&mut second));
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any_data(0..200),
        1 => any_data(LARGE - 100..LARGE + 100),
        1 => Just(Step::Pending),
    ]
}

fn any_data(sizes: std::ops::Range<usize>) -> impl Strategy<Value = Step> {
    (sizes, any::<u8>()).prop_map(|(size, start)| {
        let bytes = (0..size).map(|at| start.wrapping_add((at % 251) as u8));
        Step::Data(bytes.collect())
    })
}

fn any_limit() -> impl Strategy<Value = usize> {
    prop_oneof![0_usize..1500, 0..12 * LARGE]
}

fn all_data(steps: &VecDeque<Step>) -> Bytes {
    let data = steps.iter().filter_map(|step| match step {
        Step::Data(data) => Some(data.clone()),
        _ => None,
    });
    data.flatten().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    /// For any frames and trailers, any limit, any time of the rejection, and any order of polls
    /// and drops.
    #[test]
    fn replay_is_the_original_body_or_there_is_none(
        mut steps in proptest::collection::vec(any_step(), 0..12),
        has_trailers in any::<bool>(),
        is_sized in any::<bool>(),
        limit in any_limit(),
        polls_before in 0_usize..20,
        is_first_dropped in any::<bool>(),
        polls_of_first_between in proptest::collection::vec(any::<bool>(), 0..20),
    ) {
        if has_trailers {
            steps.push(Step::Trailers(trailers()));
        }
        let body = Script { is_sized, ..script(steps) };
        let whole = all_data(&body.steps);
        let first_frame = match body.steps.front() {
            Some(Step::Data(data)) => data.len(),
            _ => 0,
        };
        let buffered = Buffered::new(limit);

        let (first, kept) = buffered.split(body);
        let mut first = Some(first);
        let mut sent = 0;
        for _ in 0..polls_before {
            let reader = first.as_mut().unwrap();
            prop_assert!(!is_sized || reader.size_hint().exact() == Some((whole.len() - sent) as u64));
            if let Some(Some(Ok(frame))) = next(reader) {
                sent += frame.data_ref().map_or(0, Buf::remaining);
            }
        }
        if is_first_dropped {
            first = None;
        }

        let Some(second) = kept.and_then(|mut kept| buffered.restore(&mut kept)) else {
            // The only reason: the frames that were read, or the size that the body reports, exceed
            // the limit. One frame is read ahead.
            let read = sent.max(first_frame);
            prop_assert!(read > limit || (is_sized && whole.len() > limit));
            return Ok(());
        };
        let original = Original { data: whole, has_trailers, is_sized };
        original.check_replay(second, polls_of_first_between, first)?;
    }

    /// For any frames and trailers, any limit, and any number of polls of the first body and of the
    /// first replay.
    #[test]
    fn second_replay_is_the_original_body_or_there_is_none(
        mut steps in proptest::collection::vec(any_step(), 0..12),
        has_trailers in any::<bool>(),
        is_sized in any::<bool>(),
        limit in any_limit(),
        polls_of_first in 0_usize..20,
        polls_of_second in 0_usize..20,
        polls_of_second_between in proptest::collection::vec(any::<bool>(), 0..20),
    ) {
        if has_trailers {
            steps.push(Step::Trailers(trailers()));
        }
        let body = Script { is_sized, ..script(steps) };
        let original = Original { data: all_data(&body.steps), has_trailers, is_sized };
        let mut read = match body.steps.front() {
            Some(Step::Data(data)) => data.len(),
            _ => 0,
        };
        let buffered = Buffered::new(limit);
        let (mut first, kept) = buffered.split(body);
        let Some(mut kept) = kept else {
            prop_assert!(read > limit || (is_sized && original.data.len() > limit));
            return Ok(());
        };

        read = read.max(poll_times(polls_of_first, &mut first));
        let Some(mut second) = buffered.restore(&mut kept) else {
            prop_assert!(read > limit);
            return Ok(());
        };
        read = read.max(poll_times(polls_of_second, &mut second));
        let Some(third) = buffered.restore(&mut kept) else {
            prop_assert!(read > limit);
            return Ok(());
        };

        original.check_replay(third, polls_of_second_between, Some(second))?;
    }
}

/// Polls the given number of times, and returns the number of bytes read.
fn poll_times(polls: usize, body: &mut ReplayBody<Script>) -> usize {
    let frames = (0..polls).filter_map(|_| next(body)??.ok());
    frames
        .map(|frame| frame.data_ref().map_or(0, Buf::remaining))
        .sum()
}

/// What a replay has to send.
struct Original {
    data: Bytes,
    has_trailers: bool,
    is_sized: bool,
}

impl Original {
    /// Reads a replay to its end, and polls the superseded body in between.
    fn check_replay(
        self,
        mut replay: ReplayBody<Script>,
        polls_of_superseded: Vec<bool>,
        mut superseded: Option<ReplayBody<Script>>,
    ) -> Result<(), TestCaseError> {
        let Self {
            data: whole,
            has_trailers,
            is_sized,
        } = self;
        let mut polls_of_superseded = polls_of_superseded.into_iter();
        let mut replayed = Vec::new();
        let mut replayed_trailers = None;
        loop {
            prop_assert!(
                !is_sized
                    || replay.size_hint().exact() == Some((whole.len() - replayed.len()) as u64)
            );
            if let (Some(true), Some(superseded)) = (polls_of_superseded.next(), &mut superseded) {
                // It gets an error, or reads a body in memory. The replay loses nothing either way.
                let _ = next(superseded);
            }
            let is_end = replay.is_end_stream();
            match next(&mut replay) {
                Some(Some(Ok(frame))) => {
                    prop_assert!(!is_end);
                    match frame.into_data() {
                        Ok(data) => replayed.extend_from_slice(&data),
                        Err(frame) => replayed_trailers = frame.into_trailers().ok(),
                    }
                }
                Some(Some(Err(error))) => return Err(TestCaseError::fail(error.to_string())),
                Some(None) => break,
                None => prop_assert!(!is_end),
            }
        }

        prop_assert_eq!(replayed, whole);
        prop_assert_eq!(replayed_trailers, has_trailers.then(trailers));
        prop_assert!(replay.is_end_stream());
        Ok(())
    }
}

/// Sends a body to an API that reads what it gets and rejects the token even so. Returns the reason
/// why there was no replay.
async fn why_not(limit: usize, body: Script) -> NotReplayed {
    let tokens = service_fn(|_: TokenRequest| async { AccessToken::new("token-1") });
    let api = service_fn(|request: http::Request<ReplayBody<Script>>| async {
        let mut body = request.into_body();
        while let Some(Ok(_)) = body.frame().await {}
        let mut response = http::Response::new(String::new());
        *response.status_mut() = http::StatusCode::UNAUTHORIZED;
        Ok::<_, BoxError>(response)
    });
    let layer = ClientCredentialsLayer::new(tokens).replay(Buffered::new(limit));
    let response = layer.layer(api).oneshot(http::Request::new(body)).await;
    let mut response = response.unwrap();
    let outcome = response.extensions_mut().remove::<TokenOutcome>().unwrap();
    outcome.not_replayed().unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn reason_tells_a_body_that_failed_from_one_over_the_limit() {
    for (steps, limit) in [
        (vec![Step::Error], 1024),
        (vec![data("ab"), Step::Error], 1024),
        (vec![data("ab"), data("cd"), Step::Error], 4),
        // A larger limit would not have helped.
        (vec![data("ab"), data("cd"), Step::Error], 3),
    ] {
        let reason = why_not(limit, script(steps.clone())).await;
        let case = format!("{steps:?}, limit {limit}: {reason}");
        assert!(matches!(reason, NotReplayed::BodyFailed), "{case}");
    }
    for (steps, limit) in [
        (vec![data("ab")], 1),
        (vec![data("ab"), data("cd")], 3),
        (vec![data("abcd"), Step::Error], 3),
    ] {
        let reason = why_not(limit, script(steps.clone())).await;
        let case = format!("{steps:?}, limit {limit}: {reason}");
        assert!(matches!(reason, NotReplayed::BodyOverLimit), "{case}");
    }
}

/// The body and trailers of each request that reached an API, or `None` if it read only a part.
type Seen = Arc<Mutex<Vec<Option<(Bytes, Option<HeaderMap>)>>>>;

/// An API that polls the first body `polls_before` times and answers 401, then reads the second
/// body to its end.
fn rejecting_api(
    polls_before: usize,
    seen: Seen,
) -> impl Service<http::Request<ReplayBody<Script>>, Response = http::Response<String>, Error = BoxError>
+ Clone {
    service_fn(move |request: http::Request<ReplayBody<Script>>| {
        let is_accepted = request.headers()["authorization"] == "Bearer token-2";
        let (mut body, seen) = (request.into_body(), seen.clone());
        async move {
            let mut response = http::Response::new(String::new());
            if is_accepted {
                seen.lock().unwrap().push(Some(read_whole(&mut body)));
                return Ok(response);
            }
            for _ in 0..polls_before {
                let _ = next(&mut body);
            }
            seen.lock().unwrap().push(None);
            *response.status_mut() = http::StatusCode::UNAUTHORIZED;
            Ok(response)
        }
    })
}

/// Reads to the end. A script makes progress with each poll.
fn read_whole(body: &mut ReplayBody<Script>) -> (Bytes, Option<HeaderMap>) {
    let (mut data, mut trailers) = (Vec::new(), None);
    loop {
        match next(body) {
            None => {}
            Some(None) => return (data.into(), trailers),
            Some(Some(frame)) => match frame.expect("the body is whole").into_data() {
                Ok(more) => data.extend_from_slice(&more),
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn api_sees_the_original_body_or_the_caller_sees_the_reason(
        mut steps in proptest::collection::vec(any_step(), 0..12),
        has_trailers in any::<bool>(),
        is_sized in any::<bool>(),
        limit in any_limit(),
        polls_before in 0_usize..20,
    ) {
        if has_trailers {
            steps.push(Step::Trailers(trailers()));
        }
        let body = Script { is_sized, ..script(steps) };
        let whole = (all_data(&body.steps), has_trailers.then(trailers));
        let seen = Seen::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();

        let response = runtime.block_on(async {
            let number = std::sync::atomic::AtomicUsize::new(0);
            let number = Arc::new(number);
            let tokens = service_fn(move |_: TokenRequest| {
                let number = number.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                async move {
                    AccessToken::new(format!("token-{number}"))
                }
            });
            let layer = ClientCredentialsLayer::new(tokens)
                .replay(Buffered::new(limit));
            let service = layer.layer(rejecting_api(polls_before, seen.clone()));
            service.oneshot(http::Request::new(body)).await.unwrap()
        });

        let mut seen = seen.lock().unwrap().drain(..).collect::<Vec<_>>();
        if response.status() == http::StatusCode::OK {
            prop_assert_eq!(seen.len(), 2);
            prop_assert_eq!(seen.pop().unwrap().unwrap(), whole);
        } else {
            prop_assert_eq!(seen.len(), 1);
            let reason = response.extensions().get::<TokenOutcome>().and_then(TokenOutcome::not_replayed);
            prop_assert!(matches!(
                reason,
                Some(
                    NotReplayed::BodyOverLimit
                )
            ));
        }
    }
}
