//! Who it is that asks through a proxy. DESIGN.md section 8.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Is it one of these?
#[must_use]
pub fn is_among(address: IpAddr, networks: &[IpNet]) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// The address that a request comes from: the peer's, or where that is a proxy to be trusted the right-most
/// one that the proxies named and that is none of them. `None`: they named somebody, and it cannot be known whom;
/// the proxy itself it is not.
///
/// `x_forwarded_for`: the values of these headers, and `forwarded` of those of RFC 7239, in their order. A proxy
/// sets one of them and may pass on what a client put into the other: where they do not agree, neither counts.
/// What is no address ends the search, as nobody knows who wrote what is left of it.
#[must_use]
pub fn client<'a>(
    peer: IpAddr,
    x_forwarded_for: impl IntoIterator<Item = &'a str>,
    forwarded: impl IntoIterator<Item = &'a str>,
    trusted: &[IpNet],
) -> Option<IpAddr> {
    let peer = peer.to_canonical();
    if !is_among(peer, trusted) {
        return Some(peer);
    }
    let plain: Vec<&str> = x_forwarded_for.into_iter().flat_map(|value| value.split(',')).map(str::trim).collect();
    let named: Vec<&str> = forwarded.into_iter().flat_map(|value| value.split(',')).map(for_of).collect();
    match (plain.is_empty(), named.is_empty()) {
        (false, true) => right_most(&plain, trusted),
        (true, false) => right_most(&named, trusted),
        (true, true) => Some(peer),
        (false, false) => {
            let (one, other) = (right_most(&plain, trusted), right_most(&named, trusted));
            one.filter(|_| one == other)
        }
    }
}

/// `None` where something else than an address stands there, or nothing.
fn right_most(hops: &[&str], trusted: &[IpNet]) -> Option<IpAddr> {
    let mut last = None;
    for hop in hops.iter().rev() {
        let address = address(hop)?;
        last = Some(address);
        if !is_among(address, trusted) {
            break;
        }
    }
    last
}

/// What stands behind `for=`; nothing where it is not there.
fn for_of(element: &str) -> &str {
    let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let mut found = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
    found.next().map_or("", |(_, value)| value.trim().trim_matches('"'))
}

/// An address, with a port or without.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let found = bare.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    found.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn proxies() -> Vec<IpNet> {
        ["127.0.0.1/32", "10.0.0.0/8", "fd00::/8"].map(|text| text.parse().unwrap()).to_vec()
    }

    fn found(peer: &str, plain: &[&str], named: &[&str]) -> String {
        let found = client(ip(peer), plain.iter().copied(), named.iter().copied(), &proxies());
        found.map_or_else(|| "?".to_owned(), |address| address.to_string())
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        assert_eq!(found("192.0.2.9", &["10.0.0.1"], &["for=10.0.0.1"]), "192.0.2.9");
        assert_eq!(found("127.0.0.1", &["192.0.2.7"], &[]), "192.0.2.7");
        assert_eq!(found("::ffff:127.0.0.1", &["192.0.2.7"], &[]), "192.0.2.7");
        assert_eq!(found("127.0.0.1", &[], &[]), "127.0.0.1");
    }

    #[test]
    fn the_right_most_stranger_counts_over_several_headers() {
        assert_eq!(found("127.0.0.1", &["203.0.113.5, 192.0.2.7, 10.1.1.1"], &[]), "192.0.2.7");
        assert_eq!(found("127.0.0.1", &["203.0.113.5", "192.0.2.7"], &[]), "192.0.2.7");
        assert_eq!(found("127.0.0.1", &["10.1.1.2, 10.1.1.1"], &[]), "10.1.1.2");
        assert_eq!(found("127.0.0.1", &["192.0.2.7, unknown, 10.1.1.1"], &[]), "?");
        assert_eq!(found("127.0.0.1", &["192.0.2.7, "], &[]), "?");
    }

    #[test]
    fn every_form_of_an_address_is_read() {
        assert_eq!(found("127.0.0.1", &["192.0.2.7:4711"], &[]), "192.0.2.7");
        assert_eq!(found("127.0.0.1", &["[2001:db8::1]:4711"], &[]), "2001:db8::1");
        assert_eq!(found("127.0.0.1", &["::ffff:192.0.2.7"], &[]), "192.0.2.7");
        assert_eq!(found("127.0.0.1", &[], &[r#"for="[2001:db8::1]:4711";proto=https"#]), "2001:db8::1");
        assert_eq!(found("127.0.0.1", &[], &["For=192.0.2.7;by=10.0.0.1, for=10.0.0.2"]), "192.0.2.7");
        assert_eq!(found("127.0.0.1", &[], &["proto=https"]), "?");
        assert_eq!(found("127.0.0.1", &[], &["for=_hidden"]), "?");
    }

    #[test]
    fn headers_that_do_not_agree_are_not_believed() {
        assert_eq!(found("127.0.0.1", &["192.0.2.7"], &["for=203.0.113.5"]), "?");
        assert_eq!(found("127.0.0.1", &["192.0.2.7"], &["for=192.0.2.7"]), "192.0.2.7");
    }

    proptest! {
        #[test]
        fn what_a_stranger_writes_never_counts(text in "[ -~]{0,60}") {
            // Whatever is left of what the proxy itself added.
            let value = format!("{text}, 192.0.2.7");
            prop_assert_eq!(found("127.0.0.1", &[&value], &[]), "192.0.2.7");
            prop_assert_eq!(found("192.0.2.9", &[&text], &[&text]), "192.0.2.9");
        }
    }
}
