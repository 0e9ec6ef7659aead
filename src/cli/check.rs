use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    client::look,
    failure::{Code, Failure},
    find::{Place, load},
    screen::{Screen, complain, visible_lines},
    settle,
};
use crate::{
    domain::{
        api::Request,
        config::{Config, Loaded, SecretRef, Tls, deploy_key, describe, env_file},
        model::{BadPair, Secret},
    },
    os::{app_file, clock, files, pair_files, secret_file, users},
};

/// What is wrong in the config, with place and fix; delays and warnings
#[derive(Debug, clap::Args)]
pub struct Check {
    /// What a reload would do to whom; asks the supervisor
    #[arg(long)]
    diff: bool,
}

impl Check {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let path = place.config()?;
        let mut loaded = load(&path).map_err(|faults| Failure::new(Code::Failed, faults))?;
        let mut screen = Screen::stdout();
        if self.diff {
            let reply = look(place, &mut screen, Request::Plan)?;
            return settle(&mut screen, reply);
        }
        loaded.warnings.iter().for_each(|finding| complain(&finding.to_string()));
        look_at_env_files(&mut loaded.config);
        for line in describe(&loaded.config, clock::now().wall) {
            screen.line(&visible_lines(&line))?;
        }
        let mut lame = loaded.config.apps.values().filter(|app| app.problem.is_some()).map(|app| app.name.as_str());
        let name = path.display();
        if let Some(first) = lame.next() {
            let apps = lame.fold(first.to_owned(), |apps, app| format!("{apps}, {app}"));
            screen.flush()?;
            return Err(Failure::new(
                Code::Failed,
                format!("{name} can be applied, but these apps cannot run: {apps}"),
            ));
        }
        // It may be looked at elsewhere than where it runs.
        unguarded(&path, &loaded).iter().for_each(|open| complain(&format!("warning: {open}")));
        let mut useless = useless_secrets(&loaded.config);
        useless.extend(useless_keys(&loaded.config));
        for tls in loaded.config.http.iter().filter_map(|http| http.tls.as_ref()) {
            match certificate(tls) {
                Ok(warning) => warning.iter().for_each(|warning| complain(warning)),
                Err(error) => useless.push(error),
            }
        }
        if !useless.is_empty() {
            screen.flush()?;
            return Err(Failure::new(Code::Failed, useless.join("\n")));
        }
        screen.line(&format!("{name} is good"))?;
        Ok(screen.flush()?)
    }
}

/// What should be looked after soon of a certificate and its key, as far as whoever asks may look at them.
fn certificate(tls: &Tls) -> Result<Option<String>, String> {
    let now = clock::now().wall;
    if is_closed(&tls.key) {
        return Ok(None);
    }
    let placed = |what: String, i: usize| match &tls.places[i] {
        Some(place) => format!("{place}: {what}"),
        None => what,
    };
    match pair_files::read(&tls.cert, &tls.key, now) {
        Ok(pair) => {
            let warning = pair.warning(now);
            Ok(warning.map(|what| placed(format!("warning: the certificate {} {what}", tls.cert.display()), 0)))
        }
        Err(BadPair::Chain(why)) => Err(placed(why, 0)),
        Err(BadPair::Key(why)) => Err(placed(why, 1)),
    }
}

/// May whoever asks not look at it, unlike a supervisor perhaps?
fn is_closed(path: &Path) -> bool {
    files::open_regular(path).is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
}

/// An app does not run without what its `env_file` says.
fn look_at_env_files(config: &mut Config) {
    for app in config.apps.values_mut() {
        let read = |path: &&PathBuf| {
            let text = app_file::read(path, &app.owners()).map_err(|e| e.to_string());
            text.and_then(|text| env_file(&text)).map_err(|error| format!("env_file {}: {error}", path.display())).err()
        };
        let fault = app.env_file.iter().filter(|path| !is_closed(path)).find_map(|path| read(&path));
        if let Some(fault) = fault.map(|fault| app.fault("env_file", &fault)) {
            Arc::make_mut(app).problem.get_or_insert(fault.into());
        }
    }
}

/// Files of the config that a supervisor of root would not take.
fn unguarded(path: &Path, loaded: &Loaded) -> Vec<String> {
    if users::facts().uid != 0 {
        return Vec::new();
    }
    let all = std::iter::once(path).chain(loaded.included.iter().map(|(path, _)| path.as_path()));
    let all: BTreeSet<&Path> = all.flat_map(|path| [Some(path), path.parent()]).flatten().collect();
    all.into_iter().filter_map(|path| files::guard(path).err()).collect()
}

/// Secrets without which no supervisor takes the config, as far as whoever asks may look at them.
fn useless_secrets(config: &Config) -> Vec<String> {
    let owners: Vec<u32> = config.apps.values().flat_map(|app| app.owners()).collect();
    let useless = |secret: &SecretRef| {
        let SecretRef::File(path) = secret else { return None };
        // One in the state folder is made at the start.
        if is_closed(path) || (path.starts_with(&config.state_dir) && !path.exists()) {
            return None;
        }
        exposed(path, &owners).err()
    };
    let of_tokens = config.tokens.iter().filter_map(|token| Some((token, useless(&token.secret)?)));
    let of_tokens = of_tokens.map(|(token, error)| format!("token \"{}\": {error}", token.name));
    let of_apps = config.apps.values().flat_map(|app| {
        let secrets = app.deploy.iter().flat_map(|deploy| [&deploy.secret, &deploy.previous_secret]);
        let errors = secrets.flatten().filter_map(useless);
        errors.map(|error| format!("app \"{}\": {}", app.name, app.fault("", &error)))
    });
    of_tokens.chain(of_apps).collect()
}

fn exposed(path: &Path, owners: &[u32]) -> Result<Secret, String> {
    let secret = secret_file::read(path, owners).map(Secret::new)?;
    if secret.is_empty() { Err(format!("the secret {} is empty", path.display())) } else { Ok(secret) }
}

/// Keys and tokens that no deploy could use, as far as whoever asks may look at them.
fn useless_keys(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    for app in config.apps.values() {
        let Some(deploy) = &app.deploy else { continue };
        let fetcher = config.deploys.fetch_as.as_ref().unwrap_or(&app.work_as);
        let owners = [fetcher.uid, app.run_as.uid, app.work_as.uid];
        let token = deploy.access.https_token.as_ref().map(|https| &https.token);
        let status = deploy.status.as_ref().map(|status| &status.token);
        for (field, secret) in [("ssh_key", deploy.access.ssh_key.as_ref()), ("https_token", token), ("status", status)]
        {
            let Some(SecretRef::File(path)) = secret else { continue };
            if is_closed(path) {
                continue;
            }
            let read = exposed(path, &owners).and_then(|secret| match field {
                "ssh_key" => deploy_key(secret.expose()).map(drop).map_err(|what| format!("{} {what}", path.display())),
                _ => Ok(()),
            });
            let told =
                |error: String| format!("app \"{}\": {}", app.name, app.fault("", &format!("`{field}`: {error}")));
            found.extend(read.err().map(told));
        }
    }
    found
}
