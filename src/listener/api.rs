//! People's requests: `/api/v1` becomes a question that carries the token, the supervisor's answer
//! becomes the JSON of SURFACE.md section 4. Who may do what is judged over there.

use std::{net::IpAddr, time::Duration};

use http_body_util::{BodyExt, Limited};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CACHE_CONTROL, ETAG, HeaderValue, IF_NONE_MATCH, LINK},
};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::{
    answer::{Content, Problem, json, json_text, ready_json, reply},
    lasting::Lasting,
    link::{Following, Link},
    request::{JSON, parameter, refuse_encoding, refuse_type, token},
    routes::{Action, Route, Sentence},
};
use crate::domain::{
    api::{
        self, Ask, ChangedView, DeployBody, FreezeBody, NoBody, Refusal, RefusalKind, RollbackBody, Said, Saying,
        Target,
    },
    model::{AppName, Bearer, DeployId, parse_span},
};

/// How long the supervisor may take for what is done at once.
pub(super) const LIMIT: Duration = Duration::from_secs(9);
/// The longest `?wait=`.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// How long a look may take that fetches first, unless `?wait=` says otherwise.
const LOOK_TIME: Duration = Duration::from_secs(60);
/// Bytes of a body; it holds one field.
const BODY: usize = 16 * 1024;
/// How long a body may take to come.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Rows of a list, unless `?n=` says otherwise, and at most.
const ROWS: (u32, u32) = (20, 1000);

/// The people channel.
pub(super) struct People {
    pub link: Link<Ask, Said>,
    pub lasting: Lasting,
}

impl People {
    pub(super) fn new(link: Link<Ask, Said>) -> Self {
        Self { link, lasting: Lasting::default() }
    }

    /// Changes an app. 202 when it is begun; with `?wait=`, 200 when it is so.
    pub(super) async fn change(
        &self,
        app: &str,
        action: Action,
        request: Request<Incoming>,
        from: IpAddr,
    ) -> Result<Response<Content>, Problem> {
        let (token, wait) = orders(&request)?;
        let app = known(app)?;
        let apps = vec![Target::App(app.clone())];
        let question = match action {
            Action::Restart => body(request).await.map(|NoBody {}| api::Request::Restart { apps })?,
            Action::Start => body(request).await.map(|NoBody {}| api::Request::Start { apps })?,
            // Whoever writes a program that stops an app knows whom it hurts.
            Action::Stop => body(request).await.map(|NoBody {}| api::Request::Stop { apps, confirmed: true })?,
            Action::Deploy => {
                let DeployBody { rev, dry_run } = body(request).await?;
                api::Request::DeployApp { app: app.clone(), rev, dry_run }
            }
            Action::Rollback => {
                let RollbackBody { to, dry_run } = body(request).await?;
                api::Request::Rollback { app: app.clone(), to, dry_run }
            }
            Action::Freeze => {
                let FreezeBody { why } = body(request).await?;
                api::Request::Freeze { app: app.clone(), why }
            }
            Action::Unfreeze => body(request).await.map(|NoBody {}| api::Request::Unfreeze { app: app.clone() })?,
        };
        let patience = if question.changes() { wait } else { wait.or(Some(LOOK_TIME)) };
        let reply = self.ask(token, from, patience, question).await?;
        if let api::Reply::Preview(preview) = reply {
            return Ok(json(StatusCode::OK, &preview));
        }
        let (_, deploy) = about(reply);
        Ok(begun(wait, &ChangedView { action: action.name(), app: Some(app), deploy }))
    }

    /// Says what is to become of a deploy. 202 when it is begun; with `?wait=`, 200 when it is so.
    pub(super) async fn judge(
        &self,
        id: &str,
        sentence: Sentence,
        request: Request<Incoming>,
        from: IpAddr,
    ) -> Result<Response<Content>, Problem> {
        let (token, wait) = orders(&request)?;
        let id = number(id, "deploys")?;
        let NoBody {} = body(request).await?;
        let (action, question) = match sentence {
            Sentence::Cancel => ("cancel", api::Request::Cancel { id }),
            Sentence::Approve => ("approve", api::Request::Approve { id }),
        };
        let (app, deploy) = about(self.ask(token, from, wait, question).await?);
        Ok(begun(wait, &ChangedView { action, app, deploy }))
    }

    /// Has a delivery judged anew: 202 where something is deployed, 200 where it repeats what was.
    pub(super) async fn redeliver(
        &self,
        id: &str,
        request: Request<Incoming>,
        from: IpAddr,
    ) -> Result<Response<Content>, Problem> {
        let token = token(request.headers())?;
        let id = number(id, "deliveries")?;
        let NoBody {} = body(request).await?;
        match self.ask(token, from, None, api::Request::Redeliver { id }).await? {
            api::Reply::Redelivered(told) => {
                let status = if told.deploys.is_empty() { StatusCode::OK } else { StatusCode::ACCEPTED };
                Ok(json(status, &told))
            }
            _ => Err(strange()),
        }
    }

    /// Shows what a `GET` route is about.
    pub(super) async fn show(
        &self,
        route: &Route,
        request: &Request<Incoming>,
        from: IpAddr,
    ) -> Result<Response<Content>, Problem> {
        let token = token(request.headers())?;
        let question = question(route, request.uri().query())?;
        let reply = self.ask(token, from, None, question).await?;
        let (headers, query) = (request.headers(), request.uri().query());
        Ok(match reply {
            api::Reply::Status(status) if matches!(route, Route::App(_)) => {
                let app = status.apps.into_iter().next().ok_or_else(strange)?;
                found(headers, &app)
            }
            api::Reply::Status(status) => found(headers, &status),
            api::Reply::Deploys(deploys) => {
                let ids = deploys.iter().map(|deploy| deploy.id);
                paged(found(headers, &deploys), request.uri().path(), query, ids)
            }
            api::Reply::Deploy { deploy, .. } => found(headers, &deploy),
            api::Reply::Deliveries(deliveries) => {
                let ids = deliveries.iter().map(|delivery| delivery.id);
                paged(found(headers, &deliveries), request.uri().path(), query, ids)
            }
            api::Reply::Delivery(delivery) => found(headers, &delivery),
            _ => return Err(strange()),
        })
    }

    /// Any answer shows that the supervisor answers; without a token it tells nothing.
    pub(super) async fn health(&self, from: IpAddr) -> Result<Response<Content>, Problem> {
        let ask = ask(None, from, None, api::Request::Status { apps: Vec::new() });
        self.link.ask(ask, Following::default(), None, LIMIT).await?;
        Ok(reply(StatusCode::OK, "text/plain", "ok"))
    }

    pub(super) async fn ask(
        &self,
        token: String,
        from: IpAddr,
        wait: Option<Duration>,
        request: api::Request,
    ) -> Result<api::Reply, Problem> {
        let _place = wait.map(|_| self.lasting.take(&token)).transpose()?;
        let limit = LIMIT + wait.unwrap_or_default();
        let said = self.link.ask(ask(Some(token), from, wait, request), Following::default(), None, limit).await?;
        match said.what {
            Saying::Done(reply) => Ok(reply),
            Saying::Refused(refusal) => Err(refused(refusal)),
            Saying::Progress(_) | Saying::Event(_) => Err(Problem::unavailable("the supervisor broke off")),
        }
    }
}

/// Who orders a change, and how long they wait for it.
fn orders(request: &Request<Incoming>) -> Result<(String, Option<Duration>), Problem> {
    Ok((token(request.headers())?, wait(request.uri().query())?))
}

/// The answer to an order: begun, or done where somebody waited for that.
fn begun(wait: Option<Duration>, what: &ChangedView) -> Response<Content> {
    json(if wait.is_some() { StatusCode::OK } else { StatusCode::ACCEPTED }, what)
}

/// The app and the deploy that a change was about.
fn about(reply: api::Reply) -> (Option<AppName>, Option<DeployId>) {
    if let api::Reply::Changed { app, deploy, .. } = reply { (app, deploy) } else { (None, None) }
}

pub(super) fn strange() -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the supervisor answered something else")
}

pub(super) fn ask(
    token: Option<String>,
    from: IpAddr,
    wait: Option<Duration>,
    request: api::Request,
) -> impl FnOnce(u64) -> Ask {
    let token = token.map(Bearer::new);
    move |ticket| Ask { ticket, token, address: Some(from.to_string()), wait: wait.is_some(), timeout: wait, request }
}

fn question(route: &Route, query: Option<&str>) -> Result<api::Request, Problem> {
    let app = || match parameter::<String>(query, "app", "name of an app")? {
        Some(name) => known(&name).map(Some),
        None => Ok(None),
    };
    let (n, before) = (|| rows(query), || before(query));
    Ok(match route {
        Route::Deploys => api::Request::History { app: app()?, n: n()?, before: before()? },
        Route::Deliveries => api::Request::Deliveries { app: app()?, n: n()?, before: before()? },
        Route::Deploy(id) => api::Request::Deploy { id: number(id, "deploys")? },
        Route::Delivery(id) => api::Request::Delivery { id: number(id, "deliveries")? },
        Route::App(app) => api::Request::Status { apps: vec![Target::App(known(app)?)] },
        _ => api::Request::Status { apps: app()?.map(Target::App).into_iter().collect() },
    })
}

/// The number before which a page ends.
pub(super) fn before(query: Option<&str>) -> Result<Option<i64>, Problem> {
    let number = parameter::<u64>(query, "before", "number")?.map(i64::try_from).transpose();
    number.map_err(|_| Problem::bad_request("`before` in the query is larger than any number here"))
}

/// Rows that are wanted of a list.
pub(super) fn rows(query: Option<&str>) -> Result<u32, Problem> {
    Ok(parameter::<u32>(query, "n", "number")?.unwrap_or(ROWS.0).min(ROWS.1))
}

/// What was asked for, or that it is what the client has already (RFC 9110 section 13.1.2).
pub(super) fn found(headers: &HeaderMap, value: &impl Serialize) -> Response<Content> {
    found_text(headers, json_text(value).into())
}

/// The same of JSON that is there already.
pub(super) fn found_text(headers: &HeaderMap, body: Bytes) -> Response<Content> {
    let tag = format!(
        "\"{}\"",
        Sha256::digest(&body)[..12].iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    );
    let fits =
        |list: &str| list.split(',').map(|one| one.trim().trim_start_matches("W/")).any(|one| one == tag || one == "*");
    let mut response = if headers.get_all(IF_NONE_MATCH).iter().any(|list| list.to_str().is_ok_and(fits)) {
        let mut response = Response::new(Content::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        ready_json(StatusCode::OK, body)
    };
    let headers = response.headers_mut();
    headers.insert(ETAG, HeaderValue::from_str(&tag).expect("hexadecimal digits in quotes"));
    // To be kept, and asked after each time.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    response
}

/// Names the page before this one (RFC 8288), where there may be one; numbers come newest first.
pub(super) fn paged(
    mut response: Response<Content>,
    path: &str,
    query: Option<&str>,
    ids: impl ExactSizeIterator<Item = i64>,
) -> Response<Content> {
    let full = rows(query).is_ok_and(|n| n as usize == ids.len());
    let Some(oldest) = ids.min().filter(|oldest| full && *oldest > 1) else { return response };
    let rest = query.unwrap_or_default().split('&').filter(|one| !one.is_empty() && !one.starts_with("before="));
    let query = rest.map(str::to_owned).chain([format!("before={oldest}")]).collect::<Vec<_>>().join("&");
    if let Ok(link) = HeaderValue::from_str(&format!("<{path}?{query}>; rel=\"next\"")) {
        response.headers_mut().insert(LINK, link);
    }
    response
}

/// A name that cannot be an app's is of none that there is.
pub(super) fn known(name: &str) -> Result<AppName, Problem> {
    name.parse().map_err(|_| Problem::new(StatusCode::NOT_FOUND, "no app has a name like this"))
}

fn number(id: &str, what: &str) -> Result<i64, Problem> {
    let number = id.parse().ok().filter(|n| *n > 0);
    number.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("{what} are numbered from 1")))
}

fn wait(query: Option<&str>) -> Result<Option<Duration>, Problem> {
    let Some(text) = parameter::<String>(query, "wait", "length of time")? else { return Ok(None) };
    let wait = parse_span(&text).map_err(|e| Problem::bad_request(format!("`wait` in the query: {e}")))?;
    if wait > LONGEST_WAIT {
        return Err(Problem::bad_request("`wait` in the query is longer than 10m"));
    }
    Ok(Some(wait))
}

/// The body: nothing, or JSON of one known field.
async fn body<T: DeserializeOwned + Default>(request: Request<Incoming>) -> Result<T, Problem> {
    refuse_encoding(request.headers())?;
    let (head, body) = request.into_parts();
    let too_large = || {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("no body may be larger than {} KiB here", BODY / 1024))
            .hang_up()
    };
    if hyper::body::Body::size_hint(&body).lower() > BODY as u64 {
        return Err(too_large());
    }
    let whole = timeout(BODY_TIME, Limited::new(body, BODY).collect())
        .await
        .map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time").hang_up())?;
    let bytes = match whole {
        Ok(whole) => whole.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => return Err(too_large()),
        Err(_) => return Err(Problem::bad_request("the body broke off").hang_up()),
    };
    if bytes.is_empty() {
        return Ok(T::default());
    }
    refuse_type(&head.headers, &[JSON])?;
    // Fields have names: a list of their values is taken for them otherwise.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Problem::bad_request("the body is no JSON object"));
    }
    serde_json::from_slice(&bytes).map_err(|e| Problem::bad_request(format!("the body is not understood: {e}")))
}

pub(super) fn refused(refusal: Refusal) -> Problem {
    let Refusal { kind, message } = refusal;
    let status = match kind {
        RefusalKind::Unknown => return Problem::unauthorized(message),
        RefusalKind::TooMany { wait_s } => return Problem::too_many(message, wait_s),
        RefusalKind::Unavailable => return Problem::unavailable(message),
        RefusalKind::Forbidden => StatusCode::FORBIDDEN,
        RefusalKind::NotFound => StatusCode::NOT_FOUND,
        RefusalKind::BadRequest => StatusCode::BAD_REQUEST,
        RefusalKind::Failed | RefusalKind::NeedsConfirmation | RefusalKind::TimedOut => StatusCode::CONFLICT,
    };
    Problem::new(status, message)
}
