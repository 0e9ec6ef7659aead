//! Whatever strangers, apps and hijacked processes send, nothing that reads it panics. Every target gets
//! its corpus (`tests/corpus`) and a fixed number of inputs made out of it, the same ones each time.
//! `EVERHOOK_FUZZ=30m cargo test --test fuzz -- --nocapture` goes on for so long, with others each time; what it
//! finds becomes a file of the corpus.
#![allow(clippy::unwrap_used)]

// Rooms that nobody outside of theirs sees, as they are.
#[allow(dead_code)]
#[path = "../../src/logger/form.rs"]
mod form;
#[allow(dead_code)]
#[path = "../../src/listener/routes.rs"]
mod routes;
mod targets;

use std::{
    fs,
    path::Path,
    thread,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

pub(crate) use everhook::domain;
use everhook::domain::model::parse_span;

/// Inputs that are made for each target.
const MADE: u32 = 2_000;

/// Small pieces that mean something somewhere.
const WORDS: [&[u8]; 12] = [
    b"\0",
    b"\n",
    b"\xff",
    b"\xf0\x9f\x92\xa5",
    b"\"",
    b"(",
    b")",
    b": ",
    b"0000000000000000000000000000000000000000",
    b"18446744073709551616",
    b"refs/heads/",
    b"%2",
];

/// Marsaglia's xorshift: the same numbers each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end.max(1) as u64).unwrap()
    }

    /// A seed with a few things changed.
    fn changed(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(4) {
            let (at, end) = (self.below(bytes.len() + 1), self.below(bytes.len() + 1));
            let (start, end) = (at.min(end), at.max(end));
            match self.below(6) {
                0 if start < bytes.len() => bytes[start] ^= 1 << self.below(8),
                1 => drop(bytes.drain(start..end.min(start + 64))),
                2 => bytes.truncate(end),
                3 => {
                    let piece = bytes[start..end.min(start + 256)].to_vec();
                    bytes.splice(end..end, piece);
                }
                4 => {
                    let other = &seeds[self.below(seeds.len())];
                    bytes.truncate(start);
                    bytes.extend_from_slice(&other[self.below(other.len() + 1)..]);
                }
                _ => drop(bytes.splice(start..start, WORDS[self.below(WORDS.len())].iter().copied())),
            }
        }
        bytes
    }
}

/// Shows what made a target panic.
struct Shown<'a>(&'a str, &'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("target {}, input:\n{}", self.0, self.1.escape_ascii());
        }
    }
}

fn seeds(folder: &Path) -> Vec<Vec<u8>> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().filter(|file| file.is_file()).map(|file| fs::read(file).unwrap()).collect()
}

/// When a target has had enough.
enum End {
    Made(u32),
    At(Instant),
}

impl End {
    fn is_reached(&self, made: u32) -> bool {
        match self {
            Self::Made(number) => made >= *number,
            Self::At(end) => Instant::now() >= *end,
        }
    }
}

#[test]
fn nothing_that_reads_bytes_of_others_panics() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let long =
        std::env::var("EVERHOOK_FUZZ").ok().map(|span| parse_span(&span).expect("a length of time, such as 30m"));
    let share = long.map(|span| span / u32::try_from(targets::TARGETS.len()).unwrap());
    let start = if long.is_some() { clock() } else { 0x9e37_79b9_7f4a_7c15 };
    for (name, target) in targets::TARGETS {
        let mut seeds = seeds(&tests.join("corpus").join(name));
        if name == "config" {
            seeds.extend(self::seeds(&tests.join("config")));
        }
        assert!(!seeds.is_empty(), "{name} has no corpus");
        for input in &seeds {
            run(name, target, input);
        }
        let end = share.map_or(End::Made(MADE), |share| End::At(Instant::now() + share));
        let (mut numbers, mut made) = (Numbers(start), 0);
        while !end.is_reached(made) {
            run(name, target, &numbers.changed(&seeds));
            made += 1;
        }
        if long.is_some() {
            eprintln!("{name}: {made} inputs from {start:#x}, no findings");
        }
    }
}

fn run(name: &str, target: fn(&[u8]), input: &[u8]) {
    let _shown = Shown(name, input);
    target(input);
}

fn clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_nanos() % u128::from(u64::MAX)).unwrap().max(1)
}
