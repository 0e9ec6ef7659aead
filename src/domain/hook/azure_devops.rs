//! Azure DevOps service hooks: basic authentication with the secret as password, or the header
//! `Authorization: Bearer <secret>`. The body names event and id; one push may tell of several refs.
//! There is no signature and no time: repeats are known by the id.

use std::borrow::Cow;

use serde::Deserialize;

use super::{
    Change, Forge, Head, Kind, NotUnderstood, Proof, Repository, Said, What, commit, full_ref, not_deployed, proof,
    sound_id, text,
};

pub(super) const FORGE: Forge =
    Forge { event: "", ids: &[], proof: |request| proof::authorization(request).map(Proof::token), parse };

/// What its requests are known by.
pub(super) const OWN: [&str; 2] = ["x-vss-subscriptionid", "x-vss-activityid"];

/// The subscription of a test.
const NO_SUBSCRIPTION: &str = "00000000-0000-0000-0000-000000000000";

#[derive(Deserialize)]
struct Any {
    #[serde(default)]
    id: Option<String>,
    #[serde(default, rename = "subscriptionId")]
    subscription: Option<String>,
    #[serde(rename = "eventType")]
    event: String,
}

#[derive(Deserialize)]
struct PushBody<'a> {
    #[serde(borrow)]
    resource: Resource<'a>,
}

#[derive(Deserialize)]
struct Resource<'a> {
    #[serde(rename = "refUpdates", borrow)]
    updates: Vec<Update<'a>>,
    #[serde(default, borrow)]
    commits: Vec<Commit<'a>>,
    #[serde(default)]
    repository: Option<RepositoryField>,
    #[serde(default, rename = "pushedBy")]
    by: Option<Pusher>,
}

#[derive(Deserialize)]
struct Update<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(rename = "oldObjectId", borrow)]
    from: Cow<'a, str>,
    #[serde(rename = "newObjectId", borrow)]
    to: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Commit<'a> {
    #[serde(default, rename = "commitId", borrow)]
    id: Cow<'a, str>,
    #[serde(default, borrow)]
    comment: Cow<'a, str>,
    #[serde(default)]
    author: Option<Author>,
}

#[derive(Deserialize)]
struct Author {
    #[serde(default)]
    name: Option<String>,
}

#[derive(Deserialize)]
struct Pusher {
    #[serde(default, rename = "displayName")]
    name: Option<String>,
}

#[derive(Deserialize)]
struct RepositoryField {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    project: Option<Project>,
    #[serde(default, rename = "remoteUrl")]
    remote: Option<String>,
}

#[derive(Deserialize)]
struct Project {
    #[serde(default)]
    name: Option<String>,
}

fn parse(_: &Head, body: &[u8]) -> Result<Said, NotUnderstood> {
    let any: Any = serde_json::from_slice(body)?;
    let (id, event) = (any.id.filter(|id| sound_id(id)), Some(text::line(&any.event, 100)));
    if any.subscription.as_deref() == Some(NO_SUBSCRIPTION) {
        return Ok(Said { id, event, ..Said::of(Kind::Ping) });
    }
    if any.event != "git.push" {
        return Ok(Said { id, event, ..Said::of(not_deployed(&text::line(&any.event, 100))) });
    }
    let Resource { updates, commits, repository, by } = serde_json::from_slice::<PushBody>(body)?.resource;
    let kind = Kind::of(updates.iter().map(|update| moved(update, &commits)).collect::<Result<_, _>>()?);
    let sender = by.and_then(|by| by.name).and_then(|name| text::some_line(&name, 100));
    let repository = repository.map_or_else(Repository::default, |field| {
        let name = field.project.and_then(|project| project.name).zip(field.name);
        let ssh = field.remote.as_deref().and_then(over_ssh);
        Repository::new(name.map(|(project, name)| format!("{project}/{name}")), [field.remote, ssh])
    });
    Ok(Said { id, event, sender, repository, ..Said::of(kind) })
}

fn moved(update: &Update<'_>, commits: &[Commit<'_>]) -> Result<Change, NotUnderstood> {
    let after = commit(&update.to)?;
    let head = commits.iter().find(|commit| commit.id == update.to);
    let author = head.and_then(|head| head.author.as_ref()?.name.as_deref());
    Ok(Change {
        what: What::Push,
        ref_name: full_ref(&update.name)?,
        before: commit(&update.from)?,
        deleted: after.is_none(),
        after,
        subject: head.and_then(|head| text::some_line(&head.comment, 200)),
        author: author.and_then(|name| text::some_line(name, 100)),
    })
}

/// The address for ssh, which has another path than that for https.
fn over_ssh(https: &str) -> Option<String> {
    let path = https.strip_prefix("https://")?.split_once("dev.azure.com/")?.1;
    let (place, name) = path.split_once("/_git/")?;
    Some(format!("git@ssh.dev.azure.com:v3/{place}/{name}"))
}
