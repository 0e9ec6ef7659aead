//! Questions about the objects of a mirror, answered by gits that stay (git-cat-file(1), `--batch` and
//! `--batch-check`): to start a git costs more than its answer, and these start while another fetches, one after
//! the other so that they take no processor from that.

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

/// Of so many objects the sizes are asked for at once: the questions and the answers fit into their pipes.
const AT_ONCE: usize = 400;

/// The gits that answer, once they are needed: what an object holds, and how large it is.
#[derive(Default)]
pub(super) struct Objects {
    contents: RefCell<Option<Answering>>,
    sizes: RefCell<Option<Answering>>,
}

struct Answering {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Objects {
    /// Has both start, where they have not yet, and waits until they are there. They see what is fetched meanwhile.
    pub(super) fn begin(&self, git: &Git) -> Result<(), TreeError> {
        self.begin_contents(git)?;
        self.begin_sizes(git)
    }

    fn begin_contents(&self, git: &Git) -> Result<(), TreeError> {
        begin(&self.contents, git, "--batch")
    }

    fn begin_sizes(&self, git: &Git) -> Result<(), TreeError> {
        begin(&self.sizes, git, "--batch-check")
    }

    /// What this leads to, which is no name with a newline; `None`: nothing of that name is there.
    pub(super) fn find(&self, git: &Git, name: &str) -> Result<Option<Object>, TreeError> {
        self.begin_contents(git)?;
        let answer = self.contents.borrow_mut().as_mut().map(|answering| answering.ask(name));
        answer.transpose().map(Option::flatten).map_err(|error| {
            self.end();
            TreeError::Mirror(format!("{name} cannot be read: {error}"))
        })
    }

    /// The bytes of each of these, by their full ids; all must be there.
    pub(super) fn sizes(&self, git: &Git, ids: &[String]) -> Result<Vec<u64>, TreeError> {
        self.begin_sizes(git)?;
        let mut sizes = Vec::with_capacity(ids.len());
        for some in ids.chunks(AT_ONCE) {
            let answer = self.sizes.borrow_mut().as_mut().map(|answering| answering.weigh(some, &mut sizes));
            answer.transpose().map_err(|error| {
                self.end();
                TreeError::Mirror(format!("its objects cannot be read: {error}"))
            })?;
        }
        Ok(sizes)
    }

    /// Lets go of the mirror.
    pub(super) fn end(&self) {
        let mut both = [self.contents.borrow_mut().take(), self.sizes.borrow_mut().take()];
        // Each takes its time to go.
        both.iter_mut().flatten().for_each(Answering::kill);
    }
}

fn begin(place: &RefCell<Option<Answering>>, git: &Git, how: &str) -> Result<(), TreeError> {
    let mut answering = place.borrow_mut();
    if answering.is_none() {
        // What keeps it from answering it says again when it is asked for something.
        let _ = answering.insert(Answering::start(git, how)?).ask("");
    }
    Ok(())
}

impl Drop for Objects {
    fn drop(&mut self) {
        self.end();
    }
}

impl Answering {
    fn start(git: &Git, how: &str) -> Result<Self, TreeError> {
        let failed = |e| TreeError::io("starting git", e);
        let mut command = git.command()?;
        // What is wrong with the mirror it says for all to hear; it knows nothing of the remote.
        command.args(["cat-file", how]).stdin(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().map_err(failed)?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(questions), Some(answers)) => Ok(Self { child, questions, answers: BufReader::new(answers) }),
            _ => Err(failed(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn ask(&mut self, name: &str) -> io::Result<Option<Object>> {
        self.questions.write_all(format!("{name}\n").as_bytes())?;
        let line = self.line()?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let [id, kind, size] = words[..] else { return Ok(None) };
        let Ok(size) = size.parse::<usize>() else { return Ok(None) };
        let mut bytes = vec![0; size + 1];
        self.answers.read_exact(&mut bytes)?;
        // A newline ends each.
        bytes.truncate(size);
        Ok(Some(Object { id: id.to_owned(), kind: kind.to_owned(), bytes }))
    }

    fn weigh(&mut self, ids: &[String], sizes: &mut Vec<u64>) -> io::Result<()> {
        self.questions.write_all((ids.join("\n") + "\n").as_bytes())?;
        for id in ids {
            let line = self.line()?;
            let size = line.split_whitespace().nth(2).and_then(|size| size.parse().ok());
            sizes.push(size.ok_or_else(|| io::Error::other(format!("{id} is not there")))?);
        }
        Ok(())
    }

    /// It only reads, and nobody of us is left behind.
    fn kill(&mut self) {
        let _ = self.child.kill();
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(line) }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}
