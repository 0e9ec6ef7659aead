//! Keys and tokens for the length of one job: files in `run_dir/keys`, which the fetch user reads and
//! nobody else. DESIGN.md section 7, "Git". On the files thread.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

use super::secrets;
use crate::domain::{
    api::{HOSTS_FILE, KEY_FILE, LOGIN_FILE},
    config::{Access, HttpsToken, SecretRef, deploy_key},
    model::Secret,
};

/// A folder that is removed with this; none where nothing is needed.
#[derive(Debug, Default)]
pub struct Keys {
    folder: Option<PathBuf>,
    /// What is secret of it.
    secrets: Vec<Secret>,
}

impl Keys {
    /// Lays out what the remote and we are proven by. `reader`: who reads it, where that is not us;
    /// `owners`: the uids, beside root's and our own, that secrets may belong to.
    ///
    /// # Errors
    /// Names the field or the secret, and what is wrong with it.
    pub fn lay(folder: &Path, access: &Access, reader: Option<(u32, u32)>, owners: &[u32]) -> Result<Self, String> {
        if *access == Access::default() {
            return Ok(Self::default());
        }
        let named = |e: io::Error| format!("{}: {e}", folder.display());
        // Nobody looks into it, and only its reader opens what is there.
        fs::DirBuilder::new().mode(0o711).create(folder).map_err(named)?;
        let mut keys = Self { folder: Some(folder.to_owned()), secrets: Vec::new() };
        let put = |name: &str, text: &[u8]| put(&folder.join(name), text, reader).map_err(named);
        if let Some(secret) = &access.ssh_key {
            let key = key(secret, owners).map_err(|error| format!("`ssh_key`: {error}"))?;
            put(KEY_FILE, key.expose())?;
            keys.secrets.push(key);
        }
        if !access.host_key.is_empty() {
            // It is the only host that is asked.
            let lines = access.host_key.iter().map(|key| format!("* {key}\n"));
            put(HOSTS_FILE, lines.collect::<String>().as_bytes())?;
        }
        if let Some(HttpsToken { user, token }) = &access.https_token {
            let token = secrets::existing(token, owners).map_err(|error| format!("`https_token`: {error}"))?;
            if token.expose().iter().any(u8::is_ascii_control) {
                return Err("`https_token`: the token is more than one line".into());
            }
            // As git-credential(1) reads it.
            let login = [format!("username={user}\npassword=").as_bytes(), token.expose(), b"\n"].concat();
            put(LOGIN_FILE, Secret::new(login).expose())?;
            keys.secrets.push(token);
        }
        Ok(keys)
    }

    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// What nobody may see of them.
    #[must_use]
    pub fn secrets(&self) -> &[Secret] {
        &self.secrets
    }
}

fn key(secret: &SecretRef, owners: &[u32]) -> Result<Secret, String> {
    let bytes = secrets::existing(secret, owners)?;
    let text = deploy_key(bytes.expose()).map_err(|what| format!("{} {what}", secrets::show(secret)))?;
    // Its last newline counts.
    Ok(Secret::new(format!("{text}\n").into_bytes()))
}

fn put(path: &Path, text: &[u8], reader: Option<(u32, u32)>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    if let Some((uid, gid)) = reader {
        fchown(&file, Some(uid), Some(gid))?;
    }
    Ok(())
}

impl Drop for Keys {
    fn drop(&mut self) {
        let Some(folder) = &self.folder else { return };
        for name in [KEY_FILE, HOSTS_FILE, LOGIN_FILE] {
            let _ = fs::remove_file(folder.join(name));
        }
        if let Err(error) = fs::remove_dir(folder) {
            tracing::warn!(%error, "{} stays until the next start", folder.display());
        }
    }
}
