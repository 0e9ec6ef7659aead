//! Who answers what: the routes that this listener serves, each at its channel.

use std::{io, net::IpAddr, os::fd::RawFd, rc::Rc};

use hyper::{Request, Response, StatusCode, body::Incoming};
use tokio::{net::TcpListener, task::JoinSet};

use super::{
    answer::{Content, Problem},
    api::People,
    body::Cellar,
    doors::{self, Desk},
    hooks::Hooks,
    link::Link,
    routes::Route,
    signals::told_to_end,
};
use crate::os::{
    inherited::inherited,
    sandbox::{self, Calls, Keeps},
};

/// The listening socket.
const SOCKET: RawFd = 3;

/// What a listener is asked to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Served {
    hooks: bool,
    api: bool,
}

impl Served {
    /// Reads `--serve hooks,api`.
    pub(super) fn from_args(args: &[String]) -> Option<Self> {
        let [flag, list] = args else { return None };
        let mut served = Self { hooks: false, api: false };
        for word in list.split(',') {
            match word {
                "hooks" => served.hooks = true,
                "api" => served.api = true,
                _ => return None,
            }
        }
        (flag == "--serve").then_some(served)
    }
}

struct House {
    hooks: Option<Hooks>,
    people: Option<People>,
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
    let mut house = House { hooks: None, people: None };
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
    let end = async {
        tokio::select! {
            () = told => {}
            // One channel gone: the supervisor is.
            _ = carriers.join_next() => {}
        }
    };
    doors::open(listener, Rc::new(house), end).await;
    Ok(())
}

impl Desk for House {
    async fn answer(&self, request: Request<Incoming>, from: IpAddr) -> Response<Content> {
        self.handle(request, from).await.unwrap_or_else(Response::from)
    }
}

impl House {
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
