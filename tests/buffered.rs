//! Streaming bodies: what is remembered while they are sent, and the second send that goes on with
//! the rest.

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

/// A body that does what it is told, step by step.
#[derive(Debug, Default)]
struct Script {
    steps: VecDeque<Step>,
    /// Whether it says how much is left, and that it has ended.
    is_sized: bool,
    /// Where it leaves the waker of its last poll.
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

/// Reads what is there, to the end unless the body has to be waited for.
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

fn is_taken_over<B: Body<Error = BoxError> + Unpin>(body: &mut B) -> bool {
    matches!(next(body), Some(Some(Err(error))) if error.to_string().contains("is being sent again"))
}

#[test]
fn what_was_sent_is_sent_again() {
    let (mut first, kept) = split(script([data("ab"), data("cd"), Step::Trailers(trailers())]));
    assert_eq!(read(&mut first), ("abcd".into(), Some(trailers())));

    let mut second = restore(kept).unwrap();
    assert_eq!(read(&mut second), ("abcd".into(), Some(trailers())));
}

/// A well-known proxy duplicated the first chunk here.
#[test]
fn rejection_before_the_first_frame_was_polled_duplicates_nothing() {
    for is_sized in [false, true] {
        let body = Script {
            is_sized,
            ..script([data("ab"), data("cd")])
        };
        let (mut first, kept) = split(body);

        let mut second = restore(kept).unwrap();

        assert!(is_taken_over(&mut first));
        assert_eq!(read(&mut second).0, "abcd");
    }
}

#[test]
fn second_send_goes_on_with_what_the_first_has_not_sent() {
    let (mut first, kept) = split(script([data("ab"), data("cd"), data("ef")]));
    next(&mut first);
    next(&mut first);

    let mut second = restore(kept).unwrap();

    assert!(is_taken_over(&mut first));
    assert_eq!(read(&mut second).0, "abcdef");
}

#[test]
fn first_body_may_be_dropped_before_or_after() {
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
fn second_body_may_be_dropped_at_any_time() {
    let (mut first, kept) = split(script([data("ab"), data("cd")]));
    let mut second = restore(kept).unwrap();
    next(&mut second);

    drop(second);

    assert!(is_taken_over(&mut first));
}

/// The first upload waits for its source in the background when the replay starts.
#[test]
fn first_upload_that_waits_is_woken_and_told_to_end() {
    let (mut first, kept) = split(script([data("ab"), Step::Pending, data("cd")]));
    next(&mut first);
    let mut waiting = tokio_test::task::spawn(first.frame());
    assert!(waiting.poll().is_pending());

    let mut second = restore(kept).unwrap();

    assert!(waiting.is_woken());
    assert!(waiting.await_error().contains("is being sent again"));
    assert_eq!(read(&mut second).0, "abcd");
}

trait AwaitError {
    fn await_error(&mut self) -> String;
}

impl<F, T> AwaitError for tokio_test::task::Spawn<F>
where
    F: Future<Output = Option<Result<T, BoxError>>>,
{
    fn await_error(&mut self) -> String {
        match self.poll() {
            Poll::Ready(Some(Err(error))) => error.to_string(),
            _ => panic!("the body does not fail"),
        }
    }
}

/// On two threads: the first upload is inside the source's poll when the replay takes over.
#[test]
fn replay_waits_for_the_first_upload_to_come_out_of_the_source() {
    struct Slow {
        entered: mpsc::Sender<()>,
        leave: mpsc::Receiver<()>,
        polls: usize,
    }
    impl Body for Slow {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            self.polls += 1;
            if self.polls == 2 {
                self.entered.send(()).unwrap();
                self.leave.recv().unwrap();
            }
            let frame = (self.polls <= 3).then(|| Ok(Frame::data(Bytes::from("x"))));
            Poll::Ready(frame)
        }
    }
    let (entered, is_entered) = mpsc::channel();
    let (may_leave, leave) = mpsc::channel();
    let (mut first, kept) = split(Slow {
        entered,
        leave,
        polls: 0,
    });
    let uploading = std::thread::spawn(move || {
        next(&mut first);
        is_taken_over(&mut first)
    });
    is_entered.recv().unwrap();

    let mut second = restore(kept).unwrap();
    next(&mut second);
    let mut waiting = tokio_test::task::spawn(second.collect());
    assert!(waiting.poll().is_pending());
    may_leave.send(()).unwrap();

    assert!(uploading.join().unwrap());
    assert!(waiting.is_woken());
    let Poll::Ready(Ok(rest)) = waiting.poll() else {
        panic!("the replay hangs")
    };
    assert_eq!(rest.to_bytes(), "xx");
}

#[test]
fn error_half_way_reaches_the_first_send_and_there_is_no_second() {
    let (mut first, kept) = split(script([data("ab"), Step::Error]));
    next(&mut first);
    let Some(Some(Err(error))) = next(&mut first) else {
        panic!("the error is lost");
    };
    assert_eq!(error.to_string(), "the file is gone");

    assert!(restore(kept).is_none());
}

#[test]
fn error_of_the_rest_reaches_the_second_send() {
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
fn error_at_the_very_start_is_not_lost() {
    let (mut first, kept) = split(script([Step::Error]));

    assert!(matches!(next(&mut first), Some(Some(Err(_)))));
    assert!(restore(kept).is_none());
}

#[test]
fn panic_of_the_body_leaves_nobody_waiting() {
    let (mut first, kept) = split(script([data("ab"), Step::Panic]));
    next(&mut first);
    let panicked =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| next(&mut first).is_some()));
    assert!(panicked.is_err());

    assert!(restore(kept).is_none());
    assert!(matches!(next(&mut first), Some(Some(Err(_)))));
}

#[test]
fn trailers_alone_are_sent_again() {
    let (mut first, kept) = split(script([Step::Trailers(trailers())]));
    assert_eq!(read(&mut first), (Bytes::new(), Some(trailers())));

    let mut second = restore(kept).unwrap();
    assert_eq!(read(&mut second), (Bytes::new(), Some(trailers())));
    assert!(second.is_end_stream());
}

/// HTTP/1.1 drops the trailers of a body whose length is known.
#[test]
fn body_with_trailers_gets_no_exact_size_from_being_remembered() {
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
fn empty_bodies_are_sent_again() {
    let (mut first, kept) = split(Empty::<Bytes>::new());
    assert!(first.is_end_stream());
    assert_eq!(first.size_hint().exact(), Some(0));
    assert!(matches!(next(&mut first), Some(None)));

    let mut second = restore(kept).unwrap();
    assert!(second.is_end_stream());
    assert!(matches!(next(&mut second), Some(None)));
}

#[test]
fn limit_costs_the_replay_alone_and_is_exact_to_the_byte() {
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
fn limit_that_is_reached_later_costs_nothing_before() {
    let (mut first, kept) = split(script([
        Step::Data(Bytes::from(vec![1; LIMIT])),
        Step::Data(Bytes::from(vec![2; LIMIT])),
    ]));
    next(&mut first);

    // The rest is over the limit, but it has not been sent yet, so nothing of it has to be kept.
    let mut second = restore(kept).unwrap();

    assert_eq!(read(&mut second).0.len(), 2 * LIMIT);
}

#[test]
fn body_that_says_it_is_too_long_is_passed_through() {
    let (mut first, kept) = split(Full::new(Bytes::from(vec![1; LIMIT + 1])));

    assert!(kept.is_none());
    assert_eq!(first.size_hint().exact(), Some(LIMIT as u64 + 1));
    assert_eq!(read(&mut first).0.len(), LIMIT + 1);
    assert!(first.is_end_stream());
}

#[test]
fn nothing_is_copied() {
    let chunk = Bytes::from(vec![7; 100]);
    let at = chunk.as_ptr();
    for steps in [
        vec![Step::Data(chunk.clone())],
        vec![Step::Data(chunk.clone()), data("more")],
    ] {
        for is_sized in [false, true] {
            let body = Script {
                is_sized,
                ..script(steps.clone())
            };
            let (mut first, kept) = split(body);
            let Some(Some(Ok(frame))) = next(&mut first) else {
                panic!()
            };
            assert_eq!(frame.into_data().unwrap().as_ptr(), at);
            let mut second = restore(kept).unwrap();
            let Some(Some(Ok(frame))) = next(&mut second) else {
                panic!()
            };
            assert_eq!(frame.into_data().unwrap().as_ptr(), at);
        }
    }
}

#[test]
fn what_was_sent_is_freed_once_the_request_was_accepted() {
    let chunk = Bytes::from(vec![7; 100]);
    let (mut first, kept) = split(script([Step::Data(chunk.clone()), data("more")]));
    next(&mut first);

    drop(kept);

    assert!(chunk.is_unique(), "the tape still holds the first chunk");
    assert_eq!(read(&mut first).0, "more");
}

#[test]
fn map_puts_the_body_into_another_type() {
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
fn limit_counts_nothing_that_only_the_replay_sends() {
    let half = || Step::Data(Bytes::from(vec![1; LIMIT / 2]));
    let (mut first, kept) = split(script([half(), half(), half(), half()]));
    next(&mut first);
    let second = restore(kept).unwrap();

    // Another layer around the client remembers on its own account.
    let (mut second, kept) = split(second);
    next(&mut second);
    next(&mut second);
    let mut third = restore(kept).unwrap();

    assert_eq!(read(&mut third).0.len(), 2 * LIMIT);
    assert!(is_taken_over(&mut second));
}

/// The source and the wakers ask the first body for its size; with the lock held, the thread would
/// stop.
#[test]
fn no_lock_is_held_while_a_body_is_polled_or_its_waker_is_woken() {
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || {
        reenter();
        done.send(()).unwrap();
    });

    finished
        .recv_timeout(std::time::Duration::from_secs(20))
        .expect("the tape waits for its own lock");
}

type Shared = Arc<Mutex<Option<ReplayBody<Asking>>>>;

/// A body that asks the replay for its size whenever it is polled.
struct Asking {
    replay: Shared,
    frames: usize,
}

impl Body for Asking {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        ask(&self.replay);
        self.frames += 1;
        match self.frames {
            1 => Poll::Ready(Some(Ok(Frame::data(Bytes::from("ab"))))),
            _ => Poll::Pending,
        }
    }
}

struct AskingWaker {
    replay: Shared,
    is_woken: std::sync::atomic::AtomicBool,
}

impl std::task::Wake for AskingWaker {
    fn wake(self: Arc<Self>) {
        ask(&self.replay);
        self.is_woken
            .store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

/// Takes the lock of the tape, by way of a body that reads it.
fn ask(body: &Shared) {
    // Whoever holds this one is the test itself, between two steps.
    if let Ok(body) = body.try_lock() {
        if let Some(body) = &*body {
            let _ = (body.size_hint(), body.is_end_stream());
        }
    }
}

fn reenter() {
    let first: Shared = Arc::default();
    let asking = Asking {
        replay: first.clone(),
        frames: 0,
    };
    let (body, kept) = split(asking);
    *first.lock().unwrap() = Some(body);
    let waker = Arc::new(AskingWaker {
        replay: first.clone(),
        is_woken: Default::default(),
    });

    // The first body waits, with a waker that asks for the body's size.
    let mut waiting = first.lock().unwrap().take().unwrap();
    let task = Waker::from(waker.clone());
    let mut cx = Context::from_waker(&task);
    let _ = Pin::new(&mut waiting).poll_frame(&mut cx);
    assert!(Pin::new(&mut waiting).poll_frame(&mut cx).is_pending());
    *first.lock().unwrap() = Some(waiting);
    let second = restore(kept).unwrap();

    assert!(waker.is_woken.load(std::sync::atomic::Ordering::SeqCst));
    drop(second);
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..200).prop_map(|bytes| Step::Data(bytes.into())),
        1 => Just(Step::Pending),
    ]
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

    /// Any frames and trailers, any limit, any point at which the 401 arrives, any order of polls
    /// and drops: the replay is the original body, or there is none.
    #[test]
    fn replay_is_the_original_body_or_there_is_none(
        mut steps in proptest::collection::vec(any_step(), 0..12),
        has_trailers in any::<bool>(),
        is_sized in any::<bool>(),
        limit in 0_usize..1500,
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

        let Some(mut second) = kept.and_then(|mut kept| buffered.restore(&mut kept)) else {
            // Given up for one reason alone: more was read than may be remembered, or the body
            // said itself that it would be. One frame is read ahead.
            let read = sent.max(first_frame);
            prop_assert!(read > limit || (is_sized && whole.len() > limit));
            return Ok(());
        };
        let mut replayed = Vec::new();
        let mut replayed_trailers = None;
        let mut polls_of_first = polls_of_first_between.into_iter();
        loop {
            prop_assert!(!is_sized || second.size_hint().exact() == Some((whole.len() - replayed.len()) as u64));
            if let (Some(true), Some(first)) = (polls_of_first.next(), &mut first) {
                // Whatever it gets, an error or a part of a body in memory, the replay loses nothing.
                let _ = next(first);
            }
            let is_end = second.is_end_stream();
            match next(&mut second) {
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
        prop_assert!(second.is_end_stream());
    }
}

/// What an API saw of one request: its body and trailers, if it read them to the end.
type Seen = Arc<Mutex<Vec<Option<(Bytes, Option<HeaderMap>)>>>>;

/// An API that polls the first body so often before it answers 401, and reads the second one whole.
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

/// Reads to the end; a script is never pending twice for the same reason.
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

    /// Through the layer: the API that gets the replay sees the original body, or the caller gets the
    /// rejection, with the reason.
    #[test]
    fn api_sees_the_original_body_or_the_caller_sees_the_reason(
        mut steps in proptest::collection::vec(any_step(), 0..12),
        has_trailers in any::<bool>(),
        is_sized in any::<bool>(),
        limit in 0_usize..1500,
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
