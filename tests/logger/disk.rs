//! Owners and modes of the files, and a disk that is full.

use std::{
    fs::{self, File, Permissions},
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Stdio,
};

use everhook::domain::{
    api::{FromLogger, LogLine, Stream},
    config::Form,
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::geteuid,
};

use crate::room::{Room, files, write_numbered};

#[test]
fn a_new_file_has_owner_and_mode_of_the_old_one() {
    let room = Room::new();
    let uid = geteuid().is_root().then_some(60901);
    if uid.is_some() {
        fs::set_permissions(room.dir.path(), Permissions::from_mode(0o711)).unwrap();
        File::create(room.dir.path().join("buffer")).unwrap();
        for path in [room.logs(), room.dir.path().join("buffer")] {
            chown(path, uid, uid).unwrap();
        }
    }
    let fifo = room.fifo();
    let mut logger = room.start_with(Stdio::null(), uid);
    logger.open(&fifo, Stream::Out, room.sink("out", 4096, 3));
    write_numbered(&fifo.write, 5000);
    logger.tail(&room.log("out"), 1).unwrap();
    let all = files(&room.log("out"));
    assert_eq!(all.len(), 4);
    for file in all {
        let meta = file.metadata().unwrap();
        assert_eq!(meta.mode() & 0o777, 0o640);
        assert_eq!(meta.uid(), uid.unwrap_or(geteuid().as_raw()));
    }
    // What an administrator opened to others stays open.
    fs::set_permissions(room.log("out"), Permissions::from_mode(0o644)).unwrap();
    write_numbered(&fifo.write, 5000);
    logger.tail(&room.log("out"), 1).unwrap();
    assert_eq!(room.log("out").metadata().unwrap().mode() & 0o777, 0o644);
    logger.terminate();
}

/// A file system of 256 KiB, for as long as it lives.
struct Small(PathBuf);

impl Small {
    fn mount(on: &Path) -> Option<Self> {
        match mount(Some("tmpfs"), on, Some("tmpfs"), MsFlags::empty(), Some("size=256k")) {
            Ok(()) => Some(Self(on.to_owned())),
            Err(e) => {
                println!("skipped: a small file system cannot be mounted: {e}");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_stops_no_app_and_the_gap_is_counted() {
    let room = Room::new();
    let Some(small) = Small::mount(&room.logs()) else { return };
    let ballast = room.logs().join("ballast");
    fs::write(&ballast, vec![0; 128 * 1024]).unwrap();
    let mut fifo = room.fifo();
    let mut logger = room.start();
    logger.open(&fifo, Stream::Out, room.sink("out", 1 << 20, 3));
    write_numbered(&fifo.write, 100_000);
    fifo.write.write_all(b"the end of a line that is ").unwrap();
    logger.tail(&room.log("out"), 1).unwrap();
    fs::remove_file(ballast).unwrap();
    fifo.write.write_all(b"cut\nand on it goes\n").unwrap();
    assert_eq!(logger.tail(&room.log("out"), 1).unwrap(), ["and on it goes"]);

    let text = fs::read_to_string(room.log("out")).unwrap();
    let (kept, rest) = text.split_once("[everhook: ").unwrap();
    let (dropped, rest) = rest.split_once(" bytes dropped, disk full]\n").unwrap();
    assert_eq!(rest, "and on it goes\n");
    let mut written: String = (1..=100_000).map(|i| format!("line {i}\n")).collect();
    written.push_str("the end of a line that is cut\n");
    // The line in which the gap began was given a newline, unless the gap began with a line.
    let given = kept.len() + dropped.parse::<usize>().unwrap() - written.len();
    let kept = if given == 1 { kept.strip_suffix('\n').unwrap() } else { kept };
    assert!(written.starts_with(kept) && kept.len() > 100_000 && given <= 1, "{given}");
    logger.terminate();
    drop(small);
}

#[test]
fn the_supervisor_hears_of_a_full_disk() {
    let room = Room::new();
    let Some(small) = Small::mount(&room.logs()) else { return };
    let fifo = room.fifo();
    let mut logger = room.start();
    logger.open(&fifo, Stream::Out, room.sink("out", 1 << 20, 3));
    write_numbered(&fifo.write, 100_000);
    // Before, it may ask for a larger pipe, where it may not have one by itself.
    let told = std::iter::repeat_with(|| logger.hear()).find(|told| !matches!(told, FromLogger::Crowded { .. }));
    let Some(FromLogger::Dropping { source, reason, .. }) = told else { panic!("another message: {told:?}") };
    assert_eq!((source.as_str(), reason.as_deref()), ("blog.1", Some("disk full")));
    logger.terminate();
    drop(small);
}

#[test]
fn after_a_full_disk_a_file_has_whole_lines_of_its_form() {
    let room = Room::new();
    let Some(small) = Small::mount(&room.logs()) else { return };
    let ballast = room.logs().join("ballast");
    fs::write(&ballast, vec![0; 128 * 1024]).unwrap();
    let mut fifo = room.fifo();
    let mut logger = room.start();
    logger.open(&fifo, Stream::Out, room.sink("out", 1 << 20, 3).with(|how| how.form = Form::Json));
    write_numbered(&fifo.write, 20_000);
    fifo.write.write_all(b"the end of a line that is ").unwrap();
    logger.tail(&room.log("out"), 1).unwrap();
    fs::remove_file(ballast).unwrap();
    fifo.write.write_all(b"cut\nand on it goes\n").unwrap();
    assert_eq!(logger.tail(&room.log("out"), 1).unwrap(), ["and on it goes"]);

    let text = fs::read_to_string(room.log("out")).unwrap();
    let lines: Vec<LogLine> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let gap = lines.len() - 2;
    for (i, line) in lines[..gap].iter().enumerate() {
        assert_eq!(line.line, format!("line {}", i + 1));
    }
    let dropped = lines[gap].line.strip_prefix("[everhook: ").unwrap().strip_suffix(" bytes dropped, disk full]");
    let lost: usize = (gap + 1..=20_000).map(|i| format!("line {i}\n").len()).sum();
    assert_eq!(dropped.unwrap().parse::<usize>().unwrap(), lost + "the end of a line that is cut\n".len());
    logger.terminate();
    drop(small);
}
