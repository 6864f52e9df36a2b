use std::{
    convert::Infallible,
    fmt, future, io,
    net::{Ipv4Addr, SocketAddr},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::{JoinHandle, JoinSet},
    time::sleep,
};
use tower_service::Service;

use crate::Body;

/// A server that listens on a port. It stops, and closes all its connections, when this is dropped.
///
/// To let clients meet a server that is down, [`stop`](Self::stop) it. To let it come back, start a
/// server with the same [`address`](Self::address).
///
/// [`AuthServer::serve`](crate::AuthServer::serve) and [`Api::serve`](crate::Api::serve) start one.
#[derive(Debug)]
pub struct Server {
    scheme: &'static str,
    address: SocketAddr,
    /// Owns the tasks of its connections.
    accepting: JoinHandle<()>,
}

impl Server {
    /// Serves any service on a free port of the loopback interface, for HTTP/1.1 and HTTP/2.
    ///
    /// An error of the service resets the connection.
    ///
    /// # Errors
    ///
    /// Fails if the operating system provides no port.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime.
    pub async fn start<S>(service: S) -> io::Result<Self>
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Future: Send>
            + Clone
            + Send
            + 'static,
    {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), service).await
    }

    /// Like [`start`](Self::start), at this address.
    ///
    /// # Errors
    ///
    /// Fails if the address can't be bound.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime.
    pub async fn start_at<S>(address: SocketAddr, service: S) -> io::Result<Self>
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Future: Send>
            + Clone
            + Send
            + 'static,
    {
        let accept = |socket| future::ready(Ok(socket));
        Self::start_with("http", address, service, accept).await
    }

    /// Starts a server that turns each socket into a stream, for example by a TLS handshake.
    pub(crate) async fn start_with<S, A, F, T>(
        scheme: &'static str,
        address: SocketAddr,
        service: S,
        accept: A,
    ) -> io::Result<Self>
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Future: Send>
            + Clone
            + Send
            + 'static,
        A: Fn(Socket) -> F + Send + 'static,
        F: Future<Output = io::Result<T>> + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self {
            scheme,
            address,
            accepting: tokio::spawn(accept_connections(listener, service, accept)),
        })
    }

    /// Returns the address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the URL of a path, such as `/token`.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    /// Stops the server, and waits until its port is closed. After that, clients that connect are
    /// refused.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future also stops the server, but doesn't wait.
    pub async fn stop(mut self) {
        self.accepting.abort();
        // An error says that the task was aborted.
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept_connections<S, A, F, T>(listener: TcpListener, service: S, accept: A)
where
    S: Service<Request<Incoming>, Response = Response<Body>, Future: Send> + Clone + Send + 'static,
    A: Fn(Socket) -> F,
    F: Future<Output = io::Result<T>> + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // The process may have no file descriptor left.
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let reset = Arc::new(Reset::default());
        let stream = accept(Socket::new(stream, Arc::clone(&reset)));
        connections.spawn(serve_connection(stream, service.clone(), reset));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve_connection<S, F, T>(stream: F, service: S, reset: Arc<Reset>)
where
    S: Service<Request<Incoming>, Response = Response<Body>, Future: Send> + Clone + Send + 'static,
    F: Future<Output = io::Result<T>>,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ok(stream) = stream.await else {
        return;
    };
    let ending = Arc::clone(&reset);
    let answer = service_fn(move |request| {
        let (mut service, reset) = (service.clone(), Arc::clone(&ending));
        async move {
            let Some(response) = call(&mut service, request).await else {
                reset.request();
                // The connection ends before hyper can answer.
                return future::pending().await;
            };
            Ok::<_, Infallible>(response)
        }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    let connection = server.serve_connection(TokioIo::new(stream), answer);
    let mut connection = pin!(connection);
    let mut requested = pin!(reset.requested.notified());
    future::poll_fn(|cx| match requested.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        // Clients may close their connections at any time.
        Poll::Pending => connection.as_mut().poll(cx).map(drop),
    })
    .await;
}

/// Returns `None` if the service fails.
async fn call<S>(service: &mut S, request: Request<Incoming>) -> Option<Response<Body>>
where
    S: Service<Request<Incoming>, Response = Response<Body>>,
{
    future::poll_fn(|cx| service.poll_ready(cx)).await.ok()?;
    service.call(request).await.ok()
}

/// A request to end a connection with a TCP reset.
#[derive(Debug, Default)]
struct Reset {
    is_requested: AtomicBool,
    requested: Notify,
}

impl Reset {
    fn request(&self) {
        self.is_requested.store(true, Ordering::Relaxed);
        self.requested.notify_one();
    }
}

/// A TCP connection that can end with a reset.
pub(crate) struct Socket {
    stream: TcpStream,
    reset: Arc<Reset>,
}

impl Socket {
    fn new(stream: TcpStream, reset: Arc<Reset>) -> Self {
        // A connection that was closed in the meantime fails when it is read.
        let _ = stream.set_nodelay(true);
        Self { stream, reset }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.reset.is_requested.load(Ordering::Relaxed) {
            // Without time to linger, closing the socket sends RST instead of FIN.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stream.fmt(f)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
