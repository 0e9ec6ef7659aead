//! Signals to the supervisor: DESIGN.md section 11. Who sent one is the kernel's word, as far as it
//! has one.

use std::{future::poll_fn, pin::Pin, task::Poll};

use futures_core::Stream;
use signal_hook::{
    consts::signal::{SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2},
    iterator::exfiltrator::origin::{Origin, WithOrigin},
};
use signal_hook_tokio::SignalsInfo;
use tracing::{error, info};

use super::{
    Supervisor,
    ledger::{Command, NewAudit},
    reload::Wanted,
};
use crate::{
    domain::{api::By, model::Signal},
    os::init,
};

/// Signals as a stream.
pub type Signals = SignalsInfo<WithOrigin>;

/// # Errors
/// When the handlers cannot be set.
pub fn listen() -> std::io::Result<Signals> {
    // A closed stderr must not end us; SIGPIPE is caught, not ignored, as children inherit that.
    let mut numbers = vec![SIGHUP, SIGTERM, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGPIPE];
    numbers.extend(init::end_signals());
    SignalsInfo::with_exfiltrator(numbers, WithOrigin::default())
}

/// Who wants the end and came when nobody listened any more, as another process is to begin in our place, which
/// would not hear of it. All signals are blocked.
pub async fn late_wish(signals: &mut Signals) -> Option<Origin> {
    // Meanwhile the runtime looks at what has come.
    tokio::task::yield_now().await;
    loop {
        match poll_fn(|context| Poll::Ready(Pin::new(&mut *signals).poll_next(context))).await {
            Poll::Ready(Some(origin)) if is_end(origin.signal) => return Some(origin),
            Poll::Ready(Some(_)) => {}
            Poll::Ready(None) | Poll::Pending => return None,
        }
    }
}

/// TERM, INT, and what an init is told.
fn is_end(signal: i32) -> bool {
    !matches!(signal, SIGHUP | SIGUSR1 | SIGUSR2 | SIGQUIT | SIGPIPE)
}

impl Supervisor {
    /// Leaves an end that was wanted too late to whoever begins in our place.
    pub fn ends_later(&mut self, origin: &Origin) {
        let by = self.signal_audit(origin, "shutdown");
        self.ended_by.get_or_insert(by);
    }

    /// Handles one signal.
    pub fn signalled(&mut self, origin: &Origin) {
        match origin.signal {
            SIGHUP => {
                let (by, who) = sender(origin);
                self.restore_control();
                self.reload(Wanted { by, who, waiting: None });
            }
            SIGUSR1 => {
                self.signal_audit(origin, "reopen");
                self.reopen_logs();
            }
            SIGUSR2 => {
                let who = self.signal_audit(origin, "upgrade");
                if let Err(refusal) = self.upgrade(&who, None, None) {
                    error!("no upgrade: {}", refusal.message);
                }
            }
            SIGQUIT => {
                #[cfg(debug_assertions)]
                self.panic_for_a_test();
                self.dump();
            }
            SIGPIPE => {}
            _ => {
                let by = self.signal_audit(origin, "shutdown");
                self.shut_down(&by, false);
            }
        }
    }

    fn signal_audit(&mut self, origin: &Origin, action: &str) -> String {
        let (by, who) = sender(origin);
        self.ledger.send(Command::Audit(NewAudit {
            at: crate::os::clock::now().wall,
            by,
            address: None,
            action: action.to_owned(),
            app: None,
            outcome: "done".to_owned(),
            reason: None,
        }));
        who
    }

    fn dump(&self) {
        for app in self.apps.values() {
            for run in app.runs() {
                let instance = &run.instance;
                info!(app = %app.name(), seat = ?run.seat, state = ?instance.state(), reason = instance.reason(), "state");
            }
        }
        for job in self.jobs.values() {
            info!(%job, tree = ?self.job_tree(job).iter().map(|member| (member.pid, &member.name)).collect::<Vec<_>>(), "state");
        }
        info!(ending = ?self.ending, jobs = self.jobs.len(), waiters = self.waiters.len(), followers = self.followers.len(), "state");
    }
}

/// Who sent it, and the same in words.
fn sender(origin: &Origin) -> (By, String) {
    let pid = origin.process.and_then(|process| u32::try_from(process.pid).ok()).filter(|pid| *pid != 0);
    let uid = origin.process.map(|process| process.uid);
    let signal = Signal::from_number(origin.signal);
    let who = match (pid, uid) {
        (Some(pid), Some(uid)) => format!("{signal} from pid {pid} of uid {uid}"),
        _ => signal.to_string(),
    };
    (By::Signal { pid, uid }, who)
}
