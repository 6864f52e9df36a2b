//! A plain HTTP client for the kit's servers, and token requests.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses only a part of this module"
)]

use std::{error::Error, io, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tower::ServiceExt;
use tower_client_credentials_test::{AuthServer, BoxError};

pub const ID: &str = "my-client";
pub const SECRET: &str = "s3cret";

/// Far more than any test needs, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// A server with one client.
pub fn auth_server() -> AuthServer {
    AuthServer::new().with_client(ID, SECRET)
}

/// hyper's client for one HTTP version.
pub fn hyper_client(http2: bool) -> Client<HttpConnector, Full<Bytes>> {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.http2_only(http2).retry_canceled_requests(false);
    builder.build_http()
}

/// A token request that the server accepts.
pub fn token_request(url: impl AsRef<str>) -> Request<Full<Bytes>> {
    form_request(
        url,
        "grant_type=client_credentials&client_id=my-client&client_secret=s3cret",
    )
}

pub fn form_request(url: impl AsRef<str>, form: &str) -> Request<Full<Bytes>> {
    Request::post(url.as_ref())
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Full::from(form.to_owned()))
        .unwrap()
}

/// A token request with this text in its Basic header, as it is before Base64.
pub fn basic_request(credentials: &str, form: &str) -> Request<Full<Bytes>> {
    let mut request = form_request("/token", form);
    let basic = format!("Basic {}", BASE64_STANDARD.encode(credentials));
    let headers = request.headers_mut();
    headers.insert("authorization", basic.parse().unwrap());
    request
}

/// The status and the JSON object of a reply, in process.
pub async fn reply(auth: &AuthServer, request: Request<Full<Bytes>>) -> (u16, Value) {
    let response = auth.clone().oneshot(request).await.unwrap();
    json(response).await
}

pub async fn json<B>(response: Response<B>) -> (u16, Value)
where
    B: http_body::Body<Error: std::fmt::Debug>,
{
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// A new token of the server.
pub async fn token(auth: &AuthServer) -> String {
    let (status, reply) = reply(auth, token_request("/token")).await;
    assert_eq!(status, 200, "{reply}");
    reply["access_token"].as_str().unwrap().to_owned()
}

pub fn with_token(token: &str) -> Request<Full<Bytes>> {
    Request::get("https://api.example.com/orders")
        .header("authorization", format!("Bearer {token}"))
        .body(Full::default())
        .unwrap()
}

/// Waits for a future that must not hang.
pub async fn in_time<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("the future does not hang")
}

/// The kind of the I/O error that caused an error.
pub fn io_kind(error: impl Into<BoxError>) -> Option<io::ErrorKind> {
    let error = error.into();
    let mut cause: Option<&(dyn Error + 'static)> = Some(&*error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        cause = error.source();
    }
    None
}
