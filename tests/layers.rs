//! The arrows of the house: which room may use which. The map stands in README.md, ARCHITECTURE.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Rooms of the domain; one may use those before it.
const DOMAIN: [&str; 8] = ["model", "config", "api", "hook", "access", "service", "deploy", "outbox"];
/// Folders that are processes: they use `domain` and `os`, never each other.
const PROCESSES: [&str; 7] = ["supervisor", "listener", "logger", "courier", "step", "tree", "cli"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The paths below `crate::` that a file uses, braces opened: `crate::domain::{a, b::C}` gives two.
fn used(text: &str) -> Vec<String> {
    let code: String = text.lines().map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join(" ");
    let mut paths = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        expand(&rest.split_whitespace().collect::<Vec<_>>().join(" "), "", &mut paths);
    }
    paths
}

fn expand(text: &str, before: &str, paths: &mut Vec<String>) {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let path = format!("{before}{}", &text[..end]);
    if !text[end..].starts_with('{') {
        paths.push(path);
        return;
    }
    let (mut depth, mut start) = (0, end + 1);
    for (i, c) in text[end..].char_indices() {
        let i = i + end;
        match c {
            '{' => depth += 1,
            '}' | ',' if depth == 1 => {
                expand(text[start..i].trim(), &path, paths);
                start = i + 1;
                if c == '}' {
                    return;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
}

/// Why `room` (path below src, without extension) must not use `path`; `None`: it may.
fn forbidden(room: &[&str], path: &str) -> Option<String> {
    let to: Vec<&str> = path.split("::").filter(|p| !p.is_empty()).collect();
    let (Some(from), Some(target)) = (room.first(), to.first()) else { return None };
    let place = |name: &str| DOMAIN.iter().position(|d| *d == name);
    let wrong = match (*from, *target) {
        ("domain", "domain") => {
            let (here, there) = (room.get(1).and_then(|r| place(r)), to.get(1).and_then(|r| place(r)));
            matches!((here, there), (Some(here), Some(there)) if there > here)
        }
        ("domain", _) => true,
        ("os", "os") => false,
        ("os", "domain") => to.get(1) != Some(&"model"),
        ("os", _) => true,
        (a, b) if PROCESSES.contains(&a) && PROCESSES.contains(&b) => a != b,
        _ => false,
    };
    wrong.then(|| format!("{} uses crate::{path}", room.join("/")))
}

#[test]
fn every_use_follows_the_arrows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    for file in &files {
        let below = file.strip_prefix(&root).unwrap().with_extension("");
        let room: Vec<&str> = below.iter().map(|part| part.to_str().unwrap()).collect();
        wrong.extend(used(&fs::read_to_string(file).unwrap()).iter().filter_map(|path| forbidden(&room, path)));
    }
    assert!(files.len() > 20, "the sources were not found");
    assert!(wrong.is_empty(), "arrows against the house:\n{}", wrong.join("\n"));
}

#[test]
fn the_core_is_pure() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/domain");
    let mut files = Vec::new();
    sources(&root, &mut files);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or("");
        if file.ends_with("tests.rs") || file.iter().any(|part| part == "tests") {
            continue;
        }
        for impure in [
            "std::fs",
            "std::net::Tcp",
            "std::process",
            "async fn",
            "tokio::",
            "tracing::",
            "Instant::now",
            "SystemTime::now",
        ] {
            assert!(!code.contains(impure), "{} uses {impure}", file.display());
        }
    }
}

#[test]
fn unsafe_stays_in_its_room() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    for file in files.iter().filter(|f| !f.strip_prefix(&root).unwrap().starts_with("os")) {
        let text = fs::read_to_string(file).unwrap();
        let word = |line: &str| {
            line.split("//")
                .next()
                .unwrap_or("")
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|w| w == "unsafe")
        };
        assert!(!text.lines().any(word), "{} has unsafe", file.display());
    }
}

#[test]
fn the_reader_of_uses_opens_braces() {
    let paths = used("use crate::domain::{api::{A, B}, model::C}; // crate::no\nlet x = crate::os::y();");
    assert_eq!(paths, ["domain::api::A", "domain::api::B", "domain::model::C", "os::y"]);
    assert!(forbidden(&["os", "spawn"], "domain::api::A").is_some());
    assert!(forbidden(&["cli", "status"], "supervisor::x").is_some());
    assert!(forbidden(&["domain", "model", "x"], "domain::config::Y").is_some());
    assert!(forbidden(&["domain", "deploy", "x"], "domain::api::Y").is_none());
}
