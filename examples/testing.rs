//! Tests a client of your own without sockets: mocks stand in for the token service and the API.
//!
//! ```text
//! cargo run --example testing
//! ```
//!
//! `Directory` is the client under test. In a crate of yours, what `main` does is a `#[tokio::test]`.

use std::time::Duration;

use http::{Request, Response, StatusCode};
use tower::{Layer, Service, ServiceExt};
use tower_client_credentials::{AccessToken, BoxError, ClientCredentialsLayer, TokenRequest};
use tower_test::mock;

/// A client of an API, over any HTTP client.
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
            status => Err(format!("the directory answered {status}").into()),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    // Nothing waits for the clock: tokens expire as fast as the test says.
    tokio::time::pause();
    let (token_service, mut issuer) = mock::pair::<TokenRequest, AccessToken>();
    let (http, mut api) = mock::pair::<Request<String>, Response<String>>();
    let directory = Directory {
        api: ClientCredentialsLayer::new(token_service).layer(http),
    };

    let script = async {
        // The first call asks for a token, and carries it.
        let (_, answer) = issuer.next_request().await.ok_or("no token is asked for")?;
        let token = AccessToken::new("token-1")?.with_lifetime(Duration::from_secs(1800));
        answer.send_response(token);
        let (request, answer) = api.next_request().await.ok_or("nothing is sent")?;
        assert_eq!(request.headers()["authorization"], "Bearer token-1");

        // The API has revoked it: the token is renewed, and the request comes again, body and all.
        answer.send_response(refusal()?);
        let (asked, answer) = issuer.next_request().await.ok_or("nothing is renewed")?;
        let rejected = asked.rejected.ok_or("the rejected token is not named")?;
        assert_eq!(rejected.expose(), "token-1");
        answer.send_response(AccessToken::new("token-2")?);
        let (request, answer) = api.next_request().await.ok_or("nothing is sent again")?;
        assert_eq!(request.headers()["authorization"], "Bearer token-2");
        assert_eq!(request.body(), "Ada");
        answer.send_response(Response::new("added".to_owned()));
        Ok::<_, BoxError>(())
    };
    // Time is paused, so a script that waits in vain ends at once.
    let all = async { tokio::join!(directory.add("Ada"), script) };
    let (added, played) = tokio::time::timeout(Duration::from_secs(3600), all).await?;

    played?;
    assert_eq!(added?, "added");
    println!("one call, two tokens, two sends: as it should be");
    Ok(())
}

fn refusal() -> Result<Response<String>, http::Error> {
    Response::builder()
        .status(StatusCode::UNAUTHORIZED)
        .body(String::new())
}
