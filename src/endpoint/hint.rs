//! What to do about an error that many servers have in common.

use http::StatusCode;

use super::{parameters::RequestParameters, redaction::Redaction};
use crate::error::Refusal;

/// What a token request was refused for.
pub(super) struct Asked<'a> {
    /// The client authentication method, as [`ClientAuth`](crate::ClientAuth) names it.
    pub(super) method: &'static str,
    pub(super) parameters: &'a RequestParameters<'a>,
    /// The names of the form's fields.
    pub(super) fields: Vec<String>,
}

impl Asked<'_> {
    /// Returns what to do about an error, by its code (RFC 6749 §5.2, RFC 8707 §2), otherwise by the
    /// status.
    pub(super) fn hint(
        &self,
        refusal: &Refusal,
        asks_for_basic: bool,
        redaction: &Redaction,
    ) -> Option<String> {
        if refusal.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            return Some("set the proxy's credentials in the HTTP client".to_owned());
        }
        if refusal.transient {
            return None;
        }
        let code = refusal.code.as_deref().unwrap_or_default();
        match code {
            "invalid_client" | "invalid_client_id" => Some(self.check_credentials(asks_for_basic)),
            "unauthorized_client" => Some(format!(
                "allow the client_credentials grant for this client at the server; if it is \
                 allowed, {}",
                self.check_credentials(asks_for_basic)
            )),
            "access_denied" => Some(format!(
                "check at the server whether this client may have a token for what the request \
                 asks for; if it may, {}",
                self.check_credentials(asks_for_basic)
            )),
            "invalid_grant" => Some(
                "check the credentials; if an assertion is sent, check its expiry, its audience \
                 and this machine's clock"
                    .to_owned(),
            ),
            "unsupported_grant_type" => Some(
                "the request sent grant_type=client_credentials as a form; allow this grant at the \
                 server, or check that nothing in between changes the form"
                    .to_owned(),
            ),
            "invalid_scope" => Some(self.check_scope(redaction)),
            "invalid_target" => Some(self.check_target(redaction)),
            "invalid_request" => Some(self.check_fields(redaction)),
            _ => self.hint_by_status(refusal.status, asks_for_basic),
        }
    }

    fn hint_by_status(&self, status: StatusCode, asks_for_basic: bool) -> Option<String> {
        match status {
            StatusCode::UNAUTHORIZED => Some(self.check_credentials(asks_for_basic)),
            StatusCode::FORBIDDEN => Some(format!(
                "{}; a firewall in front of the server may refuse requests, too",
                self.check_credentials(asks_for_basic)
            )),
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                Some("check the token URL: the server has nothing at its path".to_owned())
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                Some("check the token URL: the server accepts no POST at its path".to_owned())
            }
            _ => None,
        }
    }

    fn check_credentials(&self, asks_for_basic: bool) -> String {
        let (credentials, alternatives) = match self.method {
            "client_secret_basic" => (
                "client id and secret",
                "client_secret_post, private_key_jwt or, if it does not decode the header, \
                 client_secret_basic_unencoded",
            ),
            "client_secret_basic_unencoded" => (
                "client id and secret",
                "client_secret_basic, client_secret_post or private_key_jwt",
            ),
            "client_secret_post" => (
                "client id and secret",
                "client_secret_basic or private_key_jwt",
            ),
            "none" => (
                "client id and the client's certificate",
                "client_secret_basic, client_secret_post or private_key_jwt",
            ),
            _ => (
                "client id and the assertion's key, audience and expiry",
                "client_secret_basic or client_secret_post",
            ),
        };
        let method = self.method;
        let expected = if asks_for_basic && !method.starts_with("client_secret_basic") {
            "the server asks for client_secret_basic".to_owned()
        } else {
            format!("the server may expect {alternatives}")
        };
        format!("check the {credentials}; the request used {method}, but {expected}")
    }

    fn check_fields(&self, redaction: &Redaction) -> String {
        let fields = redaction.show(&self.fields.join(", "), 200);
        let method = self.method;
        format!(
            "the form had the fields {fields} with {method}; the server may require another field, \
             such as a scope or audience, or another method"
        )
    }

    fn check_scope(&self, redaction: &Redaction) -> String {
        match self.parameters.scopes() {
            [] => "the request asked for no scope; the server may require one".to_owned(),
            scopes => format!(
                "the request asked for {}; check which scopes the server grants to this client",
                listed("scope", scopes, redaction)
            ),
        }
    }

    fn check_target(&self, redaction: &Redaction) -> String {
        let (resources, audiences) = (self.parameters.resources(), self.parameters.audiences());
        let asked: Vec<_> = [("resource", resources), ("audience", audiences)]
            .into_iter()
            .filter(|(_, values)| !values.is_empty())
            .map(|(name, values)| listed(name, values, redaction))
            .collect();
        if asked.is_empty() {
            return "the request named no resource and no audience; the server may require one"
                .to_owned();
        }
        format!(
            "the request asked for {}; check which of them the server allows for this client",
            asked.join(" and ")
        )
    }
}

/// Formats values of the user's own, as `scope "a b"`.
fn listed(name: &str, values: &[&str], redaction: &Redaction) -> String {
    format!("{name} {:?}", redaction.show(&values.join(" "), 200))
}
