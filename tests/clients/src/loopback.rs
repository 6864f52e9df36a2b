use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri, header::AUTHORIZATION};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
};
use tower_client_credentials::BoxError;

use crate::Connections;

/// The response body of the servers.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Makes a response body of a text.
pub fn text(text: impl Into<Bytes>) -> Body {
    Full::new(text.into())
        .map_err(BoxError::from)
        .boxed_unsync()
}

/// A server on 127.0.0.1 for HTTP/1.1 and HTTP/2 without TLS. Closes all connections when it is
/// dropped.
#[derive(Debug)]
pub struct Loopback {
    address: SocketAddr,
    connections: Connections,
    heads: Heads,
    accepting: AbortHandle,
}

type Heads = Arc<Mutex<Vec<Head>>>;

/// A request that a server received, without its token and its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
}

impl Head {
    fn of<B>(request: &Request<B>) -> Self {
        let mut headers = request.headers().clone();
        headers.remove(AUTHORIZATION);
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers,
        }
    }
}

impl Loopback {
    /// Starts a server that calls the handler for each request.
    pub async fn start<H, F, B>(handler: H) -> Self
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a loopback port is free");
        let address = listener.local_addr().expect("the socket is bound");
        let connections = Connections::default();
        let heads = Heads::default();
        let recorded = Arc::clone(&heads);
        let handler = move |request| {
            recorded.lock().unwrap().push(Head::of(&request));
            handler(request)
        };
        let accepting = tokio::spawn(accept(listener, connections.clone(), handler));
        Self {
            address,
            connections,
            heads,
            accepting: accepting.abort_handle(),
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn connections(&self) -> &Connections {
        &self.connections
    }

    /// The requests received so far, in the order of their arrival.
    pub fn heads(&self) -> Vec<Head> {
        self.heads.lock().unwrap().clone()
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept<H, F, B>(listener: TcpListener, connections: Connections, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let mut serving = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).expect("the socket is connected");
        let open = connections.opened();
        let handler = handler.clone();
        let service = service_fn(move |request| {
            let response = handler(request);
            async { Ok::<_, Infallible>(response.await) }
        });
        serving.spawn(async move {
            let _open = open;
            // Some tests close connections in the middle of a request.
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        while serving.try_join_next().is_some() {}
    }
}
