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

use std::{io, process::ExitCode, rc::Rc};

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
    os::{channel::Channel, inherited::inherited, sandbox, watched::Watched},
};

/// The descriptor of the channel to the supervisor.
const CHANNEL_FD: i32 = 3;

/// Runs until the supervisor closes the channel.
#[must_use]
pub fn main() -> ExitCode {
    let run = || {
        sandbox::undumpable()?;
        sandbox::no_new_privs()?;
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
                let (post, token) = (frame.message::<Post>()?, Secret::new(frame.body));
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
