//! Processes that outlived the supervisor that started them: who goes on, and who makes room. One goes on where
//! it runs what would be started now: the app is to run, the release is the one of now, and it has proven itself
//! and was not told to end. Of two of one copy the one that takes over from the other goes on. Whoever does not
//! is ended before anything starts, so that nothing runs twice.

use super::{App, Rest, Seat, Task};
use crate::domain::{
    config::{Ready, Replace},
    model::{Now, Progress, ReleaseId},
};

/// A process that lives, as it was noted.
#[derive(Debug, Clone)]
pub struct Survivor {
    pub seat: Seat,
    pub pid: u32,
    /// When it was started.
    pub begun: Now,
    pub release: Option<ReleaseId>,
    /// It was given what it would be given now.
    pub unchanged: bool,
    pub progress: Progress,
    /// How often its copy had been restarted.
    pub restarts: u64,
}

impl App {
    /// Those who go on, no two in one seat.
    #[must_use]
    pub fn keeps<'a>(&self, survivors: &'a [Survivor], now: Now) -> Vec<&'a Survivor> {
        let mut kept: Vec<&Survivor> = Vec::new();
        for survivor in survivors.iter().filter(|survivor| self.may_keep(survivor, now)) {
            match kept.iter_mut().find(|other| other.seat.number == survivor.seat.number) {
                None => kept.push(survivor),
                Some(other) => {
                    // Of one release: the new one was proven to be as good as the old one.
                    let worth = |survivor: &Survivor| (survivor.unchanged, survivor.begun.mono);
                    if worth(survivor) > worth(other) {
                        *other = survivor;
                    }
                }
            }
        }
        kept
    }

    fn may_keep(&self, survivor: &Survivor, now: Now) -> bool {
        let Some(copy) = self.copy(survivor.seat.number) else { return false };
        let runs = match self.copy_rests(copy) {
            // Whoever runs already is not held back by these.
            None | Some(Rest::Blocked(_) | Rest::Lacks(_) | Rest::Scheduled(_)) => self.spec.command.is_some(),
            Some(_) => false,
        };
        let seated = !survivor.seat.second || self.spec.replace == Replace::StartFirst;
        let proven = match survivor.progress {
            Progress::Ready => true,
            Progress::Leaving => false,
            Progress::Started => match self.spec.ready {
                Ready::Immediate => true,
                Ready::After(length) => now.mono.saturating_duration_since(survivor.begun.mono) >= length,
                Ready::Notify { .. } | Ready::Fd { .. } | Ready::Probe { .. } => false,
            },
        };
        let release = self.release.as_ref().map(|release| &release.id);
        runs && seated && proven && release == survivor.release.as_ref() && !copy.is_active()
    }

    /// Those who go on are this app's from now on; who was given something else than it would be now is
    /// replaced, as by a reload, when whoever makes room has gone.
    pub(super) fn outlived(&mut self, survivors: &[Survivor], now: Now, out: &mut Vec<Task>) {
        self.settling = true;
        let mut changed = Vec::new();
        for survivor in self.keeps(survivors, now) {
            let release = self.release.clone();
            let Some(copy) = self.copy_mut(survivor.seat.number) else { continue };
            copy.run.seat = survivor.seat;
            copy.run.release.clone_from(&release);
            copy.run.home = release;
            self.tell(survivor.seat, out, |instance, app, out| instance.outlived(survivor, app, now, out));
            if !survivor.unchanged {
                changed.push(survivor.seat.number);
            }
        }
        if !changed.is_empty() {
            self.roll(changed, "the config has changed");
        }
    }
}
