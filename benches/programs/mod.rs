//! The small C programs that the benchmarks measure with, and the clock that they read.
#![allow(dead_code, reason = "each benchmark uses its part")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// A folder in memory that everybody may enter.
pub fn folder() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("everhook-bench-").tempdir_in("/dev/shm").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Compiled programs, in a folder of their own.
pub struct Programs {
    dir: tempfile::TempDir,
}

impl Programs {
    /// Each by its name and the compiler's words for it.
    pub fn compile(programs: &[(&str, &[&str])]) -> Self {
        let dir = folder();
        for (name, words) in programs {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("benches/programs/{name}.c"));
            let to = dir.path().join(name);
            let done = Command::new("cc").arg("-O2").args(*words).arg("-o").arg(to).arg(source).status();
            assert!(done.unwrap().success(), "cc cannot compile {name}.c");
        }
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// The monotonic clock in ns, as the programs read it.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}
