//! Deliveries: what a forge sends goes to the ledger unjudged, and its answer back.

use std::{net::IpAddr, time::Duration};

use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{HeaderValue, RETRY_AFTER},
};

use super::{
    answer::{Content, Problem, ready_json, reply},
    body::Cellar,
    guests::Guest,
    link::Link,
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
    pub(super) async fn deliver(
        &self,
        app: Option<String>,
        request: Request<Incoming>,
        from: IpAddr,
        guest: &Guest,
    ) -> Result<Response<Content>, Problem> {
        let (head, body) = request.into_parts();
        refuse_encoding(&head.headers)?;
        refuse_type(&head.headers, &[JSON, FORM])?;
        let whole = self.cellar.take(body, announced(&head.headers)?, guest).await?;
        let headers = forwarded(&head.headers);
        let (fd, memfd) = whole.memfd.map(|(fd, length)| (Some(fd), Some(length))).unwrap_or_default();
        let delivery =
            |ticket| FromHooks::Delivery(RawDelivery { ticket, app, headers, address: from.to_string(), memfd });
        let answer = self.link.ask(delivery, whole.bytes, fd, LIMIT).await?;
        Ok(spoken(answer))
    }

    pub(super) async fn health(&self) -> Result<Response<Content>, Problem> {
        let answer = self.link.ask(|ticket| FromHooks::Health { ticket }, Bytes::new(), None, LIMIT).await?;
        match answer.status {
            200 => Ok(reply(StatusCode::OK, "text/plain", answer.body)),
            _ => Ok(spoken(answer)),
        }
    }
}

/// Names come in lower case from hyper. A value that is no UTF-8 can be none that a dialect knows.
fn forwarded(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| std::str::from_utf8(value.as_bytes()).ok().map(str::to_owned);
    headers
        .iter()
        .filter(|(name, _)| !WITHHELD.contains(&name.as_str()))
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), text(value)?)))
        .collect()
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
        let mut sent = forwarded(&headers);
        sent.sort();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(sent, [pair("x-github-event", "push"), pair("x-gitlab-token", "Ü")]);
    }
}
