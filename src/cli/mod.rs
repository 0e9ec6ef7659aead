//! What a person types: reads the command line, asks the supervisor over `control.sock` and shows
//! the answer, one file a verb. It decides nothing about apps: what may be done, and what became of
//! it, the supervisor says. SURFACE.md sections 1, 2 and 4 are the reference of words, options, exit
//! codes and JSON.
//!
//! Output for people goes through [`screen`] and [`table`]; JSON is the types of `domain::api` as
//! they are. Errors are a sentence on stderr and an exit code ([`failure`]).

mod approve;
mod audit;
mod cancel;
mod cgroup_release;
mod check;
mod client;
mod deliveries;
mod deploy;
mod events;
mod exec;
mod failure;
mod find;
mod freeze;
mod help;
mod history;
mod logs;
mod output;
mod preview;
mod progress;
mod prune;
mod reload;
mod restart;
mod rollback;
mod screen;
mod shutdown;
mod signal;
mod start;
mod status;
mod stop;
mod table;
mod token;
mod upgrade;
mod wait;
mod words;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, error::ErrorKind};

use self::{
    failure::Failure,
    find::Place,
    screen::{Screen, complain, visible_lines},
};
use crate::{
    domain::api::Reply,
    os::{identity, init},
};

#[derive(Debug, Parser)]
#[command(name = "everhook", version, override_help = help::HELP, subcommand_required = false)]
struct Line {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    #[command(visible_aliases = ["ls", "ps"])]
    Status(status::Status),
    Logs(logs::Logs),
    Events(events::Events),
    History(history::History),
    Deliveries(deliveries::Deliveries),
    Audit(audit::Audit),
    Start(start::Start),
    Stop(stop::Stop),
    Restart(restart::Restart),
    Signal(signal::Signal),
    Wait(wait::Wait),
    Exec(exec::Exec),
    Deploy(deploy::Deploy),
    Rollback(rollback::Rollback),
    Cancel(cancel::Cancel),
    Approve(approve::Approve),
    Freeze(freeze::Freeze),
    Unfreeze(freeze::Unfreeze),
    Check(check::Check),
    Reload(reload::Reload),
    /// Be the supervisor
    Run,
    Shutdown(shutdown::Shutdown),
    Upgrade(upgrade::Upgrade),
    Token(token::Token),
    Prune(prune::Prune),
    #[command(hide = true)]
    CgroupRelease(cgroup_release::CgroupRelease),
    /// Serve a folder's files over HTTP
    Serve {
        dir: PathBuf,
        /// Where to listen; without it on the socket that was passed
        #[arg(long, value_name = "ADDR")]
        bind: Option<SocketAddr>,
    },
}

/// Which process a command line asks for.
pub enum Process {
    /// `everhook run` with this config, an absolute path.
    Run { config: PathBuf },
    /// `everhook serve`.
    Serve { dir: PathBuf, bind: Option<SocketAddr> },
    /// A client; it is done already and ends with this.
    Client(ExitCode),
}

/// Reads the command line, and where it is a client's carries it out.
#[must_use]
pub fn start() -> Process {
    let parsed = Line::try_parse().or_else(|e| {
        // A kernel passes on what it does not know itself, and an init must not just end.
        if init::is_init() { Line::try_parse_from(["everhook"]) } else { Err(e) }
    });
    let line = match parsed {
        Ok(line) => line,
        Err(e) => return Process::Client(misread(&e)),
    };
    match line.verb {
        Some(Verb::Serve { dir, bind }) => Process::Serve { dir, bind },
        Some(Verb::Run) => supervisor(&line.place),
        Some(verb) => Process::Client(ended(carry_out(&verb, &line.place))),
        // Bare, as the kernel executes `/init`.
        None if identity::is_pid_one() => supervisor(&line.place),
        None => Process::Client(ended(bare())),
    }
}

fn supervisor(place: &Place) -> Process {
    match place.config() {
        Ok(config) => Process::Run { config },
        // The supervisor says what is wrong, and ends as an init ends.
        Err(_) if init::is_init() => Process::Run { config: find::LAST_CONFIG.into() },
        Err(failure) => Process::Client(ended(Err(failure))),
    }
}

fn carry_out(verb: &Verb, place: &Place) -> Result<(), Failure> {
    match verb {
        Verb::Status(status) => status.run(place),
        Verb::Logs(logs) => logs.run(place),
        Verb::Events(events) => events.run(place),
        Verb::History(history) => history.run(place),
        Verb::Deliveries(deliveries) => deliveries.run(place),
        Verb::Audit(audit) => audit.run(place),
        Verb::Start(start) => start.run(place),
        Verb::Stop(stop) => stop.run(place),
        Verb::Restart(restart) => restart.run(place),
        Verb::Signal(signal) => signal.run(place),
        Verb::Wait(wait) => wait.run(place),
        Verb::Exec(exec) => exec.run(place),
        Verb::Deploy(deploy) => deploy.run(place),
        Verb::Rollback(rollback) => rollback.run(place),
        Verb::Cancel(cancel) => cancel.run(place),
        Verb::Approve(approve) => approve.run(place),
        Verb::Freeze(freeze) => freeze.run(place),
        Verb::Unfreeze(unfreeze) => unfreeze.run(place),
        Verb::Check(check) => check.run(place),
        Verb::Reload(reload) => reload.run(place),
        Verb::Shutdown(shutdown) => shutdown.run(place),
        Verb::Upgrade(upgrade) => upgrade.run(place),
        Verb::Token(token) => token.run(place),
        Verb::Prune(prune) => prune.run(place),
        Verb::CgroupRelease(_) => cgroup_release::CgroupRelease::run(),
        Verb::Run | Verb::Serve { .. } => Ok(()),
    }
}

fn bare() -> Result<(), Failure> {
    let mut screen = Screen::stdout();
    screen.line(help::HELP)?;
    Ok(screen.flush()?)
}

/// Help and version were asked for, or the line is wrong: then in the form of all other errors.
fn misread(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return ended(error.print().map_err(Failure::from));
    }
    let text = error.render().to_string();
    complain(&format!("everhook: {}", text.trim_start_matches("error: ").trim_end()));
    ExitCode::from(failure::Code::Usage.exit())
}

fn ended(outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                complain(&format!("everhook: {}", failure.message));
            }
            ExitCode::from(failure.code.exit())
        }
    }
}

/// What a change that was made, or begun, came to.
fn settle(screen: &mut Screen, reply: Reply) -> Result<(), Failure> {
    match reply {
        Reply::Changed { message, .. } => screen.line(&visible_lines(&message))?,
        Reply::Plan { lines } | Reply::Lines(lines) => {
            lines.iter().try_for_each(|line| screen.line(&visible_lines(line)))?;
        }
        _ => return Err(client::strange()),
    }
    Ok(screen.flush()?)
}

#[test]
fn grammar() {
    <Line as clap::CommandFactory>::command().debug_assert();
}
