//! What a commit says of itself, as git stores it (gitformat-commit, and git-commit(1), "Discussion").

use super::{TreeError, mirror::Mirror};
use crate::domain::model::CommitId;

/// A commit and what it says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub commit: CommitId,
    pub parents: Vec<CommitId>,
    pub subject: String,
    /// `Name <mail>`.
    pub author: String,
    /// The whole message.
    pub message: String,
}

/// The commit that this leads to: a tag may be an object of its own. `None`: it is not there, or leads to none.
pub(super) fn look_up(mirror: &Mirror, name: &str) -> Result<Option<Said>, TreeError> {
    let Some(object) = mirror.object(&format!("{name}^{{commit}}"))? else { return Ok(None) };
    let commit = commit_of(object.id.as_bytes())?;
    let text = String::from_utf8_lossy(&object.bytes);
    read(&text, commit).map_or_else(|commit| logged(mirror, commit).map(Some), |said| Ok(Some(said)))
}

/// `Err`: it is in an encoding that only git knows.
fn read(text: &str, commit: CommitId) -> Result<Said, CommitId> {
    let (head, message) = text.split_once("\n\n").unwrap_or((text, ""));
    // What goes on, as a signature does, is indented.
    let values = |name: &str| {
        let name = format!("{name} ");
        head.lines().filter_map(move |line| line.strip_prefix(name.as_str()).map(str::to_owned))
    };
    if values("encoding").next().is_some() {
        return Err(commit);
    }
    let author = values("author").next().unwrap_or_default();
    let (name, rest) = author.split_once('<').unwrap_or((&author, ""));
    let mail = rest.split('>').next().unwrap_or_default();
    let message = message.trim_start_matches('\n');
    let paragraph = message.lines().map(str::trim).take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    Ok(Said {
        commit,
        parents: values("parent").filter_map(|id| id.parse().ok()).collect(),
        subject: shortened(&paragraph),
        author: shortened(&format!("{} <{}>", name.trim(), mail.trim())),
        message: message.to_owned(),
    })
}

/// The same by a git of its own, in UTF-8 whatever it was written in.
fn logged(mirror: &Mirror, commit: CommitId) -> Result<Said, TreeError> {
    let form = "--format=%P%x00%s%x00%an <%ae>%x00%B";
    let args = ["log", "-1", "--no-show-signature", "--no-color", "--encoding=UTF-8", form, commit.as_str(), "--"];
    let text = mirror.git.must(&args)?;
    let text = String::from_utf8_lossy(&text);
    let mut parts = text.splitn(4, '\0');
    let mut next = || parts.next().unwrap_or_default();
    let parents = next().split_whitespace().filter_map(|id| id.parse().ok()).collect();
    Ok(Said { commit, parents, subject: shortened(next()), author: shortened(next()), message: next().to_owned() })
}

/// A commit may call itself anything, at any length.
pub(super) fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(500).collect()
}

pub(super) fn commit_of(text: &[u8]) -> Result<CommitId, TreeError> {
    let text = String::from_utf8_lossy(text);
    text.trim().parse().map_err(|_| TreeError::Mirror(format!("{text:?} is no commit")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_read_as_git_shows_it() {
        let id = |n: char| n.to_string().repeat(40).parse::<CommitId>().unwrap();
        let head = format!(
            "tree {}\nparent {}\nparent {}\nauthor Ann  B <a@b.org> 1700000000 +0100\ncommitter C <c> 1 +0000\n\
             gpgsig -----BEGIN\n author Eve <e@e>\n parent {}\n -----END\n",
            id('a'),
            id('b'),
            id('c'),
            id('d')
        );
        let said = read(&format!("{head}\n\nTwo\n lines \n\nauthor Eve <e@e>\n"), id('e')).unwrap();
        assert_eq!((said.subject.as_str(), said.author.as_str()), ("Two lines", "Ann  B <a@b.org>"));
        assert_eq!(
            (said.parents, said.message.as_str()),
            (vec![id('b'), id('c')], "Two\n lines \n\nauthor Eve <e@e>\n")
        );
        let said = read(&head, id('e')).unwrap();
        assert_eq!((said.subject.as_str(), said.message.as_str()), ("", ""));
        assert_eq!(read(&format!("encoding ISO-8859-1\n{head}"), id('e')), Err(id('e')));
    }
}
