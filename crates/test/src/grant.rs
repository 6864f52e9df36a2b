use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{
    HeaderMap, Method,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use percent_encoding::percent_decode_str;

use crate::{AuthMethod, Client, Personality, ReceivedTokenRequest};

/// More than any client sends, and few enough to check and to remember.
const MAX_PARAMETERS: usize = 1000;

/// Why an [`AuthServer`](crate::AuthServer) refuses a token request.
///
/// [`Display`](fmt::Display) describes the mistake. [`code`](Self::code) is the standard error code. A
/// [`Personality`] chooses the reply.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The request isn't sent to the path of the token endpoint.
    WrongPath,
    /// The HTTP method isn't `POST` (RFC 6749 §3.2).
    WrongMethod,
    /// The content type isn't that of a form.
    WrongContentType,
    /// The body failed before its end.
    IncompleteBody,
    /// The body is larger than 1 MiB.
    BodyTooLarge,
    /// The form has more than 1,000 parameters.
    TooManyParameters,
    /// The URL contains a secret (RFC 6749 §2.3.1 forbids that).
    SecretInUrl,
    /// A parameter is sent more than once (RFC 6749 §3.2).
    RepeatedParameter(String),
    /// A parameter that the grant needs is missing.
    MissingParameter(&'static str),
    /// The client doesn't authenticate.
    NoAuthentication {
        /// The id that the form names.
        client_id: Option<String>,
    },
    /// The client authenticates in more than one way: in the header, with a secret in the form, with
    /// an assertion, or with different ids (RFC 6749 §2.3 forbids that).
    SeveralAuthentications,
    /// The `Authorization` header can't be decoded.
    MalformedAuthorization,
    /// The server, or this client's registration, doesn't allow the method.
    MethodNotAccepted {
        /// The method that the client used.
        method: AuthMethod,
        /// The methods that it may use.
        accepted: Vec<AuthMethod>,
    },
    /// No client with this id is registered.
    UnknownClient {
        /// The id that the client sent.
        client_id: String,
    },
    /// The id that the client sent is the secret of a registered client.
    SwappedCredentials,
    /// The secret is wrong.
    WrongSecret {
        /// Whether the secret would be right if the server didn't decode it. Then the client forgot
        /// to form-encode it (RFC 6749 §2.3.1).
        is_unencoded: bool,
    },
    /// The grant type isn't the one that the server supports.
    UnsupportedGrantType(String),
    /// The client is registered [without the grant](Client::without_grant).
    GrantNotAllowed,
    /// The value of the scope parameter isn't a list of scopes (RFC 6749 §3.3).
    MalformedScope,
    /// The client may not ask for these scopes.
    InvalidScope(Vec<String>),
}

impl Refusal {
    /// Returns the error code of RFC 6749 §5.2.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoAuthentication { .. }
            | Self::MalformedAuthorization
            | Self::MethodNotAccepted { .. }
            | Self::UnknownClient { .. }
            | Self::SwappedCredentials
            | Self::WrongSecret { .. } => "invalid_client",
            Self::UnsupportedGrantType(_) => "unsupported_grant_type",
            Self::GrantNotAllowed => "unauthorized_client",
            Self::MalformedScope | Self::InvalidScope(_) => "invalid_scope",
            _ => "invalid_request",
        }
    }
}

impl Refusal {
    /// Changes the texts that came from the client.
    pub(crate) fn map_texts(self, change: impl Fn(&str) -> String) -> Self {
        match self {
            Self::RepeatedParameter(name) => Self::RepeatedParameter(change(&name)),
            Self::UnknownClient { client_id } => Self::UnknownClient {
                client_id: change(&client_id),
            },
            Self::UnsupportedGrantType(name) => Self::UnsupportedGrantType(change(&name)),
            Self::NoAuthentication { client_id } => Self::NoAuthentication {
                client_id: client_id.map(|id| change(&id)),
            },
            Self::InvalidScope(scopes) => {
                Self::InvalidScope(scopes.iter().map(|it| change(it)).collect())
            }
            other => other,
        }
    }

    /// The bytes of its texts.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::RepeatedParameter(text)
            | Self::UnknownClient { client_id: text }
            | Self::UnsupportedGrantType(text)
            | Self::NoAuthentication {
                client_id: Some(text),
            } => text.len(),
            Self::InvalidScope(scopes) => scopes.iter().map(|it| size_of_val(it) + it.len()).sum(),
            _ => 0,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongPath => f.write_str("this is not the path of the token endpoint"),
            Self::WrongMethod => f.write_str("a token request is a POST"),
            Self::WrongContentType => {
                f.write_str("the content type is not application/x-www-form-urlencoded")
            }
            Self::IncompleteBody => f.write_str("the body of the request failed before its end"),
            Self::BodyTooLarge => f.write_str("the body is larger than 1 MiB"),
            Self::TooManyParameters => f.write_str("the form has more than 1000 parameters"),
            Self::SecretInUrl => f.write_str("the URL contains a secret"),
            Self::RepeatedParameter(name) => write!(f, "the parameter {name} is sent twice"),
            Self::MissingParameter(name) => write!(f, "the parameter {name} is missing"),
            Self::NoAuthentication { client_id: None } => {
                f.write_str("the client does not authenticate")
            }
            Self::NoAuthentication {
                client_id: Some(id),
            } => {
                write!(f, "the client {id} sends no secret")
            }
            Self::SeveralAuthentications => {
                f.write_str("the client authenticates in more than one way")
            }
            Self::MalformedAuthorization => {
                f.write_str("the Authorization header is not Basic with an id and a secret")
            }
            Self::MethodNotAccepted { method, accepted } => {
                let accepted: Vec<_> = accepted.iter().map(AuthMethod::to_string).collect();
                match accepted.join(", ") {
                    none if none.is_empty() => write!(f, "{method} is not accepted"),
                    accepted => write!(f, "{method} is not accepted, but {accepted}"),
                }
            }
            Self::UnknownClient { client_id } => {
                write!(f, "no client {client_id} is registered")
            }
            Self::SwappedCredentials => f.write_str("the client id and the secret are swapped"),
            Self::WrongSecret {
                is_unencoded: false,
            } => f.write_str("the secret is wrong"),
            Self::WrongSecret { is_unencoded: true } => {
                f.write_str("the secret is not form-encoded before Base64 (RFC 6749 2.3.1)")
            }
            Self::UnsupportedGrantType(name) => {
                write!(f, "the grant type {name} is not supported")
            }
            Self::GrantNotAllowed => f.write_str("the client may not use this grant"),
            Self::MalformedScope => f.write_str("the scope is not a list of scopes"),
            Self::InvalidScope(scopes) => {
                write!(f, "the client may not ask for {}", scopes.join(" "))
            }
        }
    }
}

/// The id and the secret that a client sent.
pub(crate) struct Credentials {
    id: String,
    secret: String,
    method: AuthMethod,
    /// A Basic header's secret before decoding.
    undecoded_secret: Option<String>,
}

/// What an accepted token request may get.
pub(crate) struct Grant {
    pub(crate) client_id: String,
    pub(crate) scopes: Vec<String>,
}

/// Reads the form and the credentials of a token request, and notes them in `request`.
pub(crate) fn read(
    request: &mut ReceivedTokenRequest,
    body: &[u8],
    personality: &dyn Personality,
) -> Result<Option<Credentials>, Refusal> {
    // One more than allowed shows that there are too many.
    let form = form_urlencoded::parse(body).take(MAX_PARAMETERS + 1);
    request.parameters = form
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    let in_form = credentials_in_form(request);
    let in_header = credentials_in_header(&request.headers);
    let seen = in_form
        .as_ref()
        .or(in_header.as_ref().ok().and_then(Option::as_ref));
    request.auth_method = seen.map(|it| it.method);
    request.client_id = match seen {
        Some(credentials) => Some(credentials.id.clone()),
        None => value(request, "client_id").map(str::to_owned),
    };

    if request.method != Method::POST {
        return Err(Refusal::WrongMethod);
    }
    let query = request.uri.query().unwrap_or_default();
    let is_credential = |name: &str| matches!(name, "client_secret" | "client_assertion");
    if form_urlencoded::parse(query.as_bytes()).any(|it| is_credential(&it.0)) {
        return Err(Refusal::SecretInUrl);
    }
    if !is_form(&request.headers) {
        return Err(Refusal::WrongContentType);
    }
    if request.parameters.len() > MAX_PARAMETERS {
        return Err(Refusal::TooManyParameters);
    }
    if let Some(name) = repeated(request) {
        return Err(Refusal::RepeatedParameter(name.to_owned()));
    }
    // A server that knows no Basic ignores the header.
    let knows_basic = personality
        .auth_methods()
        .contains(&AuthMethod::ClientSecretBasic);
    let in_header = if knows_basic { in_header? } else { None };
    let in_form_are = |name| usize::from(value(request, name).is_some());
    let methods = usize::from(in_header.is_some())
        + in_form_are("client_secret")
        + in_form_are("client_assertion");
    if methods > 1 {
        return Err(Refusal::SeveralAuthentications);
    }
    Ok(in_header.or(in_form))
}

/// Checks client authentication, the grant type and the scopes.
pub(crate) fn check(
    request: &ReceivedTokenRequest,
    credentials: Option<Credentials>,
    clients: &HashMap<String, Client>,
    personality: &dyn Personality,
) -> Result<Grant, Refusal> {
    let grant_type = value(request, "grant_type");
    let grant_type = grant_type.ok_or(Refusal::MissingParameter("grant_type"))?;
    let Some(credentials) = credentials else {
        let client_id = value(request, "client_id").map(str::to_owned);
        return Err(Refusal::NoAuthentication { client_id });
    };
    let client = authenticate(&credentials, clients, personality)?;
    // RFC 6749 §2.3.1 allows the id in the form beside a header, and it must be the same.
    if value(request, "client_id").is_some_and(|id| id != client.id) {
        return Err(Refusal::SeveralAuthentications);
    }
    if grant_type != personality.grant_type() {
        return Err(Refusal::UnsupportedGrantType(grant_type.to_owned()));
    }
    if !client.has_grant {
        return Err(Refusal::GrantNotAllowed);
    }
    Ok(Grant {
        client_id: client.id.clone(),
        scopes: granted_scopes(request, client)?,
    })
}

fn authenticate<'a>(
    credentials: &Credentials,
    clients: &'a HashMap<String, Client>,
    personality: &dyn Personality,
) -> Result<&'a Client, Refusal> {
    let client = clients.get(&credentials.id);
    let by_server = personality.auth_methods();
    let by_client = client.and_then(|client| client.auth_methods.as_deref());
    let is_accepted = |method: &AuthMethod| by_client.is_none_or(|it| it.contains(method));
    let accepted: Vec<_> = by_server.iter().copied().filter(is_accepted).collect();
    if !accepted.contains(&credentials.method) {
        let method = credentials.method;
        return Err(Refusal::MethodNotAccepted { method, accepted });
    }
    let Some(client) = client else {
        let client_id = credentials.id.clone();
        return Err(if is_secret(&client_id, clients) {
            Refusal::SwappedCredentials
        } else {
            Refusal::UnknownClient { client_id }
        });
    };
    if !client.has_secret(&credentials.secret) {
        let undecoded = credentials.undecoded_secret.as_deref();
        let is_unencoded = undecoded.is_some_and(|secret| client.has_secret(secret));
        return Err(Refusal::WrongSecret { is_unencoded });
    }
    Ok(client)
}

/// What a token request contains that must not be shown, as it is and decoded.
pub(crate) fn secrets_of(request: &ReceivedTokenRequest) -> Vec<String> {
    let is_secret = |name: &str| {
        matches!(
            name,
            "access_token"
                | "assertion"
                | "client_assertion"
                | "client_secret"
                | "code"
                | "password"
                | "refresh_token"
        )
    };
    let in_form = request.parameters().filter(|it| is_secret(it.0));
    let mut secrets: Vec<_> = in_form.map(|it| it.1.to_owned()).collect();
    let query = request.uri.query().unwrap_or_default();
    let in_query = form_urlencoded::parse(query.as_bytes()).filter(|it| is_secret(&it.0));
    secrets.extend(in_query.map(|it| it.1.into_owned()));
    for value in request.headers.get_all(AUTHORIZATION) {
        let Some((_, encoded)) = value.to_str().ok().and_then(|it| it.split_once(' ')) else {
            continue;
        };
        secrets.push(encoded.trim().to_owned());
        let decoded = BASE64_STANDARD.decode(encoded.trim()).unwrap_or_default();
        let decoded = String::from_utf8_lossy(&decoded);
        let Some((_, secret)) = decoded.split_once(':') else {
            continue;
        };
        secrets.extend(form_decoded(secret));
        secrets.push(secret.to_owned());
    }
    secrets
}

/// Whether a text is the secret of a client.
pub(crate) fn is_secret(text: &str, clients: &HashMap<String, Client>) -> bool {
    clients.values().any(|client| client.has_secret(text))
}

/// RFC 6749 §3.3: without a requested scope, the server uses a default, here all scopes.
fn granted_scopes(request: &ReceivedTokenRequest, client: &Client) -> Result<Vec<String>, Refusal> {
    if !value(request, "scope").is_none_or(is_scope) {
        return Err(Refusal::MalformedScope);
    }
    let requested: Vec<String> = request.scopes().into_iter().map(str::to_owned).collect();
    let Some(allowed) = &client.scopes else {
        return Ok(requested);
    };
    if requested.is_empty() {
        return Ok(allowed.clone());
    }
    let (granted, refused): (Vec<_>, Vec<_>) = requested
        .into_iter()
        .partition(|scope| allowed.contains(scope));
    if refused.is_empty() {
        Ok(granted)
    } else {
        Err(Refusal::InvalidScope(refused))
    }
}

/// RFC 6749 §3.3: printable ASCII characters without quotation mark and backslash, and one space
/// between two scopes.
fn is_scope(scope: &str) -> bool {
    let is_allowed = |it: char| matches!(it, '!'..='~') && !matches!(it, '"' | '\\');
    scope
        .split(' ')
        .all(|token| !token.is_empty() && token.chars().all(is_allowed))
}

fn is_form(headers: &HeaderMap) -> bool {
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| {
        essence
            .trim()
            .eq_ignore_ascii_case("application/x-www-form-urlencoded")
    })
}

/// RFC 6749 §3.2 forbids repeated parameters. RFC 8707 §2 allows several resources, and RFC 8693
/// §2.1 several audiences.
fn repeated(request: &ReceivedTokenRequest) -> Option<&str> {
    let mut seen = HashSet::new();
    let parameters = request.parameters().filter(|it| !it.1.is_empty());
    let mut names = parameters.map(|it| it.0);
    names.find(|name| !matches!(*name, "resource" | "audience") && !seen.insert(*name))
}

/// The value of a parameter. RFC 6749 §3.2: one without a value counts as omitted.
fn value<'a>(request: &'a ReceivedTokenRequest, name: &str) -> Option<&'a str> {
    let mut parameters = request.parameters();
    parameters
        .find(|it| it.0 == name && !it.1.is_empty())
        .map(|it| it.1)
}

fn credentials_in_form(request: &ReceivedTokenRequest) -> Option<Credentials> {
    Some(Credentials {
        id: value(request, "client_id")?.to_owned(),
        secret: value(request, "client_secret")?.to_owned(),
        method: AuthMethod::ClientSecretPost,
        undecoded_secret: None,
    })
}

fn credentials_in_header(headers: &HeaderMap) -> Result<Option<Credentials>, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Refusal::MalformedAuthorization);
    }
    let value = value.to_str().ok();
    let credentials = value.and_then(basic_credentials);
    credentials.map(Some).ok_or(Refusal::MalformedAuthorization)
}

/// RFC 6749 §2.3.1: id and secret are form-encoded before Base64.
fn basic_credentials(header: &str) -> Option<Credentials> {
    let (scheme, encoded) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = BASE64_STANDARD.decode(encoded.trim()).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (id, secret) = decoded.split_once(':')?;
    Some(Credentials {
        id: form_decoded(id)?,
        secret: form_decoded(secret)?,
        method: AuthMethod::ClientSecretBasic,
        undecoded_secret: Some(secret.to_owned()),
    })
}

fn form_decoded(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    let decoded = percent_decode_str(&text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}
