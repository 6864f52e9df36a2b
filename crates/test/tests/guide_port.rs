//! With a real HTTP client, on ports of the loopback interface.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tower::{BoxError, Layer, ServiceExt};
use tower_client_credentials::{ClientAuth, ClientCredentialsLayer, TokenEndpoint};
use tower_client_credentials_test::{Api, AuthServer};

#[tokio::test]
async fn a_request_whose_token_was_revoked_is_sent_again() -> Result<(), BoxError> {
    let auth = AuthServer::new().with_client("my-client", "s3cret");
    let api = Api::new(&auth);
    let auth_server = auth.serve().await?;
    let api_server = api.serve().await?;

    let http = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let tokens = TokenEndpoint::new(
        http.clone(),
        auth_server.url("/token"),
        ClientAuth::client_secret_post("my-client", "s3cret"),
    )?;
    let client = ClientCredentialsLayer::new(tokens).layer(http);

    let order = |number| {
        Request::put(api_server.url(&format!("/orders/{number}")))
            .body(Full::<Bytes>::from("two chairs"))
    };
    client.clone().oneshot(order(1)?).await?;
    auth.revoke_all();
    let response = client.oneshot(order(2)?).await?;

    assert_eq!(response.status(), StatusCode::OK);
    let echo = response.into_body().collect().await?.to_bytes();
    assert_eq!(echo, "two chairs");
    auth.assert_token_requests(2);
    // The first order, and the second one twice.
    api.assert_sends(3);
    api.assert_replays_match();
    Ok(())
}
