//! `supervisor.ron`: what stands in it, loaded with the place of every fault, judged against the
//! machine, compared with what runs. It reads no file and asks the machine only through
//! [`Facts`]: the text comes in, a [`Config`] or [`Faults`] come out. SURFACE.md section 7 is the
//! reference.
//!
//! The text is read twice: by `scan` for the places of keys and values, by RON and serde for the
//! values (`parse` into the shapes of `raw`). `judge` and its neighbours make `schema` out of these.

mod access;
mod app;
mod deploy;
mod describe;
mod dialect;
mod diff;
mod env_file;
mod finding;
mod http;
mod identity;
mod include;
mod judge;
mod limits;
mod order;
mod parse;
mod probe;
mod raw;
mod scan;
mod schedule;
mod schema;
mod shell;
mod socket;
mod status;
mod steps;
mod watch;

use std::path::{Path, PathBuf};

pub use access::deploy_key;
pub use app::{keeps_from_executing, keeps_out};
pub use describe::describe;
pub use dialect::{Dialect, Encoding, Generic, Hash, Pointer, Shown};
pub use diff::{Plan, definition, diff, is_changed};
pub use env_file::env_file;
pub use finding::{Faults, Finding, Severity};
pub use http::overlap;
pub use probe::Url;
pub use schedule::{Missed, Schedule};
pub use schema::*;
pub use status::{Forge, Status};
pub use watch::{Ignore, Watch};

use crate::domain::model::Facts;

/// Where things are unless the config says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// `state_dir` not under root: `$XDG_STATE_HOME/everhook`.
    pub state_home: PathBuf,
}

impl Places {
    /// By `$XDG_STATE_HOME`, which counts where it is absolute, and `$HOME`.
    #[must_use]
    pub fn of(xdg_state_home: Option<PathBuf>, home: Option<PathBuf>) -> Self {
        let home = || home.unwrap_or_else(|| "/".into()).join(".local/state");
        let state = xdg_state_home.filter(|path| path.is_absolute());
        Self { state_home: state.unwrap_or_else(home).join("everhook") }
    }
}

/// A config that can be used.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// The files that it includes, with their texts as they were read.
    pub included: Vec<(PathBuf, String)>,
    /// Warnings, and what keeps single apps from running; in no finding [`Severity::Error`].
    pub warnings: Vec<Finding>,
}

/// Makes a config out of the text of the file at `path`, which is absolute: relative paths in the
/// text are relative to its folder. A byte order mark and CRLF are accepted. Files that it includes
/// are read through `facts`.
///
/// # Errors
/// All that is wrong, each with its place.
pub fn load(text: &str, path: &Path, places: &Places, facts: &Facts) -> Result<Loaded, Faults> {
    let source = finding::Source::new(path, text, 0);
    let (mut raw, root) = parse::parse::<raw::Root>(source)?;
    let main = include::File::new(source, root);
    let include::Named { entries, texts: included } = include::named(&main, &raw, facts)?;
    let files = include::merge(main, &mut raw, &included)?;
    let mut judge = judge::Judge::new(&files, facts);
    let mut config = judge::config(&mut judge, &raw, places);
    config.include = entries;
    let mut findings = judge.findings;
    findings.sort_by_key(|finding| finding.at);
    if findings.iter().any(|finding| finding.severity == Severity::Error) {
        return Err(Faults(findings.into_iter().filter(|f| f.severity != Severity::Warning).collect()));
    }
    Ok(Loaded { config, included, warnings: findings })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::domain::model::{Account, Group};

    fn account(text: &str) -> Option<Account> {
        let (name, uid) = match text {
            "root" | "0" => (Some("root"), 0),
            "www" | "33" => (Some("www"), 33),
            number => (None, number.parse().ok()?),
        };
        let home = PathBuf::from("/home").join(text);
        Some(Account { name: name.map(Into::into), uid, gid: uid, home, shell: "/bin/sh".into(), groups: vec![uid] })
    }

    fn load_as(uid: u32, text: &str) -> Result<Loaded, Faults> {
        let group = |text: &str| account(text).map(|found| Group { name: found.name, gid: found.gid });
        let facts = Facts {
            uid,
            user: account,
            group,
            is_directory: |_| Some(true),
            closed: |_, _, _, _| None,
            is_program: |_| true,
            can_limit: |_| Ok(()),
            matching: |_| Ok(Vec::new()),
            zone: |_| Some(jiff::tz::TimeZone::UTC),
        };
        let places = Places { state_home: "/home/ann/state".into() };
        load(text, Path::new("/srv/supervisor.ron"), &places, &facts)
    }

    fn good(text: &str) -> Config {
        load_as(0, text).unwrap().config
    }

    #[test]
    fn places_follow_the_state() {
        let config = good("()");
        assert_eq!((config.state_dir, config.run_dir), ("/var/lib/everhook".into(), "/run/everhook".into()));
        let config = good("(state_dir: \"state\")");
        assert_eq!((config.state_dir, config.run_dir), ("/srv/state".into(), "/srv/state/run".into()));
        let config = load_as(1000, "()").unwrap().config;
        assert_eq!((config.state_dir, config.run_dir), ("/home/ann/state".into(), "/home/ann/state/run".into()));
    }

    #[test]
    fn steps_and_release_files_are_never_roots() {
        let config = good(
            r#"(apps: {"a": (deploy: (repo: "/x")), "b": (user: "root", deploy: (repo: "/x")), "c": (user: "www", group: 7, deploy: (repo: "/x")), "d": (command: ["d"])})"#,
        );
        let ids: Vec<_> = config
            .apps
            .values()
            .map(|app| (app.run_as.uid, app.run_as.gid, app.work_as.uid, app.work_as.gid))
            .collect();
        let nobody = identity::NOBODY;
        assert_eq!(ids[..2], [(nobody, nobody, nobody, nobody), (0, 0, nobody, nobody)]);
        assert_eq!(ids[2..], [(33, 7, 33, 7), (0, 0, nobody, nobody)]);
    }

    #[test]
    fn secrets_are_named_once_and_with_whole_paths() {
        let config = good(
            r#"(tokens: [(name: "a", secret: File("t"), role: Admin)],
            apps: {"a": (deploy: (repo: "/x", secret: Env("S"), previous_secret: File("t"))), "b": (deploy: (repo: "/x", secret: Env("S")))})"#,
        );
        assert_eq!(config.secrets(), [&SecretRef::File("/srv/t".into()), &SecretRef::Env("S".into())]);
    }

    #[test]
    fn defaults_are_those_of_the_reference() {
        let config = good(r#"(apps: {"a": (command: "a b", deploy: (repo: "/x"))})"#);
        let app = &config.apps[&"a".parse().unwrap()];
        assert_eq!(app.command, Some(Command::Shell("exec a b".into())));
        assert_eq!((app.directory.as_deref(), app.enabled, app.port), (None, true, None));
        assert_eq!(app.ready, Ready::After(Duration::from_secs(1)));
        assert_eq!(app.stop.timeout(), Duration::from_secs(10));
        let Logs { rotate, age, keep, compress, form, line_limit } = *app.logs;
        assert_eq!((rotate.0, age, keep, compress), (50 << 20, None, 10, true));
        assert_eq!((form, line_limit.0), (Form::Raw, 1 << 20));
        let restart = &app.restart;
        assert_eq!((restart.policy, restart.factor, restart.jitter), (Policy::Always, 2.0, 0.1));
        assert_eq!((restart.give_up.restarts, restart.give_up.within), (10, Duration::from_secs(300)));
        let deploy = app.deploy.as_ref().unwrap();
        assert_eq!(
            (&deploy.layout, deploy.timeout, deploy.settle),
            (&Layout::Releases { keep: 5 }, Duration::from_secs(900), Duration::from_secs(5))
        );
        assert!(deploy.on.is_empty());
    }

    const WHOLE: &str = r##"(http: [(bind: "127.0.0.1:1", serve: [Hooks])], local: {"*": Viewer}, /* ä */
        apps: {"a": (command: r#"x "y""#, env: {"Ä": "€"}, ready: Http(url: "http://[::1]:1/"), stop: [(signal: "INT")],
        restart: (factor: 1.5, give_up: (within: "1m")), deploy: (repo: "/x", on: [Push(branch: "m*")], check: ["a", (run: "b")]))})"##;

    proptest! {
        #[test]
        fn a_damaged_text_is_told_with_a_place_or_loads(at in 0..WHOLE.len(), cut in 0usize..9, put in "[\\PC]{0,3}") {
            let floor = |at: usize| (0..=at.min(WHOLE.len())).rev().find(|i| WHOLE.is_char_boundary(*i)).unwrap();
            let (start, end) = (floor(at), floor(at + cut));
            let text = format!("{}{put}{}", &WHOLE[..start], &WHOLE[end..]);
            if let Err(faults) = load_as(0, &text) {
                prop_assert!(!faults.0.is_empty());
                for fault in &faults.0 {
                    prop_assert!(fault.place.starts_with("/srv/supervisor.ron:"), "{}", fault);
                }
            }
        }

        #[test]
        fn what_ron_reads_the_scanner_reads(text in "[(){}\\[\\]:,\"'a1/* .#r\\\\\n-]{0,24}") {
            if ron::from_str::<ron::Value>(&text).is_ok() {
                prop_assert!(scan::scan(&text).is_ok(), "{text}");
            }
        }
    }
}
