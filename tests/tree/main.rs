//! The tree helper on real repositories: what it answers, what it writes, and what it does not touch.
#![allow(clippy::unwrap_used)]

mod judge;
mod mirror;
mod release;
mod world;
