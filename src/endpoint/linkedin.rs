//! Policy: LinkedIn's token endpoint, as its documentation describes it.

use super::ClientAuth;
use crate::{ClientSecret, Error, error::Refusal};

/// The token endpoint for 2-legged tokens.
pub(super) const TOKEN_URL: &str = "https://www.linkedin.com/oauth/v2/accessToken";

/// LinkedIn reads credentials in the form only, never as HTTP Basic, and has no empty secrets.
pub(super) fn client_auth(
    id: impl Into<String>,
    secret: impl Into<ClientSecret>,
) -> Result<ClientAuth, Error> {
    let secret = secret.into();
    if secret.expose().is_empty() {
        return Err(Error::configuration("client secret is empty"));
    }
    Ok(ClientAuth::request_body(id, secret))
}

/// What each documented error asks the user to do.
pub(super) fn advice(refusal: &Refusal) -> Option<&'static str> {
    let description = refusal.description.as_deref().unwrap_or_default();
    match (refusal.status.as_u16(), refusal.code.as_deref()?) {
        (400, "invalid_client_id") => Some(
            "send the application's own client id, as its Auth tab in LinkedIn's developer portal shows it",
        ),
        (_, "invalid_client_id" | "invalid_client") => Some(
            "check the client id and secret that are sent against the application's Auth tab in LinkedIn's developer portal",
        ),
        (_, "access_denied") => Some(
            "the application may not create 2-legged tokens: ask LinkedIn for access, through your relationship manager or business development",
        ),
        (_, "invalid_request") if description.contains("\"grant_type\"") => {
            Some("send grant_type=client_credentials: a proxy may have dropped the form")
        }
        (_, "invalid_request") if description.contains("\"client_id\"") => {
            Some("send the client id: it must not be empty")
        }
        (_, "invalid_request") if description.contains("\"client_secret\"") => {
            Some("send the client secret: it must not be empty")
        }
        _ => None,
    }
}
