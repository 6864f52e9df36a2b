use std::{fmt, future::Future, pin::Pin, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderValue, Uri, header::AUTHORIZATION};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use tower::BoxError;

use super::redaction::is_unsafe_to_print;
use crate::{Error, error::Kind, secret::wiped_on_drop};

/// How a client proves to the token endpoint who it is (RFC 6749 §2.3).
///
/// Servers register one method for each client; take the one that yours says. Nothing is probed: a
/// client that tries several methods shows its secret in places where it does not belong, and some
/// servers lock it out.
///
/// | method | registered as | sends |
/// |---|---|---|
/// | [`client_secret_basic`](Self::client_secret_basic) | `client_secret_basic` | the header `Authorization: Basic` |
/// | [`client_secret_basic_unencoded`](Self::client_secret_basic_unencoded) | `client_secret_basic` | the same, for servers that do not decode it as RFC 6749 says |
/// | [`client_secret_post`](Self::client_secret_post) | `client_secret_post` | `client_id` and `client_secret` in the form |
/// | [`none`](Self::none) | `none`, `tls_client_auth` | `client_id` in the form |
/// | [`jwt_assertion`](Self::jwt_assertion) | `private_key_jwt`, `client_secret_jwt` | `client_id` and `client_assertion` in the form |
///
/// `Debug` shows the client id and no secret.
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
/// Credentials that rotate while the program runs:
///
/// ```
/// use tower_client_credentials::ClientAuth;
///
/// let auth = ClientAuth::from_fn(|| async {
///     let secret = std::fs::read_to_string("/run/secrets/client_secret")?;
///     Ok::<_, std::io::Error>(ClientAuth::client_secret_basic("my-client", secret.trim_end()))
/// });
/// # drop(auth);
/// ```
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
    /// Whatever the function says for this attempt.
    FromFn(CredentialsFn),
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;
type AssertionFn = Arc<dyn Fn(Uri) -> BoxFuture<ClientSecret> + Send + Sync>;
type CredentialsFn = Arc<dyn Fn() -> BoxFuture<ClientAuth> + Send + Sync>;

/// What one attempt sends. One variant per way to write it into a request.
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
    /// Sends id and secret in the header `Authorization: Basic`: `client_secret_basic`.
    ///
    /// Both are percent-encoded before Base64 (RFC 6749 §2.3.1), a space as `%20`, so that any
    /// character can stand in them. The header is marked sensitive.
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

    /// Sends id and secret in the header `Authorization: Basic` without percent-encoding them.
    ///
    /// For servers that read Basic as RFC 7617 alone has it. The two only differ for ids and secrets
    /// with other characters than letters, digits, `-`, `.` and `_`. The id cannot hold a colon.
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

    /// Sends id and secret as `client_id` and `client_secret` in the form: `client_secret_post`.
    ///
    /// This is what LinkedIn wants.
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

    /// Sends the id as `client_id` in the form, and no proof.
    ///
    /// For mutual TLS (RFC 8705 §2), where the HTTP client presents the certificate, and for servers
    /// that know the client by its network.
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

    /// Sends a JWT that `assertion` makes (RFC 7523 §2.2): `private_key_jwt`, `client_secret_jwt`.
    ///
    /// Also for tokens of a workload identity that a platform writes to a file. The function gets the
    /// token URL, which servers want to find in `aud`, and is called anew for every single attempt,
    /// because servers refuse a `jti` that they have seen. It may use the HTTP client that the token
    /// endpoint uses.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_client_credentials::ClientAuth;
    ///
    /// let auth = ClientAuth::jwt_assertion("my-client", |_token_url| async {
    ///     let jwt = std::fs::read_to_string("/var/run/secrets/tokens/identity")?;
    ///     Ok::<_, std::io::Error>(jwt.trim_end().to_owned())
    /// });
    /// # drop(auth);
    /// ```
    ///
    /// # Errors
    ///
    /// If it fails, the token request fails with [`is_client_auth`](crate::Error::is_client_auth) and
    /// the function's error as the source. That counts as transient, unless the function's error is
    /// an [`Error`](crate::Error) that says otherwise: [`Error::permanent`](crate::Error::permanent)
    /// stops retries, [`Error::transient`](crate::Error::transient) may say when to ask again. What
    /// cannot be sent, such as an empty assertion, is transient too: a file may just be rewritten.
    pub fn jwt_assertion<F, Fut, A, E>(id: impl Into<String>, assertion: F) -> Self
    where
        F: Fn(Uri) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
        A: Into<ClientSecret>,
        E: Into<BoxError>,
    {
        Self(Method::JwtAssertion {
            id: id.into().into(),
            assertion: Arc::new(move |url| {
                let assertion = assertion(url);
                Box::pin(async { assertion.await.map(Into::into).map_err(Into::into) })
            }),
        })
    }

    /// Takes the credentials from a function that is called for every single attempt.
    ///
    /// For secrets that rotate without a restart. When the server answers `invalid_client` and the
    /// function then gives other credentials than those just sent, the request is tried once more
    /// with them. Two assertions are told apart by their client id alone.
    ///
    /// What the function gives is checked when it is used. It may give every method but another
    /// `from_fn`.
    ///
    /// # Errors
    ///
    /// If it fails, the token request fails as with [`jwt_assertion`](Self::jwt_assertion).
    pub fn from_fn<F, Fut, E>(credentials: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Self, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        Self(Method::FromFn(Arc::new(move || {
            let credentials = credentials();
            Box::pin(async { credentials.await.map_err(Into::into) })
        })))
    }

    /// Refuses what can never work, as far as it is known before the first use.
    pub(super) fn check(&self) -> Result<(), Error> {
        match &self.0 {
            Method::Fixed(credentials) => credentials.check(),
            Method::JwtAssertion { id, .. } => check_present("client id", id),
            Method::FromFn(_) => Ok(()),
        }
    }

    /// Whether the next attempt may send other credentials than this one.
    pub(super) fn rotates(&self) -> bool {
        matches!(self.0, Method::FromFn(_))
    }

    /// The credentials for one attempt.
    pub(super) async fn credentials(&self, token_url: &Uri) -> Result<Credentials, Error> {
        let method = match &self.0 {
            Method::FromFn(credentials) => &credentials().await.map_err(function_failed)?.0,
            method => method,
        };
        let credentials = match method {
            Method::Fixed(credentials) => credentials.clone(),
            Method::JwtAssertion { id, assertion } => Credentials::JwtAssertion {
                id: id.clone(),
                assertion: assertion(token_url.clone())
                    .await
                    .map_err(function_failed)?,
            },
            Method::FromFn(_) => {
                return Err(Error::configuration(
                    "function for client credentials gave another from_fn; give the credentials",
                ));
            }
        };
        // Fixed ones are checked already. What a function read may be a file half written.
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
    /// Writes the credentials into form and headers.
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

    /// Whether the server would judge both alike.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.method() == other.method()
            && self.id() == other.id()
            && self.lasting_secret() == other.lasting_secret()
    }

    /// The secret in every form that was sent and that a server may echo.
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
                    "client id holds a colon, which client_secret_basic_unencoded cannot send; use client_secret_basic",
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

    fn method(&self) -> &'static str {
        match self {
            Self::ClientSecretBasic { .. } => "client_secret_basic",
            Self::ClientSecretBasicUnencoded { .. } => "client_secret_basic_unencoded",
            Self::ClientSecretPost { .. } => "client_secret_post",
            Self::None { .. } => "none",
            Self::JwtAssertion { .. } => "jwt_assertion",
        }
    }

    fn id(&self) -> &Arc<str> {
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

    /// Assertions differ each time, so only their clients count.
    fn lasting_secret(&self) -> Option<&str> {
        match self {
            Self::JwtAssertion { .. } => None,
            other => other.secret().map(ClientSecret::expose),
        }
    }

    /// What follows `Basic` in the header (RFC 7617 §2).
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

/// A space as `%20` is understood everywhere, as `+` not; escaped `-`, `.` and `_` are refused by some.
const PERCENT_ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');

fn percent_encoded(text: &str) -> Zeroizing<String> {
    encoded(utf8_percent_encode(text, PERCENT_ENCODED), text)
}

fn encoded<'a>(pieces: impl Iterator<Item = &'a str>, text: &str) -> Zeroizing<String> {
    // Room for all of it: a text that grows leaves pieces behind, which nobody wipes.
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

/// RFC 6749 Appendix A allows printable ASCII only; other letters harm nobody.
///
/// It allows a space at either end as well, but servers do not give out such ids and secrets, and
/// files do.
fn check_text(what: &str, text: &str) -> Result<(), Error> {
    let is_odd = |character: char| character.is_whitespace() || is_unsafe_to_print(character);
    if text.starts_with(is_odd) || text.ends_with(is_odd) {
        return Err(Error::configuration(format!(
            "{what} starts or ends with white space, a line break or an invisible character; trim \
             what was read from a file"
        )));
    }
    if text.contains(is_unsafe_to_print) {
        return Err(Error::configuration(format!(
            "{what} holds a control character or an invisible one"
        )));
    }
    Ok(())
}

/// Whether and when to ask again says the function, if it says so.
fn function_failed(error: BoxError) -> Error {
    let ours = error.downcast_ref::<Error>();
    let transient = ours.is_none_or(Error::is_transient);
    let retry_after = ours.and_then(Error::retry_after);
    Error::with_source(Kind::ClientAuth { transient }, error).with_retry_after(retry_after)
}

/// A client secret or a client assertion.
///
/// `Debug` shows nothing of it, it cannot be displayed or serialized, and it is wiped when it is
/// dropped. Made by `into()` of a `&str`, which stays with you, or of a `String`.
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
    /// The text itself. Whoever has it can act as the client.
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
