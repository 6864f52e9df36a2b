use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version, header::AUTHORIZATION};
use http_body_util::{BodyExt, Collected};
use hyper::body::Incoming;
use sha2::{Digest, Sha256};
use tower::Service;
use tower_client_credentials::{BoxError, ClientAuth, TokenEndpoint};

use crate::{Body, Connections, Loopback, text};

/// A token endpoint and an API that never accepts the first token it sees on a path.
///
/// The start of the path says when the API refuses:
///
/// | path | first answer |
/// |---|---|
/// | `/late/..` | 401 after the body was read |
/// | `/early/..` | 401 before the body was read; the rest of it is dropped |
/// | `/first-frame/..` | 401 after the first frame of the body; the rest of it is dropped |
/// | `/reading-on/..` | 401 before the body was read, which is read all the same |
/// | any other | 200 at once |
///
/// What is accepted is read to its end and answered with its hash.
#[derive(Debug)]
pub struct Servers {
    api: Loopback,
    issuer: Loopback,
    books: Arc<Books>,
}

/// What the servers write down.
#[derive(Debug, Default)]
struct Books {
    issued: Mutex<usize>,
    received: Mutex<Vec<Received>>,
    refused: Mutex<HashMap<String, HeaderValue>>,
}

/// One request that the API has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub path: String,
    pub version: Version,
    /// The text of the `Authorization` header.
    pub authorization: Option<HeaderValue>,
    /// Of the body, if it was read to its end.
    pub hash: Option<String>,
    pub trailer: Option<HeaderValue>,
}

impl Servers {
    /// Starts both; the API answers with the hash of what it got.
    pub async fn start() -> Self {
        Self::with_refusal(small_refusal()).await
    }

    /// Starts both; the API refuses tokens with the given 401.
    pub async fn with_refusal(refusal: Response<Bytes>) -> Self {
        let books = Arc::new(Books::default());
        let api = Loopback::start({
            let books = Arc::clone(&books);
            move |request| answer(Arc::clone(&books), refusal.clone(), request)
        })
        .await;
        Self::around(api, books).await
    }

    /// Starts the token endpoint, for an API of the test's own.
    pub async fn for_api(api: Loopback) -> Self {
        Self::around(api, Arc::default()).await
    }

    async fn around(api: Loopback, books: Arc<Books>) -> Self {
        let issuer = Loopback::start({
            let books = Arc::clone(&books);
            move |request| issue(Arc::clone(&books), request)
        })
        .await;
        Self { api, issuer, books }
    }

    /// A URL of the API.
    pub fn url(&self, path: &str) -> String {
        self.api.url(path)
    }

    /// The token service, with the client under test.
    pub fn tokens<C, B, ResBody>(&self, client: C) -> TokenEndpoint
    where
        C: Service<Request<B>, Response = Response<ResBody>> + Clone + Send + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send + 'static,
        B: From<Bytes>,
        ResBody: http_body::Body<Error: Into<BoxError>> + Send + 'static,
    {
        let auth = ClientAuth::client_secret_post("id", "secret");
        TokenEndpoint::new(client, self.issuer.url("/token"), auth).expect("the URL is fine")
    }

    /// The API's connections.
    pub fn connections(&self) -> &Connections {
        self.api.connections()
    }

    /// The token endpoint's connections.
    pub fn issuer_connections(&self) -> &Connections {
        self.issuer.connections()
    }

    /// How many tokens were issued.
    pub fn issued(&self) -> usize {
        *self.books.issued.lock().unwrap()
    }

    /// What the API has got so far.
    pub fn received(&self) -> Vec<Received> {
        self.books.received.lock().unwrap().clone()
    }
}

/// The token endpoint: tokens are "token-1", "token-2" and so on.
async fn issue(books: Arc<Books>, request: Request<Incoming>) -> Response<Body> {
    let form = request.into_body().collect().await.map(Collected::to_bytes);
    let asked: &[u8] = b"grant_type=client_credentials&client_id=id&client_secret=secret";
    if form.is_ok_and(|form| form == asked) {
        let mut issued = books.issued.lock().unwrap();
        *issued += 1;
        let reply = format!(r#"{{"access_token":"token-{issued}","expires_in":"1800"}}"#);
        return Response::new(text(reply));
    }
    let mut response = Response::new(text(r#"{"error":"invalid_request"}"#));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

/// The API.
async fn answer(
    books: Arc<Books>,
    refusal: Response<Bytes>,
    request: Request<Incoming>,
) -> Response<Body> {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let received = Received {
        path: path.clone(),
        version: head.version,
        authorization: head.headers.get(AUTHORIZATION).cloned(),
        hash: None,
        trailer: None,
    };
    let authorization = received.authorization.clone();
    let is_refused = books.refuses(&path, authorization);
    let when = path.split('/').nth(1);
    match when {
        _ if !is_refused => {}
        Some("early") => {
            books.write(received);
            return refusal.map(text);
        }
        Some("first-frame") => {
            books.write(received);
            let _ = body.frame().await;
            return refusal.map(text);
        }
        Some("reading-on") => {
            let books = Arc::clone(&books);
            tokio::spawn(async move { books.write(read(body, received).await) });
            return refusal.map(text);
        }
        _ => {}
    }

    let received = read(body, received).await;
    let hash = received.hash.clone();
    books.write(received);
    match hash {
        Some(_) if is_refused => refusal.map(text),
        Some(hash) => Response::new(text(hash)),
        None => {
            let mut response = Response::new(text("the body breaks off"));
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response
        }
    }
}

impl Books {
    fn refuses(&self, path: &str, authorization: Option<HeaderValue>) -> bool {
        let refusing = ["/late/", "/early/", "/first-frame/", "/reading-on/"];
        if !refusing.iter().any(|start| path.starts_with(start)) {
            return false;
        }
        let Some(authorization) = authorization else {
            return true;
        };
        let mut refused = self.refused.lock().unwrap();
        let first = refused
            .entry(path.to_owned())
            .or_insert_with(|| authorization.clone());
        *first == authorization
    }

    fn write(&self, received: Received) {
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
            Err(_broken_off) => return received,
        }
    }
    received.hash = Some(format!("{:x}", hasher.finalize()));
    received
}

/// LinkedIn's answer to a token that it does not accept: no `WWW-Authenticate`.
fn small_refusal() -> Response<Bytes> {
    let body = r#"{"serviceErrorCode":65600,"message":"Invalid access token","status":401}"#;
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    response
}
