//! Tests an API client without sockets, with mocks of the token service and the HTTP client.
//!
//! ```text
//! cargo run --example testing
//! ```
//!
//! `Directory` is the client under test. In your crate, `main` would be a `#[tokio::test]`.

use std::time::Duration;

use http::{Request, Response, StatusCode};
use tower::{Layer, Service, ServiceExt};
use tower_client_credentials::{AccessToken, BoxError, ClientCredentialsLayer, TokenRequest};
use tower_test::mock;

/// An API client, generic over the HTTP client.
struct Directory<S> {
    api: S,
}

impl<S> Directory<S>
where
    S: Service<Request<String>, Response = Response<String>, Error = BoxError> + Clone,
{
    async fn add(&self, name: &str) -> Result<String, BoxError> {
        let request = Request::post("https://api.example/people").body(name.to_owned())?;
        let response = self.api.clone().oneshot(request).await?;
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            status => Err(format!("the directory responded with {status}").into()),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    // With paused time, tokens expire when the test advances the clock.
    tokio::time::pause();
    let (token_service, mut issuer) = mock::pair::<TokenRequest, AccessToken>();
    let (http, mut api) = mock::pair::<Request<String>, Response<String>>();
    let directory = Directory {
        api: ClientCredentialsLayer::new(token_service).layer(http),
    };

    let servers = async {
        // The first call requests a token and carries it.
        let (_, reply) = issuer.next_request().await.ok_or("no token request")?;
        let token = AccessToken::new("token-1")?.with_lifetime(Duration::from_secs(1800));
        reply.send_response(token);
        let (request, reply) = api.next_request().await.ok_or("no API request")?;
        assert_eq!(request.headers()["authorization"], "Bearer token-1");

        // The API rejects the token: it is renewed, and the same request is sent again.
        reply.send_response(unauthorized()?);
        let (renewal, reply) = issuer.next_request().await.ok_or("no renewal")?;
        let rejected = renewal.rejected.ok_or("the rejected token is not named")?;
        assert_eq!(rejected.expose(), "token-1");
        reply.send_response(AccessToken::new("token-2")?);
        let (request, reply) = api.next_request().await.ok_or("no replay")?;
        assert_eq!(request.headers()["authorization"], "Bearer token-2");
        assert_eq!(request.body(), "Ada");
        reply.send_response(Response::new("added".to_owned()));
        Ok::<_, BoxError>(())
    };
    // With paused time, this timeout ends a stuck test at once.
    let both = async { tokio::join!(directory.add("Ada"), servers) };
    let (added, served) = tokio::time::timeout(Duration::from_secs(3600), both).await?;

    served?;
    assert_eq!(added?, "added");
    println!("one call, two tokens, two sends: as expected");
    Ok(())
}

fn unauthorized() -> Result<Response<String>, http::Error> {
    Response::builder()
        .status(StatusCode::UNAUTHORIZED)
        .body(String::new())
}
