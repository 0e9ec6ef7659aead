//! Readiness probes. They connect to literal addresses or `localhost`, speak plain HTTP/1.1 and read
//! one status line of at most 1 KiB; nothing else of an app's answer is looked at, and no DNS is
//! asked. When a probe counts is decided in `service`.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    apply::SeatId,
    event::{Event, Events},
};
use crate::domain::config::{HttpProbe, ProbeAddress, Ready};

/// No single try takes longer.
const TRY: Duration = Duration::from_secs(5);
/// Between two tries: short at first, since most apps are up within a second.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// No status line is longer.
const STATUS_LINE: usize = 1024;

/// Tries until the app is ready; each new reason why it is not is told once.
pub async fn until_ready(seat: SeatId, attempt: u64, ready: Ready, events: Events) {
    let mut pause = PAUSE;
    let mut told = String::new();
    loop {
        let result = match timeout(TRY, once(&ready)).await {
            Ok(result) => result,
            Err(_) => Err("no answer within 5s".to_owned()),
        };
        let done = result.is_ok();
        if done || result.as_ref().is_err_and(|why| *why != told) {
            told = result.as_ref().err().cloned().unwrap_or_default();
            if events.send(Event::Probed { seat: seat.clone(), attempt, result }).is_err() || done {
                return;
            }
        }
        sleep(pause).await;
        pause = pause.mul_f64(1.1).min(LONGEST_PAUSE);
    }
}

async fn once(ready: &Ready) -> Result<(), String> {
    match ready {
        Ready::Immediate | Ready::After(_) => Ok(()),
        Ready::Tcp(probe) => {
            connect(&probe.address).await.map(drop).map_err(|e| format!("{}: {e}", show(&probe.address)))
        }
        Ready::Http(probe) => http(probe).await,
    }
}

async fn http(probe: &HttpProbe) -> Result<(), String> {
    let failed = |e: io::Error| format!("{}: {e}", probe.url);
    let mut stream = connect(&probe.address).await.map_err(failed)?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: everhook\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        probe.target, probe.host
    );
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut line = Vec::new();
    let mut buffer = [0u8; STATUS_LINE];
    while !line.contains(&b'\n') && line.len() < STATUS_LINE {
        match stream.read(&mut buffer).await.map_err(failed)? {
            0 => break,
            n => line.extend_from_slice(&buffer[..n]),
        }
    }
    match status(&line) {
        Some(code) if code == probe.expect => Ok(()),
        Some(code) => Err(format!("{} answered {code}, {} is expected", probe.url, probe.expect)),
        None => Err(format!("{} answered no HTTP", probe.url)),
    }
}

/// The code of a status line (RFC 9112 section 4).
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|b| *b == b'\r' || *b == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next().filter(|code| code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

async fn connect(address: &ProbeAddress) -> io::Result<TcpStream> {
    match address {
        ProbeAddress::Socket(address) => TcpStream::connect(address).await,
        ProbeAddress::Localhost(port) => match TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await {
            Ok(stream) => Ok(stream),
            Err(_) => TcpStream::connect(SocketAddr::from((Ipv6Addr::LOCALHOST, *port))).await,
        },
    }
}

fn show(address: &ProbeAddress) -> String {
    match address {
        ProbeAddress::Socket(address) => address.to_string(),
        ProbeAddress::Localhost(port) => format!("localhost:{port}"),
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
