//! The logger process from outside: FIFOs in, files and frames out, kills in between.
#![allow(clippy::unwrap_used)]

mod disk;
mod forms;
mod old;
mod readers;
mod room;

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    thread,
    time::Duration,
};

use everhook::domain::api::{FromLogger, RefusalKind, Sink, Stream, ToLogger};
use nix::{libc::O_NONBLOCK, sys::stat::Mode, unistd::mkfifo};
use room::{Room, assert_numbered, files, kill_while_it_writes, wait_for, write_numbered};

#[test]
fn lines_arrive() {
    let room = Room::new();
    let mut fifo = room.fifo();
    let mut logger = room.start();
    logger.open(&fifo, Stream::Out, room.sink("out", 1 << 20, 3));
    fifo.write.write_all(b"one\ntwo\nthree").unwrap();
    assert_eq!(logger.tail(&room.log("out"), 2).unwrap(), ["two", "three"]);
    assert_eq!(fs::read_to_string(room.log("out")).unwrap(), "one\ntwo\nthree");
    assert_eq!(logger.tail(Path::new("/etc/passwd"), 2), Err(RefusalKind::Forbidden));
    assert_eq!(logger.tail(&room.logs().join("../buffer"), 2), Err(RefusalKind::Forbidden));
    assert_eq!(logger.tail(&room.logs().join("none"), 2).unwrap(), [""; 0]);
    logger.terminate();
}

#[test]
fn rotation_keeps_all_lines_whole() {
    let room = Room::new();
    let fifo = room.fifo();
    let mut logger = room.start();
    logger.open(&fifo, Stream::Out, room.sink("out", 10_000, 10_000));
    write_numbered(&fifo.write, 100_000);
    logger.terminate();
    assert_numbered(&room.log("out"), 100_000, 10_000);
    assert!(files(&room.log("out")).len() > 100);
}

#[test]
fn keep_bounds_the_files_and_no_line_is_in_two() {
    let room = Room::new();
    let mut fifo = room.fifo();
    let mut logger = room.start();
    logger.open(&fifo, Stream::Out, room.sink("out", 100, 2));
    let long = "x".repeat(300);
    for part in ["a\n", &long, &long, "\n", "b\n", "c"] {
        fifo.write.write_all(part.as_bytes()).unwrap();
        logger.tail(&room.log("out"), 1).unwrap();
    }
    assert_eq!(logger.tail(&room.log("out"), 5).unwrap(), ["a", &long.repeat(2), "b", "c"]);
    let sizes: Vec<u64> = files(&room.log("out")).iter().map(|f| f.metadata().unwrap().len()).collect();
    assert_eq!(sizes, [2, 601, 3]);
    write_numbered(&fifo.write, 1000);
    logger.terminate();
    assert_eq!(files(&room.log("out")).len(), 3);
}

/// Kills the logger again and again while lines are written; `(kills, rotations)`.
fn survive_kills(count: u32, rotate: u64, compress: bool) -> (u32, usize) {
    let room = Room::new();
    let log = room.log("out");
    let sink = || room.sink("out", rotate, 10_000).with(|how| how.compress = compress);
    let fifo = room.fifo();
    let current = || fs::metadata(&log).map_or((0, 0), |meta| (meta.ino(), meta.len()));
    let kills = kill_while_it_writes(&room, &fifo, count, &sink, &current);
    let mut logger = room.start();
    logger.open(&fifo, Stream::Out, sink());
    assert_eq!(logger.tail(&log, 1).unwrap(), [format!("line {count}")]);
    logger.terminate();
    assert_numbered(&log, count, rotate);
    (kills, files(&log).len() - 1)
}

#[test]
fn kills_lose_double_and_split_no_line() {
    let (kills, rotations) = survive_kills(1_000_000, 1 << 20, false);
    println!("{kills} kills, {rotations} rotations");
    assert!(kills >= 10 && rotations >= 10);
}

#[test]
fn kills_in_the_middle_of_a_thousand_rotations_do_not_either() {
    // Of four logs, as every rotation moves all files of its log.
    let (kills, rotations) = (0..4)
        .map(|_| survive_kills(100_000, 4096, true))
        .fold((0, 0), |(kills, rotations), (more, further)| (kills + more, rotations + further));
    println!("{kills} kills, {rotations} rotations");
    assert!(kills >= 10 && rotations >= 1_000);
}

#[test]
fn it_captures_without_a_supervisor() {
    let room = Room::new();
    let fifo = room.fifo();
    let mut logger = room.start();
    logger.open(&fifo, Stream::Out, room.sink("out", 1 << 20, 3));
    logger.channel = None;
    // Far more than the FIFO holds: it is read all the time.
    write_numbered(&fifo.write, 100_000);
    logger.terminate();
    assert_numbered(&room.log("out"), 100_000, 1 << 20);
}

#[test]
fn finish_writes_what_the_fifos_hold() {
    let room = Room::new();
    let fifo = room.fifo();
    write_numbered(&fifo.write, 5000);
    let mut logger = room.start();
    logger.open(&fifo, Stream::Out, room.sink("out", 1 << 20, 3));
    logger.send(&ToLogger::Finish, None);
    assert_eq!(logger.ended().code(), Some(0));
    assert_numbered(&room.log("out"), 5000, 1 << 20);
}

#[test]
fn retarget_and_close_write_what_the_fifo_holds_first() {
    let room = Room::new();
    let mut fifo = room.fifo();
    let mut logger = room.start();
    let deploy = |id: u32| Sink::raw(room.logs().join(format!("deploys/{id}.log")), None, 0);
    logger.open(&fifo, Stream::Out, deploy(1));
    fifo.write.write_all(b"first\n").unwrap();
    let sink = deploy(2);
    logger.send(&ToLogger::Retarget { ticket: 7, source: "blog.1".into(), stream: Stream::Out, sink }, None);
    let done = logger.hear();
    assert!(matches!(done, FromLogger::Done { ticket: 7 }), "{done:?}");
    assert_eq!(fs::read_to_string(deploy(1).path).unwrap(), "first\n");
    fifo.write.write_all(b"second\n").unwrap();
    logger.send(&ToLogger::Close { source: "blog.1".into() }, None);
    assert_eq!(logger.tail(&deploy(2).path, 9).unwrap(), ["second"]);
    fifo.write.write_all(b"third\n").unwrap();
    assert_eq!(logger.tail(&deploy(2).path, 9).unwrap(), ["second"]);
    logger.terminate();
}

#[test]
fn out_and_err_of_a_job_share_a_log() {
    let room = Room::new();
    let (mut out, mut err) = (room.fifo(), room.fifo());
    let mut logger = room.start();
    let log = room.logs().join("deploys/1.log");
    for (fifo, stream) in [(&out, Stream::Out), (&err, Stream::Err)] {
        logger.open(fifo, stream, Sink::raw(log.clone(), None, 0));
    }
    for i in 0..3 {
        writeln!(out.write, "out {i}").unwrap();
        logger.tail(&log, 1).unwrap();
        writeln!(err.write, "err {i}").unwrap();
        logger.tail(&log, 1).unwrap();
    }
    assert_eq!(logger.tail(&log, 9).unwrap(), ["out 0", "err 0", "out 1", "err 1", "out 2", "err 2"]);
    logger.terminate();
}

#[test]
fn a_fifo_without_writers_is_heard_again() {
    let room = Room::new();
    let path = room.dir.path().join("fifo");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let read = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&path).unwrap();
    let mut logger = room.start();
    let open = ToLogger::Open { source: "blog.1".into(), sinks: vec![(Stream::Out, room.sink("out", 1 << 20, 3))] };
    logger.send(&open, Some(read.into()));
    for round in 1..=3 {
        let mut write = OpenOptions::new().write(true).open(&path).unwrap();
        writeln!(write, "round {round}").unwrap();
        drop(write);
        wait_for(|| fs::read_to_string(room.log("out")).is_ok_and(|text| text.lines().count() == round));
    }
    logger.terminate();
}

/// Ticks of processor time that a process has used, and how often it slept.
fn work_of(pid: u32) -> (u64, u64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let ticks = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2).map(|t| t.parse::<u64>().unwrap());
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let sleeps = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    (ticks.sum(), sleeps.trim().parse().unwrap())
}

#[test]
fn idle_means_idle_whatever_others_hold_open() {
    let room = Room::new();
    let (mut closed, hung_up) = (room.fifo(), room.fifo());
    let mut logger = room.start();
    logger.open(&closed, Stream::Out, room.sink("out", 1 << 20, 3));
    logger.send(&ToLogger::Close { source: "blog.1".into() }, None);
    logger.open(&hung_up, Stream::Err, room.sink("err", 1 << 20, 3));
    drop(hung_up.write);
    logger.serve(&room, true, Some(1), false);
    logger.tail(&room.log("err"), 1).unwrap();
    closed.write.write_all(b"nobody reads this").unwrap();
    let pid = logger.child.id();
    let mut before = work_of(pid);
    // It settles: hang-ups of FIFO, reader and channel are told once.
    logger.channel = None;
    let quiet = Duration::from_millis(300);
    wait_for(|| {
        thread::sleep(quiet);
        let now = work_of(pid);
        let idle = now.1 == before.1 && now.0 <= before.0 + 2;
        before = now;
        idle
    });
    logger.terminate();
}

#[test]
fn a_log_that_somebody_removed_is_made_again() {
    let room = Room::new();
    let mut fifo = room.fifo();
    let mut logger = room.start();
    logger.open(&fifo, Stream::Out, room.sink("out", 1 << 20, 3));
    for text in ["one\n", "two\n"] {
        fifo.write.write_all(text.as_bytes()).unwrap();
        logger.tail(&room.log("out"), 1).unwrap();
        assert_eq!(fs::read_to_string(room.log("out")).unwrap(), text);
        fs::remove_file(room.log("out")).unwrap();
    }
    // Moved away by a rotation of the administrator's own.
    fifo.write.write_all(b"three\n").unwrap();
    logger.tail(&room.log("out"), 1).unwrap();
    fs::rename(room.log("out"), room.logs().join("moved")).unwrap();
    logger.send(&ToLogger::Reopen, None);
    // Answered when that was done.
    logger.tail(&room.log("err"), 1).unwrap();
    fifo.write.write_all(b"four\n").unwrap();
    assert_eq!(logger.tail(&room.log("out"), 9).unwrap(), ["four"]);
    assert_eq!(fs::read_to_string(room.logs().join("moved")).unwrap(), "three\n");
    logger.terminate();
}
