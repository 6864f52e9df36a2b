//! LinkedIn's token endpoint, as documented by LinkedIn.

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower::{BoxError, Service};

use crate::{ClientAuth, ClientSecret, Error, TokenEndpoint, error::Refusal};

/// Creates a token endpoint for LinkedIn's 2-legged tokens.
///
/// Sends the client id and secret in the form ([`ClientAuth::client_secret_post`]), because
/// LinkedIn supports no other method. For the errors that LinkedIn documents, [`Error::hint`] says
/// what to do.
///
/// # Examples
///
/// ```
/// # use bytes::Bytes;
/// # use http_body_util::Full;
/// # use tower::{BoxError, service_fn};
/// # let http = service_fn(|_: http::Request<Full<Bytes>>| async {
/// #     Ok::<_, BoxError>(http::Response::new(String::new()))
/// # });
/// use tower_client_credentials::provider;
///
/// let tokens = provider::linkedin(http, "77tt5z...", "WPL_AP1...")?;
/// # drop(tokens);
/// # Ok::<(), tower_client_credentials::Error>(())
/// ```
///
/// # Errors
///
/// Fails if the id or the secret is empty, or if [`TokenEndpoint::new`] doesn't accept it.
pub fn linkedin<C, B, ResBody>(
    client: C,
    client_id: impl Into<String>,
    client_secret: impl Into<ClientSecret>,
) -> Result<TokenEndpoint, Error>
where
    C: Service<Request<B>, Response = Response<ResBody>> + Clone + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
    B: From<Bytes>,
    ResBody: Body<Error: Into<BoxError>> + Send + 'static,
{
    let auth = client_auth(client_id, client_secret)?;
    Ok(TokenEndpoint::new(client, TOKEN_URL, auth)?.hints(hint))
}

/// The token endpoint for 2-legged tokens.
const TOKEN_URL: &str = "https://www.linkedin.com/oauth/v2/accessToken";

/// LinkedIn reads credentials only from the form, and issues no empty secrets.
fn client_auth(
    id: impl Into<String>,
    secret: impl Into<ClientSecret>,
) -> Result<ClientAuth, Error> {
    let secret = secret.into();
    if secret.expose().is_empty() {
        return Err(Error::configuration("client secret is empty"));
    }
    Ok(ClientAuth::client_secret_post(id, secret))
}

/// Returns what LinkedIn's documentation says to do about an error.
fn hint(refusal: &Refusal) -> Option<&'static str> {
    let description = refusal.description.as_deref().unwrap_or_default();
    match (refusal.status.as_u16(), refusal.code.as_deref()?) {
        (400, "invalid_client_id") => Some(
            "send the client id shown on the application's Auth tab in LinkedIn's developer portal",
        ),
        (_, "invalid_client_id" | "invalid_client") => Some(
            "compare the client id and secret with the application's Auth tab in LinkedIn's developer portal",
        ),
        (_, "access_denied") => Some(
            "ask your LinkedIn relationship manager or business development for access: the application may not create 2-legged tokens",
        ),
        (_, "invalid_request") if description.contains("\"grant_type\"") => {
            Some("send grant_type=client_credentials; a proxy may have dropped the form")
        }
        (_, "invalid_request") if description.contains("\"client_id\"") => {
            Some("send the client id; it must not be empty")
        }
        (_, "invalid_request") if description.contains("\"client_secret\"") => {
            Some("send the client secret; it must not be empty")
        }
        _ => None,
    }
}
