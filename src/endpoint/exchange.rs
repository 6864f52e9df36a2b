//! One token request: form out, bounded reply in.

use bytes::{Buf, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response,
    header::{ACCEPT, CONTENT_TYPE},
};
use http_body::Body;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use tower::{BoxError, ServiceExt, util::BoxCloneService};

use super::{
    client_auth::{ClientAuth, Credentials},
    redaction::Redaction,
    reply::Reader,
    token_url::TokenUrl,
};
use crate::{
    AccessToken, Error, TokenParameters,
    clock::Clock,
    error::{Kind, Refusal},
};

/// The user's HTTP client without its type. Not `Sync`, as clients need not be.
pub(super) type HttpClient = BoxCloneService<Request<Bytes>, Response<ReplyBody>, BoxError>;

/// Not `Sync` either: response bodies often are not.
pub(super) type ReplyBody = UnsyncBoxBody<Bytes, BoxError>;

/// All that a token request is made of, but for what each call asks.
#[derive(Clone)]
pub(super) struct Exchange {
    pub(super) url: TokenUrl,
    pub(super) auth: ClientAuth,
    pub(super) parameters: TokenParameters,
    pub(super) headers: HeaderMap,
    pub(super) reply_limit: usize,
    pub(super) plain_http: PlainHttp,
    pub(super) advice: fn(&Refusal) -> Option<&'static str>,
}

/// Where a token URL with plain http may lead.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum PlainHttp {
    Loopback,
    Anywhere,
}

impl Exchange {
    /// Asks for a token; once more if the server refuses credentials that have changed since.
    pub(super) async fn run(
        &self,
        client: HttpClient,
        asked: &TokenParameters,
    ) -> Result<AccessToken, Error> {
        if self.plain_http == PlainHttp::Loopback && self.url.exposes_secrets() {
            return Err(Error::configuration(
                "token URL is plain http to a host that is not loopback, where the client's \
                 credentials can be read on the way; use https, or allow_http if that way is safe",
            ));
        }

        let sent = self.auth.credentials(self.url.uri()).await?;
        let refused = match self.attempt(client.clone(), asked, &sent).await {
            Err(error) if self.auth.rotates() && is_client_refused(&error) => error,
            outcome => return outcome,
        };
        match self.auth.credentials(self.url.uri()).await {
            Ok(rotated) if !rotated.is_same(&sent) => self.attempt(client, asked, &rotated).await,
            // What the server said helps more than why the function failed.
            _ => Err(refused),
        }
    }

    async fn attempt(
        &self,
        client: HttpClient,
        asked: &TokenParameters,
        credentials: &Credentials,
    ) -> Result<AccessToken, Error> {
        let request = self.request(asked, credentials)?;

        let reply = client.oneshot(request).await.map_err(transport)?;
        let (parts, body) = reply.into_parts();
        let body = read_up_to(self.reply_limit, body).await?;

        let reader = Reader {
            token_url: &self.url,
            redaction: Redaction::new(credentials.secret_texts()),
            advice: self.advice,
            now: Clock::default().now().wall,
        };
        match body {
            Some(body) => reader.read(&Response::from_parts(parts, body)),
            None => Err(reader.too_long(&Response::from_parts(parts, ()), self.reply_limit)),
        }
    }

    fn request(
        &self,
        asked: &TokenParameters,
        credentials: &Credentials,
    ) -> Result<Request<Bytes>, Error> {
        let mut headers = self.headers.clone();
        headers
            .entry(ACCEPT)
            .or_insert(HeaderValue::from_static("application/json"));
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );

        let scope = joined_scopes(&self.parameters, asked);
        let mut form = vec![("grant_type", "client_credentials")];
        credentials.apply(&mut form, &mut headers);
        if !scope.is_empty() {
            form.push(("scope", &scope));
        }
        add_further(&mut form, &self.parameters, asked)?;

        let form = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(form)
            .finish();
        let mut request = Request::new(Bytes::from(form));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.uri().clone();
        *request.headers_mut() = headers;
        Ok(request)
    }
}

/// The endpoint's scopes, then the request's, each once (RFC 6749 §3.3).
fn joined_scopes(ours: &TokenParameters, asked: &TokenParameters) -> String {
    let mut scopes: Vec<&str> = Vec::new();
    for scope in ours.scopes.iter().chain(&asked.scopes) {
        for scope in scope.split_ascii_whitespace() {
            if !scopes.contains(&scope) {
                scopes.push(scope);
            }
        }
    }
    scopes.join(" ")
}

/// Adds what may repeat (RFC 8707 §2, RFC 8693 §2.1), and what the user named.
fn add_further<'a>(
    form: &mut Vec<(&'a str, &'a str)>,
    ours: &'a TokenParameters,
    asked: &'a TokenParameters,
) -> Result<(), Error> {
    // RFC 6749 §3.2: a parameter must not be sent twice.
    let further = ours.further.iter().chain(&asked.further);
    for (name, _) in further.clone() {
        if form.iter().any(|(taken, _)| taken == name) {
            return Err(Error::configuration(format!(
                "parameter {name:?} is sent already, by the method of ClientAuth, the grant or a \
                 scope; leave it out of the further parameters"
            )));
        }
    }

    let resources = ours.resources.iter().chain(&asked.resources);
    let audiences = ours.audiences.iter().chain(&asked.audiences);
    form.extend(resources.map(|resource| ("resource", &**resource)));
    form.extend(audiences.map(|audience| ("audience", &**audience)));
    form.extend(further.map(|(name, value)| (&**name, &**value)));
    Ok(())
}

/// Reads a body to its end; `None` if more came than `limit` bytes.
async fn read_up_to(limit: usize, mut body: ReplyBody) -> Result<Option<Bytes>, Error> {
    let mut read = BytesMut::new();
    let mut empty_frames = 0;
    while let Some(frame) = body.frame().await {
        let data = frame.map_err(transport)?.into_data().unwrap_or_default();
        // A body made of empty frames would never reach the limit, nor give way to a timeout.
        empty_frames += usize::from(data.is_empty());
        if data.len() > limit - read.len() || empty_frames > MOST_EMPTY_FRAMES {
            return Ok(None);
        }
        read.extend_from_slice(&data);
    }
    Ok(Some(read.freeze()))
}

/// Real bodies have one at most, for the trailers or the end.
const MOST_EMPTY_FRAMES: usize = 1000;

/// Takes its type from a response, and turns the data into `Bytes`.
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

/// RFC 6749 §5.2, and LinkedIn's own word for it.
fn is_client_refused(error: &Error) -> bool {
    matches!(error.code(), Some("invalid_client" | "invalid_client_id"))
}

fn transport(error: BoxError) -> Error {
    Error::with_source(Kind::Transport, error)
}
