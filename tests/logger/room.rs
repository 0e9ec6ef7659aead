//! A run directory, a logs folder and a logger process, as the supervisor has them.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    ops::RangeInclusive,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::OpenOptionsExt,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use everhook::{
    domain::{
        api::{FromLogger, LogFeed, LogFrame, LogLine, LogWish, RefusalKind, Saying, Sink, Stream, ToLogger},
        config::Form,
        model::{At, Size},
    },
    os::{
        channel::{Channel, Frame},
        notes::Notes,
    },
};
use nix::{
    libc::O_NONBLOCK,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{Signal, kill},
        stat::Mode,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, mkfifo},
};
use serde::de::DeserializeOwned;

/// Nothing here takes longer on any machine.
const DEADLINE: Duration = Duration::from_secs(60);

pub struct Room {
    pub dir: tempfile::TempDir,
}

/// A running logger and the supervisor's end of its channel.
pub struct Logger {
    pub child: Child,
    pub channel: Option<Channel>,
    marks: Notes,
    /// The logger's own end: held open as by a supervisor that does not close it.
    _channel_of_the_logger: OwnedFd,
    tickets: u64,
}

/// Both ends of a FIFO, which the test holds as the supervisor does.
pub struct Fifo {
    pub read: OwnedFd,
    pub write: File,
}

impl Room {
    pub fn new() -> Self {
        let room = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(room.logs()).unwrap();
        room
    }

    pub fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    pub fn log(&self, stream: &str) -> PathBuf {
        self.logs().join(format!("blog/blog.1.{stream}.log"))
    }

    pub fn sink(&self, stream: &str, rotate: u64, keep: u32) -> Sink {
        Sink::raw(self.log(stream), Some(Size(rotate)), keep)
    }

    pub fn fifo(&self) -> Fifo {
        let path = self.dir.path().join("fifo");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let read = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&path).unwrap();
        let write = OpenOptions::new().write(true).open(&path).unwrap();
        fs::remove_file(path).unwrap();
        Fifo { read: read.into(), write }
    }

    pub fn start(&self) -> Logger {
        self.start_with(Stdio::null(), None)
    }

    /// The shell moves the channel from descriptor 0 to 3 and becomes the logger.
    pub fn start_with(&self, stdout: Stdio, uid: Option<u32>) -> Logger {
        let (channel, theirs) = Channel::pair().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", r#"exec "$0" "$@" 3<&0 </dev/null"#, env!("CARGO_BIN_EXE_everhook"), "logger"]);
        command.arg("--buffer").arg(self.dir.path().join("buffer")).arg("--logs").arg(self.logs());
        command.stdin(theirs.try_clone().unwrap()).stdout(stdout);
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        let (marks, others) = Notes::pair().unwrap();
        let child = command.spawn().unwrap();
        let mut logger = Logger { child, channel: Some(channel), marks, _channel_of_the_logger: theirs, tickets: 0 };
        logger.send(&ToLogger::Marks, Some(others));
        logger
    }
}

impl Logger {
    pub fn send(&mut self, message: &ToLogger, fd: Option<OwnedFd>) {
        let channel = self.channel.as_mut().unwrap();
        channel.queue(message, &[], fd);
        while !channel.flush().unwrap() {
            wait(channel, PollFlags::POLLOUT);
        }
    }

    pub fn open(&mut self, fifo: &Fifo, stream: Stream, sink: Sink) {
        let read = fifo.read.try_clone().unwrap();
        self.send(&ToLogger::Open { source: "blog.1".into(), sinks: vec![(stream, sink)] }, Some(read));
    }

    /// A new run begins. Where its program `waits`, as the FIFOs may hold something, this does.
    pub fn mark(&mut self, waits: bool) {
        let mark = ToLogger::Mark { source: "blog.1".into(), at: now() };
        if waits {
            let (mut gate, theirs) = std::io::pipe().unwrap();
            self.send(&mark, Some(theirs.into()));
            gate.read_to_end(&mut Vec::new()).unwrap();
        } else {
            self.marks.put(&mark).unwrap();
        }
    }

    /// Has the process stand still.
    pub fn stop(&self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        assert!(matches!(waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap(), WaitStatus::Stopped(..)));
    }

    pub fn go_on(&self) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGCONT).unwrap();
    }

    pub fn hear(&mut self) -> FromLogger {
        receive(self.channel.as_mut().unwrap()).expect("the logger is there")
    }

    /// The last lines of a log, with all that its FIFOs held when this was asked.
    pub fn tail(&mut self, path: &Path, n: u32) -> Result<Vec<String>, RefusalKind> {
        self.tickets += 1;
        let mine = self.tickets;
        self.send(&ToLogger::Tail { ticket: mine, path: path.into(), n, run: None }, None);
        loop {
            if let FromLogger::Lines { ticket, lines, refusal } = self.hear() {
                assert_eq!(ticket, mine);
                return refusal.map_or(Ok(lines), |r| Err(r.kind));
            }
        }
    }

    /// The client's end of a socket on which both logs are served.
    pub fn serve(&mut self, room: &Room, follow: bool, n: Option<u32>, previous: bool) -> Channel {
        self.serve_form(room, Form::Raw, LogWish { follow, n, previous, ..LogWish::default() })
    }

    pub fn serve_form(&mut self, room: &Room, form: Form, wish: LogWish) -> Channel {
        let feed = |stream: Stream| LogFeed {
            instance: "blog.1".into(),
            stream,
            path: room.log(stream.as_str()),
            form,
            from: None,
        };
        self.serve_feeds(vec![feed(Stream::Out), feed(Stream::Err)], wish)
    }

    pub fn serve_feeds(&mut self, feeds: Vec<LogFeed>, wish: LogWish) -> Channel {
        let (ours, theirs) = Channel::pair().unwrap();
        self.send(&ToLogger::Serve { feeds, token: None, wish }, Some(theirs));
        ours
    }

    pub fn ended(mut self) -> ExitStatus {
        let mut status = None;
        wait_for(|| {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub fn terminate(self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        assert_eq!(self.ended().code(), Some(0));
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        assert_eq!(self.child.wait().unwrap().signal(), Some(9));
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(fd: &impl AsFd, flags: PollFlags) {
    let timeout = PollTimeout::try_from(DEADLINE).unwrap();
    // Whoever asks for it looks again, also where this was interrupted.
    assert_ne!(poll(&mut [PollFd::new(fd.as_fd(), flags)], timeout), Ok(0), "nothing came in time");
}

pub fn wait_for(mut what: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !what() {
        assert!(Instant::now() < deadline, "it did not come");
        thread::yield_now();
    }
}

/// The next message, or `None` when the other side has closed.
pub fn receive<T: DeserializeOwned>(channel: &mut Channel) -> Option<T> {
    frame(channel).map(|frame| frame.message().unwrap())
}

/// The next frame, or `None` when the other side has closed.
pub fn frame(channel: &mut Channel) -> Option<Frame> {
    loop {
        match channel.receive() {
            Ok(frame) => return Some(frame),
            Err(e) if e.kind() == ErrorKind::WouldBlock => wait(channel, PollFlags::POLLIN),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return None,
            Err(e) => panic!("{e}"),
        }
    }
}

/// The next line that a client is sent; `None` when it has them all.
pub fn line(client: &mut Channel) -> Option<LogLine> {
    loop {
        match receive(client).expect("an answer ends with its end") {
            LogFrame::Line(line) => return Some(line),
            LogFrame::Here { .. } | LogFrame::Renamed { .. } => {}
            LogFrame::Said(said) => {
                assert!(matches!(said.what, Saying::Done(_)), "{said:?}");
                return None;
            }
        }
    }
}

/// Everything that a client is sent, `out line`.
pub fn lines_of(mut client: Channel) -> Vec<String> {
    std::iter::from_fn(|| line(&mut client)).map(|l| format!("{} {}", l.stream, l.line)).collect()
}

/// A log and its rotated files, oldest first.
pub fn files(log: &Path) -> Vec<PathBuf> {
    let named = |n: u32, end: &str| PathBuf::from(format!("{}.{n}{end}", log.display()));
    // Where both are there, the compressed one is not finished.
    let found = |n| [named(n, ""), named(n, ".gz")].into_iter().find(|path| path.exists());
    let mut all: Vec<PathBuf> = (1..).map_while(found).collect();
    all.reverse();
    all.push(log.to_owned());
    all
}

/// What a file holds, compressed or not.
pub fn text(file: &Path) -> String {
    let bytes = fs::read(file).unwrap();
    let mut text = String::new();
    if file.extension().is_some_and(|end| end == "gz") {
        flate2::read::GzDecoder::new(bytes.as_slice()).read_to_string(&mut text).unwrap();
        return text;
    }
    String::from_utf8(bytes).unwrap()
}

/// `line 1` to `line <count>`, in writes of 8 KiB.
pub fn write_numbered(to: &File, count: u32) {
    write_lines(to, 1..=count);
}

fn write_lines(mut to: &File, numbers: RangeInclusive<u32>) {
    let (mut text, last) = (String::new(), *numbers.end());
    for i in numbers {
        text.push_str(&format!("line {i}\n"));
        if text.len() > 8000 || i == last {
            to.write_all(text.as_bytes()).unwrap();
            text.clear();
        }
    }
}

/// Has `line 1` to `line <count>` written, and kills the logger again and again meanwhile; how often.
///
/// `current`: what changes with the log. The lines come in parts, a further one with each of the first kills: however
/// late this side looks, so often it finds a logger that has just begun.
pub fn kill_while_it_writes<T: PartialEq>(
    room: &Room,
    fifo: &Fifo,
    count: u32,
    sink: &impl Fn() -> Sink,
    current: &impl Fn() -> T,
) -> u32 {
    const PARTS: u32 = 20;
    let write = fifo.write.try_clone().unwrap();
    let (more, parts) = mpsc::channel();
    let writer = thread::spawn(move || {
        for part in parts.into_iter().take(PARTS as usize) {
            write_lines(&write, count / PARTS * part + 1..=count / PARTS * (part + 1));
        }
    });
    let mut kills = 0;
    while !writer.is_finished() {
        let before = current();
        // Nobody hears it once all were written.
        let _ = more.send(kills);
        let mut logger = room.start();
        logger.open(fifo, Stream::Out, sink());
        // Long enough to have begun, then anywhere in what follows.
        wait_for(|| current() != before || writer.is_finished());
        for _ in 0..(kills * 7919) % 40_000 {
            std::hint::spin_loop();
        }
        logger.kill();
        kills += 1;
    }
    writer.join().unwrap();
    kills
}

/// All files together hold `line 1` to `line <count>`, each once, in order, whole in one file.
pub fn assert_numbered(log: &Path, count: u32, limit: u64) {
    let mut next = 1;
    for file in files(log) {
        let text = text(&file);
        assert!(text.len() as u64 <= limit, "{} is larger than it may be", file.display());
        assert!(text.is_empty() || text.ends_with('\n'), "{} ends inside a line", file.display());
        for line in text.lines() {
            assert_eq!(line, format!("line {next}"), "in {}", file.display());
            next += 1;
        }
    }
    assert_eq!(next, count + 1);
}

/// By the calendar.
pub fn now() -> At {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    At(i64::try_from(since_1970.as_millis()).unwrap())
}
