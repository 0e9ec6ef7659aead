//! One match: which process am I?

use std::process::ExitCode;

use everhook::{
    cli::{self, Process},
    courier, listener, logger,
    os::mask,
    step, supervisor, tree,
};

fn main() -> ExitCode {
    // The kernel drops what an init neither blocks nor handles: who asks a supervisor for the end now is heard later.
    let is_init = std::process::id() == 1;
    if is_init {
        mask::block_all();
    }
    let args: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    if is_init && !args.iter().any(|word| word == "run") {
        // Cannot fail on Linux.
        let _ = mask::unblock_all();
    }
    match args.first().map(String::as_str) {
        // Words that only the supervisor says, to its own processes.
        Some("listener") => listener::main(&args[1..]),
        Some("logger") => logger::main(&args[1..]),
        Some("courier") => courier::main(),
        Some("step") => step::main(&args[1..]),
        Some("prove") => supervisor::prove(&args[1..]),
        Some("tree") => tree::main(&args[1..]),
        _ => match cli::start() {
            Process::Run { config } => supervisor::run(&config),
            Process::Serve { dir, bind } => listener::serve(&dir, bind),
            Process::Client(code) => code,
        },
    }
}
