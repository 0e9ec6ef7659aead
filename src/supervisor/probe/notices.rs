//! What instances say themselves, by systemd's protocol. A message counts when the app's user sent it
//! to the socket of the instance; that the sender is gone by then makes no difference. A new main
//! process must belong to the tree.

use std::{
    collections::BTreeMap,
    io,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::PathBuf,
    sync::Arc,
};

use tokio::io::Interest;
use tracing::{debug, warn};

use super::{
    super::{
        Supervisor,
        children::Owner,
        event::Event,
        ledger::{Command, NewEvent},
        seats::SeatId,
    },
    Task,
};
use crate::{
    domain::{
        api::EventKind,
        config,
        model::Exit,
        service::{Happening, Notice},
    },
    os::{
        clock,
        notify::{self, Message},
        pidfd,
        record::RunRecord,
    },
};

/// Messages that are read before something else has its turn.
const AT_ONCE: usize = 64;

/// The socket of a seat.
pub struct Notices {
    path: PathBuf,
    socket: Arc<UnixDatagram>,
    /// Whom it belongs to.
    uid: u32,
    /// Something was refused in this run, and told.
    refused: bool,
    _watch: Task,
}

impl Notices {
    /// Says where to speak.
    pub fn announce(&self, env: &mut BTreeMap<String, String>) {
        env.entry("NOTIFY_SOCKET".into()).or_insert_with(|| self.path.display().to_string());
    }

    /// What an earlier run said last is nothing to the one that begins.
    pub fn forget(&mut self) {
        self.refused = false;
        while let Ok(Some(_)) = notify::receive(&*self.socket) {}
    }
}

impl Supervisor {
    /// Has the socket of a seat made where the app needs one; true: the start goes on when it is there.
    pub fn awaits_notices(&mut self, id: &SeatId, app: &Arc<config::App>) -> bool {
        let (uid, gid) = (app.run_as.uid, app.run_as.gid);
        let Some(seat) = self.seat(id).filter(|_| app.notifies()) else { return false };
        if seat.health.notices.as_ref().is_some_and(|notices| notices.uid == uid) {
            return false;
        }
        let path = self.layout.notify(&id.instance(), id.seat.second);
        let (made, id) = (path.clone(), id.clone());
        self.files.run(
            move || notify::make(&made, uid, gid),
            move |supervisor, result| {
                let taken = result.and_then(|socket| supervisor.take_notices(&id, path.clone(), socket, uid));
                match taken {
                    Ok(()) => supervisor.start_instance(&id),
                    Err(error) => {
                        let why = format!("its socket {}: {error}", path.display());
                        supervisor.tell(&id, Happening::SpawnFailed(why));
                    }
                }
            },
        );
        true
    }

    pub fn take_notices(&mut self, id: &SeatId, path: PathBuf, socket: UnixDatagram, uid: u32) -> io::Result<()> {
        let watched = tokio::net::UnixDatagram::from_std(socket.try_clone()?)?;
        let (events, seat) = (self.events.clone(), id.clone());
        let watch = Task::start(async move {
            while watched.readable().await.is_ok() {
                // The loop reads, so that what was said before an end is heard before it.
                let _ = watched.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
                let seat = seat.clone();
                if events.send(Event::Then(Box::new(move |supervisor| supervisor.hear_notices(&seat)))).is_err() {
                    return;
                }
            }
        });
        if let Some(seat) = self.seat_mut(id) {
            let notices = Notices { path, socket: Arc::new(socket), uid, refused: false, _watch: watch };
            seat.health.notices = Some(Box::new(notices));
        }
        Ok(())
    }

    /// Reads what the process in this seat has said. Before the spawner has told its pid, and after its
    /// end, nothing is read.
    pub fn hear_notices(&mut self, id: &SeatId) {
        for _ in 0..AT_ONCE {
            let Some(seat) = self.seat(id).filter(|seat| seat.main.is_some()) else { return };
            let Some(socket) = seat.health.notices.as_ref().map(|notices| Arc::clone(&notices.socket)) else { return };
            match notify::receive(&*socket) {
                Ok(Some(message)) => self.heed_notice(id, message),
                Ok(None) => return,
                Err(error) => return warn!(app = %id.app, %error, "its notifications cannot be read"),
            }
        }
        let again = id.clone();
        // Only a loop that has ended hears nothing.
        let _ = self.events.send(Event::Then(Box::new(move |supervisor| supervisor.hear_notices(&again))));
    }

    /// Descriptors that came along are closed at the end of this, when what was said before a barrier
    /// has been heeded.
    fn heed_notice(&mut self, id: &SeatId, message: Message) {
        let Message { bytes, pid, uid, fds } = message;
        let allowed = self.seat(id).and_then(|seat| seat.health.notices.as_ref()).map(|notices| notices.uid);
        if allowed != Some(uid) {
            return self.refuse(id, &format!("a notification of uid {uid} (process {pid}) was ignored"));
        }
        let Some(mut notice) = Notice::parse(&bytes) else {
            return debug!(app = %id.app, pid, fds = fds.len(), "a notification without a word for us");
        };
        if let Some(main) = notice.main_pid.take()
            && self.seat(id).and_then(|seat| seat.main) != Some(main)
            && !self.adopt_main(id, main)
        {
            self.refuse(id, &format!("MAINPID={main} was ignored: no living process of its tree"));
        }
        self.tell(id, Happening::Notified(notice));
    }

    /// For the record, once a run: whoever floods us does not flood it.
    fn refuse(&mut self, id: &SeatId, what: &str) {
        let Some(notices) = self.seat_mut(id).and_then(|seat| seat.health.notices.as_mut()) else { return };
        if !std::mem::replace(&mut notices.refused, true) {
            self.ledger.send(Command::Event(NewEvent {
                at: clock::now().wall,
                app: Some(id.app.clone()),
                instance: Some(id.instance()),
                kind: EventKind::Instance,
                from: None,
                to: Some("notification_refused".to_owned()),
                cause: Some(what.to_owned()),
                detail: None,
            }));
        }
    }

    /// Makes another process of the tree the main process. It may be no child of ours, or become one
    /// when its parent ends.
    fn adopt_main(&mut self, id: &SeatId, pid: u32) -> bool {
        let member = self.tree(id).into_iter().find(|member| member.pid == pid && !pidfd::has_ended(&member.pidfd));
        let Some(pidfd) = member.map(|member| member.pidfd) else { return false };
        if !self.take_main(id, pid, pidfd) {
            return false;
        }
        if let Some(Err(error)) = self.seat(id).map(|seat| RunRecord::note(&seat.kit.record, pid)) {
            warn!(app = %id.app, pid, %error, "the record still names the main process before");
        }
        self.tell(id, Happening::MainIs(pid));
        true
    }

    /// This process, which the spawner did not start as that, is the main process of a seat from now on.
    pub fn take_main(&mut self, id: &SeatId, pid: u32, pidfd: OwnedFd) -> bool {
        let Some(watch) = self.watch_main(id, pid, &pidfd) else { return false };
        let Some(seat) = self.seat_mut(id) else { return false };
        seat.health.main_watch = Some(watch);
        seat.main = Some(pid);
        seat.pidfd = Some(pidfd);
        self.children.adopt(pid, Owner::Seat(id.clone()));
        true
    }

    fn watch_main(&self, id: &SeatId, pid: u32, pidfd: &OwnedFd) -> Option<Task> {
        let watched = pidfd.try_clone().ok()?;
        let (events, seat) = (self.events.clone(), id.clone());
        Some(Task::start(async move {
            if let Ok(exit) = pidfd::exit(pid, watched).await {
                let ended = move |supervisor: &mut Supervisor| supervisor.main_ended(&seat, pid, exit);
                let _ = events.send(Event::Then(Box::new(ended)));
            }
        }))
    }

    /// This seat's app has another name now: what its process says and its end are heard under that.
    pub fn watch_renamed(&mut self, id: &SeatId) {
        let Some(seat) = self.seat_mut(id) else { return };
        let adopted = seat.health.main_watch.take().and(seat.main).zip(seat.pidfd.as_ref().map(OwnedFd::try_clone));
        let notices = seat.health.notices.take();
        if let Some((pid, Ok(pidfd))) = adopted {
            let watch = self.watch_main(id, pid, &pidfd);
            if let Some(seat) = self.seat_mut(id) {
                seat.health.main_watch = watch;
            }
        }
        if let Some(Notices { path, socket, uid, .. }) = notices.map(|notices| *notices)
            && let Err(error) = socket.try_clone().and_then(|socket| self.take_notices(id, path, socket, uid))
        {
            warn!(app = %id.app, %error, "its notifications are not heard any more");
        }
    }

    /// An adopted main process has ended. As a child of ours it is reaped with its status; else its
    /// descriptor said how it ended, or nobody knows.
    fn main_ended(&mut self, id: &SeatId, pid: u32, exit: Exit) {
        self.reap(pid);
        if self.seat(id).and_then(|seat| seat.main) == Some(pid) {
            self.ended_unreaped(pid, exit);
        }
    }
}
