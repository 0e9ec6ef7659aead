//! Deliveries: what a forge sends goes to the ledger unjudged, and its answer back.

use std::{net::IpAddr, time::Duration};

use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    header::{HeaderValue, RETRY_AFTER},
};

use super::{
    answer::{Content, Problem, ready_json, reply},
    body::Cellar,
    guests::Guest,
    link::{Following, Link},
    request::{FORM, JSON, announced, refuse_encoding, refuse_type},
};
use crate::domain::api::{Answer, FromHooks, RawDelivery};

/// Forges give up after 10 s.
const LIMIT: Duration = Duration::from_secs(9);

/// Headers that no dialect looks at, and that may tell of somebody's session. Of the others each may
/// be the one that the config names.
const WITHHELD: [&str; 2] = ["cookie", "proxy-authorization"];

/// The hooks channel, and room for the bodies.
pub(super) struct Hooks {
    pub link: Link<FromHooks, Answer>,
    pub cellar: Cellar,
}

impl Hooks {
    /// What comes of a delivery. Of its head nothing is kept but what goes on.
    pub(super) fn deliver(
        &self,
        app: Option<String>,
        request: Request<Incoming>,
        from: IpAddr,
        guest: &Guest,
    ) -> impl Future<Output = Result<Response<Content>, Problem>> {
        let (head, body) = request.into_parts();
        let head = looked_at(&head.headers);
        async move {
            let (announced, lines) = head?;
            let whole = self.cellar.take(body, announced, guest).await?;
            let (fd, memfd) = whole.memfd.map(|(fd, length)| (Some(fd), Some(length))).unwrap_or_default();
            let (headers, address) = (lines.len(), from.to_string());
            let delivery = |ticket| FromHooks::Delivery(RawDelivery { ticket, app, headers, address, memfd });
            let answer = self.link.ask(delivery, (lines, whole.bytes), fd, LIMIT).await?;
            Ok(spoken(answer))
        }
    }

    pub(super) async fn health(&self) -> Result<Response<Content>, Problem> {
        let answer = self.link.ask(|ticket| FromHooks::Health { ticket }, Following::default(), None, LIMIT).await?;
        match answer.status {
            200 => Ok(reply(StatusCode::OK, "text/plain", answer.body)),
            _ => Ok(spoken(answer)),
        }
    }
}

/// The length that the body announces, and the headers that go on.
///
/// # Errors
/// When there is no use for the body.
fn looked_at(headers: &HeaderMap) -> Result<(Option<usize>, String), Problem> {
    refuse_encoding(headers)?;
    refuse_type(headers, &[JSON, FORM])?;
    Ok((announced(headers)?, forwarded(headers)))
}

/// A line each. Names come in lower case from hyper, and values without line ends. One that is no UTF-8 can be none
/// that a dialect knows.
fn forwarded(headers: &HeaderMap) -> String {
    let mut lines = String::with_capacity(512);
    for (name, value) in headers.iter().filter(|(name, _)| !WITHHELD.contains(&name.as_str())) {
        if let Ok(value) = std::str::from_utf8(value.as_bytes()) {
            lines.extend([name.as_str(), ": ", value, "\n"]);
        }
    }
    lines
}

fn spoken(answer: Answer) -> Response<Content> {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = ready_json(status, answer.body);
    if let Some(seconds) = answer.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dialect_may_look_at_goes_on() {
        let mut headers = HeaderMap::new();
        headers.insert("cookie", HeaderValue::from_static("private"));
        headers.insert("proxy-authorization", HeaderValue::from_static("Bearer private"));
        headers.insert("x-github-event", HeaderValue::from_static("push"));
        headers.append("x-gitlab-token", HeaderValue::from_bytes("Ü".as_bytes()).unwrap());
        headers.append("x-gitlab-token", HeaderValue::from_bytes(b"\xff").unwrap());
        let sent = forwarded(&headers);
        let mut sent: Vec<&str> = sent.lines().collect();
        sent.sort_unstable();
        assert_eq!(sent, ["x-github-event: push", "x-gitlab-token: Ü"]);
    }
}
