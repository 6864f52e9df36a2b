//! The token endpoint of all peers: a server on loopback that counts its requests.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{runtime, sync::oneshot, time::sleep};

pub(crate) const CLIENT_ID: &str = "client";
pub(crate) const CLIENT_SECRET: &str = "secret";

/// In bytes; the typical size of a JWT with a few claims.
pub(crate) const TOKEN_SIZE: usize = 800;

/// In seconds. Longer than every peer's refresh window, so that none of them refreshes during the
/// bench.
const TOKEN_LIFETIME: u32 = 3 * 60 * 60;

/// Issues a new token for each request and counts the requests. Stops when dropped.
pub(crate) struct Endpoint {
    url: String,
    requests: Arc<AtomicUsize>,
    _stop: oneshot::Sender<()>,
}

impl Endpoint {
    /// Starts an endpoint that issues a token after `delay`.
    pub(crate) fn issuing_after(delay: Duration) -> Self {
        Self::start(delay, StatusCode::OK)
    }

    /// Starts an endpoint that responds with 503 after `delay`.
    pub(crate) fn failing_after(delay: Duration) -> Self {
        Self::start(delay, StatusCode::SERVICE_UNAVAILABLE)
    }

    /// The server has its own thread, so that busy callers do not delay its responses.
    fn start(delay: Duration, status: StatusCode) -> Self {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("the listener is bound");
        listener
            .set_nonblocking(true)
            .expect("the listener supports non-blocking mode");

        let requests = Arc::new(AtomicUsize::new(0));
        let handler = Handler {
            delay,
            status,
            requests: Arc::clone(&requests),
        };
        let (stop, stopped) = oneshot::channel();
        thread::spawn(move || {
            runtime().block_on(async {
                tokio::select! {
                    () = serve(listener, handler) => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            url: format!("http://{address}/token"),
            requests,
            _stop: stop,
        }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The number of token requests so far.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Builds the runtime of the server or of the callers.
pub(crate) fn runtime() -> runtime::Runtime {
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the system has the resources")
}

/// Returns the number of the token in a header value, if this endpoint issued it.
pub(crate) fn token_number(header_value: &[u8]) -> Option<usize> {
    let token = header_value.strip_prefix(b"Bearer ")?;
    let digits = std::str::from_utf8(token).ok()?;
    (digits.len() == TOKEN_SIZE).then(|| digits.parse().ok())?
}

#[derive(Clone)]
struct Handler {
    delay: Duration,
    status: StatusCode,
    requests: Arc<AtomicUsize>,
}

impl Handler {
    async fn respond(self) -> Result<Response<Full<Bytes>>, Infallible> {
        let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        sleep(self.delay).await;
        let body = if self.status.is_success() {
            json!({
                "access_token": format!("{number:0>TOKEN_SIZE$}"),
                "token_type": "Bearer",
                "expires_in": TOKEN_LIFETIME,
            })
        } else {
            json!({ "error": "temporarily_unavailable" })
        };
        let response = Response::builder()
            .status(self.status)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_string()))
            .expect("the parts are valid");
        Ok(response)
    }
}

async fn serve(listener: TcpListener, handler: Handler) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("the listener is ready");
    loop {
        let Ok((connection, _)) = listener.accept().await else {
            continue;
        };
        let handler = handler.clone();
        let service = service_fn(move |_| handler.clone().respond());
        // Connections of callers that give up end with an error.
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), service));
    }
}
