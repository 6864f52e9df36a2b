//! Where a request goes, and whether a token may go there. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::{
    Method, Uri,
    header::{HOST, HeaderMap},
    request::Parts,
    uri::{Authority, Scheme},
};
use tower::BoxError;

use crate::{Error, Withheld, error::Kind};

/// The schemes of requests that can be read on the way.
const PLAIN: [&str; 2] = ["http", "ws"];

/// Where tokens may go.
#[derive(Clone, Debug, Default)]
pub(crate) struct Destinations {
    /// Everywhere, when there are none.
    origins: Option<Vec<Origin>>,
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
        self.origins = Some(origins);
    }

    /// Why a request must not carry the token, if there is a reason.
    #[inline]
    pub(crate) fn withholds_from(&self, head: &Parts) -> Option<Withheld> {
        if self.origins.is_none() && head.uri.scheme_str() == Some("https") {
            return None;
        }
        self.look_closer(head)
    }

    fn look_closer(&self, head: &Parts) -> Option<Withheld> {
        let uri = &head.uri;
        let is_plain = uri
            .scheme_str()
            .is_some_and(|scheme| is_any_of(scheme, PLAIN));
        if is_plain
            && self.plain_http == PlainHttp::ToLoopback
            && !uri.host().is_some_and(is_loopback)
        {
            return Some(Withheld::PlainHttp);
        }
        // The target of a tunnel is a proxy's affair: whoever reads the request is another party.
        let is_tunnel = head.method == Method::CONNECT && uri.scheme().is_none();
        let is_inside = match &self.origins {
            None => true,
            Some(origins) => is_within(origins, uri, &head.headers),
        };
        (is_tunnel || !is_inside).then_some(Withheld::OtherOrigin)
    }
}

/// Whether all that a request says of its destination names one of the origins.
fn is_within(origins: &[Origin], uri: &Uri, headers: &HeaderMap) -> bool {
    let scheme = uri.scheme_str();
    let named_by_uri = uri.authority().cloned();
    // A server that serves several hosts believes the `Host` of an HTTP/1.1 request.
    let named_by_host = headers
        .get_all(HOST)
        .iter()
        .map(|host| Authority::try_from(host.as_bytes()).ok());
    let mut named = named_by_uri
        .map(Some)
        .into_iter()
        .chain(named_by_host)
        .peekable();
    // Without any name there is nothing to go by.
    named.peek().is_some()
        && named.all(|authority| {
            authority.is_some_and(|authority| {
                origins
                    .iter()
                    .any(|origin| origin.is_that_of(scheme, &authority))
            })
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
    Name(String),
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
        let (Some(host), Some(port)) = (Host::of(authority), port(scheme.as_str(), authority))
        else {
            return Err(refused("names no host, or a port that is no port number"));
        };
        Ok(Self {
            scheme: scheme.clone(),
            host,
            port,
        })
    }

    /// Whether the authority is this one; a request in origin form does not say its scheme.
    fn is_that_of(&self, scheme: Option<&str>, authority: &Authority) -> bool {
        let scheme = scheme.unwrap_or(self.scheme.as_str());
        self.scheme.as_str().eq_ignore_ascii_case(scheme)
            && Host::of(authority).as_ref() == Some(&self.host)
            && port(scheme, authority) == Some(self.port)
    }
}

impl Host {
    fn of(authority: &Authority) -> Option<Self> {
        let host = authority.host();
        // One dot at the end says that the name is complete: it is the same host.
        let name = host.strip_suffix('.').unwrap_or(host);
        if name.is_empty() {
            return None;
        }
        Some(match address(host) {
            Some(address) => Self::Address(address),
            None => Self::Name(name.to_ascii_lowercase()),
        })
    }
}

/// The port, or the one that the scheme stands for; `None` if it is no port number.
fn port(scheme: &str, authority: &Authority) -> Option<u16> {
    let host_and_port = authority.as_str().rsplit('@').next()?;
    match host_and_port.strip_prefix(authority.host())? {
        "" | ":" if is_any_of(scheme, ["https", "wss"]) => Some(443),
        "" | ":" if is_any_of(scheme, PLAIN) => Some(80),
        _ => authority.port_u16(),
    }
}

fn is_any_of(scheme: &str, schemes: [&str; 2]) -> bool {
    schemes
        .iter()
        .any(|other| scheme.eq_ignore_ascii_case(other))
}

fn refused(fact: &'static str) -> Error {
    Error::configuration(format!("origin {fact}"))
}

/// Whether a host is this machine itself.
///
/// What other names, such as `*.localhost` and `127.1`, lead to, the resolver decides.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    name.eq_ignore_ascii_case("localhost")
        || address(host).is_some_and(|address| address.is_loopback())
}

/// The address, if a host is one; one of IPv6 stands in brackets.
fn address(host: &str) -> Option<IpAddr> {
    let v6 = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    match v6 {
        Some(v6) => v6.parse().ok().map(|v6: Ipv6Addr| v6.into()),
        None => host.parse().ok().map(|v4: Ipv4Addr| v4.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_machine_itself_is_loopback() {
        for host in [
            "localhost",
            "LocalHost.",
            "127.0.0.1",
            "127.255.0.9",
            "[::1]",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "localhost.example",
            "a.localhost",
            "128.0.0.1",
            "127.0.0.1.example",
            "127.0.0.1.",
            "::1",
            "[::2]",
            "127.1",
            "",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
