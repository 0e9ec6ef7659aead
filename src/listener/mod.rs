//! HTTP in: takes requests under limits, hands deliveries to the ledger and people's questions to the
//! loop over the channels it was given, and answers with what comes back. `everhook serve` shares the
//! doors.
//!
//! It decides nothing about a delivery and judges no token. It holds no file and no secret but what
//! passes through it, so it may crash at any moment: the supervisor holds the socket. SURFACE.md
//! section 5 is the reference.

mod answer;
mod api;
mod body;
mod doors;
mod guests;
mod hooks;
mod house;
mod lasting;
mod link;
mod metrics;
mod openapi;
mod peeked;
mod request;
mod routes;
mod signals;
mod site;
mod streams;
mod tls;

use std::{future::Future, io, process::ExitCode};

use tokio::{runtime, task::LocalSet};

pub use site::serve;

use crate::os::memory;

/// `everhook listener --serve hooks,api`: one listener process. Descriptor 3 is the listening socket;
/// from 4 on come the channels, `hooks` before `api` before `metrics`, of what is served, then with `--tls` that
/// of the certificate. Ends with 0 when a channel
/// closes or on TERM, 2 on wrong usage, 1 when it cannot start.
#[must_use]
pub fn main(args: &[String]) -> ExitCode {
    let Some(served) = house::Served::from_args(args) else {
        eprintln!("everhook: listener: expected --serve with some of hooks,api,metrics");
        return ExitCode::from(2);
    };
    match run(house::open(served)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("everhook: listener: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs on this thread alone, with tasks that need not be `Send`.
fn run<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let mut builder = runtime::Builder::new_current_thread();
    let runtime = builder.enable_io().enable_time().on_thread_park(memory::at_rest).build()?;
    LocalSet::new().block_on(&runtime, future)
}
