//! A thousand uploads that are refused before they were read, over each version of HTTP.

use std::{collections::HashSet, error::Error, time::Duration};

use futures_util::{StreamExt, stream};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use support::{Protocol, Servers, Upload, cache_without_cool_down, hyper_client, in_time};
use tower::{Layer, Service, ServiceExt};
use tower_client_credentials::{BoxError, ClientCredentialsLayer, TokenOutcome, replay::Buffered};

const CALLS: usize = 1000;
const AT_ONCE: usize = 32;
const MIB: usize = 1024 * 1024;

/// Mostly small, with some that are as long as they get.
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

/// How a call ended.
#[derive(Debug, PartialEq)]
enum Fate {
    Answered,
    /// The server closed the connection with its answer unread.
    Lost,
}

async fn call<S, ResBody>(service: S, servers: &Servers, number: usize) -> Fate
where
    S: Service<Request<Upload>, Response = http::Response<ResBody>, Error = BoxError>,
    ResBody: http_body::Body<Error: std::fmt::Debug>,
{
    let when = ["early", "first-frame", "reading-on"][number % 3];
    let path = format!("/{when}/{number}");
    let upload = upload(number);
    let meant = upload.hash();
    let request = Request::put(servers.url(&path)).body(upload).unwrap();

    let response = match service.oneshot(request).await {
        Ok(response) => response,
        Err(error) => {
            assert!(is_clients_own(&*error), "{error:?}");
            return Fate::Lost;
        }
    };
    let reason = response
        .extensions()
        .get::<TokenOutcome>()
        .and_then(TokenOutcome::not_replayed);
    assert_eq!(response.status(), StatusCode::OK, "{path}: {reason:?}");
    let got = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(got, meant, "call {number}");
    assert_refused_at_first(servers, &path).await;
    Fate::Answered
}

/// The API got the call at least twice: with a token that it refused, and then with others.
async fn assert_refused_at_first(servers: &Servers, path: &str) {
    // A server that reads on writes down what it refused when it has read it.
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
        // What was refused was not read, so only the last one has a hash.
        let read = sends.iter().filter(|received| received.hash.is_some());
        assert_eq!(read.count(), 1, "{path}: {sends:?}");
    }
}

fn is_clients_own(error: &(dyn Error + Send + Sync + 'static)) -> bool {
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
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<_>>();
    let outcomes = in_time(outcomes).await;

    assert_eq!(outcomes.len(), CALLS);
    let open = servers.connections().open();
    assert!(open <= 2 * AT_ONCE, "{open} connections are open");
    drop(service);
    in_time(servers.connections().closed()).await;
    in_time(servers.issuer_connections().closed()).await;
    let lost = outcomes
        .iter()
        .filter(|outcome| **outcome == Fate::Lost)
        .count();
    println!("{protocol:?}: {lost} of {CALLS} calls were lost to resets");
    lost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_rejections_over_http1() {
    let lost = storm(Protocol::Http1).await;

    // A server that reads no further resets the connection, and its answer may be lost with it
    // (RFC 9112 §9.6). That is between the server and the client; it has to stay the exception, as
    // it is: 20 to 41 of 1,000 were measured.
    assert!(lost < CALLS / 10, "{lost} calls were not answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_rejections_over_http2() {
    let lost = storm(Protocol::Http2).await;

    assert_eq!(lost, 0);
}
