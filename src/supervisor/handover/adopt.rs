//! The loop's side: who goes on is asked of the apps' machines, and what was taken over is theirs from then on.

use std::{collections::BTreeMap, sync::Arc};

use tracing::{info, warn};

use super::{Adopted, Bears, GoOn, Handover, Living};
use crate::{
    domain::{
        model::{AppName, At, Now},
        service::{Event, Survivor},
    },
    os::{clock, pidfd, record::RunRecord},
    supervisor::{
        Supervisor,
        event::Event as Told,
        prepare::Kit,
        seats::{Renamed, SeatId},
    },
};

impl Supervisor {
    /// Those who go on, by their seats.
    pub fn who_goes_on(&self, living: Living) -> GoOn {
        let now = clock::now();
        let mut of_apps: BTreeMap<AppName, Vec<Survivor>> = BTreeMap::new();
        for (id, record) in living {
            if let Some(survivor) = self.survivor(&id, &record, now) {
                of_apps.entry(id.app).or_default().push(survivor);
            }
        }
        let mut go_on = GoOn::new();
        for (name, survivors) in &of_apps {
            let kept = self.apps.get(name).map(|app| app.keeps(survivors, now)).unwrap_or_default();
            go_on.extend(kept.into_iter().map(|one| (SeatId { app: name.clone(), seat: one.seat }, one.clone())));
        }
        go_on
    }

    /// `None` where nothing is noted of what it was started as, or there is no place for it.
    fn survivor(&self, id: &SeatId, record: &RunRecord, now: Now) -> Option<Survivor> {
        let shell = self.shells.get(&id.app)?;
        shell.seat(id.seat)?;
        let started_as = record.started_as.as_ref()?;
        let age = record.age();
        let begun = Now {
            mono: now.mono.checked_sub(age).unwrap_or(now.mono),
            wall: At(now.wall.0 - i64::try_from(age.as_millis()).unwrap_or(0)),
        };
        Some(Survivor {
            seat: id.seat,
            pid: record.pid,
            begun,
            release: started_as.release.clone(),
            unchanged: started_as.definition == shell.definition,
            progress: record.progress,
            restarts: started_as.restarts,
        })
    }

    /// Looks after what goes on as after what it has started itself.
    pub fn adopt(&mut self, handover: Handover) {
        let Handover { adopted, mut sockets, .. } = handover;
        if adopted.is_empty() {
            return;
        }
        let count = adopted.len();
        let mut of_apps: BTreeMap<AppName, Vec<Survivor>> = BTreeMap::new();
        for one in adopted {
            let app = one.id.app.clone();
            if let Some((shell, sockets)) = self.shells.get_mut(&app).zip(sockets.remove(&app)) {
                shell.sockets = sockets;
            }
            of_apps.entry(app).or_default().push(one.survivor.clone());
            self.sit_down(one);
        }
        for (name, survivors) in of_apps {
            self.feed(&name, Event::Outlived(survivors));
        }
        info!("adopted {count} instance{} that the last supervisor left", if count == 1 { "" } else { "s" });
    }

    fn sit_down(&mut self, adopted: Adopted) {
        let Adopted { id, survivor, boot, pidfd, notices, bears } = adopted;
        let limits = self.apps.get(&id.app).map(|app| Arc::clone(&app.spec().limits));
        let uid = self.apps.get(&id.app).map(|app| app.spec().run_as.uid);
        let definition = self.shells.get(&id.app).map(|shell| shell.definition).filter(|_| survivor.unchanged);
        let Some(seat) = self.seat_mut(&id) else { return };
        // Any other number tells that it was given something else.
        seat.definition = definition.unwrap_or(0);
        if let Some(bears) = bears {
            bears.put_on(seat);
        }
        seat.boot = Some(boot);
        seat.session = pidfd::session(survivor.pid);
        let unmet = limits.map(|limits| seat.begin_limits(&limits)).unwrap_or_default();
        self.take_main(&id, survivor.pid, pidfd);
        self.limits_begun(&id, unmet);
        if let (Some((path, socket)), Some(uid)) = (notices, uid)
            && let Err(error) = self.take_notices(&id, path, socket, uid)
        {
            warn!(app = %id.app, %error, "its notifications are not heard any more");
        }
    }

    /// Of a tree that an earlier supervisor has started nobody is handed to us: while its end is waited for, each of
    /// it is asked after in turn.
    pub fn watch_rest(&mut self, id: &SeatId) {
        let run = self.apps.get(&id.app).and_then(|app| app.run(id.seat));
        let waits = run.is_some_and(|run| run.instance.awaits_empty_tree());
        if !waits || self.seat(id).is_none_or(|seat| seat.boot.is_none()) {
            return;
        }
        let Some(member) = self.tree(id).into_iter().next() else { return self.look_at_ending_trees() };
        let (events, id) = (self.events.clone(), id.clone());
        tokio::spawn(async move {
            if pidfd::ended(member.pidfd).await.is_ok() {
                let look = move |supervisor: &mut Supervisor| {
                    supervisor.look_at_ending_trees();
                    supervisor.watch_rest(&id);
                };
                let _ = events.send(Told::Then(Box::new(look)));
            }
        });
    }
}

impl Bears {
    /// It keeps what it was started with, until its seat's next process gets its own.
    fn put_on(self, seat: &mut crate::supervisor::seats::SeatShell) {
        let Self { name, record, file, cgroup } = self;
        let kit =
            Kit { out: Arc::clone(&seat.kit.out), err: Arc::clone(&seat.kit.err), record: Arc::new(file), cgroup };
        let next = std::mem::replace(&mut seat.kit, kit);
        seat.renamed = Some(Box::new(Renamed { bears: name, record, next }));
    }
}
