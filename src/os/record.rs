//! Run records: what a child notes about itself before exec, so that a later supervisor knows it.
//! Identity is pid, time, boot id and pid namespace. The time is that of the note, not the start: the
//! kernel tells the clock at once, and a process's own start after a long walk.

use std::{
    fmt, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    str::FromStr,
    time::Duration,
};

use super::{identity, pidfd};
use crate::domain::model::{Progress, ReleaseId};

/// A record is always this long: `pid time boot_id pidns everhook_boot`, for an instance what it was started
/// as, spaces, how far it has got, a newline.
pub const RECORD_SIZE: usize = 192;
/// Where it stands how far it has got: a space at first.
const PROGRESS_AT: usize = RECORD_SIZE - 2;
/// Of the times in it.
const TICKS_A_SECOND: u64 = 100;

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
    /// Of an instance.
    pub started_as: Option<StartedAs>,
    pub progress: Progress,
}

/// What an instance was started as, so that a later supervisor knows whether that is what it would start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedAs {
    /// Stands for all that its config gave it.
    pub definition: u64,
    pub release: Option<ReleaseId>,
    /// How often it had been restarted.
    pub restarts: u64,
}

/// `definition release restarts`.
impl fmt::Display for StartedAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x} ", self.definition)?;
        match &self.release {
            Some(release) => write!(f, "{release} {}", self.restarts),
            None => write!(f, "- {}", self.restarts),
        }
    }
}

impl FromStr for StartedAs {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let words: Vec<&str> = text.split(' ').collect();
        let [definition, release, restarts] = words[..] else { return Err(()) };
        Ok(Self {
            definition: u64::from_str_radix(definition, 16).map_err(drop)?,
            release: if release == "-" { None } else { Some(release.parse().map_err(drop)?) },
            restarts: restarts.parse().map_err(drop)?,
        })
    }
}

impl RunRecord {
    /// Reads a record; `None` for an empty or foreign text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words: Vec<&str> = text.split_ascii_whitespace().collect();
        let progress = match words.last() {
            Some(&"r") => Progress::Ready,
            Some(&"l") => Progress::Leaving,
            _ => Progress::Started,
        };
        words.truncate(words.len() - usize::from(progress != Progress::Started));
        let (known, started_as) = words.split_at_checked(5)?;
        let [pid, noted_at, boot_id, pid_namespace, everhook_boot] = *known else { return None };
        let record = Self {
            pid: pid.parse().ok()?,
            noted_at: noted_at.parse().ok()?,
            boot_id: boot_id.to_owned(),
            pid_namespace: pid_namespace.parse().ok()?,
            everhook_boot: everhook_boot.to_owned(),
            started_as: if started_as.is_empty() { None } else { Some(started_as.join(" ").parse().ok()?) },
            progress,
        };
        (record.pid > 0).then_some(record)
    }

    /// Reads a record's file; `None` when no child has written into it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        Ok(Self::parse(&String::from_utf8_lossy(&std::fs::read(path)?)))
    }

    /// Writes down that this process is meant from now on, in place of the one that noted itself.
    ///
    /// # Errors
    /// When `/proc` or the file say so; `ESRCH` when there is no such process.
    pub fn note(file: impl AsFd, pid: u32) -> io::Result<()> {
        let stat = std::fs::read(format!("/proc/{pid}/stat"))?;
        let noted_at = start_time_of(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Self::change(file, |record| (record.pid, record.noted_at) = (pid, noted_at))
    }

    /// Writes down that it runs this release from now on, and well.
    ///
    /// # Errors
    /// When the file says so.
    pub fn note_release(file: impl AsFd, release: &ReleaseId) -> io::Result<()> {
        Self::change(file, |record| {
            record.progress = Progress::Ready;
            if let Some(started_as) = &mut record.started_as {
                started_as.release = Some(release.clone());
            }
        })
    }

    /// Writes down how far it has got.
    ///
    /// # Errors
    /// When the file says so.
    pub fn note_progress(file: impl AsFd, progress: Progress) -> io::Result<()> {
        rustix::io::pwrite(file, &[letter(progress)], PROGRESS_AT as u64).map(drop).map_err(Into::into)
    }

    fn change(file: impl AsFd, change: impl FnOnce(&mut Self)) -> io::Result<()> {
        let mut line = [b' '; RECORD_SIZE];
        let length = rustix::io::pread(&file, &mut line, 0)?;
        let mut record = Self::parse(&String::from_utf8_lossy(&line[..length])).ok_or(io::ErrorKind::InvalidData)?;
        change(&mut record);
        let mut line = [b' '; RECORD_SIZE];
        if !fill(&mut line, record.pid.into(), record.noted_at, record.tail().as_bytes()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        line[PROGRESS_AT] = letter(record.progress);
        rustix::io::pwrite(file, &line, 0).map(drop).map_err(Into::into)
    }

    fn tail(&self) -> String {
        let machine = format!("{} {}", self.boot_id, self.pid_namespace);
        tail(&machine, &self.everhook_boot, self.started_as.as_ref())
    }

    /// How long ago it was noted.
    #[must_use]
    pub fn age(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let now = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0));
        let part = self.noted_at % TICKS_A_SECOND * (1000 / TICKS_A_SECOND);
        let noted = Duration::from_secs(self.noted_at / TICKS_A_SECOND) + Duration::from_millis(part);
        now.saturating_sub(noted)
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

/// What follows pid and time in a record; `machine`: boot id and pid namespace.
pub(super) fn tail(machine: &str, everhook_boot: &str, started_as: Option<&StartedAs>) -> String {
    let started_as = started_as.map(|started_as| format!(" {started_as}")).unwrap_or_default();
    format!(" {machine} {everhook_boot}{started_as}")
}

fn letter(progress: Progress) -> u8 {
    match progress {
        Progress::Started => b' ',
        Progress::Ready => b'r',
        Progress::Leaving => b'l',
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
    // Room for the progress, apart from what is before it.
    let fits = written && at < PROGRESS_AT;
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
            started_as: None,
            progress: Progress::Started,
        }
    }

    fn started_as() -> StartedAs {
        StartedAs { definition: u64::MAX, release: Some("12-1a2b3c4".parse().unwrap()), restarts: 7 }
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
    fn what_becomes_of_a_process_is_noted_in_its_record() {
        let file = tempfile::tempfile().unwrap();
        let read = || {
            let mut line = [0; RECORD_SIZE];
            assert_eq!(rustix::io::pread(&file, &mut line, 0).unwrap(), RECORD_SIZE);
            RunRecord::parse(std::str::from_utf8(&line).unwrap()).unwrap()
        };
        let began = RunRecord { pid: 1, noted_at: 2, started_as: Some(started_as()), ..own() };
        let mut line = [b' '; RECORD_SIZE];
        assert!(fill(&mut line, 1, 2, began.tail().as_bytes()));
        rustix::io::pwrite(&file, &line, 0).unwrap();
        assert_eq!(read(), began);
        RunRecord::note_progress(&file, Progress::Ready).unwrap();
        assert_eq!(read(), RunRecord { progress: Progress::Ready, ..began.clone() });
        RunRecord::note(&file, own().pid).unwrap();
        let now = RunRecord { progress: Progress::Ready, started_as: Some(started_as()), ..own() };
        assert_eq!(read(), now);
        assert!(read().age() < Duration::from_secs(3600));
        RunRecord::note_progress(&file, Progress::Leaving).unwrap();
        assert_eq!(read().progress, Progress::Leaving);
        let other = StartedAs { release: Some("13-1a2b3c4".parse().unwrap()), ..started_as() };
        RunRecord::note_release(&file, other.release.as_ref().unwrap()).unwrap();
        assert_eq!(read(), RunRecord { started_as: Some(other), ..now });
        assert!(RunRecord::note(tempfile::tempfile().unwrap(), own().pid).is_err(), "there is no record");
    }

    #[test]
    fn half_a_record_is_none() {
        let wrong = ["", "\n", "r", "1", "1 2 boot 3", "0 2 boot 3 run", "x 2 boot 3 run", "1 2 boot 3 run more"];
        for text in wrong.into_iter().chain(["1 2 boot 3 run ff - x", "1 2 boot 3 run ff - 1 2", "1 2 b 3 run x - 1 r"])
        {
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
