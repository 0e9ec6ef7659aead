//! What is held of an app and of the process in each of its seats: the shells of the domain's machines.

use std::{collections::BTreeMap, os::fd::OwnedFd, path::PathBuf, time::Instant};

use super::{jobs::JobId, limits, prepare, probe, sockets::Sockets, words};
use crate::domain::{
    config,
    model::{AppName, At, InstanceId},
    service::Seat,
};

/// One seat of one app.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeatId {
    pub app: AppName,
    pub seat: Seat,
}

impl SeatId {
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        InstanceId { app: self.app.clone(), number: self.seat.number }
    }
}

/// Of an environment.
type Variables = [(String, String)];

/// What is held for an app's machine.
pub struct Shell {
    /// A list, as there are few: a map of one takes the room of eleven.
    seats: Vec<(Seat, SeatShell)>,
    /// What `env_file` said when it was last read.
    pub env_file: Vec<(String, String)>,
    pub sockets: Sockets,
    /// What a process is given at its start, as its record names it.
    pub definition: u64,
    /// The deadline that stands in `Supervisor::deadlines`.
    pub armed: Option<Instant>,
    /// How many restarts one by one are over, and how the last one went.
    pub rolled: (u64, Result<(), Box<str>>),
    /// Whom everything in the app's folders belongs to, once that was seen to.
    pub owner: Option<u32>,
}

impl Shell {
    #[must_use]
    pub fn new(kits: BTreeMap<Seat, prepare::Kit>, env_file: Vec<(String, String)>, app: &config::App) -> Self {
        let mut shell = Self {
            seats: Vec::new(),
            definition: config::definition(app, &env_file),
            env_file,
            sockets: Sockets::new(),
            armed: None,
            rolled: (0, Ok(())),
            owner: None,
        };
        shell.take_kits(kits);
        shell
    }

    /// What more processes are started with, where their seats have nothing yet.
    pub fn take_kits(&mut self, kits: BTreeMap<Seat, prepare::Kit>) {
        let known = |shell: &Self, seat| shell.seats.iter().any(|(known, _)| *known == seat);
        for (seat, kit) in kits {
            if !known(self, seat) {
                self.seats.push((seat, SeatShell::new(kit)));
            }
        }
        self.seats.shrink_to_fit();
    }

    /// The numbers of the copies that there is something for.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + use<'_> {
        self.seats.iter().filter(|(seat, _)| !seat.second).map(|(seat, _)| seat.number)
    }

    /// A copy is no more.
    pub fn forget(&mut self, number: u32) {
        for (_, shell) in self.seats.extract_if(.., |(seat, _)| seat.number == number) {
            shell.remove_group();
        }
    }

    /// Nobody lives in its groups any more.
    pub fn remove_groups(&self) {
        self.seats.iter().for_each(|(_, shell)| shell.remove_group());
    }

    pub fn seats(&self) -> impl Iterator<Item = &(Seat, SeatShell)> {
        self.seats.iter()
    }

    #[must_use]
    pub fn seat(&self, seat: Seat) -> Option<&SeatShell> {
        self.seats.iter().find(|(known, _)| *known == seat).map(|(_, shell)| shell)
    }

    pub fn seat_mut(&mut self, seat: Seat) -> Option<&mut SeatShell> {
        self.parts(seat).map(|(shell, ..)| shell)
    }

    /// A seat, and what its app's processes share: sockets and the variables of `env_file`.
    pub fn parts(&mut self, seat: Seat) -> Option<(&mut SeatShell, &Sockets, &Variables)> {
        let (_, shell) = self.seats.iter_mut().find(|(known, _)| *known == seat)?;
        Some((shell, &self.sockets, &self.env_file))
    }
}

/// What is held of the process in a seat.
pub struct SeatShell {
    pub kit: prepare::Kit,
    /// The main process.
    pub pidfd: Option<OwnedFd>,
    pub main: Option<u32>,
    /// What its process was given at its start: [`Shell::definition`] of then.
    pub definition: u64,
    pub health: probe::Health,
    pub words: words::Words,
    /// The command that tells it of a release, or asks it to leave.
    pub reload: Option<JobId>,
    /// All of its tree were sent KILL.
    pub killed: bool,
    /// Who of its tree may not be killed, in words.
    pub unkillable: Option<Box<str>>,
    /// The session that its process began, by the number that this has even after its end.
    pub session: Option<u32>,
    /// The run that its process was started by, as that bears it, where this is an earlier supervisor's.
    pub boot: Option<Box<str>>,
    /// Its process was started under a name that the app has no more.
    pub renamed: Option<Box<Renamed>>,
    pub memory: limits::Memory,
}

/// What a process bears that was started under another name, and what its seat's next one gets.
pub struct Renamed {
    pub bears: InstanceId,
    /// The file of its run record.
    pub record: PathBuf,
    pub next: prepare::Kit,
}

impl SeatShell {
    /// Nobody bears the old name any more.
    pub fn begin_renamed(&mut self) {
        let Some(renamed) = self.renamed.take() else { return };
        self.remove_group();
        self.memory = limits::Memory::default();
        // A file that is left names a process that has ended.
        let _ = std::fs::remove_file(&renamed.record);
        self.kit = renamed.next;
        self.health.forget_notices();
    }

    #[must_use]
    pub fn new(kit: prepare::Kit) -> Self {
        Self {
            kit,
            pidfd: None,
            main: None,
            definition: 0,
            health: probe::Health::default(),
            words: words::Words::of(At(0)),
            reload: None,
            killed: false,
            unkillable: None,
            session: None,
            boot: None,
            renamed: None,
            memory: limits::Memory::default(),
        }
    }
}
