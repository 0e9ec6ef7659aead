//! Which apps a proven delivery deploys, and when it repeats an earlier one: DESIGN.md section 7
//! ("Repeats") and section 8. What the store knows of earlier deploys is handed in as plain data.

use crate::domain::{
    api::DeployState,
    config::Trigger,
    hook::{Change, Dialect, Repository, What, same_repository},
    model::{AppName, CommitId, DeliveryId, Secret, nearest},
};

/// An app that deploys, as acceptance needs it.
#[derive(Debug, Clone)]
pub struct App {
    pub name: AppName,
    /// URL or absolute path, as configured.
    pub repo: String,
    /// Empty: the remote's default branch, which is judged after the fetch.
    pub on: Vec<Trigger>,
    /// `secret`, then `previous_secret`; empty: no hook is accepted for it.
    pub secrets: Vec<Secret>,
    /// `None`: of whoever is known by its headers.
    pub dialect: Option<Dialect>,
}

impl App {
    /// How a request is read that is known by its headers as `recognised`.
    fn reads<'a>(&'a self, recognised: Option<&'a Dialect>) -> Option<&'a Dialect> {
        self.dialect.as_ref().or(recognised)
    }
}

/// No more distinct secrets are tried for a delivery that names no app.
pub const MOST_SECRETS: usize = 64;

/// Secrets that an app can have: `secret` and `previous_secret`.
const SECRETS_OF_AN_APP: usize = 2;

/// All apps that deploy, prepared for acceptance.
#[derive(Debug, Default)]
pub struct Snapshot {
    apps: Vec<App>,
    /// The distinct secrets of all apps, each with the dialect it is for; at most [`MOST_SECRETS`].
    secrets: Vec<(Option<Dialect>, Secret)>,
    /// There are more.
    untried: bool,
}

/// A sender that proved itself.
#[derive(Debug)]
pub struct Sender<'a> {
    pub dialect: Dialect,
    /// The apps that it may speak for.
    pub apps: Vec<&'a App>,
}

/// Why a delivery proves nothing; for the record, never for its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    #[error("no such app")]
    NoSuchApp,
    #[error("the app has no secret")]
    NoSecret,
    #[error("no header tells for sure whose webhook it is: say it in the config (`dialect`)")]
    Unrecognised,
    #[error("no secret fits")]
    NoneFits,
    #[error(
        "none of {MOST_SECRETS} secrets fits, and more are not tried where no app is named: have the webhook call \
         /hooks/<app>"
    )]
    NoneOfThose,
}

/// A proven delivery whose repository is no app's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("repository {repository:?} is no app's{}", self.hint())]
pub struct Unmatched {
    pub repository: String,
    /// The app that was most likely meant.
    pub nearest: Option<AppName>,
}

impl Unmatched {
    fn hint(&self) -> String {
        self.nearest.as_ref().map_or_else(String::new, |app| format!("; the nearest app is \"{app}\""))
    }
}

impl Snapshot {
    #[must_use]
    pub fn new(apps: Vec<App>) -> Self {
        let mut secrets: Vec<(Option<Dialect>, Secret)> = Vec::new();
        let mut untried = false;
        for (app, secret) in apps.iter().flat_map(|app| app.secrets.iter().map(move |secret| (app, secret))) {
            if secrets.iter().any(|(dialect, known)| (dialect, known) == (&app.dialect, secret)) {
                continue;
            }
            if secrets.len() == MOST_SECRETS {
                untried = true;
                break;
            }
            secrets.push((app.dialect.clone(), secret.clone()));
        }
        Self { apps, secrets, untried }
    }

    /// The app of this name.
    #[must_use]
    pub fn app(&self, name: &str) -> Option<&App> {
        self.apps.iter().find(|app| app.name.as_str() == name)
    }

    /// Whether the app of this name reads a request so, or whoever may get it where it names none.
    #[must_use]
    pub fn dialect<'a>(&'a self, name: Option<&str>, recognised: Option<&'a Dialect>) -> Option<&'a Dialect> {
        name.and_then(|name| self.app(name)).map_or(recognised, |app| app.reads(recognised))
    }

    /// The sender of a request that is `recognised` by its headers: it may speak for the app it names,
    /// or else for all that have the first secret for which `proves` holds. For a name, known or not,
    /// as many secrets are tried as an app can have, so that the time tells nothing.
    ///
    /// # Errors
    /// When no secret of theirs fits.
    pub fn proven<'a>(
        &'a self,
        name: Option<&str>,
        recognised: Option<&Dialect>,
        mut proves: impl FnMut(Option<&Dialect>, &Secret) -> bool,
    ) -> Result<Sender<'a>, Unproven> {
        let Some(name) = name else { return self.proven_unnamed(recognised, proves) };
        let app = self.app(name);
        let dialect = self.dialect(Some(name), recognised);
        let secrets = app.map_or(&[][..], |app| &app.secrets);
        let fits = secrets.iter().any(|secret| proves(dialect, secret));
        if !fits {
            let nobodys = Secret::new(b"a secret that nobody has".to_vec());
            for _ in secrets.len()..SECRETS_OF_AN_APP {
                proves(dialect, &nobodys);
            }
        }
        match (app, dialect) {
            (None, _) => Err(Unproven::NoSuchApp),
            (Some(_), _) if secrets.is_empty() => Err(Unproven::NoSecret),
            (Some(_), None) => Err(Unproven::Unrecognised),
            (Some(app), Some(dialect)) if fits => Ok(Sender { dialect: dialect.clone(), apps: vec![app] }),
            (Some(_), Some(_)) => Err(Unproven::NoneFits),
        }
    }

    fn proven_unnamed<'a>(
        &'a self,
        recognised: Option<&Dialect>,
        mut proves: impl FnMut(Option<&Dialect>, &Secret) -> bool,
    ) -> Result<Sender<'a>, Unproven> {
        let mut why = Unproven::Unrecognised;
        for (dialect, secret) in &self.secrets {
            let Some(dialect) = dialect.as_ref().or(recognised) else { continue };
            if proves(Some(dialect), secret) {
                let knows = |app: &&App| app.secrets.contains(secret) && app.reads(recognised) == Some(dialect);
                return Ok(Sender { dialect: dialect.clone(), apps: self.apps.iter().filter(knows).collect() });
            }
            why = Unproven::NoneFits;
        }
        let why = if recognised.is_some() { Unproven::NoneFits } else { why };
        Err(if self.untried && why == Unproven::NoneFits { Unproven::NoneOfThose } else { why })
    }

    /// The apps among `proven` that the delivery is about. With a name in the path it is that app,
    /// whatever the body says; without one, those of the same repository, or the only app that there is.
    ///
    /// # Errors
    /// When it is about none; names the app that was most likely meant.
    pub fn matching<'a>(
        &self,
        proven: &[&'a App],
        named: bool,
        repository: &Repository,
    ) -> Result<Vec<&'a App>, Unmatched> {
        if named || self.apps.len() == 1 {
            return Ok(proven.to_vec());
        }
        let same: Vec<&App> = proven.iter().copied().filter(|app| same_repository(&app.repo, repository)).collect();
        if same.is_empty() {
            let nearest = likely(proven, repository).map(|app| app.name.clone());
            return Err(Unmatched { repository: repository.full_name.clone(), nearest });
        }
        Ok(same)
    }
}

/// The app whose repository was most likely renamed or moved to `repository`.
fn likely<'a>(proven: &[&'a App], repository: &Repository) -> Option<&'a App> {
    if let [only] = proven {
        return Some(only);
    }
    let wanted = repository.full_name.to_lowercase();
    let by = |fits: &dyn Fn(&str) -> bool| proven.iter().copied().find(|app| fits(&full_name(&app.repo)));
    let names: Vec<String> = proven.iter().map(|app| full_name(&app.repo)).collect();
    if let Some(near) = nearest(&wanted, names.iter().map(String::as_str)) {
        return by(&|name| name == near);
    }
    let (owner, name) = wanted.rsplit_once('/')?;
    by(&|full| full.rsplit_once('/').is_some_and(|(_, n)| n == name))
        .or_else(|| by(&|full| full.rsplit_once('/').is_some_and(|(o, _)| o == owner)))
}

/// `owner/name` of a configured repository, in lower case.
fn full_name(repo: &str) -> String {
    let path = repo.trim_end_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path).to_lowercase();
    let mut parts = path.rsplit(['/', ':']);
    let name = parts.next().unwrap_or_default();
    parts.next().map_or_else(|| name.to_owned(), |owner| format!("{owner}/{name}"))
}

/// Would the delivery of a deploy in this state do nothing new if it came once more?
fn stands(state: DeployState) -> bool {
    use DeployState::{Cancelled, Failed, RolledBack, Skipped};
    !matches!(state, Failed | RolledBack | Cancelled | Skipped)
}

/// What is known of an app when a delivery for it comes in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// The newest deploy of this app for the sender's own id of the delivery.
    pub same_id: Option<(DeliveryId, DeployState)>,
    /// What is live.
    pub live: Option<CommitId>,
    /// The delivery that brought it, where one did.
    pub live_by: Option<DeliveryId>,
    /// A deploy is queued or runs: what is live may not be so for long, and only the fetch can tell
    /// whether a push back to it comes last.
    pub under_way: bool,
}

/// What a change means to one app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    Deploy,
    /// Of this delivery, where one brought what is live.
    Duplicate(Option<DeliveryId>),
    Skip(String),
}

/// Is the change deployed to `app`? The store is asked only where it may be.
///
/// # Errors
/// Those of `known`.
pub fn judge<E>(app: &App, change: &Change, known: impl FnOnce() -> Result<Known, E>) -> Result<Judgement, E> {
    if let Some(reason) = unwanted(app, change) {
        return Ok(Judgement::Skip(reason));
    }
    let known = known()?;
    match known.same_id {
        Some((delivery, state)) if stands(state) => return Ok(Judgement::Duplicate(Some(delivery))),
        _ => {}
    }
    if change.after.is_some() && change.after == known.live && !known.under_way {
        return Ok(Judgement::Duplicate(known.live_by));
    }
    Ok(Judgement::Deploy)
}

/// Why a change is not deployed to `app`, if it is not. Only the whole name of a ref counts.
fn unwanted(app: &App, change: &Change) -> Option<String> {
    let name = change.ref_name.as_str();
    let (kind, short) = match (name.strip_prefix("refs/heads/"), name.strip_prefix("refs/tags/")) {
        (Some(branch), _) => ("branch", branch),
        (_, Some(tag)) => ("tag", tag),
        _ => ("ref", name),
    };
    if change.deleted {
        return Some(format!("{kind} {short:?} was deleted"));
    }
    let wants = |trigger: &Trigger| match (trigger, change.what, kind) {
        (Trigger::Push(glob), What::Push, "branch")
        | (Trigger::Tag(glob), What::Push, "tag")
        | (Trigger::Pipeline(glob), What::Pipeline, "branch") => glob.fits(short),
        (Trigger::Release, What::Release, "tag") => true,
        _ => false,
    };
    let default = app.on.is_empty() && change.what == What::Push && kind == "branch";
    if default || app.on.iter().any(wants) {
        return None;
    }
    Some(match change.what {
        What::Push => format!("{kind} {short:?} is not deployed"),
        What::Release => format!("the release of {kind} {short:?} is not deployed: `on` has no `Release`"),
        What::Pipeline => format!("the pipeline of {kind} {short:?} is not one that `on` names"),
    })
}

/// What becomes of a whole delivery. `T`: one change for one app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<T> {
    /// Each of these is one deploy.
    Accepted(Vec<T>),
    Duplicate(Option<DeliveryId>),
    Skipped(String),
}

/// Reasons for a delivery that are told; a push of many tags has many.
const MOST_REASONS: usize = 3;

/// Sums up what the changes mean to the apps: it is accepted where one is deployed, a duplicate where
/// at least one has been, and skipped otherwise, for the reasons that there are.
#[must_use]
pub fn outcome<T>(judged: Vec<(T, Judgement)>) -> Outcome<T> {
    let mut accepted = Vec::new();
    let mut duplicate = None;
    let mut reasons: Vec<String> = Vec::new();
    for (one, judgement) in judged {
        match judgement {
            Judgement::Deploy => accepted.push(one),
            Judgement::Duplicate(of) => duplicate = Some(duplicate.flatten().or(of)),
            Judgement::Skip(reason) if reasons.contains(&reason) => {}
            Judgement::Skip(reason) => reasons.push(reason),
        }
    }
    match (accepted.is_empty(), duplicate) {
        (false, _) => Outcome::Accepted(accepted),
        (true, Some(of)) => Outcome::Duplicate(of),
        (true, None) => Outcome::Skipped(summed_up(&reasons)),
    }
}

fn summed_up(reasons: &[String]) -> String {
    let told = reasons[..reasons.len().min(MOST_REASONS)].join("; ");
    match reasons.len().saturating_sub(MOST_REASONS) {
        0 if told.is_empty() => "no app deploys it".to_owned(),
        0 => told,
        more => format!("{told}; and {more} more"),
    }
}

#[cfg(test)]
mod tests;
