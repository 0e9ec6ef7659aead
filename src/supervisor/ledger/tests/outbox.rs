//! What is to be told to forges goes with the deploys that it is about.

use std::time::Duration;

use super::{super::*, desk::*};
use crate::domain::{
    api::{DeployState, StatusState},
    outbox::Letter,
};

impl Desk {
    /// From here on only deploys of these apps are told.
    pub(super) fn tell_of(&self, apps: &[&str]) {
        self.ledger().send(Command::Telling(apps.iter().map(|app| name(app)).collect()));
    }

    pub(super) fn letters(&self) -> Vec<Letter> {
        let apps = ["blog", "docs", "api", "shop"].map(name).to_vec();
        self.ledger().send(Command::Query { ticket: 97, query: Query::Letters { apps, n: 100 } });
        self.told(|told| if let Told::Letters { ticket: 97, letters } = told { Some(letters) } else { None })
    }

    fn set_commit(&self, id: i64, state: DeployState, digit: char) {
        let mut deploy = self.deploys().into_iter().find(|deploy| deploy.id == id).unwrap();
        (deploy.state, deploy.commit) = (state, Some(commit(digit)));
        self.ledger().send(Command::Update { deploy: Box::new(deploy), attempts: 0, ticket: Some(7) });
        self.told(|told| matches!(told, Told::Committed { ticket: 7 }).then_some(()));
    }

    fn states(&self) -> Vec<(String, StatusState)> {
        let letters = self.letters();
        letters.into_iter().map(|l| (format!("{} {}", l.app, &l.status.commit.short()[..1]), l.status.state)).collect()
    }
}

fn letter(about: &str, state: StatusState) -> (String, StatusState) {
    (about.to_owned(), state)
}

#[test]
fn the_newest_word_about_a_commit_takes_the_place_of_the_one_before() {
    let mut desk = Desk::open();
    desk.tell_of(&["blog"]);
    assert_eq!(desk.post(&master('a', "1")).0, 202);
    desk.told(|told| matches!(told, Told::Mail { app } if app == name("blog")).then_some(()));
    assert_eq!(desk.post(&master('b', "2")).0, 202);
    assert_eq!(desk.states(), [letter("blog a", StatusState::Queued), letter("blog b", StatusState::Queued)]);
    let queued = desk.letters()[0].id;
    desk.set(1, DeployState::Fetching);
    let running = desk.letters()[1].clone();
    assert_eq!((running.status.state, running.status.deploy), (StatusState::Running, 1));
    desk.set(1, DeployState::Checking);
    assert_eq!(desk.letters()[1].id, running.id, "nothing new is no letter");
    // Sent while it was replaced.
    desk.ledger().send(Command::Forget { letter: queued });
    assert_eq!(desk.letters().len(), 2);
    desk.ledger().send(Command::Forget { letter: running.id });
    assert_eq!(desk.states(), [letter("blog b", StatusState::Queued)]);
    desk.set(1, DeployState::Live);
    let desk = desk.reopen();
    assert_eq!(desk.states(), [letter("blog b", StatusState::Queued), letter("blog a", StatusState::Success)]);
}

#[test]
fn of_several_deploys_of_a_commit_the_newest_speaks() {
    let mut desk = Desk::open();
    desk.tell_of(&["blog"]);
    assert_eq!(desk.post(&master('a', "1")).0, 202);
    desk.set(1, DeployState::Failed);
    assert_eq!(desk.post(&master('a', "2")).0, 202);
    assert_eq!(desk.states(), [letter("blog a", StatusState::Queued)]);
    desk.set(1, DeployState::Failed);
    assert_eq!(desk.states(), [letter("blog a", StatusState::Queued)]);
    desk.set(2, DeployState::Live);
    assert_eq!(desk.states(), [letter("blog a", StatusState::Success)]);
}

#[test]
fn a_deploy_that_nobody_wants_leaves_the_word_to_another() {
    let mut desk = Desk::open();
    desk.tell_of(&["blog"]);
    for (i, of) in ['a', 'a', 'b'].into_iter().enumerate() {
        assert_eq!(desk.post(&master(of, &i.to_string())).0, 202);
        if i == 0 {
            desk.set(1, DeployState::Failed);
        }
    }
    desk.set(2, DeployState::Live);
    // It went on with a commit of which another deploy is live.
    desk.set_commit(3, DeployState::Fetching, 'a');
    desk.set_commit(3, DeployState::Fetching, 'c');
    let words =
        [("blog a", StatusState::Success), ("blog b", StatusState::Cancelled), ("blog c", StatusState::Running)];
    let mut states = desk.states();
    states.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(states, words.map(|(about, state)| letter(about, state)));
    desk.set(2, DeployState::Cancelled);
    let last = desk.letters().pop().unwrap();
    assert_eq!((last.status.deploy, last.status.state), (1, StatusState::Error));
}

#[test]
fn letters_follow_their_app_and_go_with_it() {
    let mut desk = Desk::open();
    desk.tell_of(&["blog", "docs"]);
    assert_eq!(desk.post(&Post { app: None, ..master('a', "1") }).0, 202);
    let about = ["blog a", "docs a"].map(|about| letter(about, StatusState::Queued));
    assert_eq!(desk.states(), about);
    desk.ledger().send(Command::Wait { apps: vec![name("docs")], by: Duration::from_secs(7) });
    desk.ledger().send(Command::Wait { apps: vec![name("docs")], by: Duration::from_secs(5) });
    assert_eq!(desk.letters().iter().map(|l| l.waited.as_secs()).collect::<Vec<_>>(), [0, 12]);
    desk.ledger().send(Command::Rename { old: name("docs"), new: name("shop") });
    desk.tell_of(&["shop"]);
    assert_eq!(desk.states(), [letter("shop a", StatusState::Queued)]);
    desk.tell_of(&[]);
    assert_eq!(desk.states(), []);
}
