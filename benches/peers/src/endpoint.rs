//! The token endpoint that every peer asks: a server on loopback that counts.

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

/// In bytes; about what a JWT with a few claims has.
pub(crate) const TOKEN_SIZE: usize = 800;

/// In seconds. Longer than any peer's time of refreshing ahead, so that none has to refresh here.
const TOKEN_LIFE: u32 = 3 * 60 * 60;

/// Counts the requests that reach it and issues another token to each. Stops when dropped.
pub(crate) struct Endpoint {
    url: String,
    requests: Arc<AtomicUsize>,
    _stop: oneshot::Sender<()>,
}

impl Endpoint {
    /// Starts one that issues tokens, each this long after it was asked for.
    pub(crate) fn issuing_after(delay: Duration) -> Self {
        Self::start(delay, StatusCode::OK)
    }

    /// Starts one that is out of order, and says so this long after it was asked.
    pub(crate) fn failing_after(delay: Duration) -> Self {
        Self::start(delay, StatusCode::SERVICE_UNAVAILABLE)
    }

    /// The server has a thread of its own, so that busy callers do not delay its answers.
    fn start(delay: Duration, status: StatusCode) -> Self {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("the listener is bound");
        listener
            .set_nonblocking(true)
            .expect("a listener can be made non-blocking");

        let requests = Arc::new(AtomicUsize::new(0));
        let desk = Desk {
            delay,
            status,
            requests: Arc::clone(&requests),
        };
        let (stop, stopped) = oneshot::channel();
        thread::spawn(move || {
            runtime().block_on(async {
                tokio::select! {
                    () = serve(listener, desk) => {}
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

    /// How many token requests have come so far.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// A runtime for the server, and one for the callers.
pub(crate) fn runtime() -> runtime::Runtime {
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the system lets a runtime start")
}

/// The number of the token in a header value, if it is one of these.
pub(crate) fn token_number(header_value: &[u8]) -> Option<usize> {
    let token = header_value.strip_prefix(b"Bearer ")?;
    let digits = std::str::from_utf8(token).ok()?;
    (digits.len() == TOKEN_SIZE).then(|| digits.parse().ok())?
}

#[derive(Clone)]
struct Desk {
    delay: Duration,
    status: StatusCode,
    requests: Arc<AtomicUsize>,
}

impl Desk {
    async fn answer(self) -> Result<Response<Full<Bytes>>, Infallible> {
        let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        sleep(self.delay).await;
        let body = if self.status.is_success() {
            json!({
                "access_token": format!("{number:0>TOKEN_SIZE$}"),
                "token_type": "Bearer",
                "expires_in": TOKEN_LIFE,
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

async fn serve(listener: TcpListener, desk: Desk) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("the listener is ready");
    loop {
        let Ok((connection, _)) = listener.accept().await else {
            continue;
        };
        let desk = desk.clone();
        let service = service_fn(move |_| desk.clone().answer());
        // A caller that gives up may take its connection with it.
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), service));
    }
}
