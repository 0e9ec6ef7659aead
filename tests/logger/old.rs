//! What becomes of rotated files: by age, compressed, found again by time and by what is in them.

use std::{
    fs::{self, File, Permissions},
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

use everhook::domain::{
    api::{LogFeed, LogFrame, LogPlace, LogWish, Saying, Stream},
    config::Form,
};

use crate::room::{Room, files, line, lines_of, now, receive, text, wait_for, write_numbered};

/// As if it had been written so long ago.
fn make_older(file: &Path, by: Duration) {
    File::options().write(true).open(file).unwrap().set_modified(SystemTime::now() - by).unwrap();
}

#[test]
fn a_file_goes_when_its_first_line_is_old() {
    let room = Room::new();
    let mut fifo = room.fifo();
    let mut logger = room.start();
    let age = Duration::from_secs(1);
    let sink = || room.sink("out", 1 << 20, 9).with(|how| how.age = Some(age));
    logger.open(&fifo, Stream::Out, sink());
    fifo.write.write_all(b"one\n").unwrap();
    // By itself: nothing more is written.
    wait_for(|| files(&room.log("out")).len() == 2 && room.log("out").exists());
    assert_eq!(text(&files(&room.log("out"))[0]), "one\n");
    // An empty file has no age.
    thread::sleep(age * 2);
    assert_eq!(files(&room.log("out")).len(), 2);
    // A line that is open when it is time is not cut, also by a logger that did not see it begin.
    fifo.write.write_all(b"tw").unwrap();
    logger.tail(&room.log("out"), 1).unwrap();
    logger.terminate();
    let mut logger = room.start();
    logger.open(&fifo, Stream::Out, sink());
    thread::sleep(age * 2);
    assert_eq!(files(&room.log("out")).len(), 2);
    fifo.write.write_all(b"o\n").unwrap();
    wait_for(|| files(&room.log("out")).len() == 3 && room.log("out").exists());
    let all: Vec<String> = files(&room.log("out")).iter().map(|file| text(file)).collect();
    assert_eq!(all, ["one\n", "two\n", ""]);
    logger.terminate();
}

/// Five files; those from the third on are old enough to be compressed.
fn compressed(room: &Room, logger: &mut crate::room::Logger, fifo: &crate::room::Fifo, form: Form) {
    let sink = |compress| room.sink("out", 10_000, 9).with(|how| (how.compress, how.form) = (compress, form));
    logger.open(fifo, Stream::Out, sink(false));
    // Answered when that was done.
    logger.tail(&room.log("out"), 1).unwrap();
    write_numbered(&fifo.write, if form == Form::Raw { 8_000 } else { 2_000 });
    logger.tail(&room.log("out"), 1).unwrap();
    assert!(files(&room.log("out")).len() >= 5);
    for number in 2..files(&room.log("out")).len() {
        make_older(&room.log("out").with_extension(format!("log.{number}")), Duration::from_secs(60));
    }
    logger.open(fifo, Stream::Out, sink(true));
    wait_for(|| {
        let all = files(&room.log("out"));
        all.iter().filter(|file| file.extension().is_some_and(|end| end == "gz")).count() == all.len() - 2
    });
}

#[test]
fn rotated_files_are_compressed_but_the_newest_and_stay_what_they_were() {
    let room = Room::new();
    let fifo = room.fifo();
    let mut logger = room.start();
    fs::create_dir_all(room.log("out").parent().unwrap()).unwrap();
    fs::write(room.log("out"), "").unwrap();
    fs::set_permissions(room.log("out"), Permissions::from_mode(0o604)).unwrap();
    logger.open(&fifo, Stream::Out, room.sink("out", 1 << 20, 9));
    compressed(&room, &mut logger, &fifo, Form::Raw);
    let all = files(&room.log("out"));
    let whole: String = all.iter().map(|file| text(file)).collect();
    let want: String = (1..=8_000).map(|i| format!("line {i}\n")).collect();
    assert!(whole == want);
    for file in &all {
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o604, "{}", file.display());
    }
    let age = all[0].metadata().unwrap().modified().unwrap().elapsed().unwrap();
    assert!(age > Duration::from_secs(50), "the time of the last line stays");
    assert!(all[1].metadata().unwrap().len() < 5_000);
    // Compressed ones move and go like the others.
    write_numbered(&fifo.write, 40_000);
    logger.tail(&room.log("out"), 1).unwrap();
    assert_eq!(files(&room.log("out")).len(), 10);
    let names = fs::read_dir(room.logs().join("blog")).unwrap().count();
    assert!(names <= 13, "{names} files");
    logger.terminate();
}

#[test]
fn readers_see_no_difference_between_compressed_and_plain() {
    for form in [Form::Raw, Form::Stamped] {
        let room = Room::new();
        let fifo = room.fifo();
        let mut logger = room.start();
        compressed(&room, &mut logger, &fifo, form);
        let last = if form == Form::Raw { 8_000u32 } else { 2_000 };
        let mut ask = |wish: LogWish| -> Vec<String> {
            let mut client = logger.serve_form(&room, form, wish);
            std::iter::from_fn(|| line(&mut client)).map(|line| line.line).collect()
        };
        let numbers = |from: u32| (from..=last).map(|i| format!("line {i}")).collect::<Vec<_>>();
        assert_eq!(ask(LogWish::default()), numbers(1));
        for n in [0, 1, last / 2, last - 1, last, last + 1] {
            assert_eq!(ask(LogWish { n: Some(n), ..LogWish::default() }), numbers((last + 1).saturating_sub(n).max(1)));
        }
        let grep = |n, grep: &str| LogWish { n, grep: Some(grep.into()), ..LogWish::default() };
        assert_eq!(ask(grep(None, "^line .?00$")), (1..=9).map(|i| format!("line {i}00")).collect::<Vec<_>>());
        assert_eq!(ask(grep(Some(3), "(?i)LINE [1-8]00$")), ["line 600", "line 700", "line 800"]);
        logger.terminate();
    }
}

#[test]
fn a_bad_expression_is_refused_in_words() {
    let room = Room::new();
    let mut logger = room.start();
    let wish = LogWish { grep: Some("a(b".into()), ..LogWish::default() };
    let mut client = logger.serve_form(&room, Form::Raw, wish);
    let Some(LogFrame::Said(said)) = receive(&mut client) else { panic!("not refused") };
    let Saying::Refused(refusal) = said.what else { panic!("not refused") };
    assert!(refusal.message.contains("\"a(b\" is no regular expression"), "{}", refusal.message);
    logger.terminate();
}

#[test]
fn since_a_moment_is_found_in_files_of_every_form() {
    for form in [Form::Raw, Form::Stamped, Form::Json] {
        let room = Room::new();
        let mut fifo = room.fifo();
        let mut logger = room.start();
        logger.open(&fifo, Stream::Out, room.sink("out", 3000, 9).with(|how| how.form = form));
        let mut moments = Vec::new();
        for round in 0..3 {
            moments.push(now());
            for i in 0..100 {
                writeln!(fifo.write, "{round} {i}").unwrap();
            }
            logger.tail(&room.log("out"), 1).unwrap();
            // Longer than what lies between two places that are noted.
            thread::sleep(Duration::from_millis(1500));
        }
        let mut ask = |since| {
            let wish = LogWish { since: Some(since), ..LogWish::default() };
            lines_of(logger.serve_form(&room, form, wish))
        };
        for (round, moment) in moments.iter().enumerate() {
            let lines = ask(*moment);
            assert_eq!(lines.first(), Some(&format!("out {round} 0")), "{form:?}");
            assert_eq!(lines.len(), (3 - round) * 100, "{form:?}");
        }
        assert_eq!(ask(now()), [""; 0], "{form:?}");
        // What nobody noted is told by the times of files.
        fs::remove_file(room.logs().join("blog/blog.1.out.times")).unwrap();
        assert_eq!(ask(moments[0]).len(), 300);
        logger.terminate();
    }
}

#[test]
fn the_run_before_is_found_in_compressed_files() {
    let room = Room::new();
    let fifo = room.fifo();
    let mut logger = room.start();
    logger.open(&fifo, Stream::Out, room.sink("out", 20_000, 9));
    logger.mark(true);
    compressed(&room, &mut logger, &fifo, Form::Raw);
    logger.mark(true);
    logger.tail(&room.log("out"), 1).unwrap();
    writeln!(&fifo.write, "of this run").unwrap();
    let run = lines_of(logger.serve(&room, false, None, true));
    assert_eq!(run.len(), 8_000);
    assert_eq!((run[0].as_str(), run[7_999].as_str()), ("out line 1", "out line 8000"));
    logger.terminate();
}

#[test]
fn a_reader_goes_on_where_another_logger_left_it() {
    let room = Room::new();
    let fifo = room.fifo();
    let feed =
        |from| LogFeed { instance: "blog.1".into(), stream: Stream::Out, path: room.log("out"), form: Form::Raw, from };
    let wish = || LogWish { follow: true, n: Some(0), ..LogWish::default() };
    let (mut seen, mut from, mut loggers) = (0, None, 0);
    let mut writer = Some(&fifo);
    while seen < 3_000 {
        let mut logger = room.start();
        loggers += 1;
        logger.open(&fifo, Stream::Out, room.sink("out", 4096, 9_000));
        let mut client = logger.serve_feeds(vec![feed(from)], wish());
        if let Some(fifo) = writer.take() {
            // It follows by now.
            let frame = first(&mut client);
            assert!(matches!(frame.0, LogFrame::Here { .. }));
            from = frame.1;
            write_numbered(&fifo.write, 3_000);
        }
        let goal = seen + 500;
        while seen < goal.min(3_000) {
            match first(&mut client) {
                (LogFrame::Line(line), place) => {
                    seen += 1;
                    assert_eq!(line.line, format!("line {seen}"));
                    from = place;
                }
                (LogFrame::Here { .. } | LogFrame::Renamed { .. }, _) => {}
                (LogFrame::Said(said), _) => panic!("{said:?}"),
            }
        }
        logger.kill();
    }
    assert!(loggers >= 6);
}

fn first(client: &mut everhook::os::channel::Channel) -> (LogFrame, Option<LogPlace>) {
    let frame = crate::room::frame(client).expect("no silent end");
    (frame.message().unwrap(), LogPlace::read(frame.body()))
}
