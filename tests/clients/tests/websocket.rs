//! WebSockets: the token goes into the handshake, which the layer doesn't send.

use std::sync::{Arc, Mutex};

use http::{HeaderMap, Request, StatusCode, header::AUTHORIZATION};
use support::{Loopback, Protocol, Servers, hyper_client, in_time, text};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, accept_hdr_async, connect_async,
    tungstenite::{
        self,
        client::IntoClientRequest,
        handshake::server::{ErrorResponse, Response},
    },
};
use tower_client_credentials::{AccessToken, BoxError, Rejection, TokenCache};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Opens a WebSocket. If the server rejects the token, tries once more with another one.
async fn connect(url: &str, tokens: &TokenCache) -> Result<Socket, BoxError> {
    let token = tokens.token().await?;
    let error = match handshake(url, tokens, &token).await {
        Err(error) if is_unauthorized(&error) => error,
        result => return Ok(result?),
    };
    let another = match tokens.reject(&token) {
        // Waits for the renewal, however long it takes.
        Rejection::Withheld | Rejection::Renewing => tokens.refresh().await?,
        Rejection::Replaced => tokens.token().await?,
        // There is no other token.
        Rejection::Failing(error) => return Err(error.into()),
        // The last renewal is too recent for another one.
        _ => return Err(error.into()),
    };
    Ok(handshake(url, tokens, &another).await?)
}

fn is_unauthorized(error: &tungstenite::Error) -> bool {
    let tungstenite::Error::Http(response) = error else {
        return false;
    };
    response.status() == StatusCode::UNAUTHORIZED
}

async fn handshake(
    url: &str,
    tokens: &TokenCache,
    token: &AccessToken,
) -> tungstenite::Result<Socket> {
    let mut request = url.into_client_request()?;
    let header = token.header_value().clone();
    request.headers_mut().insert(AUTHORIZATION, header);
    let (socket, _response) = connect_async(request).await?;
    tokens.accept(token);
    Ok(socket)
}

/// Starts a server that rejects these tokens. Returns its URL, and the tokens that it receives.
#[expect(clippy::result_large_err, reason = "tungstenite's own error")]
async fn server(rejected: &'static [&str]) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let received = Arc::<Mutex<Vec<String>>>::default();
    let tokens = Arc::clone(&received);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tokens = Arc::clone(&tokens);
            let answer = move |request: &Request<()>, response: Response| {
                let token = token(request.headers());
                let is_rejected = rejected.contains(&&*token);
                tokens.lock().unwrap().push(token);
                if is_rejected {
                    let mut rejection = ErrorResponse::new(None);
                    *rejection.status_mut() = StatusCode::UNAUTHORIZED;
                    return Err(rejection);
                }
                Ok(response)
            };
            tokio::spawn(async move {
                let _ = accept_hdr_async(stream, answer).await;
            });
        }
    });
    (url, received)
}

fn token(headers: &HeaderMap) -> String {
    headers[AUTHORIZATION].to_str().unwrap().to_owned()
}

async fn cache() -> (Servers, TokenCache) {
    let servers =
        Servers::with_api(Loopback::start(async |_| http::Response::new(text(""))).await).await;
    let client = hyper_client::<http_body_util::Full<bytes::Bytes>>(Protocol::Http1);
    let cache = TokenCache::new(servers.tokens(client));
    (servers, cache)
}

#[tokio::test]
async fn rejected_handshake_is_repeated_with_another_token() {
    let (url, received) = server(&["Bearer token-1"]).await;
    let (_servers, tokens) = cache().await;

    let _socket = in_time(connect(&url, &tokens)).await.unwrap();

    assert_eq!(
        *received.lock().unwrap(),
        ["Bearer token-1", "Bearer token-2"]
    );
}

#[tokio::test]
async fn server_that_rejects_every_token_gets_one_renewal_per_cool_down() {
    let (url, received) = server(&["Bearer token-1", "Bearer token-2"]).await;
    let (servers, tokens) = cache().await;

    for _ in 0..3 {
        let error = in_time(connect(&url, &tokens)).await.unwrap_err();
        let error = error.downcast_ref::<tungstenite::Error>();
        assert!(matches!(error, Some(tungstenite::Error::Http(_))));
    }

    assert_eq!(received.lock().unwrap().len(), 4);
    assert_eq!(servers.issued(), 2);
}
