//! axum as a gateway: it forwards the requests of its own clients with the gateway's token.

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{
        StatusCode, Uri,
        header::{AUTHORIZATION, HOST},
        uri::{Authority, Scheme},
    },
    response::Response,
    routing::any,
};
use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use support::{Protocol, Servers, hash, hyper_client, in_time};
use tokio::net::TcpListener;
use tower_client_credentials::{
    ClientCredentials, ClientCredentialsLayer,
    replay::{Buffered, ReplayBody},
};

/// What the gateway's handlers share.
#[derive(Clone)]
struct Gateway {
    api: ClientCredentials<Client<HttpConnector, ReplayBody<Body>>, Buffered>,
    authority: Authority,
}

async fn forward(
    State(gateway): State<Gateway>,
    mut request: Request,
) -> Result<Response, StatusCode> {
    let mut uri = request.uri().clone().into_parts();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(gateway.authority.clone());
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| StatusCode::BAD_REQUEST)?;
    request.headers_mut().remove(AUTHORIZATION);
    request.headers_mut().remove(HOST);
    match gateway.api.send(request).await {
        Ok(response) => Ok(response.map(Body::new)),
        Err(error) => {
            eprintln!("no response from the API: {error}");
            Err(StatusCode::BAD_GATEWAY)
        }
    }
}

/// Starts a gateway and returns its URL.
async fn gateway(servers: &Servers) -> String {
    let tokens = servers.tokens(hyper_client::<Full<Bytes>>(Protocol::Http1));
    let layer = ClientCredentialsLayer::new(tokens).replay(Buffered::new(64 * 1024));
    let api: Uri = servers.url("").parse().unwrap();
    let gateway = Gateway {
        api: tower::Layer::layer(&layer, hyper_client(Protocol::Http1)),
        authority: api.into_parts().authority.unwrap(),
    };
    let router = Router::new().fallback(any(forward)).with_state(gateway);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, router).await });
    format!("http://{address}")
}

#[tokio::test]
async fn gateway_sends_its_own_token_and_replays_the_body() {
    let servers = Servers::start().await;
    let url = gateway(&servers).await;
    let client = hyper_client::<Full<Bytes>>(Protocol::Http1);

    let calls = (0..100).map(|number: usize| {
        let request = Request::post(format!("{url}/late/{number}"))
            .header(AUTHORIZATION, "Bearer of-the-gateways-client")
            .body(Full::from(number.to_string()));
        let response = client.request(request.unwrap());
        async move {
            let response = response.await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, hash(number.to_string()));
        }
    });
    in_time(join_all(calls)).await;

    let received = servers.received();
    assert_eq!(received.len(), 200);
    for request in received {
        let token = request.authorization.unwrap();
        assert!(token.to_str().unwrap().starts_with("Bearer token-"));
    }
    assert_eq!(servers.issued(), 2);
    let heads = servers.heads();
    for number in 0..100 {
        let path = format!("/late/{number}");
        let sends = heads.iter().filter(|head| head.uri.path() == path);
        let [first, second] = Vec::from_iter(sends)[..] else {
            panic!("{path} was not sent twice")
        };
        assert_eq!(first, second);
        assert_eq!(first.method, "POST");
    }
}

#[tokio::test]
async fn forwarded_request_and_its_replay_use_one_connection() {
    let servers = Servers::start().await;
    let url = gateway(&servers).await;
    let client = hyper_client::<Full<Bytes>>(Protocol::Http1);

    let request = Request::post(format!("{url}/late/orders")).body(Full::from("tea"));
    let response = in_time(client.request(request.unwrap())).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(servers.received().len(), 2);
    assert_eq!(servers.connections().accepted(), 1);
}

#[tokio::test]
async fn failure_of_the_token_endpoint_is_a_bad_gateway() {
    let servers = Servers::start().await;
    let url = gateway(&servers).await;
    drop(servers);
    let client = hyper_client::<Full<Bytes>>(Protocol::Http1);

    let request = Request::get(format!("{url}/orders")).body(Full::default());
    let response = in_time(client.request(request.unwrap())).await.unwrap();

    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
}
