//! Corners of the promises that no other test reaches.

mod support;

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
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
    runtime::Builder,
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
async fn rejection_while_the_token_service_fails_comes_back_and_the_token_stays_in_use() {
    let issuer = Issuer::new();
    let api = Api::accepting_none();
    let cache = TokenCache::builder().jitter(0.0).build(issuer.service());
    let service = ClientCredentialsLayer::with_cache(cache.clone()).layer(api.service());
    cache.token().await.unwrap();
    issuer.fail(Failure::Permanent);
    advance(Duration::from_secs(1500)).await;
    cache.token().await.unwrap();
    settle().await; // the refresh has failed; the failure is shared for a second

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
fn flight_that_lands_after_it_was_replaced_overwrites_nothing() {
    let number = AtomicUsize::new(0);
    let number = Arc::new(number);
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
    let first = Builder::new_current_thread().enable_all().build().unwrap();
    let second = Builder::new_current_thread().enable_all().build().unwrap();
    let mut waiter = Box::pin(cache.token());
    first.block_on(async {
        assert!(waiter.as_mut().now_or_never().is_none());
        tokio::task::yield_now().await;
    });
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(second.block_on(cache.token()).unwrap().expose(), "token-2");

    first.block_on(async { sleep(Duration::from_millis(50)).await });

    assert_eq!(
        cache.token().now_or_never().unwrap().unwrap().expose(),
        "token-2"
    );
    drop(waiter);
}

#[test]
fn outside_a_runtime_nobody_is_given_the_rejected_token_while_its_renewal_is_under_way() {
    let issuer = Issuer::new().latency(Duration::from_millis(50));
    let cache = issuer.cache();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let token = runtime.block_on(cache.token()).unwrap();
    assert!(matches!(cache.reject(&token), Rejection::Withheld));
    runtime.block_on(async { assert!(cache.token().now_or_never().is_none()) });

    let error = cache.token().now_or_never().unwrap().unwrap_err();

    assert!(error.is_no_runtime());
    assert_eq!(runtime.block_on(cache.token()).unwrap().expose(), "token-2");
}

/// With a `Retry-After` that is longer than a flight may take.
#[tokio::test(start_paused = true)]
async fn refresh_obeys_retry_after_and_starts_again_after_it() {
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

/// The back-off of a failed refresh is the failure's, not the flight's deadline.
#[tokio::test(start_paused = true)]
async fn failed_refresh_is_tried_again_after_its_back_off() {
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
    let issuer = Issuer::new().latency(20 * SECOND);
    let cache = TokenCache::builder()
        .jitter(0.0)
        .refresh_window(Duration::ZERO)
        .build(issuer.service());
    cache.token().await.unwrap();

    advance(Duration::from_secs(1790 - 20) - Duration::from_nanos(1)).await;
    assert_eq!(cache.token().await.unwrap().expose(), "token-1");
    advance(Duration::from_nanos(1)).await;
    assert_eq!(cache.token().await.unwrap().expose(), "token-2");
}

#[tokio::test(start_paused = true)]
async fn request_that_is_never_sent_twice_starts_the_renewal_behind() {
    let issuer = Issuer::new();
    let layer = ClientCredentialsLayer::new(issuer.service()).no_replay();
    let service = layer.layer(Api::accepting_none().service());

    service.oneshot(request()).await.unwrap();
    settle().await;

    assert_eq!(issuer.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn request_that_is_never_sent_twice_renews_nothing_when_nobody_else_has_the_cache() {
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

/// What is polled ready but kept by a service that waits for a token blocks its permit.
#[tokio::test(start_paused = true)]
async fn a_miss_gives_up_the_readiness_that_the_service_had() {
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

struct Three(u32);
impl Body for Three {
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

/// Trailers that were read are not read again when the verdict frees what was remembered.
#[test]
fn trailers_that_were_sent_are_sent_once() {
    let (mut body, kept) = Buffered::new(1024).split(Three(0));
    while !next(&mut body).unwrap().is_trailers() {}
    drop(kept); // accepted
    assert!(body.is_end_stream());
    assert!(next(&mut body).is_none());
}

/// An empty frame is passed on as one (gRPC sends them) and is not remembered.
#[test]
fn empty_frame_is_passed_on_and_not_remembered() {
    let (mut body, kept) = Buffered::new(1024).split(Three(0));
    let sizes: Vec<_> = (0..3)
        .map(|_| next(&mut body).unwrap().into_data().unwrap().len())
        .collect();
    assert_eq!(sizes, [4, 0, 4]);
    let mut again = Buffered::new(1024).restore(kept.unwrap()).unwrap();
    let sizes: Vec<_> = (0..2)
        .map(|_| next(&mut again).unwrap().into_data().unwrap().len())
        .collect();
    assert_eq!(sizes, [4, 4]);
}

/// A body that was taken over promises no length.
#[test]
fn body_that_was_taken_over_reports_no_size() {
    let (body, kept) = Buffered::new(1024).split(Three(0));
    assert_eq!(body.size_hint().exact(), Some(8));
    let again = Buffered::new(1024).restore(kept.unwrap()).unwrap();
    assert_eq!(again.size_hint().exact(), Some(8));
    assert_eq!(body.size_hint().exact(), None);
    assert!(!body.is_end_stream());
}

type Ask = Box<dyn Fn() -> Option<u64> + Send + Sync>;

/// The size is exact while another thread polls the source. Here: asked from inside that poll.
struct Asking {
    ask: Arc<std::sync::OnceLock<Ask>>,
    polls: u32,
    seen: Arc<Mutex<Vec<Option<u64>>>>,
}
impl Body for Asking {
    type Data = Bytes;
    type Error = BoxError;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.polls += 1;
        if let Some(ask) = self.ask.get() {
            self.seen.lock().unwrap().push(ask());
        }
        Poll::Ready((self.polls <= 2).then(|| Ok(Frame::data(Bytes::from_static(b"1234")))))
    }
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(8 - 4 * u64::from(self.polls.min(2)))
    }
}

#[test]
fn replay_knows_its_exact_size_while_the_first_upload_is_still_in_the_source() {
    let ask = Arc::new(std::sync::OnceLock::new());
    let seen = Arc::default();
    let source = Asking {
        ask: Arc::clone(&ask),
        polls: 0,
        seen: Arc::clone(&seen),
    };
    let (mut body, kept) = Buffered::new(1024).split(source);
    let kept = Mutex::new(kept);
    let again = Mutex::new(None);
    let _ = ask.set(Box::new(move || {
        let mut again = again.lock().unwrap();
        if again.is_none() {
            *again = Buffered::new(1024).restore(kept.lock().unwrap().take().unwrap());
        }
        again.as_ref().unwrap().size_hint().exact()
    }));
    next(&mut body); // what the start has read
    let _ = Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop()));
    assert_eq!(*seen.lock().unwrap(), [Some(8)]);
}

#[tokio::test(start_paused = true)]
async fn lifetime_counts_from_the_attempt_that_brought_the_token() {
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
