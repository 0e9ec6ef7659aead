//! Run records: what a child notes about itself before exec, so that a later supervisor knows it.
//! Identity is pid, time, boot id and pid namespace. The time is that of the note, not the start: the
//! kernel tells the clock at once, and a process's own start after a long walk.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use super::{identity, pidfd};

/// A record is always this long: `pid time boot_id pidns everhook_boot`, spaces, a newline.
pub const RECORD_SIZE: usize = 192;

/// Who a process is, so that nobody else is taken for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRecord {
    pub pid: u32,
    /// When it noted this, in clock ticks since boot: it had begun by then, and whoever gets its pid after it
    /// has not.
    pub noted_at: u64,
    pub boot_id: String,
    /// Inode of the pid namespace in which `pid` counts.
    pub pid_namespace: u64,
    /// The id of the supervisor's run that started it.
    pub everhook_boot: String,
}

impl RunRecord {
    /// Reads a record; `None` for an empty or foreign text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let record = Self {
            pid: words.next()?.parse().ok()?,
            noted_at: words.next()?.parse().ok()?,
            boot_id: words.next()?.to_owned(),
            pid_namespace: words.next()?.parse().ok()?,
            everhook_boot: words.next()?.to_owned(),
        };
        (words.next().is_none() && record.pid > 0).then_some(record)
    }

    /// Reads a record's file; `None` when no child has written into it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        Ok(Self::parse(&String::from_utf8_lossy(&std::fs::read(path)?)))
    }

    /// Writes down that this process is meant from now on, as the child did of itself before exec.
    ///
    /// # Errors
    /// When `/proc` or the file say so; `ESRCH` when there is no such process.
    pub fn note(file: impl AsFd, pid: u32, everhook_boot: &str) -> io::Result<()> {
        let stat = std::fs::read(format!("/proc/{pid}/stat"))?;
        let start_time = start_time_of(&stat).ok_or(io::ErrorKind::InvalidData)?;
        let tail = format!(" {} {} {everhook_boot}", identity::boot_id()?, identity::pid_namespace()?);
        let mut line = [b' '; RECORD_SIZE];
        if !fill(&mut line, pid.into(), start_time, tail.as_bytes()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        rustix::io::pwrite(file, &line, 0).map(drop).map_err(Into::into)
    }

    /// A pidfd, if this very process is alive (a zombie is not). It is opened first and compared
    /// after, so that it cannot be somebody else's.
    #[must_use]
    pub fn is_alive_and_same(&self) -> Option<OwnedFd> {
        let here = identity::boot_id().ok()? == self.boot_id && identity::pid_namespace().ok()? == self.pid_namespace;
        if !here {
            return None;
        }
        let fd = pidfd::open(self.pid).ok()?;
        let stat = std::fs::read(format!("/proc/{}/stat", self.pid)).ok()?;
        let begun_before = start_time_of(&stat).is_some_and(|begun| begun <= self.noted_at);
        let same = begun_before && !pidfd::has_ended(&fd);
        same.then_some(fd)
    }
}

/// Field 22 of `/proc/<pid>/stat`: when the process began, in clock ticks since boot. The name in
/// field 2 may hold anything, so fields are counted behind its last parenthesis.
pub(super) fn start_time_of(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|b| *b == b')')?;
    let field = stat.get(name_end..)?.split(|b| *b == b' ').nth(20)?;
    let mut number = 0u64;
    for digit in field {
        number = number.checked_mul(10)?.checked_add(u64::from(digit.checked_sub(b'0').filter(|d| *d < 10)?))?;
    }
    (!field.is_empty()).then_some(number)
}

/// Writes a record into `line`, which holds spaces; false when it does not fit. Neither allocates
/// nor panics: the child calls it before exec.
pub(super) fn fill(line: &mut [u8; RECORD_SIZE], pid: u64, noted_at: u64, tail: &[u8]) -> bool {
    let mut at = 0usize;
    let mut put = |bytes: &[u8]| {
        let place = line.get_mut(at..at.saturating_add(bytes.len()));
        at = at.saturating_add(bytes.len());
        place.map(|place| place.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from)).is_some()
    };
    let mut digits = [0; DIGITS];
    let written = put(decimal(pid, &mut digits)) && put(b" ") && put(decimal(noted_at, &mut digits)) && put(tail);
    let fits = written && at < RECORD_SIZE;
    if let Some(last) = line.last_mut() {
        *last = b'\n';
    }
    fits
}

/// The most digits that a `u64` has.
pub(super) const DIGITS: usize = 20;

/// The digits of a number. Neither allocates nor panics.
pub(super) fn decimal(mut number: u64, digits: &mut [u8; DIGITS]) -> &[u8] {
    let mut first = digits.len();
    for (i, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0'.wrapping_add((number % 10) as u8);
        number /= 10;
        first = i;
        if number == 0 {
            break;
        }
    }
    digits.get(first..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> RunRecord {
        RunRecord {
            pid: std::process::id(),
            noted_at: start_time_of(&std::fs::read("/proc/self/stat").unwrap()).unwrap(),
            boot_id: identity::boot_id().unwrap(),
            pid_namespace: identity::pid_namespace().unwrap(),
            everhook_boot: "run".into(),
        }
    }

    #[test]
    fn a_record_reads_back_as_written() {
        let mut line = [b' '; RECORD_SIZE];
        assert!(fill(&mut line, 42, u64::MAX, b" boot-id 4026531836 abc"));
        assert_eq!(line[RECORD_SIZE - 1], b'\n');
        let record = RunRecord::parse(std::str::from_utf8(&line).unwrap()).unwrap();
        assert_eq!((record.pid, record.noted_at), (42, u64::MAX));
        assert_eq!((record.boot_id.as_str(), record.everhook_boot.as_str()), ("boot-id", "abc"));
        assert!(!fill(&mut [b' '; RECORD_SIZE], 1, 1, &[b'x'; RECORD_SIZE]));
    }

    #[test]
    fn half_a_record_is_none() {
        for text in ["", "\n", "1", "1 2 boot 3", "0 2 boot 3 run", "x 2 boot 3 run", "1 2 boot 3 run more"] {
            assert_eq!(RunRecord::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_start_time_stands_behind_any_name() {
        let fields: Vec<String> = (3..30).map(|i| i.to_string()).collect();
        for name in ["sh", "a b", "a) S 1 (b", ") ) )"] {
            let stat = format!("7 ({name}) {}", fields.join(" "));
            assert_eq!(start_time_of(stat.as_bytes()), Some(22), "{name}");
        }
        assert_eq!(start_time_of(b"7 (sh) S 1"), None);
    }

    #[test]
    fn only_the_same_process_is_the_same() {
        assert!(own().is_alive_and_same().is_some());
        assert!(RunRecord { noted_at: own().noted_at + 1, ..own() }.is_alive_and_same().is_some());
        assert!(RunRecord { noted_at: own().noted_at - 1, ..own() }.is_alive_and_same().is_none(), "it began later");
        assert!(RunRecord { boot_id: "another".into(), ..own() }.is_alive_and_same().is_none());
        assert!(RunRecord { pid_namespace: 1, ..own() }.is_alive_and_same().is_none());
        assert!(RunRecord { pid: u32::MAX, ..own() }.is_alive_and_same().is_none());
    }
}
