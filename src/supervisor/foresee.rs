//! What surely keeps an app from starting, seen by a reload before anything is touched. What only its start can
//! tell is not foreseen.

use std::path::{Path, PathBuf};

use super::launch;
use crate::{
    domain::config::{self, Command},
    os::users,
};

/// A sentence with the place of the field. `env_file`: what it says now.
#[must_use]
pub fn fault(app: &config::App, env_file: &[(String, String)]) -> Option<String> {
    // What a release brings is not there yet.
    let directory = app.directory.as_deref().filter(|_| app.deploy.is_none() && app.enabled)?;
    let command = app.command.as_ref()?;
    let facts = users::facts();
    if let Some(why) = config::keeps_out(directory, &app.run_as, &facts) {
        return Some(app.fault("directory", &why));
    }
    let program = program(app, command, directory, env_file)?;
    if users::find_program(&program.to_string_lossy()).is_none() {
        let what = format!("program {:?} does not exist or cannot be executed", program.display());
        return Some(app.fault("command", &what));
    }
    Some(app.fault("command", &config::keeps_from_executing(&program, app, &facts)?))
}

/// The file that is executed, where the config alone says which one that is.
fn program(app: &config::App, command: &Command, directory: &Path, env_file: &[(String, String)]) -> Option<PathBuf> {
    let Command::List(_) = command else { return None };
    let program = launch::arguments(command, 1).into_iter().next().filter(|program| program != "everhook")?;
    if program.contains('/') {
        return Some(directory.join(program));
    }
    let mut given = env_file.iter().map(|(name, _)| name).chain(app.env.keys());
    if given.any(|name| name == "PATH") {
        return None;
    }
    Some(users::find_program(&program).unwrap_or_else(|| program.into()))
}
