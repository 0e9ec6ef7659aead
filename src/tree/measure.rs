//! How much there is below folders.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use rustix::fs::FileType;

use super::{TreeError, beneath};
use crate::domain::api::Measured;

/// The bytes that files take on the disk, each once whatever its names; what may not be read counts for
/// nothing. No depth takes more than one descriptor a level.
pub(super) fn measure(paths: &[PathBuf]) -> Result<Measured, TreeError> {
    let mut sum = Sum::default();
    for path in paths {
        match beneath::folder(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            folder => sum.add(&folder.map_err(|e| TreeError::io(path.display().to_string(), e))?),
        }
    }
    Ok(Measured { size_bytes: sum.bytes })
}

#[derive(Default)]
struct Sum {
    bytes: u64,
    /// Files with several names.
    seen: BTreeSet<(u64, u64)>,
}

impl Sum {
    fn add(&mut self, folder: &OwnedFd) {
        for name in beneath::names(folder.as_fd()).unwrap_or_default() {
            let Ok(Some(stat)) = beneath::look(folder.as_fd(), &name) else { continue };
            if stat.st_nlink > 1
                && beneath::kind(&stat) != FileType::Directory
                && !self.seen.insert((stat.st_dev, stat.st_ino))
            {
                continue;
            }
            self.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            if beneath::kind(&stat) == FileType::Directory
                && let Ok(folder) = beneath::folder_below(folder.as_fd(), &name)
            {
                self.add(&folder);
            }
        }
    }
}
