//! rmcp's client for the Model Context Protocol: it needs an HTTP client whose error is a standard
//! error.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use futures_util::{StreamExt, stream::BoxStream};
use http::{
    HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE},
};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use rmcp::{
    ServiceExt,
    model::ClientJsonRpcMessage,
    transport::streamable_http_client::{
        SseError, StreamableHttpClient, StreamableHttpClientTransport,
        StreamableHttpClientTransportConfig, StreamableHttpError, StreamableHttpPostResponse,
    },
};
use sse_stream::{Sse, SseStream};
use support::{Loopback, Servers, in_time};
use tower_client_credentials_reqwest::{
    ApiClient, ApiRequestBuilder, ClientExt, Error, token_client,
};

const SESSION: &str = "mcp-session-id";

/// The HTTP client of an MCP client.
#[derive(Clone)]
struct Authorized(ApiClient);

type Headers = HashMap<HeaderName, HeaderValue>;
type Result<T> = std::result::Result<T, StreamableHttpError<Error>>;

impl Authorized {
    async fn send(
        &self,
        request: ApiRequestBuilder,
        session: Option<Arc<str>>,
        headers: Headers,
    ) -> Result<reqwest::Response> {
        let request = request.headers(headers.into_iter().collect());
        let request = match session {
            Some(session) => request.header(SESSION, &*session),
            None => request,
        };
        let response = request.send().await.map_err(StreamableHttpError::Client)?;
        match response.error_for_status() {
            Ok(response) => Ok(response),
            Err(error) => Err(StreamableHttpError::Client(error.into())),
        }
    }
}

impl StreamableHttpClient for Authorized {
    type Error = Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        _token: Option<String>,
        headers: Headers,
    ) -> Result<StreamableHttpPostResponse> {
        let request = self.0.post(&*uri).json(&message);
        let request = request.header(ACCEPT, "application/json, text/event-stream");
        let response = self.send(request, session, headers).await?;
        if response.status() == StatusCode::ACCEPTED {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        let header = |name: HeaderName| {
            let value = response.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let session = header(HeaderName::from_static(SESSION));
        match header(CONTENT_TYPE) {
            Some(kind) if kind.starts_with("text/event-stream") => {
                let events = SseStream::from_bytes_stream(response.bytes_stream()).boxed();
                Ok(StreamableHttpPostResponse::Sse(events, session))
            }
            Some(kind) if kind.starts_with("application/json") => {
                let body = response.bytes().await;
                let body = body.map_err(|error| StreamableHttpError::Client(error.into()))?;
                let message = serde_json::from_slice(&body)?;
                Ok(StreamableHttpPostResponse::Json(message, session))
            }
            kind => Err(StreamableHttpError::UnexpectedContentType(kind)),
        }
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last_event: Option<String>,
        _token: Option<String>,
        headers: Headers,
    ) -> Result<BoxStream<'static, std::result::Result<Sse, SseError>>> {
        let request = self.0.get(&*uri).header(ACCEPT, "text/event-stream");
        let request = match last_event {
            Some(id) => request.header("last-event-id", id),
            None => request,
        };
        let response = self.send(request, session, headers).await?;
        Ok(SseStream::from_bytes_stream(response.bytes_stream()).boxed())
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session: Arc<str>,
        _token: Option<String>,
        headers: Headers,
    ) -> Result<()> {
        let request = self.0.delete(&*uri);
        self.send(request, Some(session), headers).await?;
        Ok(())
    }
}

/// An MCP server with one tool. It rejects "token-1".
async fn server() -> Servers {
    let api = Loopback::start(async |request: Request<Incoming>| {
        let (head, body) = request.into_parts();
        let token = head.headers.get(AUTHORIZATION);
        if token.is_none_or(|token| token == "Bearer token-1") {
            return status(StatusCode::UNAUTHORIZED);
        }
        let body = body.collect().await.unwrap().to_bytes();
        let message: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let result = match message["method"].as_str().unwrap_or_default() {
            "initialize" => serde_json::json!({
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "calculator", "version": "1"},
            }),
            "tools/list" => serde_json::json!({
                "tools": [{"name": "add", "inputSchema": {"type": "object"}}],
            }),
            method if method.starts_with("notifications/") => return status(StatusCode::ACCEPTED),
            "" => return status(StatusCode::METHOD_NOT_ALLOWED),
            _ => {
                let error = serde_json::json!({"code": -32601, "message": "unknown method"});
                return json(&serde_json::json!({
                    "jsonrpc": "2.0", "id": message["id"], "error": error,
                }));
            }
        };
        json(&serde_json::json!({"jsonrpc": "2.0", "id": message["id"], "result": result}))
    })
    .await;
    Servers::with_api(api).await
}

fn status(status: StatusCode) -> Response<Full<bytes::Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn json(value: &serde_json::Value) -> Response<Full<bytes::Bytes>> {
    let mut response = Response::new(Full::from(value.to_string()));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[tokio::test]
async fn tools_are_listed_after_a_rejected_token() {
    let servers = server().await;
    let tokens = servers.tokens(token_client().unwrap());
    let client = Authorized(reqwest::Client::new().with_client_credentials(tokens));
    let config = StreamableHttpClientTransportConfig::with_uri(servers.url("/mcp"));
    let transport = StreamableHttpClientTransport::with_client(client, config);

    let client = in_time(().serve(transport)).await.unwrap();
    let tools = in_time(client.list_all_tools()).await.unwrap();

    let names = tools.into_iter().map(|tool| tool.name);
    assert_eq!(Vec::from_iter(names), [Cow::from("add")]);
    assert_eq!(servers.issued(), 2);
    let heads = servers.heads();
    assert_eq!(heads[0].method, "POST");
    assert_eq!(heads[0], heads[1]);
    let _ = in_time(client.cancel()).await;
}

#[tokio::test]
async fn error_says_that_there_is_no_token() {
    let servers = server().await;
    let tokens = servers.tokens(token_client().unwrap());
    let client = Authorized(reqwest::Client::new().with_client_credentials(tokens));
    drop(servers);
    let config = StreamableHttpClientTransportConfig::with_uri("http://127.0.0.1:9/mcp");
    let transport = StreamableHttpClientTransport::with_client(client, config);

    let error = in_time(().serve(transport)).await.unwrap_err();

    let error: &dyn std::error::Error = &error;
    let chain = std::iter::successors(Some(error), |error| error.source());
    let chain = Vec::from_iter(chain.map(ToString::to_string)).join(": ");
    assert!(chain.contains("request to token endpoint"), "{chain}");
}
