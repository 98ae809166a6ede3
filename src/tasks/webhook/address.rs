//! Where callbacks may go: http or https, and no address inside the network unless that is allowed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const MAX_URL_BYTES: usize = 2048;

/// Why a callback cannot go there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("must be an absolute http:// or https:// URL")]
    Malformed,
    #[error("must not carry a user name or password")]
    Credentials,
    #[error("must not point to a loopback, private or link-local address")]
    Private,
}

/// A callback URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub(super) tls: bool,
    /// Without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Path and query.
    pub(super) path: String,
    /// As the `Host` header wants it.
    pub(super) authority: String,
}

/// Takes a URL apart and refuses what can be refused without asking a name server.
///
/// # Errors
/// `UrlError`.
pub fn check_url(url: &str, allow_private: bool) -> Result<Target, UrlError> {
    let clean = url.len() <= MAX_URL_BYTES && url.bytes().all(|b| b.is_ascii_graphic());
    let (scheme, rest) = url.split_once("://").ok_or(UrlError::Malformed)?;
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "http" if clean => false,
        "https" if clean => true,
        _ => return Err(UrlError::Malformed),
    };
    let rest = rest.split('#').next().unwrap_or(rest);
    let split = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(split);
    if authority.contains('@') {
        return Err(UrlError::Credentials);
    }
    let default_port = if tls { 443 } else { 80 };
    let (host, port) = split_port(authority, default_port).ok_or(UrlError::Malformed)?;
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let local = name == "localhost" || name.ends_with(".localhost");
    let address = host.parse::<IpAddr>().ok();
    if !allow_private && (local || address.is_some_and(is_private)) {
        return Err(UrlError::Private);
    }
    let slash = if path.starts_with('/') { "" } else { "/" };
    Ok(Target {
        tls,
        host: host.to_owned(),
        port,
        path: format!("{slash}{path}"),
        authority: authority.to_owned(),
    })
}

fn split_port(authority: &str, default: u16) -> Option<(&str, u16)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, tail) = rest.split_once(']')?;
        host.parse::<Ipv6Addr>().ok()?;
        (
            host,
            tail.strip_prefix(':').or(tail.is_empty().then_some("")),
        )
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, Some("")),
        }
    };
    let port = match port? {
        "" => default,
        digits => digits.parse().ok().filter(|p| *p > 0)?,
    };
    let named = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    (!host.is_empty() && host.chars().all(named)).then_some((host, port))
}

/// Whether an address is inside this machine or its network, or reaches nobody in particular.
pub(super) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_private_v4(v4),
        IpAddr::V6(v6) => match embedded_v4(v6) {
            Some(v4) => is_private_v4(v4),
            None => {
                let first = v6.segments()[0];
                v6.is_loopback()
                    || v6.is_unspecified()
                    || v6.is_multicast()
                    || first & 0xfe00 == 0xfc00 // unique local
                    || first & 0xffc0 == 0xfe80 // link-local
                    || first & 0xffc0 == 0xfec0 // site-local, deprecated
            }
        },
    }
}

fn is_private_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    v4.is_private()
        || v4.is_loopback()
        || v4.is_link_local()
        || v4.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && b & 0xc0 == 64) // shared by carriers
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && b & 0xfe == 18) // benchmarks
}

/// The IPv4 address inside a mapped, compatible, NAT64 or 6to4 one.
fn embedded_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = v6.segments();
    let join = |hi: u16, lo: u16| Ipv4Addr::from(u32::from(hi) << 16 | u32::from(lo));
    match s {
        [0, 0, 0, 0, 0, 0xffff, hi, lo] => Some(join(hi, lo)),
        [0, 0, 0, 0, 0, 0, hi, lo] if hi != 0 => Some(join(hi, lo)),
        [0x64, 0xff9b, _, _, _, _, hi, lo] => Some(join(hi, lo)),
        [0x2002, hi, lo, ..] => Some(join(hi, lo)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let t = check_url("http://hooks.example:8080/a/b?c=d#e", false).unwrap();
        assert_eq!(
            (t.host.as_str(), t.port, t.path.as_str()),
            ("hooks.example", 8080, "/a/b?c=d")
        );
        let t = check_url("HTTP://example.org?x", false).unwrap();
        assert_eq!((t.port, t.path.as_str(), t.tls), (80, "/?x", false));
        let t = check_url("https://hooks.example/a", false).unwrap();
        assert_eq!(
            (t.host.as_str(), t.port, t.tls),
            ("hooks.example", 443, true)
        );
        assert_eq!(
            check_url("http://[2001:4860::1]:81/", false).unwrap().host,
            "2001:4860::1"
        );
    }

    #[test]
    fn bad_urls_are_refused() {
        for (url, error) in [
            ("", UrlError::Malformed),
            ("example.org/x", UrlError::Malformed),
            ("ftp://example.org", UrlError::Malformed),
            ("http://", UrlError::Malformed),
            ("http://exa mple.org/", UrlError::Malformed),
            ("http://example.org:0/", UrlError::Malformed),
            ("http://example.org:99999/", UrlError::Malformed),
            ("http://example.org/\r\nX: y", UrlError::Malformed),
            ("http://[::1/", UrlError::Malformed),
            ("https://", UrlError::Malformed),
            ("http://user:pw@example.org/", UrlError::Credentials),
        ] {
            assert_eq!(check_url(url, true), Err(error), "{url}");
        }
    }

    #[test]
    fn inside_addresses_are_refused_unless_allowed() {
        for host in [
            "localhost",
            "a.localhost.",
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "[::1]",
            "[::]",
            "[fe80::1]",
            "[fd00::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:10.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
        ] {
            let url = format!("http://{host}/hook");
            assert_eq!(check_url(&url, false), Err(UrlError::Private), "{url}");
            assert!(check_url(&url, true).is_ok(), "{url}");
        }
        assert!(check_url("http://8.8.8.8/", false).is_ok());
        assert!(check_url("http://[2606:4700::1111]/", false).is_ok());
    }
}
