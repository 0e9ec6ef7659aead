//! git in a closed environment: no prompt, no hook, no config but ours, no protocol but those that
//! only carry data. DESIGN.md section 7, "Git".

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use super::{TreeError, access::Access};

pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// In the mirror's folder: what git takes for the user's config.
pub(super) const CONFIG: &str = "everhook.gitconfig";
/// It asks nothing, leaves no master behind, and gives up on a host that says nothing for a minute.
pub(super) const SSH: &str = "ssh -F none -a -x -o BatchMode=yes -o ControlMaster=no -o ControlPath=none \
    -o StrictHostKeyChecking=yes -o ConnectTimeout=30 -o ServerAliveInterval=15 -o ServerAliveCountMax=4";
const SETTINGS: &str = "\
[gc]\n\tauto = 0\n\
[maintenance]\n\tauto = false\n\
[core]\n\thooksPath = /dev/null\n\tfsmonitor = false\n\tattributesFile = /dev/null\n\texcludesFile = /dev/null\n\
[protocol]\n\tallow = never\n\
[protocol \"file\"]\n\tallow = always\n\
[protocol \"git\"]\n\tallow = always\n\
[protocol \"http\"]\n\tallow = always\n\
[protocol \"https\"]\n\tallow = always\n\
[protocol \"ssh\"]\n\tallow = always\n\
[http]\n\tlowSpeedLimit = 1\n\tlowSpeedTime = 60\n\
[submodule]\n\trecurse = false\n\
[fetch]\n\trecurseSubmodules = false\n\twriteCommitGraph = false\n\
[credential]\n\thelper =\n\
[advice]\n\tdetachedHead = false\n";

/// What no repository's own config may say otherwise.
const ABOVE_ALL: [(&str, &str); 12] = [
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.logAllRefUpdates", "true"),
    ("checkout.workers", "1"),
    ("protocol.version", "2"),
    ("protocol.allow", "never"),
    ("protocol.file.allow", "always"),
    ("submodule.recurse", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("status.showUntrackedFiles", "no"),
];
/// Whom git names where it writes down who changed something.
const SELF: (&str, &str) = ("everhook", "everhook@localhost");

/// Runs git on a mirror.
pub(super) struct Git {
    mirror: PathBuf,
    extra: Vec<(&'static str, PathBuf)>,
    /// In the repository that `directory` is the working tree of, instead of the mirror.
    in_tree: bool,
    directory: PathBuf,
    pub access: Access,
    /// What is shown to nobody: what stands between `://` and `@` in the repository's URL, the token.
    hidden: Vec<String>,
}

/// How a command ended.
pub(super) struct Done {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Git {
    pub(super) fn new(mirror: &Path) -> Self {
        Self {
            mirror: mirror.to_owned(),
            extra: Vec::new(),
            in_tree: false,
            directory: mirror.to_owned(),
            access: Access::default(),
            hidden: Vec::new(),
        }
    }

    /// For this remote, with the keys that this process was given; logins stay out of everything that is printed.
    pub(super) fn reaching(mut self, repo: &str) -> Self {
        self.access = Access::given();
        self.hidden = login(repo).map(|login| format!("{login}@")).into_iter().chain(self.access.token()).collect();
        self
    }

    /// In this working tree, which has a repository of its own; what that configures to be run is not.
    pub(super) fn in_tree(tree: &Path, mirror: &Path) -> Self {
        let above = tree.parent().unwrap_or(tree).to_owned();
        let extra = vec![("GIT_CEILING_DIRECTORIES", above)];
        Self { extra, in_tree: true, directory: tree.to_owned(), ..Self::new(mirror) }
    }

    /// With this work tree and index.
    pub(super) fn with_work_tree(mut self, tree: &Path, index: PathBuf) -> Self {
        tree.clone_into(&mut self.directory);
        self.extra = vec![("GIT_WORK_TREE", tree.to_owned()), ("GIT_INDEX_FILE", index)];
        self
    }

    /// Runs it to its end. Its stderr goes to ours, line by line.
    ///
    /// # Errors
    /// When git cannot be started.
    pub(super) fn run<S: AsRef<OsStr>>(&self, args: &[S], input: &[u8]) -> Result<Done, TreeError> {
        self.run_beside(args, input, || Ok(()))
    }

    /// The same; this is done as soon as it has started.
    pub(super) fn run_beside<S: AsRef<OsStr>>(
        &self,
        args: &[S],
        input: &[u8],
        beside: impl FnOnce() -> Result<(), TreeError>,
    ) -> Result<Done, TreeError> {
        let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
        let mut child =
            self.command()?.args(args).stdin(stdin).spawn().map_err(|e| TreeError::io("starting git", e))?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut out = Vec::new();
        let (beside, said) = thread::scope(|scope| {
            let said = scope.spawn(|| stderr.map(|stderr| self.echo(stderr)).unwrap_or_default());
            // A git that does not want its input says on stderr why.
            if let Some(mut stdin) = stdin {
                scope.spawn(move || stdin.write_all(input));
            }
            let beside = beside();
            let read = stdout.map_or(Ok(0), |mut stdout| stdout.read_to_end(&mut out));
            (beside, read.map(|_| said.join().unwrap_or_default()))
        });
        let stderr = said.map_err(|e| TreeError::io("reading from git", e))?;
        let status = child.wait().map_err(|e| TreeError::io("waiting for git", e))?;
        beside?;
        Ok(Done { code: status.code(), stdout: out, stderr })
    }

    /// Runs it on the mirror alone, where it can only fail because the mirror is damaged.
    pub(super) fn must<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Vec<u8>, TreeError> {
        let done = self.run(args, b"")?;
        match done.code {
            Some(0) => Ok(done.stdout),
            _ => Err(TreeError::Mirror(done.last_words())),
        }
    }

    /// A git that says what it has to say into pipes.
    pub(super) fn command(&self) -> Result<Command, TreeError> {
        // By its path: a program that has to be looked for is started by fork, which copies all of us.
        let program = PATH.split(':').map(|folder| Path::new(folder).join("git")).find(|path| path.is_file());
        let missing = || TreeError::Refused("git is not installed: no `git` in the usual folders".into());
        let mut command = Command::new(program.ok_or_else(missing)?);
        command
            .env_clear()
            .current_dir(&self.directory)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env("PATH", PATH)
            .env("HOME", &self.mirror)
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", self.mirror.join(CONFIG))
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_ADVICE", "0")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "/bin/false")
            .env("SSH_ASKPASS", "/bin/false")
            .env("SSH_ASKPASS_REQUIRE", "never")
            .env("GIT_SSH_COMMAND", self.access.ssh())
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_SSH_VARIANT", "ssh");
        // Without a cgroup git's own children are known for ours by these.
        for name in ["EVERHOOK_BOOT", "EVERHOOK_INSTANCE"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        for (name, value) in &self.extra {
            command.env(name, value);
        }
        if self.in_tree {
            set_above_all(&mut command);
        } else {
            command.env("GIT_DIR", &self.mirror);
        }
        Ok(command)
    }

    fn echo(&self, stderr: impl Read) -> String {
        let mut all = String::new();
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            let mut line = String::from_utf8_lossy(&line).into_owned();
            for hidden in &self.hidden {
                line = line.replace(hidden, "");
            }
            eprintln!("{line}");
            all.push_str(&line);
            all.push('\n');
        }
        all
    }
}

/// As `-c` does, for git and whatever it starts.
fn set_above_all(command: &mut Command) {
    command.env("GIT_CONFIG_COUNT", ABOVE_ALL.len().to_string());
    for (i, (key, value)) in ABOVE_ALL.into_iter().enumerate() {
        command.env(format!("GIT_CONFIG_KEY_{i}"), key).env(format!("GIT_CONFIG_VALUE_{i}"), value);
    }
    for role in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{role}_NAME"), SELF.0).env(format!("GIT_{role}_EMAIL"), SELF.1);
    }
}

/// What git says where a repository does not hold what it should, or not as it should.
const DAMAGE: [&str; 14] = [
    "corrupt",
    "inflate",
    "unable to read",
    "failed to read",
    "failed to unpack tree",
    "bad object",
    "not a valid object name",
    "bad tree object",
    "mmap",
    "packfile",
    "not a git repository",
    // What another one is told of it that fetches there.
    "not our ref",
    "early EOF",
    "did not send all necessary objects",
];

impl Done {
    /// Did the disk or a quota have no room?
    pub(super) fn says_full(&self) -> bool {
        self.says(&["No space left on device", "Disk quota exceeded"])
    }

    /// Is the repository to blame that was read?
    pub(super) fn says_damaged(&self) -> bool {
        !self.says_full() && self.says(&DAMAGE)
    }

    fn says(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.stderr.contains(word))
    }

    /// The last thing that git complained about, without its prefix.
    pub(super) fn last_words(&self) -> String {
        let complaint = |line: &&str| ["fatal:", "error:", "ERROR:"].iter().any(|p| line.starts_with(p));
        let lines = || self.stderr.lines().map(str::trim).filter(|line| !line.is_empty());
        let line = lines().rfind(complaint).or_else(|| lines().next_back());
        match line {
            Some(line) => line.split_once(": ").filter(|_| complaint(&line)).map_or(line, |(_, rest)| rest).to_owned(),
            None => format!("git ended with {:?}", self.code),
        }
    }
}

/// `user:password` of `https://user:password@host/path`.
fn login(repo: &str) -> Option<&str> {
    let (_, rest) = repo.split_once("://")?;
    let authority = rest.split('/').next()?;
    Some(authority.rsplit_once('@')?.0).filter(|login| login.contains(':'))
}

/// A repository as messages name it.
pub(super) fn shown(repo: &str) -> String {
    login(repo).map_or_else(|| repo.to_owned(), |login| repo.replace(&format!("{login}@"), ""))
}

/// The folder of a repository on this machine.
pub(super) fn local(repo: &str) -> Option<&Path> {
    let path = repo.strip_prefix("file://").unwrap_or(repo);
    path.starts_with('/').then(|| Path::new(path))
}

/// The config that git takes for the user's: what we set, and that these repositories may be read
/// although they belong to somebody else (git-config(1), `safe.directory`).
pub(super) fn config(mirror: &Path, repo: &str, access: &Access) -> String {
    let mut safe = vec![mirror.to_owned()];
    if let Some(path) = local(repo) {
        safe.extend([path.to_owned(), path.join(".git")]);
    }
    let real: Vec<PathBuf> = safe.iter().filter_map(|path| path.canonicalize().ok()).collect();
    safe.extend(real);
    let lines = safe.iter().map(|path| format!("\tdirectory = {}\n", quoted(&path.to_string_lossy())));
    let helper = access.helper(repo).map_or_else(String::new, |(url, helper)| {
        format!("[credential {}]\n\thelper = {}\n", quoted(&url), quoted(&helper))
    });
    format!("{SETTINGS}{helper}[safe]\n{}", lines.collect::<String>())
}

fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// Is this a name that git takes for a branch or a tag, and that nothing takes for an option? The rules of
/// git-check-ref-format(1).
pub(super) fn is_ref_name(name: &str) -> bool {
    let bad = |c: char| c.is_ascii_control() || " ~^:?*[\\".contains(c);
    let component = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    !name.starts_with('-')
        && name != "@"
        && !name.contains(bad)
        && !name.contains("..")
        && !name.contains("@{")
        && !name.ends_with('.')
        && name.split('/').all(component)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refs_are_names_and_nothing_else() {
        for good in ["master", "feature/x", "a.b", "ünï", "v1@2"] {
            assert!(is_ref_name(good), "{good}");
        }
        for bad in ["", "-x", "--upload-pack=x", "a b", "a\nb", "a..b", "a//b", "/a", "a/", ".a", "a.lock", "a:b", "*"]
        {
            assert!(!is_ref_name(bad), "{bad}");
        }
    }

    #[test]
    fn logins_are_not_shown() {
        assert_eq!(shown("https://me:hunter2@example.org/a.git"), "https://example.org/a.git");
        assert_eq!(shown("ssh://git@example.org/a.git"), "ssh://git@example.org/a.git");
        assert_eq!(shown("git@example.org:a.git"), "git@example.org:a.git");
    }

    #[test]
    fn paths_stand_quoted_in_the_config() {
        let text = config(Path::new("/m"), "/srv/a \"b\\c", &Access::default());
        assert!(text.contains("directory = \"/srv/a \\\"b\\\\c\"\n"), "{text}");
        assert!(text.contains("directory = \"/srv/a \\\"b\\\\c/.git\"\n"), "{text}");
    }
}
