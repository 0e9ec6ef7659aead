//! Reads everything that the config names: its own file, secrets and env files. On the files thread
//! (at the start: before there is anything to hold up).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use super::{
    certificates::Certificates,
    secrets::{self, Secrets},
};
use crate::{
    domain::{
        config::{self, Config, Finding, Places, SecretRef},
        deploy::accept,
        model::{AppName, Secret, Veil},
    },
    os::{app_file, files, users},
};

/// A config and all that belongs to it.
pub struct Settings {
    pub config: Arc<Config>,
    pub text: Text,
    pub warnings: Vec<Finding>,
    pub env_files: EnvFiles,
    pub tokens: Vec<(config::Token, Secret)>,
    pub hooks: accept::Snapshot,
    pub certificates: Certificates,
    /// What nobody is told.
    pub veil: Veil,
    pub unusable: Unusable,
}

/// Secrets of no use, in sentences: nobody is let in by them.
#[derive(Default)]
pub struct Unusable {
    pub tokens: Vec<String>,
    /// Whose webhooks cannot be proven.
    pub apps: BTreeMap<AppName, String>,
}

impl Settings {
    /// Where somebody is there to mend what is of no use.
    ///
    /// # Errors
    /// What that is.
    pub fn strict(self) -> Result<Self, String> {
        let of_apps = self.unusable.apps.iter().map(|(app, error)| format!("app \"{app}\": {error}"));
        let all: Vec<_> = self.unusable.tokens.iter().cloned().chain(of_apps).collect();
        if all.is_empty() { Ok(self) } else { Err(all.join("\n")) }
    }
}

/// What the config file, those that it includes and every `env_file` said when they were read.
#[derive(Clone)]
pub struct Text {
    main: Digest,
    included: Vec<(PathBuf, Digest)>,
    env: Vec<EnvText>,
}

/// What an `env_file` said to the apps of these users; `None` where it could not be read.
type EnvText = ((PathBuf, [u32; 2]), Option<Digest>);

/// The variables of apps.
type EnvFiles = BTreeMap<AppName, Vec<(String, String)>>;

/// Stands for a text: there may be thousands of apps in one.
type Digest = [u8; 32];

fn digest(text: impl AsRef<[u8]>) -> Digest {
    Sha256::digest(text).into()
}

fn digests(included: Vec<(PathBuf, String)>) -> Vec<(PathBuf, Digest)> {
    included.into_iter().map(|(path, text)| (path, digest(text))).collect()
}

impl Text {
    /// Do the files say something else now?
    #[must_use]
    pub fn differs(&self, config: &Config) -> bool {
        let mut found = Vec::new();
        for entry in &config.include {
            found.extend(
                files::matching(&entry.glob).unwrap_or_default().into_iter().filter(|(path, _)| *path != config.path),
            );
        }
        found.sort();
        found.dedup();
        // What is no file may have nothing to say before somebody writes it.
        let is_file = |path: &Path| fs::metadata(path).map_or(true, |facts| facts.is_file());
        let env_differs = |((path, owners), known): &EnvText| {
            is_file(path) && app_file::read(path, owners).ok().map(digest) != *known
        };
        fs::read(&config.path).map_or(true, |now| digest(now) != self.main)
            || digests(found) != self.included
            || self.env.iter().any(env_differs)
    }
}

/// The default places of whoever runs this.
#[must_use]
pub fn places() -> Places {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    Places::of(variable("XDG_STATE_HOME"), variable("HOME"))
}

/// Reads and judges.
///
/// # Errors
/// What is wrong, with its place where it is in the config.
pub fn read(path: &Path) -> Result<Settings, String> {
    let named = |e: std::io::Error| format!("{}: {e}", path.display());
    let text = fs::read_to_string(path).map_err(named)?;
    if users::facts().uid == 0 {
        for guarded in [path, path.parent().unwrap_or(Path::new("/"))] {
            files::guard(guarded)?;
        }
    }
    let loaded = config::load(&text, path, &places(), &users::facts()).map_err(|faults| faults.to_string())?;
    if users::facts().uid == 0 {
        for (path, _) in &loaded.included {
            files::guard(path)?;
            files::guard(path.parent().unwrap_or(Path::new("/")))?;
        }
    }
    let mut config = loaded.config;
    let (env_files, env) = read_env_files(&mut config);
    let owners: Vec<u32> = config.apps.values().flat_map(|app| app.owners()).collect();
    let secrets = secrets::read_all(&config.secrets(), &config.state_dir, &owners);
    let mut unusable = Unusable::default();
    let tokens = tokens(&config, &secrets, &mut unusable);
    let hooks = hooks(&config, &secrets, &mut unusable);
    let text = Text { main: digest(text), included: digests(loaded.included), env };
    let certificates = Certificates::read(&config);
    let veil = veil(&config, &secrets, &env_files, &certificates);
    Ok(Settings {
        config: Arc::new(config),
        text,
        warnings: loaded.warnings,
        env_files,
        tokens,
        hooks,
        certificates,
        veil,
        unusable,
    })
}

/// What they say to whom, and each with what stands for its text.
fn read_env_files(config: &mut Config) -> (EnvFiles, Vec<EnvText>) {
    let (mut read, mut texts) = (EnvFiles::new(), BTreeMap::new());
    for (name, app) in &mut config.apps {
        let mut variables = Vec::new();
        for path in app.env_file.clone() {
            let text = app_file::read(&path, &app.owners());
            texts.insert((path.clone(), app.owners()), text.as_ref().ok().map(digest));
            let parsed = text.map_err(|e| e.to_string()).and_then(|text| config::env_file(&text));
            match parsed {
                Ok(more) => variables.extend(more),
                Err(error) => {
                    let fault = app.fault("env_file", &format!("env_file {}: {error}", path.display()));
                    Arc::make_mut(app).problem.get_or_insert(fault.into());
                }
            }
        }
        read.insert(name.clone(), variables);
    }
    (read, texts.into_iter().collect())
}

/// Everything that is a secret: what the config calls one, passwords in URLs, and variables of apps whose name says
/// so.
fn veil(config: &Config, read: &Secrets, env_files: &EnvFiles, certificates: &Certificates) -> Veil {
    let mut all: Vec<Secret> = read.values().flatten().cloned().collect();
    all.extend(certificates.pairs().map(|pair| pair.pem().clone()));
    let text = |text: &str| Secret::exact(text.as_bytes().to_vec());
    for app in config.apps.values() {
        let of_file = env_files.get(&app.name).into_iter().flatten().map(|(name, value)| (name, value));
        let of_steps = app.deploy.iter().flat_map(|deploy| &deploy.env);
        for (name, value) in app.env.iter().chain(of_file).chain(of_steps) {
            all.extend(Veil::password_of(value).map(text));
            all.extend(Veil::is_secret_name(name).then(|| text(value)));
        }
        let Some(deploy) = &app.deploy else { continue };
        all.extend(Veil::password_of(&deploy.repo).map(text));
        let fetcher = config.deploys.fetch_as.as_ref().unwrap_or(&app.work_as);
        let owners = [fetcher.uid, app.run_as.uid, app.work_as.uid];
        let access = [deploy.access.ssh_key.as_ref(), deploy.access.https_token.as_ref().map(|https| &https.token)];
        let status = deploy.status.as_ref().map(|status| &status.token);
        // What cannot be read is told where it is needed.
        all.extend(access.into_iter().chain([status]).flatten().filter_map(|one| secrets::existing(one, &owners).ok()));
    }
    Veil::new(&all)
}

fn tokens(config: &Config, secrets: &Secrets, unusable: &mut Unusable) -> Vec<(config::Token, Secret)> {
    let mut tokens = Vec::new();
    for token in &config.tokens {
        match found(secrets, &token.secret) {
            Ok(secret) => tokens.push((token.clone(), secret)),
            Err(error) => unusable.tokens.push(format!("token \"{}\": {error}", token.name)),
        }
    }
    tokens
}

fn found(secrets: &Secrets, wanted: &SecretRef) -> Result<Secret, String> {
    secrets.get(wanted).cloned().unwrap_or_else(|| Err("it was not read".to_owned()))
}

fn hooks(config: &Config, secrets: &Secrets, unusable: &mut Unusable) -> accept::Snapshot {
    let mut apps = Vec::new();
    for app in config.apps.values() {
        let Some(deploy) = &app.deploy else { continue };
        let wanted = [&deploy.secret, &deploy.previous_secret].into_iter().flatten();
        let secrets = wanted.map(|secret| found(secrets, secret)).collect::<Result<_, _>>().unwrap_or_else(|error| {
            unusable.apps.insert(app.name.clone(), app.fault("", &error));
            Vec::new()
        });
        apps.push(accept::App {
            name: app.name.clone(),
            repo: deploy.repo.clone(),
            on: deploy.on.clone(),
            secrets,
            dialect: deploy.dialect.clone(),
        });
    }
    accept::Snapshot::new(apps)
}
