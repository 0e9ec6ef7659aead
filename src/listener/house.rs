//! Who answers what: the routes that this listener serves, each at its channel.

use std::{
    cell::RefCell,
    io,
    net::IpAddr,
    os::fd::RawFd,
    rc::Rc,
    time::{Duration, Instant},
};

use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    header::{CONNECTION, FORWARDED, HeaderName},
};
use ipnet::IpNet;
use tokio::{net::TcpListener, task::JoinSet, time::sleep};

use super::{
    answer::{Content, Problem},
    api::{People, found_text},
    body::Cellar,
    doors::{self, Desk},
    guests::{Guest, Guests, seats},
    hooks::Hooks,
    link::Link,
    metrics::Numbers,
    openapi,
    request::only,
    routes::Route,
    signals::told_to_end,
    tls::Tls,
};
use crate::{
    domain::access::{Debts, client, is_among},
    os::{
        inherited::inherited,
        memory,
        sandbox::{self, Calls, Keeps},
    },
};

/// The listening socket.
const SOCKET: RawFd = 3;
/// Requests that an address may have refused at once, and how soon it may have one more.
const REFUSED: (u32, Duration) = (100, Duration::from_secs(1));
/// Whoever is refused more often waits so long for each answer.
const SLOWED: Duration = Duration::from_millis(250);

/// What a listener is asked to serve, and for whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Served {
    hooks: bool,
    api: bool,
    metrics: bool,
    /// Proxies whose word counts on whom they ask for.
    trusted: Vec<IpNet>,
    /// Who may ask; `None`: everybody.
    allow: Option<Vec<IpNet>>,
    tls: bool,
}

impl Served {
    /// Reads `--serve hooks,api,metrics [--trust NET,…] [--allow NET,…] [--tls]`.
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
                            "metrics" => served.metrics = true,
                            _ => return None,
                        }
                    }
                }
                "--trust" => served.trusted = networks(list)?,
                "--allow" => served.allow = Some(networks(list)?),
                _ => return None,
            }
        }
        (served.hooks || served.api || served.metrics).then_some(served)
    }
}

fn networks(list: &str) -> Option<Vec<IpNet>> {
    list.split(',').filter(|one| !one.is_empty()).map(|one| one.parse().ok()).collect()
}

struct House {
    hooks: Option<Hooks>,
    people: Option<People>,
    numbers: Option<Numbers>,
    trusted: Vec<IpNet>,
    allow: Option<Vec<IpNet>>,
    /// Of whoever cannot prove a delivery, or asks for what is not there.
    refused: RefCell<Debts>,
}

/// Serves until the supervisor is gone or says so.
pub(super) async fn open(served: Served) -> io::Result<()> {
    let seats = seats()?;
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
    let refused = RefCell::new(Debts::new(REFUSED.0, REFUSED.1));
    let (trusted, allow) = (served.trusted, served.allow);
    let mut house = House { hooks: None, people: None, numbers: None, trusted, allow, refused };
    let mut carriers = JoinSet::new();
    if served.hooks {
        let (link, carry) = Link::new(channel()?)?;
        carriers.spawn_local(carry);
        house.hooks = Some(Hooks { link, cellar: Cellar::new() });
    }
    if served.api {
        let (link, carry) = Link::new(channel()?)?;
        carriers.spawn_local(carry);
        house.people = Some(People::new(link));
    }
    if served.metrics {
        let (link, carry) = Link::new(channel()?)?;
        carriers.spawn_local(carry);
        house.numbers = Some(Numbers { link });
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
    let guests = Guests::new(house.trusted.clone(), seats);
    // What the kernel says of each descriptor at first has us run once more; after that we rest until somebody comes.
    tokio::task::yield_now().await;
    memory::give_back_at_rest();
    doors::open(listener, guests, tls, Rc::new(house), end).await;
    Ok(())
}

impl Desk for House {
    async fn answer(&self, request: Box<Request<Incoming>>, guest: &Guest) -> Response<Content> {
        let client = self.client(request.headers(), guest.address());
        // Whom its proxies do not tell apart shares the proxy's address, and no right of it.
        let from = client.unwrap_or_else(|| guest.address());
        if self.allow.as_ref().is_some_and(|allow| client.is_none_or(|client| !is_among(client, allow))) {
            let detail = match client {
                Some(_) => format!("nothing is answered to {from}: `allow` of this listener names others"),
                None => {
                    "nothing is answered: `allow` names who is, and the proxies do not say for sure who asks".into()
                }
            };
            return Problem::new(StatusCode::FORBIDDEN, detail).hang_up().into();
        }
        let route = Route::find(request.uri().path());
        let of_hooks = self.hooks.is_some() && matches!(route, None | Some(Route::Hook(_)));
        let response = self.handle(route, request, from, guest).await.unwrap_or_else(Response::from);
        if of_hooks && is_refusal(response.status()) { self.slow_down(response, from).await } else { response }
    }
}

/// Nothing was proven, nor anything asked that has an answer.
fn is_refusal(status: StatusCode) -> bool {
    use StatusCode as S;
    [S::UNAUTHORIZED, S::NOT_FOUND, S::METHOD_NOT_ALLOWED, S::LENGTH_REQUIRED, S::PAYLOAD_TOO_LARGE].contains(&status)
        || [S::UNSUPPORTED_MEDIA_TYPE, S::REQUEST_TIMEOUT].contains(&status)
}

fn not_here() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "nothing is served under this path")
}

impl House {
    /// Who asks, where a proxy may stand between; `None` where one does and does not say so for sure.
    fn client(&self, headers: &HeaderMap, peer: IpAddr) -> Option<IpAddr> {
        // A header that is no text ends what can be believed, as an address that is none.
        let values = |name: HeaderName| headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
        client(peer, values(HeaderName::from_static("x-forwarded-for")), values(FORWARDED), &self.trusted)
    }

    /// An address that is refused too often is answered late, and told to come later. Only what proves nothing is
    /// counted, and everything is looked at first: whoever sends what is genuine from behind the same address is
    /// not kept waiting.
    async fn slow_down(&self, response: Response<Content>, from: IpAddr) -> Response<Content> {
        let now = Instant::now();
        let wait = self.refused.borrow().wait(from, now);
        let Some(wait) = wait else {
            self.refused.borrow_mut().add(from, now);
            return response;
        };
        sleep(SLOWED).await;
        let seconds = u32::try_from(wait.as_secs() + 1).unwrap_or(u32::MAX);
        let problem = Problem::too_many("too many requests of this address were refused", seconds);
        let hangs_up = response.headers().contains_key(CONNECTION);
        if hangs_up { problem.hang_up().into() } else { problem.into() }
    }

    async fn handle(
        &self,
        route: Option<Route>,
        request: Box<Request<Incoming>>,
        from: IpAddr,
        guest: &Guest,
    ) -> Result<Response<Content>, Problem> {
        let route = route.ok_or_else(not_here)?;
        let served = match &route {
            Route::Hook(_) => self.hooks.is_some(),
            Route::Health => true,
            Route::Metrics => self.numbers.is_some(),
            _ => self.people.is_some(),
        };
        if !served {
            return Err(not_here());
        }
        only(request.method(), route.methods())?;
        match (route, &self.hooks) {
            (Route::Hook(app), Some(hooks)) => hooks.deliver(app, *request, from, guest).await,
            // Larger, and so not within what every delivery needs.
            (route, _) => Box::pin(self.show(route, *request, from)).await,
        }
    }

    /// Answers whatever is no delivery.
    async fn show(&self, route: Route, request: Request<Incoming>, from: IpAddr) -> Result<Response<Content>, Problem> {
        if let (Route::Metrics, Some(numbers)) = (&route, &self.numbers) {
            return numbers.show(request.headers(), from).await;
        }
        match (route, &self.hooks, &self.people) {
            (Route::Health, Some(hooks), _) => hooks.health().await,
            (Route::Health, None, Some(people)) => people.health(from).await,
            (Route::Health, None, None) => match &self.numbers {
                Some(numbers) => numbers.health(from).await,
                None => Err(not_here()),
            },
            (Route::OpenApi, _, Some(_)) => Ok(found_text(request.headers(), openapi::DOCUMENT.into())),
            (Route::Hook(_), ..) | (_, _, None) => Err(not_here()),
            (Route::Change(app, action), _, Some(people)) => people.change(&app, action, request, from).await,
            (Route::Judge(id, sentence), _, Some(people)) => people.judge(&id, sentence, request, from).await,
            (Route::Redeliver(id), _, Some(people)) => people.redeliver(&id, request, from).await,
            (Route::Events, _, Some(people)) => people.events(&request, from).await,
            (Route::Logs(of), _, Some(people)) => people.logs(&of, &request, from).await,
            (route, _, Some(people)) => people.show(&route, &request, from).await,
        }
    }
}
