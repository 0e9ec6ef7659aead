//! The database file: opened alone, migrated, moved aside when it is damaged. DESIGN.md section 10.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rusqlite::{Connection, ErrorCode, OptionalExtension, config::DbConfig, params};

use crate::domain::model::{At, DeployId};

/// A database up to this size is read through at every start; damage in a larger one is found when
/// it is met, so that a start never takes long.
const CHECKED_BYTES: u64 = 64 * 1024 * 1024;

/// Each brings the database from the version before to its own; the first makes it.
const MIGRATIONS: [&str; 4] = [
    include_str!("schema.sql"),
    "ALTER TABLE deploys ADD COLUMN approved_by TEXT",
    include_str!("tokens.sql"),
    include_str!("outbox.sql"),
];

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Sql { path: PathBuf, source: rusqlite::Error },
    #[error("{path} is of version {found}, made by a newer everhook; this one knows {known}")]
    Newer { path: PathBuf, found: usize, known: usize },
}

/// What an error of SQLite means for the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The disk takes or gives nothing now; it may later.
    Disk,
    /// The file is no sound database.
    Damaged,
    /// The statement was wrong; the store is well.
    Statement,
}

impl Fault {
    pub(super) fn of(error: &rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(
                ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::ReadOnly
                | ErrorCode::CannotOpen
                | ErrorCode::OutOfMemory
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::PermissionDenied
                | ErrorCode::FileLockingProtocolFailed,
            ) => Self::Disk,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged,
            _ => Self::Statement,
        }
    }
}

/// The version of the database that this binary makes; it reads older ones.
#[must_use]
pub fn version() -> usize {
    MIGRATIONS.len()
}

/// A database that is open.
pub(super) struct Opened {
    pub store: Connection,
    /// Its log, which holds every commit, and has to be synced after one.
    pub log: File,
    /// It is a fresh one, as this says.
    pub alert: Option<String>,
}

/// Opens the database, making or migrating it. A damaged one is moved aside and a fresh one begun.
///
/// # Errors
/// When the disk does not let us, or a newer everhook made it.
pub(super) fn open(path: &Path, now: At) -> Result<Opened, StoreError> {
    let (store, alert) = match open_sound(path, &MIGRATIONS) {
        Err(StoreError::Sql { source, .. }) if Fault::of(&source) == Fault::Damaged => {
            let alert = move_aside(path, now, &source)?;
            (open_sound(path, &MIGRATIONS)?, Some(alert))
        }
        other => (other?, None),
    };
    let log = beside(path, "-wal");
    let log = File::open(&log).map_err(file(&log))?;
    Ok(Opened { store, log, alert })
}

/// Puts a damaged database, with its log, under another name. Returns the sentence for people.
///
/// # Errors
/// When the folder cannot be written.
pub(super) fn move_aside(path: &Path, now: At, cause: &rusqlite::Error) -> Result<String, StoreError> {
    let stamp: String = now.to_string().chars().filter(|c| !matches!(c, '-' | ':' | '.')).collect();
    let aside = beside(path, &format!(".damaged-{stamp}"));
    let log = beside(path, "-wal");
    match fs::rename(&log, beside(&aside, "-wal")) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(file(&log)(e)),
        _ => {}
    }
    fs::rename(path, &aside).map_err(file(path))?;
    Ok(format!(
        "{} was damaged ({cause}); it is now {}, and an empty one was begun: history, deliveries and audit start over",
        path.display(),
        aside.display()
    ))
}

/// Makes deploys and deliveries count on from at least these numbers.
pub(super) fn count_from(connection: &Connection, table: &str, last: DeployId) -> rusqlite::Result<()> {
    let raised = connection.execute(
        "UPDATE sqlite_sequence SET seq = max(seq, ?2) WHERE name = ?1 AND seq IS NOT NULL",
        params![table, last],
    )?;
    if raised == 0 {
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?1, ?2)", params![table, last])?;
    }
    Ok(())
}

/// The highest number that was given in a table; 0 where none was.
pub(super) fn last_number(connection: &Connection, table: &str) -> rusqlite::Result<i64> {
    let mut last = connection.prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = ?1")?;
    Ok(last.query_row([table], |row| row.get(0)).optional()?.unwrap_or(0))
}

/// Writes a page without changing anything, so that a commit tells whether the disk takes something.
pub(super) fn try_to_write(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!("PRAGMA user_version = {}", MIGRATIONS.len()))
}

fn open_sound(path: &Path, migrations: &[&str]) -> Result<Connection, StoreError> {
    let sql = |source| StoreError::Sql { path: path.to_owned(), source };
    // Made before SQLite makes it, so that it and its log are never readable by others.
    let made = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path).map_err(file(path))?;
    made.set_permissions(Permissions::from_mode(0o600)).map_err(file(path))?;
    let bytes = made.metadata().map_err(file(path))?.len();
    drop(made);
    let connection = Connection::open(path).map_err(sql)?;
    configure(&connection, bytes).map_err(sql)?;
    migrate(path, &connection, migrations)?;
    Ok(connection)
}

fn configure(connection: &Connection, bytes: u64) -> rusqlite::Result<()> {
    // Exclusive before WAL: then the index of the log is in our memory, not in a file that can be
    // truncated under us (a SIGBUS) or find no space. The cache, which shrinks by command alone, has room
    // for the pages of a burst; the kernel has the rest. A checkpoint of 4,000 pages is one of few, as each costs
    // two fsyncs. A commit is synced by whoever makes it (`Disk`), not by SQLite, which does so for all that keeps
    // the file sound.
    connection.execute_batch(
        "PRAGMA locking_mode = EXCLUSIVE;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = NORMAL;
         PRAGMA wal_autocheckpoint = 4000;
         PRAGMA cache_size = -512;
         PRAGMA foreign_keys = ON;
         PRAGMA trusted_schema = OFF;
         PRAGMA temp_store = MEMORY;",
    )?;
    // A statement that is kept ready is not planned anew for each value that is bound to it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(64);
    if bytes <= CHECKED_BYTES {
        let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            let corrupt = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            return Err(rusqlite::Error::SqliteFailure(corrupt, Some(verdict)));
        }
    }
    Ok(())
}

fn migrate(path: &Path, connection: &Connection, migrations: &[&str]) -> Result<(), StoreError> {
    let sql = |source| StoreError::Sql { path: path.to_owned(), source };
    let found: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(sql)?;
    let found = found as usize;
    let known = migrations.len();
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    if found > 0 && found < known {
        let backup = beside(path, &format!(".version-{found}"));
        // VACUUM INTO takes no existing file; one that stands here is of a migration that was cut short.
        match fs::remove_file(&backup) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(file(&backup)(e)),
            _ => {}
        }
        connection.execute("VACUUM INTO ?1", [backup.to_string_lossy()]).map_err(sql)?;
        fs::set_permissions(&backup, Permissions::from_mode(0o600)).map_err(file(&backup))?;
    }
    for (version, migration) in migrations.iter().enumerate().skip(found) {
        let step = format!("BEGIN; {migration}; PRAGMA user_version = {}; COMMIT;", version + 1);
        connection.execute_batch(&step).map_err(sql)?;
    }
    Ok(())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_has_the_fix_of_the_wal_reset() {
        assert!(rusqlite::version_number() >= 3_051_003);
    }

    #[test]
    fn a_new_one_is_private_and_has_no_shared_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("everhook.db");
        let Opened { store: connection, alert, .. } = open(&path, At(0)).unwrap();
        assert_eq!(alert, None);
        let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("everhook.db"), mode("everhook.db-wal")), (0o600, 0o600));
        assert!(!folder.path().join("everhook.db-shm").exists());
        let pragma = |name: &str| -> String {
            let value: rusqlite::types::Value =
                connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0)).unwrap();
            format!("{value:?}")
        };
        assert_eq!(pragma("synchronous"), "Integer(1)");
        assert_eq!(pragma("journal_mode"), "Text(\"wal\")");
    }

    #[test]
    fn a_migration_keeps_the_data_and_a_copy_of_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("everhook.db");
        let first = "CREATE TABLE a (x)";
        open_sound(&path, &[first]).unwrap().execute("INSERT INTO a VALUES (7)", []).unwrap();
        let after = open_sound(&path, &[first, "ALTER TABLE a ADD COLUMN y"]).unwrap();
        let row: (i64, Option<i64>) =
            after.query_row("SELECT x, y FROM a", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        assert_eq!(row, (7, None));
        let copy = Connection::open(folder.path().join("everhook.db.version-1")).unwrap();
        assert_eq!(copy.query_row("SELECT x FROM a", [], |row| row.get::<_, i64>(0)).unwrap(), 7);
    }

    #[test]
    fn a_newer_one_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("everhook.db");
        let newer: Vec<String> = (0..=MIGRATIONS.len()).map(|n| format!("CREATE TABLE t{n} (x)")).collect();
        let newer: Vec<&str> = newer.iter().map(String::as_str).collect();
        open_sound(&path, &newer).unwrap();
        let error = open(&path, At(0)).err().unwrap();
        let by_one = matches!(error, StoreError::Newer { found, known, .. } if found == known + 1);
        assert!(by_one, "{error}");
        assert!(path.exists());
    }
}
