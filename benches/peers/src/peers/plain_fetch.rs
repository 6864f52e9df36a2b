//! A token request as an application would write it, for peers that have none.

use std::time::Duration;

use serde::Deserialize;
use tower::BoxError;

use crate::endpoint::{CLIENT_ID, CLIENT_SECRET, Endpoint};

#[derive(Clone, Debug)]
pub(super) struct PlainFetch {
    http: reqwest::Client,
    url: String,
}

#[derive(Deserialize)]
pub(super) struct Fetched {
    pub(super) access_token: String,
    expires_in: u64,
}

impl Fetched {
    pub(super) fn lifetime(&self) -> Duration {
        Duration::from_secs(self.expires_in)
    }
}

impl PlainFetch {
    pub(super) fn new(endpoint: &Endpoint) -> Self {
        Self {
            http: reqwest::Client::new(),
            url: endpoint.url().to_owned(),
        }
    }

    pub(super) async fn token(&self) -> Result<Fetched, BoxError> {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", CLIENT_ID),
            ("client_secret", CLIENT_SECRET),
        ];
        let reply = self.http.post(&self.url).form(&form).send().await?;
        Ok(reply.error_for_status()?.json().await?)
    }
}
