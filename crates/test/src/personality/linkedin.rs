use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Personality, Standard};
use crate::{AuthMethod, IssuedToken, Refusal, Reply, TokenState};

/// LinkedIn's 2-legged OAuth, as documented and as observed.
///
/// * The token endpoint is `/oauth/v2/accessToken`. It reads credentials from the form only.
/// * Tokens have 500 characters and live for 30 minutes. `expires_in` is a string, and `token_type`
///   is missing.
/// * The documented errors: `invalid_request` for a missing parameter, `invalid_client_id` for an
///   unknown client (400) and for a wrong secret (401), and `access_denied` (401) for an application
///   without access to 2-legged OAuth, see [`Client::without_grant`](crate::Client::without_grant).
/// * The API answers 401 with a JSON body and without `WWW-Authenticate`.
///
/// A token that is only seconds old can get a 401 from LinkedIn. To test that, add
/// [`AuthServer::accept_from`](crate::AuthServer::accept_from).
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkedIn;

impl Personality for LinkedIn {
    fn name(&self) -> &'static str {
        "linkedin"
    }

    fn token_path(&self) -> &'static str {
        "/oauth/v2/accessToken"
    }

    fn lifetime(&self) -> Option<Duration> {
        Some(Duration::from_secs(30 * 60))
    }

    fn token_length(&self) -> usize {
        500
    }

    fn auth_methods(&self) -> &[AuthMethod] {
        &[AuthMethod::ClientSecretPost]
    }

    fn token_reply(&self, token: &IssuedToken, expires_in: Option<Duration>) -> Map<String, Value> {
        let mut reply = Map::new();
        reply.insert("access_token".to_owned(), token.expose().into());
        if let Some(expires_in) = expires_in {
            reply.insert(
                "expires_in".to_owned(),
                expires_in.as_secs().to_string().into(),
            );
        }
        reply
    }

    fn refusal(&self, refusal: &Refusal) -> Reply {
        let missing = |name: &str| format!("A required parameter \"{name}\" is missing");
        let (status, error, description) = match refusal {
            // LinkedIn looks for the parameters in this order.
            Refusal::MissingParameter(name) => (400, "invalid_request", missing(name)),
            Refusal::NoAuthentication { client_id: None } => {
                (400, "invalid_request", missing("client_id"))
            }
            Refusal::NoAuthentication { client_id: Some(_) } => {
                (400, "invalid_request", missing("client_secret"))
            }
            // Without the right content type, there is no form.
            Refusal::WrongContentType => (400, "invalid_request", missing("grant_type")),
            Refusal::UnknownClient { client_id } => {
                let description = format!("The passed in client_id is invalid \"{client_id}\"");
                (400, "invalid_client_id", description)
            }
            Refusal::SwappedCredentials => {
                let description = "The passed in client_id is invalid".to_owned();
                (400, "invalid_client_id", description)
            }
            Refusal::WrongSecret { .. } => {
                let description = "Client authentication failed".to_owned();
                (401, "invalid_client_id", description)
            }
            Refusal::GrantNotAllowed | Refusal::UnsupportedGrantType(_) => {
                let description =
                    "This application is not allowed to create application tokens".to_owned();
                (401, "access_denied", description)
            }
            refusal => return Standard.refusal(refusal),
        };
        Reply::status(status).with_json(&json!({
            "error": error,
            "error_description": description,
        }))
    }

    fn api_refusal(&self, state: TokenState) -> Reply {
        let body = match state {
            TokenState::Missing => json!({
                "message": "Empty oauth2_access_token",
                "serviceErrorCode": 401,
                "status": 401,
            }),
            TokenState::Revoked => json!({
                "status": 401,
                "serviceErrorCode": 65601,
                "code": "REVOKED_ACCESS_TOKEN",
                "message": "The token used in the request has been revoked by the user",
            }),
            _ => json!({
                "serviceErrorCode": 65600,
                "message": "Invalid access token",
                "status": 401,
            }),
        };
        Reply::status(401).with_json(&body)
    }
}
