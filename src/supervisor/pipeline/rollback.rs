//! Going back to a release that was live.

use std::collections::BTreeMap;

use super::super::{
    Supervisor,
    control::ReplyTo,
    ledger::{Command, NewDeploy, Query},
};
use crate::domain::{
    api::{By, DeployState, DeployView, Refusal, RefusalKind, Reply, Request, Saying},
    model::{AppName, CommitId, ReleaseId},
};

/// A wish to go back.
pub struct Rollback {
    pub app: AppName,
    /// `None`: to the live one's predecessor.
    pub to: Option<ReleaseId>,
    /// Only tell what it would do.
    pub dry_run: bool,
    pub by: By,
    /// Where the wish came from, for the audit.
    pub address: Option<String>,
    /// Names the deploy that carries it out.
    pub ticket: u64,
    pub reply: ReplyTo,
}

impl Supervisor {
    /// Finds the release, sees that it is there, and queues its deploy.
    pub fn roll_back(&mut self, wish: Rollback) {
        let query = Query::Deploys { apps: Some(vec![wish.app.clone()]), n: 1000, before: None };
        self.ask_ledger(query, move |supervisor, reply| match reply {
            Ok(Reply::Deploys(deploys)) => supervisor.choose_release(wish, &deploys),
            Ok(_) => {}
            Err(refusal) => supervisor.refuse_rollback(&wish, refusal),
        });
    }

    fn refuse_rollback(&mut self, wish: &Rollback, refusal: Refusal) {
        self.queued.remove(&wish.ticket);
        self.audit_rollback(wish, Some(refusal.message.clone()));
        wish.reply.say(Saying::Refused(refusal));
    }

    fn audit_rollback(&mut self, wish: &Rollback, refused: Option<String>) {
        let request = Request::Rollback { app: wish.app.clone(), to: wish.to.clone(), dry_run: wish.dry_run };
        if !request.changes() {
            return;
        }
        self.audit(wish.by.clone(), wish.address.clone(), &request, Some(&wish.app), refused);
    }

    fn choose_release(&mut self, wish: Rollback, deploys: &[DeployView]) {
        let current = self.apps.get(&wish.app).and_then(|app| app.release()).map(|release| release.id.clone());
        let mut known: Vec<(ReleaseId, CommitId)> = deploys
            .iter()
            .filter(|deploy| deploy.state == DeployState::Live)
            .filter_map(|deploy| Some((deploy.release.clone()?, deploy.commit.clone()?)))
            .collect();
        known.sort();
        known.dedup();
        let refs: BTreeMap<_, _> = deploys.iter().map(|deploy| (deploy.id, deploy.ref_name.clone())).collect();
        let folder = self.layout.releases(&wish.app);
        let spec = self.apps.get(&wish.app).and_then(|app| app.spec().deploy.clone());
        // A working tree gets every commit back out of git.
        let in_place = spec.is_some_and(|deploy| deploy.tree().is_some());
        self.files.run(
            move || {
                known.retain(|(release, _)| in_place || folder.join(release.to_string()).is_dir());
                known
            },
            move |supervisor, known| match pick(&known, current.as_ref(), wish.to.as_ref()) {
                Ok(found) if wish.dry_run => supervisor.preview_rollback(&wish.app, found, wish.reply),
                Ok((release, commit)) => {
                    supervisor.audit_rollback(&wish, None);
                    let order = NewDeploy {
                        ticket: wish.ticket,
                        app: wish.app,
                        ref_name: refs.get(&release.deploy).cloned().flatten(),
                        rev: None,
                        commit: Some(commit),
                        release: Some(release),
                        by: wish.by,
                        approved_by: None,
                    };
                    supervisor.ledger.send(Command::NewDeploy(order));
                }
                Err(refusal) => supervisor.refuse_rollback(&wish, refusal),
            },
        );
    }
}

/// `known`: the releases on disk that were live, oldest first.
fn pick(
    known: &[(ReleaseId, CommitId)],
    current: Option<&ReleaseId>,
    to: Option<&ReleaseId>,
) -> Result<(ReleaseId, CommitId), Refusal> {
    let shown = || known.iter().map(|(release, _)| release.to_string()).collect::<Vec<_>>().join(", ");
    let refused = |kind, message| Err(Refusal::new(kind, message));
    match to {
        Some(to) => match known.iter().find(|(release, _)| release == to) {
            Some(found) => Ok(found.clone()),
            None => refused(RefusalKind::NotFound, format!("release {to} is not there; there are: {}", shown())),
        },
        None => match known.iter().rfind(|(release, _)| current.is_none_or(|current| release < current)) {
            Some(found) => Ok(found.clone()),
            None => refused(RefusalKind::Failed, "there is no earlier release to go back to".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_name_it_is_the_predecessor() {
        let known: Vec<(ReleaseId, CommitId)> = [(1, "a"), (3, "b"), (9, "c")]
            .map(|(n, c)| {
                let commit: CommitId = c.repeat(40).parse().unwrap();
                (ReleaseId::new(n, &commit), commit)
            })
            .into();
        let name = |n: usize| &known[n].0;
        assert_eq!(&pick(&known, Some(name(2)), None).unwrap().0, name(1));
        assert_eq!(&pick(&known, Some(name(1)), None).unwrap().0, name(0));
        assert_eq!(pick(&known, Some(name(0)), None).unwrap_err().kind, RefusalKind::Failed);
        assert_eq!(&pick(&known, Some(name(0)), Some(name(2))).unwrap().0, name(2));
        let gone = "5-1234567".parse().unwrap();
        assert_eq!(pick(&known, None, Some(&gone)).unwrap_err().kind, RefusalKind::NotFound);
    }
}
