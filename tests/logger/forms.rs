//! Lines with their time before them and as JSON objects, and lines of every kind.

use std::{fs, io::Write, os::unix::fs::MetadataExt};

use everhook::{
    domain::{
        api::{LogLine, LogWish, Stream, ToLogger},
        config::Form,
        model::{Secret, Size, Veil},
    },
    os::memfd,
};

use crate::room::{Room, files, kill_while_it_writes, line, text};

/// Everything that a reader gets of a log in this form.
fn all(logger: &mut crate::room::Logger, room: &Room, form: Form) -> Vec<LogLine> {
    let mut client = logger.serve_form(room, form, LogWish::default());
    std::iter::from_fn(|| line(&mut client)).collect()
}

#[test]
fn lines_have_their_time_and_are_read_back_without_it() {
    for form in [Form::Stamped, Form::Json] {
        let room = Room::new();
        let mut fifo = room.fifo();
        let mut logger = room.start();
        logger.open(&fifo, Stream::Out, room.sink("out", 1 << 20, 3).with(|how| how.form = form));
        fifo.write.write_all(b"one\ntw").unwrap();
        logger.tail(&room.log("out"), 1).unwrap();
        fifo.write.write_all(b"o \xe2").unwrap();
        logger.tail(&room.log("out"), 1).unwrap();
        fifo.write.write_all(b"\x89\xa4\r\n\n\0\xff end").unwrap();
        let lines = all(&mut logger, &room, form);
        let texts: Vec<&str> = lines.iter().map(|line| line.line.as_str()).collect();
        assert_eq!(texts, ["one", "two ≤\r", "", "\0\u{fffd} end"]);
        assert!(lines.iter().all(|line| line.at.is_some()));
        assert!(lines.is_sorted_by_key(|line| line.at));
        assert_eq!(logger.tail(&room.log("out"), 3).unwrap(), texts[1..]);

        let bytes = fs::read(room.log("out")).unwrap();
        if form == Form::Json {
            let first: LogLine = serde_json::from_slice(bytes.split(|b| *b == b'\n').next().unwrap()).unwrap();
            assert_eq!((first.instance.as_str(), first.stream.as_str(), &first), ("blog.1", "out", &lines[0]));
        } else {
            let stamp = lines[0].at.unwrap().to_string();
            assert!(bytes.starts_with(format!("{stamp} one\n").as_bytes()));
            assert!(bytes.ends_with(b"\0\xff end"), "what the app wrote stays as it is");
        }
        logger.terminate();
    }
}

#[test]
fn lines_of_ten_megabytes_are_cut_into_marked_parts_or_pass() {
    let giant = "≤0123456789".repeat(10 << 20).into_bytes();
    let giant = &giant[..10 << 20];
    for form in [Form::Raw, Form::Stamped, Form::Json] {
        let room = Room::new();
        let mut fifo = room.fifo();
        let mut logger = room.start();
        let sink = room.sink("out", 50 << 20, 3).with(|how| (how.form, how.line_limit) = (form, Size(1 << 20)));
        logger.open(&fifo, Stream::Out, sink);
        for part in [b"before\n", giant, b"\nafter\n"] {
            fifo.write.write_all(part).unwrap();
        }
        assert_eq!(logger.tail(&room.log("out"), 1).unwrap(), ["after"]);
        if form == Form::Raw {
            let bytes = fs::read(room.log("out")).unwrap();
            assert_eq!(bytes, [b"before\n", giant, b"\nafter\n"].concat());
        } else {
            let lines = all(&mut logger, &room, form);
            let texts: Vec<String> = lines.into_iter().map(|line| line.line).collect();
            assert_eq!(texts.len(), 12);
            let mut joined = String::new();
            for (i, text) in texts[1..11].iter().enumerate() {
                let text =
                    if i == 0 { Some(text.as_str()) } else { text.strip_prefix("[everhook: the line went on] ") };
                let text = text.unwrap_or_else(|| panic!("part {i} has no mark"));
                let text = if i == 9 { Some(text) } else { text.strip_suffix(" [everhook: the line goes on]") };
                joined.push_str(text.unwrap_or_else(|| panic!("part {i} has no mark")));
            }
            assert!(joined.as_bytes() == giant, "no character is cut");
        }
        logger.terminate();
    }
}

#[test]
fn binary_passes_raw() {
    let room = Room::new();
    let mut fifo = room.fifo();
    let mut logger = room.start();
    logger.open(&fifo, Stream::Out, room.sink("out", 1 << 30, 3));
    let mut noise = vec![0u8; 3 << 20];
    let mut x = 1u32;
    for byte in &mut noise {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (x >> 24) as u8;
    }
    fifo.write.write_all(&noise).unwrap();
    logger.tail(&room.log("out"), 1).unwrap();
    assert!(fs::read(room.log("out")).unwrap() == noise);
    logger.terminate();
}

#[test]
fn kills_cut_no_line_in_two_in_any_form() {
    for form in [Form::Stamped, Form::Json] {
        let room = Room::new();
        let log = room.log("out");
        let sink = || room.sink("out", 64 << 10, 10_000).with(|how| how.form = form);
        let (fifo, count) = (room.fifo(), 100_000);
        let current = || fs::metadata(&log).map_or((0, 0), |meta| (meta.ino(), meta.len()));
        let kills = kill_while_it_writes(&room, &fifo, count, &sink, &current);
        let mut logger = room.start();
        logger.open(&fifo, Stream::Out, sink());
        assert_eq!(logger.tail(&log, 1).unwrap(), [format!("line {count}")]);
        let lines = all(&mut logger, &room, form);
        for (i, line) in lines.iter().enumerate() {
            assert_eq!((line.line.clone(), line.at.is_some()), (format!("line {}", i + 1), true));
        }
        assert_eq!(lines.len(), count as usize);
        assert!(kills >= 3 && files(&log).len() > 10, "{kills} kills, {} files", files(&log).len());
        for file in files(&log) {
            assert!(text(&file).ends_with('\n'), "{} ends inside a line", file.display());
        }
        logger.terminate();
    }
}

#[test]
fn no_file_has_two_forms() {
    let room = Room::new();
    let mut fifo = room.fifo();
    let mut logger = room.start();
    for (form, word) in [(Form::Raw, "raw"), (Form::Json, "json"), (Form::Stamped, "stamped")] {
        logger.open(&fifo, Stream::Out, room.sink("out", 1 << 20, 9).with(|how| how.form = form));
        // Answered when that was done.
        logger.tail(&room.log("out"), 1).unwrap();
        write!(fifo.write, "{word}").unwrap();
        logger.tail(&room.log("out"), 1).unwrap();
    }
    let all: Vec<String> = files(&room.log("out")).iter().map(|file| text(file)).collect();
    assert_eq!(all.len(), 3);
    assert_eq!(all[0], "raw\n");
    assert!(all[1].starts_with("{\"at\":\"") && all[1].ends_with("\"line\":\"json\n"), "{}", all[1]);
    assert!(all[2].ends_with("Z stamped"), "{}", all[2]);
    logger.terminate();
}

#[test]
fn following_shows_unfinished_lines_of_every_form() {
    for form in [Form::Stamped, Form::Json] {
        let room = Room::new();
        let mut fifo = room.fifo();
        let mut logger = room.start();
        logger.open(&fifo, Stream::Out, room.sink("out", 1 << 20, 1).with(|how| how.form = form));
        let wish = LogWish { follow: true, n: Some(0), ..LogWish::default() };
        let mut client = logger.serve_form(&room, form, wish);
        fifo.write.write_all(b"\r1%").unwrap();
        let first = line(&mut client).unwrap();
        assert_eq!(first.line, "\r1%");
        assert!(first.at.is_some());
        fifo.write.write_all(b"\r2%\nnext\n").unwrap();
        let second = line(&mut client).unwrap();
        assert_eq!((second.line.as_str(), second.at), ("\r2%", first.at));
        assert_eq!(line(&mut client).unwrap().line, "next");
        logger.send(&ToLogger::Finish, None);
        assert_eq!(line(&mut client), None);
        logger.ended();
    }
}

#[test]
fn a_secret_is_covered_however_it_comes() {
    let room = Room::new();
    let mut fifo = room.fifo();
    let mut logger = room.start();
    let secrets = ["hunter2hunter2", "another one"].map(|text| Secret::new(text.as_bytes().to_vec()));
    let packed = Veil::new(&secrets).pack();
    let veil = || memfd::holding("test", packed.expose()).unwrap();
    logger.send(&ToLogger::Veil, Some(veil()));
    logger.open(&fifo, Stream::Out, room.sink("out", 1 << 20, 3).with(|how| how.veiled = true));
    // In pieces that are in the file before the next one comes.
    for piece in ["a hunter2hunter2, hun", "ter2", "hunter2 and anoth", "er", " one, hunter2", "\nhunter2 is short\n"] {
        fifo.write.write_all(piece.as_bytes()).unwrap();
        logger.tail(&room.log("out"), 1).unwrap();
    }
    let covered = "a **************, ************** and ***********, hunter2\nhunter2 is short\n";
    assert_eq!(fs::read_to_string(room.log("out")).unwrap(), covered);
    logger.terminate();
}
