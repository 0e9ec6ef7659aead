//! The life of an instance and of an app: states, backoff, giving up, trials of a new release, order.
//!
//! | state | left by | to |
//! |---|---|---|
//! | stopped | start, restart (a person, the config) | starting, waiting |
//! | waiting | its reason is gone (the apps of `after`, the first release) | starting |
//! | starting | the proof of readiness · exit, no proof in time, spawn error · stop | ready · *end* · stopping |
//! | ready | exit · stop, restart, another release · failed liveness, its own STOPPING=1 | *end* · stopping |
//! | stopping | the tree is empty | stopped, starting, *end* |
//! | backoff | its delay is over, start, restart, a new release | starting |
//! | failed | start, restart, a new release, a changed config, `retry_after` | starting |
//! | done | start, restart, a new release, a changed config | starting |
//!
//! *end* is decided in one place ([`Instance`]'s `after_end`): done, backoff, starting at once, or failed;
//! on trial instead: the trial has failed and the app goes back to the release before.
//! The copies of an app live side by side; what restarts several of them does so one by one ([`roll`]).
//! Nothing starts while a process of the last run lives; what outlived its supervisor goes on where it may
//! ([`survivor`]). Nothing here knows a pid's tree, a file or a clock.

mod app;
mod backoff;
mod copy;
mod guard;
mod instance;
mod notice;
pub mod order;
mod people;
mod roll;
mod rules;
mod survivor;
mod timetable;

pub use app::{App, Apps, Event, Happening, Release, Rest, Task};
pub use copy::{Copy, Run, Seat};
pub use guard::{Guard, Verdict};
pub use instance::{Action, Instance, State};
pub use notice::{Notice, Watchdog};
pub use survivor::Survivor;
pub use timetable::{Due, Timetable};
