//! Which process am I?

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((verb, rest)) if verb == "logger" => everhook::logger::main(rest),
        _ => ExitCode::from(2),
    }
}
