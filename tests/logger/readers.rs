//! What readers of logs get, and what comes out on everhook's own stdout.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::Stdio,
    thread,
};

use everhook::domain::api::{Stream, ToLogger};

use crate::room::{Room, line, lines_of, wait_for, write_numbered};

/// `N` of `[everhook: N lines skipped]`.
fn gap(line: &str) -> Option<u32> {
    line.strip_prefix("[everhook: ")?.strip_suffix(" lines skipped]")?.parse().ok()
}

#[test]
fn following_goes_on_over_rotations_and_restarts() {
    let room = Room::new();
    let fifo = room.fifo();
    let mut logger = room.start();
    let mut client = logger.serve(&room, true, Some(20), false);
    logger.open(&fifo, Stream::Out, room.sink("out", 1024, 1));
    write_numbered(&fifo.write, 5000);
    // The instance's next run: another FIFO, the same log.
    let again = room.fifo();
    logger.open(&again, Stream::Out, room.sink("out", 1024, 1));
    let writer = thread::spawn(move || {
        for i in 5001..=10_000 {
            writeln!(&again.write, "line {i}").unwrap();
        }
        again
    });
    let (mut seen, mut skipped) = (0, 0);
    while seen + skipped < 10_000 {
        let line = line(&mut client).expect("no silent end");
        assert_eq!((line.instance.as_str(), line.stream.as_str()), ("blog.1", "out"));
        if let Some(lines) = gap(&line.line) {
            skipped += lines;
        } else {
            seen += 1;
            assert_eq!(line.line, format!("line {}", seen + skipped));
        }
    }
    println!("{seen} lines seen, {skipped} skipped");
    drop(writer.join().unwrap());
    logger.terminate();
}

#[test]
fn a_slow_reader_is_told_what_it_missed_and_stops_nobody() {
    let room = Room::new();
    let fifo = room.fifo();
    let mut logger = room.start();
    logger.open(&fifo, Stream::Out, room.sink("out", 1024, 1));
    let mut client = logger.serve(&room, true, Some(0), false);
    // Answered when it is being served.
    logger.tail(&room.log("out"), 1).unwrap();
    write_numbered(&fifo.write, 200_000);
    assert_eq!(logger.tail(&room.log("out"), 1).unwrap(), ["line 200000"]);
    let (mut next, mut skipped) = (1, 0);
    while next <= 200_000 {
        let line = line(&mut client).expect("no silent end").line;
        if let Some(lines) = gap(&line) {
            skipped += lines;
            next += lines;
        } else {
            assert_eq!(line, format!("line {next}"));
            next += 1;
        }
    }
    assert!(skipped > 0 && next == 200_001, "{skipped} skipped, next {next}");
    logger.terminate();
}

#[test]
fn out_then_err_and_the_run_before() {
    let room = Room::new();
    let (mut out, mut err) = (room.fifo(), room.fifo());
    let mut logger = room.start();
    logger.open(&out, Stream::Out, room.sink("out", 20, 5));
    logger.open(&err, Stream::Err, room.sink("err", 1 << 20, 5));
    for run in ["first", "second", "third"] {
        logger.mark(true);
        write!(out.write, "{run} a\n{run} b\n{run} c\n").unwrap();
        writeln!(err.write, "{run} problem").unwrap();
    }
    let all = lines_of(logger.serve(&room, false, Some(2), false));
    assert_eq!(all, ["out third b", "out third c", "err second problem", "err third problem"]);
    let run = lines_of(logger.serve(&room, false, None, true));
    assert_eq!(run, ["out second a", "out second b", "out second c", "err second problem"]);
    let last = lines_of(logger.serve(&room, false, Some(1), true));
    assert_eq!(last, ["out second c", "err second problem"]);
    let runs = fs::read_to_string(room.logs().join("blog/blog.1.runs")).unwrap();
    assert_eq!(runs.lines().count(), 3);
    assert!(runs.starts_with("20") && runs.lines().all(|run| run.split(' ').count() == 5), "{runs}");
    logger.terminate();
}

/// A logger that has just read looks at the same FIFO first when it goes on; what it finds there may be a later
/// run's, whose mark it has not heard.
#[test]
fn what_a_run_writes_first_is_its_own_though_it_did_not_wait() {
    let room = Room::new();
    let mut fifo = room.fifo();
    let mut logger = room.start();
    logger.open(&fifo, Stream::Out, room.sink("out", 1 << 20, 5));
    for run in 1..=50 {
        writeln!(fifo.write, "of run {run}").unwrap();
        wait_for(|| fs::read_to_string(room.log("out")).is_ok_and(|log| log.ends_with(&format!("of run {run}\n"))));
        logger.stop();
        logger.mark(false);
        writeln!(fifo.write, "of run {} at once", run + 1).unwrap();
        logger.go_on();
        let previous = lines_of(logger.serve(&room, false, None, true));
        let first = format!("out of run {run} at once");
        let all = [first, format!("out of run {run}")];
        assert!(run == 1 || previous == all, "{previous:?}");
    }
    logger.terminate();
}

#[test]
fn a_mark_may_be_found_before_it_is_heard_what_is_captured() {
    let room = Room::new();
    let mut fifo = room.fifo();
    let mut logger = room.start();
    logger.mark(false);
    // Answered after the mark was looked for.
    assert!(logger.tail(&room.log("out"), 1).unwrap().is_empty());
    assert!(!room.logs().join("blog/blog.1.runs").exists());
    writeln!(fifo.write, "first").unwrap();
    logger.open(&fifo, Stream::Out, room.sink("out", 1 << 20, 5));
    wait_for(|| fs::read_to_string(room.log("out")).is_ok_and(|log| log == "first\n"));
    let runs = fs::read_to_string(room.logs().join("blog/blog.1.runs")).unwrap();
    assert_eq!(runs.split_whitespace().skip(1).collect::<Vec<_>>(), ["0"; 4], "{runs}");
    logger.terminate();
}

#[test]
fn characters_are_whole_and_unfinished_lines_are_shown() {
    let room = Room::new();
    let mut fifo = room.fifo();
    let mut logger = room.start();
    logger.open(&fifo, Stream::Out, room.sink("out", 1 << 20, 1));
    let mut client = logger.serve(&room, true, Some(0), false);
    // Answered when it is being served.
    logger.tail(&room.log("out"), 1).unwrap();
    let mut next = || line(&mut client).unwrap().line;
    // No newline comes, and the last character is cut: what is whole is shown all the same.
    fifo.write.write_all(b"\r1% \xe2").unwrap();
    assert_eq!(next(), "\r1% ");
    fifo.write.write_all(b"\x89").unwrap();
    logger.tail(&room.log("out"), 1).unwrap();
    fifo.write.write_all(b"\xa4\nbroken \xff\n").unwrap();
    assert_eq!(next(), "≤");
    assert_eq!(next(), "broken \u{fffd}");
    logger.terminate();
}

#[test]
fn app_output_is_echoed_in_whole_lines_and_never_waited_for() {
    let room = Room::new();
    let mut fifo = room.fifo();
    let mut logger = room.start_with(Stdio::piped(), None);
    let mut stdout = logger.child.stdout.take().unwrap();
    logger.open(&fifo, Stream::Out, room.sink("out", 1 << 20, 100));
    logger.send(&ToLogger::Echo { on: true }, None);
    for part in ["hel", "lo\nwor", "ld\n"] {
        fifo.write.write_all(part.as_bytes()).unwrap();
        logger.tail(&room.log("out"), 1).unwrap();
    }
    let want = b"blog.1 | hello\nblog.1 | world\n";
    let mut got = vec![0; want.len()];
    stdout.read_exact(&mut got).unwrap();
    assert_eq!(got, want);
    // Nobody reads stdout: the log is whole all the same, and stdout says what it did not take.
    write_numbered(&fifo.write, 500_000);
    assert_eq!(logger.tail(&room.log("out"), 1).unwrap(), ["line 500000"]);
    // All of it is read before the end, at which nobody is waited for for long.
    let reader = thread::spawn(move || {
        let (mut shown, mut dropped, mut lines) = (0, 0, BufReader::new(stdout).lines().map(Result::unwrap));
        while shown + dropped < 500_000
            && let Some(line) = lines.next()
        {
            let told = line.strip_prefix("everhook | ").and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok());
            dropped += told.unwrap_or(0);
            shown += usize::from(line.starts_with("blog.1 | line "));
        }
        (shown, dropped, lines)
    });
    wait_for(|| reader.is_finished());
    let (shown, dropped, mut lines) = reader.join().unwrap();
    assert!(dropped > 0);
    assert_eq!(shown + dropped, 500_000);
    logger.terminate();
    assert_eq!(lines.next(), None);
}
