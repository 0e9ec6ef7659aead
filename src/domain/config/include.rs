//! Files of further apps that the config includes, each with faults and relative paths of its own.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Include, Place,
    finding::{Faults, Finding, Lines, Mark, Severity, Source},
    judge::absolute,
    parse, raw,
    scan::Node,
};
use crate::domain::model::Facts;

/// A file that counts: the config itself, or an included one.
pub struct File<'a> {
    pub source: Source<'a>,
    lines: Lines,
    pub root: Node,
    /// Its folder: relative paths in it are relative to this.
    pub base: PathBuf,
    pub name: Arc<Path>,
}

impl<'a> File<'a> {
    pub fn new(source: Source<'a>, root: Node) -> Self {
        let base = source.path.parent().unwrap_or(Path::new("/")).to_owned();
        Self { source, lines: Lines::of(source.text), root, base, name: source.path.into() }
    }

    /// The place of a byte of it.
    pub fn place(&self, byte: usize) -> Place {
        let (line, column) = self.lines.position(self.source.text, byte);
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Place { file: Arc::clone(&self.name), line: number(line), column: number(column) }
    }

    fn app(&self, name: &str) -> Option<Mark> {
        Some(Mark::new(self.root.find(&["apps", name])?.key_span.clone(), ""))
    }
}

/// What `include` names.
#[derive(Default)]
pub struct Named {
    pub entries: Vec<Include>,
    /// Every file, once, and its text.
    pub texts: Vec<(PathBuf, String)>,
}

/// Reads every file that `include` names; the config does not include itself.
///
/// # Errors
/// What cannot be read, at the place of its glob.
pub fn named(main: &File<'_>, raw: &raw::Root, facts: &Facts) -> Result<Named, Faults> {
    let Named { mut entries, mut texts } = Named::default();
    let mut faults = Vec::new();
    for (i, glob) in raw.include.iter().enumerate() {
        let glob = absolute(&main.base, glob);
        match (facts.matching)(&glob) {
            Ok(mut found) => {
                found.retain(|(path, _)| path != main.source.path);
                entries.push(Include { glob, files: found.iter().map(|(path, _)| path.clone()).collect() });
                texts.append(&mut found);
            }
            Err(error) => {
                let mark = main.root.find(&["include", &i.to_string()]).map(|entry| entry.value.span.clone());
                let marks: Vec<_> = mark.map(|span| Mark::new(span, "")).into_iter().collect();
                faults.push(main.source.finding(Severity::Error, format!("include: {error}"), &marks));
            }
        }
    }
    texts.sort();
    texts.dedup_by(|one, other| one.0 == other.0);
    if faults.is_empty() { Ok(Named { entries, texts }) } else { Err(Faults(faults)) }
}

/// Adds the apps of the included files to those of the config.
///
/// # Errors
/// Every fault of form, and every name that is given twice, with both places.
pub fn merge<'a>(main: File<'a>, raw: &mut raw::Root, texts: &'a [(PathBuf, String)]) -> Result<Vec<File<'a>>, Faults> {
    let mut files = vec![main];
    let mut faults: Vec<Finding> = Vec::new();
    for (number, (path, text)) in (1..).zip(texts) {
        let source = Source::new(path, text, number);
        let (more, root) = match parse::parse::<raw::Included>(source) {
            Ok(parsed) => parsed,
            Err(found) => {
                faults.extend(found.0);
                continue;
            }
        };
        let file = File::new(source, root);
        for (name, app) in more.apps {
            match files.iter().find_map(|other| Some((other, other.app(&name)?))) {
                Some((other, first)) => faults.push(twice(&name, (other, &first), &file)),
                None => drop(raw.apps.insert(name, app)),
            }
        }
        files.push(file);
    }
    if faults.is_empty() { Ok(files) } else { Err(Faults(faults)) }
}

fn twice(name: &str, (other, first): (&File<'_>, &Mark), file: &File<'_>) -> Finding {
    let (line, column) = other.source.position(first.span.start);
    let message = format!("\"{name}\" is given twice, first at {}:{line}:{column}", other.source.path.display());
    let marks: Vec<_> = file.app(name).into_iter().collect();
    file.source.finding(Severity::Error, message, &marks)
}
