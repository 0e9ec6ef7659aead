//! The fake supervisor, and running the client against it.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use everhook::{
    domain::api::{Ask, Refusal, RefusalKind, Reply, Request, Said, Saying},
    os::channel::Channel,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

/// What the fake sends to one question.
pub enum Answer {
    /// These frames, then it closes.
    Whole(Vec<Value>),
    /// These frames, then it waits until the client is gone.
    Open(Vec<Value>),
}

/// A supervisor that knows one answer to each question.
pub struct Fake {
    folder: tempfile::TempDir,
    pub asked: Arc<Mutex<Vec<Ask>>>,
}

impl Fake {
    pub fn new(answer: impl Fn(&Request) -> Answer + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("control.sock")).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&asked);
        // It ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let mut channel = open(client.unwrap());
                let ask: Ask = receive(&mut channel).expect("a client asks");
                let answer = answer(&ask.request);
                kept.lock().unwrap().push(ask);
                let (Answer::Whole(frames) | Answer::Open(frames)) = &answer;
                frames.iter().for_each(|frame| channel.queue(frame, &[], None));
                while !channel.flush().unwrap_or(true) {
                    wait(&channel, PollFlags::POLLOUT);
                }
                if let Answer::Open(_) = answer {
                    assert!(receive::<Value>(&mut channel).is_none());
                }
            }
        });
        Self { folder, asked }
    }

    /// Says one thing to every question.
    pub fn saying(what: Saying) -> Self {
        Self::new(move |_| Answer::Whole(vec![said(&what)]))
    }

    pub fn refusing(kind: RefusalKind, message: &str) -> Self {
        Self::saying(Saying::Refused(Refusal::new(kind, message)))
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = everhook(words);
        command.arg("--socket").arg(self.socket());
        command
    }

    pub fn run(&self, words: &[&str]) -> Ran {
        Ran::of(self.command(words).stdin(Stdio::null()).output().unwrap())
    }

    pub fn requests(&self) -> Vec<Value> {
        self.asked.lock().unwrap().iter().map(|ask| serde_json::to_value(&ask.request).unwrap()).collect()
    }
}

pub fn open(stream: UnixStream) -> Channel {
    stream.set_nonblocking(true).unwrap();
    Channel::new(stream.into())
}

pub fn wait(channel: &Channel, events: PollFlags) {
    match poll(&mut [PollFd::new(channel.as_fd(), events)], PollTimeout::NONE) {
        // A machine that was put to sleep meanwhile; whoever waits looks again.
        Ok(_) | Err(nix::Error::EINTR) => {}
        Err(e) => panic!("{e}"),
    }
}

pub fn receive<T: serde::de::DeserializeOwned>(channel: &mut Channel) -> Option<T> {
    loop {
        match channel.receive() {
            Ok(frame) => return Some(frame.message().unwrap()),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => wait(channel, PollFlags::POLLIN),
            Err(_) => return None,
        }
    }
}

pub fn said(what: &Saying) -> Value {
    serde_json::to_value(Said { ticket: 1, what: what.clone() }).unwrap()
}

pub fn changed(message: &str) -> Saying {
    Saying::Done(Reply::Changed { app: None, deploy: None, message: message.into() })
}

pub fn everhook(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_everhook"));
    let folder = std::env::temp_dir();
    command.args(words).current_dir(folder).env_remove("EVERHOOK_CONFIG").env_remove("EVERHOOK_SOCKET");
    command.env("TZ", "UTC").env_remove("NO_COLOR").env("TERM", "xterm");
    command
}

pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("no signal killed it"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.err);
        serde_json::from_str(&self.out).unwrap()
    }
}

/// Runs a client on a terminal of 40 columns where somebody types `typed`; gives exit code and screen.
pub fn on_terminal(mut command: Command, typed: &str) -> (i32, String) {
    let size = nix::pty::Winsize { ws_row: 24, ws_col: 40, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(&size, None).unwrap();
    let slave = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
    command.stdin(slave(&pty.slave)).stdout(slave(&pty.slave)).stderr(slave(&pty.slave));
    let mut child = command.spawn().unwrap();
    // The command holds the terminal's other end open as well.
    drop(command);
    drop(pty.slave);
    let mut master = File::from(pty.master);
    master.write_all(typed.as_bytes()).unwrap();
    let (mut shown, mut buffer) = (Vec::new(), [0; 4096]);
    // EIO is how the kernel says that nobody holds the other end any more.
    loop {
        match master.read(&mut buffer) {
            Ok(n @ 1..) => shown.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    (child.wait().unwrap().code().unwrap(), String::from_utf8(shown).unwrap())
}
