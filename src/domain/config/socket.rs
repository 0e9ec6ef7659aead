//! Sockets that are held for an app, judged.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use super::{
    App, Socket, SocketAddress,
    judge::{Judge, absolute},
    raw,
};
use crate::domain::model::AppName;

/// Of a unix socket, as with systemd: who may enter its folder may connect.
const MODE: u32 = 0o666;
/// The kernel takes no more by default (`net.core.somaxconn`).
const MOST_WAITING: u32 = 4096;

type Problem = Option<(&'static str, String)>;

/// Reads `sockets` of an app whose processes run as `owner`. An unknown user keeps that app alone from running.
pub fn of_app(
    judge: &mut Judge<'_>,
    app: &str,
    raw: Option<&BTreeMap<String, raw::Socket>>,
    owner: (u32, u32),
) -> (BTreeMap<String, Socket>, Problem) {
    let mut problem = None;
    let mut sockets = BTreeMap::new();
    for (name, socket) in raw.into_iter().flatten() {
        let keys = ["apps", app, "sockets", name];
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let named = !name.is_empty() && name.len() <= 64 && name.chars().all(plain);
        judge.require(named, &keys, "a socket's name has 1 to 64 of a-z, A-Z, 0-9, `_`, `-` and `.`");
        let text = socket.address.clone().unwrap_or_default();
        let read = address(&judge.base(&keys), &text);
        let address = judge.take(&keys, read, SocketAddress::Unix("/".into()));
        let is_file = matches!(address, SocketAddress::Unix(_));
        let of_files = is_file || (socket.mode.is_none() && socket.user.is_none());
        judge.require(of_files, &keys, "`mode` and `user` are for unix sockets");
        let of_ports = !is_file || socket.reuse_port.is_none();
        judge.require(of_ports, &keys, "`reuse_port` is for ports, not for unix sockets");
        let read = socket.mode.as_deref().map_or(Ok(MODE), mode);
        let mode = judge.take(&keys, read, MODE);
        let backlog = socket.backlog.unwrap_or(MOST_WAITING);
        let counted = (1..=MOST_WAITING).contains(&backlog);
        judge.require(counted, &keys, &format!("expected a `backlog` from 1 to {MOST_WAITING}"));
        let owner = socket.user.as_ref().map_or(Some(owner), |user| {
            let account = (judge.facts.user)(&user.0).map(|account| (account.uid, account.gid));
            if account.is_none() {
                problem = Some(("sockets", format!("user \"{}\" does not exist", user.0)));
            }
            account
        });
        let held = Socket {
            address,
            mode,
            owner: owner.filter(|_| judge.as_root() && is_file),
            reuse_port: socket.reuse_port.unwrap_or(false),
            backlog: i32::try_from(backlog).unwrap_or(i32::MAX),
        };
        sockets.insert(name.clone(), held);
    }
    (sockets, problem)
}

/// Two that want the same address would take it from each other.
pub fn clashes(judge: &mut Judge<'_>, apps: &BTreeMap<AppName, Arc<App>>) {
    let mut seen: BTreeMap<&SocketAddress, (&AppName, bool)> = BTreeMap::new();
    let mut found = BTreeSet::new();
    for app in apps.values() {
        for (name, socket) in &app.sockets {
            let any_port = match &socket.address {
                SocketAddress::Tcp(address) | SocketAddress::Udp(address) => address.port() == 0,
                SocketAddress::Unix(_) => false,
            };
            match seen.get(&socket.address) {
                Some((other, shares)) if !(any_port || *shares && socket.reuse_port) => {
                    found.insert((app.name.clone(), name.clone(), (*other).clone(), socket.address.to_string()));
                }
                _ => drop(seen.insert(&socket.address, (&app.name, socket.reuse_port))),
            }
        }
    }
    for (app, name, other, address) in found {
        judge.error(&["apps", app.as_str(), "sockets", &name], format!("{address} is a socket of app \"{other}\" too"));
    }
}

fn address(base: &Path, text: &str) -> Result<SocketAddress, String> {
    const EXPECTED: &str = "expected an address such as \"0.0.0.0:3000\", \"[::]:3000\", \"unix:/run/blog.sock\" or \
                            \"udp:127.0.0.1:53\"";
    if let Some(path) = text.strip_prefix("unix:") {
        let good = !path.is_empty() && !path.ends_with('/') && !path.contains('\0');
        return if good { Ok(SocketAddress::Unix(absolute(base, path))) } else { Err(EXPECTED.to_owned()) };
    }
    let read = |text: &str| text.parse().map_err(|_| format!("{text:?} cannot be listened on: {EXPECTED}"));
    match text.strip_prefix("udp:") {
        Some(rest) => read(rest).map(SocketAddress::Udp),
        None => read(text).map(SocketAddress::Tcp),
    }
}

fn mode(text: &str) -> Result<u32, String> {
    let digits = (1..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mask| digits && *mask <= 0o777);
    mode.ok_or_else(|| "expected a `mode` of octal digits up to 777, such as \"0660\"".to_owned())
}
