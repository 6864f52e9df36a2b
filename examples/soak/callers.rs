//! The callers, and the outcomes of their calls.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::time::{Instant, sleep, timeout};
use tower::{Layer, ServiceExt};
use tower_client_credentials::{
    BoxError, ClientAuth, ClientCredentials, ClientCredentialsLayer, Error, TokenCache,
    TokenEndpoint,
};

use crate::{
    outcomes::{Outcome, Outcomes},
    servers::{Action, CALL, Servers, is_reset},
};

/// Longer than two token requests and two sends can take.
const HUNG_AFTER: Duration = Duration::from_secs(20);

type HttpClient = Client<HttpConnector, Full<Bytes>>;

/// Makes one call after another. Clones share the cache and the connections.
#[derive(Clone)]
pub(crate) struct Caller {
    api: ClientCredentials<HttpClient>,
    servers: Arc<Servers>,
}

impl Caller {
    pub(crate) fn new(servers: Arc<Servers>) -> Result<Self, BoxError> {
        let http = Client::builder(TokioExecutor::new()).build_http();
        let auth = ClientAuth::client_secret_post("soak", "no secret");
        let tokens = TokenEndpoint::new(http.clone(), &servers.token_url, auth)?;
        // Shorter times than the defaults, so that more happens in the same time.
        let cache = TokenCache::builder()
            .deadline(Duration::from_secs(5))
            .retry_backoff(Duration::from_millis(20))
            .failure_backoff(Duration::from_millis(50), Duration::from_millis(500))
            .cool_down(Duration::from_secs(1))
            .build(tokens);
        let api = ClientCredentialsLayer::with_cache(cache).layer(http);
        Ok(Self { api, servers })
    }

    pub(crate) async fn call_until(self, ends_at: Instant, seed: u64) -> Outcomes {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut outcomes = Outcomes::default();
        while Instant::now() < ends_at {
            sleep(Duration::from_millis(rng.u64(0..100))).await;
            let patience = match rng.u8(0..20) {
                0 => Duration::from_millis(rng.u64(0..50)),
                _ => HUNG_AFTER,
            };
            let started = Instant::now();
            let outcome = self.call(rng.u64(..), patience).await;
            outcomes.record(outcome, started.elapsed());
        }
        outcomes
    }

    async fn call(&self, id: u64, patience: Duration) -> Outcome {
        self.servers.track(id);
        let result = timeout(patience, self.send(id)).await;
        let action = self.servers.take_last_action(id);
        match result {
            Ok(Ok((status, is_echo))) => explain_response(status, is_echo, action),
            Ok(Err(error)) => explain_error(&error, action),
            Err(_elapsed) if patience < HUNG_AFTER => Outcome::Cancelled,
            Err(_elapsed) => Outcome::Hung,
        }
    }

    /// Returns the status, and whether the response echoes the request.
    async fn send(&self, id: u64) -> Result<(StatusCode, bool), BoxError> {
        let sent = Bytes::from(format!("call {id}").repeat(20));
        let request = Request::post(&self.servers.api_url)
            .header(CALL, id)
            .body(Full::new(sent.clone()))?;
        let (head, body) = self.api.clone().oneshot(request).await?.into_parts();
        let received = body.collect().await?.to_bytes();
        Ok((head.status, received == sent))
    }
}

fn explain_response(status: StatusCode, is_echo: bool, action: Option<Action>) -> Outcome {
    match (status, action) {
        (StatusCode::OK, Some(Action::Succeed)) if is_echo => Outcome::Success,
        (StatusCode::SERVICE_UNAVAILABLE, Some(action @ Action::Unavailable)) => {
            Outcome::Api(action)
        }
        (StatusCode::UNAUTHORIZED, Some(action @ Action::Reject)) => Outcome::Api(action),
        _ => Outcome::Unexplained(format!("{status}, echo: {is_echo}, after {action:?}")),
    }
}

/// An error is explained if it names the fault that a server injected.
fn explain_error(error: &BoxError, action: Option<Action>) -> Outcome {
    let chain = chain(error.as_ref());
    let ours = error.downcast_ref::<Error>();
    let is_reset = match ours.and_then(Error::transport_error) {
        Some(error) => is_reset(error),
        None => is_reset(error.as_ref()),
    };
    let is_closed = ["connection closed", "end of file", "channel closed"]
        .iter()
        .any(|text| chain.contains(text));
    match (ours, action) {
        (Some(error), _) => explain_token_error(error, &chain, is_closed, is_reset),
        (None, Some(action @ (Action::Close | Action::CloseHalfway))) if is_closed => {
            Outcome::Api(action)
        }
        (None, Some(action @ (Action::Reset | Action::ResetHalfway))) if is_reset => {
            Outcome::Api(action)
        }
        (None, action) => Outcome::Unexplained(format!("{chain}, after {action:?}")),
    }
}

fn explain_token_error(error: &Error, chain: &str, is_closed: bool, is_reset: bool) -> Outcome {
    match error.code() {
        Some("injected_rejection") => Outcome::TokenEndpoint(Action::Reject),
        Some("injected_unavailability") => Outcome::TokenEndpoint(Action::Unavailable),
        // The errors do not tell whether a response had begun.
        None if error.is_transport() && is_reset => Outcome::TokenEndpoint(Action::Reset),
        None if error.is_transport() && is_closed => Outcome::TokenEndpoint(Action::Close),
        _ => Outcome::Unexplained(chain.to_owned()),
    }
}

fn chain(error: &(dyn StdError + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    let texts: Vec<_> = causes.map(ToString::to_string).collect();
    texts.join(": ")
}
