//! The commands of a deploy, judged.

use super::{Step, judge::Judge, raw};
use crate::domain::model::{BadGlob, Globs};

/// A list of steps at `keys`.
pub fn steps(judge: &mut Judge<'_>, keys: &[&str], raw: Option<&[raw::Step]>) -> Vec<Step> {
    let mut steps = Vec::new();
    for (i, step) in raw.unwrap_or_default().iter().enumerate() {
        let i = i.to_string();
        let keys = [keys, &[&i]].concat();
        let run = step.run.clone().unwrap_or_default();
        judge.require(!run.trim().is_empty() && !run.contains('\0'), &keys, "the step has no command");
        judge.require(step.timeout.is_none_or(|span| !span.0.is_zero()), &keys, "a step needs some time");
        let changed = changed(judge, &[&keys[..], &["when"]].concat(), step.when.as_ref());
        steps.push(Step { run, name: step.name.clone(), changed, timeout: step.timeout.map(|span| span.0) });
    }
    steps
}

/// Patterns over the files that a deploy changes.
pub fn changed(judge: &mut Judge<'_>, keys: &[&str], raw: Option<&raw::When>) -> Vec<String> {
    let Some(raw::When::Changed(patterns)) = raw else { return Vec::new() };
    judge.require(!patterns.is_empty(), keys, "no pattern of files is named");
    if let Err(BadGlob { why, .. }) = Globs::of_paths(patterns) {
        judge.error(keys, why);
    }
    patterns.clone()
}

/// What steps are to have of their app's variables must be there, as far as the config itself tells.
pub fn env_from(judge: &mut Judge<'_>, name: &str, app: &raw::App) {
    let Some(deploy) = &app.deploy else { return };
    for (i, variable) in deploy.env_from.iter().flatten().enumerate() {
        let i = i.to_string();
        let keys = ["apps", name, "deploy", "env_from", &i];
        let known = app.env.contains_key(variable) || app.env_file.is_some();
        judge.require(known, &keys, &format!("the app has no variable {variable:?} in its `env`, and no `env_file`"));
        let twice = format!("{variable:?} stands in the `env` of its steps as well: one of them is enough");
        judge.require(!deploy.env.contains_key(variable), &keys, &twice);
    }
}
