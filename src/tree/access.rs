//! The keys that the supervisor laid out for this process, as ssh and git want to hear of them. They
//! are named on command lines and in configs; what they hold stands in neither.

use std::{env, fs, path::PathBuf};

use super::git::SSH;
use crate::domain::api::{HOSTS_FILE, KEY_FILE, KEYS_VARIABLE, LOGIN_FILE};

/// Files that are there, or not.
#[derive(Debug, Default)]
pub(super) struct Access {
    pub key: Option<PathBuf>,
    pub hosts: Option<PathBuf>,
    pub login: Option<PathBuf>,
}

impl Access {
    pub(super) fn given() -> Self {
        let folder = env::var_os(KEYS_VARIABLE).map(PathBuf::from);
        let file = |name| folder.as_ref().map(|folder| folder.join(name)).filter(|path| path.exists());
        Self { key: file(KEY_FILE), hosts: file(HOSTS_FILE), login: file(LOGIN_FILE) }
    }

    /// The command that git runs, by a shell, for ssh.
    pub(super) fn ssh(&self) -> String {
        let mut command = SSH.to_owned();
        if let Some(key) = &self.key {
            let option = format!("IdentityFile={}", ssh_path(key));
            command += &format!(" -o IdentitiesOnly=yes -o IdentityAgent=none -o {}", shell_word(&option));
        }
        if let Some(hosts) = &self.hosts {
            let option = format!("UserKnownHostsFile={}", ssh_path(hosts));
            command += &format!(" -o GlobalKnownHostsFile=/dev/null -o {}", shell_word(&option));
        }
        command
    }

    /// Where git asks for a login, and the command that tells it there: gitcredentials(7). Whatever
    /// host the remote sends us on to hears nothing.
    pub(super) fn helper(&self, repo: &str) -> Option<(String, String)> {
        let (scheme, rest) = repo.split_once("://")?;
        let authority = rest.split('/').next()?;
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let file = shell_word(&self.login.as_ref()?.to_string_lossy());
        Some((format!("{scheme}://{host}"), format!("!login() {{ test \"$1\" != get || cat {file}; }}; login")))
    }

    pub(super) fn token(&self) -> Option<String> {
        let login = fs::read_to_string(self.login.as_ref()?).ok()?;
        login.lines().find_map(|line| line.strip_prefix("password=")).map(str::to_owned)
    }
}

/// A path in an option of ssh, which splits at spaces and opens what begins with `%`.
fn ssh_path(path: &std::path::Path) -> String {
    format!("\"{}\"", path.to_string_lossy().replace('%', "%%"))
}

fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_whole_in_a_shell_and_in_ssh() {
        let access = Access { key: Some("/a b/it's 5%".into()), ..Access::default() };
        let want = r#"-o 'IdentityFile="/a b/it'\''s 5%%"'"#;
        assert!(access.ssh().ends_with(want), "{}", access.ssh());
    }

    #[test]
    fn only_the_host_itself_is_told_the_login() {
        let access = Access { login: Some("/k/login".into()), ..Access::default() };
        let (url, helper) = access.helper("https://me@h.org:8443/a/b.git").unwrap();
        assert_eq!(url, "https://h.org:8443");
        assert_eq!(helper, "!login() { test \"$1\" != get || cat '/k/login'; }; login");
        assert!(Access::default().helper("https://h.org/a").is_none() && access.helper("git@h.org:a").is_none());
    }
}
