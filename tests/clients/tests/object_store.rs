//! object_store's HTTP stores: their client must fail with a standard error.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector as Connector};
use object_store::{
    ClientOptions, ObjectStore, ObjectStoreExt, PutPayload,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
        HttpResponse, HttpResponseBody, HttpService,
    },
    http::HttpBuilder,
};
use std::sync::{Arc, Mutex};
use support::{Loopback, Protocol, Servers, hyper_client, in_time};
use tower_client_credentials::{ClientCredentials, ClientCredentialsLayer};

/// The client of a store.
#[derive(Clone, Debug)]
struct Authorized(ClientCredentials<Client<Connector, HttpRequestBody>>);

#[async_trait]
impl HttpService for Authorized {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let failed = |error| HttpError::new(HttpErrorKind::Unknown, error);
        let response = self.0.send(request).await.map_err(failed)?;
        Ok(response.map(|body| {
            let body = body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error));
            HttpResponseBody::new(body)
        }))
    }
}

impl HttpConnector for Authorized {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// A server that stores one object, and rejects these tokens.
async fn server(rejected: &'static [&str], puts: Arc<Mutex<Vec<Bytes>>>) -> Servers {
    let api = Loopback::start(move |request: Request<Incoming>| {
        let puts = Arc::clone(&puts);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let is_rejected = head
                .headers
                .get(AUTHORIZATION)
                .is_none_or(|token| rejected.iter().any(|it| token == it));
            let mut puts = puts.lock().unwrap();
            if head.method == "PUT" {
                puts.push(body);
            }
            let response = Response::builder()
                .header("etag", "\"1\"")
                .header("last-modified", "Sat, 28 Nov 2026 12:00:00 GMT");
            match head.method.as_str() {
                _ if is_rejected => response
                    .status(StatusCode::UNAUTHORIZED)
                    .body(Full::<Bytes>::default()),
                "PUT" => response.status(StatusCode::CREATED).body(Full::default()),
                _ => response.body(Full::from(puts.last().unwrap().clone())),
            }
            .unwrap()
        }
    })
    .await;
    Servers::with_api(api).await
}

fn store(servers: &Servers) -> impl ObjectStore {
    let tokens = servers.tokens(hyper_client::<Full<Bytes>>(Protocol::Http1));
    let layer = ClientCredentialsLayer::new(tokens);
    let client = Authorized(tower::Layer::layer(&layer, hyper_client(Protocol::Http1)));
    HttpBuilder::new()
        .with_url(servers.url("/objects"))
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_http_connector(client)
        .build()
        .unwrap()
}

#[tokio::test]
async fn object_is_written_again_after_a_rejection_and_read() {
    let puts = Arc::<Mutex<Vec<Bytes>>>::default();
    let servers = server(&["Bearer token-1"], Arc::clone(&puts)).await;
    let store = store(&servers);
    let chunks = ["one,", "two,", "three"].map(Bytes::from);

    let path = "numbers.csv".into();
    in_time(store.put(&path, PutPayload::from_iter(chunks)))
        .await
        .unwrap();
    let read = in_time(store.get(&path)).await.unwrap().bytes();

    assert_eq!(in_time(read).await.unwrap(), "one,two,three");
    assert_eq!(*puts.lock().unwrap(), ["one,two,three"; 2]);
    let [put, second_put, get] = &servers.heads()[..] else {
        panic!("{:?}", servers.heads())
    };
    assert_eq!(put, second_put);
    assert_eq!(get.method, "GET");
    assert_eq!(servers.connections().accepted(), 1);
    assert_eq!(servers.issued(), 2);
}

#[tokio::test]
async fn hundred_writers_in_spawned_tasks_cause_one_renewal() {
    let puts = Arc::<Mutex<Vec<Bytes>>>::default();
    let servers = server(&["Bearer token-1"], Arc::clone(&puts)).await;
    let store = Arc::new(store(&servers));

    let calls = (0..100).map(|number| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let path = format!("{number}.txt").into();
            store.put(&path, PutPayload::from(number.to_string())).await
        })
    });
    for result in in_time(join_all(calls)).await {
        result.unwrap().unwrap();
    }

    assert_eq!(servers.issued(), 2);
    let mut puts = puts.lock().unwrap().clone();
    puts.sort();
    puts.dedup();
    assert_eq!(puts.len(), 100);
}

#[tokio::test]
async fn error_names_the_token_endpoint() {
    let servers = server(&[], Arc::default()).await;
    let failing =
        Servers::with_api(Loopback::start(async |_| Response::new(support::text(""))).await).await;
    let layer =
        ClientCredentialsLayer::new(failing.tokens(hyper_client::<Full<Bytes>>(Protocol::Http1)));
    drop(failing);
    let client = Authorized(tower::Layer::layer(&layer, hyper_client(Protocol::Http1)));

    let request = Request::get(servers.url("/")).body(HttpRequestBody::empty());
    let error = in_time(client.call(request.unwrap())).await.unwrap_err();

    let cause = std::error::Error::source(&error).unwrap().downcast_ref();
    let cause: &tower_client_credentials::CallError = cause.unwrap();
    let cause = cause.downcast_ref::<tower_client_credentials::Error>();
    assert!(cause.is_some_and(tower_client_credentials::Error::is_transport));
}
