//! Reads secrets, where nobody else can: DESIGN.md section 9. On the files thread.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use crate::{
    domain::{config::SecretRef, model::Secret},
    os::{files, secret_file},
};

/// What stands behind each reference, or a sentence why nothing usable does.
pub type Secrets = HashMap<SecretRef, Result<Secret, String>>;

/// Reads all of them. A file inside `state_dir` that is missing is made. `owners`: the uids, beside
/// root's and our own, that may own one.
#[must_use]
pub fn read_all(wanted: &[&SecretRef], state_dir: &Path, owners: &[u32]) -> Secrets {
    wanted.iter().map(|secret| ((*secret).clone(), read(secret, state_dir, owners))).collect()
}

fn read(secret: &SecretRef, state_dir: &Path, owners: &[u32]) -> Result<Secret, String> {
    if let SecretRef::File(path) = secret
        && path.starts_with(state_dir)
        && !path.exists()
    {
        make(path)?;
    }
    existing(secret, owners)
}

/// The same for one that nobody makes up, such as a key.
///
/// # Errors
/// A sentence why nothing usable stands behind it.
pub fn existing(secret: &SecretRef, owners: &[u32]) -> Result<Secret, String> {
    let bytes = match secret {
        SecretRef::File(path) => secret_file::read(path, owners)?,
        SecretRef::Env(name) => std::env::var_os(name)
            .map(std::os::unix::ffi::OsStringExt::into_vec)
            .ok_or_else(|| format!("the variable {name} of a secret is not set"))?,
        SecretRef::Credential(name) => {
            let folder = std::env::var_os("CREDENTIALS_DIRECTORY")
                .ok_or_else(|| format!("there is no $CREDENTIALS_DIRECTORY for the secret {name:?}"))?;
            secret_file::read(&PathBuf::from(folder).join(name), owners)?
        }
    };
    let secret_bytes = Secret::new(bytes);
    if secret_bytes.is_empty() {
        return Err(format!("the secret {} is empty", show(secret)));
    }
    Ok(secret_bytes)
}

/// As messages name it.
#[must_use]
pub fn show(secret: &SecretRef) -> String {
    match secret {
        SecretRef::File(path) => path.display().to_string(),
        SecretRef::Env(name) => format!("${name}"),
        SecretRef::Credential(name) => name.clone(),
    }
}

fn make(path: &Path) -> Result<(), String> {
    let named = |e: io::Error| format!("the secret {} cannot be made: {e}", path.display());
    if let Some(folder) = path.parent() {
        // As the state folder is to be: others go through it, and see nothing in it.
        fs::DirBuilder::new().recursive(true).mode(0o711).create(folder).map_err(named)?;
    }
    files::write_durably(path, random_hex().as_bytes(), 0o600).map_err(named)
}

/// 256 random bits in hex.
#[must_use]
pub fn random_hex() -> String {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).expect("Linux always has random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn secret_file(mode: u32, text: &str) -> (tempfile::TempDir, SecretRef) {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (folder, SecretRef::File(path))
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_fix() {
        let (_folder, secret) = secret_file(0o644, "abc\n");
        assert!(read(&secret, Path::new("/nowhere"), &[]).unwrap_err().contains("chmod 600"));
        let (folder, secret) = secret_file(0o644, "abc\n");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(read(&secret, Path::new("/nowhere"), &[]).unwrap().matches(b"abc"));
    }

    #[test]
    fn empty_and_linked_secrets_are_refused() {
        let (_folder, secret) = secret_file(0o600, "\n");
        assert!(read(&secret, Path::new("/nowhere"), &[]).unwrap_err().contains("is empty"));
        let (folder, SecretRef::File(path)) = secret_file(0o600, "x") else { unreachable!() };
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(path, &link).unwrap();
        assert!(read(&SecretRef::File(link), Path::new("/nowhere"), &[]).is_err());
    }

    #[test]
    fn a_missing_one_in_the_state_folder_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hook-secret");
        let made = read(&SecretRef::File(path.clone()), folder.path(), &[]).unwrap();
        assert_eq!(made.expose().len(), 64);
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(read(&SecretRef::File("/nowhere/x".into()), folder.path(), &[]).is_err());
    }
}
