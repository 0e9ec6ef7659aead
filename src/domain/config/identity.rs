//! Who runs what: users and groups of the config, by name or number.

use std::{path::PathBuf, sync::Arc};

use super::{Identity, app::share, judge::Judge, raw};

/// Apps with a repository and no `user` run as this uid and gid, which no distribution hands out.
pub const NOBODY: u32 = 60_903;

/// Whom an app's instances and steps run as.
pub struct Identities {
    pub run_as: Arc<Identity>,
    pub work_as: Arc<Identity>,
    /// What `groups` names.
    pub groups: Option<Vec<u32>>,
}

fn nobody() -> Identity {
    Identity {
        uid: NOBODY,
        gid: NOBODY,
        groups: Vec::new(),
        name: None,
        home: PathBuf::from("/nonexistent"),
        shell: PathBuf::from("/bin/sh"),
    }
}

/// The user, unless there is none.
fn lookup(judge: &mut Judge<'_>, user: &str) -> Option<Identity> {
    let account = judge.user(user)?;
    Some(Identity {
        uid: account.uid,
        gid: account.gid,
        groups: account.groups,
        name: account.name,
        home: account.home,
        shell: account.shell,
    })
}

fn own(judge: &mut Judge<'_>) -> Identity {
    let uid = judge.facts.uid;
    lookup(judge, &uid.to_string()).unwrap_or_else(|| Identity { uid, gid: uid, ..nobody() })
}

/// Resolves `user`, `group` and `groups` of an app; what is wrong with them keeps that app alone from running,
/// and comes with the name of the field.
pub fn of_app(judge: &mut Judge<'_>, name: &str, raw: &raw::App) -> (Identities, Option<(&'static str, String)>) {
    let facts = judge.facts;
    let mut problem = None;
    let mut run_as = match &raw.user {
        Some(user) => lookup(judge, &user.0).unwrap_or_else(|| {
            problem = Some(("user", format!("user \"{}\" does not exist", user.0)));
            nobody()
        }),
        None if judge.as_root() && raw.deploy.is_some() => {
            let message = format!("app \"{name}\" has a repository and no `user`: it runs as uid {NOBODY}");
            judge.warn(&["apps", name], message);
            nobody()
        }
        None => own(judge),
    };
    if let Some(group) = &raw.group {
        match (facts.group)(&group.0) {
            Some(found) => run_as.gid = found.gid,
            None => problem = problem.or(Some(("group", format!("group \"{}\" does not exist", group.0)))),
        }
    }
    let groups = raw.groups.as_deref().map(|named| {
        let mut ids = Vec::new();
        for name in named {
            match (facts.group)(&name.0) {
                Some(found) => ids.push(found.gid),
                None => problem = problem.take().or(Some(("groups", format!("group \"{}\" does not exist", name.0)))),
            }
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    });
    if let Some(groups) = &groups {
        run_as.groups.clone_from(groups);
    }
    let own = own(judge);
    if !judge.as_root() && problem.is_none() && groups.is_some() {
        problem = Some(("groups", "only root can give an app other groups".into()));
    }
    if !judge.as_root() && problem.is_none() && (run_as.uid, run_as.gid) != (own.uid, own.gid) {
        let field = if run_as.uid == own.uid { "group" } else { "user" };
        problem = Some((field, format!("only root can run apps as another {field}")));
    }
    if judge.as_root() && run_as.uid == 0 && raw.deploy.is_some() {
        let message =
            format!("app \"{name}\" runs what others push as root; its steps and files belong to uid {NOBODY}");
        judge.warn(&["apps", name, "user"], message);
    }
    let known = &mut judge.alike.identity;
    let run_as = share(known, run_as);
    let work_as = if run_as.uid == 0 { share(known, nobody()) } else { Arc::clone(&run_as) };
    (Identities { run_as, work_as, groups }, problem)
}

/// Who fetches for all apps; `None`: each app's own user.
pub fn fetch_as(judge: &mut Judge<'_>, raw: &raw::Root) -> Option<Arc<Identity>> {
    if !judge.as_root() {
        return None;
    }
    let user = raw.deploys.fetch_user.as_deref().unwrap_or("everhook");
    let found = lookup(judge, user);
    let keys = ["deploys", "fetch_user"];
    match &found {
        Some(identity) if identity.uid == 0 => judge.error(&keys, "git never runs as root: name another user"),
        Some(_) => {}
        None if raw.deploys.fetch_user.is_some() => judge.error(&keys, format!("user \"{user}\" does not exist")),
        None if raw.apps.values().any(|app| app.deploy.is_some()) => {
            judge.warn(&keys, format!("user \"{user}\" does not exist: each app's own user fetches its repository"));
        }
        None => {}
    }
    found.map(Arc::new)
}
