//! Hosts, as URLs write them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether a host is this machine itself.
///
/// What other names, such as `*.localhost` and `127.1`, lead to, the resolver decides.
pub(crate) fn is_loopback(host: &str) -> bool {
    complete(host).eq_ignore_ascii_case("localhost")
        || address(host).is_some_and(|address| address.is_loopback())
}

/// The address, if a host is one; one of IPv6 stands in brackets.
pub(crate) fn address(host: &str) -> Option<IpAddr> {
    let v6 = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    match v6 {
        Some(v6) => v6.parse().ok().map(|v6: Ipv6Addr| v6.into()),
        None => host.parse().ok().map(|v4: Ipv4Addr| v4.into()),
    }
}

/// The name without the one dot at its end that says that it is complete: it is the same host.
pub(crate) fn complete(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
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
