//! Where a client finds the supervisor of a config: SURFACE.md section 1.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The socket's name in `run_dir`.
pub const CONTROL_SOCKET: &str = "control.sock";

/// The folder of the notes that say which `run_dir` the supervisor of a config has. `None`: not
/// root, and the session has no `$XDG_RUNTIME_DIR`.
#[must_use]
pub fn note_folder(uid: u32, xdg_runtime_dir: Option<&Path>) -> Option<PathBuf> {
    let base = if uid == 0 { Path::new("/run") } else { xdg_runtime_dir.filter(|dir| dir.is_absolute())? };
    Some(base.join("everhook/by-config"))
}

/// The note's file name for a config, given as an absolute path. The note holds the bytes of
/// `run_dir` and nothing else.
#[must_use]
pub fn note_name(config: &Path) -> String {
    let digest = Sha256::digest(config.as_os_str().as_encoded_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_config_has_a_note_of_its_own() {
        let a = note_name(Path::new("/etc/everhook/supervisor.ron"));
        assert_eq!(a.len(), 64);
        assert_eq!(a, note_name(Path::new("/etc/everhook/supervisor.ron")));
        assert_ne!(a, note_name(Path::new("/srv/supervisor.ron")));
    }

    #[test]
    fn notes_are_roots_or_the_sessions() {
        let session = Path::new("/run/user/1000");
        assert_eq!(note_folder(0, Some(session)), Some("/run/everhook/by-config".into()));
        assert_eq!(note_folder(1000, Some(session)), Some("/run/user/1000/everhook/by-config".into()));
        assert_eq!(note_folder(1000, None), None);
        assert_eq!(note_folder(1000, Some(Path::new("run"))), None);
    }
}
