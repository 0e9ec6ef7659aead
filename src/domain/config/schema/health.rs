//! How an instance shows that it is ready, and that it still is well.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::Command;

/// How an instance shows that it is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    Immediate,
    /// It has run for this long.
    After(Duration),
    /// It says so by systemd's protocol: sd_notify(3).
    Notify {
        within: Duration,
    },
    /// It writes a newline to this descriptor, as s6 knows it.
    Fd {
        number: i32,
        within: Duration,
    },
    /// A probe is answered. Boxed, as many apps have none.
    Probe {
        probe: Box<Probe>,
        within: Duration,
    },
}

impl Ready {
    /// How long it may take, where that is limited.
    #[must_use]
    pub fn within(&self) -> Option<Duration> {
        match self {
            Self::Immediate | Self::After(_) => None,
            Self::Notify { within } | Self::Fd { within, .. } | Self::Probe { within, .. } => Some(*within),
        }
    }
}

/// How a ready instance shows that it is still well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    pub probe: LiveProbe,
    /// From one probe to the next; for the watchdog, how often it must at least be heard of.
    pub every: Duration,
    /// So many in a row and it is restarted.
    pub failures: u32,
    /// Of a single probe.
    pub timeout: Duration,
}

impl Live {
    /// How long the watchdog may be silent; `every` is as the app may have changed it.
    #[must_use]
    pub fn silence(&self, every: Duration) -> Duration {
        every.saturating_mul(self.failures)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveProbe {
    /// It says so itself, again and again: `WATCHDOG=1` of sd_notify(3).
    Watchdog,
    Probe(Probe),
}

/// A question to an instance. `{instance}` in its texts is the copy's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    Http(HttpProbe),
    Tcp(TcpProbe),
    /// Answered by an exit with 0.
    Exec(Command),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpProbe {
    /// To a literal address, `localhost` or a unix socket.
    pub url: String,
    /// The `Host` header; `None`: what the URL says.
    pub host: Option<String>,
    /// The status that counts.
    pub expect: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpProbe {
    pub addr: String,
}

/// An address that a probe connects to; names other than `localhost` are refused, since a probe
/// asks no DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeAddress {
    Socket(SocketAddr),
    /// Both families are tried.
    Localhost(u16),
    Unix(PathBuf),
}
