//! One match: which process am I?

use std::process::ExitCode;

use everhook::cli::{self, Process};

fn main() -> ExitCode {
    match cli::start() {
        Process::Client(code) => code,
        Process::Run { .. } | Process::Serve { .. } => ExitCode::FAILURE,
    }
}
