//! Decides whether a request may carry the token, from where the request goes.

use std::{net::IpAddr, sync::Arc};

use http::{
    Method, Request, Uri,
    header::{HOST, HeaderMap},
    uri::Authority,
};
use tower::BoxError;

use crate::{
    Error, TokenOmitted,
    error::Kind,
    host::{ip_address, is_loopback, without_trailing_dot},
};

/// The destinations to which tokens are sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Destinations {
    /// The allowed origins; `None` allows all of them.
    origins: Option<Arc<[Origin]>>,
    plain_http: PlainHttp,
}

/// Where tokens may go over plain http.
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

    /// Allows these origins and those that were allowed before, and no others.
    pub(crate) fn allow_origins(&mut self, origins: Vec<Origin>) {
        let allowed = self.origins.iter().flat_map(|origins| origins.iter());
        self.origins = Some(allowed.cloned().chain(origins).collect());
    }

    /// Returns why a request must not carry the token; `None` if it may.
    #[inline]
    pub(crate) fn omission_reason<B>(&self, request: &Request<B>) -> Option<TokenOmitted> {
        let (method, uri) = (request.method(), request.uri());
        if self.origins.is_none() {
            match uri.scheme_str() {
                Some("https") => return None,
                // Without a scheme the client knows the destination. CONNECT is the exception: it goes
                // to a proxy.
                None if *method != Method::CONNECT => return None,
                _ => {}
            }
        }
        self.uncommon_omission_reason(method, uri, request.headers())
    }

    fn uncommon_omission_reason(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Option<TokenOmitted> {
        if self.plain_http == PlainHttp::ToLoopback && !self.is_private(uri) {
            return Some(TokenOmitted::PlainHttp);
        }
        // RFC 9110 §9.3.6: the URI names the far end of the tunnel, but the proxy reads the headers.
        let is_tunnel = method == Method::CONNECT && uri.scheme().is_none();
        let is_allowed = match &self.origins {
            None => true,
            Some(origins) => names_only(origins, uri, headers),
        };
        (is_tunnel || !is_allowed).then_some(TokenOmitted::OtherOrigin)
    }

    /// Returns whether a request is encrypted in transit or stays on this machine, judged by its URI.
    ///
    /// Schemes are compared exactly: a client that compares them in this way sends a request with the
    /// scheme `HTTPS` in plain text. [`Uri`] parses `HTTPS://` into `https`.
    fn is_private(&self, uri: &Uri) -> bool {
        match uri.scheme_str() {
            None | Some("https") => true,
            Some("http") => uri.host().is_some_and(is_loopback),
            // What these mean is up to the client, so they are private only if an origin has them.
            Some("wss" | "unix") => self.origins.is_some(),
            Some(_) => false,
        }
    }
}

/// Returns whether every destination that a request names is one of the origins.
///
/// A request that names no destination matches none.
fn names_only(origins: &[Origin], uri: &Uri, headers: &HeaderMap) -> bool {
    let scheme = uri.scheme_str();
    let named_by_uri = uri.authority().map(HostAndPort::from_authority);
    // An HTTP/1.1 server with several virtual hosts goes by the `Host` header.
    let hosts = headers.get_all(HOST).iter();
    let named_by_host = hosts.map(|host| HostAndPort::parse(host.to_str().ok()?));
    let mut destinations = named_by_uri.into_iter().chain(named_by_host).peekable();
    let is_origin = |destination: HostAndPort<'_>| {
        origins
            .iter()
            .any(|origin| origin.matches(scheme, &destination))
    };
    destinations.peek().is_some()
        && destinations.all(|destination| destination.is_some_and(is_origin))
}

/// A scheme, a host and a port (RFC 6454 §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// In lower case.
    scheme: String,
    host: Host,
    port: u16,
}

/// A host in the form in which hosts are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    /// In lower case, without a trailing dot.
    Name(String),
}

/// Host and port of an authority, without its user information.
struct HostAndPort<'a> {
    host: &'a str,
    port: &'a str,
}

impl Origin {
    /// Parses an origin such as `https://api.example` or `https://api.example:8443`.
    pub(crate) fn new(uri: impl TryInto<Uri, Error: Into<BoxError>>) -> Result<Self, Error> {
        let uri: Uri = uri.try_into().map_err(|error| {
            Error::with_source(
                Kind::Configuration("origin is not a valid URL".into()),
                error,
            )
        })?;
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return Err(refused("must be absolute, such as https://api.example"));
        };
        let scheme = scheme.as_str().to_ascii_lowercase();
        if authority.as_str().contains('@') {
            return Err(refused("contains user information; remove it"));
        }
        if uri.path_and_query().is_some_and(|path| path != "/") {
            return Err(refused(
                "has a path or query; give only scheme, host and port",
            ));
        }
        let named = HostAndPort::from_authority(authority)
            .and_then(|named| Some((Host::new(named.host), named.port(&scheme)?)));
        let Some((host, port)) = named else {
            return Err(refused("has no host, or no valid port for its scheme"));
        };
        if !host.is_one_host() {
            return Err(refused(
                "does not name one host; patterns never match, so give each host an origin of its \
                 own, such as https://api.example",
            ));
        }
        Ok(Self { scheme, host, port })
    }

    /// Returns whether a destination is this origin; without a scheme, host and port decide.
    fn matches(&self, scheme: Option<&str>, named: &HostAndPort<'_>) -> bool {
        let scheme = scheme.unwrap_or(&self.scheme);
        self.scheme == scheme
            && self.host.matches(named.host)
            && named.port(scheme) == Some(self.port)
    }
}

impl Host {
    fn new(host: &str) -> Self {
        match ip_address(host) {
            Some(address) => Self::Address(address),
            None => Self::Name(without_trailing_dot(host).to_ascii_lowercase()),
        }
    }

    /// Returns whether the host is an address or can be a name.
    fn is_one_host(&self) -> bool {
        let is_in_label = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        match self {
            Self::Address(_) => true,
            Self::Name(name) => name
                .split('.')
                .all(|label| !label.is_empty() && label.bytes().all(is_in_label)),
        }
    }

    fn matches(&self, host: &str) -> bool {
        match self {
            Self::Address(own) => ip_address(host).is_some_and(|address| address == *own),
            Self::Name(own) => without_trailing_dot(host).eq_ignore_ascii_case(own),
        }
    }
}

impl<'a> HostAndPort<'a> {
    fn from_authority(authority: &'a Authority) -> Option<Self> {
        Self::parse(authority.as_str().rsplit('@').next()?)
    }

    /// Parses `host` or `host:port`; `None` if the host is missing or anything else follows.
    fn parse(text: &'a str) -> Option<Self> {
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
        let is_valid = !without_trailing_dot(host).is_empty()
            && port.bytes().all(|byte| byte.is_ascii_digit());
        is_valid.then_some(Self { host, port })
    }

    /// Returns the port, by default that of the scheme; `None` if there is none or it is out of range.
    fn port(&self, scheme: &str) -> Option<u16> {
        match (self.port, scheme) {
            ("", "https" | "wss") => Some(443),
            ("", "http" | "ws") => Some(80),
            // A socket in the file system has no port; some clients write this one.
            ("", "unix") => Some(0),
            (port, _) => port.parse().ok(),
        }
    }
}

fn refused(fact: &'static str) -> Error {
    Error::configuration(format!("origin {fact}"))
}
