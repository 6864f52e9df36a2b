//! octocrab's client: its body is `Clone`, but only shallowly, and not all bodies can be copied.

use bytes::Bytes;
use futures_util::future::join_all;
use http::StatusCode;
use http_body_util::{BodyExt, Full};
use octocrab::{
    AuthState, OctoBody, Octocrab, OctocrabBuilder, service::middleware::base_uri::BaseUriLayer,
};
use support::{Protocol, Servers, cache_without_cool_down, hash, hyper_client, in_time};
use tower_client_credentials::{ClientCredentialsLayer, replay::Buffered};

/// Builds the client as a user would.
fn client(servers: &Servers) -> Octocrab {
    let tokens = servers.tokens(hyper_client::<Full<Bytes>>(Protocol::Http1));
    // The servers reject the first token on each path, and a user's API does not.
    let layer = ClientCredentialsLayer::with_cache(cache_without_cool_down(tokens))
        .allowed_origins([servers.url("")])
        .unwrap()
        .replay(Buffered::new(64 * 1024).map(OctoBody::new));
    let base_uri = servers.url("").parse().unwrap();
    let client = OctocrabBuilder::new_empty()
        .with_service(hyper_client::<OctoBody>(Protocol::Http1))
        .with_layer(&layer)
        .with_layer(&BaseUriLayer::new(base_uri))
        .with_auth(AuthState::None)
        .build();
    client.unwrap()
}

#[tokio::test]
async fn requests_with_and_without_a_body_are_replayed() {
    let servers = Servers::start().await;
    let client = client(&servers);
    let issue = serde_json::json!({"title": "no tokens"});

    let got = in_time(client._get("/late/issues")).await.unwrap();
    assert_eq!(servers.connections().accepted(), 1);
    let posted = in_time(client._post("/early/issues", Some(&issue)))
        .await
        .unwrap();

    assert_eq!(
        (got.status(), posted.status()),
        (StatusCode::OK, StatusCode::OK)
    );
    let body = posted.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, hash(issue.to_string()));
    let received = servers.received();
    let [get, second_get, post, second_post] = &received[..] else {
        panic!("{received:?}")
    };
    let heads = servers.heads();
    assert_eq!(heads[0], heads[1]);
    assert_eq!(heads[2], heads[3]);
    assert_eq!(post.framing, second_post.framing);
    assert_eq!(get.hash, second_get.hash);
    assert_eq!(servers.issued(), 3);
}

#[tokio::test]
async fn rejected_calls_in_spawned_tasks_are_replayed() {
    let servers = Servers::start().await;
    let client = client(&servers);

    let calls = (0..100).map(|number| {
        let client = client.clone();
        tokio::spawn(async move { client._get(format!("/late/users/{number}")).await })
    });
    for response in in_time(join_all(calls)).await {
        assert_eq!(response.unwrap().unwrap().status(), StatusCode::OK);
    }

    assert_eq!(servers.received().len(), 200);
    assert_eq!(servers.issued(), 2);
}
