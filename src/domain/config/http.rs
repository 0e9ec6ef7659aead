//! `http`: who listens where, for what and for whom. SURFACE.md section 7, DESIGN.md section 8.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{Http, Serve, Tls, judge::Judge, raw};

pub fn http(judge: &mut Judge<'_>, entries: &[raw::Http]) -> Vec<Http> {
    let mut listeners: Vec<Http> = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        let i = i.to_string();
        let keys = ["http", i.as_str()];
        let bind_keys = ["http", &i, "bind"];
        let Some(text) = &entry.bind else {
            judge.error(&keys, "`bind` is missing: the address to listen on, such as \"127.0.0.1:9988\"");
            continue;
        };
        let Ok(bind) = text.parse::<SocketAddr>() else {
            let message = format!(
                "{text:?} is no address to listen on; expected one such as \"127.0.0.1:9988\" or \"[::]:9988\""
            );
            judge.error(&bind_keys, message);
            continue;
        };
        judge.require(!entry.serve.is_empty(), &keys, "`serve` is missing: what to serve here, such as [Hooks]");
        let mut serve = entry.serve.clone();
        serve.sort_unstable();
        serve.dedup();
        judge_reach(judge, &i, bind, &serve, entry);
        if bind.port() != 0 && listeners.iter().any(|other| other.bind == bind) {
            judge.error(&bind_keys, format!("{bind} is listened on twice: put both into one `serve`"));
        } else if let Some(other) = listeners.iter().find(|other| overlap(other.bind, bind)) {
            let message = format!("{bind} and {} take the same port of one address: give them two ports", other.bind);
            judge.error(&bind_keys, message);
        }
        let trusted = networks(judge, &["http", &i, "trusted_proxies"], &entry.trusted_proxies);
        let allow = entry.allow.as_ref().map(|list| networks(judge, &["http", &i, "allow"], list));
        let place = judge.place(&bind_keys);
        let tls = entry.tls.as_ref().and_then(|raw| tls(judge, &i, raw));
        listeners.push(Http { bind, serve, trusted, allow, tls, place });
    }
    listeners
}

/// Is one of these two that are not the same all addresses of the machine, the other one's included?
#[must_use]
pub fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let all = one.ip().is_unspecified() || other.ip().is_unspecified();
    all && one != other && one.is_ipv4() == other.is_ipv4() && one.port() == other.port() && one.port() != 0
}

fn tls(judge: &mut Judge<'_>, i: &str, raw: &raw::Tls) -> Option<Tls> {
    let keys = ["http", i, "tls"];
    let (Some(cert), Some(key)) = (&raw.cert, &raw.key) else {
        judge.error(&keys, "TLS needs `cert` and `key`, such as (cert: \"fullchain.pem\", key: \"privkey.pem\")");
        return None;
    };
    let (cert_keys, key_keys) = (["http", i, "tls", "cert"], ["http", i, "tls", "key"]);
    let places = [judge.place(&cert_keys), judge.place(&key_keys)];
    Some(Tls { cert: judge.path(&cert_keys, cert), key: judge.path(&key_keys, key), places })
}

/// What others can reach: tokens are read on the way, and who hears the internet should serve no people.
fn judge_reach(judge: &mut Judge<'_>, i: &str, bind: SocketAddr, serve: &[Serve], entry: &raw::Http) {
    if bind.ip().is_loopback() {
        return;
    }
    if serve.contains(&Serve::Api) && !entry.insecure && entry.tls.is_none() {
        let message = format!(
            "whoever is on the way to {bind} could read people's tokens, as this is no HTTPS: give it `tls`, bind it \
             to 127.0.0.1 behind a proxy that has, or say `insecure: true` where the network is trusted"
        );
        judge.error(&["http", i, "bind"], message);
    }
    if serve.contains(&Serve::Hooks) && serve.contains(&Serve::Api) {
        let message =
            format!("{bind} serves Hooks and Api from one process that others can reach: give each its entry");
        judge.warn(&["http", i, "serve"], message);
    }
    if serve.contains(&Serve::Metrics) && entry.allow.is_none() {
        let message = format!(
            "whoever reaches {bind} can read the names and the states of all apps: say in `allow` who may, or serve \
             Metrics on 127.0.0.1"
        );
        judge.warn(&["http", i, "serve"], message);
    }
}

fn networks(judge: &mut Judge<'_>, keys: &[&str; 3], list: &[String]) -> Vec<IpNet> {
    let mut networks = Vec::new();
    for (n, text) in list.iter().enumerate() {
        let n = n.to_string();
        match network(text) {
            Ok(network) => networks.push(network),
            Err(message) => judge.error(&[keys[0], keys[1], keys[2], &n], message),
        }
    }
    networks
}

/// An address, or a network in the form of CIDR. An IPv4 address in an IPv6 one is the IPv4 address.
fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_canonical().into());
    }
    let bad = || format!("{text:?} is no address; expected one such as \"10.1.2.3\", or a network: \"10.0.0.0/8\"");
    let network: IpNet = text.parse().map_err(|_| bad())?;
    if network.addr() != network.network() {
        return Err(format!("{text:?} is an address within a network; did you mean \"{}\"?", network.trunc()));
    }
    let plain = match (network, network.addr().to_canonical()) {
        (IpNet::V6(mapped), IpAddr::V4(v4)) => mapped.prefix_len().checked_sub(96).map(|prefix| (v4, prefix)),
        _ => None,
    };
    Ok(plain.and_then(|(v4, prefix)| IpNet::new(v4.into(), prefix).ok()).unwrap_or(network))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_network_of_one() {
        let shown = |text: &str| network(text).map(|network| network.to_string());
        assert_eq!(shown("10.1.2.3").as_deref(), Ok("10.1.2.3/32"));
        assert_eq!(shown("::ffff:10.1.2.3").as_deref(), Ok("10.1.2.3/32"));
        assert_eq!(shown("2001:db8::/32").as_deref(), Ok("2001:db8::/32"));
        assert_eq!(shown("::ffff:10.0.0.0/104").as_deref(), Ok("10.0.0.0/8"));
        assert_eq!(shown("::ffff:0:0/96").as_deref(), Ok("0.0.0.0/0"));
        assert!(shown("10.1.2.3/8").unwrap_err().contains("did you mean \"10.0.0.0/8\"?"));
        for bad in ["", "localhost", "10.0.0.0/33", "10.0.0", "*"] {
            assert!(shown(bad).is_err(), "{bad}");
        }
    }
}
