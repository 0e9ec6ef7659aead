//! Which process am I? One match, then into its room.

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["listener", ..] => everhook::listener::main(&args[1..]),
        ["serve", dir] => everhook::listener::serve(Path::new(dir), None),
        ["serve", dir, "--bind", bind] => everhook::listener::serve(Path::new(dir), bind.parse().ok()),
        _ => ExitCode::from(2),
    }
}
