//! What forges send: which dialect a request speaks, whether it proves itself, what it says. One file
//! a dialect; the formats are those of the forges' own documentation.
//!
//! The proof is over the exact bytes received and comes before a byte of the body is parsed; every
//! comparison takes the same time whether it fits or not. This room never decides what is deployed,
//! and never says why a proof failed.

mod azure_devops;
mod bitbucket_cloud;
mod bitbucket_data_center;
mod forgejo;
mod form;
mod generic;
mod gitea;
mod gitee;
mod github;
mod gitlab;
mod gogs;
mod pick;
mod proof;
mod repository;
mod standard;
mod text;

use std::borrow::Cow;

use crate::domain::{
    config::Generic,
    model::{At, CommitId, Secret},
};

pub use crate::domain::config::Dialect;
pub use form::{BadEncoding, decode as percent_decode, field};
pub use proof::{Flaw, Proof};
pub use repository::{Repository, same_repository};

/// What a dialect is; each is told in its own file.
struct Forge {
    /// The header that names the event; empty: the body does.
    event: &'static str,
    /// The headers that may hold the sender's own id of a delivery; the first that came counts.
    ids: &'static [&'static str],
    proof: for<'a> fn(&Request<'a>) -> Result<Proof<'a>, Flaw>,
    parse: fn(&Head, &[u8]) -> Result<Said, NotUnderstood>,
}

/// `Err`: what the config says of one that it describes.
fn forge(dialect: &Dialect) -> Result<&'static Forge, &Generic> {
    Ok(match dialect {
        Dialect::GitHub => &github::FORGE,
        Dialect::GitLab => &gitlab::FORGE,
        Dialect::Gitea => &gitea::FORGE,
        Dialect::Forgejo => &forgejo::FORGE,
        Dialect::Gogs => &gogs::FORGE,
        Dialect::BitbucketCloud => &bitbucket_cloud::FORGE,
        Dialect::BitbucketDataCenter => &bitbucket_data_center::FORGE,
        Dialect::Gitee => &gitee::FORGE,
        Dialect::AzureDevOps => &azure_devops::FORGE,
        Dialect::StandardWebhooks => &standard::FORGE,
        Dialect::Generic(generic) => return Err(generic),
    })
}

/// A request's headers: names in lower case, and their values. Read once, as each is asked for by many.
#[derive(Debug, Clone, Default)]
pub struct Headers<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

/// A line each, `name: value`.
impl<'a> From<&'a str> for Headers<'a> {
    fn from(lines: &'a str) -> Self {
        let pair = |line: &'a str| {
            let (name, value) = line.split_once(':')?;
            Some((name.into(), value.strip_prefix(' ')?.into()))
        };
        Self(lines.split_terminator('\n').filter_map(pair).collect())
    }
}

impl From<Vec<(String, String)>> for Headers<'static> {
    fn from(pairs: Vec<(String, String)>) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl Headers<'_> {
    /// The value of a header that came once and is not empty. One that came twice says two things and
    /// counts as absent.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(n, _)| n == name).map(|(_, value)| &**value);
        let value = values.next().filter(|value| !value.is_empty())?;
        values.next().is_none().then_some(value)
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n == name)
    }
}

/// A request that is to prove itself.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub headers: &'a Headers<'a>,
    /// What came over the wire, byte for byte.
    pub body: &'a [u8],
    /// When it came.
    pub at: At,
}

impl Request<'_> {
    fn is_form(&self) -> bool {
        is_form(self.headers)
    }
}

fn is_form(headers: &Headers<'_>) -> bool {
    let kind = headers.get("content-type").unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// Which forge sent this, by its own headers; `None` for any other sender, and for a request that
/// claims two at once. Forgejo, Gitea and Gogs send the headers of those that they stem from too.
#[must_use]
pub fn recognise(headers: &Headers<'_>) -> Option<Dialect> {
    let has = |name: &&str| headers.has(name);
    let of_github = [
        (&forgejo::FORGE, Dialect::Forgejo),
        (&gitea::FORGE, Dialect::Gitea),
        (&gogs::FORGE, Dialect::Gogs),
        (&github::FORGE, Dialect::GitHub),
    ];
    let bitbucket = || {
        let cloud = bitbucket_cloud::OWN.iter().any(has);
        if cloud { Dialect::BitbucketCloud } else { Dialect::BitbucketDataCenter }
    };
    let claims = [
        of_github.into_iter().find(|(forge, _)| has(&forge.event)).map(|(_, dialect)| dialect),
        has(&gitlab::FORGE.event).then_some(Dialect::GitLab),
        has(&gitee::FORGE.event).then_some(Dialect::Gitee),
        has(&bitbucket_cloud::EVENT).then(bitbucket),
        azure_devops::OWN.iter().any(has).then_some(Dialect::AzureDevOps),
    ];
    let mut claims = claims.into_iter().flatten();
    match (claims.next(), claims.next()) {
        (Some(dialect), None) => Some(dialect),
        (Some(_), Some(_)) => None,
        (None, _) => {
            let standard = [standard::ID, standard::SIGNATURE].iter().all(has);
            standard.then_some(Dialect::StandardWebhooks)
        }
    }
}

/// What the request shows for its proof.
///
/// # Errors
/// Why no secret can fit it.
pub fn proof<'a>(dialect: &Dialect, request: &Request<'a>) -> Result<Proof<'a>, Flaw> {
    match forge(dialect) {
        Ok(forge) => (forge.proof)(request),
        Err(generic) => generic::prove(generic, request),
    }
}

/// Does the sender know this secret? `even`: a failure takes the time of a hash of the body, whatever
/// the dialect, so that it tells nothing of an app that is named.
#[must_use]
pub fn proves(dialect: Option<&Dialect>, request: &Request<'_>, secret: &Secret, even: bool) -> bool {
    let shown = dialect.and_then(|dialect| proof(dialect, request).ok());
    let fits = shown.as_ref().is_some_and(|proof| proof.fits(secret));
    if !fits && even && !shown.is_some_and(|proof| proof.hashes()) {
        proof::spend(request, secret);
    }
    fits
}

/// Why no secret fits a request, for the app's people.
#[must_use]
pub fn why_unproven(dialect: Option<&Dialect>, request: &Request<'_>) -> String {
    let flaw = dialect.and_then(|dialect| match proof(dialect, request) {
        Ok(proof) => proof.doubt().cloned(),
        Err(flaw) => Some(flaw),
    });
    flaw.map_or_else(|| "no secret fits".to_owned(), |flaw| flaw.to_string())
}

/// What the headers say of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The event's name as the forge spells it, fit to be shown: `push`, `Merge Request Hook`. Empty
    /// where the body names it.
    pub event: String,
    /// The sender's own id of the delivery, the same when it is sent again. `None` where there is
    /// none, or none that can be one: over 128 bytes, or other than visible ASCII.
    pub sender_id: Option<String>,
    /// The body is a form.
    pub form: bool,
}

impl Head {
    /// Of a delivery that came before, of which only this is kept.
    #[must_use]
    pub fn again(event: Option<String>, sender_id: Option<String>, body: &[u8]) -> Self {
        // JSON begins with a bracket, and no form does.
        let first = body.iter().find(|b| !b.is_ascii_whitespace());
        Self { event: event.unwrap_or_default(), sender_id, form: !matches!(first, Some(b'{' | b'[')) }
    }
}

/// Reads the headers.
#[must_use]
pub fn head(dialect: &Dialect, headers: &Headers<'_>) -> Head {
    let (event, id) = match forge(dialect) {
        Ok(forge) => (forge.event, forge.ids.iter().find_map(|name| headers.get(name))),
        Err(generic) => (generic.event.as_deref().unwrap_or_default(), generic::id(generic, headers)),
    };
    let ping = *dialect == Dialect::Gitee && headers.get(gitee::PING) == Some("true");
    let event = if ping { "ping" } else { headers.get(event).unwrap_or_default() };
    Head {
        event: text::line(event, 100),
        sender_id: id.filter(|id| sound_id(id)).map(str::to_owned),
        form: is_form(headers),
    }
}

fn sound_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
}

/// What a dialect makes of a body.
struct Said {
    kind: Kind,
    sender: Option<String>,
    repository: Repository,
    /// The event and the sender's id where the body names them.
    event: Option<String>,
    id: Option<String>,
}

impl Said {
    fn of(kind: Kind) -> Self {
        Self { kind, sender: None, repository: Repository::default(), event: None, id: None }
    }
}

/// What a delivery says. Every text is one line without control characters, and of bounded length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    pub event: String,
    pub sender_id: Option<String>,
    pub kind: Kind,
    /// Who did it at the forge.
    pub sender: Option<String>,
    pub repository: Repository,
}

/// What happened at the forge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The hook was set up.
    Ping,
    /// At least one; several where one push tells of several refs.
    Changes(Vec<Change>),
    /// Nothing that is ever deployed; `why` is a sentence for the sender.
    Other { why: String },
}

impl Kind {
    fn of(changes: Vec<Change>) -> Self {
        if changes.is_empty() { Self::Other { why: "it changes no ref".to_owned() } } else { Self::Changes(changes) }
    }
}

/// What a deploy may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A branch or a tag was pushed.
    Push,
    /// A release was published.
    Release,
    /// A pipeline succeeded.
    Pipeline,
}

/// Something new about a branch or a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub what: What,
    /// The full name: `refs/heads/feature/x`, `refs/tags/v1`.
    pub ref_name: String,
    /// `None`: it was made by this push.
    pub before: Option<CommitId>,
    /// Where it points now, or what succeeded; for an annotated tag it may be the id of the tag. `None`:
    /// the forge does not say, or it was deleted.
    pub after: Option<CommitId>,
    pub deleted: bool,
    /// First line of the newest commit's message.
    pub subject: Option<String>,
    pub author: Option<String>,
}

/// A proven body that is no delivery of its dialect; one line that says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotUnderstood(String);

impl From<serde_json::Error> for NotUnderstood {
    fn from(error: serde_json::Error) -> Self {
        Self(text::line(&format!("the body is not understood: {}", in_words_of_json(&error.to_string())), 300))
    }
}

/// What serde calls by the names that these types have here is an object for whoever sends it.
fn in_words_of_json(error: &str) -> String {
    let Some((before, after)) = error.split_once("expected struct ") else { return error.to_owned() };
    let place = after.find(" at line ").unwrap_or(after.len());
    format!("{before}expected an object{}", &after[place..])
}

/// Reads a delivery that has proven itself.
///
/// # Errors
/// When the body is broken, or a field that everything hangs on is missing.
pub fn parse(dialect: &Dialect, head: Head, body: &[u8]) -> Result<Parsed, NotUnderstood> {
    let said = match forge(dialect) {
        Ok(forge) => (forge.parse)(&head, body)?,
        Err(generic) => generic::parse(generic, &head, body)?,
    };
    Ok(Parsed {
        event: said.event.unwrap_or(head.event),
        sender_id: head.sender_id.or(said.id),
        kind: said.kind,
        sender: said.sender,
        repository: said.repository,
    })
}

/// `refs/tags/…` of a tag's name.
fn tag_ref(name: &str) -> Result<String, NotUnderstood> {
    full_ref(&format!("refs/tags/{name}"))
}

/// `refs/heads/…` of a branch's name.
fn branch_ref(name: &str) -> Result<String, NotUnderstood> {
    full_ref(&format!("refs/heads/{name}"))
}

fn not_deployed(event: &str) -> Kind {
    Kind::Other { why: format!("event `{event}` is not deployed") }
}

/// A ref's full name as the body has it. What git itself would never take is no name.
fn full_ref(name: &str) -> Result<String, NotUnderstood> {
    let good = name.len() <= 1024 && name.strip_prefix("refs/").is_some_and(|rest| !rest.is_empty());
    if good && !name.chars().any(|c| c.is_control() || c == ' ') {
        return Ok(name.to_owned());
    }
    Err(NotUnderstood(format!("{:?} is no full name of a ref", text::line(name, 100))))
}

/// A commit as the body has it; all zeros is none.
fn commit(id: &str) -> Result<Option<CommitId>, NotUnderstood> {
    if matches!(id.len(), 40 | 64) && id.bytes().all(|b| b == b'0') {
        return Ok(None);
    }
    id.parse().map(Some).map_err(|_| NotUnderstood(format!("{:?} is no commit id", text::line(id, 70))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers<'static> {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect::<Vec<_>>().into()
    }

    #[test]
    fn a_forge_is_known_by_its_own_headers() {
        let github = ("x-github-event", "push");
        let gogs = ("x-gogs-event", "push");
        let gitea = ("x-gitea-event", "push");
        let key = ("x-event-key", "repo:push");
        let (id, signature) = ((standard::ID, "1"), (standard::SIGNATURE, "v1,x"));
        let is = |pairs: &[(&str, &str)], name: &str| {
            assert_eq!(recognise(&headers(pairs)).map_or("", |dialect| dialect.name()), name, "{pairs:?}");
        };
        is(&[github], "github");
        is(&[("x-gitlab-event", "Push Hook")], "gitlab");
        is(&[("x-gitlab-event", "Push Hook"), id, signature], "gitlab");
        is(&[github, gogs], "gogs");
        is(&[github, gogs, gitea], "gitea");
        is(&[github, gogs, gitea, ("x-forgejo-event", "push")], "forgejo");
        is(&[("x-gitee-event", "Push Hook")], "gitee");
        is(&[key, ("x-hook-uuid", "{1}")], "bitbucket_cloud");
        is(&[key, ("x-request-id", "1")], "bitbucket_data_center");
        is(&[("x-vss-activityid", "1"), ("authorization", "Basic eDp5")], "azure_devops");
        is(&[id, signature], "standard_webhooks");
        is(&[], "");
        is(&[id], "");
        is(&[("authorization", "Bearer x")], "");
        // Nobody is two at once.
        is(&[github, ("x-gitlab-event", "Push Hook")], "");
        is(&[gitea, ("x-gitee-event", "Push Hook")], "");
        is(&[github, key], "");
    }

    #[test]
    fn a_header_that_comes_twice_or_empty_is_absent() {
        assert_eq!(headers(&[("a", "1")]).get("a"), Some("1"));
        assert_eq!(headers(&[("a", "1"), ("a", "1")]).get("a"), None);
        assert_eq!(headers(&[("a", "")]).get("a"), None);
    }

    #[test]
    fn an_id_is_short_and_visible_or_none() {
        let id = |value: &str| head(&Dialect::GitHub, &headers(&[("x-github-delivery", value)])).sender_id;
        assert_eq!(id("72d3162e-cc78-11e3-81ab-4c9367dc0958").as_deref(), Some("72d3162e-cc78-11e3-81ab-4c9367dc0958"));
        assert_eq!(id(&"a".repeat(129)), None);
        assert_eq!(id("a\u{1b}[2J"), None);
        let gitlab = headers(&[("x-gitlab-event-uuid", "u"), ("webhook-id", "w"), ("idempotency-key", "k")]);
        assert_eq!(head(&Dialect::GitLab, &gitlab).sender_id.as_deref(), Some("k"));
        let older = headers(&[("x-gitlab-event-uuid", "u")]);
        assert_eq!(head(&Dialect::GitLab, &older).sender_id.as_deref(), Some("u"));
    }

    #[test]
    fn who_sends_something_else_is_told_what_is_expected_and_where() {
        let why = |body: &str| {
            let head = Head { event: "push".to_owned(), sender_id: None, form: false };
            parse(&Dialect::GitHub, head, body.as_bytes()).unwrap_err().to_string()
        };
        let at = "the body is not understood: invalid";
        assert_eq!(why("7"), format!("{at} type: integer `7`, expected an object at line 1 column 1"));
        assert_eq!(why("[]"), format!("{at} length 0, expected an object at line 1 column 2"));
        let repository = "{\n\"repository\": \"blog\"}";
        assert_eq!(why(repository), format!("{at} type: string \"blog\", expected an object at line 2 column 20"));
    }

    #[test]
    fn what_is_kept_is_enough_to_read_a_delivery_again() {
        let again = |dialect: Dialect, event: &str, body: &[u8]| {
            let head = Head::again(Some(event.to_owned()), Some("id-1".to_owned()), body);
            let parsed = parse(&dialect, head, body).unwrap();
            assert_eq!((parsed.event.as_str(), parsed.sender_id.as_deref()), (event, Some("id-1")));
            parsed.kind
        };
        let json = format!("{{\"ref\": \"refs/heads/x\", \"after\": \"{}\"}}", "a".repeat(40));
        let form = format!("payload={}", json.replace('"', "%22").replace(' ', "+"));
        let kind = again(Dialect::GitHub, "push", json.as_bytes());
        assert!(matches!(&kind, Kind::Changes(of) if of[0].ref_name == "refs/heads/x"), "{kind:?}");
        assert_eq!(again(Dialect::GitHub, "push", form.as_bytes()), kind);
        let gitlab = json.replacen('{', "{\"object_kind\": \"push\", ", 1);
        assert!(matches!(again(Dialect::GitLab, "Push Hook", gitlab.as_bytes()), Kind::Changes(_)));
    }

    #[test]
    fn refs_and_commits_are_whole_or_refused() {
        for good in ["refs/heads/x", "refs/heads/feature/%41\"ü", "refs/tags/v1"] {
            assert_eq!(full_ref(good).unwrap(), good);
        }
        for bad in ["", "master", "refs/", "refs/heads/a b", "refs/heads/a\n", &format!("refs/{}", "a".repeat(1024))] {
            assert!(full_ref(bad).is_err(), "{bad}");
        }
        assert_eq!(commit(&"0".repeat(40)).unwrap(), None);
        assert_eq!(commit(&"0".repeat(64)).unwrap(), None);
        assert!(commit(&"a".repeat(64)).unwrap().is_some());
        for bad in ["", "0", "abc", &"0".repeat(41)] {
            assert!(commit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_empty_secret_proves_nothing() {
        let headers = headers(&[("x-gitlab-event", "Push Hook"), ("x-gitlab-token", "")]);
        let request = Request { headers: &headers, body: b"", at: At(0) };
        assert!(!proves(Some(&Dialect::GitLab), &request, &Secret::new(Vec::new()), true));
    }
}
