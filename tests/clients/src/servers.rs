use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, StatusCode, Version,
    header::{AUTHORIZATION, CONTENT_LENGTH, TRANSFER_ENCODING},
};
use http_body_util::{BodyExt, Collected};
use hyper::body::Incoming;
use sha2::{Digest, Sha256};
use tower::Service;
use tower_client_credentials::{BoxError, ClientAuth, TokenEndpoint};

use crate::{Body, Connections, Head, Loopback, text};

/// A token endpoint, and an API that rejects the first token it receives on a path.
///
/// The start of the path determines when the API rejects:
///
/// | path | first response |
/// |---|---|
/// | `/late/..` | 401 after reading the body |
/// | `/early/..` | 401 before reading the body, which is dropped |
/// | `/first-frame/..` | 401 after reading the first frame of the body; the rest is dropped |
/// | `/reading-on/..` | 401 before reading the body, which is read all the same |
/// | any other | 200 |
///
/// The response to an accepted request is the hash of its body.
#[derive(Debug)]
pub struct Servers {
    api: Loopback,
    issuer: Loopback,
    log: Arc<Log>,
}

/// The tokens and requests that the servers have seen.
#[derive(Debug, Default)]
struct Log {
    issued: Mutex<usize>,
    received: Mutex<Vec<Received>>,
    rejected: Mutex<HashMap<String, HeaderValue>>,
}

/// A request that the API received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub path: String,
    pub version: Version,
    /// The text of the `Authorization` header.
    pub authorization: Option<HeaderValue>,
    /// The headers `Content-Length` and `Transfer-Encoding`.
    pub framing: [Option<HeaderValue>; 2],
    /// The hash of the body, if it was read to its end.
    pub hash: Option<String>,
    pub trailer: Option<HeaderValue>,
}

impl Servers {
    /// Starts both servers.
    pub async fn start() -> Self {
        Self::with_rejection(small_rejection()).await
    }

    /// Starts both servers. The API rejects tokens with the given response.
    pub async fn with_rejection(rejection: Response<Bytes>) -> Self {
        let log = Arc::new(Log::default());
        let api = Loopback::start({
            let log = Arc::clone(&log);
            move |request| respond(Arc::clone(&log), rejection.clone(), request)
        })
        .await;
        Self::with_api_and_log(api, log).await
    }

    /// Starts the token endpoint for the given API.
    pub async fn with_api(api: Loopback) -> Self {
        Self::with_api_and_log(api, Arc::default()).await
    }

    async fn with_api_and_log(api: Loopback, log: Arc<Log>) -> Self {
        let issuer = Loopback::start({
            let log = Arc::clone(&log);
            move |request| issue(Arc::clone(&log), request)
        })
        .await;
        Self { api, issuer, log }
    }

    /// Returns the URL of a path of the API.
    pub fn url(&self, path: &str) -> String {
        self.api.url(path)
    }

    /// Builds the token service with the given client.
    pub fn tokens<C, B, ResBody>(&self, client: C) -> TokenEndpoint
    where
        C: Service<Request<B>, Response = Response<ResBody>> + Clone + Send + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send + 'static,
        B: From<Bytes>,
        ResBody: http_body::Body<Error: Into<BoxError>> + Send + 'static,
    {
        let auth = ClientAuth::client_secret_post("id", "secret");
        TokenEndpoint::new(client, self.issuer.url("/token"), auth).expect("the URL is valid")
    }

    /// The connections of the API.
    pub fn connections(&self) -> &Connections {
        self.api.connections()
    }

    /// The requests that the API received so far, with all headers except the token.
    pub fn heads(&self) -> Vec<Head> {
        self.api.heads()
    }

    /// The connections of the token endpoint.
    pub fn issuer_connections(&self) -> &Connections {
        self.issuer.connections()
    }

    /// The number of tokens issued so far.
    pub fn issued(&self) -> usize {
        *self.log.issued.lock().unwrap()
    }

    /// The requests that the API received so far.
    pub fn received(&self) -> Vec<Received> {
        self.log.received.lock().unwrap().clone()
    }
}

/// The token endpoint: tokens are "token-1", "token-2" and so on.
async fn issue(log: Arc<Log>, request: Request<Incoming>) -> Response<Body> {
    let form = request.into_body().collect().await.map(Collected::to_bytes);
    let expected: &[u8] = b"grant_type=client_credentials&client_id=id&client_secret=secret";
    if form.is_ok_and(|form| form == expected) {
        let mut issued = log.issued.lock().unwrap();
        *issued += 1;
        let reply = format!(r#"{{"access_token":"token-{issued}","expires_in":"1800"}}"#);
        return Response::new(text(reply));
    }
    let mut response = Response::new(text(r#"{"error":"invalid_request"}"#));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

/// The API.
async fn respond(
    log: Arc<Log>,
    rejection: Response<Bytes>,
    request: Request<Incoming>,
) -> Response<Body> {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let received = Received {
        path: path.clone(),
        version: head.version,
        authorization: head.headers.get(AUTHORIZATION).cloned(),
        framing: [CONTENT_LENGTH, TRANSFER_ENCODING].map(|name| head.headers.get(name).cloned()),
        hash: None,
        trailer: None,
    };
    let authorization = received.authorization.clone();
    let is_rejected = log.rejects(&path, authorization);
    let when = path.split('/').nth(1);
    match when {
        _ if !is_rejected => {}
        Some("early") => {
            log.record(received);
            return rejection.map(text);
        }
        Some("first-frame") => {
            log.record(received);
            let _ = body.frame().await;
            return rejection.map(text);
        }
        Some("reading-on") => {
            let log = Arc::clone(&log);
            tokio::spawn(async move { log.record(read(body, received).await) });
            return rejection.map(text);
        }
        _ => {}
    }

    let received = read(body, received).await;
    let hash = received.hash.clone();
    log.record(received);
    match hash {
        Some(_) if is_rejected => rejection.map(text),
        Some(hash) => Response::new(text(hash)),
        None => {
            let mut response = Response::new(text("the body is incomplete"));
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response
        }
    }
}

impl Log {
    fn rejects(&self, path: &str, authorization: Option<HeaderValue>) -> bool {
        let rejecting = ["/late/", "/early/", "/first-frame/", "/reading-on/"];
        if !rejecting.iter().any(|start| path.starts_with(start)) {
            return false;
        }
        let Some(authorization) = authorization else {
            return true;
        };
        let mut rejected = self.rejected.lock().unwrap();
        let first = rejected
            .entry(path.to_owned())
            .or_insert_with(|| authorization.clone());
        *first == authorization
    }

    fn record(&self, received: Received) {
        self.received.lock().unwrap().push(received);
    }
}

async fn read(mut body: Incoming, mut received: Received) -> Received {
    let mut hasher = Sha256::new();
    while let Some(frame) = body.frame().await {
        match frame.map(http_body::Frame::into_data) {
            Ok(Ok(data)) => hasher.update(data),
            Ok(Err(frame)) => {
                received.trailer = frame
                    .into_trailers()
                    .ok()
                    .and_then(|trailers| trailers.get("x-sum").cloned());
            }
            Err(_incomplete) => return received,
        }
    }
    received.hash = Some(format!("{:x}", hasher.finalize()));
    received
}

/// LinkedIn's response to an invalid token. It has no `WWW-Authenticate`.
fn small_rejection() -> Response<Bytes> {
    let body = r#"{"serviceErrorCode":65600,"message":"Invalid access token","status":401}"#;
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    response
}
