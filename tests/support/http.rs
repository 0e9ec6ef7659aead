//! HTTP written by hand, so that tests see the bytes and no library smooths them over.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

/// One answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A connection; no step on it takes longer than a minute.
pub struct Client {
    stream: TcpStream,
    read: Vec<u8>,
    /// How it ended, as far as it did.
    end: String,
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        // An answer may wait for a disk that others keep busy.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { stream, read: Vec::new(), end: String::new() }
    }

    /// Sends bytes; a peer that stopped reading is no failure yet, its answer counts.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).map_err(|e| self.end.push_str(&format!("not sent: {e}; "))).is_ok()
    }

    /// Ends this side of the connection; answers still come.
    pub fn says_no_more(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Reads one answer. `head` alone where the request was HEAD.
    pub fn answer(&mut self, head_only: bool) -> Answer {
        let mut answer = self.begin();
        if head_only || answer.status == 304 {
            return answer;
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk() {
                answer.body.extend(chunk);
            }
            return answer;
        }
        let length = answer.header("content-length").map_or(0, |value| value.parse().unwrap());
        while self.read.len() < length {
            assert!(self.more(), "closed in the middle of a body");
        }
        let rest = self.read.split_off(length);
        answer.body = std::mem::replace(&mut self.read, rest);
        answer
    }

    /// The status of the next answer, where one comes; nothing else of it is read.
    pub fn status(&mut self) -> Option<u16> {
        while !self.read.contains(&b'\n') {
            if !self.more() {
                return None;
            }
        }
        String::from_utf8_lossy(&self.read).split(' ').nth(1)?.parse().ok()
    }

    /// Waits for the first byte of an answer; false: the peer closed before.
    pub fn hears(&mut self) -> bool {
        !self.read.is_empty() || self.more()
    }

    /// Reads until the peer closes; how that ended.
    pub fn rest(&mut self) -> &str {
        while self.more() {}
        &self.end
    }

    /// Reads an answer's head.
    pub fn begin(&mut self) -> Answer {
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            assert!(self.more(), "no answer ({}) but {:?}", self.end, String::from_utf8_lossy(&self.read));
        };
        let head = String::from_utf8(self.read.drain(..end).collect()).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        Answer { status, headers, body: Vec::new() }
    }

    /// The next chunk of a body that comes in chunks; `None` after the last.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = loop {
            if let Some(end) = self.read.windows(2).position(|w| w == b"\r\n") {
                break self.read.drain(..end + 2).collect::<Vec<_>>();
            }
            assert!(self.more(), "closed before a chunk");
        };
        let length = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
        while self.read.len() < length + 2 {
            assert!(self.more(), "closed in the middle of a chunk");
        }
        let chunk = self.read.drain(..length).collect();
        self.read.drain(..2);
        (length > 0).then_some(chunk)
    }

    /// Waits until an answer begins.
    pub fn wait(&mut self) {
        assert!(self.more(), "closed before an answer");
    }

    /// Has the peer closed, with nothing more said?
    pub fn is_closed(&mut self) -> bool {
        !self.more() && self.read.is_empty()
    }

    fn more(&mut self) -> bool {
        // Of a size that costs a benchmark nothing to clear.
        let mut piece = [0; 4 * 1024];
        loop {
            match self.stream.read(&mut piece) {
                // A machine that was put to sleep meanwhile.
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => self.end.push_str(&e.to_string()),
                Ok(0) => self.end.push_str("closed"),
                Ok(n) => {
                    self.read.extend_from_slice(&piece[..n]);
                    return true;
                }
            }
            return false;
        }
    }
}

/// One request on a connection of its own; `Content-Length` is added where there is a body.
pub fn request(address: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut client = Client::connect(address);
    client.send(&head(method, target, headers, Some(body.len()).filter(|n| *n > 0)));
    client.send(body);
    client.answer(method == "HEAD")
}

/// The same of a server that may be gone at any moment: the answer's status, where one came.
pub fn try_request(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Option<u16> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    stream.write_all(&head(method, target, headers, Some(body.len()))).ok()?;
    stream.write_all(body).ok()?;
    let (mut read, mut piece) = (Vec::new(), [0; 1024]);
    while !read.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = match stream.read(&mut piece) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            read => read.ok().filter(|n| *n > 0)?,
        };
        read.extend_from_slice(&piece[..n]);
    }
    String::from_utf8_lossy(&read).split(' ').nth(1)?.parse().ok()
}

pub fn head(method: &str, target: &str, headers: &[(&str, &str)], length: Option<usize>) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: test\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(length) = length {
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}
