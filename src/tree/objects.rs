//! Questions about the objects of a mirror, answered by one git that stays (git-cat-file(1), `--batch`):
//! to start a git costs more than its answer, and this one starts while another fetches.

use std::{
    cell::RefCell,
    io::{self, BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use super::{TreeError, git::Git};

/// An object as it is stored.
pub(super) struct Object {
    pub id: String,
    /// `commit`, `tree`, `blob` or `tag`.
    pub kind: String,
    pub bytes: Vec<u8>,
}

/// The git that answers, once it is needed.
#[derive(Default)]
pub(super) struct Objects(RefCell<Option<Answering>>);

struct Answering {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Objects {
    /// Has it start, where it has not yet. It sees what is fetched meanwhile.
    pub(super) fn begin(&self, git: &Git) -> Result<(), TreeError> {
        let mut answering = self.0.borrow_mut();
        if answering.is_none() {
            *answering = Some(Answering::start(git)?);
        }
        Ok(())
    }

    /// What this leads to, which is no name with a newline; `None`: nothing of that name is there.
    pub(super) fn find(&self, git: &Git, name: &str) -> Result<Option<Object>, TreeError> {
        self.begin(git)?;
        let answer = self.0.borrow_mut().as_mut().map(|answering| answering.ask(name));
        answer.transpose().map(Option::flatten).map_err(|error| {
            self.end();
            TreeError::Mirror(format!("{name} cannot be read: {error}"))
        })
    }

    /// Lets go of the mirror.
    pub(super) fn end(&self) {
        self.0.borrow_mut().take();
    }
}

impl Answering {
    fn start(git: &Git) -> Result<Self, TreeError> {
        let failed = |e| TreeError::io("starting git", e);
        let mut command = git.command()?;
        // What is wrong with the mirror it says for all to hear; it knows nothing of the remote.
        command.args(["cat-file", "--batch"]).stdin(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().map_err(failed)?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(questions), Some(answers)) => Ok(Self { child, questions, answers: BufReader::new(answers) }),
            _ => Err(failed(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn ask(&mut self, name: &str) -> io::Result<Option<Object>> {
        self.questions.write_all(format!("{name}\n").as_bytes())?;
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let [id, kind, size] = words[..] else { return Ok(None) };
        let Ok(size) = size.parse::<usize>() else { return Ok(None) };
        let mut bytes = vec![0; size + 1];
        self.answers.read_exact(&mut bytes)?;
        // A newline ends each.
        bytes.truncate(size);
        Ok(Some(Object { id: id.to_owned(), kind: kind.to_owned(), bytes }))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        // It only reads, and nobody of us is left behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
