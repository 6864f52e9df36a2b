//! A thousand uploads that are rejected before they are read, over each HTTP version.

use std::{collections::HashSet, error::Error, time::Duration};

use futures_util::{StreamExt, stream};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use support::{Protocol, Servers, Upload, cache_without_cool_down, hyper_client, in_time};
use tower::{Layer, Service, ServiceExt};
use tower_client_credentials::{BoxError, ClientCredentialsLayer, TokenOutcome, replay::Buffered};

const CALLS: usize = 1000;
const CONCURRENCY: usize = 32;
const MIB: usize = 1024 * 1024;

/// Most uploads are small, some are as large as the limit.
fn upload(number: usize) -> Upload {
    const SMALL: [usize; 8] = [0, 1, 100, 16_384, 16_385, 65_535, 200_000, MIB];
    let len = match number {
        _ if number % 250 == 249 => 20 * MIB,
        _ if number % 100 == 99 => 5 * MIB,
        _ => SMALL[number % SMALL.len()],
    };
    let upload = Upload::new(number, len);
    if number.is_multiple_of(3) {
        upload.sized()
    } else {
        upload
    }
}

/// The outcome of a call.
#[derive(Debug, PartialEq)]
enum Outcome {
    Success,
    /// The server reset the connection, and its response was lost.
    Lost,
}

async fn call<S, ResBody>(service: S, servers: &Servers, number: usize) -> Outcome
where
    S: Service<Request<Upload>, Response = http::Response<ResBody>, Error = BoxError>,
    ResBody: http_body::Body<Error: std::fmt::Debug>,
{
    let when = ["early", "first-frame", "reading-on"][number % 3];
    let path = format!("/{when}/{number}");
    let upload = upload(number);
    let expected = upload.hash();
    let request = Request::put(servers.url(&path)).body(upload).unwrap();

    let response = match service.oneshot(request).await {
        Ok(response) => response,
        Err(error) => {
            assert!(is_client_error(&*error), "{error:?}");
            return Outcome::Lost;
        }
    };
    let reason = response
        .extensions()
        .get::<TokenOutcome>()
        .and_then(TokenOutcome::not_replayed);
    assert_eq!(response.status(), StatusCode::OK, "{path}: {reason:?}");
    let received = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(received, expected, "call {number}");
    assert_rejected_at_first(servers, &path).await;
    Outcome::Success
}

/// Asserts that the API received the call at least twice, each time with another token.
async fn assert_rejected_at_first(servers: &Servers, path: &str) {
    // On `/reading-on/`, the server records a rejected request after reading it.
    let sends = async {
        loop {
            let mut sends = servers.received();
            sends.retain(|received| received.path == path);
            if sends.len() > 1 {
                return sends;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let sends = in_time(sends).await;

    let tokens = sends
        .iter()
        .map(|received| received.authorization.as_ref().unwrap());
    let tokens = tokens.collect::<HashSet<_>>();
    assert_eq!(tokens.len(), sends.len(), "{path}: {sends:?}");
    if !path.starts_with("/reading-on/") {
        // The server did not read the bodies that it rejected, so only the last one has a hash.
        let read = sends.iter().filter(|received| received.hash.is_some());
        assert_eq!(read.count(), 1, "{path}: {sends:?}");
    }
}

fn is_client_error(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    error.is::<hyper_util::client::legacy::Error>()
}

async fn storm(protocol: Protocol) -> usize {
    let servers = Servers::start().await;
    let tokens = servers.tokens(hyper_client::<Full<bytes::Bytes>>(protocol));
    let service = ClientCredentialsLayer::with_cache(cache_without_cool_down(tokens))
        .replay(Buffered::new(20 * MIB))
        .layer(hyper_client(protocol));

    let outcomes = stream::iter(0..CALLS)
        .map(|number| call(service.clone(), &servers, number))
        .buffer_unordered(CONCURRENCY)
        .collect::<Vec<_>>();
    let outcomes = in_time(outcomes).await;

    assert_eq!(outcomes.len(), CALLS);
    let open = servers.connections().open();
    assert!(open <= 2 * CONCURRENCY, "{open} connections are open");
    drop(service);
    in_time(servers.connections().closed()).await;
    in_time(servers.issuer_connections().closed()).await;
    let lost = outcomes
        .iter()
        .filter(|outcome| **outcome == Outcome::Lost)
        .count();
    println!("{protocol:?}: {lost} of {CALLS} calls were lost to resets");
    lost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_rejections_over_http1() {
    let lost = storm(Protocol::Http1).await;

    // A server that stops reading resets the connection, and its response may be lost (RFC 9112
    // §9.6). The layer cannot prevent this. 20 to 41 of 1,000 calls were measured.
    assert!(lost < CALLS / 10, "{lost} calls got no response");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_rejections_over_http2() {
    let lost = storm(Protocol::Http2).await;

    assert_eq!(lost, 0);
}
