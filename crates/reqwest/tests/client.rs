//! `ApiClient` behaves as the reqwest client that it wraps.

mod support;

use std::{error::Error as _, io::Write};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{Response, StatusCode};
use http_body_util::Full;
use reqwest::Client;
use support::{Server, api_rejecting, in_time, issuer, status, tokens};
use tower_client_credentials::{
    AccessToken, BoxError, ClientCredentialsLayer, TokenCache, TokenParameters, TokenRequest,
};
use tower_client_credentials_reqwest::{
    ApiClient, ApiRequestBuilder, ClientExt, Error, ReplayBodies, ReqwestService, ResponseFuture,
    token_client,
};
use tower_service::Service;

#[tokio::test]
async fn call_can_be_spawned_from_a_struct_and_outlives_it() {
    struct Orders {
        api: ApiClient,
        call: Option<ResponseFuture>,
    }
    let (issuer, api) = (issuer().await, api_rejecting(["token-1"]).await);
    let mut orders = Orders {
        api: Client::new().with_client_credentials(tokens(&issuer)),
        call: None,
    };

    orders.call = Some(orders.api.get(api.url("/")).send());
    let call = tokio::spawn(orders.call.unwrap());
    let in_block = tokio::spawn(async move {
        let response = orders.api.get(api.url("/")).send().await?;
        Ok::<_, Error>(response.error_for_status()?.text().await?)
    });

    assert_eq!(call.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(in_block.await.unwrap().unwrap(), "200 OK");
    assert_eq!(issuer.received().len(), 2);
}

#[test]
fn types_have_the_auto_traits_that_programs_need() {
    fn is_shareable<T: Send + Sync + Unpin + 'static>() {}
    fn is_movable<T: Send + Unpin + 'static>() {}
    is_shareable::<ApiClient>();
    is_shareable::<ReqwestService>();
    is_shareable::<Error>();
    is_shareable::<ApiRequestBuilder>();
    is_movable::<ResponseFuture>();
}

#[tokio::test]
async fn error_for_status_names_the_url_of_the_api() {
    let issuer = issuer().await;
    let api = Server::start(|_| async { status(StatusCode::NOT_FOUND) }).await;
    let client = Client::new().with_client_credentials(tokens(&issuer));

    let response = in_time(client.get(api.url("/orders/7")).send())
        .await
        .unwrap();
    assert_eq!(response.url().as_str(), api.url("/orders/7"));
    assert_eq!(
        response.remote_addr().map(|it| it.ip().is_loopback()),
        Some(true)
    );
    let error = response.error_for_status().unwrap_err();

    assert_eq!(error.url().map(reqwest::Url::path), Some("/orders/7"));
}

#[tokio::test]
async fn errors_say_which_party_failed_and_convert_with_question_marks() -> Result<(), BoxError> {
    async fn call(client: &ApiClient, url: &str) -> anyhow::Result<()> {
        client.get(url).send().await?;
        Ok(())
    }
    let refusing = Server::start(|_| async { status(StatusCode::FORBIDDEN) }).await;
    let (issuer, gone) = (issuer().await, "http://127.0.0.1:9/");

    let no_token = Client::new().with_client_credentials(tokens(&refusing));
    let error = in_time(call(&no_token, gone)).await.unwrap_err();
    let error = error.downcast::<Error>()?;
    assert!(
        error
            .token_error()
            .is_some_and(tower_client_credentials::Error::is_refused)
    );
    assert!(error.reqwest_error().is_none() && !error.is_timeout());
    assert_eq!(error.to_string(), error.token_error().unwrap().to_string());

    let no_api = Client::new().with_client_credentials(tokens(&issuer));
    let error = in_time(call(&no_api, gone)).await.unwrap_err();
    let error = error.downcast::<Error>()?;
    assert!(error.is_connect() && error.token_error().is_none());
    assert!(error.source().is_some());

    let error = in_time(call(&no_api, "orders")).await.unwrap_err();
    let error = error.downcast::<Error>()?;
    assert!(
        error
            .reqwest_error()
            .is_some_and(reqwest::Error::is_builder)
    );
    Ok(())
}

#[tokio::test]
async fn nothing_shows_a_token_or_a_default_header() {
    let (issuer, api) = (issuer().await, api_rejecting(["token-1"]).await);
    let mut headers = http::HeaderMap::new();
    headers.insert("x-api-key", "key-1".parse().unwrap());
    let client = Client::builder().default_headers(headers).build().unwrap();
    let client = client.with_client_credentials(tokens(&issuer));
    let request = client.get(api.url("/")).body("text");
    in_time(client.get(api.url("/")).send()).await.unwrap();

    for shown in [
        format!("{client:?}"),
        format!("{:?}", client.service().get_ref()),
        format!("{request:?}"),
        format!("{:?}", request.send()),
    ] {
        for secret in ["token-", "s3cret", "key-1"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}

#[tokio::test]
async fn cookies_are_kept_and_sent_with_the_replay() {
    let issuer = issuer().await;
    let api = Server::start(|request| async move {
        let mut response = status(match request.token() {
            "Bearer token-1" => StatusCode::UNAUTHORIZED,
            _ => StatusCode::OK,
        });
        let cookie = "session=7".parse().unwrap();
        response.headers_mut().insert("set-cookie", cookie);
        response
    })
    .await;
    let client = Client::builder().cookie_store(true).build().unwrap();
    let client = client.with_client_credentials(tokens(&issuer));

    let response = in_time(client.get(api.url("/")).send()).await.unwrap();

    assert_eq!(response.cookies().count(), 1);
    let received = api.received();
    let cookies = received.iter().map(|request| request.header("cookie"));
    assert_eq!(Vec::from_iter(cookies), ["", "session=7"]);
}

#[tokio::test]
async fn compressed_response_is_decompressed() {
    let issuer = issuer().await;
    let api = Server::start(|request| async move {
        assert!(request.header("accept-encoding").contains("gzip"));
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(b"orders").unwrap();
        let mut response = Response::new(Full::from(encoder.finish().unwrap()));
        let encoding = "gzip".parse().unwrap();
        response.headers_mut().insert("content-encoding", encoding);
        response
    })
    .await;
    let client = Client::new().with_client_credentials(tokens(&issuer));

    let response = in_time(client.get(api.url("/")).send()).await.unwrap();

    assert_eq!(response.text().await.unwrap(), "orders");
}

#[tokio::test]
async fn streaming_response_has_its_length_and_its_chunks() {
    let (issuer, api) = (issuer().await, api_rejecting([]).await);
    let client = Client::new().with_client_credentials(tokens(&issuer));

    let mut response = in_time(client.get(api.url("/")).send()).await.unwrap();

    assert_eq!(response.content_length(), Some(6));
    let chunk = response.chunk().await.unwrap();
    assert_eq!(chunk, Some(Bytes::from("200 OK")));
    assert_eq!(response.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn copy_of_a_request_is_sent_like_the_original() {
    let (issuer, api) = (issuer().await, api_rejecting([]).await);
    let client = Client::new().with_client_credentials(tokens(&issuer));
    let request = client.post(api.url("/")).header("x-tag", "1").body("text");

    let copy = request.try_clone().expect("the body is in memory");
    in_time(request.send()).await.unwrap();
    in_time(copy.send()).await.unwrap();

    let received = api.received();
    assert_eq!(received[0], received[1]);
    let stream = reqwest::Body::wrap("text".to_owned());
    assert!(client.post(api.url("/")).body(stream).try_clone().is_none());
}

#[tokio::test]
async fn client_is_a_service_for_requests_of_reqwest() {
    let (issuer, api) = (issuer().await, api_rejecting(["token-1"]).await);
    let mut client = Client::new().with_client_credentials(tokens(&issuer));

    let request = client.get(api.url("/")).build().unwrap();
    let ready = std::future::poll_fn(|cx| client.poll_ready(cx));
    ready.await.unwrap();
    let response = in_time(client.call(request)).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(api.tokens(), ["Bearer token-1", "Bearer token-2"]);
}

#[tokio::test]
async fn tokens_come_from_a_service_a_cache_or_a_layer() {
    let (issuer, api) = (issuer().await, api_rejecting([]).await);
    let cache = TokenCache::new(tokens(&issuer));
    let layer = ClientCredentialsLayer::with_cache(cache.clone());
    let client = Client::new();

    for client in [
        client.with_client_credentials(tokens(&issuer)),
        client.with_client_credentials(cache.clone()),
        client.with_client_credentials(layer.clone()),
        client.with_client_credentials(layer.clone().no_replay()),
        client.with_client_credentials(layer.replay(ReplayBodies::default())),
    ] {
        let response = in_time(client.get(api.url("/")).send()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }

    assert_eq!(issuer.received().len(), 2);
}

#[tokio::test]
async fn service_can_be_used_in_a_stack_and_keeps_the_url() {
    use tower::{Layer, ServiceExt};

    let (issuer, api) = (issuer().await, api_rejecting(["token-1"]).await);
    let layer = ClientCredentialsLayer::new(tokens(&issuer)).replay(ReplayBodies::default());
    let service = layer.layer(ReqwestService::new(Client::new()));

    let request = http::Request::post(api.url("/orders")).body(reqwest::Body::from("text"));
    let response = in_time(service.oneshot(request.unwrap())).await.unwrap();
    let response = reqwest::Response::from(response);

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.url().as_str(), api.url("/orders"));
    assert_eq!(api.received().len(), 2);
}

#[tokio::test]
async fn clients_with_other_parameters_have_tokens_of_their_own_in_one_cache() {
    let issuer = Server::start(|request| async move {
        let form = String::from_utf8(request.body.to_vec()).unwrap();
        let (_, scope) = form.rsplit_once("scope=").unwrap();
        let reply = format!(r#"{{"access_token":"for-{scope}","expires_in":1800}}"#);
        Response::new(Full::from(reply))
    })
    .await;
    let api = api_rejecting([]).await;
    let scope = |name| TokenParameters::default().with_scope(name);
    let cache = TokenCache::builder().parameters(scope("read"));
    let reading = Client::new().with_client_credentials(cache.build(tokens(&issuer)));
    let writing = reading.with_parameters(scope("write"));

    for client in [&reading, &writing, &reading, &writing] {
        in_time(client.get(api.url("/")).send()).await.unwrap();
    }

    let (read, write) = ("Bearer for-read", "Bearer for-write");
    assert_eq!(api.tokens(), [read, write, read, write]);
    assert_eq!((issuer.received().len(), api.connections()), (2, 1));
}

#[tokio::test]
async fn client_of_a_token_endpoint_reuses_its_connection() {
    let (issuer, api) = (issuer().await, api_rejecting(["token-1"]).await);
    let client = Client::new().with_client_credentials(tokens(&issuer));

    in_time(client.get(api.url("/")).send()).await.unwrap();

    assert_eq!(issuer.received().len(), 2);
    assert_eq!((issuer.connections(), api.connections()), (1, 1));
    drop(token_client().unwrap().into_inner());
}

/// Issues tokens that name their scope.
fn scope_names() -> TokenCache {
    TokenCache::new(tower::service_fn(|request: TokenRequest| async move {
        Ok::<_, BoxError>(AccessToken::new(request.parameters.scopes().join("+"))?)
    }))
}

#[tokio::test]
async fn cache_of_a_client_with_parameters_supplies_its_tokens() -> Result<(), BoxError> {
    let scope = |name| TokenParameters::default().with_scope(name);
    let cache = scope_names().with_parameters(scope("read"));
    let client = Client::new().with_client_credentials(cache);
    let writing = client.with_parameters(scope("write"));

    assert_eq!(client.cache().token().await?.expose(), "read");
    assert_eq!(writing.cache().token().await?.expose(), "write");
    Ok(())
}

#[tokio::test]
async fn parameters_of_a_request_replace_those_of_the_client() -> Result<(), BoxError> {
    let api = api_rejecting([]).await;
    let scope = |name| TokenParameters::default().with_scope(name);
    let client = Client::new().with_client_credentials(scope_names());
    let client = client.with_parameters(scope("read"));

    let request = http::Request::get(api.url("/")).extension(scope("write"));
    let request = request.body(reqwest::Body::default())?.try_into()?;
    in_time(client.execute(request)).await?;
    in_time(client.get(api.url("/")).send()).await?;

    assert_eq!(api.tokens(), ["Bearer write", "Bearer read"]);
    Ok(())
}
