//! How a client authenticates at the token endpoint.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderValue, Uri, header::AUTHORIZATION};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use tower::BoxError;

use super::redaction::is_unsafe_to_print;
use crate::{Error, TokenRequest, error::Kind, secret::wiped_on_drop};

/// How a client authenticates at the token endpoint (RFC 6749 §2.3).
///
/// Use the method that the server has registered for your client. This crate doesn't try one method
/// after another: that could send the secret to the wrong place, and some servers lock out clients
/// after failures.
///
/// | method | registered name | sends |
/// |---|---|---|
/// | [`client_secret_basic`](Self::client_secret_basic) | `client_secret_basic` | the header `Authorization: Basic` |
/// | [`client_secret_basic_unencoded`](Self::client_secret_basic_unencoded) | `client_secret_basic` | the same header without percent-encoding, for servers that don't decode it |
/// | [`client_secret_post`](Self::client_secret_post) | `client_secret_post` | `client_id` and `client_secret` in the form |
/// | [`none`](Self::none) | `none`, `tls_client_auth` | `client_id` in the form |
/// | [`jwt_assertion`](Self::jwt_assertion) | `private_key_jwt`, `client_secret_jwt` | `client_id` and `client_assertion` in the form |
///
/// `Debug` shows the method and the client id, but no secret.
///
/// # Examples
///
/// ```
/// use tower_client_credentials::ClientAuth;
///
/// let auth = ClientAuth::client_secret_post("77tt5z...", "WPL_AP1...");
/// assert!(!format!("{auth:?}").contains("WPL_AP1"));
/// ```
///
/// With credentials that are rotated while the program runs:
///
/// ```
/// use tower_client_credentials::ClientAuth;
///
/// let auth = ClientAuth::from_fn(|_request| async {
///     let secret = std::fs::read_to_string("/run/secrets/client_secret")?;
///     Ok::<_, std::io::Error>(ClientAuth::client_secret_basic("my-client", secret.trim_end()))
/// });
/// # drop(auth);
/// ```
///
/// For tenants with credentials of their own, see [`from_fn`](Self::from_fn).
#[derive(Clone)]
pub struct ClientAuth(Method);

#[derive(Clone)]
enum Method {
    /// The same credentials each time.
    Fixed(Credentials),
    /// A new assertion for each attempt.
    JwtAssertion {
        id: Arc<str>,
        assertion: AssertionFn,
    },
    /// What the function returns for this attempt.
    FromFn(CredentialsFn),
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;
type AssertionFn = Arc<dyn Fn(Uri, TokenRequest) -> BoxFuture<ClientSecret> + Send + Sync>;
type CredentialsFn = Arc<dyn Fn(TokenRequest) -> BoxFuture<ClientAuth> + Send + Sync>;

/// What one attempt sends, one variant per IANA name and encoding.
#[derive(Clone)]
pub(super) enum Credentials {
    ClientSecretBasic {
        id: Arc<str>,
        secret: ClientSecret,
    },
    ClientSecretBasicUnencoded {
        id: Arc<str>,
        secret: ClientSecret,
    },
    ClientSecretPost {
        id: Arc<str>,
        secret: ClientSecret,
    },
    None {
        id: Arc<str>,
    },
    JwtAssertion {
        id: Arc<str>,
        assertion: ClientSecret,
    },
}

impl ClientAuth {
    /// Sends the client id and secret in the header `Authorization: Basic`.
    ///
    /// The id and the secret are percent-encoded before Base64 (RFC 6749 §2.3.1), so they can
    /// contain any printable character. A space becomes `%20`. The header is marked sensitive.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_client_credentials::ClientAuth;
    ///
    /// let auth = ClientAuth::client_secret_basic("my-client", "s3cret");
    /// # drop(auth);
    /// ```
    pub fn client_secret_basic(id: impl Into<String>, secret: impl Into<ClientSecret>) -> Self {
        Self::fixed(Credentials::ClientSecretBasic {
            id: id.into().into(),
            secret: secret.into(),
        })
    }

    /// Sends the client id and secret in the header `Authorization: Basic`, without percent-encoding.
    ///
    /// Use this method for servers that follow RFC 7617 but don't decode the id and the secret as
    /// RFC 6749 §2.3.1 requires. The header differs from that of
    /// [`client_secret_basic`](Self::client_secret_basic) only if the id or the secret contains
    /// characters other than ASCII letters, digits, `-`, `.` and `_`. The id must not contain a
    /// colon.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_client_credentials::ClientAuth;
    ///
    /// let auth = ClientAuth::client_secret_basic_unencoded("my-client", "s3cret/+");
    /// # drop(auth);
    /// ```
    pub fn client_secret_basic_unencoded(
        id: impl Into<String>,
        secret: impl Into<ClientSecret>,
    ) -> Self {
        Self::fixed(Credentials::ClientSecretBasicUnencoded {
            id: id.into().into(),
            secret: secret.into(),
        })
    }

    /// Sends the client id and secret in the form, as `client_id` and `client_secret` (RFC 6749
    /// §2.3.1).
    ///
    /// LinkedIn, for example, supports only this method.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_client_credentials::ClientAuth;
    ///
    /// let auth = ClientAuth::client_secret_post("77tt5z...", "WPL_AP1...");
    /// # drop(auth);
    /// ```
    pub fn client_secret_post(id: impl Into<String>, secret: impl Into<ClientSecret>) -> Self {
        Self::fixed(Credentials::ClientSecretPost {
            id: id.into().into(),
            secret: secret.into(),
        })
    }

    /// Sends only the client id, as `client_id` in the form.
    ///
    /// Use this method for mutual TLS (RFC 8705 §2), where the HTTP client presents a certificate,
    /// and for servers that identify the client by its network.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_client_credentials::ClientAuth;
    ///
    /// let auth = ClientAuth::none("my-client");
    /// # drop(auth);
    /// ```
    pub fn none(id: impl Into<String>) -> Self {
        Self::fixed(Credentials::None {
            id: id.into().into(),
        })
    }

    /// Sends a JWT that the function `assertion` returns (RFC 7523 §2.2).
    ///
    /// Use this method for `private_key_jwt`, `client_secret_jwt`, and workload identity tokens
    /// that a platform writes to a file. The function receives the token URL, which many servers
    /// expect as `aud`, and the [`TokenRequest`]. It is called for each attempt, because servers refuse
    /// a `jti` that they have already seen. The function can use the same HTTP client as the token
    /// endpoint.
    ///
    /// The client id is the same for all requests. If each tenant has its own, return this method from
    /// [`from_fn`](Self::from_fn).
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_client_credentials::ClientAuth;
    ///
    /// let auth = ClientAuth::jwt_assertion("my-client", |_token_url, _request| async {
    ///     let jwt = std::fs::read_to_string("/var/run/secrets/tokens/identity")?;
    ///     Ok::<_, std::io::Error>(jwt.trim_end().to_owned())
    /// });
    /// # drop(auth);
    /// ```
    ///
    /// # Errors
    ///
    /// If the function fails, the token request fails with
    /// [`is_client_auth`](crate::Error::is_client_auth), and the function's error is the source. By
    /// default, such errors are transient. To prevent retries, return
    /// [`Error::permanent`](crate::Error::permanent). To say how long to wait, return
    /// [`Error::transient`](crate::Error::transient).
    ///
    /// An assertion that can't be sent, such as an empty one, is also a transient error: the
    /// function may have read a file that was being replaced.
    pub fn jwt_assertion<F, Fut, A, E>(id: impl Into<String>, assertion: F) -> Self
    where
        F: Fn(Uri, TokenRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
        A: Into<ClientSecret>,
        E: Into<BoxError>,
    {
        Self(Method::JwtAssertion {
            id: id.into().into(),
            assertion: Arc::new(move |url, request| {
                let assertion = assertion(url, request);
                Box::pin(async { assertion.await.map(Into::into).map_err(Into::into) })
            }),
        })
    }

    /// Uses the credentials that a function returns. The function is called for each attempt.
    ///
    /// Use it for secrets that are rotated without a restart, and for tenants with credentials of
    /// their own. The function receives the [`TokenRequest`] with its
    /// [tenant](crate::TokenParameters::tenant) and its other parameters. If the server refuses the
    /// request with a 4xx status or with an error in a 2xx reply, the function is called again. If it
    /// returns other credentials, the request is sent once more with them. Any permanent refusal
    /// counts, because servers use many codes for wrong credentials. Credentials differ if the
    /// method, the client id or the secret differs. Assertions count as equal if their client ids
    /// are equal.
    ///
    /// The function can return any method except another `from_fn`. The credentials are checked
    /// when they are used.
    ///
    /// # Examples
    ///
    /// One [`TokenEndpoint`](crate::TokenEndpoint) for all tenants:
    ///
    /// ```
    /// use std::{collections::HashMap, future::ready};
    ///
    /// use tower_client_credentials::{ClientAuth, Error, TokenRequest};
    ///
    /// let tenants = HashMap::from([
    ///     ("tenant-1", ("client-1", "s3cret-1")),
    ///     ("tenant-2", ("client-2", "s3cret-2")),
    /// ]);
    /// let auth = ClientAuth::from_fn(move |request: TokenRequest| {
    ///     let tenant = request.parameters.tenant().unwrap_or_default();
    ///     ready(match tenants.get(tenant) {
    ///         Some((id, secret)) => Ok(ClientAuth::client_secret_post(*id, *secret)),
    ///         None => Err(Error::permanent("unknown tenant")),
    ///     })
    /// });
    /// # drop(auth);
    /// ```
    ///
    /// # Errors
    ///
    /// If the function fails, or returns credentials that can't be sent, the token request fails as
    /// described for [`jwt_assertion`](Self::jwt_assertion). The message contains the tenant's label.
    /// For an unknown tenant, return [`Error::permanent`](crate::Error::permanent).
    pub fn from_fn<F, Fut, E>(credentials: F) -> Self
    where
        F: Fn(TokenRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Self, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        Self(Method::FromFn(Arc::new(move |request| {
            let credentials = credentials(request);
            Box::pin(async { credentials.await.map_err(Into::into) })
        })))
    }

    /// Checks the credentials that are known before the first use.
    pub(super) fn check(&self) -> Result<(), Error> {
        match &self.0 {
            Method::Fixed(credentials) => credentials.check(),
            Method::JwtAssertion { id, .. } => check_present("client id", id),
            Method::FromFn(_) => Ok(()),
        }
    }

    /// Returns whether the next attempt may send other credentials.
    pub(super) fn rotates(&self) -> bool {
        matches!(self.0, Method::FromFn(_))
    }

    /// Returns the credentials for one attempt.
    pub(super) async fn credentials(
        &self,
        token_url: &Uri,
        request: &TokenRequest,
    ) -> Result<Credentials, Error> {
        let method = match &self.0 {
            Method::FromFn(credentials) => {
                let credentials = credentials(request.clone()).await;
                &credentials.map_err(function_failed)?.0
            }
            method => method,
        };
        let credentials = match method {
            Method::Fixed(credentials) => credentials.clone(),
            Method::JwtAssertion { id, assertion } => Credentials::JwtAssertion {
                id: id.clone(),
                assertion: assertion(token_url.clone(), request.clone())
                    .await
                    .map_err(function_failed)?,
            },
            Method::FromFn(_) => {
                return Err(Error::configuration(
                    "function given to ClientAuth::from_fn returned another from_fn; return the credentials",
                ));
            }
        };
        // Transient, because a function may have read a file while it was being written. Fixed
        // credentials have been checked before.
        credentials
            .check()
            .map_err(|error| Error::with_source(Kind::ClientAuth { transient: true }, error))?;
        Ok(credentials)
    }

    fn fixed(credentials: Credentials) -> Self {
        Self(Method::Fixed(credentials))
    }
}

impl fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (method, id) = match &self.0 {
            Method::Fixed(credentials) => (credentials.method(), Some(credentials.id())),
            Method::JwtAssertion { id, .. } => ("jwt_assertion", Some(id)),
            Method::FromFn(_) => ("from_fn", None),
        };
        f.debug_struct("ClientAuth")
            .field("method", &method)
            .field("id", &id)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Adds the credentials to the form or the headers.
    pub(super) fn apply<'a>(&'a self, form: &mut Vec<(&'a str, &'a str)>, headers: &mut HeaderMap) {
        match self {
            Self::ClientSecretBasic { .. } | Self::ClientSecretBasicUnencoded { .. } => {
                let value = wiped_on_drop(["Basic ", &self.user_pass()].concat());
                let mut value =
                    HeaderValue::from_maybe_shared(value).expect("Base64 is a valid header value");
                value.set_sensitive(true);
                headers.insert(AUTHORIZATION, value);
            }
            Self::ClientSecretPost { id, secret } => {
                form.extend([("client_id", &**id), ("client_secret", secret.expose())]);
            }
            Self::None { id } => form.push(("client_id", id)),
            Self::JwtAssertion { id, assertion } => form.extend([
                ("client_id", &**id),
                ("client_assertion_type", JWT_BEARER),
                ("client_assertion", assertion.expose()),
            ]),
        }
    }

    /// Returns whether the server would treat both alike.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.method() == other.method()
            && self.id() == other.id()
            && self.lasting_secret() == other.lasting_secret()
    }

    /// Returns the secret in each form in which it is sent or a server may repeat it.
    pub(super) fn secret_texts(&self) -> Vec<Zeroizing<String>> {
        let Some(secret) = self.secret().map(ClientSecret::expose) else {
            return Vec::new();
        };
        let mut texts = vec![
            Zeroizing::new(secret.to_owned()),
            percent_encoded(secret),
            encoded(form_urlencoded::byte_serialize(secret.as_bytes()), secret),
        ];
        if let Self::ClientSecretBasic { .. } | Self::ClientSecretBasicUnencoded { .. } = self {
            texts.push(self.user_pass());
        }
        texts
    }

    fn check(&self) -> Result<(), Error> {
        check_present("client id", self.id())?;
        match self {
            Self::ClientSecretBasicUnencoded { id, .. } if id.contains(':') => {
                Err(Error::configuration(
                    "client id contains a colon, which client_secret_basic_unencoded cannot send; use client_secret_basic",
                ))
            }
            Self::ClientSecretBasic { secret, .. }
            | Self::ClientSecretBasicUnencoded { secret, .. }
            | Self::ClientSecretPost { secret, .. } => check_text("client secret", secret.expose()),
            Self::JwtAssertion { assertion, .. } => {
                check_present("client assertion", assertion.expose())
            }
            Self::None { .. } => Ok(()),
        }
    }

    pub(super) fn method(&self) -> &'static str {
        match self {
            Self::ClientSecretBasic { .. } => "client_secret_basic",
            Self::ClientSecretBasicUnencoded { .. } => "client_secret_basic_unencoded",
            Self::ClientSecretPost { .. } => "client_secret_post",
            Self::None { .. } => "none",
            Self::JwtAssertion { .. } => "jwt_assertion",
        }
    }

    pub(super) fn id(&self) -> &Arc<str> {
        match self {
            Self::ClientSecretBasic { id, .. }
            | Self::ClientSecretBasicUnencoded { id, .. }
            | Self::ClientSecretPost { id, .. }
            | Self::None { id }
            | Self::JwtAssertion { id, .. } => id,
        }
    }

    fn secret(&self) -> Option<&ClientSecret> {
        match self {
            Self::ClientSecretBasic { secret, .. }
            | Self::ClientSecretBasicUnencoded { secret, .. }
            | Self::ClientSecretPost { secret, .. } => Some(secret),
            Self::JwtAssertion { assertion, .. } => Some(assertion),
            Self::None { .. } => None,
        }
    }

    /// Returns the secret that stays the same between attempts. Each assertion is a new one.
    fn lasting_secret(&self) -> Option<&str> {
        match self {
            Self::JwtAssertion { .. } => None,
            other => other.secret().map(ClientSecret::expose),
        }
    }

    /// Returns the text that follows `Basic` in the header (RFC 7617 §2).
    fn user_pass(&self) -> Zeroizing<String> {
        let secret = self.secret().map_or("", ClientSecret::expose);
        let text = Zeroizing::new(match self {
            Self::ClientSecretBasicUnencoded { id, .. } => [id, ":", secret].concat(),
            // RFC 6749 §2.3.1: id and secret are form-encoded before Base64.
            _ => [&*percent_encoded(self.id()), ":", &*percent_encoded(secret)].concat(),
        });
        Zeroizing::new(BASE64_STANDARD.encode(&*text))
    }
}

/// RFC 7523 §2.2.
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// All servers decode `%20`, but not all decode `+`. Some refuse an encoded `-`, `.` or `_`.
const PERCENT_ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');

fn percent_encoded(text: &str) -> Zeroizing<String> {
    encoded(utf8_percent_encode(text, PERCENT_ENCODED), text)
}

fn encoded<'a>(pieces: impl Iterator<Item = &'a str>, text: &str) -> Zeroizing<String> {
    // Never grows: a string that grows leaves copies behind, which nobody wipes.
    let mut encoded = Zeroizing::new(String::with_capacity(3 * text.len()));
    encoded.extend(pieces);
    encoded
}

fn check_present(what: &str, text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::configuration(format!("{what} is empty")));
    }
    check_text(what, text)
}

/// Refuses characters that cannot be meant.
///
/// RFC 6749 Appendix A allows only printable ASCII, including spaces at either end. Other letters are
/// accepted here, because some servers accept them. Whitespace at either end is refused: it almost
/// always comes from a file, not from the server that issued the id or secret.
fn check_text(what: &str, text: &str) -> Result<(), Error> {
    let is_odd = |character: char| character.is_whitespace() || is_unsafe_to_print(character);
    if text.starts_with(is_odd) || text.ends_with(is_odd) {
        return Err(Error::configuration(format!(
            "{what} starts or ends with whitespace or an invisible character; trim values read \
             from files"
        )));
    }
    if text.contains(is_unsafe_to_print) {
        return Err(Error::configuration(format!(
            "{what} contains a control character or an invisible character"
        )));
    }
    Ok(())
}

/// Keeps what the function's error says about retries, if it is this crate's.
fn function_failed(error: BoxError) -> Error {
    let ours = error.downcast_ref::<Error>();
    let transient = ours.is_none_or(Error::is_transient);
    let retry_after = ours.and_then(Error::retry_after);
    Error::with_source(Kind::ClientAuth { transient }, error).with_retry_after(retry_after)
}

/// A client secret or a client assertion.
///
/// Use `into()` to convert a `String` or `&str`. `Debug` doesn't show the text, and the type
/// implements neither `Display` nor `Serialize`. The memory is wiped on drop. A `&str` is copied,
/// and the original isn't wiped.
///
/// # Examples
///
/// ```
/// use tower_client_credentials::ClientSecret;
///
/// let secret = ClientSecret::from("WPL_AP1...");
/// assert_eq!(secret.expose(), "WPL_AP1...");
/// assert!(!format!("{secret:?}").contains("WPL_AP1"));
/// ```
#[derive(Clone)]
pub struct ClientSecret(SecretString);

impl ClientSecret {
    /// Returns the text, which is a secret: anyone who has it can act as the client.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<&str> for ClientSecret {
    fn from(secret: &str) -> Self {
        Self(secret.into())
    }
}

impl From<String> for ClientSecret {
    fn from(secret: String) -> Self {
        Self(secret.into())
    }
}

impl fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientSecret([redacted])")
    }
}
