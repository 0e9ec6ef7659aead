//! Plain words that every room speaks: names, ids, secrets, exits, signals, sizes, durations, times.
//! Each is parsed once at the edge and carries its rule from then on.

mod bearer;
mod capability;
mod exit;
mod facts;
mod glob;
mod ids;
mod name;
mod pair;
mod progress;
mod secret;
mod signal;
mod size;
pub mod span;
mod time;
mod veil;

pub use bearer::Bearer;
pub use capability::{BadCapability, Capabilities};
pub use exit::Exit;
pub use facts::{Account, Facts, Group, Texts};
pub use glob::{BadGlob, Glob, Globs};
pub use ids::{CommitId, DeliveryId, DeployId, ReleaseId};
pub use name::{AppName, InstanceId, nearest};
pub use pair::{BadPair, Pair, Standing};
pub use progress::Progress;
pub use secret::Secret;
pub use signal::Signal;
pub use size::Size;
pub use span::{parse_span, show_span};
pub use time::{At, Now};
pub use veil::Veil;
