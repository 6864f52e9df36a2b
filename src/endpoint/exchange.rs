//! One token request: form out, bounded reply in.

use std::{
    future::{Future, pending},
    pin::pin,
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::{Either, select};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE},
};
use http_body::Body;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use secrecy::zeroize::Zeroizing;
use tokio::{runtime::Handle, time::sleep};
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
    secret::wiped_on_drop,
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
    pub(super) hint: fn(&Refusal) -> Option<&'static str>,
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
        let mut read = BytesMut::new();
        let reading = read_up_to(self.reply_limit, body, &mut read);
        let end = if parts.status.is_success() {
            reading.await
        } else {
            // An error says who failed and when to ask again with as much as comes of it.
            within(LONGEST_WAIT_FOR_AN_ERROR, reading).await;
            End::Whole
        };

        let reader = Reader {
            token_url: &self.url,
            redaction: Redaction::new(self.secret_texts(credentials)),
            hint: self.hint,
            now: Clock::default().now().wall,
        };
        let reply = Response::from_parts(parts, read.freeze());
        match end {
            End::Whole => reader.read(&reply),
            End::Broken(error) => Err(transport(error)),
            End::TooLong => {
                let limit = self.reply_limit;
                Err(reader.unread(&reply, format!("it is longer than {limit} bytes")))
            }
            End::Empty => Err(reader.unread(
                &reply,
                format!("its body is {MOST_EMPTY_FRAMES} empty frames and more"),
            )),
        }
    }

    /// All that was sent and that no text may show, should a server echo it.
    fn secret_texts(&self, credentials: &Credentials) -> Vec<Zeroizing<String>> {
        let mut texts = credentials.secret_texts();
        for (name, value) in &self.headers {
            let value = String::from_utf8_lossy(value.as_bytes());
            // Without its scheme it is still one.
            if let (&AUTHORIZATION, Some((_, secret))) = (name, value.split_once(' ')) {
                texts.push(secret.to_owned().into());
            }
            texts.push(value.into_owned().into());
        }
        let query = self.url.uri().query().unwrap_or_default();
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        texts.extend(pairs.map(|(_, value)| value.to_owned().into()));
        let decoded = form_urlencoded::parse(query.as_bytes());
        texts.extend(decoded.map(|(_, value)| value.into_owned().into()));
        texts
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

        // Room for all of it: a form that grows leaves pieces behind, which nobody wipes.
        let room = form
            .iter()
            .map(|(name, value)| 3 * (name.len() + value.len()) + 2);
        let form = form_urlencoded::Serializer::new(String::with_capacity(room.sum()))
            .extend_pairs(form)
            .finish();
        let mut request = Request::new(wiped_on_drop(form));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.uri().clone();
        *request.headers_mut() = headers;
        Ok(request)
    }
}

/// The endpoint's scopes, then the request's, each once (RFC 6749 §3.3).
fn joined_scopes(ours: &TokenParameters, asked: &TokenParameters) -> String {
    let mut scopes: Vec<&str> = Vec::new();
    for scope in ours.scopes().iter().chain(asked.scopes()) {
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
    let resources = ours.resources().iter().chain(asked.resources());
    let audiences = ours.audiences().iter().chain(asked.audiences());
    form.extend(resources.map(|resource| ("resource", &**resource)));
    form.extend(audiences.map(|audience| ("audience", &**audience)));

    for (name, value) in ours.others().iter().chain(asked.others()) {
        // RFC 6749 §3.2: a parameter must not be sent twice.
        let comes_once = matches!(&**name, "grant_type" | "scope") || name.starts_with("client_");
        if comes_once && form.iter().any(|(taken, _)| taken == name) {
            return Err(Error::configuration(format!(
                "token request holds parameter {name:?} already, from the method of ClientAuth, \
                 the grant, a scope or another parameter; leave it out of the further parameters"
            )));
        }
        form.push((name, value));
    }
    Ok(())
}

/// Why no more of a body is read.
enum End {
    Whole,
    TooLong,
    /// More empty frames came than any real body has.
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
        // A body made of empty frames would never reach the limit, nor give way to a timeout.
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

/// Real bodies have one at most, for the trailers or the end.
const MOST_EMPTY_FRAMES: usize = 1000;

/// Enough for a page that is under way, and little of a flight's 30 s.
const LONGEST_WAIT_FOR_AN_ERROR: Duration = Duration::from_secs(2);

/// The output if it comes in time. Without a Tokio runtime nobody tells the time, and it is waited
/// for.
async fn within<F: Future>(time: Duration, future: F) -> Option<F::Output> {
    // Made when it is first polled: what is there at once needs no timer.
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
