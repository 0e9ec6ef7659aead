//! The thread that owns SQLite and the hooks channels: it proves and parses deliveries, matches them
//! against a snapshot of the config, commits in groups, answers, and then tells the loop. DESIGN.md
//! sections 3, 7, 8 and 10.
//!
//! It decides nothing about an app's life, and nothing that supervises waits for it: a full disk or a
//! damaged database costs deliveries a 503 and events their place in the store, no app its process.

mod say;

pub use say::{Command, NewAudit, NewDeploy, NewEvent, Query, Told, Unfinished};
