//! tonic's channel: bodies that are neither `Clone` nor `Sync`, and gRPC's own status.

use std::{pin::Pin, time::Duration};

use bytes::{Buf, BufMut, Bytes};
use futures_util::{StreamExt, stream};
use http::{Request, Response, header::AUTHORIZATION, response::Parts};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use sha2::{Digest, Sha256};
use support::{Loopback, Protocol, Servers, hash, hyper_client, in_time};
use tonic::{
    Code, Status, Streaming,
    body::Body,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::ClientStreamingService,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, buffer::BufferLayer,
    limit::GlobalConcurrencyLimitLayer, timeout::TimeoutLayer,
};
use tower_client_credentials::{
    BoxError, ClientCredentialsLayer, NotReplayed, TokenOutcome, replay::Buffered,
};
use tower_http::{
    decompression::DecompressionLayer, follow_redirect::FollowRedirectLayer, trace::TraceLayer,
};

/// A gRPC server responds to a missing token with status 200 and `grpc-status: 16`
/// (`UNAUTHENTICATED`) in the headers.
fn is_unauthenticated(response: &Parts) -> bool {
    response
        .headers
        .get("grpc-status")
        .is_some_and(|status| status == "16")
}

/// When the server rejects the first token.
#[derive(Clone, Copy, Debug)]
enum Rejecting {
    /// Before reading the request body.
    Early,
    /// After reading the request body.
    Late,
}

/// Starts gRPC services behind a check of the token: the health service, and one that hashes its
/// input.
async fn servers(rejecting: Rejecting) -> Servers {
    let (_reporter, health) = tonic_health::server::health_reporter();
    let api = Loopback::start(move |request: Request<Incoming>| {
        let health = health.clone();
        async move {
            let is_accepted = request
                .headers()
                .get(AUTHORIZATION)
                .is_some_and(|token| token != "Bearer token-1");
            if !is_accepted {
                if let Rejecting::Late = rejecting {
                    let _ = request.into_body().collect().await;
                }
                return Status::unauthenticated("token expired").into_http();
            }
            match request.uri().path() {
                "/hash" => {
                    tonic::server::Grpc::new(Raw)
                        .client_streaming(Hash, request)
                        .await
                }
                _ => health
                    .oneshot(request)
                    .await
                    .unwrap_or_else(|never| match never {}),
            }
        }
    })
    .await;
    Servers::with_api(api).await
}

/// Builds the stack as a user would.
fn stack(
    servers: &Servers,
    limit: usize,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = BoxError, Future: Send + 'static>
+ Clone
+ Send {
    let channel: Channel = Endpoint::from_shared(servers.url(""))
        .unwrap()
        .connect_lazy();
    let tokens = servers.tokens(hyper_client::<Full<Bytes>>(Protocol::Http1));
    ClientCredentialsLayer::new(tokens)
        .rejected_when(is_unauthenticated)
        .replay(Buffered::new(limit).map(Body::new))
        .layer(channel)
}

#[tokio::test]
async fn unary_call_of_a_generated_client_is_replayed() {
    for rejecting in [Rejecting::Early, Rejecting::Late] {
        let servers = servers(rejecting).await;
        let mut client = HealthClient::new(stack(&servers, 64 * 1024));

        let call = client.check(HealthCheckRequest::default());
        let response = in_time(call).await.unwrap().into_inner();

        assert_eq!(response.status().as_str_name(), "SERVING");
        assert_eq!(servers.issued(), 2);
    }
}

#[tokio::test]
async fn server_streaming_call_is_replayed() {
    let servers = servers(Rejecting::Late).await;
    let mut client = HealthClient::new(stack(&servers, 64 * 1024));

    let call = client.watch(HealthCheckRequest::default());
    let mut responses = in_time(call).await.unwrap().into_inner();

    let response = in_time(responses.message()).await.unwrap().unwrap();
    assert_eq!(response.status().as_str_name(), "SERVING");
}

#[tokio::test]
async fn client_streaming_call_is_replayed() {
    for rejecting in [Rejecting::Early, Rejecting::Late] {
        let servers = servers(rejecting).await;
        let mut client = Grpc::new(stack(&servers, 8 * 1024 * 1024));

        let response = hash_of(&mut client, messages()).await.unwrap();

        assert_eq!(response, hash(messages().concat()), "{rejecting:?}");
        assert_eq!(servers.issued(), 2);
    }
}

/// gRPC has no redirects and compresses its messages itself, but these layers do no harm. `Retry`
/// is left out because it cannot copy messages.
#[tokio::test]
async fn other_layers_work_above_and_below() {
    for rejecting in [Rejecting::Early, Rejecting::Late] {
        let servers = servers(rejecting).await;
        let channel: Channel = Endpoint::from_shared(servers.url(""))
            .unwrap()
            .connect_lazy();
        let shared_limit = GlobalConcurrencyLimitLayer::new(1);
        let tokens = shared_limit.layer(hyper_client::<Full<Bytes>>(Protocol::Http1));
        let credentials = ClientCredentialsLayer::new(servers.tokens(tokens))
            .rejected_when(is_unauthenticated)
            .replay(Buffered::new(8 * 1024 * 1024).map(Body::new));
        let service = ServiceBuilder::new()
            .map_response(|response: Response<_>| response.map(Body::new))
            .layer(BufferLayer::new(8))
            .layer(TraceLayer::new_for_grpc())
            .layer(TimeoutLayer::new(Duration::from_secs(30)))
            .layer(DecompressionLayer::new())
            .layer(credentials)
            .layer(BufferLayer::new(8))
            .layer(TraceLayer::new_for_grpc())
            .layer(TimeoutLayer::new(Duration::from_secs(30)))
            .layer(FollowRedirectLayer::new())
            .layer(DecompressionLayer::new())
            .layer(shared_limit)
            .service(channel);

        let mut health = HealthClient::new(service.clone());
        let response = in_time(health.check(HealthCheckRequest::default())).await;
        let hash_of_messages = hash_of(&mut Grpc::new(service), messages()).await;

        let status = response.unwrap().into_inner().status();
        assert_eq!(status.as_str_name(), "SERVING");
        assert_eq!(hash_of_messages.unwrap(), hash(messages().concat()));
        assert_eq!(servers.issued(), 2);
    }
}

/// The caller gets the server's status.
#[tokio::test]
async fn client_streaming_call_over_the_limit_is_sent_once() {
    let servers = servers(Rejecting::Late).await;
    let stack = stack(&servers, 128 * 1024);
    let reason = std::sync::Arc::new(std::sync::Mutex::new(None));
    let stack = stack.map_response({
        let reason = std::sync::Arc::clone(&reason);
        move |response| {
            *reason.lock().unwrap() = response
                .extensions()
                .get::<TokenOutcome>()
                .and_then(TokenOutcome::not_replayed)
                .cloned();
            response
        }
    });

    let status = hash_of(&mut Grpc::new(stack), messages())
        .await
        .unwrap_err();

    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(status.message(), "token expired");
    assert!(matches!(
        *reason.lock().unwrap(),
        Some(NotReplayed::BodyOverLimit)
    ));
}

/// Four MiB in all.
fn messages() -> Vec<Bytes> {
    (0..64_u8)
        .map(|number| Bytes::from(vec![number; 64 * 1024]))
        .collect()
}

async fn hash_of<S>(client: &mut Grpc<S>, messages: Vec<Bytes>) -> Result<String, Status>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = BoxError>,
{
    client.ready().await.unwrap();
    let path = "/hash".parse().unwrap();
    let request = tonic::Request::new(stream::iter(messages));
    let response = in_time(client.client_streaming(request, path, Raw))
        .await?
        .into_inner();
    Ok(String::from_utf8(response.into()).unwrap())
}

/// The service at `/hash`.
struct Hash;

impl ClientStreamingService<Bytes> for Hash {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(async {
            let mut messages = request.into_inner();
            let mut hasher = Sha256::new();
            while let Some(message) = messages.next().await {
                hasher.update(message?);
            }
            Ok(tonic::Response::new(
                format!("{:x}", hasher.finalize()).into(),
            ))
        })
    }
}

/// A codec for plain bytes, which needs no generated code.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
