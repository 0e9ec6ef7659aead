//! What an instance says about itself by systemd's protocol: sd_notify(3), read as systemd reads it.

use std::time::Duration;

/// One message, as far as it concerns the life of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notice {
    /// `MAINPID=`: not proven yet.
    pub main_pid: Option<u32>,
    /// `READY=1`: started up, or done with reloading.
    pub ready: bool,
    pub reloading: bool,
    /// `MONOTONIC_USEC=`: when it began to reload, by the clock of that name, in microseconds.
    pub monotonic: Option<u64>,
    pub stopping: bool,
    /// For people; empty: nothing any more.
    pub status: Option<String>,
    /// Why it is going to fail.
    pub errno: Option<i32>,
    /// What it is going to exit with.
    pub exit_status: Option<u8>,
    /// The time limit that runs out next is at least so far away.
    pub extend: Option<Duration>,
    pub watchdog: Option<Watchdog>,
    /// `WATCHDOG_USEC=`: from now on it lets itself be heard so often; zero: never.
    pub watchdog_every: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watchdog {
    /// It is well.
    Alive,
    /// It wants to be treated as if it had been silent.
    Trigger,
}

impl Notice {
    /// Reads a message; `None` when there is nothing in it for us: an unknown word, a barrier, which
    /// allows no word beside it, a NUL inside.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let text = message.strip_suffix(b"\0").unwrap_or(message);
        if text.contains(&0) {
            return None;
        }
        let lines: Vec<&[u8]> = text.split(|b| *b == b'\n').collect();
        if lines.contains(&&b"BARRIER=1"[..]) {
            return None;
        }
        let mut notice = Self::default();
        for line in lines {
            // A status may be any bytes; what is no text counts as not said.
            if let Some((name, value)) = std::str::from_utf8(line).ok().and_then(|line| line.split_once('=')) {
                notice.take(name, value);
            }
        }
        (notice != Self::default()).then_some(notice)
    }

    fn take(&mut self, name: &str, value: &str) {
        let micros = || value.parse().ok().map(Duration::from_micros);
        match (name, value) {
            ("READY", "1") => self.ready = true,
            ("RELOADING", "1") => self.reloading = true,
            ("MONOTONIC_USEC", time) => self.monotonic = time.parse().ok(),
            ("STOPPING", "1") => self.stopping = true,
            ("WATCHDOG", "1") => self.watchdog = Some(Watchdog::Alive),
            ("WATCHDOG", "trigger") => self.watchdog = Some(Watchdog::Trigger),
            ("STATUS", text) => self.status = Some(text.to_owned()),
            ("MAINPID", pid) => self.main_pid = pid.parse().ok().filter(|pid| *pid > 0),
            ("ERRNO", number) => self.errno = number.parse().ok().filter(|number| *number > 0),
            ("EXIT_STATUS", status) => self.exit_status = status.parse().ok(),
            ("EXTEND_TIMEOUT_USEC", _) => self.extend = micros(),
            ("WATCHDOG_USEC", _) => self.watchdog_every = micros(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Option<Notice> {
        Notice::parse(text.as_bytes())
    }

    #[test]
    fn every_word_is_read() {
        let all = "READY=1\nRELOADING=1\nMONOTONIC_USEC=1\nSTOPPING=1\nSTATUS=a = b\nMAINPID=7\nERRNO=2\nEXIT_STATUS=3\n\
                   EXTEND_TIMEOUT_USEC=1500000\nWATCHDOG=1\nWATCHDOG_USEC=2000000\nX_OWN=1\nFDSTORE=1\n";
        let want = Notice {
            main_pid: Some(7),
            ready: true,
            reloading: true,
            monotonic: Some(1),
            stopping: true,
            status: Some("a = b".into()),
            errno: Some(2),
            exit_status: Some(3),
            extend: Some(Duration::from_millis(1500)),
            watchdog: Some(Watchdog::Alive),
            watchdog_every: Some(Duration::from_secs(2)),
        };
        assert_eq!(parse(all), Some(want));
        assert_eq!(parse("WATCHDOG=trigger\0").unwrap().watchdog, Some(Watchdog::Trigger));
        assert_eq!(parse("STATUS=").unwrap().status.as_deref(), Some(""));
    }

    #[test]
    fn what_says_nothing_is_nothing() {
        for text in [
            "",
            "\0",
            "READY=0",
            "READY=10",
            "READY",
            "ready=1",
            "STATUS=a\0READY=1",
            "MAINPID=0",
            "MAINPID=-1",
            "MAINPID=99999999999",
            "WATCHDOG_USEC=1s",
            "FDSTORE=1\nFDNAME=x",
            "READY=1\nBARRIER=1",
            "BARRIER=1",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert_eq!(Notice::parse(b"STATUS=\xff"), None);
        assert!(Notice::parse(b"STATUS=\xff\nREADY=1").unwrap().ready, "one bad line spoils no other");
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Notice::parse(&bytes);
        }

        #[test]
        fn a_status_comes_through(text in "[^\0\n]{0,100}") {
            let notice = parse(&format!("STATUS={text}"));
            prop_assert_eq!(notice.unwrap().status, Some(text));
        }
    }
}
