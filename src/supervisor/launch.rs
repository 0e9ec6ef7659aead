//! From an app's config to the process that is to be started: SURFACE.md section 6.

use std::{
    collections::BTreeMap,
    ffi::CString,
    path::{Path, PathBuf},
};

use crate::{
    domain::{
        config::{self, Command, Identity, Limits},
        model::InstanceId,
        service::Release,
    },
    os::{
        limits,
        spawn::{Credentials, SpawnSpec, Tuning},
    },
};

/// Where programs are looked for.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The running binary, whatever has become of its file.
const MYSELF: &str = "/proc/self/exe";

/// A process cannot be described: a NUL byte in what the config says, no such program.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("{0:?} holds a NUL byte")]
    Nul(String),
    #[error("it is in the config no more")]
    NoSeat,
    #[error("there is no program {0:?} in {PATH}")]
    NoProgram(String),
    #[error("no pipe can be made for it: {0}")]
    NoPipe(#[from] std::io::Error),
}

/// The variables of everything that runs as this identity.
#[must_use]
pub fn base_env(who: &Identity) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let mut set = |name: &str, value: String| env.insert(name.to_owned(), value);
    set("PATH", PATH.to_owned());
    set("LANG", "C.UTF-8".to_owned());
    set("HOME", who.home.display().to_string());
    set("SHELL", who.shell.display().to_string());
    if let Some(name) = &who.name {
        set("USER", name.clone());
        set("LOGNAME", name.clone());
    }
    if let Ok(zone) = std::env::var("TZ") {
        set("TZ", zone);
    }
    env
}

/// The variables of an instance: ours, then `env_file`, then `env`.
#[must_use]
pub fn instance_env(
    app: &config::App,
    instance: &InstanceId,
    release: Option<&Release>,
    boot: &str,
    env_file: &[(String, String)],
) -> BTreeMap<String, String> {
    let mut env = base_env(&app.run_as);
    let mut set = |name: &str, value: String| env.insert(name.to_owned(), value);
    set("EVERHOOK_APP", app.name.to_string());
    set("EVERHOOK_INSTANCE", instance.to_string());
    set("EVERHOOK_BOOT", boot.to_owned());
    if let Some(release) = release {
        set("EVERHOOK_RELEASE", release.id.to_string());
        set("EVERHOOK_COMMIT", release.commit.to_string());
    }
    if let Some(port) = app.port {
        set("PORT", (u32::from(port) + instance.number - 1).to_string());
    }
    env.extend(env_file.iter().cloned());
    env.extend(app.env.iter().map(|(name, value)| (name.clone(), config::numbered(value, instance.number))));
    // Whoever looks for the tree looks for these: nobody may say otherwise.
    env.insert("EVERHOOK_INSTANCE".to_owned(), instance.to_string());
    env.insert("EVERHOOK_BOOT".to_owned(), boot.to_owned());
    env
}

/// Tells a process the sockets that are passed to it: `sd_listen_fds(3)`. Returns the variable that
/// holds its pid.
pub fn name_sockets<'a>(
    env: &mut BTreeMap<String, String>,
    names: impl ExactSizeIterator<Item = &'a String>,
) -> Option<&'static str> {
    env.retain(|name, _| !name.starts_with("LISTEN_"));
    if names.len() == 0 {
        return None;
    }
    env.insert("LISTEN_FDS".to_owned(), names.len().to_string());
    env.insert("LISTEN_FDNAMES".to_owned(), names.map(String::as_str).collect::<Vec<_>>().join(":"));
    Some("LISTEN_PID")
}

/// Where an instance works: `directory`, inside the release where it is relative to one or goes through the link
/// `current` of its app, which leads to the release before until this one is proven.
#[must_use]
pub fn directory(app: &config::App, release: Option<&Release>, current: &Path) -> PathBuf {
    match (&app.directory, release) {
        (Some(directory), Some(release)) => match directory.strip_prefix(current) {
            Ok(below) => release.directory.join(below),
            Err(_) => release.directory.join(directory),
        },
        (Some(directory), None) => directory.to_path_buf(),
        (None, Some(release)) => release.directory.clone(),
        (None, None) => PathBuf::from("/"),
    }
}

/// A spec for a command line; `path` is where a bare name is looked for.
///
/// # Errors
/// When it cannot be described to the kernel.
pub fn spec(
    args: &[String],
    env: &BTreeMap<String, String>,
    who: &Identity,
    change_user: bool,
) -> Result<SpawnSpec, Unfit> {
    let program = args.first().map_or("", String::as_str);
    let file = if program == "everhook" {
        PathBuf::from(MYSELF)
    } else if program.contains('/') {
        PathBuf::from(program)
    } else {
        let path = env.get("PATH").map_or(PATH, String::as_str);
        find(program, path).ok_or_else(|| Unfit::NoProgram(program.to_owned()))?
    };
    let args = args.iter().map(|arg| text(arg)).collect::<Result<_, _>>()?;
    let mut spec = SpawnSpec::new(text(&file.to_string_lossy())?, args);
    spec.env = env.iter().map(|(name, value)| variable(name, value)).collect::<Result<_, _>>()?;
    spec.credentials = change_user.then(|| Credentials { uid: who.uid, gid: who.gid, groups: who.groups.clone() });
    Ok(spec)
}

/// What an instance may use and do, as far as each process has it by itself.
pub fn limit(spec: &mut SpawnSpec, wanted: &Limits) {
    if let Some(nice) = wanted.nice {
        spec.nice = Tuning::exactly(nice);
    }
    if let Some(score) = wanted.oom_score {
        spec.oom_score_adj = Tuning::exactly(score);
    }
    let of_processes = [(limits::FILES, wanted.files), (limits::CORE, wanted.core.map(|size| size.0))];
    spec.rlimits = of_processes.into_iter().filter_map(|(what, most)| Some((what, most?, most?))).collect();
    spec.umask = wanted.umask.unwrap_or(spec.umask);
    spec.capabilities = wanted.capabilities.map(|set| set.0);
    spec.no_new_privs = wanted.no_new_privs;
}

/// The command line of an app's copy.
#[must_use]
pub fn arguments(command: &Command, instance: u32) -> Vec<String> {
    let numbered = |text: &str| config::numbered(text, instance);
    match command {
        Command::List(words) => words.iter().map(numbered).collect(),
        Command::Shell(line) => ["/bin/sh".to_owned(), "-c".to_owned(), numbered(line)].to_vec(),
    }
}

fn text(plain: &str) -> Result<CString, Unfit> {
    CString::new(plain).map_err(|_| Unfit::Nul(plain.to_owned()))
}

/// Made in one piece, as each restart makes a dozen.
fn variable(name: &str, value: &str) -> Result<CString, Unfit> {
    let mut text = Vec::with_capacity(name.len() + value.len() + 2);
    text.extend_from_slice(name.as_bytes());
    text.push(b'=');
    text.extend_from_slice(value.as_bytes());
    CString::new(text).map_err(|_| Unfit::Nul(format!("{name}={value}")))
}

fn find(program: &str, path: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runs = |file: &PathBuf| {
        std::fs::metadata(file).is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
    };
    path.split(':').map(|folder| Path::new(folder).join(program)).find(runs)
}
