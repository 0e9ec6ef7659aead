//! How an instance shows that it is ready and well. Addresses are literal, `localhost` or unix
//! sockets, since a probe asks no DNS.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use super::{
    App, Command, HttpProbe, Live, LiveProbe, Probe, ProbeAddress, Ready, SocketAddress, TcpProbe, judge::Judge,
    numbered, raw, shell,
};
use crate::domain::model::AppName;

/// Of `ready`, unless it says otherwise.
const WITHIN: Duration = Duration::from_secs(60);
/// Descriptors that an app may have for its readiness: behind the three streams, below the soft limit.
const NUMBERS: std::ops::Range<i32> = 3..1024;
/// `sun_path` holds 108 bytes, the last of them zero.
const LONGEST_PATH: usize = 107;
/// What may follow an instance's name in the name of its socket.
const SUFFIX: usize = 2;

/// What a probe's `url` says.
#[derive(Debug, PartialEq, Eq)]
pub struct Url {
    pub address: ProbeAddress,
    /// For the `Host` header.
    pub host: String,
    pub target: String,
}

impl HttpProbe {
    /// Where the copy of this number is asked.
    ///
    /// # Errors
    /// One sentence that says what was expected.
    pub fn at(&self, instance: u32) -> Result<Url, String> {
        let url = url(&numbered(&self.url, instance))?;
        Ok(Url { host: self.host.clone().unwrap_or(url.host), ..url })
    }
}

impl TcpProbe {
    /// Where the copy of this number is asked.
    ///
    /// # Errors
    /// One sentence that says what was expected.
    pub fn at(&self, instance: u32) -> Result<ProbeAddress, String> {
        let text = numbered(&self.addr, instance);
        address(&text, None).map_err(|expected| format!("{text:?}: {expected}"))
    }
}

impl App {
    /// Does this probe of a copy ask a socket that everhook holds for the app, so that any of its
    /// processes may answer, and none accept?
    #[must_use]
    pub fn is_held(&self, probe: &Probe, instance: u32) -> bool {
        let asked = match probe {
            Probe::Http(probe) => probe.at(instance).map(|url| url.address),
            Probe::Tcp(probe) => probe.at(instance),
            Probe::Exec(_) => return false,
        };
        asked.is_ok_and(|asked| self.sockets.values().any(|socket| reaches(&asked, &socket.address)))
    }
}

fn reaches(asked: &ProbeAddress, held: &SocketAddress) -> bool {
    match (asked, held) {
        (ProbeAddress::Socket(asked), SocketAddress::Tcp(held)) => {
            let ip = held.ip().to_canonical();
            held.port() == asked.port() && (ip.is_unspecified() || ip == asked.ip().to_canonical())
        }
        (ProbeAddress::Localhost(port), SocketAddress::Tcp(held)) => {
            held.port() == *port && (held.ip().is_unspecified() || held.ip().is_loopback())
        }
        (ProbeAddress::Unix(asked), SocketAddress::Unix(held)) => asked == held,
        _ => false,
    }
}

/// Of copies that share a socket, an answer says nothing about a single one.
pub fn of_one(judge: &mut Judge<'_>, app: &App) {
    let Some(Live { probe: LiveProbe::Probe(probe), .. }) = app.live.as_deref() else { return };
    let shared = app.instances > 1 && (1..=app.instances).any(|number| app.is_held(probe, number));
    judge.require(
        !shared,
        &["apps", app.name.as_str(), "live", "probe"],
        "its instances share this socket, so that an answer says nothing about a single one: use Watchdog or Exec, or \
         give each an address of its own by `port` or `{instance}`",
    );
}

/// `ready` of an app with so many copies.
pub fn ready(judge: &mut Judge<'_>, app: &str, raw: Option<&raw::Ready>, instances: u32) -> Ready {
    let keys = |field| ["apps", app, "ready", field];
    let time = |within: &Option<raw::Span>| within.map_or(WITHIN, |span| span.0);
    let (probe, within) = match raw {
        None => return Ready::After(Duration::from_secs(1)),
        Some(raw::Ready::Immediate) => return Ready::Immediate,
        Some(raw::Ready::After(span)) => return Ready::After(span.0),
        Some(raw::Ready::PlainNotify) => return Ready::Notify { within: WITHIN },
        Some(raw::Ready::Notify { within }) => return Ready::Notify { within: time(within) },
        Some(raw::Ready::Fd { fd, within }) => {
            let number = fd.unwrap_or(NUMBERS.start);
            let expected = format!("expected a descriptor from {} to {}", NUMBERS.start, NUMBERS.end - 1);
            judge.require(NUMBERS.contains(&number), &keys("fd"), &expected);
            return Ready::Fd { number, within: time(within) };
        }
        Some(raw::Ready::Tcp { addr, within }) => (tcp(judge, &keys("addr"), addr.as_deref(), instances), within),
        Some(raw::Ready::Http { url, host, expect, within }) => {
            (http(judge, &keys(""), (url.as_deref(), host.as_deref(), *expect), instances), within)
        }
        Some(raw::Ready::Exec { command, within }) => (exec(judge, &keys("command"), command.as_ref()), within),
    };
    Ready::Probe { probe: probe.into(), within: time(within) }
}

/// `live` of an app with so many copies.
pub fn live(judge: &mut Judge<'_>, app: &str, raw: &raw::Live, instances: u32) -> Option<Live> {
    let keys = |field| ["apps", app, "live", field];
    let probe_keys = |field| ["apps", app, "live", "probe", field];
    let probe = match &raw.probe {
        None => {
            judge.error(&keys("probe"), "`probe` is missing: Http, Tcp, Exec or Watchdog");
            return None;
        }
        Some(raw::LiveProbe::Watchdog) => {
            judge.require(raw.timeout.is_none(), &keys("timeout"), "nobody is asked, so that no answer can be late");
            LiveProbe::Watchdog
        }
        Some(raw::LiveProbe::Tcp { addr }) => {
            LiveProbe::Probe(tcp(judge, &probe_keys("addr"), addr.as_deref(), instances))
        }
        Some(raw::LiveProbe::Http { url, host, expect }) => {
            LiveProbe::Probe(http(judge, &probe_keys(""), (url.as_deref(), host.as_deref(), *expect), instances))
        }
        Some(raw::LiveProbe::Exec { command }) => {
            LiveProbe::Probe(exec(judge, &probe_keys("command"), command.as_ref()))
        }
    };
    let time = |span: &Option<raw::Span>, default| span.map_or(Duration::from_secs(default), |span| span.0);
    let live = Live {
        probe,
        every: time(&raw.every, 10),
        failures: raw.failures.unwrap_or(3),
        timeout: time(&raw.timeout, 5),
    };
    judge.require(!live.every.is_zero(), &keys("every"), "this time cannot be zero");
    judge.require(!live.timeout.is_zero(), &keys("timeout"), "this time cannot be zero");
    judge.require(live.failures > 0, &keys("failures"), "at least one failure must be allowed to happen");
    Some(live)
}

/// The last of `keys` is replaced by the field that is at fault.
fn http(
    judge: &mut Judge<'_>,
    keys: &[&str],
    (url, host, expect): (Option<&str>, Option<&str>, Option<u16>),
    instances: u32,
) -> Probe {
    let parent = &keys[..keys.len() - 1];
    let field = |name| [parent, &[name]].concat();
    let probe = HttpProbe {
        url: url.unwrap_or_default().to_owned(),
        host: host.map(str::to_owned),
        expect: expect.unwrap_or(200),
    };
    let read = if url.is_some() {
        first_and_last(instances, |number| probe.at(number).map(drop))
    } else {
        Err("`url` is missing".into())
    };
    judge.take(&field("url"), read, ());
    let plain = host.is_none_or(|host| host.chars().all(|c| c.is_ascii_graphic()));
    judge.require(plain, &field("host"), "this is no host");
    let status = (100..=599).contains(&probe.expect);
    judge.require(status, &field("expect"), "expected a status from 100 to 599");
    Probe::Http(probe)
}

/// What holds for these holds for the copies between them.
fn first_and_last(instances: u32, check: impl Fn(u32) -> Result<(), String>) -> Result<(), String> {
    check(1).and_then(|()| check(instances))
}

fn tcp(judge: &mut Judge<'_>, keys: &[&str], addr: Option<&str>, instances: u32) -> Probe {
    let probe = TcpProbe { addr: addr.unwrap_or_default().to_owned() };
    let read = if addr.is_some() {
        first_and_last(instances, |number| probe.at(number).map(drop))
    } else {
        Err("`addr` is missing".into())
    };
    judge.take(keys, read, ());
    Probe::Tcp(probe)
}

fn exec(judge: &mut Judge<'_>, keys: &[&str], command: Option<&raw::Words>) -> Probe {
    Probe::Exec(command_line(judge, keys, command))
}

/// A command beside the app's own.
pub fn command_line(judge: &mut Judge<'_>, keys: &[&str], command: Option<&raw::Words>) -> Command {
    let holds_nul = command.is_some_and(raw::Words::holds_nul);
    let (command, empty) = match command {
        None => (Command::List([].into_iter().collect()), true),
        Some(raw::Words::One(text)) => (Command::Shell(shell::with_exec(text)), text.trim().is_empty()),
        Some(raw::Words::List(list)) => {
            let words = list.iter().map(String::as_str).collect();
            (Command::List(words), list.first().is_none_or(String::is_empty))
        }
    };
    judge.require(!empty, keys, "the command is missing");
    judge.require(!holds_nul, keys, "a command cannot hold a NUL character");
    command
}

/// Sockets for notifications have a path that apps must be able to name.
pub fn notify_paths(judge: &mut Judge<'_>, run_dir: &Path, apps: &BTreeMap<AppName, Arc<App>>) {
    for (name, app) in apps.iter().filter(|(_, app)| app.notifies()) {
        let length = run_dir.join("notify").join(format!("{name}.1")).as_os_str().len() + SUFFIX;
        let field = if matches!(app.ready, Ready::Notify { .. }) { "ready" } else { "live" };
        judge.require(
            length <= LONGEST_PATH,
            &["apps", name.as_str(), field],
            &format!(
                "the path of its socket in `run_dir` would have {length} bytes, and no socket's may have more than \
                 {LONGEST_PATH}: name a shorter `run_dir`"
            ),
        );
    }
}

/// Reads `http://127.0.0.1:3000/healthz` or `http://unix:/run/blog.sock:/healthz`.
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
    let (authority, target) = match rest.strip_prefix("unix:") {
        // As nginx writes it: a colon parts the socket's path from the target's.
        Some(path) => path.split_once(':').map_or((rest, ""), |(path, target)| (&rest[..path.len() + 5], target)),
        None => rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len())),
    };
    if target.contains('#') {
        return bad("a fragment (`#…`) is never sent");
    }
    let address = match address(authority, Some(80)) {
        Ok(address) => address,
        Err(why) => return bad(&why),
    };
    let host = if matches!(address, ProbeAddress::Unix(_)) { "localhost" } else { authority };
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    Ok(Url { address, host: host.to_owned(), target })
}

/// Reads `127.0.0.1:3000`, `[::1]:3000`, `localhost:3000` or `unix:/run/blog.sock`.
///
/// # Errors
/// What was expected.
pub fn address(text: &str, default_port: Option<u16>) -> Result<ProbeAddress, String> {
    let expected = "expected a literal address or localhost, and a port, such as 127.0.0.1:3000 or [::1]:3000";
    if let Some(path) = text.strip_prefix("unix:") {
        let good = path.starts_with('/') && path.len() <= LONGEST_PATH;
        let expected =
            format!("expected an absolute path of at most {LONGEST_PATH} bytes, such as unix:/run/blog.sock");
        return if good { Ok(ProbeAddress::Unix(path.into())) } else { Err(expected) };
    }
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
            ("http://unix:/run/a.sock:/x?y", ProbeAddress::Unix("/run/a.sock".into()), "/x?y"),
            ("http://unix:/run/a.sock", ProbeAddress::Unix("/run/a.sock".into()), "/"),
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
            "http://unix:a.sock:/x",
            "http://unix:",
        ] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_needs_a_port() {
        assert_eq!(address("127.0.0.1:3000", None).unwrap(), socket("127.0.0.1:3000"));
        assert_eq!(address("unix:/run/a:b.sock", None).unwrap(), ProbeAddress::Unix("/run/a:b.sock".into()));
        assert!(address(&format!("unix:/{}", "a".repeat(200)), None).is_err());
        assert!(address("127.0.0.1", None).is_err());
        assert!(address("[::1]", None).is_err());
    }
}
