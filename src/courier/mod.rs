//! Everything that goes out: so far commits' statuses to their forges. A job that the supervisor starts
//! when there is something to tell, and that ends when there is nothing more. It makes one attempt for
//! each letter and says what came of it; what is sent when, and whether again, is decided by
//! `domain::outbox`. It has no file of ours and no right; a token passes through it with its letter.
//!
//! Started as `everhook courier` with the channel as descriptor 3. It trusts the roots of the system, or
//! those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.

mod answer;
mod attempt;
mod forge;

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    rc::Rc,
};

use tokio::{
    runtime,
    task::{JoinSet, LocalSet},
};

use attempt::Clients;

use crate::{
    domain::{
        api::{Post, Posted},
        model::Secret,
    },
    os::{
        channel::Channel,
        inherited::inherited,
        sandbox::{self, Calls, Keeps},
        watched::Watched,
    },
};

/// The descriptor of the channel to the supervisor.
const CHANNEL_FD: i32 = 3;

/// Runs until the supervisor closes the channel.
#[must_use]
pub fn main() -> ExitCode {
    let run = || {
        shut_in()?;
        let runtime = runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let done = LocalSet::new().block_on(&runtime, carry());
        // A name that is being looked up is waited for by nobody.
        runtime.shutdown_background();
        done
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("everhook: courier: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What names and certificates are looked up with, it may read; nothing else is there.
fn shut_in() -> io::Result<()> {
    let given = ["SSL_CERT_FILE", "SSL_CERT_DIR"].map(|name| std::env::var_os(name).map(PathBuf::from));
    let system = ["/etc", "/usr", "/lib", "/lib64", "/run/systemd/resolve", "/run/nscd", "/var/lib/ca-certificates"];
    let reads: Vec<&Path> = system.iter().map(Path::new).chain(given.iter().flatten().map(PathBuf::as_path)).collect();
    for lack in sandbox::enter(&Keeps { calls: Calls::Courier, writes: &[], reads: &reads })? {
        eprintln!("everhook: courier: {lack}");
    }
    Ok(())
}

async fn carry() -> io::Result<()> {
    let mut channel = Watched::new(Channel::new(inherited(CHANNEL_FD)?))?;
    let clients = Rc::new(Clients::default());
    let mut attempts = JoinSet::new();
    loop {
        tokio::select! {
            frame = channel.next() => {
                let frame = match frame {
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                    frame => frame?,
                };
                let (post, token) = (frame.message::<Post>()?, Secret::new(frame.body().to_vec()));
                let clients = Rc::clone(&clients);
                attempts.spawn_local(async move {
                    let outcome = clients.attempt(&post, &token).await;
                    Posted { ticket: post.ticket, outcome }
                });
            }
            Some(Ok(posted)) = attempts.join_next() => channel.queue(&posted, &[], None),
        }
    }
}
