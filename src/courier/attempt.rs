//! One attempt to deliver: a connection, a request, an answer, all within a time limit.

use std::{
    cell::OnceCell,
    error::Error,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper::body::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::time::timeout;

use super::{answer, forge};
use crate::domain::{
    api::{Outcome, Post},
    model::Secret,
};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(30);
/// Of an answer, in bytes.
const LONGEST_ANSWER: usize = 64 * 1024;

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Connections are used again as long as the process lives.
#[derive(Default)]
pub(super) struct Clients {
    /// For an API on this machine: the system's roots need not be there.
    plain: OnceCell<HttpClient>,
    tls: OnceCell<HttpClient>,
}

impl Clients {
    /// Tries once to deliver.
    pub(super) async fn attempt(&self, post: &Post, token: &Secret) -> Outcome {
        let outcome = match timeout(LIMIT, self.exchange(post, token)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(why)) => Outcome::Later { why, after_s: None },
            Err(_) => {
                let why = format!("{} gave no answer in {} s", post.api, LIMIT.as_secs());
                Outcome::Later { why, after_s: None }
            }
        };
        redacted(outcome, token)
    }

    async fn exchange(&self, post: &Post, token: &Secret) -> Result<Outcome, String> {
        let request = forge::request(post, token)?;
        let client = self.client(post.api.starts_with("https://"))?;
        let failed = |error: &dyn Error| format!("{} could not be told: {}", post.api, chain(error));
        let answer = client.request(request).await.map_err(|error| failed(&error))?;
        let (head, body) = answer.into_parts();
        // Its words are for people; the status is enough.
        let body = Limited::new(body, LONGEST_ANSWER).collect().await.map(Collected::to_bytes).unwrap_or_default();
        let body = without(token, &String::from_utf8_lossy(&body));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok(answer::judge(
            post,
            head.status.as_u16(),
            &head.headers,
            body.as_bytes(),
            i64::try_from(now).unwrap_or(i64::MAX),
        ))
    }

    fn client(&self, tls: bool) -> Result<&HttpClient, String> {
        let cell = if tls { &self.tls } else { &self.plain };
        if let Some(client) = cell.get() {
            return Ok(client);
        }
        let provider = ring::default_provider();
        let builder = HttpsConnectorBuilder::new();
        let builder = if tls {
            let with_roots = builder.with_provider_and_native_roots(provider);
            with_roots
                .map_err(|error| format!("no certificate authorities to trust ({error}): install ca-certificates"))?
        } else {
            let config = ClientConfig::builder_with_provider(provider.into()).with_safe_default_protocol_versions();
            let config = config.map_err(|error| error.to_string())?;
            builder.with_tls_config(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
        };
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_LIMIT));
        connector.enforce_http(false);
        let connector = builder.https_or_http().enable_http1().wrap_connector(connector);
        Ok(cell.get_or_init(|| Client::builder(TokioExecutor::new()).build(connector)))
    }
}

/// An error with what it is due to.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

fn without(token: &Secret, text: &str) -> String {
    let secret = String::from_utf8_lossy(token.expose());
    if secret.is_empty() { text.to_owned() } else { text.replace(secret.as_ref(), "…") }
}

/// Whoever answers may say our own token back to us.
fn redacted(outcome: Outcome, token: &Secret) -> Outcome {
    let clean = |why: String| without(token, &why);
    match outcome {
        Outcome::Delivered => Outcome::Delivered,
        Outcome::Later { why, after_s } => Outcome::Later { why: clean(why), after_s },
        Outcome::Refused { why } => Outcome::Refused { why: clean(why) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_of_the_token_is_taken_out() {
        let token = Secret::new(b"t0ken".to_vec());
        let refused = Outcome::Refused { why: "GitHub answered 400: no token 't0ken'".to_owned() };
        let Outcome::Refused { why } = redacted(refused, &token) else { unreachable!() };
        assert_eq!(why, "GitHub answered 400: no token '…'");
        let nothing = redacted(Outcome::Refused { why: "x".to_owned() }, &Secret::new(Vec::new()));
        assert_eq!(nothing, Outcome::Refused { why: "x".to_owned() });
    }
}
