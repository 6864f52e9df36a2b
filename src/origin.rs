//! Where a request goes, and whether a token may go there. Pure.

use std::{net::IpAddr, sync::Arc};

use http::{
    Method, Request, Uri,
    header::{HOST, HeaderMap},
    uri::{Authority, Scheme},
};
use tower::BoxError;

use crate::{
    Error, TokenOmitted,
    error::Kind,
    host::{address, complete, is_loopback},
};

/// The schemes of requests that cannot be read on the way; `unix` is a socket of this machine.
const PRIVATE: [&str; 3] = ["https", "wss", "unix"];

/// Where tokens may go.
#[derive(Clone, Debug, Default)]
pub(crate) struct Destinations {
    /// Everywhere, when there are none.
    origins: Option<Arc<[Origin]>>,
    plain_http: PlainHttp,
}

/// Whether a token may go over plain http to another host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum PlainHttp {
    #[default]
    ToLoopback,
    Anywhere,
}

impl Destinations {
    pub(crate) fn allow_http(&mut self) {
        self.plain_http = PlainHttp::Anywhere;
    }

    pub(crate) fn restrict_to(&mut self, origins: Vec<Origin>) {
        self.origins = Some(origins.into());
    }

    /// Why a request must not carry the token, if there is a reason.
    #[inline]
    pub(crate) fn withholds_from<B>(&self, request: &Request<B>) -> Option<TokenOmitted> {
        let (method, uri) = (request.method(), request.uri());
        if self.origins.is_none() {
            match uri.scheme_str() {
                Some(scheme) if is_https(scheme) => return None,
                // The client knows where to; but a proxy that is asked for a tunnel is another party.
                None if *method != Method::CONNECT => return None,
                _ => {}
            }
        }
        self.look_closer(method, uri, request.headers())
    }

    // Most calls do without.
    #[cold]
    #[inline(never)]
    fn look_closer(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<TokenOmitted> {
        let is_plain = uri
            .scheme_str()
            .is_some_and(|scheme| !is_any_of(scheme, &PRIVATE));
        if is_plain
            && self.plain_http == PlainHttp::ToLoopback
            && !uri.host().is_some_and(is_loopback)
        {
            return Some(TokenOmitted::PlainHttp);
        }
        // The target of a tunnel is a proxy's affair: whoever reads the request is another party.
        let is_tunnel = method == Method::CONNECT && uri.scheme().is_none();
        let is_inside = match &self.origins {
            None => true,
            Some(origins) => is_within(origins, uri, headers),
        };
        (is_tunnel || !is_inside).then_some(TokenOmitted::OtherOrigin)
    }
}

/// Whether all that a request says of its destination names one of the origins.
fn is_within(origins: &[Origin], uri: &Uri, headers: &HeaderMap) -> bool {
    let scheme = uri.scheme_str();
    let named_by_uri = uri.authority().map(HostAndPort::of);
    // A server that serves several hosts believes the `Host` of an HTTP/1.1 request.
    let hosts = headers.get_all(HOST).iter();
    let named_by_host = hosts.map(|host| HostAndPort::read(host.to_str().ok()?));
    let mut named = named_by_uri.into_iter().chain(named_by_host).peekable();
    // Without any name there is nothing to go by.
    named.peek().is_some()
        && named.all(|named| {
            let is_that_of = |origin: &Origin| {
                let named = named.as_ref();
                named.is_some_and(|named| origin.is_that_of(scheme, named))
            };
            origins.iter().any(is_that_of)
        })
}

/// A scheme, a host and a port (RFC 6454 §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    scheme: Scheme,
    host: Host,
    port: u16,
}

/// A host, in the one form in which it is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    /// In lower case.
    Name(String),
}

/// What an authority says of its destination; user information is no part of that.
struct HostAndPort<'a> {
    host: &'a str,
    port: &'a str,
}

impl Origin {
    /// Reads an origin such as `https://api.example` or `https://api.example:8443`.
    pub(crate) fn new(uri: impl TryInto<Uri, Error: Into<BoxError>>) -> Result<Self, Error> {
        let uri: Uri = uri.try_into().map_err(|error| {
            Error::with_source(
                Kind::Configuration("origin is not a valid URL".into()),
                error,
            )
        })?;
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return Err(refused("has to be absolute, such as https://api.example"));
        };
        if authority.as_str().contains('@') {
            return Err(refused("carries user information, which is no part of it"));
        }
        if uri.path_and_query().is_some_and(|path| path != "/") {
            return Err(refused(
                "has a path or a query; a token goes to all of an origin or to none of it",
            ));
        }
        let named = HostAndPort::of(authority)
            .and_then(|named| Some((Host::of(named.host), named.port(scheme.as_str())?)));
        let Some((host, port)) = named else {
            return Err(refused("names no host, or a port that is no port number"));
        };
        Ok(Self {
            scheme: scheme.clone(),
            host,
            port,
        })
    }

    /// Whether the destination is this one; a request in origin form does not say its scheme.
    fn is_that_of(&self, scheme: Option<&str>, named: &HostAndPort<'_>) -> bool {
        let scheme = scheme.unwrap_or(self.scheme.as_str());
        self.scheme.as_str().eq_ignore_ascii_case(scheme)
            && self.host.is(named.host)
            && named.port(scheme) == Some(self.port)
    }
}

impl Host {
    fn of(host: &str) -> Self {
        match address(host) {
            Some(address) => Self::Address(address),
            None => Self::Name(complete(host).to_ascii_lowercase()),
        }
    }

    fn is(&self, host: &str) -> bool {
        match self {
            Self::Address(own) => address(host).is_some_and(|address| address == *own),
            Self::Name(own) => complete(host).eq_ignore_ascii_case(own),
        }
    }
}

impl<'a> HostAndPort<'a> {
    fn of(authority: &'a Authority) -> Option<Self> {
        Self::read(authority.as_str().rsplit('@').next()?)
    }

    /// Takes a host and a port apart; `None` if there is no host, or anything else beside them.
    fn read(text: &'a str) -> Option<Self> {
        let host_len = if text.starts_with('[') {
            text.find(']')? + 1
        } else {
            text.find(':').unwrap_or(text.len())
        };
        let (host, rest) = text.split_at(host_len);
        let port = match rest {
            "" => "",
            rest => rest.strip_prefix(':')?,
        };
        let is_sound = !complete(host).is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        is_sound.then_some(Self { host, port })
    }

    /// The port, or the one that the scheme stands for; `None` if it is no port number.
    fn port(&self, scheme: &str) -> Option<u16> {
        match self.port {
            "" if is_any_of(scheme, &["https", "wss"]) => Some(443),
            "" if is_any_of(scheme, &["http", "ws"]) => Some(80),
            port => port.parse().ok(),
        }
    }
}

/// Whether a scheme is `https`, in the lower case that a parsed URI has it in. The length is known where
/// the letters are not, and in two pieces they take fewer instructions.
#[inline]
fn is_https(scheme: &str) -> bool {
    scheme.len() == 5 && scheme.strip_prefix("http") == Some("s")
}

fn is_any_of(scheme: &str, schemes: &[&str]) -> bool {
    schemes
        .iter()
        .any(|other| scheme.eq_ignore_ascii_case(other))
}

fn refused(fact: &'static str) -> Error {
    Error::configuration(format!("origin {fact}"))
}
