//! What is told to a forge about the commits of a deploy. DESIGN.md section 7, "Told to the forge".
//!
//! | the deploy is | the commit's status |
//! |---|---|
//! | queued, awaiting approval | queued |
//! | fetched, checked, built, switched, verified | running |
//! | live; skipped, as there is nothing to deploy | success |
//! | failed in `check` or `build` | failure |
//! | failed elsewhere, rolled back | error |
//! | cancelled, superseded | cancelled |
//!
//! Of several deploys of one commit the newest speaks that was neither cancelled nor superseded.
//!
//! A commit is told of once it is certain that it is the one: what a tag names is known only after the
//! fetch.

use crate::domain::{
    api::{CommitStatus, DeployState, DeployView, StatusState},
    model::{CommitId, ReleaseId},
};

/// What is new to a forge when a deploy's record changes, or begins.
#[must_use]
pub fn statuses(before: Option<&DeployView>, after: &DeployView) -> Vec<CommitStatus> {
    let before = before.filter(|view| is_certain(view));
    let same = before.filter(|view| view.commit == after.commit);
    let told = (same.is_some() || is_certain(after)).then(|| status(after)).flatten();
    let new = told.filter(|new| same.and_then(status).as_ref() != Some(new));
    // It went on with another commit, such as a newer one of the branch.
    let left = before.filter(|_| same.is_none()).and_then(|view| left_behind(view, after));
    left.into_iter().chain(new).collect()
}

/// Is its commit the one that is or would be deployed?
fn is_certain(view: &DeployView) -> bool {
    view.release.is_some() || view.ref_name.as_ref().is_some_and(|name| name.starts_with("refs/heads/"))
}

/// What there is to say of its commit.
#[must_use]
pub fn status(view: &DeployView) -> Option<CommitStatus> {
    use DeployState as D;
    let (id, why) = (view.id, view.reason.as_deref().unwrap_or_default());
    let because = |what: &str| if why.is_empty() { what.to_owned() } else { format!("{what}: {why}") };
    let checked = matches!(view.step.as_deref(), Some("check" | "build"));
    let (state, description) = match view.state {
        D::Accepted | D::Queued => (StatusState::Queued, format!("deploy {id} is queued")),
        D::AwaitingApproval => (StatusState::Queued, because(&format!("deploy {id} awaits approval"))),
        D::Fetching | D::Checking | D::Building | D::Switching | D::Verifying => {
            (StatusState::Running, format!("deploy {id} runs"))
        }
        D::Live => {
            let release = view.release.as_ref().map(ReleaseId::to_string).unwrap_or_default();
            let note = if why.is_empty() { String::new() } else { format!(" ({why})") };
            (StatusState::Success, format!("live as {release}{note}"))
        }
        D::Skipped => (StatusState::Success, because("skipped")),
        D::Failed => (if checked { StatusState::Failure } else { StatusState::Error }, because("failed")),
        D::RolledBack => (StatusState::Error, because("rolled back")),
        D::Superseded => (StatusState::Cancelled, because("superseded")),
        D::Cancelled => (StatusState::Cancelled, because("cancelled")),
    };
    Some(CommitStatus { commit: view.commit.clone()?, ref_name: view.ref_name.clone(), deploy: id, state, description })
}

fn left_behind(before: &DeployView, after: &DeployView) -> Option<CommitStatus> {
    let instead = after.commit.as_ref().map_or("another commit", CommitId::short);
    let description = format!("superseded: deploy {} takes {instead}", after.id);
    let told = status(before)?;
    Some(CommitStatus { state: StatusState::Cancelled, description, ..told })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{api::By, model::At};

    fn commit(digit: char) -> CommitId {
        digit.to_string().repeat(40).parse().unwrap()
    }

    fn view(state: DeployState, digit: char, ref_name: &str) -> DeployView {
        DeployView {
            id: 7,
            state,
            commit: Some(commit(digit)),
            ref_name: Some(ref_name.to_owned()),
            ..DeployView::new(&"blog".parse().unwrap(), By::First, At(0))
        }
    }

    fn push(state: DeployState) -> DeployView {
        view(state, '1', "refs/heads/main")
    }

    fn states(before: Option<&DeployView>, after: &DeployView) -> Vec<(String, StatusState)> {
        let told = statuses(before, after);
        told.into_iter().map(|status| (status.commit.short()[..1].to_owned(), status.state)).collect()
    }

    #[test]
    fn a_push_is_told_of_from_the_queue_to_its_end() {
        use DeployState as D;
        let mut before: Option<DeployView> = None;
        let mut told = Vec::new();
        for state in [D::Queued, D::Fetching, D::Checking, D::Building, D::Switching, D::Verifying, D::Live] {
            let after = push(state);
            told.extend(statuses(before.as_ref(), &after).into_iter().map(|status| status.state));
            before = Some(after);
        }
        assert_eq!(told, [StatusState::Queued, StatusState::Running, StatusState::Success]);
    }

    #[test]
    fn only_its_own_steps_speak_against_a_commit() {
        let failed = |step: &str| DeployView { step: Some(step.to_owned()), ..push(DeployState::Failed) };
        let running = push(DeployState::Building);
        for (step, state) in [
            ("check", StatusState::Failure),
            ("build", StatusState::Failure),
            ("fetch", StatusState::Error),
            ("verify", StatusState::Error),
        ] {
            assert_eq!(states(Some(&running), &failed(step)), [("1".to_owned(), state)], "{step}");
        }
    }

    #[test]
    fn what_a_tag_names_is_told_of_once_it_is_known() {
        let tag = |state, digit| view(state, digit, "refs/tags/v1");
        assert_eq!(states(None, &tag(DeployState::Queued, '1')), []);
        let peeled = tag(DeployState::Fetching, '2');
        let named = DeployView { release: Some(ReleaseId::new(7, &commit('2'))), ..peeled.clone() };
        assert_eq!(states(Some(&tag(DeployState::Queued, '1')), &peeled), []);
        assert_eq!(states(Some(&peeled), &named), [("2".to_owned(), StatusState::Running)]);
        // Its end takes the release from the record.
        let failed = DeployView { state: DeployState::Failed, release: None, ..named.clone() };
        assert_eq!(states(Some(&named), &failed), [("2".to_owned(), StatusState::Error)]);
        let skipped = tag(DeployState::Skipped, '2');
        assert_eq!(states(Some(&peeled), &skipped), []);
    }

    #[test]
    fn a_deploy_that_takes_another_commit_lets_go_of_its_first() {
        let after = view(DeployState::Fetching, '3', "refs/heads/main");
        assert_eq!(
            states(Some(&push(DeployState::Fetching)), &after),
            [("1".to_owned(), StatusState::Cancelled), ("3".to_owned(), StatusState::Running)]
        );
    }

    #[test]
    fn nobody_is_told_of_no_commit() {
        let first = DeployView { commit: None, ..push(DeployState::Queued) };
        assert_eq!(states(None, &first), []);
        assert_eq!(states(Some(&first), &push(DeployState::Fetching)), [("1".to_owned(), StatusState::Running)]);
    }
}
