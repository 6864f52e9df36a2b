//! Sends one token request and reads its reply, up to a limit.

use std::{
    future::{Future, pending},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::{Either, select};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONTENT_TYPE, COOKIE, USER_AGENT},
};
use http_body::Body;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use secrecy::zeroize::Zeroizing;
use tokio::{runtime::Handle, time::sleep};
use tower::{BoxError, ServiceExt, util::BoxCloneService};

use super::{
    budget::Budget,
    cause,
    client_auth::{ClientAuth, Credentials},
    hint::Asked,
    parameters::{OwnParameters, RequestParameters},
    redaction::Redaction,
    reply::Reader,
    token_url::{TokenUrl, UrlSource},
};
use crate::{
    AccessToken, Error, TokenRemoved, TokenRequest,
    clock::Clock,
    error::{Kind, Refusal},
    secret::wiped_on_drop,
    telemetry,
};

/// The user's HTTP client with its type erased. Not `Sync`, because clients need not be.
pub(super) type HttpClient = BoxCloneService<Request<Bytes>, Response<ReplyBody>, BoxError>;

/// Not `Sync`, because response bodies often are not.
pub(super) type ReplyBody = UnsyncBoxBody<Bytes, BoxError>;

/// Everything that a token request is made of, except the parameters of a single call.
#[derive(Clone)]
pub(super) struct Exchange {
    pub(super) url: UrlSource,
    pub(super) auth: ClientAuth,
    pub(super) parameters: OwnParameters,
    pub(super) headers: HeaderMap,
    pub(super) reply_limit: usize,
    pub(super) plain_http: PlainHttp,
    pub(super) hint: fn(&Refusal) -> Option<&'static str>,
}

/// One call of an endpoint.
struct Call<'a> {
    budget: &'a Arc<Budget>,
    url: &'a TokenUrl,
    request: &'a TokenRequest,
}

/// Where credentials may go over plain http.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum PlainHttp {
    Loopback,
    Anywhere,
}

impl Exchange {
    /// Requests a token. If the server refuses credentials that have been rotated since they were
    /// read, requests it once more.
    pub(super) async fn run(
        &self,
        client: HttpClient,
        budget: &Arc<Budget>,
        request: &TokenRequest,
    ) -> Result<AccessToken, Error> {
        let url = self.url(request).await?;
        let call = Call {
            budget,
            url: &url,
            request,
        };
        let token = self.request_token(client, &call).await;
        token.map_err(|error| error.at_endpoint(url.host()))
    }

    /// Returns the URL of a token request, if credentials may be sent there.
    async fn url(&self, request: &TokenRequest) -> Result<TokenUrl, Error> {
        let url = match self.url.url(request).await {
            Ok(url) => url,
            Err(error) => return Err(error.for_tenant(self.tenant(request, None).as_deref())),
        };
        if self.plain_http == PlainHttp::Anywhere || !url.exposes_secrets() {
            return Ok(url);
        }
        let error = Error::configuration(
            "token URL is plain http to a host other than loopback, where others may read the \
             client's credentials; use https, or call allow_http if the network is safe",
        );
        let error = match self.url {
            UrlSource::Fixed(_) => error,
            UrlSource::FromFn(_) => {
                let tenant = self.tenant(request, Some(&url));
                TokenUrl::unusable(error).for_tenant(tenant.as_deref())
            }
        };
        Err(error.at_endpoint(url.host()))
    }

    async fn request_token(
        &self,
        client: HttpClient,
        call: &Call<'_>,
    ) -> Result<AccessToken, Error> {
        let parameters = RequestParameters::new(&self.parameters, &call.request.parameters)?;

        let sent = self.credentials(call).await?;
        let refused = match self.attempt(client.clone(), call, &parameters, &sent).await {
            Err(error) if self.auth.rotates() && may_be_about_credentials(&error) => error,
            outcome => return outcome,
        };
        match self.credentials(call).await {
            Ok(rotated) if !rotated.is_same(&sent) => {
                self.attempt(client, call, &parameters, &rotated).await
            }
            // The server's refusal helps the user more than the reason why the function failed.
            _ => Err(refused),
        }
    }

    /// Returns the credentials for one attempt.
    async fn credentials(&self, call: &Call<'_>) -> Result<Credentials, Error> {
        let Call { url, request, .. } = call;
        let credentials = self.auth.credentials(url.uri(), request).await;
        credentials.map_err(|error| {
            // No client id is known that would tell the tenants apart.
            error.for_tenant(self.tenant(request, Some(url)).as_deref())
        })
    }

    /// Returns the label of the tenant in a form that is safe to show.
    fn tenant(&self, request: &TokenRequest, url: Option<&TokenUrl>) -> Option<String> {
        let label = request.parameters.tenant()?;
        let redaction = Redaction::new(self.secret_texts(url, None));
        Some(redaction.show(label, LONGEST_CLIENT_ID))
    }

    /// Sends one request, if the budget admits it.
    async fn attempt(
        &self,
        client: HttpClient,
        call: &Call<'_>,
        parameters: &RequestParameters<'_>,
        credentials: &Credentials,
    ) -> Result<AccessToken, Error> {
        let redaction = Redaction::new(self.secret_texts(Some(call.url), Some(credentials)));
        let client_id = redaction.show(credentials.id(), LONGEST_CLIENT_ID);

        let key = (&self.parameters, &call.request.parameters);
        let party = call.budget.party(call.url, credentials.id(), key);
        let token = match call.budget.admit(party).await {
            Ok(permit) => {
                telemetry::token_request_sent(call.url.host(), &client_id);
                let token = self
                    .send(client, call, parameters, credentials, redaction)
                    .await;
                permit.ended(&token);
                token
            }
            Err(error) => Err(error),
        };
        // The error of another token request names the client of this one.
        token.map_err(|error| error.for_client(&client_id))
    }

    async fn send(
        &self,
        client: HttpClient,
        call: &Call<'_>,
        parameters: &RequestParameters<'_>,
        credentials: &Credentials,
        redaction: Redaction,
    ) -> Result<AccessToken, Error> {
        let (request, fields) = self.request(call.url, parameters, credentials)?;
        let reply = match client.oneshot(request).await {
            Ok(reply) => reply,
            Err(error) => return Err(transport(error, &redaction)),
        };
        let (parts, body) = reply.into_parts();
        let mut read = BytesMut::new();
        let reading = read_up_to(self.reply_limit, body, &mut read);
        let end = if parts.status.is_success() {
            reading.await
        } else {
            // However little of an error reply arrives, its status and `Retry-After` are known.
            within(LONGEST_WAIT_FOR_AN_ERROR, reading).await;
            End::Whole
        };

        let asked = Asked {
            method: credentials.method(),
            parameters,
            fields,
        };
        let reader = Reader {
            token_url: call.url,
            asked: &asked,
            redaction,
            provider_hint: self.hint,
            now: Clock::default().now().wall,
        };
        let reply = Response::from_parts(parts, read.freeze());
        match end {
            // Nobody but the token endpoint may choose the token that API requests carry.
            End::Whole if reply.extensions().get::<TokenRemoved>().is_some() => {
                Err(reader.unread(&reply, FROM_ANOTHER_ORIGIN.to_owned()))
            }
            End::Whole => reader.read(&reply),
            End::Broken(error) => Err(transport(error, &reader.redaction)),
            End::TooLong => {
                let limit = self.reply_limit;
                Err(reader.unread(&reply, format!("body is longer than {limit} bytes")))
            }
            End::Empty => Err(reader.unread(
                &reply,
                format!("body has more than {MOST_EMPTY_FRAMES} empty frames"),
            )),
        }
    }

    /// Returns every secret that is sent, in case a server or an HTTP client's error repeats it.
    fn secret_texts(
        &self,
        url: Option<&TokenUrl>,
        credentials: Option<&Credentials>,
    ) -> Vec<Zeroizing<String>> {
        let mut texts = credentials.map_or_else(Vec::new, Credentials::secret_texts);
        for (name, value) in &self.headers {
            texts.extend(header_secrets(
                name,
                &String::from_utf8_lossy(value.as_bytes()),
            ));
        }
        let query = url.and_then(|url| url.uri().query()).unwrap_or_default();
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        texts.extend(pairs.map(|(_, value)| value.to_owned().into()));
        let decoded = form_urlencoded::parse(query.as_bytes());
        texts.extend(decoded.map(|(_, value)| value.into_owned().into()));
        texts
    }

    /// Returns a token request, and the names of the fields in its form.
    fn request(
        &self,
        url: &TokenUrl,
        parameters: &RequestParameters<'_>,
        credentials: &Credentials,
    ) -> Result<(Request<Bytes>, Vec<String>), Error> {
        let mut headers = self.headers.clone();
        for (name, value) in DEFAULT_HEADERS {
            headers
                .entry(name)
                .or_insert(HeaderValue::from_static(value));
        }
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );

        let scope = parameters.scope();
        let mut form = vec![("grant_type", "client_credentials")];
        credentials.apply(&mut form, &mut headers);
        parameters.add_to(&scope, &mut form)?;

        let fields = form.iter().map(|(name, _)| (*name).to_owned()).collect();
        // Never grows: a string that grows leaves copies behind, which nobody wipes.
        let room = form
            .iter()
            .map(|(name, value)| 3 * (name.len() + value.len()) + 2);
        let form = form_urlencoded::Serializer::new(String::with_capacity(room.sum()))
            .extend_pairs(form)
            .finish();
        let mut request = Request::new(wiped_on_drop(form));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = url.uri().clone();
        *request.headers_mut() = headers;
        Ok((request, fields))
    }
}

/// Sent unless the user sets them.
const DEFAULT_HEADERS: [(HeaderName, &str); 3] = [
    (ACCEPT, "application/json"),
    // Replies are too short to be worth compressing, and nothing here would decompress them.
    (ACCEPT_ENCODING, "identity"),
    // Firewalls refuse requests without one.
    (
        USER_AGENT,
        concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")),
    ),
];

/// The message for a reply that is marked with [`TokenRemoved`].
const FROM_ANOTHER_ORIGIN: &str = "reply is from another origin, because the HTTP client followed a \
                                   redirect; turn redirects off in the client for token requests";

/// Some client ids are URLs.
const LONGEST_CLIENT_ID: usize = 200;

/// Headers whose values are no secrets. Messages may contain their words.
const PUBLIC_HEADERS: [HeaderName; 4] = [ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, USER_AGENT];

/// Returns the value of a header, and the parts of it that are secret on their own.
fn header_secrets(name: &HeaderName, value: &str) -> Vec<Zeroizing<String>> {
    if PUBLIC_HEADERS.contains(name) {
        return Vec::new();
    }
    let mut secrets = vec![value.to_owned()];
    if name.as_str().ends_with("authorization") {
        // The scheme is not secret.
        let (scheme, credentials) = value.trim().split_once(' ').unwrap_or_default();
        secrets.push(credentials.to_owned());
        secrets.extend(credentials.split([',', '=']).map(str::to_owned));
        if scheme.eq_ignore_ascii_case("basic") {
            let user_pass = BASE64_STANDARD
                .decode(credentials.trim())
                .unwrap_or_default();
            let user_pass = String::from_utf8_lossy(&user_pass);
            secrets.extend(
                user_pass
                    .split_once(':')
                    .map(|(_, password)| password.to_owned()),
            );
        }
    } else if name == COOKIE {
        let pairs = value.split(';').filter_map(|pair| pair.split_once('='));
        secrets.extend(pairs.map(|(_, value)| value.to_owned()));
    }
    secrets.into_iter().map(Zeroizing::new).collect()
}

/// Why reading a body ended.
enum End {
    Whole,
    TooLong,
    /// The body has more empty frames than any real one.
    Empty,
    Broken(BoxError),
}

/// Reads a body to its end, or up to `limit` bytes.
async fn read_up_to(limit: usize, mut body: ReplyBody, read: &mut BytesMut) -> End {
    let mut empty_frames = 0;
    while let Some(frame) = body.frame().await {
        let data = match frame {
            Ok(frame) => frame.into_data().unwrap_or_default(),
            Err(error) => return End::Broken(error),
        };
        // Empty frames never reach the limit, and if they are always ready, no timeout can act.
        empty_frames += usize::from(data.is_empty());
        if empty_frames > MOST_EMPTY_FRAMES {
            return End::Empty;
        }
        if data.len() > limit - read.len() {
            return End::TooLong;
        }
        read.extend_from_slice(&data);
    }
    End::Whole
}

/// Real bodies have at most one, before the trailers or the end.
const MOST_EMPTY_FRAMES: usize = 1000;

/// Enough for a page that is on its way, and little of a token request's 30 s.
const LONGEST_WAIT_FOR_AN_ERROR: Duration = Duration::from_secs(2);

/// Returns the output if the future completes in time. Without a Tokio runtime there is no limit.
async fn within<F: Future>(time: Duration, future: F) -> Option<F::Output> {
    // Created when first polled: a future that is ready at once needs no timer.
    let elapsed = async {
        match Handle::try_current() {
            Ok(_) => sleep(time).await,
            Err(_) => pending().await,
        }
    };
    match select(pin!(future), pin!(elapsed)).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}

/// Erases the type of a response's body and converts its data to `Bytes`.
pub(super) fn erase_body<B>(response: Response<B>) -> Response<ReplyBody>
where
    B: Body<Error: Into<BoxError>> + Send + 'static,
{
    response.map(|body| {
        body.map_frame(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining())))
            .map_err(Into::into)
            .boxed_unsync()
    })
}

/// Returns whether other credentials may help.
///
/// Servers refuse wrong ones with many codes, or with a status alone.
fn may_be_about_credentials(error: &Error) -> bool {
    let is_refusal = |status: StatusCode| status.is_client_error() || status.is_success();
    error.is_refused() && !error.is_transient() && error.status().is_some_and(is_refusal)
}

fn transport(error: BoxError, redaction: &Redaction) -> Error {
    // A client with a layer of this crate may report what no retry can change.
    let ours = error.downcast_ref::<Error>();
    if let Some(configuration) = ours.filter(|error| error.is_configuration()) {
        return configuration.clone();
    }
    let cause = cause::of(&*error, redaction);
    Error::with_source(Kind::Transport { cause }, error)
}
