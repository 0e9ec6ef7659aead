//! A question to an instance. It goes to a literal address, `localhost` or a unix socket, speaks plain
//! HTTP/1.1 and reads one status line of at most 1 KiB; nothing else of an app's answer is looked at,
//! and no DNS is asked.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream, unix::pipe},
    sync::oneshot,
    time::timeout,
};

use super::{
    super::event::Events,
    SeatId,
    proof::{self, Request, Whose},
};
use crate::domain::{
    config::{Command, HttpProbe, Probe, ProbeAddress, TcpProbe},
    model::show_span,
};

/// No status line is longer.
pub const STATUS_LINE: usize = 1024;

/// Of a thread that proves.
const STACK: usize = 256 * 1024;

/// What is asked.
pub enum Question {
    Http(HttpProbe),
    Tcp(TcpProbe),
    Exec(Command),
    /// Where others listen beside it: what answers must be of this tree.
    Proven {
        probe: Probe,
        whose: Arc<Whose>,
        missed: usize,
    },
    /// Answered by the newline that comes out of this pipe.
    Newline(pipe::Receiver),
}

impl From<Probe> for Question {
    fn from(probe: Probe) -> Self {
        match probe {
            Probe::Http(probe) => Self::Http(probe),
            Probe::Tcp(probe) => Self::Tcp(probe),
            Probe::Exec(command) => Self::Exec(command),
        }
    }
}

/// Whoever asks one run of an instance.
pub struct Asker {
    pub seat: SeatId,
    pub attempt: u64,
    pub question: Question,
    /// Until when an answer is awaited.
    pub limit: Duration,
    pub events: Events,
}

/// What came of asking once.
#[derive(Debug)]
pub enum Answer {
    Yes,
    /// Why not, in a sentence.
    No(String),
    /// Only others could be asked, in its place: the next may find it.
    Others(String),
    /// Nobody has taken the question yet.
    Untaken(String),
}

impl From<Result<(), String>> for Answer {
    fn from(result: Result<(), String>) -> Self {
        result.map_or_else(Self::No, |()| Self::Yes)
    }
}

impl Asker {
    /// Asks once, and waits no longer than that for an answer.
    pub async fn once(&mut self, limit: Duration) -> Answer {
        let number = self.seat.seat.number;
        let answer = async {
            match &mut self.question {
                Question::Http(probe) => http(probe, number).await.into(),
                Question::Tcp(probe) => tcp(probe, number).await.into(),
                Question::Newline(pipe) => newline(pipe).await.into(),
                Question::Proven { probe, whose, missed } => {
                    let answer = proven(probe, number, whose, *missed, limit).await.unwrap_or_else(Answer::No);
                    *missed += usize::from(matches!(answer, Answer::Others(_)));
                    answer
                }
                Question::Exec(command) => {
                    super::exec::ask(&self.events, &self.seat, self.attempt, command, limit).await.into()
                }
            }
        };
        let whole = show_span(self.limit);
        timeout(limit, answer).await.unwrap_or_else(|_| Answer::No(format!("no answer within {whole}")))
    }
}

async fn proven(
    probe: &Probe,
    number: u32,
    whose: &Arc<Whose>,
    missed: usize,
    limit: Duration,
) -> Result<Answer, String> {
    let (address, request) = match probe {
        Probe::Exec(_) => return Err("a command is not asked through a socket".into()),
        Probe::Tcp(probe) => (probe.at(number)?, None),
        Probe::Http(probe) => {
            let url = probe.at(number)?;
            (url.address, Some(Request { text: request(&url.target, &url.host), expect: probe.expect }))
        }
    };
    let whose = Arc::clone(whose);
    on_a_thread(move || proof::round(&address, request.as_ref(), &whose, missed, limit)).await
}

/// What blocks has a thread of its own, which ends by itself.
async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let (done, result) = oneshot::channel();
    let spawned =
        thread::Builder::new().name("proof".into()).stack_size(STACK).spawn(move || done.send(work()).is_ok());
    spawned.map_err(|e| format!("the probe cannot be run: {e}"))?;
    result.await.map_err(|_| "the probe was not run".to_owned())
}

async fn tcp(probe: &TcpProbe, number: u32) -> Result<(), String> {
    let address = probe.at(number)?;
    connect(&address).await.map(drop).map_err(|e| format!("{}: {e}", show(&address)))
}

async fn http(probe: &HttpProbe, number: u32) -> Result<(), String> {
    let url = probe.at(number)?;
    let named = format!("http://{}{}", show(&url.address), url.target);
    let failed = |e: io::Error| format!("{named}: {e}");
    let mut stream = connect(&url.address).await.map_err(failed)?;
    stream.write_all(request(&url.target, &url.host).as_bytes()).await.map_err(failed)?;
    let mut line = Vec::new();
    let mut buffer = [0u8; STATUS_LINE];
    while !line.contains(&b'\n') && line.len() < STATUS_LINE {
        match stream.read(&mut buffer).await.map_err(failed)? {
            0 => break,
            n => line.extend_from_slice(&buffer[..n]),
        }
    }
    judge(&line, probe.expect).map_err(|why| format!("{named} {why}"))
}

/// The whole of a request.
pub fn request(target: &str, host: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: everhook\r\nAccept: */*\r\nConnection: close\r\n\r\n")
}

pub fn judge(answer: &[u8], expect: u16) -> Result<(), String> {
    match status(answer) {
        Some(code) if code == expect => Ok(()),
        Some(code) => Err(format!("answered {code}, {expect} is expected")),
        None => Err("answered no HTTP".into()),
    }
}

/// The code of a status line (RFC 9112 section 4).
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|b| *b == b'\r' || *b == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next().filter(|code| code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

async fn connect(address: &ProbeAddress) -> io::Result<Box<dyn Stream>> {
    Ok(match address {
        ProbeAddress::Unix(path) => Box::new(UnixStream::connect(path).await?),
        ProbeAddress::Socket(address) => Box::new(TcpStream::connect(address).await?),
        ProbeAddress::Localhost(port) => match TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await {
            Ok(stream) => Box::new(stream),
            Err(_) => Box::new(TcpStream::connect(SocketAddr::from((Ipv6Addr::LOCALHOST, *port))).await?),
        },
    })
}

pub fn show(address: &ProbeAddress) -> String {
    match address {
        ProbeAddress::Socket(address) => address.to_string(),
        ProbeAddress::Localhost(port) => format!("localhost:{port}"),
        ProbeAddress::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// What is not awaited to its end goes on where it was.
async fn newline(pipe: &mut pipe::Receiver) -> Result<(), String> {
    let mut buffer = [0u8; 256];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) => return Err("it closed its descriptor without a newline".into()),
            Ok(n) if buffer[..n].contains(&b'\n') => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(format!("its descriptor cannot be read: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_status_line_counts() {
        assert_eq!(status(b"HTTP/1.1 200 OK\r\nX: y\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.0 301 Moved"), Some(301));
        for bad in
            [&b""[..], b"SSH-2.0-OpenSSH", b"HTTP/1.1", b"HTTP/1.1 20x OK", b"HTTP/2 200", b"HTTP/1.1 +20 OK", b"\xff"]
        {
            assert_eq!(status(bad), None, "{bad:?}");
        }
    }
}
