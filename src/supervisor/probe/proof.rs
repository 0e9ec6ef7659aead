//! Proof that the very instance that is asked has answered, where others listen on the same socket
//! beside it. A connection is made; the kernel says which process has accepted it; only if that belongs
//! to the instance's tree does the request follow and the answer count. Nothing is said before, as a
//! small server may answer the first bytes and close, and then nobody can tell who that was. But some
//! accept only what has begun to speak (`TCP_DEFER_ACCEPT`): after a while they get all but the end.
//!
//! Everything here blocks, and runs on a thread of its own.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::ask::{Answer, STATUS_LINE, judge, show};
use crate::{
    domain::config::ProbeAddress,
    os::{
        accepted,
        cgroup::Cgroup,
        tree::{self, TreeQuery},
    },
};

/// How long a connection waits to be accepted before another one is tried.
const UNACCEPTED: Duration = Duration::from_millis(500);
/// How long it says nothing meanwhile.
const SILENT: Duration = Duration::from_millis(50);
/// Between two looks at who has accepted.
const LOOK: Duration = Duration::from_millis(2);
/// Once in so many rounds those of a tree are looked for who left their parents.
const WHOLE_TREE: usize = 4;
/// Connections at once, at most.
const WIDEST: usize = 8;
/// After so many rounds that others took, one connection more at once.
const WIDEN_AFTER: usize = 5;

/// Whose answer counts: the tree of a run.
pub struct Whose {
    pub main: u32,
    pub boot: String,
    pub instance: String,
    pub cgroup: Option<Arc<Cgroup>>,
}

impl Whose {
    /// Read before anybody knocks, since it may take a while, and whoever has accepted waits meanwhile.
    /// Without a cgroup the whole process table is read in some rounds only.
    fn pids(&self, missed: usize) -> Vec<u32> {
        if self.cgroup.is_none() && missed % WHOLE_TREE != WHOLE_TREE - 1 {
            return tree::descendants(self.main);
        }
        let query = TreeQuery {
            root: Some(self.main),
            boot: &self.boot,
            instance: &self.instance,
            outputs: &[],
            session: None,
            cgroup: self.cgroup.as_deref(),
        };
        let members = tree::members(&query).unwrap_or_default();
        [self.main].into_iter().chain(members.into_iter().map(|member| member.pid)).collect()
    }
}

/// What is sent, and what is to come back.
pub struct Request {
    pub text: String,
    pub expect: u16,
}

/// Asks once. Without a request it is enough that it is accepted.
///
/// An idle server of before may be the first in the kernel's queue each time. So the more often others
/// were faster, `missed`, the more connections knock at the same moment. `limit`: of the answer.
pub fn round(
    address: &ProbeAddress,
    request: Option<&Request>,
    whose: &Whose,
    missed: usize,
    limit: Duration,
) -> Answer {
    let named = show(address);
    let pids = whose.pids(missed);
    let width = (1 + missed / WIDEN_AFTER).min(WIDEST);
    let result = (0..width)
        .map(|_| Connection::to(address, limit))
        .collect::<io::Result<Vec<_>>>()
        .and_then(|knocking| opened(knocking, request, &pids, limit));
    match result {
        Err(error) => Answer::No(format!("{named}: {error}")),
        Ok(Opened::Nobody) => Answer::Untaken(format!("{named}: nobody accepts the connection")),
        Ok(Opened::Others) => Answer::Others(format!("{named}: only other instances accept connections")),
        Ok(Opened::Ours(mut connection, said)) => {
            let Some(request) = request else { return Answer::Yes };
            let answer = connection.ask(&request.text[said..]).map_err(|e| format!("{named}: {e}"));
            let judged =
                answer.and_then(|answer| judge(&answer, request.expect).map_err(|why| format!("{named} {why}")));
            judged.map_or_else(Answer::No, |()| Answer::Yes)
        }
    }
}

/// Who has opened.
enum Opened {
    /// With so many bytes of the request said already.
    Ours(Connection, usize),
    Others,
    /// Some connection was accepted by nobody in time.
    Nobody,
}

fn opened(
    mut knocking: Vec<Connection>,
    request: Option<&Request>,
    pids: &[u32],
    limit: Duration,
) -> io::Result<Opened> {
    let begun = Instant::now();
    let but_for_the_end = request.and_then(|request| request.text.strip_suffix("\r\n")).unwrap_or_default();
    let mut said = 0;
    loop {
        let mut waiting = Vec::new();
        for connection in knocking {
            match connection.inode()? {
                None => waiting.push(connection),
                Some(inode) if pids.iter().any(|pid| accepted::holds(*pid, inode)) => {
                    return Ok(Opened::Ours(connection, said));
                }
                // Closed at once: who accepted it waits for the end of a request.
                Some(_) => drop(connection),
            }
        }
        if waiting.is_empty() {
            return Ok(Opened::Others);
        }
        if begun.elapsed() > limit.min(UNACCEPTED) {
            return Ok(Opened::Nobody);
        }
        knocking = waiting;
        if said == 0 && begun.elapsed() > SILENT {
            for connection in &mut knocking {
                connection.stream().write_all(but_for_the_end.as_bytes())?;
            }
            said = but_for_the_end.len();
        }
        thread::sleep(LOOK);
    }
}

enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Connection {
    fn to(address: &ProbeAddress, limit: Duration) -> io::Result<Self> {
        let tcp = |address: SocketAddr| TcpStream::connect_timeout(&address, limit);
        let connection = match address {
            ProbeAddress::Unix(path) => Self::Unix(UnixStream::connect(path)?),
            ProbeAddress::Socket(address) => Self::Tcp(tcp(*address)?),
            ProbeAddress::Localhost(port) => Self::Tcp(
                tcp((Ipv4Addr::LOCALHOST, *port).into()).or_else(|_| tcp((Ipv6Addr::LOCALHOST, *port).into()))?,
            ),
        };
        match &connection {
            Self::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(limit))?;
                stream.set_write_timeout(Some(limit))?;
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(limit))?;
                stream.set_write_timeout(Some(limit))?;
            }
        }
        Ok(connection)
    }

    fn stream(&mut self) -> &mut dyn Stream {
        match self {
            Self::Tcp(stream) => stream,
            Self::Unix(stream) => stream,
        }
    }

    /// Of the socket at the far end, once somebody has accepted.
    fn inode(&self) -> io::Result<Option<u64>> {
        match self {
            Self::Tcp(stream) => accepted::tcp_inode(stream.local_addr()?, stream.peer_addr()?),
            Self::Unix(stream) => accepted::unix_inode(stream),
        }
    }

    /// Sends the rest of a request; what comes back, as far as a status line goes.
    fn ask(&mut self, rest: &str) -> io::Result<Vec<u8>> {
        let stream = self.stream();
        stream.write_all(rest.as_bytes())?;
        let mut line = Vec::new();
        let mut buffer = [0u8; STATUS_LINE];
        while !line.contains(&b'\n') && line.len() < STATUS_LINE {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => line.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        path::Path,
        process::{Child, Command, Stdio},
    };

    use super::{super::ask::request, *};

    /// Two processes on one socket: the old one, which answers 200, and a new one. Prints the pids and
    /// the port. How each waits: `accept`, `epoll`, `exclusive`; the new one may also `hang` or `fail`. With
    /// `hasty` it answers whatever comes first, with `deferred` it is woken only by what has begun to speak.
    const PAIR: &str = r#"
import os, select, socket, sys, time
where, how, new = sys.argv[1], sys.argv[2], sys.argv[3]
if where == "tcp":
    s = socket.socket(); s.bind(("127.0.0.1", 0))
else:
    s = socket.socket(socket.AF_UNIX); s.bind(where)
if how == "deferred": s.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
s.listen(100)
def answer(c, status):
    try:
        c.settimeout(5)
        head = c.recv(4096)
        while head and how != "hasty" and b"\r\n\r\n" not in head:
            more = c.recv(4096)
            if not more: return c.close()
            head += more
        c.sendall(b"HTTP/1.1 " + status + b" X\r\n\r\n"); c.close()
    except OSError: c.close()
def serve(status):
    polls = how in ("epoll", "exclusive")
    s.setblocking(not polls)
    if polls:
        e = select.epoll(); e.register(s, select.EPOLLIN | (select.EPOLLEXCLUSIVE if how == "exclusive" else 0))
    while True:
        if polls: e.poll()
        try: c, _ = s.accept()
        except BlockingIOError: continue
        c.setblocking(True)
        answer(c, status)
pids = []
for status in (b"200", b"200" if new == "good" else b"500"):
    pid = os.fork()
    if pid == 0:
        if new == "hang" and pids: time.sleep(1000)
        serve(status)
    pids.append(pid)
    # Until it waits.
    while open("/proc/%d/stat" % pid).read().rpartition(")")[2].split()[0] != "S": time.sleep(0.001)
print(pids[0], pids[1], s.getsockname()[1] if where == "tcp" else 0, flush=True)
for p in pids: os.waitpid(p, 0)
"#;

    struct Pair {
        parent: Child,
        pids: [u32; 2],
        address: ProbeAddress,
    }

    impl Pair {
        fn new(socket: Option<&Path>, how: &str, new: &str) -> Self {
            let place = socket.map_or("tcp".into(), |path| path.to_str().unwrap().to_owned());
            let mut parent = Command::new("python3");
            parent.args(["-c", PAIR, &place, how, new]).stdout(Stdio::piped());
            let mut parent = parent.spawn().unwrap();
            let mut line = String::new();
            BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
            let numbers: Vec<u32> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
            let address = match socket {
                Some(path) => ProbeAddress::Unix(path.to_owned()),
                None => ProbeAddress::Localhost(u16::try_from(numbers[2]).unwrap()),
            };
            Self { parent, pids: [numbers[0], numbers[1]], address }
        }

        fn round(&self, of: u32, missed: usize) -> Answer {
            let whose = Whose { main: of, boot: "none".into(), instance: "none".into(), cgroup: None };
            let request = Request { text: request("/", "localhost"), expect: 200 };
            round(&self.address, Some(&request), &whose, missed, Duration::from_secs(2))
        }

        /// Rounds until it is proven, at most so many; the last reason why it was not.
        fn prove(&self, of: u32, rounds: usize) -> Result<usize, String> {
            let mut last = String::new();
            for missed in 0..rounds {
                match self.round(of, missed) {
                    Answer::Yes => return Ok(missed + 1),
                    Answer::Others(why) | Answer::Untaken(why) | Answer::No(why) => last = why,
                }
            }
            Err(last)
        }
    }

    impl Drop for Pair {
        fn drop(&mut self) {
            for pid in self.pids {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
            }
            let _ = self.parent.wait();
        }
    }

    #[test]
    fn a_hung_or_failing_one_beside_a_good_one_is_never_taken_for_ready() {
        let hung = Pair::new(None, "accept", "hang");
        let rounds: Vec<_> = (0..10).map(|missed| hung.round(hung.pids[1], missed)).collect();
        assert!(!rounds.iter().any(|round| matches!(round, Answer::Yes)));
        assert!(
            rounds.iter().any(|round| matches!(round, Answer::Others(why) if why.contains("only other instances")))
        );
        // On a busy machine a round may be over before anybody accepts.
        assert!(hung.prove(hung.pids[0], 10).is_ok(), "the old one is what it was");
        let failing = Pair::new(None, "accept", "fail");
        let mut rounds: Vec<_> = (0..10).map(|missed| failing.round(failing.pids[1], missed)).collect();
        let failed = |round: &Answer| matches!(round, Answer::No(why) if why.contains("answered 500"));
        while !rounds.iter().any(failed) && rounds.len() < 100 {
            rounds.push(failing.round(failing.pids[1], rounds.len()));
        }
        assert!(!rounds.iter().any(|round| matches!(round, Answer::Yes)));
        assert!(rounds.iter().any(failed));
    }

    #[test]
    fn a_good_one_is_found_beside_an_idle_old_one_however_they_wait() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        for how in ["accept", "epoll", "exclusive", "hasty", "deferred"] {
            let pair = Pair::new(None, how, "good");
            let rounds = pair.prove(pair.pids[1], 100);
            assert!(rounds.is_ok(), "{how}: {rounds:?}");
        }
        let pair = Pair::new(Some(&socket), "epoll", "good");
        let rounds = pair.prove(pair.pids[1], 100);
        assert!(rounds.is_ok(), "unix: {rounds:?}");
    }

    #[test]
    fn a_socket_that_nobody_accepts_from_is_not_ready() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let whose = Whose { main: std::process::id(), boot: "none".into(), instance: "none".into(), cgroup: None };
        let address = ProbeAddress::Socket(listener.local_addr().unwrap());
        let outcome = round(&address, None, &whose, 0, Duration::from_secs(1));
        assert!(matches!(outcome, Answer::Untaken(why) if why.contains("nobody accepts")));
    }
}
