//! Addresses that a probe asks: literal, or `localhost`, since a probe asks no DNS.

use std::net::{IpAddr, SocketAddr};

use super::ProbeAddress;

/// What a probe's `url` says.
#[derive(Debug, PartialEq, Eq)]
pub struct Url {
    pub address: ProbeAddress,
    /// As written, for the `Host` header.
    pub host: String,
    pub target: String,
}

/// Reads `http://127.0.0.1:3000/healthz`.
///
/// # Errors
/// One sentence that says what was expected.
pub fn url(text: &str) -> Result<Url, String> {
    let bad = |why: &str| Err(format!("{text:?} is no address to ask: {why}"));
    if text.contains(|c: char| c.is_ascii_control() || c == ' ' || !c.is_ascii()) {
        return bad("blanks and characters beyond ASCII must be written as %20");
    }
    if text.contains('$') {
        return bad("variables are not replaced here; write the number of the port");
    }
    let Some(rest) = text.strip_prefix("http://") else {
        return bad("expected plain HTTP to an address, such as \"http://127.0.0.1:3000/healthz\"");
    };
    let split = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(split);
    if target.contains('#') {
        return bad("a fragment (`#…`) is never sent");
    }
    let address = match address(authority, Some(80)) {
        Ok(address) => address,
        Err(why) => return bad(&why),
    };
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    Ok(Url { address, host: authority.to_owned(), target })
}

/// Reads `127.0.0.1:3000`, `[::1]:3000` or `localhost:3000`.
///
/// # Errors
/// What was expected.
pub fn address(text: &str, default_port: Option<u16>) -> Result<ProbeAddress, String> {
    let expected = "expected a literal address or localhost, and a port, such as 127.0.0.1:3000 or [::1]:3000";
    let after_bracket = text.rfind(']').map_or(0, |i| i + 1);
    let (host, port) = match text[after_bracket..].rfind(':') {
        Some(colon) => {
            let port = &text[after_bracket + colon + 1..];
            let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
            (&text[..after_bracket + colon], port.parse().ok().filter(|_| digits))
        }
        None => (text, default_port),
    };
    let port = port.filter(|port| *port > 0).ok_or(expected)?;
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(ProbeAddress::Localhost(port));
    }
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let ip = match bracketed {
        Some(v6) => v6.parse().map(IpAddr::V6).ok(),
        None => host.parse().map(IpAddr::V4).ok(),
    };
    ip.map(|ip| ProbeAddress::Socket(SocketAddr::new(ip, port))).ok_or_else(|| expected.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(text: &str) -> ProbeAddress {
        ProbeAddress::Socket(text.parse().unwrap())
    }

    #[test]
    fn urls_are_literal() {
        for (text, at, target) in [
            ("http://127.0.0.1:3000/x?y=1", socket("127.0.0.1:3000"), "/x?y=1"),
            ("http://[::1]:3000", socket("[::1]:3000"), "/"),
            ("http://127.0.0.1?a", socket("127.0.0.1:80"), "/?a"),
            ("http://localhost:8080/", ProbeAddress::Localhost(8080), "/"),
        ] {
            let url = url(text).unwrap();
            assert_eq!((url.address, url.target.as_str()), (at, target), "{text}");
        }
        for bad in [
            "",
            "127.0.0.1:3000",
            "https://127.0.0.1/",
            "http://example.com/",
            "http://127.0.0.1:x/",
            "http://127.0.0.1:0/",
            "http://127.0.0.1:70000/",
            "http://u@127.0.0.1/",
            "http://127.0.0.1/a b",
            "http://127.0.0.1/a\r\nX: y",
            "http://127.0.0.1:${PORT}/",
            "http://::1:3000/",
            "http://127.0.0.1/#x",
            "http://127.0.0.1:+80/",
            "http:///x",
        ] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_needs_a_port() {
        assert_eq!(address("127.0.0.1:3000", None).unwrap(), socket("127.0.0.1:3000"));
        assert!(address("127.0.0.1", None).is_err());
        assert!(address("[::1]", None).is_err());
    }
}
