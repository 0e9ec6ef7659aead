//! What is done aside of the capture, which never waits for it: unlinked files are freed on one thread,
//! rotated ones compressed on another.

use std::{
    collections::HashMap,
    fs::{self, File, Permissions},
    io::{self, BufWriter, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant, SystemTime},
};

use flate2::{Compression, GzBuilder};

use super::chain::{self, Found, Origin, look, numbered, zipped};
use crate::os::{open_files::is_open_here_alone, threads};

/// A file is compressed when it was left alone for so long: under a flood it is gone before.
const REST: Duration = Duration::from_secs(5);
/// The newest rotated file stays as it is: whoever follows it may be behind.
const FIRST: u32 = 2;
/// So many bytes are given back at a stretch.
const PIECE: u64 = 1024 * 1024;
/// Most of what the best level saves, at a multiple of its speed.
const LEVEL: u32 = 4;

/// Both hands, for whoever needs them.
#[derive(Clone)]
pub struct Aside(Arc<Hands>);

struct Hands {
    free: mpsc::Sender<Arc<File>>,
    press: mpsc::Sender<PathBuf>,
    names: Arc<Mutex<()>>,
}

impl Aside {
    #[must_use]
    pub fn start() -> Self {
        let (free, to_free) = mpsc::channel::<Arc<File>>();
        thread::spawn(move || to_free.into_iter().for_each(give_back));
        let (press, to_press) = mpsc::channel();
        let names = Arc::default();
        let mut hand = Press { orders: to_press, names: Arc::clone(&names), due: HashMap::new() };
        thread::spawn(move || hand.work());
        Self(Arc::new(Hands { free, press, names }))
    }

    /// While this is held, no file is renamed.
    pub fn names(&self) -> MutexGuard<'_, ()> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops this use of the file elsewhere.
    pub fn close(&self, file: Arc<File>) {
        // The thread lives as long as a sender does.
        let _ = self.0.free.send(file);
    }

    /// Takes the file out of its folder; its blocks are freed on the thread.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn discard(&self, path: &Path) -> io::Result<()> {
        // Open for writing, it can be freed piece by piece.
        let open = File::options().write(true).open(path).or_else(|_| File::open(path));
        fs::remove_file(path)?;
        if let Ok(file) = open {
            self.close(Arc::new(file));
        }
        Ok(())
    }

    /// Compresses rotated files of this log, once they have been left alone.
    pub fn compress(&self, log: &Path) {
        let _ = self.0.press.send(log.to_owned());
    }
}

/// Closes a file. The kernel takes 10 ms to give back 50 MiB, and a processor that it does so on is nobody else's
/// until then: a file that nobody can see any more becomes smaller before, and whoever waits has a turn in between.
fn give_back(file: Arc<File>) {
    let Some(file) = Arc::into_inner(file) else { return };
    let facts = file.metadata().ok().filter(|facts| facts.nlink() == 0);
    let Some(mut left) = facts.map(|facts| facts.len()).filter(|_| is_open_here_alone(&file)) else { return };
    while let Some(less) = left.checked_sub(PIECE)
        && file.set_len(less).is_ok()
    {
        left = less;
        thread::yield_now();
    }
}

/// The thread that compresses, one file at a time. It waits for orders, and for nothing without one.
struct Press {
    orders: mpsc::Receiver<PathBuf>,
    names: Arc<Mutex<()>>,
    /// When to look at which log.
    due: HashMap<PathBuf, Instant>,
}

impl Press {
    fn work(&mut self) {
        threads::yield_to_others();
        loop {
            let next = self.due.values().min().map(|due| due.saturating_duration_since(Instant::now()));
            let heard = match next {
                Some(wait) => self.orders.recv_timeout(wait),
                None => self.orders.recv().map_err(Into::into),
            };
            match heard {
                Ok(log) => {
                    self.due.entry(log).or_insert_with(Instant::now);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => self.look_at_logs(),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn look_at_logs(&mut self) {
        let now = Instant::now();
        let due: Vec<PathBuf> = self.due.iter().filter(|(_, at)| **at <= now).map(|(log, _)| log.clone()).collect();
        for log in due {
            self.due.remove(&log);
            match self.look_at(&log) {
                Ok(None) => {}
                Ok(Some(wait)) => {
                    self.due.insert(log, Instant::now() + wait);
                }
                // Tried again after the next rotation.
                Err(error) => eprintln!("everhook logger: {} cannot be compressed: {error}", log.display()),
            }
        }
    }

    /// Compresses what may be; how long to wait for what may not yet.
    fn look_at(&self, log: &Path) -> io::Result<Option<Duration>> {
        for number in FIRST.. {
            let name = numbered(log, number);
            let Some(meta) = look(&name)? else {
                if look(&zipped(log, number))?.is_some() {
                    continue;
                }
                return Ok(None);
            };
            // A time to come is none to wait for.
            let age = SystemTime::now().duration_since(meta.modified()?).unwrap_or(REST);
            if let Some(wait) = REST.checked_sub(age).filter(|wait| !wait.is_zero()) {
                return Ok(Some(wait));
            }
            self.compress(log, &name)?;
        }
        Ok(None)
    }

    fn compress(&self, log: &Path, name: &Path) -> io::Result<()> {
        let Some(plain) = open_if_there(name)? else { return Ok(()) };
        let aside = chain::with(log, ".gz.new");
        if let Err(error) = press(&plain, &aside).and_then(|()| self.replace(log, &plain, &aside)) {
            let _ = fs::remove_file(&aside);
            return Err(error);
        }
        Ok(())
    }

    /// Puts the compressed file where the plain one is by now.
    fn replace(&self, log: &Path, plain: &Found, aside: &Path) -> io::Result<()> {
        let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let mut number = FIRST;
        loop {
            match look(&numbered(log, number))? {
                Some(meta) if meta.ino() == plain.inode => break,
                Some(_) => {}
                // It was one too many meanwhile.
                None if look(&zipped(log, number))?.is_none() => return fs::remove_file(aside),
                None => {}
            }
            number += 1;
        }
        fs::rename(aside, zipped(log, number))?;
        // Its blocks are freed when `plain` is closed, which is after the names may move again.
        fs::remove_file(numbered(log, number))
    }
}

fn open_if_there(name: &Path) -> io::Result<Option<Found>> {
    match File::open(name) {
        Ok(file) => Found::plain(Arc::new(file)).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Writes the compressed form, with owner, mode and time of the plain one, down to the disk.
fn press(plain: &Found, to: &Path) -> io::Result<()> {
    let meta = plain.file.metadata()?;
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(to)?;
    let origin = Origin { inode: plain.inode, length: plain.length };
    let seconds = u32::try_from(meta.mtime()).unwrap_or(0);
    let head = GzBuilder::new().mtime(seconds).comment(origin.comment());
    let mut encoder = head.write(BufWriter::with_capacity(64 * 1024, file), Compression::new(LEVEL));
    io::copy(&mut plain.text(), &mut encoder)?;
    let mut writer = encoder.finish()?;
    writer.flush()?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    // Somebody gave the log to a group we may not be in: then the file stays ours alone.
    let _ = fchown(&file, None, Some(meta.gid()));
    file.set_permissions(Permissions::from_mode(meta.mode() & 0o777))?;
    file.set_modified(meta.modified()?)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const SIZE: usize = 3 << 20;

    /// A full file that has no name any more; what else has it open is made before.
    fn nameless<T>(and: impl FnOnce(&Path) -> T) -> (File, T) {
        // Not every file system tells who has a file open.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("log");
        fs::write(&path, vec![b'x'; SIZE]).unwrap();
        (File::options().write(true).open(&path).unwrap(), and(&path))
    }

    #[test]
    fn a_file_is_given_back_in_pieces() {
        let (file, ()) = nameless(|_| ());
        let begun = Instant::now();
        // A process that another test is starting has what wrote it, until it executes its program.
        while file.metadata().unwrap().len() >= PIECE {
            assert!(begun.elapsed() < Duration::from_secs(60));
            give_back(Arc::new(file.try_clone().unwrap()));
        }
    }

    #[test]
    fn whoever_reads_a_file_reads_all_of_it() {
        let (file, mut reader) = nameless(|path| File::open(path).unwrap());
        give_back(Arc::new(file));
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        assert_eq!(text.len(), SIZE);
    }
}
