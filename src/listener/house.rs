//! Who answers what: the routes that this listener serves, each at its channel.

use std::{io, net::IpAddr, os::fd::RawFd, rc::Rc};

use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    header::{FORWARDED, HeaderName},
};
use ipnet::IpNet;
use tokio::{net::TcpListener, task::JoinSet};

use super::{
    answer::{Content, Problem},
    api::People,
    body::Cellar,
    doors::{self, Desk},
    guests::Guests,
    hooks::Hooks,
    link::Link,
    routes::Route,
    signals::told_to_end,
    tls::Tls,
};
use crate::{
    domain::access::{client, is_among},
    os::{
        inherited::inherited,
        sandbox::{self, Calls, Keeps},
    },
};

/// The listening socket.
const SOCKET: RawFd = 3;

/// What a listener is asked to serve, and for whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Served {
    hooks: bool,
    api: bool,
    /// Proxies whose word counts on whom they ask for.
    trusted: Vec<IpNet>,
    /// Who may ask; `None`: everybody.
    allow: Option<Vec<IpNet>>,
    tls: bool,
}

impl Served {
    /// Reads `--serve hooks,api [--trust NET,…] [--allow NET,…] [--tls]`.
    pub(super) fn from_args(args: &[String]) -> Option<Self> {
        let mut served = Self::default();
        let args = match args {
            [args @ .., last] if last == "--tls" => {
                served.tls = true;
                args
            }
            args => args,
        };
        for pair in args.chunks(2) {
            let [flag, list] = pair else { return None };
            match flag.as_str() {
                "--serve" => {
                    for word in list.split(',') {
                        match word {
                            "hooks" => served.hooks = true,
                            "api" => served.api = true,
                            _ => return None,
                        }
                    }
                }
                "--trust" => served.trusted = networks(list)?,
                "--allow" => served.allow = Some(networks(list)?),
                _ => return None,
            }
        }
        (served.hooks || served.api).then_some(served)
    }
}

fn networks(list: &str) -> Option<Vec<IpNet>> {
    list.split(',').filter(|one| !one.is_empty()).map(|one| one.parse().ok()).collect()
}

struct House {
    hooks: Option<Hooks>,
    people: Option<People>,
    trusted: Vec<IpNet>,
    allow: Option<Vec<IpNet>>,
}

/// Serves until the supervisor is gone or says so.
pub(super) async fn open(served: Served) -> io::Result<()> {
    for lack in sandbox::enter(&Keeps { calls: Calls::Listener, writes: &[], reads: &[] })? {
        eprintln!("everhook: listener: {lack}");
    }
    let told = told_to_end()?;
    let socket = std::net::TcpListener::from(inherited(SOCKET)?);
    socket.set_nonblocking(true)?;
    let listener = TcpListener::from_std(socket)?;
    let mut next = SOCKET + 1;
    let mut channel = || {
        next += 1;
        inherited(next - 1)
    };
    let mut house = House { hooks: None, people: None, trusted: served.trusted, allow: served.allow };
    let mut carriers = JoinSet::new();
    if served.hooks {
        let (link, carry) = Link::new(channel()?)?;
        carriers.spawn_local(carry);
        house.hooks = Some(Hooks { link, cellar: Cellar::new() });
    }
    if served.api {
        let (link, carry) = Link::new(channel()?)?;
        carriers.spawn_local(carry);
        house.people = Some(People { link });
    }
    let mut tls = None;
    if served.tls {
        let (keys, carry) = Tls::open(channel()?).await?;
        carriers.spawn_local(carry);
        tls = Some(keys);
    }
    let end = async {
        tokio::select! {
            () = told => {}
            // One channel gone: the supervisor is.
            _ = carriers.join_next() => {}
        }
    };
    let guests = Guests::new(house.trusted.clone());
    doors::open(listener, guests, tls, Rc::new(house), end).await;
    Ok(())
}

impl Desk for House {
    async fn answer(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Content> {
        let from = self.client(request.headers(), peer);
        if self.allow.as_ref().is_some_and(|allow| !is_among(from, allow)) {
            let detail = format!("nothing is answered to {from}: `allow` of this listener names others");
            return Problem::new(StatusCode::FORBIDDEN, detail).hang_up().into();
        }
        self.handle(request, from).await.unwrap_or_else(Response::from)
    }
}

impl House {
    /// Who asks, where a proxy may stand between.
    fn client(&self, headers: &HeaderMap, peer: IpAddr) -> IpAddr {
        // A header that is no text ends what can be believed, as an address that is none.
        let values = |name: HeaderName| headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
        client(peer, values(HeaderName::from_static("x-forwarded-for")), values(FORWARDED), &self.trusted)
    }

    async fn handle(&self, request: Request<Incoming>, from: IpAddr) -> Result<Response<Content>, Problem> {
        let not_here = || Problem::new(StatusCode::NOT_FOUND, "nothing is served under this path");
        let route = Route::find(request.uri().path()).ok_or_else(not_here)?;
        match (route, &self.hooks, &self.people) {
            (Route::Hook(app), Some(hooks), _) => hooks.deliver(app, request, from).await,
            (Route::Health, Some(hooks), _) => hooks.health(&request).await,
            (Route::Health, None, Some(people)) => people.health(&request, from).await,
            (Route::Hook(_), None, _) | (_, _, None) => Err(not_here()),
            (Route::Change(app, action), _, Some(people)) => people.change(&app, action, request, from).await,
            (Route::Judge(id, sentence), _, Some(people)) => people.judge(&id, sentence, request, from).await,
            (Route::Redeliver(id), _, Some(people)) => people.redeliver(&id, request, from).await,
            (Route::Events, _, Some(people)) => people.events(&request, from).await,
            (Route::Logs(of), _, Some(people)) => people.logs(&of, &request, from).await,
            (route, _, Some(people)) => people.show(&route, &request, from).await,
        }
    }
}
