//! Those who call, and what their calls come to.

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
    account::{Account, End},
    servers::{CALL, Deed, Servers, is_reset},
};

/// Longer than two flights and two sends can take.
const HUNG_AFTER: Duration = Duration::from_secs(20);

type HttpClient = Client<HttpConnector, Full<Bytes>>;

/// Makes one call after another; clones share the cache and the connections.
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
        // Everything happens sooner than it would by default, and so more often.
        let cache = TokenCache::builder()
            .deadline(Duration::from_secs(5))
            .retry_backoff(Duration::from_millis(20))
            .failure_backoff(Duration::from_millis(50), Duration::from_millis(500))
            .cool_down(Duration::from_secs(1))
            .build(tokens);
        let api = ClientCredentialsLayer::with_cache(cache).layer(http);
        Ok(Self { api, servers })
    }

    pub(crate) async fn call_until(self, ends_at: Instant, seed: u64) -> Account {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut account = Account::default();
        while Instant::now() < ends_at {
            sleep(Duration::from_millis(rng.u64(0..100))).await;
            let patience = match rng.u8(0..20) {
                0 => Duration::from_millis(rng.u64(0..50)),
                _ => HUNG_AFTER,
            };
            let started = Instant::now();
            let end = self.call(rng.u64(..), patience).await;
            account.note(end, started.elapsed());
        }
        account
    }

    async fn call(&self, id: u64, patience: Duration) -> End {
        self.servers.expect(id);
        let outcome = timeout(patience, self.send(id)).await;
        let deed = self.servers.forget(id);
        match outcome {
            Ok(Ok((status, is_whole))) => explain_answer(status, is_whole, deed),
            Ok(Err(error)) => explain_error(&error, deed),
            Err(_elapsed) if patience < HUNG_AFTER => End::GivenUp,
            Err(_elapsed) => End::Hung,
        }
    }

    /// The status, and whether a good answer is what was sent.
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

fn explain_answer(status: StatusCode, is_whole: bool, deed: Option<Deed>) -> End {
    match (status, deed) {
        (StatusCode::OK, Some(Deed::Answer)) if is_whole => End::Answered,
        (StatusCode::SERVICE_UNAVAILABLE, Some(deed @ Deed::Unavailable)) => End::Api(deed),
        (StatusCode::UNAUTHORIZED, Some(deed @ Deed::Refuse)) => End::Api(deed),
        _ => End::Unexplained(format!("{status}, whole: {is_whole}, after {deed:?}")),
    }
}

/// An error is explained if it names what a server did.
fn explain_error(error: &BoxError, deed: Option<Deed>) -> End {
    let chain = chain(error.as_ref());
    let ours = error.downcast_ref::<Error>();
    let is_reset = match ours.and_then(Error::transport_error) {
        Some(error) => is_reset(error),
        None => is_reset(error.as_ref()),
    };
    let is_closed = ["connection closed", "end of file", "channel closed"]
        .iter()
        .any(|text| chain.contains(text));
    match (ours, deed) {
        (Some(error), _) => explain_token_error(error, &chain, is_closed, is_reset),
        (None, Some(deed @ (Deed::Close | Deed::CloseHalfway))) if is_closed => End::Api(deed),
        (None, Some(deed @ (Deed::Reset | Deed::ResetHalfway))) if is_reset => End::Api(deed),
        (None, deed) => End::Unexplained(format!("{chain}, after {deed:?}")),
    }
}

fn explain_token_error(error: &Error, chain: &str, is_closed: bool, is_reset: bool) -> End {
    match error.code() {
        Some("injected_refusal") => End::TokenEndpoint(Deed::Refuse),
        Some("injected_unavailability") => End::TokenEndpoint(Deed::Unavailable),
        // In the middle of an answer or without one; which, the chain does not say.
        None if error.is_transport() && is_reset => End::TokenEndpoint(Deed::Reset),
        None if error.is_transport() && is_closed => End::TokenEndpoint(Deed::Close),
        _ => End::Unexplained(chain.to_owned()),
    }
}

fn chain(error: &(dyn StdError + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    let texts: Vec<_> = causes.map(ToString::to_string).collect();
    texts.join(": ")
}
