//! Without sockets, and with time that the test controls.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use tower::{BoxError, Layer, ServiceExt};
use tower_client_credentials::{ClientAuth, ClientCredentialsLayer, TokenEndpoint};
use tower_client_credentials_test::{Api, AuthServer};

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_replaced() -> Result<(), BoxError> {
    let auth = AuthServer::new()
        .with_client("my-client", "s3cret")
        .lifetime(Duration::from_secs(600));
    let api = Api::new(&auth);

    // The client under test, with both servers in place of its HTTP client.
    let tokens = TokenEndpoint::new(
        auth.http_client(),
        "https://auth.example.com/token",
        ClientAuth::client_secret_basic("my-client", "s3cret"),
    )?;
    let client = ClientCredentialsLayer::new(tokens).layer(api.clone());

    let request = Request::get("https://api.example.com/orders").body(Full::<Bytes>::default())?;
    client.clone().oneshot(request.clone()).await?;
    tokio::time::advance(Duration::from_secs(600)).await;
    let response = client.oneshot(request).await?;

    assert_eq!(response.status(), StatusCode::OK);
    auth.assert_token_requests(2);
    api.assert_sends(2);
    api.assert_no_refusals();
    Ok(())
}
