//! Both servers fail all the time, and the client has to cope.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::{task::JoinSet, time};
use tower::{BoxError, Layer, ServiceExt};
use tower_client_credentials::{ClientAuth, ClientCredentialsLayer, TokenEndpoint};
use tower_client_credentials_test::{Api, AuthReply, AuthServer, Reply, TokenReply};

#[tokio::test(start_paused = true)]
async fn the_client_survives_broken_servers() -> Result<(), BoxError> {
    const CALLS: usize = 300;
    let auth = AuthServer::new().with_client("my-client", "s3cret");
    let api = Api::new(&auth);
    auth.always_by(|request| match request.number() % 7 {
        0 => AuthReply::from(TokenReply::new().with_lifetime(Duration::from_secs(2))),
        1 => Reply::status(503).with_header("retry-after", "1").into(),
        2 => Reply::reset().into(),
        3 => Reply::garbage().into(),
        4 => Reply::normal().cut_off().into(),
        _ => Reply::normal().delayed(Duration::from_millis(300)).into(),
    });
    api.always_by_head(|request| match request.number() % 11 {
        0 => Reply::status(429).with_header("retry-after", "1"),
        1 => Reply::status(502).before_body(),
        2 => Reply::reset(),
        _ => Reply::normal(),
    });

    let tokens = TokenEndpoint::new(
        auth.http_client(),
        "https://auth.example.com/token",
        ClientAuth::client_secret_basic("my-client", "s3cret"),
    )?;
    let client = ClientCredentialsLayer::new(tokens).layer(api.clone());
    let mut calls = JoinSet::new();
    for number in 0..CALLS {
        let order = Request::put(format!("https://api.example.com/orders/{number}"))
            .body(Full::<Bytes>::from(format!("order {number}")))?;
        calls.spawn(time::timeout(
            Duration::from_secs(60),
            client.clone().oneshot(order),
        ));
        if number % 50 == 0 {
            auth.revoke_all();
        }
        time::sleep(Duration::from_secs(1)).await;
    }

    // Every call ends in time: with a response, or with an error that a caller can handle.
    let mut successes = 0;
    for ended in calls.join_all().await {
        if ended?.is_ok_and(|response| response.status() == StatusCode::OK) {
            successes += 1;
        }
    }
    assert!(
        successes > CALLS / 2,
        "{successes} of {CALLS} calls succeeded"
    );
    // No call is sent more than twice, and each time with the same body.
    assert!(api.sends() <= 2 * CALLS, "{}", api.describe());
    api.assert_replays_match();

    // When the servers work again, so does the client.
    auth.always(Reply::normal());
    api.always(Reply::normal());
    time::sleep(Duration::from_secs(60)).await;
    let request = Request::get("https://api.example.com/orders").body(Full::<Bytes>::default())?;
    let response = client.oneshot(request).await?;
    assert_eq!(response.status(), StatusCode::OK, "{}", api.describe());
    response.into_body().collect().await?;
    Ok(())
}
