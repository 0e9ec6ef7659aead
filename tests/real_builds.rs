//! Projects of real package managers, built by the steps of a deploy: npm, pip and cargo with one small
//! package each. Where a tool is absent or its registry cannot be reached a test says so and is left out.
#![allow(clippy::unwrap_used)]

#[path = "support/deploying.rs"]
mod deploying;
#[path = "support/http.rs"]
mod http;
#[path = "support/server.rs"]
mod server;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use deploying::*;
use server::{Repo, Server, text};

/// The folders that a step's programs are looked for in.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How this machine's registries are reached, as variables: for the tests' own calls and for the steps.
fn reaching() -> BTreeMap<String, String> {
    let names = ["PIP_", "npm_config_", "NPM_CONFIG_", "CARGO_HTTP_", "CARGO_NET_", "CARGO_SOURCE_"];
    let whole = ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "SSL_CERT_FILE"];
    let known = |name: &String| names.iter().any(|prefix| name.starts_with(prefix)) || whole.contains(&name.as_str());
    let mut found: BTreeMap<String, String> = env::vars().filter(|(name, _)| known(name)).collect();
    // What the user's npmrc says that no step reads.
    for key in ["registry", "cafile", "proxy", "https-proxy"] {
        let said = Command::new("npm").args(["config", "get", key]).current_dir("/").output();
        let value = said.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned()).unwrap_or_default();
        if !["", "null", "undefined"].contains(&value.as_str()) {
            found.insert(format!("npm_config_{}", key.replace('-', "_")), value);
        }
    }
    found
}

/// Runs a tool of this machine; its last words where it fails.
fn run(folder: &Path, tool: &str, args: &[&str]) -> Result<(), String> {
    let mut command = Command::new(tool);
    let output =
        command.args(args).current_dir(folder).envs(reaching()).output().map_err(|e| format!("{tool}: {e}"))?;
    let said = text(&output);
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{tool}: {}", said.trim().lines().last().unwrap_or("failed")))
    }
}

/// Asks the registry for what a lock file in this folder is to name.
type Lock = Box<dyn Fn(&Path) -> Result<(), String>>;

/// A project that is deployed.
struct Project {
    server: Server,
    repo: Repo,
    lock: Lock,
}

impl Project {
    /// `lock` reaches the registry for a lock file in the repository; `None`: it cannot.
    fn new(
        deploy: &str,
        env: &BTreeMap<String, String>,
        files: &[(&str, &str)],
        lock: impl Fn(&Path) -> Result<(), String> + 'static,
    ) -> Option<Self> {
        let env: String = env.iter().map(|(name, value)| format!("{name:?}: {value:?}, ")).collect();
        // A step knows nothing of what makes the app a production's.
        let apps = site("", deploy)
            .replace("branch: \"main\"", "branch: \"ma*\"")
            .replace("\"OWN\": \"the app's\"", "\"NODE_ENV\": \"production\"")
            .replace("env: {\"DIR\": \"@DIR@\"}, settle", &format!("env: {{{env}}}, settle"));
        let (server, repo) = world_with(&apps);
        for (name, content) in files {
            let path = repo.path.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        if let Err(why) = lock(&repo.path) {
            println!("left out: {why}");
            return None;
        }
        repo.commit(&[], "a project");
        Some(Self { server, repo, lock: Box::new(lock) })
    }

    /// Deploys the tip, which takes as long as it takes. False: the registry is gone meanwhile.
    fn deploy(&self) -> bool {
        // Of several branches none is deployed before it is asked for.
        let output = self.server.cli(&["deploy", "site", "--rev", "main"]);
        if output.status.success() {
            return true;
        }
        if let Err(why) = (self.lock)(&self.repo.path) {
            println!("left out: {why}");
            return false;
        }
        panic!("{}\n{}", text(&output), self.log());
    }

    /// The log of the newest deploy.
    fn log(&self) -> String {
        let id = deploys(&self.server)[0]["id"].to_string();
        self.server.ok(&["logs", "--deploy", &id, "-n", "1000"])
    }

    fn says(&self, words: &str) {
        self.server
            .until(&format!("the app says {words:?}"), |s| s.ok(&["logs", "site"]).contains(words).then_some(()));
    }
}

/// The app prints what its dependency makes of this, and stays.
fn app(print: &str) -> String {
    format!("{print}\nexec tail -f \"$DIR/held\"\n")
}

fn has(program: &str) -> bool {
    let there = PATH.split(':').any(|folder| Path::new(folder).join(program).exists());
    if !there {
        println!("left out: {program} is not installed");
    }
    there
}

/// A check has its tools though the app's own environment is a production's, and the second deploy
/// finds in the cache what the first one fetched.
#[test]
fn npm_ci_installs_what_checks_need_and_keeps_its_cache() {
    if !has("npm") || !has("node") {
        return;
    }
    let package = r#"{"name": "site", "version": "1.0.0", "private": true,
        "scripts": {"test": "node -e \"if (!require('isarray')([])) process.exit(1)\""},
        "dependencies": {"is-number": "7.0.0"}, "devDependencies": {"isarray": "2.0.5"}}"#;
    let steps = r#"check: ["npm ci $(cat offline)", "test -z \"$NODE_ENV\"", "npm test"], build: ["npm prune --omit=dev --offline"],"#;
    let lock =
        |folder: &Path| run(folder, "npm", &["install", "--package-lock-only", "--ignore-scripts", "--prefer-online"]);
    let start = app("node -e 'console.log(\"number:\", require(\"is-number\")(5), process.env.NODE_ENV)'");
    let files = [("package.json", package), ("offline", ""), ("app.sh", &start)];
    let Some(mut project) = Project::new(steps, &reaching(), &files, lock) else { return };
    project.server.start();
    if !project.deploy() {
        return;
    }
    project.says("number: true production");
    let modules = home(&project.server, "site").join("current/node_modules");
    assert!(modules.join("is-number").is_dir() && !modules.join("isarray").exists());

    project.repo.commit(&[("offline", "--offline"), ("VERSION", "2")], "nothing is to be fetched");
    assert!(project.deploy());
    assert_eq!(version(&project.server), "2");
}

/// A virtual environment lies in the release that it was made in.
#[test]
fn pip_fills_a_virtual_environment_and_keeps_its_cache() {
    let ensured = Command::new("/usr/bin/python3").args(["-c", "import venv, ensurepip"]).output();
    if !ensured.is_ok_and(|output| output.status.success()) {
        return println!("left out: Debian's python3-venv is not installed");
    }
    let steps = r#"build: ["/usr/bin/python3 -m venv .venv",
        "[ -e offline ] || .venv/bin/pip download -d \"$EVERHOOK_CACHE/wheels\" -r requirements.txt",
        ".venv/bin/pip install --no-index --find-links \"$EVERHOOK_CACHE/wheels\" -r requirements.txt"],"#;
    let lock = |folder: &Path| {
        let to = tempfile::tempdir().unwrap();
        let to = to.path().to_str().unwrap();
        let args = ["-m", "pip", "download", "--no-deps", "--no-cache-dir", "-d", to, "-r", "requirements.txt"];
        run(folder, "python3", &args)
    };
    let start = app(".venv/bin/python -c 'import toolz; print(\"sum:\", toolz.reduce(lambda a, b: a + b, [1, 2]))'");
    let files = [("requirements.txt", "toolz==0.12.1\n"), ("app.sh", &start)];
    let Some(mut project) = Project::new(steps, &reaching(), &files, lock) else { return };
    project.server.start();
    if !project.deploy() {
        return;
    }
    project.says("sum: 3");
    project.repo.commit(&[("offline", ""), ("VERSION", "2")], "nothing is to be fetched");
    assert!(project.deploy());
    assert_eq!(version(&project.server), "2");
}

#[test]
fn cargo_builds_a_release_and_keeps_its_cache() {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let toolchain = Path::new(&cargo).ancestors().nth(2).map(Path::to_owned);
    let Some(toolchain) = toolchain.filter(|folder| folder.join("bin/rustc").exists()) else {
        return println!("left out: {cargo} lies beside no rustc");
    };
    let manifest =
        "[package]\nname = \"site\"\nversion = \"1.0.0\"\nedition = \"2021\"\n[dependencies]\nitoa = \"1\"\n";
    let main = "fn main() { println!(\"number: {}\", itoa::Buffer::new().format(42)); }\n";
    let start = app("target/release/site");
    let files = [("Cargo.toml", manifest), ("src/main.rs", main), ("offline", ""), ("app.sh", &start)];
    let lock = move |folder: &Path| {
        let cargo_home = tempfile::tempdir().unwrap();
        let mut command = Command::new(&cargo);
        command.args(["generate-lockfile"]).current_dir(folder).env("CARGO_HOME", cargo_home.path());
        let output = command.output().map_err(|e| e.to_string())?;
        if output.status.success() { Ok(()) } else { Err(format!("cargo: {}", text(&output).trim())) }
    };
    let mut vars = reaching();
    // Root's toolchain lies where nobody else comes; it is shown to the steps where they do.
    let shown = "@DIR@/toolchain";
    let bin = if is_root() { format!("{shown}/bin") } else { toolchain.join("bin").display().to_string() };
    vars.insert("PATH".into(), format!("{bin}:{PATH}"));
    let steps = r#"build: ["cargo build --release --locked $(cat offline)"],"#;
    let Some(mut project) = Project::new(steps, &vars, &files, lock) else { return };
    if is_root() {
        let shown: PathBuf = project.server.path().join("toolchain");
        fs::create_dir(&shown).unwrap();
        let mount = format!("mount --bind {} {} && exec \"$@\"", toolchain.display(), shown.display());
        project.server.start_as(&["unshare", "--mount", "sh", "-c", &mount, "sh"]);
    } else {
        project.server.start();
    }
    if !project.deploy() {
        return;
    }
    project.says("number: 42");
    project.repo.commit(&[("offline", "--offline"), ("VERSION", "2")], "nothing is to be fetched");
    assert!(project.deploy());
    assert_eq!(version(&project.server), "2");
}
