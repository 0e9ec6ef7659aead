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
        config::{Config, SecretRef, Severity, Tls, deploy_key, describe},
        model::{BadPair, Secret},
    },
    os::{clock, pair_files, secret_file},
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
        let loaded = load(&path).map_err(|faults| Failure::new(Code::Failed, faults))?;
        let mut screen = Screen::stdout();
        if self.diff {
            let reply = look(place, &mut screen, Request::Plan)?;
            return settle(&mut screen, reply);
        }
        loaded.warnings.iter().for_each(|finding| complain(&finding.to_string()));
        for line in describe(&loaded.config, clock::now().wall) {
            screen.line(&visible_lines(&line))?;
        }
        let mut lame = loaded.warnings.iter().filter_map(|finding| match &finding.severity {
            Severity::AppProblem(app) => Some(app.as_str()),
            _ => None,
        });
        let name = path.display();
        if let Some(first) = lame.next() {
            let apps = lame.fold(first.to_owned(), |apps, app| format!("{apps}, {app}"));
            screen.flush()?;
            return Err(Failure::new(
                Code::Failed,
                format!("{name} can be applied, but these apps cannot run: {apps}"),
            ));
        }
        let mut useless = useless_keys(&loaded.config);
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
    if std::fs::File::open(&tls.key).is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied) {
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

/// Keys and tokens that no deploy could use, as far as whoever asks may look at them.
fn useless_keys(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    for app in config.apps.values() {
        let Some(deploy) = &app.deploy else { continue };
        let fetcher = config.deploys.fetch_as.as_ref().unwrap_or(&app.work_as);
        let owners = [fetcher.uid, app.run_as.uid, app.work_as.uid];
        let token = deploy.access.https_token.as_ref().map(|https| &https.token);
        for (field, secret) in [("ssh_key", deploy.access.ssh_key.as_ref()), ("https_token", token)] {
            let Some(SecretRef::File(path)) = secret else { continue };
            if std::fs::File::open(path).is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied) {
                continue;
            }
            let read = secret_file::read(path, &owners).map(Secret::new).and_then(|secret| match field {
                "ssh_key" => deploy_key(secret.expose()).map(drop).map_err(|what| format!("{} {what}", path.display())),
                _ if secret.is_empty() => Err(format!("the secret {} is empty", path.display())),
                _ => Ok(()),
            });
            found.extend(read.err().map(|error| format!("app \"{}\": `{field}`: {error}", app.name)));
        }
    }
    found
}
