//! `everhook prune`: removes what belongs to no app of the config any more, once somebody has seen what
//! and how much that is. What a user owns is measured and emptied by the tree helper as that user.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Supervisor, keys::Keys, layout::Layout, requests::Wish};
use crate::domain::{
    api::{Measured, Refusal, RefusalKind, Remains, Reply, Saying, TreeTask},
    config::Identity,
    model::AppName,
};

/// Uid and gid.
type Owner = (u32, u32);

/// A folder of nobody's, and those in it that somebody owns.
#[derive(Debug, Clone)]
struct Found {
    path: PathBuf,
    parts: Vec<(PathBuf, Owner)>,
}

/// What belongs to somebody.
struct Wanted {
    apps: BTreeSet<String>,
    mirrors: BTreeSet<PathBuf>,
}

impl Supervisor {
    /// Tells what there is (`None`), or removes of that what was seen.
    pub fn prune_remains(&mut self, wish: Wish, seen: Option<Vec<PathBuf>>) {
        let (layout, wanted) = (self.layout.clone(), self.wanted());
        self.files.run(
            move || find(&layout, &wanted),
            move |supervisor, found| match (found, seen) {
                (Err(error), _) => supervisor.end_prune(&wish, Err(error)),
                (Ok(found), None) => supervisor.measure_remains(wish, found, Vec::new()),
                (Ok(mut found), Some(seen)) => {
                    // Meanwhile a reload may have brought somebody back.
                    found.retain(|one| seen.contains(&one.path));
                    supervisor.remove_remains(wish, found, 0);
                }
            },
        );
    }

    /// By the config, and by whatever still runs.
    fn wanted(&self) -> Wanted {
        let config = self.config.apps.values();
        let was = config.clone().filter_map(|app| app.was.clone());
        let running = self.apps.keys().chain(self.jobs.values().map(super::jobs::Job::app));
        let borne = self.shells.values().flat_map(|shell| shell.borne());
        let apps = config.clone().map(|app| &app.name).chain(running).chain(borne).map(ToString::to_string);
        let apps = apps.chain(was.map(|was| was.to_string())).collect();
        let known = self.apps.values().map(|app| Arc::clone(app.spec())).chain(config.cloned());
        let mirrors = known.filter(|app| app.deploy.is_some()).map(|app| self.places(&app).mirror).collect();
        Wanted { apps, mirrors }
    }

    /// One after the other, since each is a walk over a disk.
    fn measure_remains(&mut self, wish: Wish, mut found: Vec<Found>, mut told: Vec<Remains>) {
        let Some(next) = found.pop() else {
            told.reverse();
            wish.reply.say(Saying::Done(Reply::Remains(told)));
            return;
        };
        let (path, mut by_owner) = (next.path, BTreeMap::<Owner, Vec<PathBuf>>::new());
        for (part, owner) in next.parts {
            by_owner.entry(owner).or_default().push(part);
        }
        self.measure_parts(by_owner, 0, move |supervisor, measured| {
            told.push(Remains { path, size_bytes: measured });
            supervisor.measure_remains(wish, found, told);
        });
    }

    fn measure_parts(
        &mut self,
        mut parts: BTreeMap<Owner, Vec<PathBuf>>,
        bytes: u64,
        then: impl FnOnce(&mut Supervisor, u64) + Send + 'static,
    ) {
        let Some((owner, paths)) = parts.pop_first() else { return then(self, bytes) };
        self.ask_owner(owner, &TreeTask::Measure { paths }, move |supervisor, answer| {
            // What cannot be measured is still told of.
            let more = answer.ok().and_then(|answer| serde_json::from_slice::<Measured>(&answer).ok());
            let bytes = bytes.saturating_add(more.map_or(0, |measured| measured.size_bytes));
            supervisor.measure_parts(parts, bytes, then);
        });
    }

    fn remove_remains(&mut self, wish: Wish, mut found: Vec<Found>, removed: usize) {
        let Some(mut next) = found.pop() else {
            let message = format!("removed {removed} {}", if removed == 1 { "folder" } else { "folders" });
            return self.end_prune(&wish, Ok(message));
        };
        if let Some((path, owner)) = next.parts.pop() {
            self.ask_owner(owner, &TreeTask::Empty { path }, move |supervisor, answer| match answer {
                Ok(_) => {
                    found.push(next);
                    supervisor.remove_remains(wish, found, removed);
                }
                Err(why) => supervisor.end_prune(&wish, Err(format!("{}: {why}", next.path.display()))),
            });
            return;
        }
        self.files.run(
            move || fs::remove_dir_all(&next.path).map_err(|e| format!("{}: {e}", next.path.display())),
            move |supervisor, result| match result {
                Ok(()) => supervisor.remove_remains(wish, found, removed + 1),
                Err(error) => supervisor.end_prune(&wish, Err(error)),
            },
        );
    }

    fn ask_owner(
        &mut self,
        (uid, gid): Owner,
        task: &TreeTask,
        then: impl FnOnce(&mut Supervisor, Result<Vec<u8>, String>) + Send + 'static,
    ) {
        let home = PathBuf::from("/nonexistent");
        let who = Identity { uid, gid, groups: Vec::new(), name: None, home, shell: "/bin/sh".into() };
        // Jobs are an app's; these are none's.
        let Ok(nobody) = "prune".parse::<AppName>() else { return };
        self.start_errand_in("/".into(), &nobody, &Arc::new(who), task, Keys::default(), move |supervisor, end| {
            let result = end.failure().map_or_else(|| Ok(end.answer), Err);
            then(supervisor, result);
        });
    }

    fn end_prune(&mut self, wish: &Wish, result: Result<String, String>) {
        let refused = result.as_ref().err().map(String::as_str);
        if wish.request.changes() {
            self.audit_all(&wish.by, wish.address.as_deref(), &wish.request, &[], refused);
        }
        wish.reply.say(match result {
            Ok(message) => Saying::Done(Reply::Changed { app: None, deploy: None, message }),
            Err(error) => Saying::Refused(Refusal::new(RefusalKind::Failed, error)),
        });
    }
}

/// Everything below `state_dir` that nobody wants, by its path.
fn find(layout: &Layout, wanted: &Wanted) -> Result<Vec<Found>, String> {
    let mut found = Vec::new();
    for (folder, app_folders) in [(layout.state.join("apps"), true), (layout.logs(), false)] {
        for (path, owner) in folders(&folder)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            // Whatever else lies there is nothing of ours.
            let is_ours = name.parse::<AppName>().is_ok() && (app_folders || name != DEPLOYS);
            if !is_ours || wanted.apps.contains(&name) {
                continue;
            }
            let parts = if app_folders { parts(&path)? } else { vec![(path.clone(), owner)] };
            found.push(Found { path, parts });
        }
    }
    for (path, owner) in folders(&layout.state.join("mirrors"))? {
        let is_mirror = path.extension().is_some_and(|kind| kind == "git");
        if is_mirror && !wanted.mirrors.contains(&path) {
            found.push(Found { parts: vec![(path.clone(), owner)], path });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// In `logs/`: those of all deploys.
const DEPLOYS: &str = "deploys";

/// The folders of an app that its users own.
fn parts(app: &Path) -> Result<Vec<(PathBuf, Owner)>, String> {
    let mut parts = folders(&app.join("releases"))?;
    parts.extend(folders(app)?.into_iter().filter(|(path, _)| !path.ends_with("releases")));
    Ok(parts)
}

/// The folders in a folder, each with its owner; links are none.
fn folders(path: &Path) -> Result<Vec<(PathBuf, Owner)>, String> {
    let named = |e: io::Error| format!("{}: {e}", path.display());
    let entries = match fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(named)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(named)?.path();
        let facts = fs::symlink_metadata(&path).map_err(named)?;
        if facts.is_dir() {
            found.push((path, (facts.uid(), facts.gid())));
        }
    }
    Ok(found)
}
