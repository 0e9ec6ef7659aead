//! `supervisor.ron`: what stands in it, loaded with the place of every fault, judged against the
//! machine, compared with what runs. It reads no file and asks the machine only through
//! [`Facts`]: the text comes in, a [`Config`] or [`Faults`] come out. SURFACE.md section 7 is the
//! reference.
//!
//! The text is read twice: by `scan` for the places of keys and values, by RON and serde for the
//! values (`parse` into the shapes of `raw`). `judge` and its neighbours make `schema` out of these.

mod app;
mod deploy;
mod describe;
mod diff;
mod finding;
mod identity;
mod judge;
mod order;
mod parse;
mod probe;
mod raw;
mod scan;
mod schema;
mod shell;

use std::path::{Path, PathBuf};

pub use describe::describe;
pub use diff::{Plan, diff};
pub use finding::{Faults, Finding, Severity};
pub use schema::*;

use crate::domain::model::Facts;

/// Where things are unless the config says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// `state_dir` not under root: `$XDG_STATE_HOME/everhook`.
    pub state_home: PathBuf,
}

/// A config that can be used.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// Warnings, and what keeps single apps from running; in no finding [`Severity::Error`].
    pub warnings: Vec<Finding>,
}

/// Makes a config out of the text of the file at `path`, which is absolute: relative paths in the
/// text are relative to its folder. A byte order mark and CRLF are accepted.
///
/// # Errors
/// All that is wrong, each with its place.
pub fn load(text: &str, path: &Path, places: &Places, facts: &Facts) -> Result<Loaded, Faults> {
    let source = finding::Source { path, text: text.strip_prefix('\u{feff}').unwrap_or(text) };
    let (raw, root) = parse::parse(source)?;
    let base = path.parent().unwrap_or(Path::new("/")).to_owned();
    let mut judge = judge::Judge { source, root: &root, facts, base, findings: Vec::new() };
    let config = judge::config(&mut judge, &raw, places);
    let findings = judge.findings;
    if findings.iter().any(|finding| finding.severity == Severity::Error) {
        return Err(Faults(findings.into_iter().filter(|f| f.severity != Severity::Warning).collect()));
    }
    Ok(Loaded { config, warnings: findings })
}
