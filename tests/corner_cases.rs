//! Combinations of events that no other test covers.

mod support;

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use support::{Api, Failure, Issuer, LONG, call, request, settle, stack};
use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, advance, sleep},
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, ClientCredentialsLayer, Error, NotReplayed, Rejection, TokenCache, TokenOutcome,
    TokenRequest,
    replay::{Buffered, ReplayPolicy},
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn rejection_during_the_back_off_is_returned_and_the_token_stays_in_use() {
    let issuer = Issuer::new();
    let api = Api::accepting_none();
    let cache = TokenCache::builder().jitter(0.0).build(issuer.service());
    let service = ClientCredentialsLayer::with_cache(cache.clone()).layer(api.service());
    cache.token().await.unwrap();
    issuer.fail(Failure::Permanent);
    advance(Duration::from_secs(1500)).await;
    cache.token().await.unwrap();
    settle().await; // The refresh has failed, and the failure is shared for a second.

    let response = call(&service).await.unwrap();

    assert!(matches!(
        response
            .extensions()
            .get::<TokenOutcome>()
            .and_then(TokenOutcome::not_replayed),
        Some(NotReplayed::RenewalFailed(_))
    ));
    assert_eq!(cache.token().await.unwrap().expose(), "token-1");
    assert_eq!(issuer.requests(), 2);
}

#[test]
fn overdue_token_request_does_not_overwrite_the_token_of_the_next_one() {
    let number = Arc::new(AtomicUsize::new(0));
    let service = service_fn(move |_: TokenRequest| {
        let number = number.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            sleep(Duration::from_millis(10)).await;
            Ok::<_, BoxError>(AccessToken::new(format!("token-{number}"))?.with_lifetime(LONG))
        }
    });
    let cache = TokenCache::builder()
        .deadline(Duration::from_millis(50))
        .build(service);
    let (first, second) = (paused_runtime(), paused_runtime());
    let mut waiter = Box::pin(cache.token());
    first.block_on(async {
        assert!(waiter.as_mut().now_or_never().is_none());
        tokio::task::yield_now().await;
    });
    // The first runtime is not driven while a second passes on the other one.
    second.block_on(advance(Duration::from_millis(1100)));
    assert_eq!(second.block_on(cache.token()).unwrap().expose(), "token-2");

    first.block_on(async { sleep(Duration::from_millis(50)).await });

    assert_eq!(
        cache.token().now_or_never().unwrap().unwrap().expose(),
        "token-2"
    );
    drop(waiter);
}

fn paused_runtime() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}

#[test]
fn rejected_token_is_withheld_outside_a_runtime_while_its_renewal_runs() {
    let issuer = Issuer::new().latency(Duration::from_millis(50));
    let cache = issuer.cache();
    let runtime = paused_runtime();
    let token = runtime.block_on(cache.token()).unwrap();
    assert!(matches!(cache.reject(&token), Rejection::Withheld));
    runtime.block_on(async { assert!(cache.token().now_or_never().is_none()) });

    let error = cache.token().now_or_never().unwrap().unwrap_err();

    assert!(error.is_no_runtime());
    assert_eq!(runtime.block_on(cache.token()).unwrap().expose(), "token-2");
}

/// The `Retry-After` is longer than the deadline of a token request.
#[tokio::test(start_paused = true)]
async fn refresh_obeys_retry_after_and_then_starts_again() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let service = service_fn(move |_: TokenRequest| {
        let mut log = log.lock().unwrap();
        log.push(Instant::now());
        let is_first = log.len() == 1;
        async move {
            if is_first {
                return Ok(AccessToken::new("token-1")?.with_lifetime(LONG));
            }
            Err::<_, BoxError>(Error::transient("429", Some(Duration::from_secs(60))).into())
        }
    });
    let cache = TokenCache::builder().jitter(0.0).build(service);
    cache.token().await.unwrap();
    advance(Duration::from_secs(1490)).await;
    for _ in 0..190 {
        cache.token().await.unwrap();
        settle().await;
        advance(SECOND).await;
    }
    let asked = asked.lock().unwrap();
    let pauses: Vec<_> = asked.windows(2).skip(1).map(|w| w[1] - w[0]).collect();
    assert!((2..=3).contains(&pauses.len()), "{pauses:?}");
    let obeyed = 60 * SECOND..92 * SECOND;
    assert!(
        pauses.iter().all(|pause| obeyed.contains(pause)),
        "{pauses:?}"
    );
}

/// The next refresh waits for the back-off, not for the deadline of the failed one.
#[tokio::test(start_paused = true)]
async fn failed_refresh_is_retried_after_the_back_off() {
    let issuer = Issuer::new();
    let cache = TokenCache::builder().jitter(0.0).build(issuer.service());
    cache.token().await.unwrap();
    issuer.fail(Failure::Permanent);
    advance(Duration::from_secs(1490)).await;
    cache.token().await.unwrap();
    settle().await;
    issuer.fail(None);

    advance(2 * SECOND).await;
    cache.token().await.unwrap();
    settle().await;

    assert_eq!(cache.token().await.unwrap().expose(), "token-3");
}

#[tokio::test(start_paused = true)]
async fn lifetime_counts_from_before_the_request_was_sent() {
    let issuer = Issuer::new().latency(8 * SECOND);
    let cache = TokenCache::builder()
        .jitter(0.0)
        .refresh_window(Duration::ZERO)
        .build(issuer.service());
    cache.token().await.unwrap();

    advance(Duration::from_secs(1790 - 8) - Duration::from_nanos(1)).await;
    assert_eq!(cache.token().await.unwrap().expose(), "token-1");
    advance(Duration::from_nanos(1)).await;
    assert_eq!(cache.token().await.unwrap().expose(), "token-2");
}

#[tokio::test(start_paused = true)]
async fn rejected_call_without_replay_renews_the_token_in_the_background() {
    for has_token in [false, true] {
        let issuer = Issuer::new();
        let layer = ClientCredentialsLayer::new(issuer.service()).no_replay();
        if has_token {
            layer.cache().token().await.unwrap();
        }
        let service = layer.layer(Api::accepting_none().service());

        service.oneshot(request()).await.unwrap();
        settle().await;

        assert_eq!(issuer.requests(), 2, "has a token: {has_token}");
    }
}

#[tokio::test(start_paused = true)]
async fn rejected_call_without_replay_renews_nothing_once_the_last_handle_is_gone() {
    let issuer = Issuer::new();
    let service = ClientCredentialsLayer::new(issuer.service())
        .no_replay()
        .layer(Api::accepting_none().service());

    let response = service.oneshot(request()).await.unwrap();
    settle().await;

    let outcome = response.extensions().get::<TokenOutcome>().unwrap();
    let reason = outcome.not_replayed();
    assert!(
        matches!(reason, Some(NotReplayed::BodyNotKept)),
        "{reason:?}"
    );
    assert_eq!(issuer.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn call_that_waits_for_a_token_releases_the_permit_of_its_service() {
    let issuer = Issuer::new();
    let shared = tower::ServiceBuilder::new()
        .layer(tower::limit::GlobalConcurrencyLimitLayer::new(1))
        .service(Api::accepting_all().service());
    let mut service = stack(&issuer, shared.clone());
    let mut other = shared;

    service.ready().await.unwrap();
    let _waiting = service.call(request());

    assert!(
        other.ready().now_or_never().is_some(),
        "the permit is still held"
    );
}

/// Two frames of four bytes with an empty one between them, then trailers. Counts its polls.
struct Frames(u32);
impl Body for Frames {
    type Data = Bytes;
    type Error = BoxError;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0 += 1;
        Poll::Ready(match self.0 {
            1 => Some(Ok(Frame::data(Bytes::from_static(b"1234")))),
            2 => Some(Ok(Frame::data(Bytes::new()))),
            3 => Some(Ok(Frame::data(Bytes::from_static(b"5678")))),
            4 => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                Some(Ok(Frame::trailers(trailers)))
            }
            _ => None,
        })
    }
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self.0 {
            0 => 8,
            1 | 2 => 4,
            _ => 0,
        })
    }
}

fn next<B: Body + Unpin>(body: &mut B) -> Option<Frame<B::Data>>
where
    B::Error: std::fmt::Debug,
{
    match Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(frame) => frame.map(Result::unwrap),
        Poll::Pending => panic!("pending"),
    }
}

#[test]
fn trailers_are_not_sent_again_after_the_buffer_is_freed() {
    let (mut body, kept) = Buffered::new(1024).split(Frames(0));
    while !next(&mut body).unwrap().is_trailers() {}
    drop(kept); // The request was accepted.
    assert!(body.is_end_stream());
    assert!(next(&mut body).is_none());
}

/// gRPC clients send empty frames.
#[test]
fn empty_frame_is_forwarded_and_not_buffered() {
    let (mut body, kept) = Buffered::new(1024).split(Frames(0));
    let sizes: Vec<_> = (0..3)
        .map(|_| next(&mut body).unwrap().into_data().unwrap().len())
        .collect();
    assert_eq!(sizes, [4, 0, 4]);
    let mut again = Buffered::new(1024).restore(&mut kept.unwrap()).unwrap();
    let sizes: Vec<_> = (0..2)
        .map(|_| next(&mut again).unwrap().into_data().unwrap().len())
        .collect();
    assert_eq!(sizes, [4, 4]);
}

#[test]
fn first_body_reports_no_size_after_the_replay_takes_over() {
    let (body, kept) = Buffered::new(1024).split(Frames(0));
    assert_eq!(body.size_hint().exact(), Some(8));
    let again = Buffered::new(1024).restore(&mut kept.unwrap()).unwrap();
    assert_eq!(again.size_hint().exact(), Some(8));
    assert_eq!(body.size_hint().exact(), None);
    assert!(!body.is_end_stream());
}

type ReplaySize = Box<dyn Fn() -> Option<u64> + Send + Sync>;

/// A source that asks for the size of the replay while it is polled.
struct Asking {
    replay_size: Arc<OnceLock<ReplaySize>>,
    polls: u32,
    sizes: Arc<Mutex<Vec<Option<u64>>>>,
}
impl Body for Asking {
    type Data = Bytes;
    type Error = BoxError;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.polls += 1;
        if let Some(replay_size) = self.replay_size.get() {
            self.sizes.lock().unwrap().push(replay_size());
        }
        Poll::Ready((self.polls <= 2).then(|| Ok(Frame::data(Bytes::from_static(b"1234")))))
    }
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(8 - 4 * u64::from(self.polls.min(2)))
    }
}

#[test]
fn replay_has_an_exact_size_while_the_first_upload_polls_the_source() {
    let replay_size = Arc::new(OnceLock::new());
    let sizes = Arc::default();
    let source = Asking {
        replay_size: Arc::clone(&replay_size),
        polls: 0,
        sizes: Arc::clone(&sizes),
    };
    let (mut body, kept) = Buffered::new(1024).split(source);
    let kept = Mutex::new(kept);
    let again = Mutex::new(None);
    let _ = replay_size.set(Box::new(move || {
        let mut again = again.lock().unwrap();
        if again.is_none() {
            *again = Buffered::new(1024).restore(&mut kept.lock().unwrap().take().unwrap());
        }
        again.as_ref().unwrap().size_hint().exact()
    }));
    next(&mut body); // The frame that `split` has read.
    let _ = Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop()));
    assert_eq!(*sizes.lock().unwrap(), [Some(8)]);
}

#[tokio::test(start_paused = true)]
async fn lifetime_counts_from_the_start_of_the_successful_attempt() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let service = service_fn(move |_: TokenRequest| {
        let attempt = attempts.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            if attempt == 1 {
                sleep(Duration::from_secs(20)).await;
                return Err::<AccessToken, BoxError>("out of order".into());
            }
            Ok(AccessToken::new(format!("token-{attempt}"))?
                .with_lifetime(Duration::from_secs(1800)))
        }
    });
    let cache = TokenCache::builder()
        .refresh_window(Duration::ZERO)
        .retry_backoff(Duration::ZERO)
        .build(service);
    cache.token().await.unwrap();
    advance(Duration::from_secs(1790) - Duration::from_nanos(1)).await;
    assert_eq!(cache.token().await.unwrap().expose(), "token-2");
    advance(Duration::from_nanos(1)).await;
    assert_eq!(cache.token().await.unwrap().expose(), "token-3");
}
