//! An authorization server and an API on loopback that are slow, and fail at random.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error as StdError,
    future::poll_fn,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::{
    HeaderName, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_LENGTH},
};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep},
};
use tower_client_credentials::BoxError;

/// Names the call that a request belongs to.
pub(crate) const CALL: HeaderName = HeaderName::from_static("x-call");

/// In whole seconds, as servers say it.
const TOKEN_LIFE: u64 = 1;

type Reply = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// What a server does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Deed {
    Answer,
    /// 503.
    Unavailable,
    /// 401.
    Refuse,
    /// The connection is closed instead of an answer.
    Close,
    /// The connection is reset instead of an answer.
    Reset,
    /// The connection is closed in the middle of the answer.
    CloseHalfway,
    /// The connection is reset in the middle of the answer.
    ResetHalfway,
}

impl Deed {
    /// As the error that it makes of an answer.
    fn error(self) -> io::Error {
        let kind = match self {
            Self::Reset | Self::ResetHalfway => io::ErrorKind::ConnectionReset,
            _ => io::ErrorKind::ConnectionAborted,
        };
        io::Error::new(kind, "ended on purpose")
    }
}

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Party {
    TokenEndpoint,
    Api,
}

/// Both servers; they stop when this is dropped.
pub(crate) struct Servers {
    pub(crate) token_url: String,
    pub(crate) api_url: String,
    book: Arc<Mutex<Book>>,
    _tasks: JoinSet<()>,
}

/// What both servers know.
struct Book {
    rng: fastrand::Rng,
    injected: BTreeMap<(Party, Deed), u64>,
    /// How many requests each server has not answered, now and at most.
    open: HashMap<Party, u64>,
    most_open: BTreeMap<Party, u64>,
    /// When the server ceases to accept each token that was issued lately.
    tokens: HashMap<String, Instant>,
    issued: u64,
    /// How many requests came to the API with a token that had ended, or was none.
    without_token: u64,
    /// What was done last to each call that has not come back.
    calls: HashMap<u64, Option<Deed>>,
}

impl Servers {
    pub(crate) async fn start(seed: u64) -> Result<Self, BoxError> {
        let book = Arc::new(Mutex::new(Book {
            rng: fastrand::Rng::with_seed(seed),
            injected: BTreeMap::new(),
            open: HashMap::new(),
            most_open: BTreeMap::new(),
            tokens: HashMap::new(),
            issued: 0,
            without_token: 0,
            calls: HashMap::new(),
        }));
        let mut tasks = JoinSet::new();
        let token_endpoint = serve(&mut tasks, &book, Party::TokenEndpoint).await?;
        let api = serve(&mut tasks, &book, Party::Api).await?;
        Ok(Self {
            token_url: format!("http://{token_endpoint}/token"),
            api_url: format!("http://{api}/echo"),
            book,
            _tasks: tasks,
        })
    }

    /// Announces a call, so that what is done to it is kept.
    pub(crate) fn expect(&self, call: u64) {
        lock(&self.book).calls.insert(call, None);
    }

    /// What was done last to a call that has come back.
    pub(crate) fn forget(&self, call: u64) -> Option<Deed> {
        lock(&self.book).calls.remove(&call).flatten()
    }

    pub(crate) fn token_requests(&self) -> u64 {
        let injected = self.injected().into_iter();
        let token_requests = injected.filter(|((party, _), _)| *party == Party::TokenEndpoint);
        token_requests.map(|(_, times)| times).sum()
    }

    /// How many token requests were unanswered at a time.
    pub(crate) fn most_token_requests(&self) -> u64 {
        let book = lock(&self.book);
        let most = book.most_open.get(&Party::TokenEndpoint);
        most.copied().unwrap_or_default()
    }

    /// How many requests came to the API with a token that had ended, or was none.
    pub(crate) fn without_token(&self) -> u64 {
        lock(&self.book).without_token
    }

    pub(crate) fn injected(&self) -> BTreeMap<(Party, Deed), u64> {
        lock(&self.book).injected.clone()
    }
}

/// Complains of more than one token request at a time: a flight makes one after the other, and there
/// is one flight.
pub(crate) fn crowd(most_open: u64) -> Option<String> {
    (most_open > 1).then(|| format!("{most_open} token requests at a time"))
}

/// Complains of more calls with a token that had ended than a busy machine delays on their way.
pub(crate) fn neglect(without_token: u64, token_requests: u64, seconds: u64) -> Option<String> {
    // Each token lives for a second, and is refreshed ahead of its end.
    if token_requests < seconds / 2 {
        return Some(format!(
            "{token_requests} token requests only, in {seconds} s"
        ));
    }
    const MOST_PER_SECOND: u64 = 20;
    (without_token > MOST_PER_SECOND * seconds)
        .then(|| format!("{without_token} requests with a token that had ended"))
}

/// Complains of more token requests than short-lived tokens, renewals and failures account for.
pub(crate) fn storm(token_requests: u64, seconds: u64) -> Option<String> {
    // A flight in every 50 ms, the shortest back-off, would be 20 in a second; most of them succeed.
    const MOST_PER_SECOND: u64 = 20;
    (token_requests > MOST_PER_SECOND * (seconds + 1))
        .then(|| format!("{token_requests} token requests in {seconds} s"))
}

impl Book {
    /// Draws how long a request takes, and what becomes of it.
    fn draw(&mut self, party: Party) -> (Duration, Deed) {
        let latency = Duration::from_millis(self.rng.u64(1..80));
        // The token endpoint is asked so rarely that it has to fail more often.
        let hundred = match party {
            Party::TokenEndpoint => 40,
            Party::Api => 100,
        };
        let deed = match self.rng.u8(0..hundred) {
            0..2 => Deed::Close,
            2..4 => Deed::Reset,
            4..6 => Deed::CloseHalfway,
            6..8 => Deed::ResetHalfway,
            8..14 => Deed::Unavailable,
            14..17 => Deed::Refuse,
            _ => Deed::Answer,
        };
        *self.injected.entry((party, deed)).or_default() += 1;
        (latency, deed)
    }

    fn open(&mut self, party: Party) {
        let open = self.open.entry(party).or_default();
        *open += 1;
        let most = self.most_open.entry(party).or_default();
        *most = (*most).max(*open);
    }

    fn issue(&mut self) -> String {
        let now = Instant::now();
        self.tokens.retain(|_, ends_at| *ends_at > now);
        self.issued += 1;
        let token = format!("token-{}", self.issued);
        let ends_at = now + Duration::from_secs(TOKEN_LIFE);
        self.tokens.insert(token.clone(), ends_at);
        format!(r#"{{"access_token":"{token}","expires_in":"{TOKEN_LIFE}"}}"#)
    }

    /// What the API says of the token, whatever else it would do.
    fn accepts(&self, request: &Request<Bytes>) -> bool {
        let header = request.headers().get(AUTHORIZATION);
        let token = header.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let ends_at = token.and_then(|token| self.tokens.get(token));
        ends_at.is_some_and(|ends_at| Instant::now() < *ends_at)
    }

    fn note(&mut self, request: &Request<Bytes>, deed: Deed) {
        let call = request.headers().get(CALL);
        let call = call.and_then(|value| value.to_str().ok()?.parse().ok());
        // A call that was given up is not waited for.
        if let Some(last) = call.and_then(|call: u64| self.calls.get_mut(&call)) {
            *last = Some(deed);
        }
    }
}

/// What a server answers; an error ends the connection.
async fn answer(
    book: Arc<Mutex<Book>>,
    party: Party,
    request: Request<Bytes>,
) -> Result<Reply, io::Error> {
    let (latency, drawn) = lock(&book).draw(party);
    {
        let _open = Open::new(&book, party);
        sleep(latency).await;
    }
    let (deed, text) = {
        let mut book = lock(&book);
        let deed = match (party, drawn) {
            (Party::Api, Deed::Answer) if !book.accepts(&request) => {
                book.without_token += 1;
                Deed::Refuse
            }
            _ => drawn,
        };
        book.note(&request, deed);
        let text = match (party, deed) {
            (Party::TokenEndpoint, Deed::Answer | Deed::CloseHalfway | Deed::ResetHalfway) => {
                book.issue().into()
            }
            _ => request.into_body(),
        };
        (deed, text)
    };
    match deed {
        Deed::Answer => Ok(whole(StatusCode::OK, text)),
        Deed::Unavailable => Ok(whole(StatusCode::SERVICE_UNAVAILABLE, refusal(deed))),
        Deed::Refuse => Ok(whole(StatusCode::UNAUTHORIZED, refusal(deed))),
        Deed::Close | Deed::Reset => Err(deed.error()),
        Deed::CloseHalfway | Deed::ResetHalfway => Ok(half(&text, deed)),
    }
}

/// A request that has not been answered.
struct Open<'a> {
    book: &'a Mutex<Book>,
    party: Party,
}

impl<'a> Open<'a> {
    fn new(book: &'a Mutex<Book>, party: Party) -> Self {
        lock(book).open(party);
        Self { book, party }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        *lock(self.book).open.entry(self.party).or_default() -= 1;
    }
}

/// An error reply that names its fault.
fn refusal(deed: Deed) -> Bytes {
    let name = match deed {
        Deed::Refuse => "injected_refusal",
        _ => "injected_unavailability",
    };
    format!(r#"{{"error":"{name}"}}"#).into()
}

fn whole(status: StatusCode, text: Bytes) -> Reply {
    let body = Full::new(text).map_err(|never| match never {});
    let mut reply = Response::new(body.boxed_unsync());
    *reply.status_mut() = status;
    reply
}

fn half(text: &Bytes, deed: Deed) -> Reply {
    let length = text.len();
    let first = stream::iter([Ok(Frame::data(text.slice(..length / 2)))]);
    // So that the first half is on its way.
    let rest = stream::once(async move {
        sleep(Duration::from_millis(2)).await;
        Err(deed.error())
    });
    let body = StreamBody::new(first.chain(rest));
    let mut reply = Response::new(body.boxed_unsync());
    reply.headers_mut().insert(CONTENT_LENGTH, length.into());
    reply
}

async fn serve(
    tasks: &mut JoinSet<()>,
    book: &Arc<Mutex<Book>>,
    party: Party,
) -> Result<SocketAddr, BoxError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let book = Arc::clone(book);
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve_connection(stream, Arc::clone(&book), party));
            // Those that are over leave nothing behind.
            while connections.try_join_next().is_some() {}
        }
    });
    Ok(address)
}

async fn serve_connection(stream: TcpStream, book: Arc<Mutex<Book>>, party: Party) {
    let service = service_fn(move |request: Request<Incoming>| {
        let book = Arc::clone(&book);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
            answer(book, party, Request::from_parts(head, body)).await
        })
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // Most of them end with an error that was injected.
    let ended = poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
    let stream = connection.into_parts().io.into_inner();
    if ended.is_err_and(|error| is_reset(&error)) {
        // Dropped like that, a socket sends RST instead of FIN.
        let _ = stream.set_zero_linger();
    }
}

/// Whether a connection ended with a reset, by either side.
pub(crate) fn is_reset(error: &(dyn StdError + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
    })
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}
