//! What is read from the command line and shown in tables: targets, moments, lengths, sizes.

use std::{
    fmt::Display,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anstyle::Style;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::screen::{BAD, BUSY, GOOD};
use crate::domain::{
    api::{By, DeployState, DeployView, InstanceState, Target},
    model::{AppName, At, InstanceId, parse_span, show_span},
};

/// An app (`blog`) or an instance (`blog.2`).
pub fn target(text: &str) -> Result<Target, String> {
    if text.contains('.') {
        return InstanceId::from_str(text).map(Target::Instance).map_err(|_| {
            format!("{text:?} is neither an app nor an instance; an instance is an app's name and a number: blog.2")
        });
    }
    AppName::from_str(text).map(Target::App).map_err(|e| e.to_string())
}

/// The apps that were named; none with `--all`.
#[derive(Debug, clap::Args)]
pub struct Apps {
    /// Apps (blog) or instances (blog.2)
    #[arg(value_name = "APP", value_parser = target, required_unless_present = "all", conflicts_with = "all")]
    apps: Vec<Target>,
    /// Every app
    #[arg(long)]
    all: bool,
}

impl Apps {
    pub fn targets(&self) -> Vec<Target> {
        if self.all { vec![Target::All] } else { self.apps.clone() }
    }
}

/// The same where naming none means all.
#[derive(Debug, clap::Args)]
pub struct SomeApps {
    /// Apps (blog) or instances (blog.2); all when none is named
    #[arg(value_name = "APP", value_parser = target, conflicts_with = "all")]
    apps: Vec<Target>,
    /// Every app
    #[arg(long)]
    all: bool,
}

impl SomeApps {
    pub fn targets(&self) -> Vec<Target> {
        self.apps.clone()
    }
}

/// How a changing command waits.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Waiting {
    /// Return as soon as the change is begun
    #[arg(long)]
    pub no_wait: bool,
    /// Give up waiting after this long, such as 30s; the work goes on
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    pub timeout: Option<Duration>,
}

/// `[APP]`, or a word and a number: `show ID`. An app may be named `show`: only a number after it makes it
/// the word.
#[derive(Debug, clap::Args)]
pub struct AppOrOne {
    /// Of this app alone; or a word as above and a number
    #[arg(value_name = "APP", num_args = 0..=2)]
    words: Vec<String>,
}

/// What [`AppOrOne`] says.
pub enum Listed {
    All(Option<AppName>),
    /// The word, and the number of one.
    One(&'static str, i64),
}

impl AppOrOne {
    /// # Errors
    /// A sentence, when it is neither an app nor one of these words and a number.
    pub fn read(&self, known: &[&'static str]) -> Result<Listed, String> {
        match self.words.as_slice() {
            [] => Ok(Listed::All(None)),
            [app] => app.parse::<AppName>().map(|app| Listed::All(Some(app))).map_err(|e| e.to_string()),
            [first, second, ..] => match known.iter().find(|word| *word == first) {
                Some(word) => {
                    let id = second.parse().map_err(|_| format!("{second:?} is no number; expected `{word} ID`"))?;
                    Ok(Listed::One(word, id))
                }
                None => Err(format!("unexpected {second:?}; expected one app, or `{} ID`", known.join(" ID`, `"))),
            },
        }
    }
}

/// Reads a state of SURFACE.md section 3.
pub fn state_parser() -> impl TypedValueParser<Value = InstanceState> {
    let states =
        ["ready", "done", "stopped", "failed", "waiting", "starting", "stopping", "backoff", "draining", "deployed"];
    PossibleValuesParser::new(states).try_map(|text| text.parse::<InstanceState>())
}

/// A moment: RFC 3339, or how long ago (`1h`).
pub fn since(text: &str) -> Result<At, String> {
    if let Ok(at) = text.parse::<At>() {
        return Ok(at);
    }
    let bad = || format!("{text:?} is neither a moment (2026-11-25T04:15:39Z) nor a length of time (1h)");
    let back = parse_span(text).map_err(|_| bad())?;
    Ok(At(now().0 - i64::try_from(back.as_millis()).map_err(|_| bad())?))
}

pub fn now() -> At {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    At(i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX))
}

/// By the clock of whoever reads: `2026-11-25 04:15:39`.
pub fn local_time(at: At) -> String {
    match jiff::Timestamp::from_millisecond(at.0) {
        Ok(moment) => moment.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => at.to_string(),
    }
}

/// From one moment to a later one in the two largest units: `3d4h`, `12s`.
pub fn between(from: At, to: At) -> String {
    let seconds = u64::try_from((to.0 - from.0) / 1000).unwrap_or(0);
    let coarse = match seconds {
        0..60 => seconds,
        60..86_400 if seconds >= 3_600 => seconds / 60 * 60,
        60..86_400 => seconds,
        _ => seconds / 3_600 * 3_600,
    };
    show_span(Duration::from_secs(coarse))
}

/// A length in seconds as people read it: `0.3s`, `2m5s`.
pub fn took(seconds: f64) -> String {
    if seconds < 60.0 { format!("{seconds:.1}s") } else { show_span(Duration::from_secs(seconds as u64)) }
}

/// `12.3M`, of 1024 bytes each step.
pub fn bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "K", "M", "G"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{n}B") } else { format!("{value:.1}{unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1}T")
}

/// Who asked, in a word or two.
pub fn by(by: &By) -> String {
    let or_unknown = |what: Option<&dyn Display>| what.map_or_else(|| "?".to_owned(), ToString::to_string);
    match by {
        By::Delivery { id } => format!("delivery {id}"),
        By::Local { user: Some(user), .. } => user.clone(),
        By::Local { uid, user: None } => format!("uid {uid}"),
        By::Token { name } => format!("token {name}"),
        By::First => "first deploy".into(),
        By::CatchUp => "catch-up".into(),
        By::Poll => "poll".into(),
        By::Signal { pid, uid } => {
            let (pid, uid) = (pid.as_ref().map(|p| p as &dyn Display), uid.as_ref().map(|u| u as &dyn Display));
            format!("signal from pid {}, uid {}", or_unknown(pid), or_unknown(uid))
        }
        By::Nobody => "nobody".into(),
    }
}

pub fn instance_style(state: InstanceState) -> Style {
    use InstanceState as S;
    match state {
        S::Ready | S::Done | S::Deployed => GOOD,
        S::Failed | S::Backoff => BAD,
        S::Waiting | S::Starting | S::Stopping | S::Draining => BUSY,
        S::Stopped => Style::new(),
    }
}

pub fn deploy_style(state: DeployState) -> Style {
    match state {
        DeployState::Live => GOOD,
        DeployState::Failed | DeployState::RolledBack => BAD,
        state if state.is_end() => Style::new(),
        _ => BUSY,
    }
}

/// `failed at check: npm test exited with 1`: a deploy's state and why.
pub fn deploy_end(deploy: &DeployView) -> String {
    let step = if deploy.state == DeployState::Failed || deploy.state == DeployState::RolledBack {
        deploy.step.as_ref().map(|step| format!(" at {step}")).unwrap_or_default()
    } else {
        String::new()
    };
    let mut text = format!("{}{step}", deploy.state);
    if let Some(reason) = &deploy.reason {
        text.push_str(&format!(": {reason}"));
    }
    if let Some(newer) = deploy.superseded_by {
        text.push_str(&format!(" (by deploy {newer})"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn show_is_a_word_only_before_a_number() {
        let read = |words: &[&str]| {
            AppOrOne { words: words.iter().map(ToString::to_string).collect() }.read(&["show", "redeliver"])
        };
        assert!(matches!(read(&[]), Ok(Listed::All(None))));
        assert!(matches!(read(&["show"]), Ok(Listed::All(Some(app))) if app.as_str() == "show"));
        assert!(matches!(read(&["show", "7"]), Ok(Listed::One("show", 7))));
        assert!(matches!(read(&["redeliver", "7"]), Ok(Listed::One("redeliver", 7))));
        assert!(read(&["show", "x"]).is_err());
        assert!(read(&["blog", "7"]).is_err());
    }

    #[test]
    fn lengths_are_short() {
        let ago = |seconds: i64| between(At(0), At(seconds * 1000));
        assert_eq!([ago(-5), ago(59), ago(61), ago(3_661), ago(90_061)], ["0s", "59s", "1m1s", "1h1m", "1d1h"]);
        assert_eq!([took(0.26), took(125.9)], ["0.3s", "2m5s"]);
        assert_eq!([bytes(12), bytes(1536), bytes(12 << 20)], ["12B", "1.5K", "12.0M"]);
    }

    #[test]
    fn since_is_a_moment_or_a_length() {
        assert_eq!(since("2026-11-25T04:15:39Z").unwrap().to_string(), "2026-11-25T04:15:39.000Z");
        let hour_ago = now().0 - 3_600_000;
        assert!((since("1h").unwrap().0 - hour_ago).abs() < 10_000);
        assert!(since("yesterday").is_err());
    }
}
