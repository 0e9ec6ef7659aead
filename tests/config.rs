//! The config as golden files. Each of `tests/config/*.txt` is RON, a line of dashes, and what comes
//! of it: the summary of the config, or the faults with their places. A file with two configs shows
//! what a reload from the first to the second does. `EVERHOOK_BLESS=1` writes what comes out.

use std::{
    fs,
    path::{Path, PathBuf},
};

use everhook::domain::{
    config::{self, Places},
    model::{Account, At, Facts, Group},
};
use jiff::tz::TimeZone;

/// 2026-03-28T12:00:00Z, the day before the clocks of Europe go forward.
const NOW: At = At(1_774_699_200_000);

const LINE: &str = "----------\n";

fn account(name: Option<&str>, uid: u32) -> Account {
    let home = PathBuf::from(format!("/home/{}", name.unwrap_or("nobody")));
    Account { name: name.map(Into::into), uid, gid: uid, home, shell: "/bin/sh".into(), groups: vec![uid] }
}

fn user(text: &str) -> Option<Account> {
    match text {
        "root" | "0" => Some(account(Some("root"), 0)),
        "www" | "1000" => Some(account(Some("www"), 1000)),
        "api" | "1001" => Some(account(Some("api"), 1001)),
        number => number.parse().ok().map(|uid| account(None, uid)),
    }
}

fn group(text: &str) -> Option<Group> {
    user(text).map(|account| Group { name: account.name, gid: account.gid })
}

fn is_directory(path: &Path) -> Option<bool> {
    let path = path.to_string_lossy();
    (!path.contains("missing")).then(|| !path.ends_with(".txt"))
}

/// What is called so is closed to all but root.
fn closed(path: &Path, uid: u32, _: u32, _: &[u32]) -> Option<PathBuf> {
    let step = path.ancestors().find(|step| step.ends_with("closed"))?;
    (uid != 0).then(|| step.to_owned())
}

fn is_program(program: &str) -> bool {
    !program.contains("missing")
}

fn can_limit(kind: &str) -> Result<(), String> {
    if kind == "tasks" { Err("cgroup /x is not writable".into()) } else { Ok(()) }
}

/// What the folder `apps` beside the config holds: enough of files for cases about `include`.
fn matching(glob: &Path) -> Result<Vec<(PathBuf, String)>, String> {
    let files: &[(&str, &str)] = match glob.to_str() {
        Some("/etc/everhook/apps/*.ron") => &[
            ("blog.ron", "(apps: {\"blog\": (command: [\"./blog\"], env_file: \"blog.env\")})"),
            ("shop.ron", "\u{feff}(apps: {\"shop\": (command: [\"./shop\"], after: [\"blog\", \"db\"])})\r\n"),
        ],
        Some("/etc/everhook/bad/*.ron") => &[
            ("a.ron", "(apps: {\n  \"db\": (command: [\"./db\"])\n})"),
            ("b.ron", "(apps: {\n  \"x\": (comand: [\"./x\"])\n})"),
            ("c.ron", "(state_dir: \"/x\")"),
        ],
        Some("/etc/everhook/lame/*.ron") => {
            &[("a.ron", "(apps: {\n  \"x\": (command: [\"x\"], user: \"nobody-here\")\n})")]
        }
        Some(path) if path.contains("missing") => return Err(format!("{path}: No such file or directory")),
        _ => &[],
    };
    let folder = glob.parent().unwrap_or(Path::new("/"));
    Ok(files.iter().map(|(name, text)| (folder.join(name), (*text).to_owned())).collect())
}

/// A config is loaded as root, unless it starts with `// as 1000`.
fn loaded(text: &str) -> Result<config::Loaded, config::Faults> {
    let uid = if text.trim_start_matches('\u{feff}').starts_with("// as 1000") { 1000 } else { 0 };
    let zone = |name: Option<&str>| match name {
        None => Some(TimeZone::UTC),
        Some("Nowhere/Land") => None,
        // A fixed rule, so that the machine's database makes no difference.
        Some(_) => TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").ok(),
    };
    let facts = Facts { uid, user, group, is_directory, closed, is_program, can_limit, matching, zone };
    let places = Places { state_home: "/home/www/.local/state/everhook".into() };
    config::load(text, Path::new("/etc/everhook/supervisor.ron"), &places, &facts)
}

fn summary(text: &str) -> String {
    match loaded(text) {
        Err(faults) => format!("{faults}\n"),
        Ok(loaded) => {
            let found = loaded.warnings.iter().map(|finding| format!("{finding}\n\n"));
            let lines = config::describe(&loaded.config, NOW).into_iter().map(|line| format!("{line}\n"));
            found.chain(lines).collect()
        }
    }
}

/// What a reload starts anew, a start after a kill does not take for the same, and nothing else.
fn agrees(plan: &config::Plan, old: &config::Config, new: &config::Config) {
    for (name, app) in &new.apps {
        let Some(before) = old.apps.get(name).filter(|before| before.problem.is_none() && app.problem.is_none()) else {
            continue;
        };
        let restarted = plan.restarted.iter().any(|(restarted, _)| restarted == name);
        let differs = config::definition(before, &[]) != config::definition(app, &[]);
        assert_eq!(differs, restarted, "{name}: {:?}", plan.restarted);
    }
}

fn outcome(parts: &[&str]) -> String {
    match parts {
        [only] => summary(only),
        [old, new] => {
            let [old, new] = [old, new].map(|text| loaded(text).expect("a config of a reload is good").config);
            let plan = config::diff(&old, &new);
            agrees(&plan, &old, &new);
            plan.lines().into_iter().map(|line| format!("{line}\n")).collect()
        }
        other => panic!("{} configs in one file", other.len()),
    }
}

#[test]
fn every_config_comes_out_as_written_down() {
    let mut wrong = Vec::new();
    let bless = std::env::var_os("EVERHOOK_BLESS").is_some();
    for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/config")).expect("the folder of cases") {
        let file = file.expect("a case").path();
        let text = fs::read_to_string(&file).expect("UTF-8");
        let (input, want) = text.rsplit_once(LINE).unwrap_or((&text, ""));
        let got = outcome(&input.split(LINE).collect::<Vec<_>>());
        if got != want && bless {
            fs::write(&file, format!("{input}{LINE}{got}")).expect("a case can be written");
        } else if got != want {
            wrong.push(format!("{}\nwanted:\n{want}\ngot:\n{got}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
