//! One match: which process am I?

use std::process::ExitCode;

use everhook::tree;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("tree") => tree::main(&args[1..]),
        _ => ExitCode::from(2),
    }
}
