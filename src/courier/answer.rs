//! What a forge's answer means.

use hyper::{
    HeaderMap,
    header::{DATE, HeaderValue, LOCATION, RETRY_AFTER},
};
use serde_json::Value;

use crate::domain::{
    api::{Outcome, Post},
    config::Forge,
};

/// Of what a forge says, in characters.
const LONGEST: usize = 300;
/// GitHub asks for a minute of patience where it names none.
const A_MINUTE: u64 = 60;

/// Judges an answer; `now`: seconds since 1970, for answers that do not say when they were given.
pub(super) fn judge(post: &Post, status: u16, headers: &HeaderMap, body: &[u8], now: i64) -> Outcome {
    let said = said(body);
    let why = |what: &str| {
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        format!("{} answered {status} for {}{said}{what}", post.forge.name(), post.project)
    };
    let limited = is_limited(headers);
    match status {
        200..=299 => Outcome::Delivered,
        // It stands there already, or something that comes later.
        400 if post.forge == Forge::GitLab && said.contains("Cannot transition status") => Outcome::Delivered,
        429 => Outcome::Later { why: why(""), after_s: after(headers, now).or(Some(A_MINUTE)) },
        403 if limited => Outcome::Later { why: why(""), after_s: after(headers, now).or(Some(A_MINUTE)) },
        408 | 409 | 425 | 500.. => Outcome::Later { why: why(""), after_s: after(headers, now) },
        300..=399 => {
            let to = headers.get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or("somewhere else");
            Outcome::Refused { why: why(&format!(" (it is at {to} now: change `repo`, or `api` of `status`)")) }
        }
        401 => Outcome::Refused { why: why(" (the token is mistyped, revoked or has expired)") },
        403 => Outcome::Refused { why: why(right(post.forge)) },
        404 => Outcome::Refused { why: why(" (no such repository or commit, or the token may not see it)") },
        _ => Outcome::Refused { why: why("") },
    }
}

/// What the token lacks.
fn right(forge: Forge) -> &'static str {
    match forge {
        Forge::GitHub => " (the token needs the right \"Commit statuses: write\", or the scope repo:status)",
        Forge::GitLab => " (the token needs the scope api and the role Developer)",
        Forge::Gitea => " (the token needs the scope write:repository)",
    }
}

/// GitHub says so with 403 too.
fn is_limited(headers: &HeaderMap) -> bool {
    headers.contains_key(RETRY_AFTER) || number(headers.get("x-ratelimit-remaining")) == Some(0)
}

/// Seconds until it is worth another attempt, as the forge says. Its own clock counts, not ours.
fn after(headers: &HeaderMap, now: i64) -> Option<u64> {
    let now = headers.get(DATE).and_then(moment).unwrap_or(now);
    let until = |at: i64| u64::try_from(at - now).unwrap_or(0);
    let asked = headers.get(RETRY_AFTER);
    let asked = number(asked).or_else(|| asked.and_then(moment).map(until));
    asked.or_else(|| {
        let reset = number(headers.get("x-ratelimit-reset")).filter(|_| is_limited(headers))?;
        Some(until(i64::try_from(reset).ok()?))
    })
}

fn number(value: Option<&HeaderValue>) -> Option<u64> {
    value?.to_str().ok()?.trim().parse().ok()
}

/// A date of HTTP, in seconds since 1970.
fn moment(value: &HeaderValue) -> Option<i64> {
    let parsed = jiff::fmt::rfc2822::parse(value.to_str().ok()?).ok()?;
    Some(parsed.timestamp().as_second())
}

/// The forge's own words, one line: of its JSON the message alone.
fn said(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(object)) => match object.get("message").or_else(|| object.get("error")) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        },
        _ => String::from_utf8_lossy(body).into_owned(),
    };
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ").chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::forge::tests::post, *};

    /// 2026-03-28T12:00:00Z.
    const NOW: i64 = 1_774_699_200;

    fn judged(forge: Forge, status: u16, headers: &[(&'static str, &str)], body: &str) -> Outcome {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        judge(&post(forge, "https://h", "a/b"), status, &headers, body.as_bytes(), NOW)
    }

    fn wait(forge: Forge, status: u16, headers: &[(&'static str, &str)]) -> Option<u64> {
        match judged(forge, status, headers, "") {
            Outcome::Later { after_s, .. } => after_s,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(forge: Forge, status: u16, body: &str) -> String {
        match judged(forge, status, &[("location", "https://h/c")], body) {
            Outcome::Refused { why } => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_forge_that_is_busy_is_asked_again_when_it_says() {
        use Forge::{GitHub, GitLab};
        assert_eq!(wait(GitHub, 503, &[("retry-after", "120")]), Some(120));
        assert_eq!(wait(GitHub, 503, &[("retry-after", "Sat, 28 Mar 2026 12:00:30 GMT")]), Some(30));
        assert_eq!(wait(GitHub, 503, &[("retry-after", "Sat, 28 Mar 2026 11:00:00 GMT")]), Some(0));
        assert_eq!(wait(GitLab, 429, &[]), Some(60));
        for status in [408, 409, 425, 500, 502, 504, 599] {
            assert_eq!(wait(GitLab, status, &[]), None, "{status}");
        }
        let limit = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1774699260")];
        assert_eq!(wait(GitHub, 403, &limit), Some(60));
        // By a clock that is an hour ahead of ours.
        let ahead = [&limit[..], &[("date", "Sat, 28 Mar 2026 12:00:50 GMT")]].concat();
        assert_eq!(wait(GitHub, 403, &ahead), Some(10));
        assert_eq!(wait(GitHub, 403, &[("retry-after", "7")]), Some(7));
    }

    #[test]
    fn what_is_refused_is_told_with_the_forges_words_and_the_fix() {
        let why = refusal(Forge::GitHub, 401, r#"{"message": "Bad credentials", "documentation_url": "x"}"#);
        assert!(why.starts_with("GitHub answered 401 for a/b: Bad credentials (the token is"), "{why}");
        assert!(refusal(Forge::GitLab, 403, r#"{"message":"403 Forbidden"}"#).contains("scope api"));
        assert!(refusal(Forge::Gitea, 404, "<html>\n no </html>").contains("<html> no </html> (no such repository"));
        assert!(refusal(Forge::GitHub, 301, "").contains("https://h/c"));
        assert!(refusal(Forge::GitLab, 400, r#"{"message":{"state":["is bad"]}}"#).contains(r#"{"state":["is bad"]}"#));
        assert!(refusal(Forge::GitHub, 422, &"x".repeat(70_000)).len() < 400);
    }

    #[test]
    fn gitlab_has_it_already_when_it_cannot_go_there() {
        let body = r#"{"message": "Cannot transition status via :run from :running (Reason(s): …)"}"#;
        assert_eq!(judged(Forge::GitLab, 400, &[], body), Outcome::Delivered);
        assert!(matches!(judged(Forge::GitHub, 400, &[], body), Outcome::Refused { .. }));
        assert_eq!(judged(Forge::GitHub, 201, &[], "{}"), Outcome::Delivered);
    }
}
