//! A token endpoint and an API on loopback. Both record what they receive.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses only a part of this module"
)]

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header::AUTHORIZATION};
use http_body_util::{BodyExt, Collected, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{net::TcpListener, task::AbortHandle};
use tower_client_credentials::{ClientAuth, TokenEndpoint};
use tower_client_credentials_reqwest::token_client;

/// The form of a token request.
pub const TOKEN_REQUEST: &str =
    "grant_type=client_credentials&client_id=my-client&client_secret=s3cret";

/// A server on 127.0.0.1 for HTTP/1.1 and HTTP/2 without TLS.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    accepting: AbortHandle,
    connections: Arc<AtomicUsize>,
    received: Arc<Mutex<Vec<Received>>>,
}

/// A complete request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub method: Method,
    /// The path and query.
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Received {
    /// The text of a header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().expect("the header is text"))
    }

    pub fn token(&self) -> &str {
        self.header("authorization")
    }

    pub fn without_token(&self) -> Self {
        let mut received = self.clone();
        received.headers.remove(AUTHORIZATION);
        received
    }
}

impl Server {
    /// Starts a server that answers each request when it is complete.
    pub async fn start<F>(answer: impl Fn(Received) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::<AtomicUsize>::default();
        let received = Arc::<Mutex<Vec<Received>>>::default();
        let answer = Arc::new(answer);
        let accepting = tokio::spawn({
            let (connections, received) = (Arc::clone(&connections), Arc::clone(&received));
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    stream.set_nodelay(true).unwrap();
                    connections.fetch_add(1, Ordering::SeqCst);
                    let (answer, received) = (Arc::clone(&answer), Arc::clone(&received));
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (answer, received) = (Arc::clone(&answer), Arc::clone(&received));
                        async move {
                            let request = complete(request).await;
                            received.lock().unwrap().push(request.clone());
                            Ok::<_, Infallible>(answer(request).await)
                        }
                    });
                    tokio::spawn(async move {
                        let io = TokioIo::new(stream);
                        // Some tests drop requests, which closes their connections.
                        let _ = auto::Builder::new(TokioExecutor::new())
                            .serve_connection(io, service)
                            .await;
                    });
                }
            }
        });
        Self {
            address,
            accepting: accepting.abort_handle(),
            connections,
            received,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// The `Authorization` headers of all requests.
    pub fn tokens(&self) -> Vec<String> {
        let received = self.received();
        received
            .iter()
            .map(|request| request.token().to_owned())
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn complete(request: Request<Incoming>) -> Received {
    let (head, body) = request.into_parts();
    let target = head.uri.path_and_query().expect("requests have a target");
    Received {
        method: head.method,
        target: target.as_str().to_owned(),
        headers: head.headers,
        body: body
            .collect()
            .await
            .map_or_else(|_| Bytes::new(), Collected::to_bytes),
    }
}

/// Starts a token endpoint that issues "token-1", "token-2" and so on.
pub async fn issuer() -> Server {
    issuer_with("").await
}

/// Starts a token endpoint whose replies have these fields, too.
pub async fn issuer_with(fields: &'static str) -> Server {
    let issued = AtomicUsize::new(0);
    Server::start(move |request| {
        let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
        let is_valid = request.method == Method::POST && request.body == TOKEN_REQUEST;
        async move {
            if !is_valid {
                return status(StatusCode::BAD_REQUEST);
            }
            let reply = format!(r#"{{"access_token":"token-{number}","expires_in":1800{fields}}}"#);
            Response::new(reply.into())
        }
    })
    .await
}

/// Starts an API that rejects these tokens, without a `WWW-Authenticate` header as LinkedIn does.
pub async fn api_rejecting<const N: usize>(rejected: [&'static str; N]) -> Server {
    Server::start(move |request| async move {
        let is_rejected = request
            .token()
            .strip_prefix("Bearer ")
            .is_none_or(|token| rejected.contains(&token));
        status(if is_rejected {
            StatusCode::UNAUTHORIZED
        } else {
            StatusCode::OK
        })
    })
    .await
}

/// Builds the token service for an issuer.
pub fn tokens(issuer: &Server) -> TokenEndpoint {
    let auth = ClientAuth::client_secret_post("my-client", "s3cret");
    TokenEndpoint::new(token_client().unwrap(), issuer.url("/token"), auth).unwrap()
}

/// A response with a text that names its status.
pub fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(status.to_string()));
    *response.status_mut() = status;
    response
}

/// A redirect.
pub fn redirect(status: StatusCode, location: &str) -> Response<Full<Bytes>> {
    let mut response = self::status(status);
    let location = location.parse().expect("the location is a header value");
    response.headers_mut().insert("location", location);
    response
}

/// Waits for a future that must not hang.
pub async fn in_time<F: Future>(future: F) -> F::Output {
    // Far more than any test needs, even on a busy machine.
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("the future does not hang")
}
