//! Apps that wait for each other, by `after` or `requires`, would wait for ever.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{App, judge::Judge};
use crate::domain::model::AppName;

/// Names a cycle, if there is one.
pub fn cycle(judge: &mut Judge<'_>, apps: &BTreeMap<AppName, Arc<App>>) {
    let mut done = BTreeSet::new();
    for name in apps.keys() {
        let mut path = Vec::new();
        if let Some(cycle) = walk(apps, name, &mut path, &mut done) {
            let shown = cycle.iter().map(|app| app.as_str()).collect::<Vec<_>>().join(" after ");
            let requires = apps.get(cycle[0]).is_some_and(|app| app.requires.contains(cycle[1]));
            let field = if requires { "requires" } else { "after" };
            judge.error(&["apps", cycle[0].as_str(), field], format!("apps wait for each other: {shown}"));
            return;
        }
    }
}

/// Goes down from `name`; a name that is on the path already closes a cycle.
fn walk<'a>(
    apps: &'a BTreeMap<AppName, Arc<App>>,
    name: &'a AppName,
    path: &mut Vec<&'a AppName>,
    done: &mut BTreeSet<&'a AppName>,
) -> Option<Vec<&'a AppName>> {
    if let Some(start) = path.iter().position(|other| *other == name) {
        path.push(name);
        return Some(path.split_off(start));
    }
    if done.contains(name) {
        return None;
    }
    path.push(name);
    let found = apps.get(name)?.comes_after().find_map(|next| walk(apps, next, path, done));
    path.pop();
    done.insert(name);
    found
}
