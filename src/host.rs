//! Hosts as they appear in URLs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Returns whether a host is this machine: `localhost`, `127.0.0.0/8` or `[::1]`.
///
/// Where other names lead, such as `*.localhost` and `127.1`, is up to the resolver.
pub(crate) fn is_loopback(host: &str) -> bool {
    without_trailing_dot(host).eq_ignore_ascii_case("localhost")
        || ip_address(host).is_some_and(|address| address.is_loopback())
}

/// Parses an IP address; an IPv6 address is in brackets (RFC 3986 §3.2.2).
pub(crate) fn ip_address(host: &str) -> Option<IpAddr> {
    let v6 = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    match v6 {
        Some(v6) => v6.parse().ok().map(|v6: Ipv6Addr| v6.into()),
        None => host.parse().ok().map(|v4: Ipv4Addr| v4.into()),
    }
}

/// Removes one trailing dot: `api.example.` is the absolute form of `api.example` (RFC 3986 §3.2.2).
pub(crate) fn without_trailing_dot(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
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
