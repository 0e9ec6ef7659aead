//! `was`: an app goes on under another name. What it has on disk and in the store changes its name, and
//! what runs is not touched: a process bears the name that it was started with, in its environment, its
//! run record and its cgroup, until it ends, and is found by that.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use tracing::warn;

use super::{
    Supervisor,
    layout::Layout,
    ledger::Command,
    planning::NewApp,
    prepare::{self, Kit},
    seats::{Renamed, SeatId, Shell},
    waiters::Goal,
};
use crate::{
    domain::{
        config::{self, Config, Plan},
        model::{AppName, InstanceId},
        service::{Seat, State},
    },
    os::files,
};

/// The apps of a config that had another name, which comes first.
pub fn pairs(config: &Config) -> impl Iterator<Item = (&AppName, &AppName)> {
    config.apps.values().filter_map(|app| Some((app.was.as_ref()?, &app.name)))
}

/// Gives what an app has on disk, and the FIFOs of what runs of it, its new name. A link stays where its
/// folder was, since paths into that are in releases and in the environment of what runs. What was begun before a
/// kill is done to its end; until [`done`] is said it can be [`taken_back`]. False where there was nothing of the old
/// name.
///
/// # Errors
/// Names what is in the way.
pub fn move_state(layout: &Layout, old: &AppName, new: &AppName) -> Result<bool, String> {
    let (from, to) = (layout.app(old), layout.app(new));
    let named = |e: io::Error| format!("{} cannot become {}: {e}", from.display(), to.display());
    let is_folder = |path: &Path| fs::symlink_metadata(path).is_ok_and(|facts| facts.is_dir());
    let is_begun = || marked(layout, new).is_some_and(|(was, is)| was == *old && is == *new);
    let found = is_folder(&from);
    if found && is_folder(&to) {
        // Where an app was only about to be, there is nothing to keep.
        let bare = if is_bare(&to) { Some(&to) } else { Some(&from).filter(|from| is_begun() && is_bare(from)) };
        let Some(bare) = bare else {
            let (from, to) = (from.display(), to.display());
            return Err(format!("{from} cannot become {to}, which is there already: move one of them away"));
        };
        fs::remove_dir_all(bare).map_err(named)?;
    }
    if is_folder(&from) {
        mark(layout, old, (old, new)).map_err(named)?;
        remove_link(&to).and_then(|()| files::rename_durably(&from, &to)).map_err(named)?;
    }
    if is_begun() {
        remove_link(&from).and_then(|()| symlink(new.as_str(), &from)).map_err(named)?;
        files::move_named(&layout.fifos(), &layout.fifos(), old.as_str(), new.as_str()).map_err(named)?;
    }
    Ok(found)
}

/// Are there only folders in it?
fn is_bare(folder: &Path) -> bool {
    let is_bare = |entry: fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && is_bare(&entry.path());
    fs::read_dir(folder).is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(is_bare)))
}

/// Notes in the folder of an app what it is about to be called.
fn mark(layout: &Layout, app: &AppName, (old, new): (&AppName, &AppName)) -> io::Result<()> {
    files::write_durably(&layout.renaming(app), format!("{old} {new}\n").as_bytes(), 0o600)
}

/// What was noted there.
fn marked(layout: &Layout, app: &AppName) -> Option<(AppName, AppName)> {
    let text = fs::read_to_string(layout.renaming(app)).ok()?;
    let (old, new) = text.trim_end().split_once(' ')?;
    Some((old.parse().ok()?, new.parse().ok()?))
}

/// An app has its new name for good.
pub fn done(layout: &Layout, new: &AppName) {
    let _ = fs::remove_file(layout.renaming(new));
}

/// Gives those back their names that were to have others when everhook was killed, where the config has changed its
/// mind since; which these are, with the other name last.
pub fn taken_back(layout: &Layout, config: &Config) -> Vec<(AppName, AppName)> {
    let folders = fs::read_dir(layout.state.join("apps")).into_iter().flatten().flatten();
    let is_folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let names = folders.filter(is_folder).filter_map(|entry| entry.file_name().to_str()?.parse::<AppName>().ok());
    let begun = names.filter_map(|name| marked(layout, &name).filter(|(_, new)| *new == name));
    let unwanted = |(old, new): &(AppName, AppName)| config.apps.contains_key(old) && !config.apps.contains_key(new);
    let back: Vec<_> = begun.filter(unwanted).collect();
    undo(layout, &back);
    back
}

/// A name that an app had is free for another one.
///
/// # Errors
/// As the file system says.
pub fn remove_link(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_symlink() => fs::remove_file(path),
        _ => Ok(()),
    }
}

/// Moves log files while no logger writes them.
pub fn move_logs(layout: &Layout, old: &AppName, new: &AppName) {
    let (from, to) = (layout.logs().join(old.as_str()), layout.logs().join(new.as_str()));
    if !from.is_dir() || !to.is_dir() {
        return;
    }
    match files::move_named(&from, &to, old.as_str(), new.as_str()) {
        // Something else may be in it.
        Ok(()) => drop(fs::remove_dir(&from)),
        Err(error) => warn!(app = %new, "the logs of {old} cannot be taken over: {error}"),
    }
}

/// Takes back what [`move_state`] did for these, and what was made for the new names.
pub fn undo(layout: &Layout, moved: &[(AppName, AppName)]) {
    for (old, new) in moved {
        let result = move_state(layout, new, old);
        done(layout, old);
        if let Err(error) = result.and_then(|_| remove_link(&layout.app(new)).map_err(|e| e.to_string())) {
            warn!(app = %old, "{error}");
        }
    }
}

impl Supervisor {
    /// Can a reload rename what it has to, and does it add nobody whose name is still borne?
    ///
    /// # Errors
    /// Names the app, and what to wait for.
    pub fn may_rename(&self, plan: &Plan, config: &Config) -> Result<(), String> {
        for (old, new) in &plan.renamed {
            let Some(app) = self.apps.get(old) else { continue };
            let busy = app.runs().any(|run| matches!(run.instance.state(), State::Starting { .. }));
            if busy || app.is_rolling() || app.is_on_trial() {
                return Err(format!("{old} cannot become {new} while it is being started: reload again when it is up"));
            }
            if self.deploys.is_busy(old) {
                return Err(format!("{old} cannot become {new} during a deploy: reload again when that has ended"));
            }
        }
        for name in &plan.added {
            let bears = self.shells.iter().find(|(_, shell)| shell.bears(name));
            if let Some((app, _)) = bears {
                return Err(format!("processes of {app} still bear the name {name}: restart {app} first"));
            }
            let was = config.apps.get(name).and_then(|app| app.was.as_ref());
            if let Some(old) = was.filter(|old| self.apps.contains_key(*old)) {
                return Err(format!("{old} is still being stopped: reload again when that is done"));
            }
        }
        Ok(())
    }

    /// What was moved on disk is known by its new name from now on; `made` is what it starts with next.
    pub fn rename(&mut self, old: &AppName, spec: &config::App, made: NewApp) {
        let new = &spec.name;
        let Some((mut app, mut shell)) = self.apps.remove(old).zip(self.shells.remove(old)) else { return };
        app.relocate(&self.layout.app(old), &self.layout.app(new));
        if let Some(armed) = shell.armed.take() {
            self.deadlines.remove(&(armed, old.clone()));
        }
        let active: Vec<_> = app.runs().filter(|run| run.instance.is_active()).map(|run| run.seat).collect();
        let records = self.layout.clone();
        shell.rename((old, new), made.kits, &active, |name| records.record(name));
        self.apps.insert(new.clone(), app);
        self.shells.insert(new.clone(), shell);
        self.children.rename(old, new);
        self.schedule_renamed(old, spec, made.ran);
        self.deploys.rename(old, new);
        self.forget_deploy_stream(old);
        for set in [&mut self.lost, &mut self.news_due] {
            if set.remove(old) {
                set.insert(new.clone());
            }
        }
        self.doomed = std::mem::take(&mut self.doomed)
            .into_iter()
            .map(|(app, release)| (if app == *old { new.clone() } else { app }, release))
            .collect();
        for goal in self.waiters.iter_mut().flat_map(|waiter| &mut waiter.goals) {
            goal.rename(old, new);
        }
        self.rename_store(old, new);
        self.rename_logs(old, spec);
        for seat in active {
            self.look_at_renamed(&SeatId { app: old.clone(), seat }, &SeatId { app: new.clone(), seat });
        }
    }

    /// History goes on.
    pub fn rename_store(&mut self, old: &AppName, new: &AppName) {
        self.ledger.send(Command::Rename { old: old.clone(), new: new.clone() });
    }

    fn rename_logs(&mut self, old: &AppName, spec: &config::App) {
        self.rename_outputs(old, spec);
        let (layout, old, new, is_there) =
            (self.layout.clone(), old.clone(), spec.name.clone(), self.logger.is_there());
        self.files.run(
            move || {
                if !is_there {
                    move_logs(&layout, &old, &new);
                }
            },
            |_, ()| (),
        );
    }

    /// Whoever looks at a process looks at it by its new name.
    fn look_at_renamed(&mut self, old: &SeatId, new: &SeatId) {
        for (_, mut event) in self.unworded.remove(old).unwrap_or_default() {
            event.app = Some(new.app.clone());
            event.instance = Some(new.instance());
            self.put_down(event);
        }
        self.stop_probe(new);
        self.watch_renamed(new);
        self.limits_begun(new, Vec::new());
        let attempt = self
            .apps
            .get(&new.app)
            .and_then(|app| app.run(new.seat))
            .and_then(|run| matches!(run.instance.state(), State::Ready { .. }).then(|| run.instance.attempt()));
        if let Some(attempt) = attempt {
            self.begin_watch(new, attempt);
        }
    }
}

impl Shell {
    /// Does a process bear the name of this app, which is another's now?
    fn bears(&self, name: &AppName) -> bool {
        self.borne().any(|borne| borne == name)
    }

    /// The names of apps that its processes bear, other than its own.
    pub fn borne(&self) -> impl Iterator<Item = &AppName> {
        self.seats().filter_map(|(_, seat)| Some(&seat.renamed.as_ref()?.bears.app))
    }

    /// Seats with a process keep what that was started with; the others, and new ones, get what is new at once.
    fn rename(
        &mut self,
        (old, new): (&AppName, &AppName),
        kits: BTreeMap<Seat, Kit>,
        active: &[Seat],
        record: impl Fn(&str) -> PathBuf,
    ) {
        for (seat, kit) in kits {
            let Some(shell) = self.seat_mut(seat) else {
                self.take_kits(BTreeMap::from([(seat, kit)]));
                continue;
            };
            let mut bears = InstanceId { app: old.clone(), number: seat.number };
            if let Some(before) = shell.renamed.take() {
                // Nobody was started under the name in between.
                let _ = before.next.cgroup.as_ref().map(|group| group.remove());
                let _ = fs::remove_file(record(&prepare::seat_name(&bears, seat)));
                bears = before.bears;
            }
            if bears.app == *new {
                continue;
            }
            let record = record(&prepare::seat_name(&bears, seat));
            shell.renamed = Some(Box::new(Renamed { bears, record, next: kit }));
            if !active.contains(&seat) {
                shell.begin_renamed();
            }
        }
    }
}

impl Goal {
    fn rename(&mut self, old: &AppName, new: &AppName) {
        let app = match self {
            Self::Up { id, .. } => &mut id.app,
            Self::Rolled { app, .. } => app,
            Self::Down { chosen } | Self::Ended { chosen } | Self::State { chosen, .. } => &mut chosen.app,
            Self::Applied(goal) => return goal.rename(old, new),
            Self::Deploy { .. } => return,
        };
        if app == old {
            app.clone_from(new);
        }
    }
}
