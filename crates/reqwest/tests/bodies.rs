//! Requests whose token is rejected are sent again as they were, whatever their body, and the first
//! send is the one that reqwest makes without this crate.

mod support;

use std::iter;

use bytes::Bytes;
use futures_util::{future::join_all, stream};
use http::{Method, StatusCode};
use reqwest::{
    Body, Client, RequestBuilder, Response,
    multipart::{Form, Part},
};
use support::{Received, Server, api_rejecting, in_time, issuer, tokens};
use tower_client_credentials::{ClientCredentialsLayer, NotReplayed, TokenOutcome};
use tower_client_credentials_reqwest::{
    ApiClient, ClientBuilderExt, ClientExt, ReplayBodies, RequestBuilderExt,
};

/// A way to send a request with a token.
#[derive(Clone, Copy, Debug)]
enum Way {
    SendWith,
    Execute,
    Builder,
    BuilderOfTheClient,
    #[cfg(feature = "middleware")]
    Middleware,
}

const WAYS: &[Way] = &[
    Way::SendWith,
    Way::Execute,
    Way::Builder,
    Way::BuilderOfTheClient,
    #[cfg(feature = "middleware")]
    Way::Middleware,
];

impl Way {
    /// Sends one request with tokens of the issuer.
    async fn send(self, issuer: &Server, url: &str, protocol: Protocol, request: Make) -> Response {
        let client = protocol.client();
        let tokens = tokens(issuer);
        let response = match self {
            Self::SendWith => {
                let api = client.with_client_credentials(tokens);
                request(Client::new().put(url)).send_with(&api).await
            }
            Self::Execute => {
                let api = client.with_client_credentials(tokens);
                let request = request(client.put(url)).build().unwrap();
                api.execute(request).await
            }
            Self::Builder => {
                let api = client.with_client_credentials(tokens);
                api.put(url).map(request).send().await
            }
            Self::BuilderOfTheClient => {
                let api = protocol.builder().with_client_credentials(tokens).unwrap();
                api.request(Method::PUT, url).map(request).send().await
            }
            #[cfg(feature = "middleware")]
            Self::Middleware => {
                use tower_client_credentials_reqwest::ClientCredentialsMiddleware;

                let client = reqwest_middleware::ClientBuilder::new(client)
                    .with(ClientCredentialsMiddleware::new(tokens))
                    .build();
                let request = request(Client::new().put(url)).build().unwrap();
                return client.execute(request).await.unwrap();
            }
        };
        response.unwrap()
    }
}

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    fn builder(self) -> reqwest::ClientBuilder {
        match self {
            Self::Http1 => Client::builder().http1_only(),
            Self::Http2 => Client::builder().http2_prior_knowledge(),
        }
    }

    fn client(self) -> Client {
        self.builder().build().unwrap()
    }
}

/// Adds a body, and more, to a request.
type Make = fn(RequestBuilder) -> RequestBuilder;

/// Bodies, and what else makes requests different.
const REQUESTS: &[(&str, Make)] = &[
    ("empty", |request| request),
    ("empty text", |request| request.body("")),
    ("text", |request| request.body("name=Ada")),
    ("bytes", |request| request.body(vec![7; 200_000])),
    ("json", |request| {
        request.json(&serde_json::json!({"name": "Ada"}))
    }),
    ("form and query", |request| {
        let fields = [("name", "Ada Lovelace")];
        request.form(&fields).query(&fields)
    }),
    ("headers", |request| {
        let request = request.header("x-tag", "1").header("x-tag", "2");
        request.header("accept", "text/plain").body("tagged")
    }),
    ("stream", |request| request.body(streamed(5, 1000))),
    ("stream of nothing", |request| request.body(streamed(0, 0))),
    ("wrapped text", |request| {
        request.body(Body::wrap("name=Ada".to_owned()))
    }),
];

fn streamed(frames: usize, len: usize) -> Body {
    let frames = (0..frames).map(move |number| {
        let frame = iter::repeat_n(u8::try_from(number).unwrap(), len);
        Ok::<_, std::io::Error>(Bytes::from_iter(frame))
    });
    Body::wrap_stream(stream::iter(frames))
}

#[tokio::test]
async fn rejected_request_is_sent_again_as_it_was_and_as_without_this_crate() {
    for way in WAYS {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            for (name, request) in REQUESTS {
                let name = format!("{name} with {way:?} over {protocol:?}");
                let (issuer, api) = (issuer().await, api_rejecting(["token-1"]).await);
                let url = api.url("/orders?page=2");

                let response = in_time(way.send(&issuer, &url, protocol, *request)).await;
                let plain = request(protocol.client().put(&url)).bearer_auth("token-2");
                in_time(plain.send()).await.unwrap();

                assert_eq!(response.status(), StatusCode::OK, "{name}");
                assert!(response.url().as_str().starts_with(&url), "{name}");
                let outcome = response.extensions().get::<TokenOutcome>().unwrap();
                assert!(outcome.replayed() && outcome.token_renewed(), "{name}");
                let [first, second, plain] = &api.received()[..] else {
                    panic!("{name}: {:?}", api.received())
                };
                assert_eq!(first.token(), "Bearer token-1", "{name}");
                assert_eq!(second.token(), "Bearer token-2", "{name}");
                assert_eq!(first.without_token(), second.without_token(), "{name}");
                assert_eq!(second, plain, "{name}");
                assert_eq!(issuer.received().len(), 2, "{name}");
                // One of this crate's client, and one of the plain client.
                assert_eq!(api.connections(), 2, "{name}");
            }
        }
    }
}

#[tokio::test]
async fn multipart_form_is_sent_again_byte_for_byte() {
    let in_memory: Make = |request| {
        let form = Form::new().text("name", "Ada").part("photo", photo());
        request.multipart(form)
    };
    let with_stream: Make = |request| {
        let lines = Part::stream(streamed(3, 500)).file_name("lines.txt");
        request.multipart(Form::new().text("name", "Ada").part("lines", lines))
    };
    for way in WAYS {
        for request in [in_memory, with_stream] {
            let (issuer, api) = (issuer().await, api_rejecting(["token-1"]).await);

            let url = api.url("/upload");
            let response = in_time(way.send(&issuer, &url, Protocol::Http1, request)).await;

            assert_eq!(response.status(), StatusCode::OK);
            let [first, second] = &api.received()[..] else {
                panic!("{:?}", api.received())
            };
            assert_eq!(first.without_token(), second.without_token());
            assert!(second.body.len() > 1500);
            let content_type = second.header("content-type");
            assert!(content_type.starts_with("multipart/form-data; boundary="));
            assert_eq!(issuer.received().len(), 2);
            assert_eq!(api.connections(), 1);
        }
    }
}

fn photo() -> Part {
    let part = Part::bytes(vec![9; 2000]).file_name("ada.png");
    part.mime_str("image/png").unwrap()
}

#[tokio::test]
async fn hundred_callers_make_one_token_request_and_one_renewal() {
    for rejected in ["", "token-1"] {
        let (issuer, api) = (issuer().await, api_rejecting([rejected]).await);
        let client = Client::new().with_client_credentials(tokens(&issuer));

        let calls = (0..100).map(|number| {
            let request = client.post(api.url("/orders")).body(number.to_string());
            tokio::spawn(request.send())
        });
        let responses = in_time(join_all(calls)).await;

        for response in responses {
            assert_eq!(response.unwrap().unwrap().status(), StatusCode::OK);
        }
        let expected = if rejected.is_empty() { 1 } else { 2 };
        assert_eq!(issuer.received().len(), expected);
        let mut numbers = bodies_with(&api, &format!("Bearer token-{expected}"));
        numbers.sort_unstable();
        assert_eq!(numbers, Vec::from_iter(0..100));
    }
}

fn bodies_with(api: &Server, token: &str) -> Vec<usize> {
    let number = |request: &Received| std::str::from_utf8(&request.body).unwrap().parse().unwrap();
    let received = api.received();
    let accepted = received.iter().filter(|request| request.token() == token);
    accepted.map(number).collect()
}

#[tokio::test]
async fn stream_over_the_limit_is_sent_once_and_complete() {
    let (issuer, api) = (issuer().await, api_rejecting(["token-1"]).await);
    let replay = ReplayBodies::default().stream_limit(4999);
    let layer = ClientCredentialsLayer::new(tokens(&issuer)).replay(replay);
    let client = Client::new().with_client_credentials(layer);

    let request = client.put(api.url("/")).body(streamed(5, 1000));
    let response = in_time(request.send()).await.unwrap();

    assert!(matches!(
        not_replayed(&response),
        NotReplayed::BodyOverLimit
    ));
    assert_eq!(response.text().await.unwrap(), "401 Unauthorized");
    assert_eq!(api.received().len(), 1);
    assert_eq!(api.received()[0].body.len(), 5000);
}

#[tokio::test]
async fn streams_and_requests_can_be_excluded_from_replays() {
    type Send = fn(&ApiClient, &str) -> tower_client_credentials_reqwest::ResponseFuture;
    let streams: Send = |api, url| api.put(url).body(streamed(2, 10)).send();
    let text: Send = |api, url| api.put(url).body("text").send();
    let opted_out: Send = |api, url| api.put(url).body("text").no_replay().send();
    for (replay, send, sends) in [
        (Some(ReplayBodies::default().no_streams()), streams, 1),
        (Some(ReplayBodies::default().no_streams()), text, 2),
        (None, text, 1),
        (Some(ReplayBodies::default()), opted_out, 1),
    ] {
        let (issuer, api) = (issuer().await, api_rejecting(["token-1"]).await);
        let layer = ClientCredentialsLayer::new(tokens(&issuer));
        let client = match replay {
            Some(replay) => Client::new().with_client_credentials(layer.replay(replay)),
            None => Client::new().with_client_credentials(layer.no_replay()),
        };

        let response = in_time(send(&client, &api.url("/"))).await.unwrap();

        assert_eq!(api.received().len(), sends);
        if sends == 1 {
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
            let reason = not_replayed(&response);
            assert!(matches!(
                reason,
                NotReplayed::BodyNotKept | NotReplayed::OptedOut
            ));
        }
    }
}

fn not_replayed(response: &Response) -> &NotReplayed {
    let outcome = response.extensions().get::<TokenOutcome>();
    outcome
        .and_then(TokenOutcome::not_replayed)
        .expect("the response has a reason")
}
